/* wait_job LIMIT_S MARK COMMAND...: runs a command and waits for it and for every process that comes from it, wherever
 * it has gone: one whose parent ends becomes this program's child. Prints one line, "SECONDS": how long after the file
 * MARK appeared the last process was gone (without MARK: after the start). The exit code is the command's (128 + n:
 * signal n). Processes that are there LIMIT_S seconds after MARK (without MARK: 90 s after the start) are named and
 * killed; exit code 124 then. */
#include <dirent.h>
#include <errno.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { START_LIMIT_S = 90, LEFT = 124 };

static double now_s(void) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now); /* a file's time is of this clock */
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static double mark_s(const char *mark, double otherwise) {
    struct stat info;
    if (stat(mark, &info) != 0) return otherwise;
    return (double)info.st_mtim.tv_sec + 1e-9 * (double)info.st_mtim.tv_nsec;
}

/* The parent of a process, and its name in parentheses; 0 when it is gone. */
static pid_t parent_of(pid_t process, char name[64]) {
    char path[64], line[512], state = 0;
    int parent = 0;
    snprintf(path, sizeof path, "/proc/%d/stat", (int)process);
    FILE *file = fopen(path, "re");
    if (!file) return 0;
    char *got = fgets(line, sizeof line, file), *end = got ? strrchr(line, ')') : NULL;
    if (!end || sscanf(end + 1, " %c %d", &state, &parent) != 2 || state == 'Z') parent = 0;
    if (parent && name) snprintf(name, 64, "%.*s", (int)(end + 1 - strchr(line, '(')), strchr(line, '('));
    fclose(file);
    return parent;
}

/* Names and kills every process that descends from this one. */
static void kill_descendants(void) {
    DIR *directory = opendir("/proc");
    struct dirent *entry;
    char name[64];
    while (directory && (entry = readdir(directory)) != NULL) {
        pid_t process = atoi(entry->d_name), ancestor = process;
        for (int depth = 0; ancestor > 1 && ancestor != getpid() && depth < 64; depth++)
            ancestor = parent_of(ancestor, NULL);
        if (process <= 1 || process == getpid() || ancestor != getpid() || !parent_of(process, name)) continue;
        fprintf(stderr, "wait_job: left: %d %s\n", (int)process, name);
        kill(process, SIGKILL);
    }
    if (directory) closedir(directory);
}

int main(int argc, char **argv) {
    if (argc < 4) return fprintf(stderr, "usage: wait_job LIMIT_S MARK COMMAND...\n"), 2;
    double limit_s = strtod(argv[1], NULL), begun_s = now_s();
    const char *mark = argv[2];
    int code = -1;
    bool left = false;
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    pid_t command = fork();
    if (command == 0) {
        execvp(argv[3], argv + 3);
        fprintf(stderr, "wait_job: %s: %s\n", argv[3], strerror(errno));
        _exit(127);
    }
    for (;;) {
        int outcome;
        pid_t gone = waitpid(-1, &outcome, WNOHANG);
        if (gone < 0 && errno == ECHILD) break;
        if (gone == command) code = WIFSIGNALED(outcome) ? 128 + WTERMSIG(outcome) : WEXITSTATUS(outcome);
        if (gone > 0) continue;
        double from_s = mark_s(mark, begun_s + START_LIMIT_S - limit_s);
        if (now_s() > from_s + limit_s) {
            left = true;
            kill_descendants();
        }
        nanosleep(&(struct timespec){.tv_nsec = 5000000}, NULL);
    }
    printf("%.2f\n", now_s() - mark_s(mark, begun_s));
    return left ? LEFT : code;
}

/* See log.h. Owns the state of the one terminal. */
#include "base/log.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { LOG_LINE = 512 };
static const double terminal_interval_s = 0.1, plain_interval_s = 10.0;
static int log_rank;
static bool log_quiet;
static FILE *kept; /* the copy of what is printed; NULL: none */
static bool line_open; /* a progress line without its newline stands on the terminal */

double time_now_s(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

void time_text(double seconds, char text[16]) {
    unsigned s = seconds > 0 && seconds < 3e8 ? (unsigned)(seconds + 0.5) : 0;
    if (s < 60) {
        snprintf(text, 16, "%us", s);
    } else if (s < 3600) {
        snprintf(text, 16, "%um %02us", s / 60, s % 60);
    } else {
        snprintf(text, 16, "%uh %02um", s / 3600, s / 60 % 60);
    }
}

void bytes_text(double bytes, char text[16]) {
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    int unit = 0;
    while (unit < 4 && bytes >= 1024) {
        bytes /= 1024;
        unit++;
    }
    snprintf(text, 16, bytes < 10 && unit ? "%.1f %s" : "%.0f %s", bytes, units[unit]);
}

void count_text(int64_t count, char text[32]) {
    char digits[24];
    snprintf(digits, sizeof digits, "%lld", (long long)count);
    size_t length = strlen(digits), used = 0;
    for (size_t i = 0; i < length; i++) {
        size_t left = length - i;
        text[used++] = digits[i];
        if (left > 1 && left % 3 == 1 && digits[i] != '-') text[used++] = ',';
    }
    text[used] = '\0';
}

void log_keep(const char *path) {
    if (kept) fclose(kept);
    kept = path && log_rank == 0 ? fopen(path, "ae") : NULL;
}

static void keep_line(const char *line) {
    if (!kept) return;
    fprintf(kept, "%s\n", line);
    fflush(kept);
}

static void close_line(void) {
    if (line_open) fputc('\n', stderr);
    line_open = false;
}

void log_start(int rank, bool quiet) {
    log_rank = rank;
    log_quiet = quiet;
}

void log_line(const char *format, ...) {
    if (log_rank != 0) return;
    char line[LOG_LINE * 4];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(line, sizeof line, format, arguments);
    va_end(arguments);
    keep_line(line);
    if (log_quiet) return;
    close_line();
    fprintf(stderr, "%s\n", line);
}

void log_warning(const char *format, ...) {
    static const char head[] = "warning: ";
    char line[LOG_LINE * 4];
    memcpy(line, head, sizeof head);
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(line + sizeof head - 1, sizeof line - sizeof head + 1, format, arguments);
    va_end(arguments);
    keep_line(line);
    close_line();
    fprintf(stderr, "%s\n", line);
}

void log_progress_start(struct log_progress *progress, const char *label, int64_t first, int64_t total) {
    double now = time_now_s();
    *progress = (struct log_progress){.label = label, .total = total, .first = first, .started_s = now,
                                      .printed_s = isatty(STDERR_FILENO) ? 0 : now};
}

static void print_progress(struct log_progress *progress, int64_t done, const char *detail, bool last) {
    char line[LOG_LINE], time[16];
    double elapsed = time_now_s() - progress->started_s;
    int64_t fresh = done - progress->first;
    int used = progress->total > 0
                   ? snprintf(line, sizeof line, "%-8s %lld/%lld  %s", progress->label, (long long)done,
                              (long long)progress->total, detail ? detail : "")
                   : snprintf(line, sizeof line, "%-8s %lld  %s", progress->label, (long long)done, detail ? detail : "");
    if (used < 0 || used >= LOG_LINE) used = LOG_LINE - 1;
    if (last) {
        time_text(elapsed, time);
        snprintf(line + used, sizeof line - (size_t)used, "  %s", time);
    } else if (progress->total > 0 && fresh > 0) {
        time_text(elapsed * (double)(progress->total - done) / (double)fresh, time);
        snprintf(line + used, sizeof line - (size_t)used, "  ETA %s", time);
    }
    if (last) keep_line(line);
    if (log_quiet) return;
    if (isatty(STDERR_FILENO)) {
        fprintf(stderr, "\r\033[K%s", line);
        line_open = true;
        if (last) close_line();
    } else {
        fprintf(stderr, "%s\n", line);
    }
    fflush(stderr);
}

void log_progress_show(struct log_progress *progress, int64_t done, const char *detail) {
    if (log_rank != 0 || log_quiet) return;
    double now = time_now_s();
    if (now - progress->printed_s < (isatty(STDERR_FILENO) ? terminal_interval_s : plain_interval_s)) return;
    progress->printed_s = now;
    print_progress(progress, done, detail, false);
}

void log_progress_end(struct log_progress *progress, int64_t done, const char *detail) {
    if (log_rank != 0) return;
    print_progress(progress, done, detail, true);
}

/* The host's execution of kernels goes red: each row breaks one rule of CUDA, by a kernel or by a call of the runtime
 * (faulty_kernels.cu), in a process of its own, and expects that it ends with the message, or that the fault shows in
 * what the kernel wrote. */
#include "simt/simt.h"
#include "support/check.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#if defined(__SANITIZE_ADDRESS__)
enum { ADDRESSES_CHECKED = 1 };
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
enum { ADDRESSES_CHECKED = 1 };
#else
enum { ADDRESSES_CHECKED = 0 };
#endif
#else
enum { ADDRESSES_CHECKED = 0 };
#endif

bool faulty_run(const char *name);

static const struct row {
    const char *name, *message; /* NULL: the fault shows in the result */
    bool addresses;             /* only AddressSanitizer sees it */
} rows[] = {
    {"no barrier", NULL, false},
    {"copy read early", NULL, false},
    {"too much shared memory", NULL, false},
    {"too many threads", NULL, false},
    {"barrier for some", "stuck: 16 threads wait at a barrier, 16 in a warp operation, 0 are done; block (0,0,0)",
     false},
    {"lane missing", "stuck: 0 threads wait at a barrier, 31 in a warp operation, 1 are done", false},
    {"lane not named", "a warp operation whose mask leaves out the caller; block (0,0,0), thread (0,0,0)", false},
    {"lanes not there", "a warp operation whose mask names lanes that do not exist", false},
    {"value of another mask", "trap", false},
    {"many masks", "more different warp masks than tests/simt can hold", false},
    {"large value", "a value too large for a warp operation", false},
    {"trap", "trap; block (0,0,0), thread (3,0,0)", false},
    {"behind an array", "AddressSanitizer: use-after-poison", true},
    {"behind dynamic memory", "AddressSanitizer: use-after-poison", true},
    {"more than a block has", "more shared memory than a block can have", false},
    {"copy left", "asynchronous copies that nobody waited for", false},
    {"copy from between", "cp.async: a source that is not aligned to 16 bytes", false},
    {"copy to elsewhere", "cp.async: an address that is not in shared memory", false},
    {"matrix from between", "ldmatrix: an address that is not in shared memory, or not aligned to 16", false},
    {"free of foreign memory", "cudaFree of what cudaMalloc did not give", false},
    {"free of foreign pinned memory", "cudaFreeHost of what cudaMallocHost did not give", false},
    {"copy of foreign memory", "cudaMemcpyAsync: the device's side is not device memory", false},
    {"fill of foreign memory", "cudaMemsetAsync: not device memory", false},
    {"wait inside a capture", "a wait inside a capture", false},
    {"captured copy", "a captured copy from or to memory that is not pinned", false},
    {"capture inside a capture", "a capture inside a capture", false},
};

/* The exit status of a process that runs the row, and what it wrote to stderr. */
static int run_apart(const char *name, char *said, size_t capacity) {
    int ends[2], status = 0;
    size_t length = 0;
    assert_int_equal(pipe(ends), 0);
    const pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        /* cmocka's handlers would go on with the parent's test. */
        static const int signals[] = {SIGABRT, SIGSEGV, SIGILL, SIGFPE, SIGBUS};
        for (size_t n = 0; n < sizeof signals / sizeof *signals; n++) signal(signals[n], SIG_DFL);
        dup2(ends[1], STDERR_FILENO);
        close(ends[0]);
        _exit(faulty_run(name) ? 42 : 0);
    }
    close(ends[1]);
    for (;;) {
        char rest[256]; /* read to the end, that the child is not held up */
        const bool room = length < capacity - 1;
        const ssize_t got = read(ends[0], room ? said + length : rest, room ? capacity - 1 - length : sizeof rest);
        if (got <= 0) break;
        if (room) length += (size_t)got;
    }
    said[length] = '\0';
    close(ends[0]);
    assert_int_equal(waitpid(child, &status, 0), child);
    return status;
}

static void faults_are_told(void **state) {
    (void)state;
    static char said[1 << 16];
    simt_set_order(SIMT_FORWARD, 1);
    for (size_t n = 0; n < sizeof rows / sizeof *rows; n++) {
        const struct row *row = &rows[n];
        if (row->addresses && !ADDRESSES_CHECKED) continue;
        const int status = run_apart(row->name, said, sizeof said);
        const bool ended = WIFEXITED(status), shown = ended && WEXITSTATUS(status) == 42;
        const bool right =
            row->message ? !shown && !(ended && WEXITSTATUS(status) == 0) && strstr(said, row->message) : shown;
        if (!right)
            fail_msg("%s: expected %s, found %s %d, \"%.300s\"", row->name,
                     row->message ? row->message : "the fault in the result", ended ? "exit code" : "signal",
                     ended ? WEXITSTATUS(status) : WTERMSIG(status), said);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(faults_are_told)};
    return check_exit(cmocka_run_group_tests(tests, NULL, NULL));
}

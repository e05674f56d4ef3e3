/* What the test programs share. */
#ifndef SQUINT_TESTS_SUPPORT_CHECK_H
#define SQUINT_TESTS_SUPPORT_CHECK_H

/* cmocka wants these before itself. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/error.h"

/* Fails the test with the status's own message. */
#define CHECK_OK(call)                                                                                                 \
    do {                                                                                                               \
        enum status check_status_ = (call);                                                                            \
        if (check_status_ != STATUS_OK) {                                                                              \
            fail_msg("%s: %s: %s", #call, status_name(check_status_), error_message());                                \
        }                                                                                                              \
    } while (0)

/* The call fails with `code`; its message is cleared. */
#define CHECK_STATUS(code, call)                                                                                       \
    do {                                                                                                               \
        enum status check_status_ = (call);                                                                            \
        if (check_status_ != (code)) {                                                                                 \
            fail_msg("%s: expected %s, found %s: %s", #call, status_name(code), status_name(check_status_),            \
                     error_message());                                                                                 \
        }                                                                                                              \
        error_clear();                                                                                                 \
    } while (0)

/* Whether a case of this program was skipped. */
static inline bool *check_skipped(void) {
    static bool skipped;
    return &skipped;
}

/* Leaves a case out and says why, in the words of printf. */
#define CHECK_SKIP(...)                                                                                                \
    do {                                                                                                               \
        print_message("skipped: " __VA_ARGS__);                                                                        \
        print_message("\n");                                                                                           \
        *check_skipped() = true;                                                                                       \
        skip();                                                                                                        \
    } while (0)

/* Whether row n of a long table is this test's. Sanitizers make everything several times slower: under them the rows are dealt to three hands, so that
 * tests that walk one table share it (tables of operations by instruction set, say); elsewhere every hand has all. */
static inline bool check_dealt(int64_t n, int64_t hand) {
#ifdef __SANITIZE_ADDRESS__
    return (n + hand) % 3 == 0;
#else
    (void)n, (void)hand;
    return true;
#endif
}

/* The program's exit code: a failure counts before anything that was left out (77: the test is shown as skipped, not as passed). */
static inline int check_exit(int failures) {
    return failures ? 1 : *check_skipped() ? 77 : 0;
}

#endif

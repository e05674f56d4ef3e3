/* Statuses and messages. The message is made where the fault is found; callers pass the status up and only main
 * prints. Knows nothing of any other module. */
#ifndef SQUINT_BASE_ERROR_H
#define SQUINT_BASE_ERROR_H

/* Ordered by severity: `agree` returns the largest over the ranks. */
enum status {
    STATUS_OK = 0,
    STATUS_STOPPED,   /* stopped early on request, resumable: exit 75 */
    STATUS_NONFINITE, /* a loss or gradient is NaN or infinite: the step is skipped */
    STATUS_NOT_FOUND, /* a file or object that is looked for is not there: exit 1 */
    STATUS_FAILED,    /* any other failure: exit 1 */
    STATUS_SHAPE,     /* tensors whose shapes or dtypes do not fit together: exit 1 */
    STATUS_IO,        /* the operating system refused to read or write: exit 1 */
    STATUS_MEMORY,    /* no memory: exit 1 */
    STATUS_COMM,      /* another rank is lost or late: exit 1 */
    STATUS_DAMAGED,   /* an input file is not what it says it is: exit 3 */
    STATUS_USAGE,     /* a wrong option or config: exit 2 */
};

/* Sets this thread's message, if none is set yet (the first error wins), and returns `code`.
 * `format`: printf's; says what, where, expected, found; no trailing newline. At most 2,047 bytes are kept. */
enum status error_set(enum status code, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Puts "prefix: " before this thread's message, to add a place (a file, a tensor) on the way up; returns `code`. */
enum status error_prefix(enum status code, const char *format, ...) __attribute__((format(printf, 2, 3)));

const char *error_message(void); /* this thread's message; "" when none is set */
void error_clear(void);          /* forgets it; for a fault that has been dealt with */
int status_exit_code(enum status code);
const char *status_name(enum status code);

#define TRY(call)                                                                                                      \
    do {                                                                                                               \
        enum status try_status_ = (call);                                                                              \
        if (try_status_ != STATUS_OK) return try_status_;                                                              \
    } while (0)

/* Assigns to a local variable `status` and leaves by `label` on failure. */
#define TRY_GOTO(label, call)                                                                                          \
    do {                                                                                                               \
        status = (call);                                                                                               \
        if (status != STATUS_OK) goto label;                                                                           \
    } while (0)

/* For clean-up: runs `call`; its failure counts only when nothing failed before. */
#define KEEP_FIRST(status, call)                                                                                       \
    do {                                                                                                               \
        enum status keep_status_ = (call);                                                                             \
        if ((status) == STATUS_OK) (status) = keep_status_;                                                            \
    } while (0)

#endif

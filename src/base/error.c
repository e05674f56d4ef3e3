/* Owns the per-thread error message. */
#include "base/error.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static _Thread_local char message[2048];

enum status error_set(enum status code, const char *format, ...) {
    if (message[0] != '\0') return code;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(message, sizeof message, format, arguments);
    va_end(arguments);
    return code;
}

enum status error_prefix(enum status code, const char *format, ...) {
    char rest[sizeof message - 3]; /* leaves room for ": " */
    memcpy(rest, message, sizeof rest);
    rest[sizeof rest - 1] = '\0';
    va_list arguments;
    va_start(arguments, format);
    int used = vsnprintf(message, sizeof message, format, arguments);
    va_end(arguments);
    if (used >= 0 && (size_t)used < sizeof message) {
        snprintf(message + used, sizeof message - (size_t)used, ": %.*s", (int)(sizeof message - (size_t)used), rest);
    }
    return code;
}

const char *error_message(void) { return message; }

void error_clear(void) { message[0] = '\0'; }

int status_exit_code(enum status code) {
    switch (code) {
    case STATUS_OK: return 0;
    case STATUS_USAGE: return 2;
    case STATUS_DAMAGED: return 3;
    case STATUS_STOPPED: return 75;
    default: return 1;
    }
}

const char *status_name(enum status code) {
    static const char *const names[] = {"ok", "stopped", "non-finite", "not found", "failed", "shape",
                                        "i/o", "memory", "comm", "damaged", "usage"};
    return code <= STATUS_USAGE ? names[code] : "unknown";
}

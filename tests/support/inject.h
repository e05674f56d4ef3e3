/* Makes one chosen call of the system, the allocator, a library or our own collectives fail. The calls are exchanged by
 * the linker: a test links inject.c and names in --wrap options (tests/faults/CMakeLists.txt) every function that is
 * exchanged there, and those that it exchanges itself by INJECT. */
#ifndef SQUINT_TESTS_SUPPORT_INJECT_H
#define SQUINT_TESTS_SUPPORT_INJECT_H

#include <stdbool.h>

/* From now on call number `call` of `function` fails, counted from 0, and none after it. */
void inject_start(const char *function, long call);
/* Ends it; true when a call has failed since inject_start. */
bool inject_stop(void);
/* For what stands in a function's place: true when this is the call that fails; errno is then `code`. */
bool inject_fails(const char *function, int code);

/* Exchanges a function for one that returns `failure` when its call is to fail. */
#define INJECT(result, name, failure, code, parameters, arguments)                                                     \
    result __real_##name parameters;                                                                                   \
    result __wrap_##name parameters;                                                                                   \
    result __wrap_##name parameters {                                                                                  \
        return inject_fails(#name, code) ? failure : __real_##name arguments;                                          \
    }

extern const char *const inject_commands[]; /* inject_commands.c: what test_command_faults exchanges; ends with NULL */

#endif

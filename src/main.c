/* The command line's front door: finds the command, runs it, prints its message, ends the process. */
#include "base/error.h"
#include "commands/command.h"

#include <stdio.h>
#include <string.h>

#ifndef SQUINT_WITH_CUDA
#define SQUINT_WITH_CUDA 0
#endif
#ifdef SQUINT_CUDA_DRAFT
static const char draft[] = ", a draft whose kernels are slow (cmake --preset release -DSQUINT_CUDA=auto)";
#else
static const char draft[] = "";
#endif

static void print_help(FILE *stream) {
    fprintf(stream, "squint %s: distil a language model that attends to everything into one that attends to little\n\n"
                    "usage: squint COMMAND [options]      squint COMMAND --help\n\n", SQUINT_VERSION);
    for (int i = 0; command_table[i]; i++) {
        fprintf(stream, "  %-10s %s\n", command_table[i]->name, command_table[i]->summary);
    }
    fprintf(stream, "\nexit codes: 0 done, 1 failed, 2 bad usage or config, 3 damaged input, 75 stopped early and resumable\n");
}

int main(int argc, char **argv) {
    if (argc < 2) {
        print_help(stderr);
        return 2;
    }
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "help") == 0) {
        print_help(stdout);
        return 0;
    }
    if (strcmp(argv[1], "--version") == 0) {
        printf("squint %s, %s CUDA%s\n", SQUINT_VERSION, SQUINT_WITH_CUDA ? "with" : "without", draft); /* launch/local reads this */
        return 0;
    }
    for (int i = 0; command_table[i]; i++) {
        if (strcmp(argv[1], command_table[i]->name) != 0) continue;
        for (int word = 2; word < argc; word++) {
            if (strcmp(argv[word], "--") == 0) break;
            if (strcmp(argv[word], "--help") == 0 || strcmp(argv[word], "-h") == 0) {
                fputs(command_table[i]->help, stdout);
                return 0;
            }
        }
        enum status status = command_table[i]->run(argc - 1, argv + 1);
        if (status != STATUS_OK && error_message()[0]) fprintf(stderr, "squint: %s\n", error_message());
        return status_exit_code(status);
    }
    fprintf(stderr, "squint: unknown command \"%s\"; see squint --help\n", argv[1]);
    return 2;
}

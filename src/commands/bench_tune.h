/* The command `squint bench tune`. */
#ifndef SQUINT_COMMANDS_BENCH_TUNE_H
#define SQUINT_COMMANDS_BENCH_TUNE_H

#include "base/error.h"

/* argv[0]: "bench tune", for messages. */
enum status bench_tune(int argc, char **argv);

#endif

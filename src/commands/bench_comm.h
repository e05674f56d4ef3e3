/* The command `squint bench comm`. */
#ifndef SQUINT_COMMANDS_BENCH_COMM_H
#define SQUINT_COMMANDS_BENCH_COMM_H

#include "base/error.h"

/* argv[0]: "bench comm", for messages. */
enum status bench_comm(int argc, char **argv);

#endif

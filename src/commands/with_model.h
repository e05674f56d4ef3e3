/* What the commands that run a model share: their common options, ranks, device and the opened MODEL. */
#ifndef SQUINT_COMMANDS_WITH_MODEL_H
#define SQUINT_COMMANDS_WITH_MODEL_H

#include "comm/comm.h"
#include "commands/command.h"
#include "commands/device.h"
#include "eval/loaded_model.h"

struct model_options {
    const char *model, *teacher, *precision, *positions, *device;
    int64_t threads;
};

/* The rows of an option table that fill a struct model_options, and their lines of a help text. */
#define MODEL_OPTION_ROWS(o)                                                                                           \
    {"model", OPTION_TEXT, &(o).model, 0, 0}, {"precision", OPTION_TEXT, &(o).precision, 0, 0},                        \
        {"positions", OPTION_TEXT, &(o).positions, 0, 0}, {"device", OPTION_TEXT, &(o).device, 0, 0}, {                \
        "threads", OPTION_INTEGER, &(o).threads, 0, 4096                                                               \
    }
#define MODEL_OPTION_HELP                                                                                              \
    "  --model MODEL        a Hugging Face directory, a checkpoint (step-...), or a run directory (its newest one)\n"  \
    "  --positions HOW      of learned positions beyond their table: refuse (default) | interpolate | tile\n"          \
    "  --precision P        fp32 (default) | bf16\n"                                                                   \
    "  --device D           " DEVICE_HELP "\n"                                                                         \
    "  --threads N          of each rank; 0 (default): all that it may use\n"

struct with_model {
    struct comm *comm;
    const struct ops *ops;
    struct loaded_model loaded;
};

/* Starts the ranks (`parallel`) or one without MPI, the log, the device; opens MODEL. length: as in
 * struct loaded_options. Ranks agree; call with_model_close in any case. STATUS_USAGE: an option's value. */
enum status with_model_open(const char *command, const struct model_options *options, bool parallel, int64_t length,
                            struct with_model *with);
/* Ends everything; returns the first failure, `status` before its own, and leaves the message to rank 0. */
enum status with_model_close(struct with_model *with, enum status status);

#endif

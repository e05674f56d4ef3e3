/* See with_model.h. */
#include "commands/with_model.h"
#include "commands/ranks.h"

#include "base/log.h"
#include "base/machine.h"

#include <string.h>

static enum status read_choice(const char *command, const char *option, const char *text, const char *const *names,
                               int count, int *index) {
    if (!text) return STATUS_OK;
    for (int i = 0; i < count; i++) {
        if (strcmp(text, names[i]) != 0) continue;
        *index = i;
        return STATUS_OK;
    }
    return error_set(STATUS_USAGE, "%s: --%s: expected %s, %s%s%s, found \"%s\"", command, option, names[0], names[1],
                     count > 2 ? ", " : "", count > 2 ? names[2] : "", text);
}

/* device_choose, the same bits whatever the number of threads. threads 0: what each rank of this machine may use. */
static enum status open_device(const char *command, const char *device, bool bf16, int64_t threads,
                               const struct comm *comm, const struct ops **ops) {
    struct ops_options options = {.threads = threads > 0 ? (int)threads : machine_threads(comm_node_size(comm)),
                                  .deterministic = true,
                                  .node_rank = comm_node_rank(comm)};
    enum status status = device_choose(device, bf16, &options, ops);
    return status == STATUS_OK ? status : error_prefix(status, "%s: --device", command);
}

static enum status open_here(const char *command, const struct model_options *options, int64_t length,
                             struct with_model *with) {
    static const char *const precisions[] = {"fp32", "bf16"}, *const positions[] = {"refuse", "interpolate", "tile"};
    int precision = 0, beyond = 0;
    if (!options->model) {
        return error_set(STATUS_USAGE, "%s: --model: expected a model, found none; see squint %s --help", command,
                         command);
    }
    TRY(read_choice(command, "precision", options->precision, precisions, 2, &precision));
    TRY(read_choice(command, "positions", options->positions, positions, 3, &beyond));
    TRY(open_device(command, options->device, precision == 1, options->threads, with->comm, &with->ops));
    struct loaded_options loaded = {.comm = with->comm,
                                    .teacher = options->teacher,
                                    .bf16 = precision == 1,
                                    .positions = (enum positions_beyond)beyond,
                                    .length = length};
    return loaded_model_open(with->ops, options->model, &loaded, &with->loaded);
}

enum status with_model_open(const char *command, const struct model_options *options, bool parallel, int64_t length,
                            struct with_model *with) {
    memset(with, 0, sizeof *with);
    TRY(parallel ? comm_open(NULL, &with->comm) : comm_open_single(&with->comm));
    log_start(comm_rank(with->comm), false);
    return comm_agree(with->comm, open_here(command, options, length, with));
}

enum status with_model_close(struct with_model *with, enum status status) {
    int rank = with->comm ? comm_rank(with->comm) : 0;
    loaded_model_close(&with->loaded);
    if (with->ops) with->ops->close(with->ops);
    with->ops = NULL;
    KEEP_FIRST(status, comm_close(&with->comm));
    ranks_leave_message(rank, status);
    return status;
}

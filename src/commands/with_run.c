/* See with_run.h. */
#include "commands/with_run.h"

#include "commands/device.h"
#include "commands/ranks.h"

#include "base/file.h"
#include "base/log.h"
#include "base/machine.h"
#include "base/memory.h"
#include "data-prep/tokenizer.h"
#include "train/signals.h"

#include <inttypes.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static enum status holds_tokenizer(const char *directory, bool *holds) {
    TRY(file_exists_in(directory, "tokenizer.json", holds));
    return *holds ? STATUS_OK : file_exists_in(directory, "vocab.json", holds);
}

/* The tokenizer that the recipe names, or that lies beside the teacher: its hash is what the shards must carry. */
static enum status read_tokenizer(const struct config *config, char **path, uint64_t *hash) {
    struct tokenizer *tokenizer = NULL;
    *hash = 0;
    *path = NULL;
    if (config->tokenizer) {
        TRY(memory_copy_text(config->tokenizer, path));
    } else if (config->teacher) {
        TRY(run_find_teacher(config->teacher, path));
        bool holds = false;
        TRY(holds_tokenizer(*path, &holds));
        if (!holds) return STATUS_OK;
    } else {
        return STATUS_OK;
    }
    TRY(tokenizer_open(*path, &tokenizer));
    *hash = tokenizer_hash(tokenizer);
    tokenizer_close(&tokenizer);
    return STATUS_OK;
}

static enum status open_device(struct with_run *with) {
    struct ops_options options = {.threads = machine_threads(comm_node_size(with->comm)),
                                  .deterministic = with->config.deterministic,
                                  .node_rank = comm_node_rank(with->comm)};
    return device_choose(with->config.device, with->config.precision == PRECISION_BF16, &options, &with->ops);
}

/* Ranks with GPUs talk over NCCL. Where it is not there their gradients go through the host, which a line says. */
static enum status open_gpus(struct with_run *with) {
    int64_t streams = with->ops->stream ? 1 : 0;
    if (comm_size(with->comm) == 1) return STATUS_OK;
    TRY(comm_all_reduce(with->comm, tensor_1d(&streams, DTYPE_I64, 1), COMM_SUM));
    if (streams == 0) return STATUS_OK;
    if (streams < comm_size(with->comm)) {
        return error_set(STATUS_USAGE,
                         "device: expected the same on all ranks, found a GPU for %" PRId64
                         " of %d; start as many ranks a machine as it has GPUs, or set "
                         "device: cpu (squint doctor says where it is missing)",
                         streams, comm_size(with->comm));
    }
    const enum status status = comm_open_nccl(with->comm, with->ops->stream(with->ops), &with->gpu);
    if (status == STATUS_OK) log_line("comm     gradients travel over %s", comm_describe(with->gpu));
    if (status != STATUS_NOT_FOUND) return status;
    log_line("comm     %s: gradients go through the host", error_message());
    error_clear();
    return STATUS_OK;
}

static enum status read_here(const char *command, const struct option_list *words, const struct option_list *overrides,
                             struct with_run *with, char **tokenizer, uint64_t *hash) {
    if (words->count != 1) {
        return error_set(STATUS_USAGE, "%s: expected one recipe, found %zu words; see squint %s --help", command,
                         words->count, command);
    }
    TRY(config_read(words->values[0], overrides->values, overrides->count, &with->config));
    TRY(read_tokenizer(&with->config, tokenizer, hash));
    return open_device(with);
}

/* A launcher that ends a job sends SIGCONT, in case a rank is stopped, and SIGTERM. By the latter alone, or SIGUSR1,
 * one is asked to save and stop, which may well take its time; so it may when somebody has continued the job long
 * before. */
enum { TOGETHER_S = 2 };
static volatile sig_atomic_t continued_s; /* when, of the monotonic clock; 0: never */

static void note_continued(int number) {
    struct timespec now;
    (void)number;
    clock_gettime(CLOCK_MONOTONIC, &now);
    continued_s = (sig_atomic_t)now.tv_sec + 1;
}

static void watch_ending(void) {
    struct sigaction action = {.sa_handler = note_continued, .sa_flags = SA_RESTART};
    sigaction(SIGCONT, &action, NULL);
}

static bool being_ended(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return continued_s > 0 && (sig_atomic_t)now.tv_sec + 1 - continued_s <= TOGETHER_S && signals_stop_requested();
}

enum status with_run_open(const char *command, const struct option_list *words, const struct option_list *overrides,
                          struct with_run *with) {
    char *tokenizer = NULL;
    uint64_t hash = 0;
    *with = (struct with_run){0};
    watch_ending();
    TRY(comm_open(&(struct comm_options){.ending = being_ended}, &with->comm));
    log_start(comm_rank(with->comm), false);
    enum status status = read_here(command, words, overrides, with, &tokenizer, &hash);
    status = comm_agree(with->comm, status);
    if (status == STATUS_OK) status = open_gpus(with);
    if (status == STATUS_OK) {
        struct run_options options = {.tokenizer_hash = hash, .tokenizer_path = tokenizer, .gpu = with->gpu};
        status = run_open(&with->config, with->comm, with->ops, &options, &with->run);
    }
    free(tokenizer);
    return status;
}

enum status with_run_close(struct with_run *with, enum status status) {
    int rank = with->comm ? comm_rank(with->comm) : 0;
    run_close(&with->run);
    KEEP_FIRST(status, comm_close(&with->gpu));
    if (with->ops) with->ops->close(with->ops);
    with->ops = NULL;
    config_free(&with->config);
    KEEP_FIRST(status, comm_close(&with->comm));
    ranks_leave_message(rank, status);
    return status;
}

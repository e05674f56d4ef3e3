/* The order of the work; see prep.h. */
#include "data-prep/prep.h"

#include "base/file.h"
#include "base/log.h"
#include "base/memory.h"
#include "data-prep/prep_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

static enum status check_options(const struct prep_options *options) {
    const char *out = options->out;
    if (!options->tokenizer) return error_set(STATUS_USAGE, "prep: --tokenizer: expected a directory, found none");
    if (!out || out[0] == '\0')
        return error_set(STATUS_USAGE, "prep: --out: expected a prefix such as data/books, found none");
    if (out[strlen(out) - 1] == '/') {
        return error_set(STATUS_USAGE, "prep: --out: \"%s\" is a folder; expected a prefix such as %sbooks", out, out);
    }
    if (options->input_count == 0)
        return error_set(STATUS_USAGE, "prep: expected files, directories or \"-\" to read, found none");
    if (!(options->valid >= 0 && options->valid <= 1)) {
        return error_set(STATUS_USAGE, "prep: --valid: expected a share from 0 to 1, found %g", options->valid);
    }
    if (options->shard_tokens < 1) {
        return error_set(STATUS_USAGE, "prep: --shard-tokens: expected at least 1, found %lld",
                         (long long)options->shard_tokens);
    }
    return STATUS_OK;
}

/* Rank 0: one prep at a time on a prefix. The system drops the lock with the process, however that ends. */
static enum status lock_work(struct prep *prep) {
    char *path = NULL;
    TRY(file_join(prep->work, "lock", &path));
    enum status status = STATUS_OK;
    prep->lock = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (prep->lock < 0) {
        status = error_set(STATUS_IO, "%s: cannot create it: %s", path, strerror(errno));
    } else if (flock(prep->lock, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
        status = error_set(STATUS_FAILED, "%s: another squint prep is writing to this prefix", path);
    }
    free(path);
    return status;
}

static void unlock_work(struct prep *prep) {
    if (prep->lock >= 0) close(prep->lock);
    prep->lock = -1;
}

/* The lock comes first where there is a folder for it: the work of another prep must not be judged or removed. */
static enum status take_work(struct prep *prep, bool *done) {
    if (file_is_directory(prep->work)) TRY(lock_work(prep));
    TRY(prep_check_outputs(prep, done));
    if (*done) return file_remove_tree(prep->work);
    if (prep->lock >= 0 && file_is_directory(prep->work)) return STATUS_OK;
    unlock_work(prep); /* its file went with the folder */
    TRY(file_make_directory(prep->work));
    return lock_work(prep);
}

static enum status begin_outputs(struct prep *prep, bool *done) {
    TRY(comm_agree(prep->comm, comm_rank(prep->comm) == 0 ? take_work(prep, done) : STATUS_OK));
    int64_t all_done = *done;
    TRY(comm_broadcast(prep->comm, tensor_1d(&all_done, DTYPE_I64, 1), 0));
    *done = all_done != 0;
    return STATUS_OK;
}

static enum status end_outputs(struct prep *prep) {
    enum status status = STATUS_OK;
    if (comm_rank(prep->comm) == 0) {
        status = prep_write_record(prep);
        if (status == STATUS_OK) status = file_remove_tree(prep->work);
    }
    return comm_agree(prep->comm, status);
}

static enum status run(struct prep *prep) {
    bool done = false;
    TRY(prep_plan(prep));
    TRY(begin_outputs(prep, &done));
    if (done) {
        prep->summary->already_done = true;
        return STATUS_OK;
    }
    TRY(prep_tokenise(prep));
    TRY(prep_assemble(prep));
    return end_outputs(prep);
}

enum status prep_run(struct comm *comm, const struct prep_options *options, struct prep_summary *summary) {
    struct prep prep = {.comm = comm, .options = options, .reader = options->reader, .lock = -1, .summary = summary};
    char *standard_input = NULL;
    double started_s = time_now_s();
    *summary = (struct prep_summary){0};
    TRY(check_options(options));
    enum status status = memory_format(&prep.work, "%s.work", options->out);
    if (status == STATUS_OK) status = prep_standard_input_path(options->out, &standard_input);
    if (status == STATUS_OK) status = run(&prep);
    if (prep.standard_input && standard_input && comm_rank(comm) == 0)
        KEEP_FIRST(status, file_remove_tree(standard_input));
    unlock_work(&prep);
    tokenizer_close(&prep.tokenizer);
    file_free_list(prep.paths, prep.file_count);
    free(prep.counts);
    for (int split = 0; split < PREP_SPLITS; split++) free(prep.unit_tokens[split]);
    free(prep.work);
    free(standard_input);
    summary->seconds = time_now_s() - started_s;
    return status;
}

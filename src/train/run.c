/* See run.h. */
#include "train/run.h"

#include "base/file.h"
#include "base/hash.h"
#include "base/log.h"
#include "base/memory.h"
#include "base/rng.h"
#include "io/huggingface.h"
#include "params/division.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static int64_t longest_stage(const struct config *config) {
    int64_t longest = 0;
    for (size_t i = 0; i < config->stage_count; i++) {
        if (config->stages[i].length > longest) longest = config->stages[i].length;
    }
    return longest;
}

enum status run_find_teacher(const char *path, char **directory) {
    bool of_run = false;
    *directory = NULL;
    TRY(file_exists_in(path, "model/config.json", &of_run));
    return of_run ? file_join(path, "model", directory) : memory_copy_text(path, directory);
}

static enum status check_tokenizer(const struct run *run, const struct run_options *options) {
    const struct shard *shard = &run->batches.shards[0];
    if (!options || options->tokenizer_hash == 0 || options->tokenizer_hash == shard->info.tokenizer_hash)
        return STATUS_OK;
    char expected[17], found[17];
    hash_text(options->tokenizer_hash, expected);
    hash_text(shard->info.tokenizer_hash, found);
    return error_set(STATUS_USAGE,
                     "%s: tokenizer: expected %s of %s, found %s (%s); make the shards with the model's tokenizer",
                     shard->path, expected, options->tokenizer_path, found, shard->info.tokenizer_name);
}

/* Held-out windows of `length`; what was open before is closed. */
static enum status open_windows(struct run *run, int64_t length) {
    const struct config *config = run->config;
    if (config->valid_data_count == 0) return STATUS_OK;
    if (run->has_valid && run->valid.options.length == length) return STATUS_OK;
    if (run->has_valid) windows_close(&run->valid);
    run->has_valid = false;
    struct windows_options windows = {
        .length = length, .stride = length, .sequences = config->eval.sequences, .joined = config->documents_joined};
    enum status status =
        windows_open((const char *const *)config->valid_data, config->valid_data_count, &windows, &run->valid);
    if (status != STATUS_OK) return error_prefix(status, "data.valid");
    run->has_valid = true;
    return STATUS_OK;
}

static enum status open_data(struct run *run, const struct run_options *options) {
    struct config *config = run->config;
    TRY(batches_open(config->train_data, config->train_data_count, config->documents_joined, config->seed,
                     &run->batches));
    TRY(check_tokenizer(run, options));
    for (size_t i = 0; i < config->stage_count; i++) {
        TRY(batches_start(&run->batches, (int64_t)i, config->stages[i].length));
    }
    return open_windows(run, config->stages[0].length);
}

static enum status check_vocabulary(const struct run *run, int64_t vocabulary, const char *whose) {
    int64_t train = batches_vocabulary(&run->batches);
    int64_t valid = run->has_valid ? windows_vocabulary(&run->valid) : 0;
    if (train <= vocabulary && valid <= vocabulary) return STATUS_OK;
    const struct shard *shard = train > vocabulary ? &run->batches.shards[0] : &run->valid.shards[0];
    return error_set(STATUS_USAGE, "%s: vocabulary: expected at most the %lld of %s, found %lld (tokenizer %s)",
                     shard->path, (long long)vocabulary, whose, (long long)(train > vocabulary ? train : valid),
                     shard->info.tokenizer_name);
}

static enum status open_scratch(struct run *run) {
    struct config *config = run->config;
    struct model_config *scratch = &config->scratch;
    const struct shard_info *info = &run->batches.shards[0].info;
    if (scratch->vocabulary == 0) scratch->vocabulary = batches_vocabulary(&run->batches);
    if (scratch->end_of_text < 0) scratch->end_of_text = info->end_of_text;
    TRY(config_write_text(config)); /* with what the shards gave: a checkpoint needs it */
    TRY(check_vocabulary(run, scratch->vocabulary, "from_scratch.vocabulary"));
    TRY(model_new(run->ops, scratch, true, &run->student));
    run->student.bf16 = config->precision == PRECISION_BF16;
    return model_initialise(&run->student, config->seed);
}

static enum status load_teacher(struct run *run) {
    struct config *config = run->config;
    struct model_config model;
    TRY(run_find_teacher(config->teacher, &run->teacher_path));
    TRY(huggingface_read_config(run->teacher_path, &model));
    model.positions_beyond = config->positions;
    TRY(check_vocabulary(run, model.vocabulary, run->teacher_path));
    if (model_has_learned_positions(&model) && model.positions_beyond == POSITIONS_REFUSE &&
        longest_stage(config) > model.positions) {
        return error_set(STATUS_USAGE,
                         "%s: stages.length: expected at most the %lld learned positions of %s, found %lld; "
                         "shorten it, or set positions: interpolate or tile",
                         config->path, (long long)model.positions, run->teacher_path, (long long)longest_stage(config));
    }
    TRY(model_new(run->ops, &model, false, &run->teacher));
    run->has_teacher = true;
    run->teacher.bf16 = config->precision == PRECISION_BF16;
    TRY(huggingface_load(run->teacher_path, &model, &run->teacher.params));
    TRY(params_hash(&run->teacher.params, &run->teacher_hash));
    return model_extend_positions(&run->teacher, longest_stage(config));
}

/* What any stage trains: the student owns it from the start. */
static enum status gather_patterns(const struct config *config, char ***patterns, size_t *count) {
    *count = 0;
    for (size_t i = 0; i < config->stage_count; i++) *count += config->stages[i].train_count;
    TRY(memory_new(*count, sizeof **patterns, "patterns", patterns));
    size_t used = 0;
    for (size_t i = 0; i < config->stage_count; i++) {
        for (size_t p = 0; p < config->stages[i].train_count; p++) (*patterns)[used++] = config->stages[i].train[p];
    }
    return STATUS_OK;
}

static enum status open_student(struct run *run) {
    struct config *config = run->config;
    char **patterns = NULL;
    size_t count = 0;
    TRY(load_teacher(run));
    TRY(gather_patterns(config, &patterns, &count));
    enum status status = model_student(&run->teacher, config->path, config->attention, config->attention_count,
                                       patterns, count, true, config->seed, &run->student);
    free(patterns);
    return status;
}

/* One division for all stages, so that moments stay where they are. */
static enum status divide(struct run *run) {
    const struct config *config = run->config;
    struct params_patterns *stages = NULL;
    struct division_options options = {.rank = comm_rank(run->comm),
                                       .size = comm_size(run->comm),
                                       .zero = config->parallel.zero,
                                       .bucket_elements =
                                           gradients_bucket_elements(config, run->ops->parameter, comm_size(run->comm)),
                                       .stage_count = config->stage_count};
    TRY(memory_new(config->stage_count, sizeof *stages, "stages", &stages));
    for (size_t i = 0; i < config->stage_count; i++) {
        stages[i] = (struct params_patterns){config->stages[i].train, config->stages[i].train_count};
    }
    options.stages = stages;
    const enum status status = params_divide(&run->student.params, &options);
    free(stages);
    return status;
}

static enum status open_all(struct run *run, const struct run_options *options) {
    TRY(memory_new(run->config->stage_count, sizeof *run->choices, "the stages' plans", &run->choices));
    TRY(open_data(run, options));
    TRY(run->config->from_scratch ? open_scratch(run) : open_student(run));
    TRY(divide(run));
    for (size_t i = 0; i < run->config->stage_count; i++) {
        int64_t trained = 0, first = 0, part = 0;
        TRY(stage_part(&run->config->stages[i], comm_rank(run->comm), comm_size(run->comm), &first, &part));
        TRY(run_start_stage(run, i, &trained));
    }
    return STATUS_OK;
}

enum status run_open(struct config *config, struct comm *comm, const struct ops *ops, const struct run_options *options,
                     struct run *run) {
    *run = (struct run){.config = config, .comm = comm, .gpu = options ? options->gpu : NULL, .ops = ops};
    struct device_memory memory;
    ops->memory(ops, &memory);
    run->program = (size_t)memory.used;
    enum status status = comm_agree(comm, open_all(run, options));
    if (status != STATUS_OK) run_close(run);
    return status;
}

void run_close(struct run *run) {
    if (!run) return;
    if (run->student.params.ops) model_free(&run->student);
    if (run->has_teacher) model_free(&run->teacher);
    if (run->has_valid) windows_close(&run->valid);
    batches_close(&run->batches);
    free(run->teacher_path);
    free(run->choices);
    *run = (struct run){0};
}

enum status run_calibrate(struct run *run) {
    const int64_t length = run->config->stages[0].length;
    struct batch batch = {.batch = (CALIBRATION_TOKENS + length - 1) / length, .length = length};
    const size_t tokens = (size_t)(batch.batch * length);
    int32_t *numbers = NULL;
    if (!model_calibrates(&run->student)) return STATUS_OK;
    TRY(memory_new(3 * tokens, sizeof *numbers, "a calibration batch", &numbers));
    batch.ids = numbers;
    batch.targets = numbers + tokens;
    batch.start = numbers + 2 * tokens;
    enum status status = batches_start(&run->batches, 0, length);
    if (status == STATUS_OK) {
        batches_read(&run->batches, 0, batch.batch, numbers, numbers + tokens, numbers + 2 * tokens);
        status = model_calibrate(&run->student, &batch);
    }
    free(numbers);
    return status;
}

/* Every layer that is not `full` must be able to learn from weights. */
static enum status check_weights(const struct run *run, const struct config_stage *stage) {
    for (int64_t l = 0; stage->weights && l < run->student.config.layers; l++) {
        const struct kind *kind = run->student.layers[l].kind;
        if (kind->has_weights || kind_is_full(kind)) continue;
        return error_set(STATUS_USAGE,
                         "%s:%d: stages.%s.weights: layer %lld is of kind %s, whose weights are not positive on every "
                         "pair; expected kinds that have a cross-entropy to the teacher's, such as kerformer",
                         run->config->path, stage->line, stage->name, (long long)l, kind->name);
    }
    return STATUS_OK;
}

enum status run_start_stage(struct run *run, size_t index, int64_t *trained) {
    const struct config_stage *stage = &run->config->stages[index];
    TRY(batches_start(&run->batches, (int64_t)index, stage->length));
    TRY(open_windows(run, stage->length));
    TRY(check_weights(run, stage));
    TRY(params_train(&run->student.params, stage->train, stage->train_count, trained));
    if (*trained > 0) return STATUS_OK;
    return error_set(STATUS_USAGE,
                     "%s:%d: stages.%s.train: names no parameter that the student has; its kinds add none to learn",
                     run->config->path, stage->line, stage->name);
}

/* The recipe's word counts; where it says auto, what was chosen before. */
static struct stage_choice choice_of(const struct run *run, size_t index) {
    struct stage_choice choice = stage_choice_of(run->config);
    const struct stage_choice *before = &run->choices[index];
    if (before->micro_batch == 0) return choice;
    if (choice.micro_batch == 0) choice.micro_batch = before->micro_batch;
    if (choice.recompute == RECOMPUTE_AUTO) choice.recompute = before->recompute;
    return choice;
}

/* *fits: on every rank. */
static enum status measure(struct run *run, const struct stage_choice *choice, size_t index, double available,
                           struct stage_memory *memory, bool *fits) {
    const struct config_stage *stage = &run->config->stages[index];
    int64_t first = 0, part = 0, all_fit = 0;
    TRY(stage_part(stage, comm_rank(run->comm), comm_size(run->comm), &first, &part));
    const size_t travelling =
        gradients_bytes(&run->student.params, run->config, comm_size(run->comm), run->ops->host_memory || run->gpu);
    enum status status =
        stage_measure(choice, stage, run_teacher(run), &run->student, part, travelling, available, memory);
    TRY(comm_agree(run->comm, status));
    all_fit = memory->fits;
    TRY(comm_all_reduce(run->comm, tensor_1d(&all_fit, DTYPE_I64, 1), COMM_MIN));
    *fits = all_fit != 0;
    return STATUS_OK;
}

enum status run_divide_masters(struct run *run) {
    return comm_agree(run->comm, params_divide_masters(&run->student.params));
}

enum status run_measure_stage(struct run *run, size_t index, struct stage_memory *memory) {
    const struct config_stage *stage = &run->config->stages[index];
    const struct model *teacher = run_teacher(run);
    const struct stage_choice recipe = stage_choice_of(run->config), choice = choice_of(run, index);
    bool fits = false;
    struct device_memory memory_now;
    run->ops->memory(run->ops, &memory_now);
    double free_now = memory_now.available / comm_memory_ranks(run->gpu ? run->gpu : run->comm);
    TRY(comm_all_reduce(run->comm, tensor_1d(&free_now, DTYPE_F64, 1), COMM_MIN));
    /* The parameters are here already, and are counted in the plan. */
    const size_t taken = params_bytes(&run->student.params) + (teacher ? params_bytes(&teacher->params) : 0);
    double available = free_now > 0 ? free_now + (double)taken : 0;
    TRY(measure(run, &choice, index, available, memory, &fits));
    if (!fits && (choice.micro_batch != recipe.micro_batch || choice.recompute != recipe.recompute)) {
        log_line("plan     %s: micro-batch %lld%s, as before, does not fit into the memory that is free now: chosen "
                 "anew, and sums may end in other bits",
                 stage->name, (long long)choice.micro_batch,
                 choice.recompute == RECOMPUTE_LAYER ? " with recompute" : "");
        TRY(measure(run, &recipe, index, available, memory, &fits));
    }
    if (!fits) {
        enum status own = memory->fits ? STATUS_OK : stage_too_large(&recipe, stage, memory, available);
        return comm_agree(run->comm, own);
    }
    memory->program = run->program;
    memory->total += memory->program;
    run->choices[index] =
        (struct stage_choice){memory->micro_batch, memory->recompute ? RECOMPUTE_LAYER : RECOMPUTE_NONE};
    return STATUS_OK;
}

/* Seconds of the fastest of a few products of two matrices [edge,edge]: the first one warms up. */
static enum status time_product(const struct ops *ops, bool bf16, int64_t edge, double *seconds) {
    enum { TIMES = 4 };
    enum status status = STATUS_OK;
    void *blocks[3] = {NULL};
    struct tensor matrices[3];
    for (int i = 0; i < 3; i++) {
        TRY_GOTO(done, ops->allocate(ops, (size_t)(edge * edge) * dtype_size(ops->real), &blocks[i]));
        matrices[i] = tensor_2d(blocks[i], ops->real, edge, edge);
        /* Numbers as training has them: constant ones take less power, and so less time. */
        TRY_GOTO(done, ops->fill_normal(ops, matrices[i], 1, 1, rng_substream(RNG_TEST, (uint64_t)i)));
    }
    struct gemm gemm = {
        .a = matrices[0], .b = matrices[1], .c = matrices[2], .transpose_b = true, .bf16 = bf16, .alpha = 1};
    TRY_GOTO(done, ops->synchronise(ops));
    *seconds = INFINITY;
    for (int i = 0; i < TIMES && (i == 0 || *seconds < 0.25); i++) {
        double begin = time_now_s();
        TRY_GOTO(done, ops->gemm(ops, &gemm));
        TRY_GOTO(done, ops->synchronise(ops));
        if (time_now_s() - begin < *seconds) *seconds = time_now_s() - begin;
    }
done:
    for (int i = 0; i < 3; i++) ops->release(ops, blocks[i]);
    return status;
}

enum status run_measure_peak(const struct ops *ops, bool bf16, double *flops) {
    const int64_t largest = 12288;
    double seconds = 0;
    *flops = 0;
    /* As large as it takes for the arithmetic to be the time. */
    for (int64_t edge = 768; edge <= largest && seconds < 1e-3; edge *= 2) {
        TRY(time_product(ops, bf16, edge, &seconds));
        const double rate = 2.0 * (double)edge * (double)edge * (double)edge / seconds;
        if (rate > *flops) *flops = rate;
    }
    return STATUS_OK;
}

/* squint generate: prompt -> text, streaming from a cache; or a corpus of samples -> token shards. */
#include "eval/generate.h"
#include "base/hash.h"
#include "base/log.h"
#include "base/memory.h"
#include "commands/commands.h"
#include "commands/with_model.h"
#include "commands/with_text.h"
#include "eval/text_stream.h"
#include "io/shard.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct generate_command {
    struct model_options model;
    const char *prompt, *out, *tokenizer;
    int64_t tokens, samples, length, batch, top_k, seed;
    double temperature, top_p, valid;
    bool parallel;
};

static struct sampler_options sampler_of(const struct generate_command *o) {
    return (struct sampler_options){o->temperature, o->top_k, o->top_p, (uint64_t)o->seed};
}

/* The ids that end a text. A model that was trained on texts one after the other ends one by beginning the next. */
static void stops_of(const struct model_config *model, int32_t stop[2]) {
    stop[0] = (int32_t)model->end_of_text;
    stop[1] = (int32_t)model->begin_of_text;
}

/* --- one text ----------------------------------------------------------------------------------------------------- */

static enum status emit_text(void *context, int32_t id) {
    return text_stream_add(context, (uint32_t)id);
}

static enum status write_text(void *context, const char *text, size_t length) {
    (void)context;
    if (fwrite(text, 1, length, stdout) != length || fflush(stdout) != 0) {
        return error_set(STATUS_IO, "generate: standard output: cannot write");
    }
    return STATUS_OK;
}

static enum status decode_ids(void *context, const uint32_t *ids, size_t count, char **text, size_t *length) {
    return tokenizer_decode(context, ids, count, false, text, length);
}

static enum status generate_one(const struct generate_command *o, const struct loaded_model *loaded) {
    struct tokenizer *tokenizer = NULL;
    struct token_buffer prompt = {0};
    struct text_stream stream = {0};
    struct generate_health health;
    bool begins;
    struct generate_options options = {.sampler = sampler_of(o), .tokens = o->tokens, .parallel = o->parallel};
    stops_of(&loaded->model->config, options.stop);
    enum status status;
    TRY_GOTO(done, with_text_tokenizer("generate", o->tokenizer, loaded, &tokenizer));
    TRY_GOTO(done, with_text_encode("generate", "prompt", &loaded->model->config, tokenizer, o->prompt,
                                    strlen(o->prompt), &prompt, &begins));
    stream = (struct text_stream){.decode = decode_ids, .decode_context = tokenizer, .write = write_text};
    for (size_t i = 0; i < prompt.count; i++) TRY_GOTO(done, text_stream_add(&stream, prompt.ids[i]));
    double started = time_now_s();
    TRY_GOTO(done, generate_text(loaded->model, (const int32_t *)prompt.ids, (int64_t)prompt.count, &options, emit_text,
                                 &stream, &health));
    TRY_GOTO(done, text_stream_end(&stream));
    TRY_GOTO(done, write_text(NULL, "\n", 1));
    double seconds = time_now_s() - started;
    log_line("%lld tokens, %.1f a second", (long long)health.tokens, seconds > 0 ? (double)health.tokens / seconds : 0);
    if (generate_alarm(&health)[0]) log_warning("%s", generate_alarm(&health));
done:
    text_stream_free(&stream);
    token_buffer_free(&prompt);
    tokenizer_close(&tokenizer);
    return status;
}

/* --- a corpus ----------------------------------------------------------------------------------------------------- */

struct corpus {
    struct shard_writer *train, *valid;
    int64_t train_samples; /* the rest, at the end, are for validation */
    char *train_path, *valid_path;
    int64_t train_tokens, valid_tokens;
};

static enum status take_sample(void *context, int64_t sample, const int32_t *ids, int64_t count) {
    struct corpus *corpus = context;
    bool train = sample < corpus->train_samples;
    *(train ? &corpus->train_tokens : &corpus->valid_tokens) += count;
    return shard_writer_append(train ? corpus->train : corpus->valid, (const uint32_t *)ids, count, true);
}

static int64_t valid_samples(const struct generate_command *o) {
    int64_t count = (int64_t)(o->valid * (double)o->samples + 0.5);
    if (o->valid > 0 && count == 0) count = 1;
    return count < o->samples ? count : o->samples;
}

/* What a shard says of itself. The tokenizer may be absent: ids need none. */
static enum status shard_info_of(const struct generate_command *o, const struct loaded_model *loaded,
                                 struct shard_info *info) {
    struct tokenizer *tokenizer = NULL;
    *info = (struct shard_info){.vocabulary = loaded->model->config.vocabulary,
                                .end_of_text = loaded->model->config.end_of_text};
    snprintf(info->source, sizeof info->source,
             "sampled from %s: seed %lld, temperature %g, top-k %lld, top-p %g, length %lld", loaded->path,
             (long long)o->seed, o->temperature, (long long)o->top_k, o->top_p, (long long)o->length);
    info->source_hash = hash_combine(hash_bytes(loaded->identity, strlen(loaded->identity)),
                                     hash_bytes(info->source, strlen(info->source)));
    if (!o->tokenizer && !loaded->tokenizer) return STATUS_OK;
    enum status status = with_text_tokenizer("generate", o->tokenizer, loaded, &tokenizer);
    if (status == STATUS_OK) {
        snprintf(info->tokenizer_name, sizeof info->tokenizer_name, "%s", tokenizer_name(tokenizer));
        info->tokenizer_hash = tokenizer_hash(tokenizer);
    }
    tokenizer_close(&tokenizer);
    return status;
}

static enum status open_corpus(const struct generate_command *o, const struct loaded_model *loaded,
                               struct corpus *corpus) {
    struct shard_info info;
    int64_t valid = valid_samples(o);
    corpus->train_samples = o->samples - valid;
    TRY(shard_info_of(o, loaded, &info));
    TRY(memory_format(&corpus->train_path, "%s-train-00000.h5", o->out));
    TRY(memory_format(&corpus->valid_path, "%s-valid-00000.h5", o->out));
    if (valid < o->samples) TRY(shard_writer_open(corpus->train_path, &info, &corpus->train));
    return valid > 0 ? shard_writer_open(corpus->valid_path, &info, &corpus->valid) : STATUS_OK;
}

static enum status publish_corpus(struct corpus *corpus) {
    if (corpus->train) TRY(shard_writer_close(&corpus->train));
    if (corpus->valid) TRY(shard_writer_close(&corpus->valid));
    char train[32], valid[32];
    count_text(corpus->train_tokens, train);
    count_text(corpus->valid_tokens, valid);
    if (corpus->train_tokens > 0) printf("%s  %s tokens\n", corpus->train_path, train);
    if (corpus->valid_tokens > 0) printf("%s  %s tokens\n", corpus->valid_path, valid);
    return STATUS_OK;
}

static enum status generate_corpus(const struct generate_command *o, struct with_model *with) {
    const struct model_config *model = &with->loaded.model->config;
    int64_t begin = model->begin_of_text >= 0 ? model->begin_of_text : model->end_of_text;
    struct sample_options options = {.sampler = sampler_of(o),
                                     .samples = o->samples,
                                     .length = o->length,
                                     .batch = o->batch,
                                     .begin = (int32_t)begin,
                                     .keep_stop = {true, false},
                                     .label = "sample"};
    struct corpus corpus = {0};
    struct generate_health health;
    bool writes = comm_rank(with->comm) == 0;
    enum status status = STATUS_OK;
    if (options.length <= 0) options.length = model->positions;
    stops_of(model, options.stop);
    if (begin < 0)
        status =
            error_set(STATUS_USAGE, "generate: --samples: the model has no begin- or end-of-text id to start from");
    if (status == STATUS_OK && writes) status = open_corpus(o, &with->loaded, &corpus);
    TRY_GOTO(done, comm_agree(with->comm, status));
    TRY_GOTO(done, generate_samples(with->loaded.model, &options, with->comm, take_sample, &corpus, &health));
    TRY_GOTO(done, comm_agree(with->comm, writes ? publish_corpus(&corpus) : STATUS_OK));
    if (writes && generate_alarm(&health)[0]) log_warning("%s", generate_alarm(&health));
done:
    shard_writer_abort(&corpus.train);
    shard_writer_abort(&corpus.valid);
    free(corpus.train_path);
    free(corpus.valid_path);
    return status;
}

static enum status check(const struct generate_command *o) {
    if (o->samples > 0 && !o->out)
        return error_set(STATUS_USAGE, "generate: --samples: expected --out PREFIX beside it, found none");
    if (o->out && o->samples == 0)
        return error_set(STATUS_USAGE, "generate: --out: expected --samples N beside it, found none");
    if (!o->prompt && o->samples == 0) {
        return error_set(STATUS_USAGE, "generate: expected --prompt TEXT or --samples N --out PREFIX, found neither");
    }
    if (o->prompt && o->samples > 0) {
        return error_set(STATUS_USAGE,
                         "generate: --prompt and --samples do not go together: samples start at the begin-of-text id");
    }
    return STATUS_OK;
}

static enum status run(int argc, char **argv) {
    struct generate_command o = {.tokens = 200, .temperature = -1, .top_p = 1, .seed = 1, .valid = 0.02};
    struct with_model with;
    const struct option table[] = {
        MODEL_OPTION_ROWS(o.model),
        {"prompt", OPTION_TEXT, &o.prompt, 0, 0},
        {"tokenizer", OPTION_TEXT, &o.tokenizer, 0, 0},
        {"tokens", OPTION_INTEGER, &o.tokens, 1, 1e9},
        {"temperature", OPTION_REAL, &o.temperature, 0, 1000},
        {"top-k", OPTION_INTEGER, &o.top_k, 0, 1e9},
        {"top-p", OPTION_REAL, &o.top_p, 1e-6, 1},
        {"seed", OPTION_INTEGER, &o.seed, 0, 9e15},
        {"parallel", OPTION_FLAG, &o.parallel, 0, 0},
        {"samples", OPTION_INTEGER, &o.samples, 1, 1e12},
        {"out", OPTION_TEXT, &o.out, 0, 0},
        {"length", OPTION_INTEGER, &o.length, 2, 1e9},
        {"batch", OPTION_INTEGER, &o.batch, 1, 65536},
        {"valid", OPTION_REAL, &o.valid, 0, 1},
    };
    TRY(options_read(argc, argv, table, sizeof table / sizeof *table, NULL, NULL));
    TRY(check(&o));
    if (o.temperature < 0) o.temperature = o.samples > 0 ? 1 : 0;
    enum status status = with_model_open("generate", &o.model, o.samples > 0, o.length, &with);
    if (status == STATUS_OK) status = o.samples > 0 ? generate_corpus(&o, &with) : generate_one(&o, &with.loaded);
    return with_model_close(&with, status);
}

const struct command command_generate = {
    .name = "generate",
    .summary = "prompt -> text, streaming, from a cache; or a corpus of samples",
    .help = "usage: squint generate --model MODEL --prompt TEXT [options]\n"
            "       squint generate --model MODEL --samples N --out PREFIX [options]      (also under mpirun)\n"
            "\n"
            "Writes the prompt and what the model makes of it to standard output, as it comes. With --samples: texts "
            "that the\n"
            "model makes up, as token shards PREFIX-train-00000.h5 and PREFIX-valid-00000.h5, one document a sample: a "
            "corpus\n"
            "for distilling a model whose training text nobody has. The same bytes at any number of ranks.\n"
            "\n" MODEL_OPTION_HELP "  --tokenizer DIR      where MODEL has none of its own\n"
            "  --tokens N           at most so many new tokens (200)\n"
            "  --temperature X      0: always the most likely token (default with --prompt); samples: 1\n"
            "  --top-k K            choose among the K most likely (0: all)\n"
            "  --top-p P            choose among the fewest that hold the share P of the probability (1: all)\n"
            "  --seed S             of the choices (1)\n"
            "  --parallel           compute the whole sequence anew for every token: slow, checks the cache\n"
            "  --samples N          how many texts; --valid SHARE of them, the last ones, for validation (0.02)\n"
            "  --length T           tokens of a sample at most (the model's positions); how far --positions reach\n"
            "  --batch B            samples in step (64)\n"
            "\n"
            "example: squint generate --model models/gpt2 --prompt \"Once upon a time\" --tokens 100\n"
            "         mpirun -np 2 squint generate --model models/stories260K --samples 3000 --length 384 --out "
            "data/stories\n",
    .run = run,
};

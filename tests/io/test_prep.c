/* prep on one rank: the shards hold what encoding every document by itself gives, whatever the tokenizer, the options
 * and the cuts; interrupted or damaged work ends in the same bytes. tests/io/test_prep.sh has the command and more
 * ranks. */
#include "base/hash.h"
#include "base/log.h"
#include "base/memory.h"
#include "base/rng.h"
#include "data-prep/bpe_train.h"
#include "data-prep/corpus.h"
#include "data-prep/prep.h"
#include "data-prep/tokenizer.h"
#include "io/shard.h"
#include "support/check.h"
#include "support/scratch.h"

#include <math.h>
#include <string.h>

enum { DOCUMENTS = 40, LONG_DOCUMENT = 7 };

static char *documents[DOCUMENTS];
static size_t lengths[DOCUMENTS];
static struct comm *comm;
static char text_path[300], gpt2_path[300], llama_path[300]; /* scratch_path's buffers do not last */

static const char separator[] = "\n<|document|>\n";

static void write_inputs(const char *name, const char *between) {
    FILE *file = fopen(scratch_path(name), "wb");
    assert_non_null(file);
    for (int i = 0; i < DOCUMENTS; i++) {
        if (i) fputs(between, file);
        if (i == 5) fputs(between, file); /* an empty document */
        assert_int_equal(fwrite(documents[i], 1, lengths[i], file), lengths[i]);
    }
    fclose(file);
}

static void make_documents(void) {
    for (int i = 0; i < DOCUMENTS; i++) {
        struct corpus_document story;
        CHECK_OK(corpus_document_make(3, i, NULL, &story));
        documents[i] = story.text;
        lengths[i] = story.length;
        free(story.recalls);
    }
    memcpy(documents[3], "\xff\xc3 \xe4\xb8", 5); /* not UTF-8 */
    documents[11][0] = '\0';
    /* Longer than pieces and units, with every way for a line to end. */
    char *text = NULL;
    size_t length = 0;
    for (int64_t i = 0; length < 3500000; i++) {
        struct corpus_document story;
        CHECK_OK(corpus_document_make(4, i % 50, NULL, &story));
        CHECK_OK(memory_grow(&text, length + story.length + 8, 1, "a test"));
        memcpy(text + length, story.text, story.length);
        length += story.length;
        if (i % 2) text[length++] = ' ';
        if (i % 3) text[length++] = '\n';
        if (i % 5 == 0) length -= 2;
        corpus_document_free(&story);
    }
    free(documents[LONG_DOCUMENT]);
    documents[LONG_DOCUMENT] = text;
    lengths[LONG_DOCUMENT] = length;
}

/* A Llama-type tokenizer: bytes, a few merges, "▁" before and between. */
static void write_llama(const char *path) {
    static const char *const merges[][2] = {
        {"t", "h"}, {"th", "e"}, {"\xe2\x96\x81", "the"}, {"i", "n"}, {"\xe2\x96\x81", "a"}};
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    fputs("{\"added_tokens\": [{\"id\": 0, \"content\": \"<unk>\", \"special\": true}, {\"id\": 1, \"content\": "
          "\"<s>\", \"special\": true},"
          " {\"id\": 2, \"content\": \"</s>\", \"special\": true}], \"normalizer\": {\"type\": \"Sequence\", "
          "\"normalizers\": [{\"type\":"
          " \"Prepend\", \"prepend\": \"\xe2\x96\x81\"}, {\"type\": \"Replace\", \"pattern\": {\"String\": \" \"}, "
          "\"content\":"
          " \"\xe2\x96\x81\"}]}, \"pre_tokenizer\": null, \"post_processor\": null, \"decoder\": {\"type\": "
          "\"ByteFallback\"}, \"model\": "
          "{\"type\": \"BPE\","
          " \"unk_token\": \"<unk>\", \"fuse_unk\": true, \"byte_fallback\": true, \"vocab\": {\"<unk>\": 0, \"<s>\": "
          "1, \"</s>\": 2",
          file);
    int id = 3;
    for (int byte = 0; byte < 256; byte++) fprintf(file, ", \"<0x%02X>\": %d", byte, id++);
    for (char c = 'a'; c <= 'z'; c++) fprintf(file, ", \"%c\": %d", c, id++);
    fprintf(file, ", \"\xe2\x96\x81\": %d", id++);
    for (size_t i = 0; i < 5; i++) fprintf(file, ", \"%s%s\": %d", merges[i][0], merges[i][1], id++);
    fputs("}, \"merges\": [", file);
    for (size_t i = 0; i < 5; i++) fprintf(file, "%s\"%s %s\"", i ? ", " : "", merges[i][0], merges[i][1]);
    fputs("]}}", file);
    fclose(file);
}

static int set_up(void **state) {
    if (scratch_make(state) != 0) return -1;
    log_start(0, true);
    CHECK_OK(comm_open_single(&comm));
    make_documents();
    write_inputs("text", separator);
    snprintf(text_path, sizeof text_path, "%s/text", scratch);
    snprintf(gpt2_path, sizeof gpt2_path, "%s/gpt2", scratch);
    snprintf(llama_path, sizeof llama_path, "%s/llama", scratch);
    const char *input = text_path;
    CHECK_OK(bpe_train(&(struct bpe_train_options){
        .inputs = &input, .input_count = 1, .out = gpt2_path, .vocabulary = 500, .min_count = 2}));
    CHECK_OK(file_make_directory(scratch_path("llama")));
    write_llama(scratch_path("llama/tokenizer.json"));
    return 0;
}

static int tear_down(void **state) {
    for (int i = 0; i < DOCUMENTS; i++) free(documents[i]);
    CHECK_OK(comm_close(&comm));
    return scratch_remove(state);
}

struct stream {
    struct token_buffer ids;
    int64_t starts[DOCUMENTS];
    int64_t count;
};

static void push(struct stream *stream, int64_t id) {
    if (id < 0) return;
    CHECK_OK(memory_grow(&stream->ids.ids, stream->ids.count + 1, sizeof(uint32_t), "a test"));
    stream->ids.capacity = stream->ids.count + 1;
    stream->ids.ids[stream->ids.count++] = (uint32_t)id;
}

/* What the shards of both splits must hold. */
static void expect_streams(const struct prep_options *options, struct stream streams[PREP_SPLITS]) {
    struct tokenizer *tokenizer = NULL;
    CHECK_OK(tokenizer_open(options->tokenizer, &tokenizer));
    int64_t end = tokenizer_end_of_text(tokenizer), begin = tokenizer_begin_of_text(tokenizer);
    uint64_t valid = (uint64_t)llround(options->valid * DOCUMENTS);
    if (options->valid > 0 && valid == 0) valid = 1;
    for (int i = 0; i < DOCUMENTS; i++) {
        struct stream *stream = &streams[rng_permute(options->seed, RNG_SPLIT, (uint64_t)i, DOCUMENTS) < valid];
        stream->starts[stream->count++] = (int64_t)stream->ids.count;
        if (!options->no_begin_of_text && begin != end) push(stream, begin);
        CHECK_OK(tokenizer_encode(tokenizer, documents[i], lengths[i], false, &stream->ids));
        if (!options->no_end_of_text) push(stream, end);
    }
    tokenizer_close(&tokenizer);
}

static void check_start(const char *name, const struct shard *shard, int64_t document, int64_t expected) {
    if (document < shard->info.documents && shard->documents[document] == (uint64_t)expected) return;
    fail_msg("%s: document %lld: expected its start at %lld", name, (long long)document, (long long)expected);
}

static void check_shard(const char *name, const struct prep_options *options, const struct stream *stream,
                        const struct shard *shard, int64_t first) {
    CHECK_OK(shard_verify(shard));
    int64_t last = first + shard->info.tokens, document = 0;
    for (int64_t i = 0; i < shard->info.tokens; i++) {
        int32_t id = -1;
        shard_read(shard, i, 1, &id);
        if ((uint32_t)id != stream->ids.ids[first + i]) {
            fail_msg("%s: token %lld: expected %u, found %d", name, (long long)(first + i), stream->ids.ids[first + i],
                     id);
        }
    }
    /* A document begins where the shard does, and at every start inside. */
    check_start(name, shard, document++, 0);
    for (int64_t i = 0; i < stream->count && !options->pack; i++) {
        if (stream->starts[i] <= first || stream->starts[i] >= last) continue;
        check_start(name, shard, document++, stream->starts[i] - first);
    }
    if (document != shard->info.documents) {
        fail_msg("%s: expected %lld documents, found %lld", name, (long long)document,
                 (long long)shard->info.documents);
    }
}

static void check_shards(const char *name, const struct prep_options *options, const struct prep_summary *summary) {
    static const char *const splits[] = {"train", "valid"};
    struct stream streams[PREP_SPLITS] = {0};
    expect_streams(options, streams);
    for (int split = 0; split < PREP_SPLITS; split++) {
        int64_t first = 0;
        assert_int_equal(summary->documents[split], streams[split].count);
        for (int64_t i = 0; i < summary->shards[split]; i++) {
            char path[600];
            struct shard shard;
            snprintf(path, sizeof path, "%s-%s-%05lld.h5", options->out, splits[split], (long long)i);
            CHECK_OK(shard_open(path, &shard));
            if (i + 1 < summary->shards[split]) assert_int_equal(shard.info.tokens, options->shard_tokens);
            check_shard(name, options, &streams[split], &shard, first);
            first += shard.info.tokens;
            shard_close(&shard);
        }
        if (first != (int64_t)streams[split].ids.count) {
            fail_msg("%s: %s: expected %zu tokens, found %lld", name, splits[split], streams[split].ids.count,
                     (long long)first);
        }
        token_buffer_free(&streams[split].ids);
    }
}

static void test_contents(void **state) {
    (void)state;
    const struct {
        const char *name, *tokenizer;
        struct prep_options options;
    } rows[] = {
        {"GPT-2 type", gpt2_path, {.valid = 0.1, .shard_tokens = 1000000000}},
        {"GPT-2 type, many shards", gpt2_path, {.valid = 0.3, .shard_tokens = 33333, .seed = 9}},
        {"GPT-2 type, packed", gpt2_path, {.valid = 0.001, .shard_tokens = 100000, .pack = true}},
        {"GPT-2 type, no end of text", gpt2_path, {.valid = 0, .shard_tokens = 400000, .no_end_of_text = true}},
        {"Llama type", llama_path, {.valid = 0.5, .shard_tokens = 500001}},
        {"Llama type, all validation", llama_path, {.valid = 1, .shard_tokens = 1 << 30, .no_begin_of_text = true}},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        if (!check_dealt((int64_t)i, 1)) continue;
        char out[300];
        struct prep_options options = rows[i].options;
        struct prep_summary summary;
        const char *input = text_path;
        options.tokenizer = rows[i].tokenizer;
        snprintf(out, sizeof out, "%s/shards/x", scratch);
        options.out = out;
        options.inputs = &input;
        options.input_count = 1;
        options.reader.separator = separator;
        options.force = true;
        CHECK_OK(prep_run(comm, &options, &summary));
        assert_int_equal(summary.empty_documents, 1);
        assert_int_equal(summary.invalid_utf8, 3);
        check_shards(rows[i].name, &options, &summary);
    }
}

/* The bytes of all shards and the record, as one hash. */
static uint64_t outputs_hash(void) {
    char **names = NULL;
    size_t count = 0;
    uint64_t all = 0;
    CHECK_OK(file_list(scratch_path("again"), &names, &count));
    for (size_t i = 0; i < count; i++) {
        char path[700];
        uint64_t hash = 0;
        snprintf(path, sizeof path, "%s/%s", scratch_path("again"), names[i]);
        if (file_is_directory(path)) fail_msg("%s: expected files only", path);
        CHECK_OK(hash_file(path, &hash));
        all = hash_combine(hash_combine(all, hash_bytes(names[i], strlen(names[i]))), hash);
    }
    file_free_list(names, count);
    return all;
}

static volatile sig_atomic_t stop;

static void flip(const char *path, long place) {
    FILE *file = fopen(path, "r+b");
    assert_non_null(file);
    assert_int_equal(fseek(file, place, SEEK_SET), 0);
    int byte = fgetc(file);
    assert_int_equal(fseek(file, -1, SEEK_CUR), 0);
    fputc(byte ^ 1, file);
    fclose(file);
}

static void test_again(void **state) {
    (void)state;
    const char *input = text_path;
    char out[300];
    snprintf(out, sizeof out, "%s/again/x", scratch);
    struct prep_options options = {.tokenizer = gpt2_path,
                                   .out = out,
                                   .inputs = &input,
                                   .input_count = 1,
                                   .valid = 0.1,
                                   .shard_tokens = 200000,
                                   .stop = &stop,
                                   .reader.separator = separator};
    struct prep_summary summary;
    CHECK_OK(prep_run(comm, &options, &summary));
    uint64_t expected = outputs_hash();
    CHECK_OK(prep_run(comm, &options, &summary));
    assert_true(summary.already_done);
    assert_true(outputs_hash() == expected);
    /* A shard that is gone, one with a wrong byte: made again, the same. */
    CHECK_OK(file_remove_tree(scratch_path("again/x-train-00001.h5")));
    flip(scratch_path("again/x-valid-00000.h5"), (1 << 20) + 100); /* among the ids */
    CHECK_OK(prep_run(comm, &options, &summary));
    assert_false(summary.already_done);
    assert_true(outputs_hash() == expected);
    /* No record, as after a kill just before the end; rests of a killed run. */
    CHECK_OK(file_remove_tree(scratch_path("again/x-prep.json")));
    CHECK_OK(file_write(scratch_path("again/x-train-00000.h5.ids.tmp-1"), "x", 1));
    CHECK_OK(file_write(scratch_path("again/x-train-00007.h5.tmp-1"), "x", 1));
    CHECK_OK(file_make_directory(scratch_path("again/x.work")));
    CHECK_OK(file_write(scratch_path("again/x.work/unit-000001"), "not whole", 9));
    CHECK_OK(prep_run(comm, &options, &summary));
    assert_true(outputs_hash() == expected);
    /* Stopped: the status says so, and force begins afresh. */
    stop = 1;
    options.force = true;
    CHECK_STATUS(STATUS_STOPPED, prep_run(comm, &options, &summary));
    stop = 0;
    CHECK_OK(prep_run(comm, &options, &summary));
    assert_true(outputs_hash() == expected);
    options.force = false;
    options.seed = 5;
    CHECK_STATUS(STATUS_USAGE, prep_run(comm, &options, &summary));
    assert_true(outputs_hash() == expected);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_contents), cmocka_unit_test(test_again)};
    return cmocka_run_group_tests(tests, set_up, tear_down);
}

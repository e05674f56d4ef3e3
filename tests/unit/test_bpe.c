/* Byte-pair encoding: merging against a plain reference, the vocabulary, the cache, and learning. */
#include "data-prep/bpe.h"

#include "base/rng.h"
#include "data-prep/bpe_train.h"
#include "data-prep/tokenizer.h"
#include "support/tokenizer_files.h"

static void vocabulary(void **state) {
    (void)state;
    struct bpe_vocabulary v = {0};
    assert_int_equal(bpe_vocabulary_find(&v, "a", 1), BPE_NONE);
    for (uint32_t i = 0; i < 5000; i++) {
        char name[16];
        int length = snprintf(name, sizeof name, "t%u", i);
        assert_int_equal(bpe_vocabulary_add(&v, name, (size_t)length, 2 * i), STATUS_OK);
    }
    assert_int_equal(bpe_vocabulary_add(&v, "", 0, 1), STATUS_OK);
    assert_int_equal(bpe_vocabulary_find(&v, "", 0), 1);
    assert_int_equal(bpe_vocabulary_find(&v, "t4999", 5), 9998);
    assert_int_equal(bpe_vocabulary_find(&v, "t4999", 4), 998);
    assert_int_equal(bpe_vocabulary_find(&v, "x", 1), BPE_NONE);
    assert_int_equal(v.count, 9999);
    assert_int_equal(v.tokens, 5001);
    assert_int_equal(v.length[3], BPE_NONE);
    assert_int_equal(bpe_vocabulary_add(&v, "t1", 2, 3), STATUS_DAMAGED);
    error_clear();
    assert_int_equal(bpe_vocabulary_add(&v, "x", 1, 4), STATUS_DAMAGED);
    error_clear();
    assert_int_equal(bpe_vocabulary_add(&v, "x", 1, BPE_VOCABULARY_LIMIT), STATUS_DAMAGED);
    error_clear();
    bpe_vocabulary_free(&v);
}

/* The definition, without any haste. */
static size_t merge_plainly(const struct bpe_merges *merges, uint32_t *symbols, size_t count) {
    for (;;) {
        const struct bpe_merge *best = NULL;
        size_t place = 0;
        for (size_t i = 0; i + 1 < count; i++) {
            const struct bpe_merge *merge = bpe_merges_find(merges, bpe_pair(symbols[i], symbols[i + 1]));
            if (!merge || (best && merge->rank >= best->rank)) continue;
            best = merge;
            place = i;
        }
        if (!best) return count;
        symbols[place] = best->id;
        memmove(symbols + place + 1, symbols + place + 2, (count - place - 2) * sizeof *symbols);
        count--;
    }
}

static void merging(void **state) {
    (void)state;
    struct bpe_merges merges = {0};
    struct bpe_scratch scratch = {0};
    assert_null(bpe_merges_find(&merges, 1));
    /* Four letters, and 60 tokens each of two earlier ones; ranks in another order than ids. */
    for (uint32_t id = 4; id < 64; id++) {
        uint32_t left = (uint32_t)rng_below(3, RNG_TEST, 2 * id, id),
                 right = (uint32_t)rng_below(3, RNG_TEST, 2 * id + 1, id);
        uint32_t rank = (uint32_t)rng_permute(3, RNG_TEST, id - 4, 60);
        if (bpe_merges_find(&merges, bpe_pair(left, right))) continue;
        assert_int_equal(bpe_merges_add(&merges, bpe_pair(left, right), rank, id), STATUS_OK);
    }
    static const size_t lengths[] = {0, 1, 2, 3, 7, 63, 64, 65, 66, 129, 500, 1009};
    for (uint64_t row = 0; row < 2000; row++) {
        uint32_t expected[1009], found[1009];
        size_t length = lengths[row % (sizeof lengths / sizeof *lengths)], count = length;
        for (size_t i = 0; i < length; i++) {
            expected[i] = found[i] = (uint32_t)rng_below(4, RNG_TEST, (row << 16) + i, row % 3 ? 4 : 2);
        }
        size_t plain = merge_plainly(&merges, expected, length);
        assert_int_equal(bpe_merge_symbols(&merges, &scratch, found, &count), STATUS_OK);
        if (count != plain || (count && memcmp(found, expected, count * sizeof *found) != 0)) {
            fail_msg("row %d, %zu symbols: expected %zu after merging, found %zu, or other ones", (int)row, length,
                     plain, count);
        }
    }
    bpe_scratch_free(&scratch);
    bpe_merges_free(&merges);
}

static void latest_merge_counts(void **state) {
    (void)state;
    struct bpe_merges merges = {0};
    assert_int_equal(bpe_merges_add(&merges, bpe_pair(1, 2), 0, 3), STATUS_OK);
    assert_int_equal(bpe_merges_add(&merges, bpe_pair(1, 2), 9, 4), STATUS_OK);
    assert_int_equal(merges.count, 1);
    assert_int_equal(bpe_merges_find(&merges, bpe_pair(1, 2))->rank, 9);
    bpe_merges_free(&merges);
}

static void cache(void **state) {
    (void)state;
    enum { WORDS = 300000 }; /* more than the cache holds: it starts anew on the way */
    struct bpe_cache memory = {0};
    size_t remembered = 0;
    for (uint64_t i = 0; i < WORDS; i++) {
        const uint64_t word[2] = {i * i, (uint64_t)8 << 56};
        uint32_t ids[8];
        size_t count = 1 + i % 7;
        for (size_t j = 0; j < count; j++) ids[j] = (uint32_t)(i + j);
        const struct bpe_cache_entry *entry = bpe_cache_find(&memory, word);
        assert_true(!entry || entry->word[1] == 0);
        assert_int_equal(bpe_cache_add(&memory, word, ids, count), STATUS_OK);
    }
    for (uint64_t i = 0; i < WORDS; i++) {
        const uint64_t word[2] = {i * i, (uint64_t)8 << 56};
        const struct bpe_cache_entry *entry = bpe_cache_find(&memory, word);
        if (entry->word[1] == 0) continue;
        const uint32_t *ids = entry->count > BPE_CACHE_INLINE ? memory.spill + entry->ids[0] : entry->ids;
        assert_int_equal(entry->count, 1 + i % 7);
        for (size_t j = 0; j < entry->count; j++) assert_int_equal(ids[j], i + j);
        remembered++;
    }
    assert_int_equal(remembered, WORDS - 2 * 131072);
    bpe_cache_free(&memory);
}

/* Token names of the merges, in order, joined by spaces. */
static void learn(const char *text, int64_t vocabulary_size, int64_t min_count, char *out, size_t capacity) {
    struct bpe_words words = {0};
    struct bpe_learnt learnt = {0};
    assert_int_equal(bpe_words_count(&words, text, strlen(text)), STATUS_OK);
    assert_int_equal(bpe_learn(&words, vocabulary_size, min_count, &learnt), STATUS_OK);
    const struct bpe_vocabulary *v = &learnt.vocabulary;
    out[0] = '\0';
    for (size_t i = 0; i < 2 * learnt.merge_count; i++) {
        uint32_t id = learnt.merges[i];
        size_t used = strlen(out);
        snprintf(out + used, capacity - used, "%s%.*s",
                 i == 0  ? ""
                 : i % 2 ? "+"
                         : " ",
                 (int)v->length[id], v->bytes + v->begin[id]);
    }
    bpe_learnt_free(&learnt);
    bpe_words_free(&words);
}

static void learning(void **state) {
    (void)state;
    static const struct {
        const char *name, *text;
        int vocabulary, min_count;
        const char *merges;
    } rows[] = {
        {"one word", "abab", 300, 1, "a+b ab+ab"},
        {"often enough", "ab\nab\ncd", 300, 2, "a+b"},
        {"as many as asked for", "ab\nab\ncd\ncd", 258, 1, "a+b"},
        {"ties: lower ids first", "cd\nab\ncb", 300, 1, "a+b c+b c+d"},
        {"overlaps", "aaaa", 300, 1, "a+a aa+aa"},
        {"overlaps, odd", "aaaaa", 300, 1, "a+a aa+a aa+aaa"},
        {"never across words", "ab cd ab cd", 300, 2, "a+b c+d \xC4\xA0+cd"},
        {"counts fall", "abc\nabc\nbc\nbc\nbc\nab", 300, 2, "b+c a+bc"},
        {"nothing to learn", "a b c", 300, 2, ""},
        {"no text", "", 300, 1, ""},
        {"ranks by count, then id",
         "abc\nabc\nabc\nabc\nbcd\nbcd\nbcd\nbcd\nbcd\nabx\nabx\nabx\nabx\nabx\nabx\nabx\nabx\nxabc", 262, 1,
         "a+b ab+x b+c ab+c bc+d"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        char found[512];
        learn(rows[i].text, rows[i].vocabulary, rows[i].min_count, found, sizeof found);
        if (strcmp(found, rows[i].merges) != 0) {
            fail_msg("%s: expected %s, found %s", rows[i].name, rows[i].merges, found);
        }
    }
}

static void train_files(void **state) {
    (void)state;
    static const char one[] = "the river and the house\nthe river's red door\n",
                      other[] = "nine windows, nine doors\n\xFF\xFE bytes\n";
    struct folder folder = folder_new();
    char paths[3][128];
    snprintf(paths[0], sizeof paths[0], "%s/one.txt", folder.path);
    snprintf(paths[1], sizeof paths[1], "%s/other.txt", folder.path);
    snprintf(paths[2], sizeof paths[2], "%s/out", folder.path);
    folder_file(&folder, "one.txt", one, strlen(one));
    folder_file(&folder, "other.txt", other, strlen(other));
    uint64_t hash[3];
    for (int order = 0; order < 3; order++) { /* the order of the texts does not matter; nor does the way of opening */
        const char *inputs[] = {paths[order % 2], paths[!(order % 2)]};
        struct bpe_train_options options = {inputs, 2, paths[2], 270, 2};
        assert_int_equal(bpe_train(&options), STATUS_OK);
        char json[160];
        snprintf(json, sizeof json, "%s/tokenizer.json", paths[2]);
        if (order == 2) assert_int_equal(unlink(json), 0);
        struct tokenizer *tokenizer = NULL;
        if (tokenizer_open(paths[2], &tokenizer) != STATUS_OK) fail_msg("%s", error_message());
        hash[order] = tokenizer_hash(tokenizer);
        assert_int_equal(tokenizer_vocabulary(tokenizer), 270);
        assert_int_equal(tokenizer_end_of_text(tokenizer), 0);
        assert_int_equal(tokenizer_begin_of_text(tokenizer), 0);
        struct token_buffer ids = {0};
        char *text = NULL;
        size_t length = 0;
        assert_int_equal(tokenizer_encode(tokenizer, other, strlen(other), false, &ids), STATUS_OK);
        assert_true(ids.count < strlen(other));
        assert_int_equal(tokenizer_decode(tokenizer, ids.ids, ids.count, false, &text, &length), STATUS_OK);
        assert_string_equal(text, other);
        free(text);
        token_buffer_free(&ids);
        tokenizer_close(&tokenizer);
    }
    assert_true(hash[0] == hash[1] && hash[1] == hash[2]);
    folder_remove(&folder);
}

static void train_faults(void **state) {
    (void)state;
    struct folder folder = folder_new();
    char text[128], out[160], missing[128];
    folder_file(&folder, "text.txt", "some text, some more", 20);
    snprintf(text, sizeof text, "%s/text.txt", folder.path);
    snprintf(missing, sizeof missing, "%s/none.txt", folder.path);
    snprintf(out, sizeof out, "%s/out", folder.path);
    const char *inputs[] = {text, missing};
    struct bpe_train_options options = {inputs, 2, out, 300, 2};
    assert_int_equal(bpe_train(&options), STATUS_NOT_FOUND);
    assert_non_null(strstr(error_message(), "none.txt"));
    error_clear();
    assert_false(file_exists(out));
    snprintf(out, sizeof out, "%s/text.txt/out", folder.path); /* a directory in a file */
    options.input_count = 1;
    assert_int_not_equal(bpe_train(&options), STATUS_OK);
    assert_non_null(strstr(error_message(), "text.txt"));
    error_clear();
    snprintf(out, sizeof out, "%s/small", folder.path); /* fewer pairs than asked for: a smaller tokenizer */
    assert_int_equal(bpe_train(&options), STATUS_OK);
    struct tokenizer *tokenizer = NULL;
    assert_int_equal(tokenizer_open(out, &tokenizer), STATUS_OK);
    assert_in_range(tokenizer_vocabulary(tokenizer), 258, 270);
    tokenizer_close(&tokenizer);
    folder_remove(&folder);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(vocabulary),  cmocka_unit_test(merging),  cmocka_unit_test(latest_merge_counts),
        cmocka_unit_test(cache),       cmocka_unit_test(learning), cmocka_unit_test(train_files),
        cmocka_unit_test(train_faults)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}

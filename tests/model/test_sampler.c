/* The choice of a next token, against a plain one written here; and text that comes out a character at a time. */
#include "support/check.h"

#include "base/memory.h"
#include "base/rng.h"
#include "eval/sampler.h"
#include "eval/text_stream.h"

#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST = 1009 };

/* Probabilities of all ids after temperature, top-k and top-p, by sorting everything; ties to the lower id. */
static void plain_probabilities(const float *logits, int count, const struct sampler_options *o, double *p) {
    static double weight[MOST];
    static bool taken[MOST];
    double most = -INFINITY, total = 0, mass = 0, kept = 0;
    for (int i = 0; i < count; i++) most = fmax(most, (double)logits[i]);
    for (int i = 0; i < count; i++) {
        weight[i] = exp(((double)logits[i] - most) / o->temperature);
        total += weight[i];
        taken[i] = false;
        p[i] = 0;
    }
    int64_t limit = o->top_k > 0 && o->top_k < count ? o->top_k : count;
    if (limit < count) {
        total = 0;
        for (int64_t n = 0; n < limit; n++) {
            int best = -1;
            for (int i = 0; i < count; i++) {
                if (!taken[i] && (best < 0 || weight[i] > weight[best])) best = i;
            }
            taken[best] = true;
            total += weight[best];
        }
        memset(taken, 0, sizeof taken);
    }
    for (int64_t n = 0; n < limit && mass < o->top_p * total; n++) {
        int best = -1;
        for (int i = 0; i < count; i++) {
            if (!taken[i] && (best < 0 || weight[i] > weight[best])) best = i;
        }
        taken[best] = true;
        mass += weight[best];
        p[best] = weight[best];
        kept += weight[best];
    }
    for (int i = 0; i < count; i++) p[i] /= kept;
}

static const struct {
    const char *name;
    int vocabulary;
    double spread; /* of the logits */
    struct sampler_options options;
} rows[] = {
    {"plain", 7, 1.5, {.temperature = 1, .top_p = 1, .seed = 3}},
    {"hot", 7, 1.5, {.temperature = 2.5, .top_p = 1, .seed = 4}},
    {"top-k 3", 9, 1.0, {.temperature = 1, .top_k = 3, .top_p = 1, .seed = 5}},
    {"top-k above V", 5, 1.0, {.temperature = 1, .top_k = 50, .top_p = 1, .seed = 6}},
    {"top-p 0.6", 11, 2.0, {.temperature = 1, .top_p = 0.6, .seed = 7}},
    {"top-p tiny", 11, 2.0, {.temperature = 1, .top_p = 1e-6, .seed = 8}},
    {"top-k and top-p", 13, 1.0, {.temperature = 0.7, .top_k = 6, .top_p = 0.8, .seed = 9}},
    {"all equal", 6, 0.0, {.temperature = 1, .top_p = 0.5, .seed = 10}},
    {"large, flat", MOST, 0.01, {.temperature = 1, .top_p = 0.9, .seed = 11}},
    {"large, steep", MOST, 4.0, {.temperature = 1, .top_p = 0.95, .seed = 12}},
    {"one id", 1, 1.0, {.temperature = 1, .top_p = 1, .seed = 13}},
};

/* Counts of 20,000 draws lie within 5 standard deviations of what they should be; what must not come never comes. */
static void test_frequencies(void **state) {
    (void)state;
    const int draws = 20000;
    for (size_t r = 0; r < sizeof rows / sizeof *rows; r++) {
        static float logits[MOST];
        static double expected[MOST];
        static int found[MOST];
        struct sampler *sampler = NULL;
        int count = rows[r].vocabulary;
        for (int i = 0; i < count; i++) logits[i] = (float)(rows[r].spread * rng_normal(r, RNG_TEST, (uint64_t)i));
        plain_probabilities(logits, count, &rows[r].options, expected);
        memset(found, 0, sizeof found);
        CHECK_OK(sampler_open(&rows[r].options, count, &sampler));
        for (int d = 0; d < draws; d++) {
            int32_t id = -1;
            CHECK_OK(sampler_choose(sampler, logits, d % 7, d / 7, &id));
            assert_in_range(id, 0, count - 1);
            found[id]++;
        }
        for (int i = 0; i < count; i++) {
            double mean = draws * expected[i], deviation = sqrt(mean * (1 - expected[i]));
            if (expected[i] == 0 ? found[i] > 0 : fabs(found[i] - mean) > 5 * deviation + 1) {
                fail_msg("%s: id %d: expected %.1f of %d, found %d", rows[r].name, i, mean, draws, found[i]);
            }
        }
        sampler_close(&sampler);
    }
}

static void test_greedy(void **state) {
    (void)state;
    const float logits[5] = {1, 3, -2, 3, 0};
    const struct sampler_options greedy = {.temperature = 0, .top_p = 1};
    const struct sampler_options one = {.temperature = 1, .top_k = 1, .top_p = 1, .seed = 5};
    struct sampler *sampler = NULL;
    int32_t id = -1;
    CHECK_OK(sampler_open(&greedy, 5, &sampler));
    CHECK_OK(sampler_choose(sampler, logits, 0, 0, &id));
    assert_int_equal(id, 1); /* the lowest of the two */
    sampler_close(&sampler);
    CHECK_OK(sampler_open(&one, 5, &sampler));
    for (int position = 0; position < 100; position++) {
        CHECK_OK(sampler_choose(sampler, logits, 0, position, &id));
        assert_int_equal(id, 1);
    }
    sampler_close(&sampler);
    sampler_close(&sampler);
}

/* A draw is a function of (seed, sample, position): what was drawn before changes nothing. */
static void test_counter(void **state) {
    (void)state;
    const struct sampler_options options = {.temperature = 1, .top_p = 1, .seed = 77};
    float logits[64] = {0};
    struct sampler *a = NULL, *b = NULL;
    int differing = 0;
    CHECK_OK(sampler_open(&options, 64, &a));
    CHECK_OK(sampler_open(&options, 64, &b));
    int32_t forward[50], id = 0;
    for (int i = 0; i < 50; i++) CHECK_OK(sampler_choose(a, logits, 3, i, &forward[i]));
    for (int i = 49; i >= 0; i--) {
        CHECK_OK(sampler_choose(b, logits, 3, i, &id));
        assert_int_equal(id, forward[i]);
        CHECK_OK(sampler_choose(b, logits, 4, i, &id));
        differing += id != forward[i];
    }
    assert_true(differing > 40);
    sampler_close(&a);
    sampler_close(&b);
}

static void test_not_finite(void **state) {
    (void)state;
    const struct sampler_options options = {.temperature = 0, .top_p = 1};
    const float bad[] = {NAN, INFINITY, -INFINITY};
    struct sampler *sampler = NULL;
    int32_t id = 0;
    CHECK_OK(sampler_open(&options, 4, &sampler));
    for (int i = 0; i < 3; i++) {
        float logits[4] = {0, 1, bad[i], 2};
        assert_int_equal(sampler_choose(sampler, logits, 8, 21, &id), STATUS_NONFINITE);
        assert_non_null(strstr(error_message(), "sample 8, position 21: logit of id 2"));
        error_clear();
    }
    sampler_close(&sampler);
}

/* --- text --------------------------------------------------------------------------------------------------------- */

static enum status decode_bytes(void *context, const uint32_t *ids, size_t count, char **text, size_t *length) {
    (void)context;
    TRY(memory_new(count + 1, 1, "text", text));
    for (size_t i = 0; i < count; i++) (*text)[i] = (char)ids[i];
    *length = count;
    return STATUS_OK;
}

static enum status collect(void *context, const char *text, size_t length) {
    char *out = context;
    size_t used = strlen(out);
    memcpy(out + used, text, length);
    snprintf(out + used + length, 3, "|");
    return STATUS_OK;
}

static const struct {
    const char *bytes, *shown; /* "|" after every write */
} streams[] = {
    {"abc", "a|b|c|"},
    {"\xC3\xA9!", "\xC3\xA9|!|"},
    {"\xE2\x82\xAC", "\xE2\x82\xAC|"},
    {"\xF0\x9F\x98\x80x", "\xF0\x9F\x98\x80|x|"},
    {"\xF0\x9F", "\xF0\x9F|"}, /* never whole: comes at the end */
    {"\x80z", "\x80|z|"},      /* a stray continuation byte waits for nothing */
    {"\xC3"
     "A",
     "\xC3"
     "A|"}, /* the next byte shows that the first was alone */
    {"\xFF\xFE", "\xFF|\xFE|"},
    {"\xC0", "\xC0|"}, /* begins nothing */
    {"", ""},
};

static void test_text(void **state) {
    (void)state;
    for (size_t r = 0; r < sizeof streams / sizeof *streams; r++) {
        char shown[64] = {0};
        struct text_stream stream = {.decode = decode_bytes, .write = collect, .write_context = shown};
        for (const char *byte = streams[r].bytes; *byte; byte++)
            CHECK_OK(text_stream_add(&stream, (unsigned char)*byte));
        CHECK_OK(text_stream_end(&stream));
        if (strcmp(shown, streams[r].shown) != 0)
            fail_msg("stream %zu: expected \"%s\", found \"%s\"", r, streams[r].shown, shown);
        text_stream_free(&stream);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_frequencies), cmocka_unit_test(test_greedy),
                                       cmocka_unit_test(test_counter), cmocka_unit_test(test_not_finite),
                                       cmocka_unit_test(test_text)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}

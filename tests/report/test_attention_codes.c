/* The bytes behind the page of attention weights: what is taken in comes out again, as its script reads it. */
#include "report/attention_codes.h"
#include "support/check.h"

#include <math.h>
#include <string.h>

enum { HEADS = 2, LENGTH = 150, PAIRS = HEADS * LENGTH * LENGTH };

static float weights[2][PAIRS];
static uint8_t reads[2][PAIRS];

static int pair(int h, int i, int j) {
    return (h * LENGTH + i) * LENGTH + j;
}

/* A student (0) of few tokens, some in summaries and some negative, and a teacher (1) that reads everything. */
static struct layer_weights made_up(int which) {
    for (int h = 0; h < HEADS; h++)
        for (int i = 0; i < LENGTH; i++) {
            double sum = 0;
            for (int j = 0; j < LENGTH; j++) sum += j <= i ? exp(-0.1 * (i - j)) : 0;
            for (int j = 0; j < LENGTH; j++) {
                const int n = pair(h, i, j);
                const bool own = i - j < 5 + 20 * h, whole = j % 7 == 3;
                reads[which][n] = j > i          ? WEIGHT_UNREAD
                                  : which || own ? WEIGHT_READ
                                  : whole        ? WEIGHT_SUMMARY
                                                 : WEIGHT_UNREAD;
                weights[which][n] = reads[which][n] == WEIGHT_UNREAD ? 0 : (float)(exp(-0.1 * (i - j)) / sum);
                if (which == 0 && h == 1 && i - j == 9) weights[which][n] *= -1;
            }
        }
    return (struct layer_weights){0, 1, HEADS, LENGTH, weights[which], reads[which]};
}

/* --- the page's reader, in C -------------------------------------------------------------------------------------- */

struct reader {
    const uint8_t *bytes;
    size_t at;
};

static int64_t number(struct reader *r) {
    int64_t value = 0;
    for (int shift = 0;; shift += 7) {
        const uint8_t byte = r->bytes[r->at++];
        value |= (int64_t)(byte & 127) << shift;
        if (byte < 128) return value;
    }
}

/* Checks one plane against what was taken in; returns the pairs that it holds. */
static int64_t check_plane(struct reader *r, const struct attention_codes *c, int plane, int64_t keep) {
    static int64_t counts[LENGTH], tokens[LENGTH * LENGTH];
    int64_t all = 0, n = 0;
    for (int i = 0; i < LENGTH; i++) all += counts[i] = number(r);
    for (int i = 0; i < LENGTH; i++)
        for (int64_t e = 0; e < counts[i]; e++, n++) tokens[n] = number(r) + (e ? tokens[n - 1] : 0);
    const uint8_t *codes = r->bytes + r->at, *flags = codes + all;
    r->at += (size_t)(c->flagged ? 2 * all : all);
    n = 0;
    for (int i = 0; i < LENGTH; i++) {
        float least = 2;
        int read = 0;
        for (int64_t e = 0; e < counts[i]; e++, n++) {
            const int j = (int)tokens[n], at = plane > 0 ? pair(plane - 1, i, j) : 0;
            float wanted = 0;
            assert_true(j <= i);
            for (int h = 0; h < HEADS && plane == 0; h++) wanted += fabsf(weights[0][pair(h, i, j)]) / HEADS;
            if (plane > 0) wanted = weights[0][at];
            const double share = (double)codes[n] / 255,
                         found = c->scale * share * share * (flags[n] & ATTENTION_NEGATIVE ? -1 : 1);
            /* Half a step of the code, or the least that shows. */
            if (fabs(found - (double)wanted) > sqrt(fabs((double)wanted) * c->scale) / 255 + c->scale / 65025)
                fail_msg("plane %d, query %d, token %d: expected %g, found %g", plane, i, j, (double)wanted, found);
            if (plane > 0) assert_int_equal((flags[n] & ATTENTION_SUMMARY) != 0, reads[0][at] == WEIGHT_SUMMARY);
            if (fabsf(wanted) < least) least = fabsf(wanted);
        }
        for (int j = 0; j <= i && plane > 0; j++) {
            read += reads[0][pair(plane - 1, i, j)] != WEIGHT_UNREAD;
            /* What is left out is no heavier than what is kept. */
            bool kept = false;
            for (int64_t e = n - counts[i]; e < n; e++) kept = kept || tokens[e] == j;
            if (!kept && (double)fabsf(weights[0][pair(plane - 1, i, j)]) > (double)least + c->scale / 64)
                fail_msg("query %d: token %d is left out", i, j);
        }
        if (plane > 0) assert_int_equal(counts[i], read < keep ? read : keep);
    }
    return all;
}

static void check_packed(const struct attention_codes *c, struct attention_keep keep) {
    struct page_text out = {0};
    attention_codes_pack(c, &keep, &out);
    CHECK_OK(out.status);
    struct reader r = {(const uint8_t *)out.bytes, 0};
    for (int plane = 0; plane <= HEADS; plane++) check_plane(&r, c, plane, plane ? keep.head : keep.mean);
    for (int n = 0; n < HEADS * LENGTH; n++, r.at += 2)
        assert_int_equal(r.bytes[r.at] + 256 * r.bytes[r.at + 1], c->read[n]);
    for (int n = 0; n < HEADS * LENGTH; n++, r.at += 2)
        assert_int_equal(r.bytes[r.at] + 256 * r.bytes[r.at + 1], c->summed[n]);
    assert_memory_equal(r.bytes + r.at, c->hit, HEADS * LENGTH);
    assert_memory_equal(r.bytes + r.at + HEADS * LENGTH, c->common, HEADS * LENGTH);
    assert_int_equal(r.at + 2 * HEADS * LENGTH, out.count);
    page_text_free(&out);
}

static void test_codes(void **state) {
    (void)state;
    struct attention_codes own, teacher;
    const struct layer_weights student = made_up(0), taught = made_up(1);
    CHECK_OK(attention_codes_take(&student, &own));
    CHECK_OK(attention_codes_take(&taught, &teacher));
    CHECK_OK(attention_codes_compare(&own, &teacher));
    double read = 0, summed = 0;
    for (int h = 0; h < HEADS; h++)
        for (int i = 0; i < LENGTH; i++) {
            int count = 0, summaries = 0;
            double hit = 0;
            for (int j = 0; j <= i; j++) {
                count += reads[0][pair(h, i, j)] == WEIGHT_READ;
                summaries += reads[0][pair(h, i, j)] == WEIGHT_SUMMARY;
                if (reads[0][pair(h, i, j)] == WEIGHT_READ) hit += (double)weights[1][pair(h, i, j)];
            }
            assert_int_equal(own.read[h * LENGTH + i], count);
            assert_int_equal(own.summed[h * LENGTH + i], summaries);
            if (fabs(own.hit[h * LENGTH + i] / 255.0 - hit) > 0.01)
                fail_msg("query %d: expected a share of %g, found %d/255", i, hit, own.hit[h * LENGTH + i]);
            read += count;
            summed += summaries;
        }
    assert_true(own.flagged && !teacher.flagged);
    assert_true(fabs(own.density - read / (HEADS * LENGTH * (LENGTH + 1) / 2)) < 1e-9);
    assert_true(fabs(own.summaries - summed / (HEADS * LENGTH * (LENGTH + 1) / 2)) < 1e-9);
    assert_true(teacher.density == 1);
    static const struct attention_keep keeps[] = {{4096, 4096}, {4096, 24}, {64, 1}};
    for (int n = 0; n < 3; n++) check_packed(&own, keeps[n]);
    attention_codes_free(&own);
    attention_codes_free(&teacher);
}

/* The most that fits: everything of a small model, 32 tokens of a head at 512 tokens × 12 layers × 12 heads. */
static void test_keep(void **state) {
    (void)state;
    static const struct {
        int64_t length, heads, layers, mean, head;
    } rows[] = {{384, 8, 5, 4096, 4096}, {512, 12, 12, 4096, 32}, {4096, 64, 80, 32, 16}};
    for (size_t n = 0; n < sizeof rows / sizeof *rows; n++) {
        const struct attention_keep keep =
            attention_keep_within(10000000, rows[n].length, rows[n].heads, rows[n].layers, 2);
        if (keep.mean != rows[n].mean || keep.head != rows[n].head)
            fail_msg("row %zu: found %d, %d", n, (int)keep.mean, (int)keep.head);
    }
}

static void test_page_text(void **state) {
    (void)state;
    struct page_text text = {0}, packed = {0};
    page_text_string(&text, "a\"b\\c</script>\n\xff");
    page_text_base64(&text, "\xfb\xff\x01", 3);
    page_text_base64(&text, "ab", 2);
    page_text_base64(&text, "a", 1);
    page_text_add(&text, "", 1);
    CHECK_OK(text.status);
    assert_string_equal(text.bytes, "\"a\\u0022b\\u005cc\\u003c/script>\\u000a\xff\"+/8BYWI=YQ==");
    page_text_deflated(&packed, text.bytes, text.count);
    CHECK_OK(packed.status);
    assert_memory_equal(packed.bytes, "eN", 2); /* zlib's header at its best compression */
    page_text_print(&packed, "%300d", 1);
    assert_int_equal(packed.status, STATUS_FAILED);
    error_clear();
    const size_t count = packed.count;
    page_text_add(&packed, "more", 4);
    assert_int_equal(packed.count, count);
    page_text_free(&text);
    page_text_free(&packed);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_codes), cmocka_unit_test(test_keep),
                                       cmocka_unit_test(test_page_text)};
    return check_exit(cmocka_run_group_tests(tests, NULL, NULL));
}

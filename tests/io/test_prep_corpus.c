/* The sample corpus: the same document for the same (seed, index), answers where the recalls say, lengths and distances
 * that make looking far back worth while. */
#include "data-prep/corpus.h"
#include "data-prep/reader.h"
#include "support/check.h"
#include "support/scratch.h"

#include <ctype.h>
#include <jansson.h>
#include <string.h>
#include <sys/stat.h>

enum { DOCUMENTS = 400 };

static void test_recalls(void **state) {
    (void)state;
    int64_t far = 0, count = 0;
    for (int64_t index = 0; index < DOCUMENTS; index++) {
        struct corpus_document document;
        CHECK_OK(corpus_document_make(7, index, NULL, &document));
        assert_int_equal(strlen(document.text), document.length);
        assert_true(document.recall_count > 0);
        int64_t last = 0;
        for (size_t i = 0; i < document.recall_count; i++) {
            const struct corpus_recall *recall = &document.recalls[i];
            const char *answer = document.text + recall->start, *source = answer - recall->distance;
            assert_true(recall->start >= last && recall->length > 0 && recall->distance > 0);
            assert_true(recall->start + recall->length <= (int64_t)document.length && source >= document.text);
            if (strncasecmp(answer, source, (size_t)recall->length) != 0) {
                fail_msg("document %lld: \"%.*s\" was \"%.*s\"", (long long)index, (int)recall->length, answer,
                         (int)recall->length, source);
            }
            last = recall->start + recall->length;
            far += recall->distance > 1500;
            count++;
        }
        for (const char *c = document.text; *c; c++) {
            if (!isprint((unsigned char)*c) && *c != '\n') fail_msg("document %lld: byte %d", (long long)index, *c);
            if (strchr("[]{}|<>", *c)) fail_msg("document %lld: a pattern shows: %.40s", (long long)index, c);
            assert_false(c[0] == ' ' && (c[1] == ' ' || c[1] == '.'));
        }
        corpus_document_free(&document);
    }
    assert_true(far > count / 5); /* a fifth of the answers lie hundreds of tokens back */
}

static void test_lengths(void **state) {
    (void)state;
    size_t shortest = SIZE_MAX, longest = 0, total = 0;
    for (int64_t index = 0; index < DOCUMENTS; index++) {
        struct corpus_document document;
        CHECK_OK(corpus_document_make(1, index, NULL, &document));
        if (document.length < shortest) shortest = document.length;
        if (document.length > longest) longest = document.length;
        total += document.length;
        corpus_document_free(&document);
    }
    assert_in_range(shortest, 300, 700);
    assert_in_range(longest, 6000, 8000);
    assert_in_range(total / DOCUMENTS, 1500, 4000);
}

/* Stories of a chosen kind: what they ask for at their end lies about as far back as they are long. */
static void test_shape(void **state) {
    (void)state;
    static const struct corpus_shape far = {.shortest = 4000, .longest = 4600, .facts = 12};
    static const struct corpus_shape near = {.shortest = 100, .longest = 100, .facts = 1, .asked = 3};
    int64_t count = 0, beyond = 0;
    for (int64_t index = 0; index < DOCUMENTS; index++) {
        struct corpus_document document;
        CHECK_OK(corpus_document_make(1, index, &far, &document));
        assert_in_range(document.length, 3500, 5200);
        assert_true(document.recall_count >= 11); /* a twelfth fact may not be found */
        for (size_t i = 0; i < document.recall_count; i++) beyond += document.recalls[i].distance > 1200;
        count += (int64_t)document.recall_count;
        corpus_document_free(&document);
        CHECK_OK(corpus_document_make(1, index, &near, &document));
        assert_in_range(document.length, 100, 900);
        assert_int_equal(document.recall_count, 3);
        corpus_document_free(&document);
    }
    assert_true(2 * beyond > count);
    struct corpus_document none;
    CHECK_STATUS(STATUS_USAGE, corpus_document_make(1, 0, &(struct corpus_shape){.shortest = 7001}, &none));
    CHECK_STATUS(STATUS_USAGE,
                 corpus_document_make(1, 0, &(struct corpus_shape){.facts = CORPUS_FACTS_MAX + 1}, &none));
    /* What is not chosen is as it ever was. */
    struct corpus_document usual, chosen;
    CHECK_OK(corpus_document_make(1, 5, NULL, &usual));
    CHECK_OK(corpus_document_make(1, 5, &(struct corpus_shape){.shortest = 550, .longest = 7000, .asked = 1}, &chosen));
    assert_string_equal(usual.text, chosen.text);
    corpus_document_free(&usual), corpus_document_free(&chosen);
}

static void test_same(void **state) {
    (void)state;
    struct corpus_document a, b, c, d;
    CHECK_OK(corpus_document_make(1, 123456789012, NULL, &a));
    CHECK_OK(corpus_document_make(1, 123456789012, NULL, &b));
    CHECK_OK(corpus_document_make(2, 123456789012, NULL, &c));
    CHECK_OK(corpus_document_make(1, 123456789013, NULL, &d));
    assert_string_equal(a.text, b.text);
    assert_memory_equal(a.recalls, b.recalls, a.recall_count * sizeof *a.recalls);
    assert_string_not_equal(a.text, c.text);
    assert_string_not_equal(a.text, d.text);
    corpus_document_free(&a), corpus_document_free(&b), corpus_document_free(&c), corpus_document_free(&d);
    corpus_document_free(&d);
    corpus_document_free(NULL);
}

static void test_write(void **state) {
    (void)state;
    struct corpus_summary summary;
    char path[300];
    snprintf(path, sizeof path, "%s", scratch_path("corpus.jsonl"));
    CHECK_OK(corpus_write(path, &(struct corpus_options){.seed = 5, .first = 10, .documents = 20}, &summary));
    assert_int_equal(summary.documents, 20);
    /* What the reader makes of it are the documents themselves; jansson finds the recalls. */
    struct reader *reader = NULL;
    struct reader_piece piece;
    FILE *file = fopen(path, "rb");
    CHECK_OK(reader_open(path, &(struct reader_options){0}, &reader));
    for (int64_t i = 0; i < 20; i++) {
        struct corpus_document document;
        bool more = false;
        CHECK_OK(corpus_document_make(5, 10 + i, NULL, &document));
        CHECK_OK(reader_next(reader, &piece, &more));
        assert_true(more);
        assert_string_equal(piece.text, document.text);
        json_t *line = json_loadf(file, JSON_DISABLE_EOF_CHECK, NULL);
        assert_int_equal(json_integer_value(json_object_get(line, "document")), 10 + i);
        const json_t *recalls = json_object_get(line, "recall");
        assert_int_equal(json_array_size(recalls), document.recall_count);
        for (size_t r = 0; r < document.recall_count; r++) {
            const json_t *recall = json_array_get(recalls, r);
            assert_int_equal(json_integer_value(json_object_get(recall, "start")), document.recalls[r].start);
            assert_int_equal(json_integer_value(json_object_get(recall, "length")), document.recalls[r].length);
            assert_int_equal(json_integer_value(json_object_get(recall, "distance")), document.recalls[r].distance);
        }
        json_decref(line);
        corpus_document_free(&document);
    }
    fclose(file);
    reader_close(&reader);
    CHECK_OK(corpus_write(path, &(struct corpus_options){.seed = 5, .bytes = 100000}, &summary));
    assert_in_range(summary.bytes, 100000, 108000);
    assert_int_equal(mkfifo(scratch_path("pipe"), 0600), 0);
    CHECK_STATUS(STATUS_IO, corpus_write(scratch_path("pipe"), &(struct corpus_options){.documents = 1}, &summary));
    CHECK_STATUS(STATUS_IO, corpus_write("/nonexistent/x", &(struct corpus_options){.documents = 1}, &summary));
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_recalls), cmocka_unit_test(test_lengths),
                                       cmocka_unit_test(test_same), cmocka_unit_test(test_shape),
                                       cmocka_unit_test(test_write)};
    return cmocka_run_group_tests(tests, scratch_make, scratch_remove);
}

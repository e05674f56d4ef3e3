/* Malformed and unsupported tokenizer files: each with its message and exit code. A row changes one thing in a good
 * tokenizer.json, or replaces the directory's files. */
#include "base/file.h"
#include "data-prep/tokenizer.h"
#include "support/tokenizer_files.h"

#include <errno.h>

static const char good[] =
    "{\"added_tokens\":[{\"id\":7,\"content\":\"<s>\",\"special\":true,\"normalized\":false,\"single_word\":false}],"
    "\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"Prepend\",\"prepend\":\"_\"},"
    "{\"type\":\"Replace\",\"pattern\":{\"String\":\" \"},\"content\":\"_\"}]},"
    "\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\",\"pattern\":{\"Regex\":\"b\"},"
    "\"behavior\":\"Isolated\",\"invert\":false},{\"type\":\"Digits\",\"individual_digits\":true},"
    "{\"type\":\"Metaspace\",\"replacement\":\"_\",\"prepend_scheme\":\"first\",\"split\":true}]},"
    "\"decoder\":{\"type\":\"Sequence\",\"decoders\":[{\"type\":\"Replace\",\"pattern\":{\"String\":\"_\"},\"content\":"
    "\" \"},"
    "{\"type\":\"ByteFallback\"},{\"type\":\"Fuse\"},{\"type\":\"Strip\",\"content\":\" \",\"start\":1,\"stop\":0}]},"
    "\"model\":{\"type\":\"BPE\",\"dropout\":null,\"unk_token\":\"c\",\"end_of_word_suffix\":\"\",\"fuse_unk\":true,"
    "\"vocab\":{\"a\":0,\"b\":1,\"c\":2,\"_\":3,\"ab\":4,\"abc\":5},\"merges\":[\"a b\",[\"ab\",\"c\"]]}}";

static const struct {
    const char *name, *from, *to;
    int exit_code;
    const char *message; /* after the file's name */
} json_rows[] = {
    {"not JSON", "{\"added", "{added", 3, "line 1: expected JSON: string or '}' expected near 'added'"},
    {"cut short", ",\"merges\":[\"a b\",[\"ab\",\"c\"]]}}", "", 3,
     "line 1: expected JSON: '}' expected near end of file"},
    {"a key twice", "\"a\":0,", "\"a\":0,\"a\":6,", 3, "line 1: expected JSON: duplicate object key near '\"a\"'"},
    {"no model", "\"model\":", "\"other\":", 3, "model: expected an object, found nothing"},
    {"model a list", "\"model\":", "\"model\":[],\"other\":", 3, "model: expected an object, found a list"},
    {"another model", "\"BPE\"", "\"WordPiece\"", 2, "model.type: expected BPE, found WordPiece: not supported"},
    {"type not a text", "\"BPE\"", "7", 3, "model.type: expected a text, found 7"},
    {"suffix", "_suffix\":\"\"", "_suffix\":\"</w>\"", 2,
     "model.end_of_word_suffix: expected none, found \"</w>\": not supported"},
    {"prefix", "\"fuse_unk\":true", "\"continuing_subword_prefix\":\"##\"", 2,
     "model.continuing_subword_prefix: expected none, found \"##\": not supported"},
    {"dropout", "\"dropout\":null", "\"dropout\":0.5", 2, "model.dropout: expected none, found 0.5: not supported"},
    {"unknown token", "\"unk_token\":\"c\"", "\"unk_token\":\"<unk>\"", 3,
     "model.unk_token: expected a token of the vocabulary, found \"<unk>\""},
    {"fuse_unk", "\"fuse_unk\":true", "\"fuse_unk\":\"yes\"", 3,
     "model.fuse_unk: expected true or false, found \"yes\""},
    {"no vocabulary", "\"vocab\":", "\"words\":", 3,
     "model.vocab: expected an object of tokens and ids, found nothing"},
    {"empty vocabulary", "\"vocab\":{", "\"vocab\":{},\"words\":{", 3,
     "model.vocab: expected tokens, found an empty object"},
    {"id a text", "\"a\":0", "\"a\":\"0\"", 3, "model.vocab: token \"a\": expected an id from 0 up, found \"0\""},
    {"id negative", "\"a\":0", "\"a\":-1", 3, "model.vocab: token \"a\": expected an id from 0 up, found -1"},
    {"id a fraction", "\"a\":0", "\"a\":0.5", 3, "model.vocab: token \"a\": expected an id from 0 up, found 0.5"},
    {"id enormous", "\"abc\":5", "\"abc\":4000000000", 3,
     "model.vocab: token \"abc\": expected an id below 16777216, found 4000000000"},
    {"id twice", "\"b\":1", "\"b\":0", 3, "model.vocab: id 0: expected one token, found \"a\" and \"b\""},
    {"no merges", "\"merges\":", "\"joins\":", 3, "model.merges: expected a list, found nothing"},
    {"merge of one", "\"a b\"", "\"ab\"", 3, "model.merges[0]: expected two tokens, found \"ab\""},
    {"merge of three", "\"a b\"", "\"a b c\"", 3, "model.merges[0]: expected two tokens, found \"a b c\""},
    {"merge of nothing", "\"a b\"", "\"a \"", 3, "model.merges[0]: expected two tokens, found \"a \""},
    {"merge a number", "\"a b\"", "17", 3, "model.merges[0]: expected two tokens, found 17"},
    {"merge list of three", "[\"ab\",\"c\"]", "[\"a\",\"b\",\"c\"]", 3,
     "model.merges[1]: expected two tokens, found a list"},
    {"left unknown", "\"a b\"", "\"x b\"", 3,
     "model.merges[0]: \"x b\": expected both parts and their whole in the vocabulary, found no \"x\""},
    {"right unknown", "\"a b\"", "\"a x\"", 3,
     "model.merges[0]: \"a x\": expected both parts and their whole in the vocabulary, found no \"x\""},
    {"whole unknown", "\"a b\"", "\"b a\"", 3,
     "model.merges[0]: \"b a\": expected both parts and their whole in the vocabulary, found no \"ba\""},
    {"added not a list", "\"added_tokens\":[", "\"added_tokens\":{},\"other\":[", 3,
     "added_tokens: expected a list, found an object"},
    {"added not an object", "\"added_tokens\":[", "\"added_tokens\":[7,", 3,
     "added_tokens[0]: expected an object, found 7"},
    {"added without id", "\"id\":7,", "", 3, "added_tokens[0].id: expected an id from 0 up, found nothing"},
    {"added without content", "\"content\":\"<s>\",", "", 3, "added_tokens[0].content: expected a text, found nothing"},
    {"added with a taken id", "\"id\":7", "\"id\":4", 3,
     "added_tokens[0]: id 4: expected one token, found \"ab\" and \"<s>\""},
    {"added with another id", "\"<s>\"", "\"ab\"", 3,
     "added_tokens[0]: \"ab\": expected its id of the vocabulary, 4, found 7"},
    {"added flag", "\"special\":true", "\"special\":1", 3, "added_tokens[0].special: expected true or false, found 1"},
    {"single_word", "\"single_word\":false", "\"single_word\":true", 2,
     "added_tokens[0].single_word: expected false, found true: not supported"},
    {"normalizer a text", "\"normalizer\":", "\"normalizer\":\"NFC\",\"other\":", 3,
     "normalizer: expected an object, found \"NFC\""},
    {"normalizer without type", "\"type\":\"Prepend\",", "", 3,
     "normalizer.normalizers[0].type: expected a text, found nothing"},
    {"normalizer NFC", "\"Prepend\"", "\"NFC\"", 2,
     "normalizer.normalizers[0].type: expected Prepend, Replace or a Sequence of them, found NFC: not supported"},
    {"normalizers not a list", "\"normalizers\":", "\"list\":", 3,
     "normalizer.normalizers: expected a list, found nothing"},
    {"prepend nothing", "\"prepend\":\"_\"", "\"prepend\":null", 3,
     "normalizer.normalizers[0].prepend: expected a text, found nothing"},
    {"replace regex", "{\"String\":\" \"}", "{\"Regex\":\" \"}", 2,
     "normalizer.normalizers[1].pattern: expected a String, found a Regex: not supported"},
    {"replace nothing", "{\"String\":\" \"}", "{\"String\":\"\"}", 3,
     "normalizer.normalizers[1].pattern: expected a pattern, found an empty one"},
    {"replace without pattern", "\"pattern\":{\"String\":\" \"}", "\"pattern\":null", 3,
     "normalizer.normalizers[1].pattern: expected a String or a Regex, found null"},
    {"pre_tokenizer unknown", "\"Digits\"", "\"Punctuation\"", 2,
     "pre_tokenizer.pretokenizers[1].type: expected ByteLevel, Split, Digits, Metaspace or a Sequence of them, found "
     "Punctuation: not supported"},
    {"after ByteLevel", "{\"type\":\"Digits\"", "{\"type\":\"ByteLevel\"},{\"type\":\"Digits\"", 2,
     "pre_tokenizer.pretokenizers[2]: expected ByteLevel to be the last part, found Digits after it: not supported"},
    {"split pattern", "{\"Regex\":\"b\"}", "{\"Regex\":\"(b\"}", 2,
     "pre_tokenizer.pretokenizers[0].pattern: expected a regular expression, found \"(b\": missing closing parenthesis "
     "at "
     "byte 2"},
    {"split behavior", "\"Isolated\"", "\"Apart\"", 3,
     "pre_tokenizer.pretokenizers[0].behavior: expected Removed, Isolated, MergedWithPrevious, MergedWithNext or "
     "Contiguous, "
     "found \"Apart\""},
    {"prepend scheme", "\"first\"", "\"last\"", 3,
     "pre_tokenizer.pretokenizers[2].prepend_scheme: expected always, first or never, found \"last\""},
    {"replacement", "\"replacement\":\"_\"", "\"replacement\":\"__\"", 3,
     "pre_tokenizer.pretokenizers[2].replacement: expected one character, found \"__\""},
    {"no decoder", "\"decoder\":", "\"other\":", 3, "decoder: expected an object, found nothing"},
    {"decoder unknown", "\"ByteFallback\"", "\"WordPiece\"", 2,
     "decoder.decoders[1].type: expected ByteLevel, Metaspace, Replace, ByteFallback, Fuse, Strip or a Sequence of "
     "them, found "
     "WordPiece: not supported"},
    {"strip before fuse", "{\"type\":\"Fuse\"},", "", 2,
     "decoder.decoders[2].type: expected one Strip, after Fuse, found Strip: not supported"},
    {"strip by half", "\"start\":1", "\"start\":0.5", 3, "decoder.decoders[3]: expected whole numbers start and stop"},
    {"metaspace after replace", "{\"type\":\"ByteFallback\"}", "{\"type\":\"Metaspace\",\"replacement\":\"_\"}", 2,
     "decoder.decoders[1].type: expected Metaspace before Replace, found Metaspace: not supported"},
    {"replace after bytes", "{\"type\":\"Fuse\"}", "{\"type\":\"Replace\"}", 2,
     "decoder.decoders[2].type: expected Replace before ByteFallback and Fuse, found Replace: not supported"},
    {"17 parts", "{\"type\":\"ByteFallback\"},",
     "{\"type\":\"Fuse\"},{\"type\":\"Fuse\"},{\"type\":\"Fuse\"},{\"type\":\"Fuse\"},{\"type\":\"Fuse\"},{\"type\":"
     "\"Fuse\"},"
     "{\"type\":\"Fuse\"},{\"type\":\"Fuse\"},{\"type\":\"Fuse\"},{\"type\":\"Fuse\"},{\"type\":\"Fuse\"},{\"type\":"
     "\"Fuse\"},"
     "{\"type\":\"Fuse\"},{\"type\":\"Fuse\"},",
     2, "decoder.decoders: expected at most 16 parts, found 17: not supported"},
};

static int failures;

static void expect(const char *name, const char *path, int exit_code, const char *message) {
    struct tokenizer *tokenizer = NULL;
    error_clear();
    enum status status = tokenizer_open(path, &tokenizer);
    if (status_exit_code(status) != exit_code || strcmp(error_message(), message) != 0 || tokenizer) {
        fprintf(stderr, "%s: expected exit %d, \"%s\"\n  found %d, \"%s\"\n", name, exit_code, message,
                status_exit_code(status), error_message());
        failures++;
    }
    tokenizer_close(&tokenizer);
    error_clear();
}

static void json_files(void **state) {
    (void)state;
    struct folder folder = folder_new();
    struct tokenizer *tokenizer = NULL;
    folder_file(&folder, "tokenizer.json", good, strlen(good));
    assert_int_equal(tokenizer_open(folder.path, &tokenizer), STATUS_OK); /* so that a row fails for its own reason */
    tokenizer_close(&tokenizer);
    for (size_t i = 0; i < sizeof json_rows / sizeof *json_rows; i++) {
        char changed[4096], path[128], message[512];
        replace_once(good, json_rows[i].from, json_rows[i].to, changed, sizeof changed);
        folder_file(&folder, "tokenizer.json", changed, strlen(changed));
        snprintf(path, sizeof path, "%s/tokenizer.json", folder.path);
        snprintf(message, sizeof message, "%s: %s", path, json_rows[i].message);
        expect(json_rows[i].name, i % 2 ? path : folder.path, json_rows[i].exit_code, message);
    }
    folder_remove(&folder);
    assert_int_equal(failures, 0);
}

static const struct {
    const char *name;
    struct {
        const char *name, *text;
    } files[3];
    int exit_code;
    const char *message; /* %s: the directory */
} folder_rows[] = {
    {"empty", {{0}}, 1, "%s: expected tokenizer.json, or vocab.json and merges.txt, found neither"},
    {"vocab.json alone",
     {{"vocab.json", "{}"}},
     1,
     "%s: expected tokenizer.json, or vocab.json and merges.txt, found vocab.json alone"},
    {"merges.txt alone",
     {{"merges.txt", "a b"}},
     1,
     "%s: expected tokenizer.json, or vocab.json and merges.txt, found merges.txt alone"},
    {"empty JSON",
     {{"tokenizer.json", ""}},
     3,
     "%s/tokenizer.json: line 1: expected JSON: '[' or '{' expected near end of file"},
    {"a list", {{"tokenizer.json", "[]"}}, 3, "%s/tokenizer.json: expected an object, found a list"},
    {"vocabulary a list",
     {{"vocab.json", "[1]"}, {"merges.txt", ""}},
     3,
     "%s/vocab.json: expected an object, found a list"},
    {"vocabulary empty",
     {{"vocab.json", "{}"}, {"merges.txt", ""}},
     3,
     "%s/vocab.json: vocabulary: expected tokens, found an empty object"},
    {"a word alone",
     {{"vocab.json", "{\"a\":0}"}, {"merges.txt", "#version\na\n"}},
     3,
     "%s/merges.txt: line 2: expected two tokens and a space between them, found \"a\""},
    {"a foreign merge",
     {{"vocab.json", "{\"a\":0}"}, {"merges.txt", "a b\n"}},
     3,
     "%s/merges.txt: line 1: \"a b\": expected both parts and their whole in the vocabulary, found no \"b\""},
    {"config not JSON",
     {{"vocab.json", "{\"a\":0}"}, {"merges.txt", ""}, {"tokenizer_config.json", "{"}},
     3,
     "%s/tokenizer_config.json: line 1: expected JSON: string or '}' expected near end of file"},
    {"config's end",
     {{"vocab.json", "{\"a\":0}"}, {"merges.txt", ""}, {"tokenizer_config.json", "{\"eos_token\":\"z\"}"}},
     3,
     "%s/tokenizer_config.json: eos_token: expected a token of the vocabulary, found \"z\""},
    {"config's prefix",
     {{"vocab.json", "{\"a\":0}"}, {"merges.txt", ""}, {"tokenizer_config.json", "{\"add_prefix_space\":3}"}},
     3,
     "%s/tokenizer_config.json: settings.add_prefix_space: expected true or false, found 3"},
};

static void folders(void **state) {
    (void)state;
    failures = 0;
    for (size_t i = 0; i < sizeof folder_rows / sizeof *folder_rows; i++) {
        struct folder folder = folder_new();
        char message[512];
        for (int file = 0; file < 3 && folder_rows[i].files[file].name; file++) {
            const char *text = folder_rows[i].files[file].text;
            folder_file(&folder, folder_rows[i].files[file].name, text, strlen(text));
        }
        const char *rest = strstr(folder_rows[i].message, "%s") + 2;
        snprintf(message, sizeof message, "%s%s", folder.path, rest);
        expect(folder_rows[i].name, folder.path, folder_rows[i].exit_code, message);
        folder_remove(&folder);
    }
    expect("nothing there", "/nonexistent/tokenizer", 1,
           "/nonexistent/tokenizer: expected a tokenizer's directory or its tokenizer.json, found nothing");
    assert_int_equal(failures, 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(json_files), cmocka_unit_test(folders)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}

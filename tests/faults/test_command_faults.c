/* Every command, while one call of the system, the allocator, a library or a collective fails: the first call, the
 * second, and so on until the command gets through. Each time it is done and right, or says what is wrong; nothing
 * leaks, nothing is left half-written, and what was there before still is. Commands run inside this process, as main
 * runs them; calls are exchanged by the linker (support/inject.h). After the first calls of a function every second,
 * fourth, eighth … fails; $SQUINT_FAULTS=all tries every one. One row by hand, with every message: test_command_faults
 * "train" malloc */
#include "base/file.h"
#include "commands/command.h"
#include "support/check.h"
#include "support/inject.h"
#include "support/scratch.h"

#include <string.h>
#include <unistd.h>

/* Of the sanitizer's runtime, where this is built with it. */
int __lsan_do_recoverable_leak_check(void) __attribute__((weak));

enum { WHOLE = 6, WHOLE_SLOW = 1, WORDS_MAX = 24 };

static const char lm_recipe[] =
    "run: lm\ntokenizer: tok\n"
    "from_scratch: {type: gpt2, layers: 2, heads: 2, width: 16}\n"
    "data: {train: c-train-*.h5, valid: c-valid-*.h5}\n"
    "stages:\n"
    "  - {name: lm, objective: lm, train: all, length: 16, batch: 4, steps: 2, lr: 2.0e-2}\n"
    "train: {micro_batch: 2}\ncheckpoint: {every: 1, keep: 1}\neval: {sequences: 2}\n";
static const char kl_recipe[] =
    "run: kl\nteacher: lm\n"
    "data: {train: c-train-*.h5, valid: c-valid-*.h5}\n"
    "student:\n  attention: [{layers: 0, kind: full}, {layers: all, kind: masks, candidates: [window(3), sinks(1)], "
    "per: layer}]\n"
    "stages:\n"
    "  - {name: align, objective: attention, train: new, length: 16, batch: 4, steps: 1, lr: 1.0e-2}\n"
    "  - {name: distil, objective: kl, train: [new, attn.qkv, lora(2)], length: 24, batch: 4, steps: 1, lr: 1.0e-3, "
    "l1: 0.1}\n"
    "train: {micro_batch: 2}\npositions: interpolate\ncheckpoint: {every: 1, keep: 2}\neval: {sequences: 2}\n";

/* --- running a command
 * --------------------------------------------------------------------------------------------------------------------
 */

static FILE *nowhere;

/* The words of `line`, cut at blanks. */
static enum status command(const char *line) {
    char text[512], *words[WORDS_MAX + 1] = {0}, *rest = NULL;
    int count = 0;
    assert_true(strlen(line) < sizeof text);
    strcpy(text, line);
    for (char *word = strtok_r(text, " ", &rest); word; word = strtok_r(NULL, " ", &rest)) {
        assert_true(count < WORDS_MAX);
        words[count++] = word;
    }
    int i = 0;
    while (command_table[i] && strcmp(command_table[i]->name, words[0]) != 0) i++;
    assert_non_null(command_table[i]);
    /* What it prints is for nobody; the descriptors stay, for cmocka and the sanitizer. */
    FILE *out = stdout, *err = stderr;
    stdout = stderr = nowhere;
    enum status status = command_table[i]->run(count, words);
    clearerr(nowhere);
    stdout = out;
    stderr = err;
    return status;
}

static void must(const char *line) {
    enum status status = command(line);
    if (status != STATUS_OK) fail_msg("squint %s: %s: %s", line, status_name(status), error_message());
}

static void put(const char *name, const char *text) {
    CHECK_OK(file_write(name, text, strlen(text)));
}

/* --- the rows
 * -----------------------------------------------------------------------------------------------------------------------------
 */

/* Everything is in the scratch folder, where the process stands. What a row makes is in "new/", or "new". */
static const struct row {
    const char *name;
    const char *prepare; /* a command that is run before; NULL: none */
    const char *line;
    const char *made;    /* once it is there, it must pass `inspect --verify`; NULL: nothing to look at */
    const char *goes_on; /* a command that must succeed afterwards, whatever happened: nothing is in its way */
} rows[] = {
    {"train", NULL, "train lm.yaml --run=new/lm", "new/lm", "train lm.yaml --run=new/lm"},
    {"distil", NULL, "train kl.yaml --run=new/kl", "new/kl", "train kl.yaml --run=new/kl"},
    {"resume", "train lm.yaml --run=new/lm --stages.lm.steps=1", "train lm.yaml --run=new/lm", "new/lm",
     "train lm.yaml --run=new/lm"},
    {"anew", "train lm.yaml --run=new/lm", "train lm.yaml --run=new/lm --resume never", "new/lm", NULL},
    {"dry run", NULL, "train kl.yaml --dry-run", NULL, NULL},
    {"keys", NULL, "train --keys", NULL, NULL},
    {"plan", NULL, "plan kl.yaml --json", NULL, NULL},
    {"plan table", NULL, "plan lm.yaml", NULL, NULL},
    {"eval", NULL, "eval --model kl --data c-valid-*.h5 --length 16 --sequences 2 --ladder --json new/e.json", NULL,
     NULL},
    {"eval teacher", NULL, "eval --model lm --data c-valid-00000.h5 --length 8 --sequences 2 --documents", NULL, NULL},
    {"eval guarded", NULL,
     "eval --model lm --data c-valid-00000.h5 --length 8 --sequences 2 --device guard:cpu --json -", NULL, NULL},
    {"generate", NULL, "generate --model kl --prompt The --tokens 6 --temperature 1 --top-p 0.9 --top-k 9", NULL, NULL},
    {"generate parallel", NULL, "generate --model lm --prompt The --tokens 4 --parallel", NULL, NULL},
    {"samples", NULL, "generate --model lm --samples 3 --length 8 --out new/s --valid 0.5", "new/s-train-00000.h5",
     NULL},
    {"logits", NULL, "logits --model kl --ids ids.json --out new/l.h5", NULL, NULL},
    {"export", NULL, "export --model kl --out new/x", "new/x", "export --model kl --out new/y"},
    {"inspect run", NULL, "inspect kl --verify", NULL, NULL},
    {"inspect model", NULL, "inspect lm/model --verify --json", NULL, NULL},
    {"inspect shard", NULL, "inspect c-train-00000.h5 --verify", NULL, NULL},
    {"inspect tensors", NULL, "inspect lm/model/model.safetensors --verify", NULL, NULL},
    {"inspect attention", NULL, "inspect --attention @c.txt --length 9 --model kl --out new/a.html", NULL,
     "inspect --attention The --model kl --out new/a.html"},
    {"prep", NULL, "prep --tokenizer tok --out new/p --valid 0.3 --shard-tokens 4000 c.jsonl", "new/p-train-00000.h5",
     "prep --tokenizer tok --out new/p --valid 0.3 --shard-tokens 4000 c.jsonl"},
    {"prep again", "prep --tokenizer tok --out new/p --valid 0.3 c.jsonl",
     "prep --tokenizer tok --out new/p --valid 0.3 c.jsonl", "new/p-train-00000.h5", NULL},
    {"inspect tokenizer", NULL, "inspect tok", NULL, NULL},
    {"prep text", NULL, "prep --tokenizer tok --out new/p --valid 0 --pack --json folder", "new/p-train-00000.h5",
     NULL},
    {"prep separated", NULL, "prep --tokenizer tok --out new/p --document-separator \\n\\n c.txt",
     "new/p-train-00000.h5", NULL},
    {"tokenizer train", NULL, "tokenizer train --vocab 280 --out new/t c.txt", NULL,
     "tokenizer train --vocab 280 --out new/t c.txt"},
    {"encode", NULL, "tokenizer encode --tokenizer tok c.txt", NULL, NULL},
    {"decode", NULL, "tokenizer decode --tokenizer tok one.json", NULL, NULL},
    {"corpus", NULL, "corpus --out new/c.jsonl --documents 2", NULL, NULL},
    {"bench step", NULL,
     "bench step --layers 1 --heads 2 --width 16 --vocabulary 50 --batch 2 --length 8 --steps 1 --json", NULL, NULL},
    {"bench attention", NULL, "bench attention --lengths 8 16 --window 4 --heads 2 --groups 1 --width 8 --repeats 1",
     NULL, NULL},
    {"bench kinds", NULL,
     "bench attention --kinds full,performer,kerformer:map=exp --lengths 8 --heads 2 --groups 1 --width 8 --repeats 1", NULL,
     NULL},
    {"bench decode", NULL,
     "bench decode --kinds full,kerformer:map=exp,nsa --positions 2 5 --heads 2 --groups 1 --width 8 --repeats 2",
     NULL, NULL},
    {"bench prep", NULL, "bench prep --tokenizer tok --file c.txt --repeats 1", NULL, NULL},
};
enum { ROWS = sizeof rows / sizeof *rows };

/* --- what must hold afterwards
 * -------------------------------------------------------------------------------------------------------------- */

static const char *only_row, *only_function;
static bool every_call;

/* Nothing that only looks finished, and nothing temporary: neither here nor below. */
static void check_left(const char *folder, const char *what) {
    char **names, path[512];
    size_t count;
    CHECK_OK(file_list(folder, &names, &count));
    for (size_t i = 0; i < count; i++) {
        snprintf(path, sizeof path, "%s/%s", folder, names[i]);
        if (strstr(names[i], ".tmp")) fail_msg("%s: left %s behind", what, path);
        if (file_is_directory(path)) check_left(path, what);
    }
    file_free_list(names, count);
}

/* A run's directory is there before its first checkpoint. */
static bool published(const char *made) {
    char checkpoints[256];
    snprintf(checkpoints, sizeof checkpoints, "%s/checkpoints/latest", made);
    bool is_run = strcmp(made, "new/lm") == 0 || strcmp(made, "new/kl") == 0;
    return file_exists(is_run ? checkpoints : made);
}

static void check_after(const struct row *row, bool done, const char *what) {
    char line[256];
    if (row->made && (done || published(row->made))) {
        snprintf(line, sizeof line, "inspect %s --verify", row->made);
        enum status status = command(line);
        if (status != STATUS_OK) fail_msg("%s: afterwards, %s: %s", what, row->made, error_message());
    }
    if (row->goes_on) {
        enum status status = command(row->goes_on);
        if (status != STATUS_OK) fail_msg("%s: then, squint %s: %s", what, row->goes_on, error_message());
    }
}

static void clear_new(void) {
    CHECK_OK(file_remove_tree("new"));
    CHECK_OK(file_make_directory("new"));
}

/* Clean-up that fails leaves something behind; nothing can be done about that. */
static bool cleans(const char *function) {
    return strcmp(function, "opendir") == 0 || strcmp(function, "malloc") == 0 || strcmp(function, "realloc") == 0 ||
           strcmp(function, "strdup") == 0 || strcmp(function, "calloc") == 0;
}

static bool is_allocator(const char *function) {
    return strcmp(function, "malloc") == 0 || strcmp(function, "calloc") == 0 || strcmp(function, "realloc") == 0 ||
           strcmp(function, "strdup") == 0 || strcmp(function, "aligned_alloc") == 0 ||
           strcmp(function, "open_memstream") == 0 || strcmp(function, "glob") == 0;
}

/* True when the row got through with nothing failing: there are no more calls. */
static bool try_one(const struct row *row, const char *function, long call) {
    char what[200];
    snprintf(what, sizeof what, "%s, call %ld of %s fails", row->name, call, function);
    clear_new();
    if (row->prepare) must(row->prepare);
    inject_start(function, call);
    enum status status = command(row->line);
    bool struck = inject_stop(), done = status == STATUS_OK;
    if (only_function) printf("%s %ld: %s: %s\n", function, call, status_name(status), error_message());
    if (!done && !error_message()[0]) fail_msg("%s: %s without a message", what, status_name(status));
    if (!done && !struck) fail_msg("%s: fails with nothing failing: %s", what, error_message());
    /* Never passed over, and never told as something else: no other file, no wrong usage, no damage. */
    if (struck && is_allocator(function) && (status != STATUS_MEMORY || !strstr(error_message(), "no memory"))) {
        fail_msg("%s: expected no memory, found %s: %s", what, status_name(status), error_message());
    }
    /* It would be told instead of the next failure's own. */
    if (done && error_message()[0]) fail_msg("%s: done, with a message left behind: %s", what, error_message());
    error_clear();
    if (!cleans(function)) check_left("new", what);
    check_after(row, done, what);
    return !struck;
}

static void test_row(void **state) {
    const struct row *row = *state;
    long tried = 0;
    /* A training or an evaluation takes a hundred times as long as any other row. */
    long whole = row->made && strncmp(row->line, "train", 5) == 0 ? WHOLE_SLOW
                 : strncmp(row->line, "eval", 4) == 0             ? WHOLE_SLOW
                                                                  : WHOLE;
    for (int f = 0; inject_commands[f]; f++) {
        const char *function = inject_commands[f];
        if (only_function && strcmp(only_function, function) != 0) continue;
        long call = 0, before = tried;
        while (!try_one(row, function, call)) {
            tried++;
            call += every_call || call < whole ? 1 : call; /* then doubling */
        }
        if (__lsan_do_recoverable_leak_check && __lsan_do_recoverable_leak_check()) {
            fail_msg("%s: leaks after a failed %s", row->name, function);
        }
        if (only_row && tried > before) printf("%s: %ld calls, the last was %ld\n", function, tried - before, call);
    }
    printf("%s: %ld calls made to fail\n", row->name, tried);
}

/* --- the good inputs
 * ------------------------------------------------------------------------------------------------------------------------
 */

static void make_inputs(void **state) {
    (void)state;
    put("lm.yaml", lm_recipe);
    put("kl.yaml", kl_recipe);
    put("ids.json", "{\"ids\": [[1, 2, 3], [4, 5, 6]]}");
    put("one.json", "[30, 31, 32, 60]");
    put("c.txt", "The old man told the girl.\n\nThe girl told the old man, and the old man told her again.\n\n"
                 "\xc3\xa9t\xc3\xa9 \xff 12345   the end\n");
    must("corpus --out c.jsonl --documents 6");
    must("tokenizer train --vocab 300 --out tok c.jsonl");
    must("prep --tokenizer tok --out c --valid 0.3 c.jsonl");
    must("train lm.yaml");
    must("train kl.yaml");
    CHECK_OK(file_make_directory("folder/inner"));
    assert_int_equal(
        system("gzip -c c.txt >folder/a.txt.gz && zstd -q -c c.txt >folder/inner/b.txt.zst && cp c.jsonl folder"), 0);
}

int main(int argc, char **argv) {
    setvbuf(stdout, NULL, _IOLBF, 0);
    const char *faults = getenv("SQUINT_FAULTS");
    struct CMUnitTest tests[ROWS + 1] = {cmocka_unit_test(make_inputs)};
    size_t count = 1;
    only_row = argc > 1 ? argv[1] : NULL;
    only_function = argc > 2 ? argv[2] : NULL;
    every_call = faults && strcmp(faults, "all") == 0;
    for (int r = 0; r < ROWS; r++) {
        if (only_row && strcmp(only_row, rows[r].name) != 0) continue;
        tests[count++] = (struct CMUnitTest){rows[r].name, test_row, NULL, NULL, (void *)(intptr_t)&rows[r]};
    }
    if (scratch_make(NULL) != 0 || chdir(scratch) != 0) return 1;
    setenv("TMPDIR", scratch, 1);
    nowhere = fopen("/dev/null", "w");
    if (!nowhere) return 1;
    int failures = _cmocka_run_group_tests("faults of commands", tests, count, NULL, NULL);
    failures += chdir("/") != 0;
    failures += scratch_remove(NULL) != 0;
    return failures;
}

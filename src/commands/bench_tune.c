/* squint bench tune: which form of a kernel is fastest on this device, into a file that SQUINT_TUNING names. */
#include "commands/bench_tune.h"

#include "base/memory.h"
#include "commands/command.h"
#include "commands/device.h"
#include "eval/tuning.h"

#include <stdio.h>
#include <stdlib.h>

enum { LIST_MAX = 16 };

static void print_rows(const struct tuning_row *rows, int64_t count, bool json) {
    if (json) printf("{\"bench\": \"tune\", \"rows\": [");
    for (int64_t n = 0; n < count; n++) {
        const struct tuning_row *row = &rows[n];
        if (json)
            printf("%s{\"kernel\": \"%s\", \"width\": %lld, \"length\": %lld, \"form\": %d, \"seconds\": [",
                   n ? ", " : "", row->best.kernel, (long long)row->best.width, (long long)row->best.length,
                   row->best.form);
        else
            printf("%-20s width %3lld  T %7lld  form %d ", row->best.kernel, (long long)row->best.width,
                   (long long)row->best.length, row->best.form);
        for (int form = 0; form < row->forms; form++) {
            if (json)
                printf("%s%.9f", form ? ", " : "", row->seconds[form]);
            else
                printf(" %10.4fms", 1e3 * row->seconds[form]);
        }
        printf(json ? "]}" : "\n");
    }
    if (json) printf("]}\n");
}

enum status bench_tune(int argc, char **argv) {
    int64_t lengths[LIST_MAX] = {1024, 4096, 16384, 65536}, widths[LIST_MAX] = {64}, rounds = 11;
    struct tuning_options o = {
        .batch = 1, .heads = 12, .lengths = lengths, .length_count = 4, .widths = widths, .width_count = 1};
    const char *out = NULL, *device = NULL;
    bool json = false;
    struct option_list of_lengths = {0}, of_widths = {0};
    struct tuning_row *rows = NULL;
    struct tuning_entry *entries = NULL;
    const struct ops *ops = NULL;
    int64_t count = 0;
    const struct option table[] = {
        {"out", OPTION_TEXT, &out, 0, 0},
        {"lengths", OPTION_LIST, &of_lengths, 0, 0},
        {"widths", OPTION_LIST, &of_widths, 0, 0},
        {"batch", OPTION_INTEGER, &o.batch, 1, 65536},
        {"heads", OPTION_INTEGER, &o.heads, 1, 1000},
        {"rounds", OPTION_INTEGER, &rounds, 1, 1000},
        {"device", OPTION_TEXT, &device, 0, 0},
        {"json", OPTION_FLAG, &json, 0, 0},
    };
    enum status status;
    TRY_GOTO(done, options_read(argc, argv, table, sizeof table / sizeof *table, NULL, NULL));
    TRY_GOTO(done, options_numbers(argv[0], "lengths", &of_lengths, 1 << 24, LIST_MAX, lengths, &o.length_count));
    TRY_GOTO(done, options_numbers(argv[0], "widths", &of_widths, 64, LIST_MAX, widths, &o.width_count));
    o.rounds = (int)rounds;
    TRY_GOTO(done, device_choose(device, true, NULL, &ops));
    TRY_GOTO(done, tuning_measure(ops, &o, &rows, &count));
    print_rows(rows, count, json);
    if (!out) goto done;
    TRY_GOTO(done, memory_new((size_t)count, sizeof *entries, "a tuning file", &entries));
    for (int64_t n = 0; n < count; n++) entries[n] = rows[n].best;
    TRY_GOTO(done, tuning_save(out, ops, entries, count));
    if (!json) printf("written  %s; export SQUINT_TUNING=%s uses it\n", out, out);
done:
    if (ops) ops->close(ops);
    options_free(&of_lengths);
    options_free(&of_widths);
    free(rows);
    free(entries);
    return status;
}

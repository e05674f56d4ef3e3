/* Times attention: attention [TABLE [THREADS [REPEATS [T …]]]]. GPT-2's shape: 12 heads of 64. */
#include "eval/bench_attention.h"

#include <stdio.h>
#include <stdlib.h>

int main(int count, char **words) {
    static const struct bench_attention_set sets[] = {
        {"full", {{CANDIDATE_FULL, 0, 0}}, {1}, 1},
        {"window 256 + sinks 4", {{CANDIDATE_WINDOW, 256, 0}, {CANDIDATE_SINKS, 4, 0}}, {1, 0.1}, 2},
        {"window 256", {{CANDIDATE_WINDOW, 256, 0}}, {1}, 1},
        {"window 32 + sinks 4 + dilated 16x4",
         {{CANDIDATE_WINDOW, 32, 0}, {CANDIDATE_SINKS, 4, 0}, {CANDIDATE_DILATED, 16, 4}},
         {1, 0.1, 0.1},
         3},
        {"stride 64 + window 64 + offset 200",
         {{CANDIDATE_STRIDE, 64, 0}, {CANDIDATE_WINDOW, 64, 0}, {CANDIDATE_OFFSET, 200, 0}},
         {1, 0.1, 0.1},
         3},
    };
    enum { SETS = sizeof sets / sizeof *sets, LENGTHS = 16 };
    int64_t lengths[LENGTHS] = {1024};
    int length_count = 1;
    for (int n = 4; n < count && n - 4 < LENGTHS; n++) {
        lengths[n - 4] = atoll(words[n]);
        length_count = n - 3;
    }
    const struct bench_attention_options options = {
        .table = count > 1 ? words[1] : "cpu",
        .threads = count > 2 ? atoi(words[2]) : 1,
        .repeats = count > 3 ? atoi(words[3]) : 5,
        .sets = sets,
        .set_count = SETS,
        .lengths = lengths,
        .length_count = length_count,
        .batch = 1,
        .heads = 12,
        .groups = 12,
        .width = 64,
    };
    static struct bench_attention_row rows[SETS * LENGTHS];
    if (bench_attention(&options, rows) != STATUS_OK) {
        fprintf(stderr, "%s\n", error_message());
        return 1;
    }
    for (int n = 0; n < SETS * length_count; n++)
        printf("T %6lld  %-36s forward %8.2f ms  backward %8.2f ms  processor %8.2f ms  tensors %6.1f MiB  scratch "
               "%6.1f MiB\n",
               (long long)rows[n].length, rows[n].set, 1e3 * rows[n].forward_s, 1e3 * rows[n].backward_s,
               1e3 * rows[n].processor_s, (double)rows[n].tensor_bytes / 1048576,
               (double)rows[n].scratch_bytes / 1048576);
    return 0;
}

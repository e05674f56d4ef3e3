/* test_gpu GROUP [--quick] [NAME]: one group of tests on this machine's GPU; NAME: the cases that start so. test_gpu
 * device: what the GPU is. Exit code 77, with the reason, when no GPU is usable. */
#include "gpu/gpu.h"

#include "kernels/ops.h"
#include "support/check.h"

#include <stdio.h>
#include <string.h>

struct gpu_choice gpu_choice = {.chosen = ""};

bool gpu_chose(const char *case_name) {
    return strncmp(case_name, gpu_choice.chosen, strlen(gpu_choice.chosen)) == 0;
}

/* Its description has been printed. */
static int no_tests(void) {
    return 0;
}

static const struct {
    const char *name;
    int (*run)(void);
} groups[] = {{"device", no_tests},
              {"ops", gpu_test_ops},
              {"attention", gpu_test_attention},
              {"linear", gpu_test_linear},
              {"compressed", gpu_test_compressed},
              {"blocks", gpu_test_blocks},
              {"choice", gpu_test_choice},
              {"tokens", gpu_test_tokens},
              {"million", gpu_test_million},
              {"repeat", gpu_test_repeat},
              {"model", gpu_test_model}};

static int run_group(int (*run)(void)) {
    const struct ops *ops = NULL;
    const enum status status = ops_open("cuda", NULL, &ops);
    if (status == STATUS_NOT_FOUND || status == STATUS_USAGE) {
        printf("skipped: %s\n", error_message());
        return 77;
    }
    if (status != STATUS_OK) {
        printf("opening the GPU: %s: %s\n", status_name(status), error_message());
        return 1;
    }
    printf("%s\n", ops->describe(ops));
    fflush(stdout);
    ops->close(ops);
    return check_exit(run());
}

int main(int argc, char **argv) {
    for (int i = 2; i < argc; i++) {
        if (strcmp(argv[i], "--quick") == 0)
            gpu_choice.quick = true;
        else
            gpu_choice.chosen = argv[i];
    }
    for (size_t g = 0; argc > 1 && g < sizeof groups / sizeof *groups; g++)
        if (strcmp(argv[1], groups[g].name) == 0) return run_group(groups[g].run);
    fprintf(stderr, "usage: test_gpu GROUP [--quick] [NAME]; groups:");
    for (size_t g = 0; g < sizeof groups / sizeof *groups; g++) fprintf(stderr, " %s", groups[g].name);
    fprintf(stderr, "\n");
    return 2;
}

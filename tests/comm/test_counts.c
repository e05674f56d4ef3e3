/* What comm_mpi.c cuts long tensors into: parts, pieces and messages of more than 2^31 bytes, by arithmetic alone. */
#include "comm/comm_mpi.c"

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

static const int64_t counts[] = {
    0, 1, 6, 7, 8, ((int64_t)1 << 31) - 1, ((int64_t)1 << 31) + 5, ((int64_t)3 << 33) + 11};
static const int sizes[] = {1, 2, 3, 4, 7, 1000};
static char base[1];

/* The parts of all ranks follow one another without a gap, and differ by one element at most. */
static void test_parts(void **state) {
    (void)state;
    for (size_t c = 0; c < sizeof counts / sizeof *counts; c++)
        for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
            int64_t at = 0;
            for (int part = 0; part < sizes[s]; part++) {
                const int64_t begin = part_begin(counts[c], sizes[s], part),
                              end = part_begin(counts[c], sizes[s], part + 1);
                assert_true(begin == at && end - begin >= counts[c] / sizes[s] &&
                            end - begin <= counts[c] / sizes[s] + 1);
                at = end;
            }
            assert_true(at == counts[c]);
        }
}

/* Walks through an operation's pieces as the phases do: every element once, in rank order, none outside. */
static void walk(enum comm_collective collective, enum dtype dtype, int64_t count, int size) {
    struct comm comm = {.size = size, .piece_bytes = (size_t)1 << 31, .rank = size - 1};
    const int64_t scattered = collective == COMM_REDUCE_SCATTER ? size : 1;
    struct comm_operation operation = {.collective = collective,
                                       .input = tensor_1d(base, dtype, count * scattered),
                                       .output = tensor_1d(base, dtype, count)};
    int64_t covered = 0;
    while (operation.first < count) {
        int64_t expected = operation.first;
        for (int part = 0; part < size; part++) {
            int64_t n = 0;
            const char *at = piece_part(&comm, &operation, part, &n);
            if (scattered > 1) expected = count * part + operation.first;
            assert_true((uintptr_t)at - (uintptr_t)base == (uintptr_t)expected * dtype_size(dtype));
            assert_true((size_t)n * dtype_size(dtype) <= comm.piece_bytes);
            expected += n;
            covered += n;
            assert_true(expected <= count * scattered);
        }
        operation.first += piece_count(&comm, &operation);
    }
    assert_true(operation.first == count && covered == count * scattered);
}

static void test_pieces(void **state) {
    (void)state;
    for (size_t c = 1; c < sizeof counts / sizeof *counts; c++)
        for (size_t s = 1; s < 5; s++) {
            walk(COMM_ALL_REDUCE, DTYPE_F32, counts[c], sizes[s]);
            walk(COMM_ALL_REDUCE, DTYPE_BF16, counts[c], sizes[s]);
            walk(COMM_REDUCE_SCATTER, DTYPE_F64, counts[c], sizes[s]);
        }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_parts), cmocka_unit_test(test_pieces)};
    return cmocka_run_group_tests_name("counts", tests, NULL, NULL);
}

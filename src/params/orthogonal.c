/* Random maps of orthogonal rows, drawn by counter. */
#include "base/hash.h"
#include "base/memory.h"
#include "base/rng.h"
#include "params/params.h"
#include "params/values.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static double dot(const double *a, const double *b, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += a[i] * b[i];
    return sum;
}

/* Row `row` loses what lies along the rows before it. Twice is enough (Giraud et al. 2005). */
static void orthonormalise_row(double *block, int64_t row, int64_t columns) {
    double *x = block + row * columns;
    const double before = dot(x, x, columns);
    for (int round = 0; round < 2; round++)
        for (int64_t r = 0; r < row; r++) {
            const double share = dot(x, block + r * columns, columns);
            for (int64_t c = 0; c < columns; c++) x[c] -= share * block[r * columns + c];
        }
    const double square = dot(x, x, columns), length = sqrt(square);
    const bool independent = square > 1e-20 * before;
    for (int64_t c = 0; c < columns; c++) x[c] = independent ? x[c] / length : 0;
}

void params_orthonormalise(double *x, int64_t rows, int64_t columns) {
    for (int64_t r = 0; r < rows; r++) orthonormalise_row(x, r, columns);
}

enum status params_draw_orthogonal(uint64_t seed, uint64_t part, int64_t rows, int64_t columns, double *out) {
    const uint64_t stream = rng_substream(RNG_FEATURES, part);
    double *lengths;
    TRY(memory_new((size_t)rows, sizeof *lengths, "lengths of a map's rows", &lengths));
    for (int64_t r = 0; r < rows; r++) {
        for (int64_t c = 0; c < columns; c++) {
            const uint64_t index = 2 * (uint64_t)(r * columns + c);
            out[r * columns + c] = rng_normal(seed, stream, index);
            lengths[r] += pow(rng_normal(seed, stream, index + 1), 2);
        }
    }
    for (int64_t r = 0; r < rows; r += columns)
        params_orthonormalise(out + r * columns, rows - r < columns ? rows - r : columns, columns);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < columns; c++) out[r * columns + c] *= sqrt(lengths[r]);
    free(lengths);
    return STATUS_OK;
}

enum status params_redraw(const struct params *params, const struct param *row, uint64_t seed, uint64_t draw) {
    const int64_t columns = row->shape[row->rank - 1], rows = row->shape[row->rank - 2];
    const int64_t each = rows * columns, count = tensor_count(row->value);
    const char *dot_place = strrchr(row->name, '.');
    const uint64_t name = hash_bytes(row->name, dot_place ? (size_t)(dot_place - row->name) : strlen(row->name));
    double *values = NULL;
    enum status status = STATUS_OK;
    TRY_GOTO(done, memory_new((size_t)count, sizeof *values, "a map's draw", &values));
    TRY_GOTO(done, params_draw_orthogonal(seed, hash_combine(name, draw) >> 8, rows, columns, values));
    for (int64_t n = each; n < count; n++) values[n] = values[n - each];
    status = values_write(params->ops, row->value, values);
    if (status == STATUS_OK) status = params_wrote(params, row);
done:
    free(values);
    return status;
}

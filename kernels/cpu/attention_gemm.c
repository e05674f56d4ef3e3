/* The matrix product and the transpose of attention's tiles: small, from cache, no packing of its own. A register tile
 * of eight rows and two vectors; the vectors are the compiler's, as wide as the variant's instructions. */
#include "kernels/cpu/attention_gemm.h"
#include "kernels/cpu/vector.h"

static void transpose_square(const real *from, int64_t from_row, real *to, int64_t to_row) {
    vector x[VECTOR], y[VECTOR];
    for (int n = 0; n < VECTOR; n++) x[n] = *(const vector *)(from + n * from_row);
    for (int width = 1; width < VECTOR; width *= 2) {
        for (int n = 0; n < VECTOR / 2; n++) {
            y[2 * n] = __builtin_shufflevector(x[n], x[n + VECTOR / 2], LOW);
            y[2 * n + 1] = __builtin_shufflevector(x[n], x[n + VECTOR / 2], HIGH);
        }
        memcpy(x, y, sizeof x);
    }
    for (int n = 0; n < VECTOR; n++) *(vector *)(to + n * to_row) = x[n];
}

void NAME(attention_transpose)(int64_t rows, int64_t columns, const real *from, int64_t from_row, real *to,
                               int64_t to_row) {
    const int64_t whole_rows = rows / VECTOR * VECTOR, whole_columns = columns / VECTOR * VECTOR;
    for (int64_t i = 0; i < whole_rows; i += VECTOR)
        for (int64_t j = 0; j < whole_columns; j += VECTOR)
            transpose_square(from + i * from_row + j, from_row, to + j * to_row + i, to_row);
    for (int64_t j = 0; j < columns; j++)
        for (int64_t i = j < whole_columns ? whole_rows : 0; i < rows; i++) to[j * to_row + i] = from[i * from_row + j];
}

struct operands {
    int64_t k, a_row, a_column, b_row, c_row;
    const real *a, *b;
    real *c;
    bool accumulate;
};

__attribute__((always_inline)) static inline void product(const struct operands *o, const real *a, const real *b,
                                                          real *c, const int rows, const int vectors) {
    vector sum[8][4];
    const int64_t a_row = o->a_row, a_column = o->a_column, b_row = o->b_row, k = o->k;
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) sum[r][v] = (vector){0};
    for (int64_t p = 0; p < k; p++) {
        vector line[4];
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) line[v] = *(const vector *)(b + p * b_row + v * VECTOR);
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) {
            const real x = a[r * a_row + p * a_column];
#pragma GCC unroll 4
            for (int v = 0; v < vectors; v++) sum[r][v] += x * line[v];
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) {
            vector *to = (vector *)(c + r * o->c_row + v * VECTOR);
            if (o->accumulate) sum[r][v] += *to;
            *to = sum[r][v];
        }
}

/* All rows of one strip of columns. */
__attribute__((always_inline)) static inline void strip(const struct operands *o, int64_t m, int64_t column,
                                                        const int rows, const int vectors) {
    int64_t i = 0;
    for (; i + rows <= m; i += rows)
        product(o, o->a + i * o->a_row, o->b + column, o->c + i * o->c_row + column, rows, vectors);
    for (; i + 2 <= m; i += 2) product(o, o->a + i * o->a_row, o->b + column, o->c + i * o->c_row + column, 2, vectors);
    if (i < m) product(o, o->a + i * o->a_row, o->b + column, o->c + i * o->c_row + column, 1, vectors);
}

#if defined(__AVX512F__)
enum { ROWS = 8, VECTORS = 2 };
#else
enum { ROWS = 4, VECTORS = 2 }; /* sixteen registers */
#endif

void NAME(attention_gemm)(int64_t m, int64_t n, int64_t k, const real *a, int64_t a_row, int64_t a_column,
                          const real *b, int64_t b_row, real *c, int64_t c_row, bool accumulate) {
    const struct operands o = {.k = k,
                               .a_row = a_row,
                               .a_column = a_column,
                               .b_row = b_row,
                               .c_row = c_row,
                               .a = a,
                               .b = b,
                               .c = c,
                               .accumulate = accumulate};
    int64_t column = 0;
    for (; column + VECTORS * VECTOR <= n; column += VECTORS * VECTOR) strip(&o, m, column, ROWS, VECTORS);
    for (; column < n; column += VECTOR) strip(&o, m, column, ROWS, 1);
}

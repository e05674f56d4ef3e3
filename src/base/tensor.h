/* A typed view of memory that somebody else owns. Above kernels/ nothing looks at `data`: it may lie on a device. */
#ifndef SQUINT_BASE_TENSOR_H
#define SQUINT_BASE_TENSOR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum dtype { DTYPE_F32 = 0, DTYPE_F64, DTYPE_BF16, DTYPE_F16, DTYPE_I32, DTYPE_U16, DTYPE_U32, DTYPE_I64, DTYPE_U8, DTYPE_U64 };

enum { TENSOR_MAX_RANK = 4 };

/* shape and stride count elements; the last stride is 1 (or the tensor is a broadcast: stride 0 where an operation says
 * that it allows it). A tensor without data ("none") stands for an absent optional argument. */
struct tensor {
    void *data;
    enum dtype dtype;
    int rank;
    int64_t shape[TENSOR_MAX_RANK];
    int64_t stride[TENSOR_MAX_RANK];
};

size_t dtype_size(enum dtype dtype);
const char *dtype_name(enum dtype dtype);

/* Contiguous views of `data` with 1 to 4 dimensions. */
struct tensor tensor_1d(void *data, enum dtype dtype, int64_t n0);
struct tensor tensor_2d(void *data, enum dtype dtype, int64_t n0, int64_t n1);
struct tensor tensor_3d(void *data, enum dtype dtype, int64_t n0, int64_t n1, int64_t n2);
struct tensor tensor_4d(void *data, enum dtype dtype, int64_t n0, int64_t n1, int64_t n2, int64_t n3);
struct tensor tensor_none(void);

bool tensor_present(struct tensor t);
int64_t tensor_count(struct tensor t); /* number of elements; 0 for none */
size_t tensor_bytes(struct tensor t);  /* tensor_count × dtype_size */
bool tensor_is_contiguous(struct tensor t);
bool tensor_same_shape(struct tensor a, struct tensor b);

/* Rows first … first+count−1 of dimension 0. */
struct tensor tensor_rows(struct tensor t, int64_t first, int64_t count);
/* Columns first … first+count−1 of the last dimension: a strided view. */
struct tensor tensor_columns(struct tensor t, int64_t first, int64_t count);
/* Entry `slot` of `count` sequences, from `first`, of a cache [B,S,heads,width]: a view [count,heads,width]. */
struct tensor tensor_slot(struct tensor cache, int64_t first, int64_t count, int64_t slot);
/* The same elements under another shape; `t` must be contiguous. */
struct tensor tensor_reshape(struct tensor t, int rank, const int64_t *shape);
/* Splits the rows and the columns of a possibly column-strided matrix [B·T, heads·D] into a view [B,T,heads,D]. */
struct tensor tensor_split_heads(struct tensor matrix, int64_t batch, int64_t length, int64_t heads, int64_t width);
/* Merges all but the last dimension of a contiguous tensor: [.., n] -> [N, n]. */
struct tensor tensor_as_rows(struct tensor t);
/* "[2,3,4] f32" into `text`. */
void tensor_describe(struct tensor t, char *text, size_t capacity);

#endif

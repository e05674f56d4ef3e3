/* What the files of huggingface*.c share: how one of squint's tensors is put together from transformers'. */
#ifndef SQUINT_IO_HUGGINGFACE_INTERNAL_H
#define SQUINT_IO_HUGGINGFACE_INTERNAL_H

#include "io/huggingface.h"

#include <jansson.h>

enum { HUGGINGFACE_MAX_PIECES = 3, HUGGINGFACE_CHUNK = 1 << 20 /* values that go through host memory at once */ };

/* Rows first_row … first_row+rows−1 of squint's tensor are transformers' tensor `name` (without "transformer." or
 * "model."), [columns,rows] when transposed. A one-dimensional tensor is a matrix of one column. */
struct huggingface_piece {
    char name[96];
    int64_t first_row, rows, columns;
    int rank;
    bool transposed;
};

/* The pieces of a teacher's row; count 0 for a row that transformers does not know (kinds', LoRA's). */
int huggingface_pieces(const struct model_config *model, const struct param *row,
                       struct huggingface_piece pieces[HUGGINGFACE_MAX_PIECES]);
/* "transformer." or "model.", which "lm_head.weight" goes without. */
const char *huggingface_prefix(const struct model_config *model, const char *name);
/* Buffers of old files that hold nothing learned. `name`: without prefix. */
bool huggingface_is_buffer(const struct model_config *model, const char *name);

/* config.json's text for a model; release with free(). */
enum status huggingface_write_config(const char *directory, const struct model_config *model);
/* squint.json and squint.safetensors, for a student whose kinds are not all `full`. */
enum status huggingface_write_student(const char *directory, const struct huggingface_save *what);

/* STATUS_DAMAGED/NOT_FOUND names the file; *json is an object. */
enum status huggingface_read_json(const char *path, json_t **json);
/* values (F32, `count` of them) -> rows `row`… of a table's tensor, converted to its dtype. wide: count doubles of
 * scratch, used when the table is F64. */
enum status huggingface_upload(const struct ops *ops, struct tensor to, float *values, double *wide, int64_t count);
/* The other way. */
enum status huggingface_download(const struct ops *ops, struct tensor from, float *values, double *wide, int64_t count);

#endif

/* The guard goes red: each row breaks one rule, by an inner table that misbehaves or by a caller that does, and expects
 * the guard's message. A row that passes unseen fails the test. */
#include "base/tensor.h"
#include "kernels/guard/guard.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

static const struct ops *real_table; /* what the broken functions call for the honest part of their work */

static enum status fill_short(const struct ops *ops, struct tensor x, double value) {
    (void)ops;
    return real_table->fill(real_table, tensor_rows(x, 0, x.shape[0] - 1), value);
}

static enum status fill_long(const struct ops *ops, struct tensor x, double value) {
    (void)ops;
    x.shape[0] += 1;
    return real_table->fill(real_table, x, value);
}

static enum status fill_early(const struct ops *ops, struct tensor x, double value) {
    (void)ops;
    x.data = (char *)x.data - 8;
    x.shape[0] += 1;
    return real_table->fill(real_table, x, value);
}

static enum status copy_spoils_input(const struct ops *ops, struct tensor from, struct tensor to) {
    (void)ops;
    ((double *)from.data)[1] += 1;
    return real_table->copy(real_table, from, to);
}

/* Writes the padding between the rows of a strided view. */
static enum status copy_spoils_gap(const struct ops *ops, struct tensor from, struct tensor to) {
    (void)ops;
    ((double *)to.data)[to.shape[1]] = 0;
    return real_table->copy(real_table, from, to);
}

static enum status log_softmax_reads_output(const struct ops *ops, struct tensor x, struct tensor y) {
    (void)ops;
    (void)x;
    return real_table->scale(real_table, 2, y);
}

static enum status log_softmax_fails(const struct ops *ops, struct tensor x, struct tensor y) {
    (void)ops;
    (void)x;
    (void)y;
    return error_set(STATUS_FAILED, "the device is lost");
}

static struct tensor make(const struct ops *ops, int64_t rows, int64_t columns) {
    struct tensor t = tensor_2d(NULL, DTYPE_F64, rows, columns);
    assert_int_equal(ops->allocate(ops, tensor_bytes(t), &t.data), STATUS_OK);
    for (int64_t i = 0; i < rows * columns; i++) ((double *)t.data)[i] = 1 + 0.25 * (double)i;
    return t;
}

static enum status call_fill(const struct ops *ops) {
    struct tensor t = make(ops, 3, 5);
    return ops->fill(ops, tensor_reshape(t, 1, (int64_t[]){15}), 2);
}

static enum status call_copy_strided(const struct ops *ops) {
    return ops->copy(ops, make(ops, 3, 4), tensor_columns(make(ops, 3, 7), 2, 4));
}

static enum status call_log_softmax(const struct ops *ops) {
    return ops->log_softmax(ops, make(ops, 3, 5), make(ops, 3, 5));
}

static enum status call_copy_overlapping(const struct ops *ops) {
    struct tensor all = make(ops, 4, 5);
    return ops->copy(ops, tensor_rows(all, 0, 3), tensor_rows(all, 1, 3));
}

static enum status call_copy_interleaved(const struct ops *ops) {
    struct tensor all = make(ops, 4, 8);
    return ops->copy(ops, tensor_columns(all, 0, 4), tensor_columns(all, 4, 4));
}

static enum status call_copy_columns_overlapping(const struct ops *ops) {
    struct tensor all = make(ops, 4, 8);
    return ops->copy(ops, tensor_columns(all, 0, 4), tensor_columns(all, 3, 4));
}

static enum status call_log_softmax_in_place(const struct ops *ops) {
    struct tensor x = make(ops, 3, 5);
    return ops->log_softmax(ops, x, x);
}

static enum status call_log_softmax_half_in_place(const struct ops *ops) {
    struct tensor x = make(ops, 4, 5);
    return ops->log_softmax(ops, tensor_rows(x, 0, 3), tensor_rows(x, 1, 3));
}

static enum status call_after_overrun(const struct ops *ops) {
    struct tensor t = make(ops, 2, 2);
    ((double *)t.data)[4] = 1;
    return ops->scale(ops, 1, make(ops, 2, 2));
}

static enum status call_after_bad_release(const struct ops *ops) {
    struct tensor t = make(ops, 2, 2);
    ((double *)t.data)[-1] = 1;
    ops->release(ops, t.data);
    return ops->synchronise(ops);
}

static enum status call_after_foreign_release(const struct ops *ops) {
    int on_stack;
    ops->release(ops, &on_stack);
    ops->release(ops, NULL);
    return ops->synchronise(ops);
}

static const struct row {
    const char *name;
    enum status (*fill)(const struct ops *, struct tensor, double);
    enum status (*copy)(const struct ops *, struct tensor, struct tensor);
    enum status (*log_softmax)(const struct ops *, struct tensor, struct tensor);
    enum status (*call)(const struct ops *);
    const char *message; /* part of the message; NULL: the call is right */
} rows[] = {
    {"honest fill", NULL, NULL, NULL, call_fill, NULL},
    {"honest strided copy", NULL, NULL, NULL, call_copy_strided, NULL},
    {"interleaved columns do not overlap", NULL, NULL, NULL, call_copy_interleaved, NULL},
    {"in place where allowed", NULL, NULL, NULL, call_log_softmax_in_place, NULL},
    {"output not written whole", fill_short, NULL, NULL, call_fill, "left element 14 of x unwritten"},
    {"write past the end", fill_long, NULL, NULL, call_fill, "fill wrote after a block of 120 bytes"},
    {"write before the start", fill_early, NULL, NULL, call_fill, "fill wrote before a block of 120 bytes"},
    {"input changed", NULL, copy_spoils_input, NULL, call_copy_strided, "copy wrote its input from"},
    {"gap of a view written", NULL, copy_spoils_gap, NULL, call_copy_strided, "copy wrote beside its output to"},
    {"output read", NULL, NULL, log_softmax_reads_output, call_log_softmax, "left element 0 of y unwritten (or read"},
    {"inner failure", NULL, NULL, log_softmax_fails, call_log_softmax, "the device is lost"},
    {"rows overlap", NULL, NULL, NULL, call_copy_overlapping, "copy: to overlaps from"},
    {"columns overlap", NULL, NULL, NULL, call_copy_columns_overlapping, "copy: to overlaps from"},
    {"shifted in place", NULL, NULL, NULL, call_log_softmax_half_in_place, "log_softmax: y overlaps x"},
    {"caller's overrun", NULL, NULL, NULL, call_after_overrun, "after a block of 32 bytes"},
    {"overrun of a released block", NULL, NULL, NULL, call_after_bad_release, "before a block of 32 bytes"},
    {"release of foreign memory", NULL, NULL, NULL, call_after_foreign_release, "was not allocated by this table"},
};

static void close_nothing(const struct ops *ops) {
    (void)ops;
}

static void broken_rules_are_named(void **state) {
    (void)state;
    assert_int_equal(ops_open("cpu-f64", NULL, &real_table), STATUS_OK);
    for (size_t r = 0; r < sizeof rows / sizeof rows[0]; r++) {
        const struct row *row = &rows[r];
        struct ops inner = *real_table;
        inner.close = close_nothing;
        if (row->fill) inner.fill = row->fill;
        if (row->copy) inner.copy = row->copy;
        if (row->log_softmax) inner.log_softmax = row->log_softmax;
        const struct ops *guard;
        assert_int_equal(guard_open(&inner, &guard), STATUS_OK);
        enum status status = row->call(guard);
        bool right =
            row->message ? status == STATUS_FAILED && strstr(error_message(), row->message) : status == STATUS_OK;
        if (!right) {
            print_error("%s: expected %s, found %s: %s\n", row->name, row->message ? row->message : "no fault",
                        status_name(status), error_message());
            fail();
        }
        error_clear();
        guard->close(guard);
    }
    real_table->close(real_table);
}

static void tables_open_by_name(void **state) {
    (void)state;
    const struct ops *ops;
    assert_int_equal(ops_open("tpu", NULL, &ops), STATUS_USAGE);
    assert_non_null(strstr(error_message(), "unknown operation table 'tpu'"));
    error_clear();
    assert_int_equal(ops_open("cpu", &(struct ops_options){.isa = "mmx"}, &ops), STATUS_USAGE);
    assert_non_null(strstr(error_message(), "'mmx'"));
    error_clear();
    assert_int_equal(ops_open("guard:cpu", &(struct ops_options){.threads = 2, .isa = "base"}, &ops), STATUS_OK);
    assert_string_equal(ops->name, "guard(cpu)");
    assert_non_null(strstr(ops->describe(ops), "cpu: x86-64, 2 threads, OpenBLAS"));
    assert_int_equal(ops->real, DTYPE_F32);
    struct ops device = *ops;
    device.host_memory = false;
    const struct ops *guard;
    assert_int_equal(guard_open(&device, &guard), STATUS_USAGE);
    error_clear();
    ops->close(ops);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(broken_rules_are_named),
        cmocka_unit_test(tables_open_by_name),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* Ranks that come late, or are elsewhere in the program: the others end with a message that names them, and every later
 * collective is refused. */
#include "base/log.h"
#include "comm/comm.h"
#include "comm/comm_internal.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

static struct comm *comm;
static struct comm_operation *volatile given_up; /* the library may still write into it: not a leak */

static void sleep_s(double seconds) {
    nanosleep(
        &(struct timespec){.tv_sec = (time_t)seconds, .tv_nsec = (long)(1e9 * (seconds - (double)(time_t)seconds))},
        NULL);
}

static void mend(void) {
    /* Only here, so that MPI can be ended in order: the ranks are in step again. */
    comm->faulted = false;
    while (comm->active) { /* MPI may still write into what was given up: it stays, and stays known */
        struct comm_operation *next = comm->active->next;
        comm->active->next = given_up;
        given_up = comm->active;
        comm->active = next;
    }
}

static void test_late(void **state) {
    (void)state;
    int last = comm_size(comm) - 1;
    int64_t x[3000] = {1};
    char expected[128];
    comm_set_step(comm, 12);
    assert_int_equal(comm_barrier(comm), STATUS_OK);
    if (comm_rank(comm) == last) {
        /* Comes after the others have given up; what they had sent is there, so it does not notice. */
        sleep_s(1.5);
        assert_int_equal(comm_all_reduce(comm, tensor_1d(x, DTYPE_I64, 3), COMM_SUM), STATUS_OK);
    } else {
        double begun_s = time_now_s();
        assert_int_equal(comm_all_reduce(comm, tensor_1d(x, DTYPE_I64, 3), COMM_SUM), STATUS_COMM);
        double waited_s = time_now_s() - begun_s;
        assert_true(waited_s > 0.45 && waited_s < 1.4);
        snprintf(expected, sizeof expected, "rank %d: all_reduce at step 12: waited 0.5 s for rank %d", comm_rank(comm),
                 last);
        assert_string_equal(error_message(), expected);
        error_clear();
        assert_int_equal(comm_barrier(comm), STATUS_COMM);
        assert_non_null(strstr(error_message(), "an earlier collective failed"));
        error_clear();
        sleep_s(2);
        mend();
    }
    comm->deadline_s = 60;
}

/* Ranks that are not at the same place in the program: each names what it misses, none takes the other's bytes. */
static void test_out_of_step(void **state) {
    (void)state;
    float x[4] = {1, 2, 3, 4};
    int64_t y = 0;
    int rank = comm_rank(comm);
    assert_int_equal(comm_barrier(comm), STATUS_OK);
    comm->deadline_s = 0.5;
    if (rank == 0) {
        assert_int_equal(comm_barrier(comm), STATUS_COMM);
        assert_non_null(strstr(error_message(), "barrier at step 12: waited 0.5 s for rank 1"));
    } else {
        assert_int_equal(comm_all_reduce(comm, tensor_1d(x, DTYPE_F32, 4), COMM_SUM), STATUS_COMM);
        assert_non_null(strstr(error_message(), "all_reduce at step 12: waited 0.5 s for rank 0"));
        assert_true(x[0] == 1 && x[3] == 4);
    }
    error_clear();
    comm->deadline_s = 60;
    mend();
    /* The same collective with other lengths. */
    assert_int_equal(comm_barrier(comm), STATUS_OK);
    comm->deadline_s = 0.5;
    assert_int_equal(rank == 0   ? comm_send_receive(comm, tensor_1d(x, DTYPE_F32, 1), 1, tensor_none(), -1)
                     : rank == 1 ? comm_send_receive(comm, tensor_none(), -1, tensor_1d(&y, DTYPE_I64, 1), 0)
                                 : comm_send_receive(comm, tensor_none(), -1, tensor_none(), -1),
                     rank == 1 ? STATUS_COMM : STATUS_OK);
    if (rank == 1) {
        assert_non_null(
            strstr(error_message(), "rank 1: send_receive at step 12: expected 8 bytes from rank 0, found 4"));
        error_clear();
        mend();
    }
    /* More bytes than there is room for. */
    comm->deadline_s = 60;
    assert_int_equal(comm_barrier(comm), STATUS_OK);
    comm->deadline_s = 0.5;
    assert_int_equal(rank == 0   ? comm_send_receive(comm, tensor_1d(x, DTYPE_F32, 4), 1, tensor_none(), -1)
                     : rank == 1 ? comm_send_receive(comm, tensor_none(), -1, tensor_1d(&y, DTYPE_I64, 1), 0)
                                 : comm_send_receive(comm, tensor_none(), -1, tensor_none(), -1),
                     rank == 1 ? STATUS_COMM : STATUS_OK);
    if (rank == 1) {
        assert_non_null(strstr(error_message(), "rank 1: send_receive at step 12: what comes from rank 0: "));
        error_clear();
        mend();
    }
    comm->deadline_s = 60;
}

int main(void) {
    if (comm_open(&(struct comm_options){.deadline_s = 0.5}, &comm) != STATUS_OK) {
        fprintf(stderr, "%s\n", error_message());
        return 1;
    }
    comm->deadline_s = 60; /* of the barrier that lines the ranks up */
    if (comm_barrier(comm) != STATUS_OK) return 1;
    comm->deadline_s = 0.5;
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_late), cmocka_unit_test(test_out_of_step)};
    int failures = cmocka_run_group_tests(tests, NULL, NULL);
    return comm_close(&comm) != STATUS_OK || failures;
}

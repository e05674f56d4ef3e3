/* What the files of `squint doctor` know of one another: a check looks at one thing on every rank at once and leaves a
 * finding on each. doctor.c runs the checks, puts the ranks' findings together and prints them. */
#ifndef SQUINT_COMMANDS_DOCTOR_H
#define SQUINT_COMMANDS_DOCTOR_H

#include "comm/comm.h"
#include "config/config.h"
#include "kernels/ops.h"

#include <stdbool.h>

enum level { LEVEL_OK, LEVEL_WARN, LEVEL_FAIL };

struct finding {
    int32_t level; /* enum level */
    char found[384], fix[384];
};

struct host {
    char name[64];
    int64_t process, address; /* whose memory a neighbour tries to read */
    int32_t node_rank, gpu;   /* gpu: this rank computes on one */
};

struct doctor {
    struct comm *comm;
    int rank, size, hosts_seen;
    struct host *hosts;          /* [size] */
    double *ahead_s, *there_s;   /* [size]: clock minus rank 0's; a message there and back */
    char launcher[128];          /* "mpirun", "srun", a program's name; "" without one */
    char launcher_version[64];   /* "4.1.4"; "" unknown */
    const char *run, *device;    /* as given */
    const struct config *config; /* NULL without a recipe */
    char place[1024];            /* an existing directory where the run's files are, or will be */
    const struct ops *ops;       /* the GPU's, or NULL */
};

/* Sets a finding, printf's text; a worse level that was set before stays. */
void finding_set(struct finding *finding, enum level level, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
/* What to do about it: the advice that belongs to the text that stands. */
void finding_fix(struct finding *finding, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* The fault that error_message() tells, which is forgotten. */
void finding_error(struct finding *finding, enum level level, const char *fix);

/* Every check is called by all ranks. A status other than OK ends the doctor: the ranks cannot talk any longer. */
typedef enum status doctor_check(struct doctor *doctor, struct finding *finding);

/* doctor_ranks.c: before MPI starts, who started this process; then the ranks among themselves. */
void doctor_find_launcher(struct doctor *doctor);
enum status doctor_gather_hosts(struct doctor *doctor);
doctor_check doctor_mpi, doctor_clock, doctor_transport;

/* doctor_machine.c: what each rank's machine gives it. */
doctor_check doctor_gpu, doctor_nccl, doctor_threads, doctor_memory, doctor_shared_memory, doctor_locked_memory,
    doctor_open_files, doctor_stack, doctor_core_files;

/* doctor_files.c: the run's directory and the data, from every rank. */
enum status doctor_find_place(struct doctor *doctor);
doctor_check doctor_disk, doctor_locks, doctor_hdf5, doctor_shared_files, doctor_data;

#endif

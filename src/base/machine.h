/* What this process may use of the machine that it runs on. */
#ifndef SQUINT_BASE_MACHINE_H
#define SQUINT_BASE_MACHINE_H

#include <stddef.h>

/* Threads for this process, one of `processes` alike on this machine: $OMP_NUM_THREADS when set; else the CPUs that it
 * may run on, divided by the processes that share them (a launcher that binds has divided them already). At least 1. */
int machine_threads(int processes);
/* Bytes that can still be had: MemAvailable, and less where the control group allows less. 0: unknown. */
double machine_memory_available(void);
/* Bytes of this process in memory, now and at most. 0: unknown. */
double machine_memory_now(void);
double machine_memory_peak(void);

#endif

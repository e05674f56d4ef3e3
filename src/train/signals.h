/* Requests to stop: SIGUSR1, SIGTERM and SIGINT are remembered, and the trainer stops at the next step's boundary. */
#ifndef SQUINT_TRAIN_SIGNALS_H
#define SQUINT_TRAIN_SIGNALS_H

#include <stdbool.h>

/* From now on the signals set the request instead of ending the process; a second SIGINT ends it. */
void signals_watch(void);
bool signals_stop_requested(void);
void signals_restore(void); /* what was before signals_watch; forgets the request */

#endif

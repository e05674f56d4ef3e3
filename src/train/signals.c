/* See signals.h. */
#include "train/signals.h"

#include <signal.h>
#include <stddef.h>

static const int watched[] = {SIGUSR1, SIGTERM, SIGINT};
enum { WATCHED = sizeof watched / sizeof *watched };
static struct sigaction before[WATCHED];
static volatile sig_atomic_t stop_requested, watching;

static void request_stop(int number) {
    (void)number;
    stop_requested = 1;
}

void signals_watch(void) {
    if (watching) return;
    for (int i = 0; i < WATCHED; i++) {
        struct sigaction action = {.sa_handler = request_stop, .sa_flags = SA_RESTART};
        if (watched[i] == SIGINT) action.sa_flags |= (int)SA_RESETHAND;
        sigaction(watched[i], &action, &before[i]);
    }
    watching = 1;
}

bool signals_stop_requested(void) {
    return stop_requested != 0;
}

void signals_restore(void) {
    if (!watching) return;
    for (int i = 0; i < WATCHED; i++) sigaction(watched[i], &before[i], NULL);
    watching = 0;
    stop_requested = 0;
}

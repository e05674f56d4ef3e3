/* What a person reads while work goes on: standard error, from rank 0 only, with a progress line on a terminal. */
#ifndef SQUINT_BASE_LOG_H
#define SQUINT_BASE_LOG_H

#include <stdbool.h>
#include <stdint.h>

/* `rank`: only rank 0 prints. `quiet`: nothing but warnings. */
void log_start(int rank, bool quiet);
/* From now on rank 0's lines go to `path` as well (appended; without the redrawing of progress). NULL ends it. A file that cannot be
 * written is left out: a log is no reason to stop. */
void log_keep(const char *path);
/* A line. The newline is added. */
void log_line(const char *format, ...) __attribute__((format(printf, 1, 2)));
void log_warning(const char *format, ...) __attribute__((format(printf, 1, 2))); /* "warning: …", any rank */

/* Progress of one piece of work. On a terminal one line is redrawn at most ten times a second; elsewhere a plain line
 * appears at most every ten seconds and at the end. */
struct log_progress {
    const char *label; /* e.g. "distil" */
    int64_t total;     /* 0: unknown, no ETA */
    int64_t first;     /* where a resumed piece of work began: the ETA counts from there */
    double started_s;
    double printed_s;
};
void log_progress_start(struct log_progress *progress, const char *label, int64_t first, int64_t total);
/* `detail`: figures to show, e.g. "kl 0.0412  |g| 0.31". */
void log_progress_show(struct log_progress *progress, int64_t done, const char *detail);
void log_progress_end(struct log_progress *progress, int64_t done, const char *detail);

double time_now_s(void); /* monotonic seconds */
/* "1m 02s", "3h 04m" into text[16]. */
void time_text(double seconds, char text[16]);
/* "214 MiB" into text[16]. */
void bytes_text(double bytes, char text[16]);
/* "260,032" into text[32]. */
void count_text(int64_t count, char text[32]);

#endif

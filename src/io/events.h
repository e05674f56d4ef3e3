/* TensorBoard event files: scalars only. Owns the format (records with masked CRC-32C around hand-written protobuf). */
#ifndef SQUINT_IO_EVENTS_H
#define SQUINT_IO_EVENTS_H

#include "base/error.h"

#include <stddef.h>
#include <stdint.h>

struct events;

/* Makes `directory`/events.out.tfevents.SECONDS.HOST.PID.N and writes its version record. first_step >= 0: a run that
 * goes on; TensorBoard then forgets what earlier files say of this step and later ones. */
enum status events_open(const char *directory, int64_t first_step, struct events **events);
struct events_scalar {
    const char *tag;
    double value; /* kept as a float */
};
/* One event: `count` scalars of one step, in one write. wall_s: seconds since 1970; 0: now. */
enum status events_write(struct events *events, int64_t step, double wall_s, const struct events_scalar *scalars,
                         size_t count);
enum status events_close(struct events **events); /* NULL-safe, twice-safe */

/* CRC-32C (Castagnoli, reflected 0x82f63b78) of `length` bytes. */
uint32_t events_crc32c(const void *data, size_t length);

#endif

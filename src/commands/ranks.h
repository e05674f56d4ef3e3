/* Which rank says what, when a command fails under a launcher. */
#ifndef SQUINT_COMMANDS_RANKS_H
#define SQUINT_COMMANDS_RANKS_H

#include "base/error.h"

/* Before a command returns `status` on rank `rank`. A failure that the ranks have agreed on is rank 0's to tell, once
 * for all: the others forget its message. A lost or late rank (STATUS_COMM) may be rank 0, and the others no longer
 * know of each other: each says what it has seen. */
void ranks_leave_message(int rank, enum status status);

#endif

/* See ranks.h. */
#include "commands/ranks.h"

void ranks_leave_message(int rank, enum status status) {
    if (rank != 0 && status != STATUS_COMM) error_clear();
}

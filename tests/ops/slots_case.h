/* Lists of slots for decoding, of any table, against their definition: shared by the CPU's tests, those that execute
 * kernels on the host and those on a GPU. */
#ifndef SQUINT_TESTS_OPS_SLOTS_CASE_H
#define SQUINT_TESTS_OPS_SLOTS_CASE_H

#include "kernels/ops.h"

/* Chosen slots and chosen blocks, fewer and more than threads; without sinks, window or choice; documents of one token.
 */
void slot_lists_agree(const struct ops *ops);
/* Choices and places that are none: slots of the cache, no more than there is room for. For tables that look at nothing
 * on the host, too. */
void slot_lists_survive(const struct ops *ops);

#endif

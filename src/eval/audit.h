/* The audit of a student's branches: what the model loses when one of them is switched off, in every layer that has it.
 * A branch that can go without loss does nothing. */
#ifndef SQUINT_EVAL_AUDIT_H
#define SQUINT_EVAL_AUDIT_H

#include "model/model.h"

enum { AUDIT_BRANCHES_MAX = 32 };

struct audit {
    char names[AUDIT_BRANCHES_MAX][ATTENTION_BRANCH_NAME];
    size_t count;
};

/* The different branches of the model's layers, in the order of their first layer; those past the maximum are left out.
 */
void audit_list(const struct model *model, struct audit *audit);
/* Switches the branch called `name` off in every layer that has it and all others on; NULL: all on. Before plans and
 * caches are opened. */
enum status audit_switch(struct model *model, const char *name);

#endif

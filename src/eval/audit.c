/* See audit.h. */
#include "eval/audit.h"

#include <stdio.h>
#include <string.h>

static bool listed(const struct audit *audit, const char *name) {
    for (size_t i = 0; i < audit->count; i++) {
        if (strcmp(audit->names[i], name) == 0) return true;
    }
    return false;
}

void audit_list(const struct model *model, struct audit *audit) {
    *audit = (struct audit){.count = 0};
    for (int64_t l = 0; l < model->config.layers; l++) {
        const struct attention_layer *layer = &model->layers[l];
        char name[ATTENTION_BRANCH_NAME];
        for (int branch = 0; layer->kind->branch_name && layer->kind->branch_name(layer, branch, name); branch++) {
            if (audit->count == AUDIT_BRANCHES_MAX || listed(audit, name)) continue;
            memcpy(audit->names[audit->count++], name, sizeof name);
        }
    }
}

enum status audit_switch(struct model *model, const char *off) {
    for (int64_t l = 0; l < model->config.layers; l++) {
        struct attention_layer *layer = &model->layers[l];
        char name[ATTENTION_BRANCH_NAME];
        uint32_t branches = 0;
        if (!layer->kind->branch_name) continue;
        for (int branch = 0; layer->kind->branch_name(layer, branch, name); branch++) {
            if (off && strcmp(name, off) == 0) branches |= 1u << branch;
        }
        TRY(layer->kind->switch_off(layer, branches));
    }
    return STATUS_OK;
}

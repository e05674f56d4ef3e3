/* A recipe from text to struct config: tree, sections, what follows, checks, resolved text. See config.h. */
#include "base/file.h"
#include "base/memory.h"
#include "config/keys.h"

#include <stdlib.h>
#include <string.h>

/* Sections that are one map each; their keys lie in struct config itself. */
static const char *const map_sections[] = {"data", "train", "parallel", "checkpoint", "eval"};
enum { MAP_SECTIONS = sizeof map_sections / sizeof *map_sections };

static enum status read_stages(const char *path, const struct config_node *list, struct config *config) {
    char place[256], label[64];
    config_node_place(path, list, place, sizeof place);
    if (!list || list->type != NODE_LIST || list->count == 0) {
        return error_set(STATUS_USAGE, "%s: stages: expected a list of at least one stage, found %s", place,
                         !list                     ? "none"
                         : list->type == NODE_LIST ? "an empty one"
                                                   : config_node_what(list));
    }
    TRY(memory_new(list->count, sizeof *config->stages, "stages", &config->stages));
    config->stage_count = list->count;
    for (size_t i = 0; i < list->count; i++) {
        const struct config_node *item = &list->items[i];
        const struct config_node *name = item->type == NODE_MAP ? config_node_find(item, "name") : NULL;
        config->stages[i].line = item->line;
        memset(label, 0, sizeof label);
        strcpy(label, "stages.");
        strncat(label, name && name->text ? name->text : "N", sizeof label - strlen(label) - 1);
        TRY(config_section_read("stages", label, path, item, NULL, &config->stages[i]));
    }
    return STATUS_OK;
}

static enum status read_student(const char *path, const struct config_node *student, struct config *config) {
    static const char *const known[] = {"attention", NULL};
    TRY(config_section_read("student", "student", path, student, known, config));
    const struct config_node *list = config_node_find(student, "attention");
    return list ? config_attention_read(path, list, config) : STATUS_OK;
}

static enum status read_tree(const char *path, const struct config_node *root, struct config *config) {
    static const char *const sections[] = {"data",         "train",   "parallel", "checkpoint", "eval",
                                           "from_scratch", "student", "stages",   NULL};
    TRY(config_section_read("", "", path, root, sections, config));
    for (size_t i = 0; i < MAP_SECTIONS; i++) {
        const struct config_node *map = config_node_find(root, map_sections[i]);
        TRY(config_section_read(map_sections[i], map_sections[i], path, map, NULL, config));
    }
    const struct config_node *scratch = config_node_find(root, "from_scratch");
    if (scratch) {
        config->from_scratch = true;
        TRY(config_section_read("from_scratch", "from_scratch", path, scratch, NULL, config));
    }
    const struct config_node *student = config_node_find(root, "student");
    if (student) TRY(read_student(path, student, config));
    return read_stages(path, config_node_find(root, "stages"), config);
}

enum status config_parse(const char *path, const char *text, size_t length, const char *const *overrides,
                         size_t override_count, struct config *config) {
    enum status status = STATUS_OK;
    struct config_node root = {0};
    *config = (struct config){0};
    TRY_GOTO(done, memory_copy_text(path, &config->path));
    TRY_GOTO(done, config_tree_parse(path, text, length, &root));
    if (root.type != NODE_MAP) {
        status = error_set(STATUS_USAGE, "%s: expected a map of keys, found %s", path, config_node_what(&root));
        goto done;
    }
    for (size_t i = 0; i < override_count; i++) TRY_GOTO(done, config_tree_override(&root, overrides[i]));
    TRY_GOTO(done, read_tree(path, &root, config));
    TRY_GOTO(done, config_resolve(config));
    TRY_GOTO(done, config_check(config));
    TRY_GOTO(done, config_write_text(config));
done:
    config_tree_free(&root);
    if (status != STATUS_OK) config_free(config);
    return status;
}

enum status config_read(const char *path, const char *const *overrides, size_t override_count, struct config *config) {
    char *text = NULL;
    size_t length = 0;
    *config = (struct config){0};
    TRY(file_read(path, &text, &length));
    enum status status = config_parse(path, text, length, overrides, override_count, config);
    free(text);
    return status;
}

void config_free(struct config *config) {
    if (!config) return;
    config_section_free("", config);
    config_section_free("data", config);
    for (size_t i = 0; i < config->stage_count; i++) config_section_free("stages", &config->stages[i]);
    free(config->stages);
    config_attention_free(config);
    free(config->path);
    free(config->text);
    *config = (struct config){0};
}

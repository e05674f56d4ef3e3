/* transformers' names and layouts of squint's tensors; see huggingface_internal.h. */
#include "io/huggingface_internal.h"

#include <stdio.h>
#include <string.h>

/* A linear layer or norm inside a layer: squint's name and transformers'. */
struct part {
    const char *ours;
    const char *theirs[HUGGINGFACE_MAX_PIECES];
};

/* GPT-2's linear layers are Conv1D: weights [in,out]. */
static const struct part gpt2_parts[] = {
    {"norm1", {"ln_1"}},
    {"norm2", {"ln_2"}},
    {"attn.qkv", {"attn.c_attn"}},
    {"attn.out", {"attn.c_proj"}},
    {"mlp.up", {"mlp.c_fc"}},
    {"mlp.down", {"mlp.c_proj"}},
    {NULL, {NULL}},
};
static const struct part llama_parts[] = {
    {"norm1", {"input_layernorm"}},
    {"norm2", {"post_attention_layernorm"}},
    {"attn.qkv", {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"}},
    {"attn.out", {"self_attn.o_proj"}},
    {"mlp.up", {"mlp.gate_proj", "mlp.up_proj"}},
    {"mlp.down", {"mlp.down_proj"}},
    {NULL, {NULL}},
};
static const struct {
    const char *ours, *gpt2, *llama;
} globals[] = {{"wte", "wte.weight", "embed_tokens.weight"},
               {"wpe", "wpe.weight", NULL},
               {"norm.weight", "ln_f.weight", "norm.weight"},
               {"norm.bias", "ln_f.bias", NULL},
               {"head.weight", "lm_head.weight", "lm_head.weight"}};

const char *huggingface_prefix(const struct model_config *model, const char *name) {
    if (strcmp(name, "lm_head.weight") == 0) return "";
    return model->type == MODEL_GPT2 ? "transformer." : "model.";
}

bool huggingface_is_buffer(const struct model_config *model, const char *name) {
    static const char *const gpt2[] = {".attn.bias", ".attn.masked_bias", NULL};
    static const char *const llama[] = {".rotary_emb.inv_freq", NULL};
    const char *const *endings = model->type == MODEL_GPT2 ? gpt2 : llama;
    size_t length = strlen(name);
    for (; *endings; endings++) {
        size_t ending = strlen(*endings);
        if (length > ending && strcmp(name + length - ending, *endings) == 0) return true;
    }
    return false;
}

/* Rows of piece `index` of a part. */
static int64_t piece_rows(const struct model_config *model, const struct param *row, const struct part *part,
                          int index) {
    if (!part->theirs[1]) return row->shape[0];
    if (!part->theirs[2]) return model->mlp_width;
    return (index == 0 ? model->heads : model->kv_heads) * model->head_width;
}

static int layer_pieces(const struct model_config *model, const struct param *row, struct huggingface_piece *pieces) {
    const struct part *part = model->type == MODEL_GPT2 ? gpt2_parts : llama_parts;
    char name[64];
    long long layer;
    int used = 0, count = 0;
    if (sscanf(row->name, "h.%lld.%n", &layer, &used) != 1 || used == 0) return 0;
    const char *last = strrchr(row->name, '.') + 1; /* weight or bias */
    if (strcmp(last, "weight") != 0 && strcmp(last, "bias") != 0) return 0;
    snprintf(name, sizeof name, "%.*s", (int)(last - 1 - (row->name + used)), row->name + used);
    while (part->ours && strcmp(part->ours, name) != 0) part++;
    for (int64_t first = 0; part->ours && count < HUGGINGFACE_MAX_PIECES && part->theirs[count]; count++) {
        struct huggingface_piece *piece = &pieces[count];
        *piece = (struct huggingface_piece){
            .first_row = first, .rank = row->rank, .columns = row->rank == 2 ? row->shape[1] : 1};
        piece->rows = piece_rows(model, row, part, count);
        piece->transposed = model->type == MODEL_GPT2 && row->rank == 2;
        snprintf(piece->name, sizeof piece->name, "%s.%lld.%s.%s", model->type == MODEL_GPT2 ? "h" : "layers", layer,
                 part->theirs[count], last);
        first += piece->rows;
    }
    return count;
}

int huggingface_pieces(const struct model_config *model, const struct param *row,
                       struct huggingface_piece pieces[HUGGINGFACE_MAX_PIECES]) {
    if (row->added || row->lora) return 0;
    for (size_t i = 0; i < sizeof globals / sizeof *globals; i++) {
        const char *theirs = model->type == MODEL_GPT2 ? globals[i].gpt2 : globals[i].llama;
        if (strcmp(row->name, globals[i].ours) != 0 || !theirs) continue;
        pieces[0] = (struct huggingface_piece){
            .rows = row->shape[0], .rank = row->rank, .columns = row->rank == 2 ? row->shape[1] : 1};
        snprintf(pieces[0].name, sizeof pieces[0].name, "%s", theirs);
        return 1;
    }
    return layer_pieces(model, row, pieces);
}

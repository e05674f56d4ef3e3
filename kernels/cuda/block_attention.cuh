/* Attention to chosen blocks of keys and to a window. The window's part is attention's own (attention.cuh). The chosen
 * part has its loops exchanged, so that tiles are full though every query reads blocks of its own (Yan et al. 2025,
 * arXiv 2508.18224): a tile takes one block of keys and as many of the rows that chose it as it holds. A row is one
 * head of one query. Of the blocks that a query chose it reads here what lies behind its window: each token counts
 * once. What a tile finds for a row is a partial result of (query, head, slot of the list); those of a chunk of queries
 * lie in scratch memory until a later kernel has joined them. */
#ifndef SQUINT_KERNELS_CUDA_BLOCK_ATTENTION_CUH
#define SQUINT_KERNELS_CUDA_BLOCK_ATTENTION_CUH

#include "kernels/cuda/attention_tile.cuh"
#include "kernels/cuda/documents.cuh"
#include "kernels/cuda/inverted.cuh"

struct block_problem {
    attention_view q, k, v, o;
    float *log_sums;           /* [B,H,T] */
    document_blocks documents; /* blocks of keys */
    const int32_t *limit;      /* [B,T] one past the last block, by its number in the sequence, that begins behind the
                                * query's window */
    const int32_t *chosen;     /* [B,T,S,n] */
    inverted_lists inverted;   /* entries: query · n + slot */
    int64_t batch;
    int length, heads, groups, lists, select, width, window, block;
    int run; /* heads, side by side, that share their list and their key head: run · n … run · n + run − 1 */
    float scale, scale_log2 /* scale · log2 e */;
};

/* Lists (numbers b · S + s) and queries whose partial results are in memory together. */
struct block_chunk {
    int64_t first_pair;
    int pairs, first, rows;
};

/* What tiles a chunk needs. A block's tiles are neighbours, and blocks ascend. */
struct block_items {
    const int2 *ranges;    /* [pairs, bound] the block's entries of the chunk: the first, one past the last */
    const int32_t *before; /* [rows, bound + 1] tiles of earlier blocks; at the number of blocks: of all. A row: a list
                            * of the chunk, or a key head */
};

/* --- the host's side (block_plan.cu) --- */

/* Where no query can choose anything. */
inline bool block_chooses(const struct block_attention *a) {
    return tensor_present(a->chosen) && a->chosen.shape[3] > 0;
}
/* The window's part as a problem of attention. */
struct attention block_window(const struct block_attention *a);

/* Bytes that block_plan wants at `memory`, a multiple of 256. */
size_t block_plan_bytes(const struct block_attention *a);
/* Fills `p` and starts the kernels that find blocks and invert lists in `memory` (NULL: only fills what does not lie
 * there). STATUS_SHAPE: too wide, too long, too many. */
enum status block_plan(const struct ops *ops, const char *operation, const struct block_attention *a, char *memory,
                       block_problem *p);

/* Chunks of so many lists and queries at a time that partial results of slot_bytes for each slot and head stay below a
 * budget; first_pair and first are 0. */
block_chunk block_chunk_most(const block_problem &p, size_t slot_bytes);
/* Rows of partial results in a chunk. */
inline int64_t block_chunk_slots(const block_problem &p, const block_chunk &chunk) {
    return static_cast<int64_t>(chunk.pairs) * (p.heads / p.lists) * chunk.rows * p.select;
}
/* body(chunk) for every chunk, until one fails. */
template <class Body> enum status for_chunks(const block_problem &p, const block_chunk &most, Body body) {
    for (int64_t pair = 0; pair < p.batch * p.lists; pair += most.pairs)
        for (int first = 0; first < p.length; first += most.rows) {
            block_chunk chunk = most;
            chunk.first_pair = pair;
            chunk.first = first;
            if (chunk.pairs > p.batch * p.lists - pair) chunk.pairs = static_cast<int>(p.batch * p.lists - pair);
            if (chunk.rows > p.length - first) chunk.rows = p.length - first;
            TRY(body(chunk));
        }
    return STATUS_OK;
}

/* Bytes of the items of `pairs` lists, or of all lists and key heads (by_keys). */
size_t block_items_bytes(const block_problem &p, int64_t pairs, bool by_keys);
/* *most: no row has more items than that. tile_rows: rows of queries that a tile holds. by_keys: of key heads, of all
 * lists that their heads read, list after list; key_rows: keys of a block that a tile holds, and all tiles of its first
 * keys come first. STATUS_SHAPE: too many. */
enum status block_items_most(const char *operation, const block_problem &p, const block_chunk &chunk, int tile_rows,
                             bool by_keys, int key_rows, int64_t *most);
/* The same, and starts the kernels that find the items in `memory`. */
enum status block_items_find(const struct ops *ops, const char *operation, const block_problem &p,
                             const block_chunk &chunk, int tile_rows, bool by_keys, int key_rows, char *memory,
                             block_items *items, int64_t *most);

/* How many thread blocks divide the items of one of `rows` units of work among themselves. */
int block_parts(const struct ops *ops, int64_t rows, int64_t most_items);

/* dk, dv += the chosen part's, from g's records, d_o, dk and dv, in `memory` of block_keys_bytes: block_keys.cu. */
enum status block_keys_bytes(const struct ops *ops, const block_problem &p, size_t *bytes);
enum status block_keys(const struct ops *ops, const block_problem &p, const attention_gradient &g, char *memory);

/* --- the kernels' side --- */

/* Joining a chunk's partial results: a warp has a head of a query, number n of them. */
constexpr int join_threads = 128;
struct joined_row {
    int64_t b;
    int i, list, head;
};
__device__ inline joined_row joined_row_of(const block_problem &p, const block_chunk &chunk, int64_t n) {
    const int of_list = p.heads / p.lists;
    const int64_t pair = chunk.first_pair + n / chunk.rows / of_list;
    const int list = static_cast<int>(pair % p.lists);
    return joined_row{pair / p.lists, chunk.first + static_cast<int>(n % chunk.rows), list,
                      list * of_list + static_cast<int>(n / chunk.rows % of_list)};
}

/* Floats from one partial result to the next. */
__host__ __device__ inline int partial_width(const block_problem &p) {
    return (p.width + 3) / 4 * 4;
}

/* Whether slot s of a query's list names a block that it reads here; entries of inverted lists are just these. row:
 * b·T + i. */
__device__ inline bool slot_is_read(const block_problem &p, int64_t row, int list, int s) {
    const int number = p.chosen[(row * p.lists + list) * p.select + s];
    return number >= 0 && int64_t{number} + p.documents.base[row] < p.limit[row];
}

/* A block of keys: its first token, how many it has. */
__device__ inline int2 block_tokens(const block_problem &p, int64_t b, int key) {
    const int first = p.documents.first[b * p.documents.bound + key];
    return make_int2(first, min(p.block, p.documents.end[b * p.length + first] - first));
}

/* The last n of 0 … count − 1 with before[n] <= item; before[0] is 0. By all lanes of a warp. */
__device__ inline int find_before(const int32_t *before, int count, int item) {
    const int lane = static_cast<int>(threadIdx.x % 32);
    int low = 0, end = count;
    while (end - low > 1) {
        const int step = (end - low + 31) / 32, at = low + lane * step;
        const int passed = __popc(__ballot_sync(whole_warp, at < end && before[at] <= item));
        low += (passed - 1) * step;
        end = min(end, low + step);
    }
    return low;
}

/* One thread block's share of a row's items: they are successive, and so a block of keys is loaded once. */
struct item_walk {
    const int32_t *before;
    int blocks, item, end;
    int key, key_first, key_end; /* the item's block, the block's items */
};
__device__ inline item_walk walk_items(const int32_t *before, int blocks, int part, int parts) {
    const int64_t items = before[blocks];
    return item_walk{
        before, blocks, static_cast<int>(items * part / parts), static_cast<int>(items * (part + 1) / parts), -1, 0, 0};
}
/* Before each item: whether it is of another block than the one before it. By all lanes. */
__device__ inline bool walk_enter(item_walk &walk) {
    if (walk.item < walk.key_end) return false;
    walk.key = find_before(walk.before, walk.blocks, walk.item);
    walk.key_first = walk.before[walk.key];
    walk.key_end = walk.before[walk.key + 1];
    return true;
}

/* A row of a tile. columns: how many keys of the block it reads, the first ones; 0: there is no such row. place: of its
 * partial result. */
struct chosen_row {
    int query, head, columns;
    int64_t place;
};

/* Rows tile · ROWS … of a block that heads first_head … first_head + run − 1 read by the pair's entries `range`; pair:
 * number in the chunk. By threads 0 … ROWS − 1 of a block. */
template <int ROWS>
__device__ inline void find_rows(const block_problem &p, const block_chunk &chunk, int pair, int2 range, int tile,
                                 int first_head, int2 tokens, chosen_row *rows) {
    const int r = static_cast<int>(threadIdx.x);
    if (r >= ROWS) return;
    const int64_t at = static_cast<int64_t>(tile) * ROWS + r, entry = range.x + at / p.run;
    chosen_row row = {0, first_head, 0, 0};
    if (entry < range.y) {
        const int found = p.inverted.entries[(chunk.first_pair + pair) * p.inverted.room + entry];
        row.query = found / p.select;
        row.head = first_head + static_cast<int>(at % p.run);
        row.columns = max(0, min(tokens.y, row.query - p.window - tokens.x + 1));
        const int of_list = p.heads / p.lists;
        row.place =
            ((static_cast<int64_t>(pair) * of_list + row.head % of_list) * chunk.rows + row.query - chunk.first) *
                p.select +
            found % p.select;
    }
    rows[r] = row;
}

/* What the backward pass knows of a row: log2 of its normaliser, and delta. By the thread that found the row. */
__device__ inline float2 row_record(const block_problem &p, const attention_record *records, int64_t b,
                                    const chosen_row &row) {
    if (row.columns == 0) return make_float2(INFINITY, 0.0f);
    const attention_record record = records[(b * p.heads + row.head) * p.length + row.query];
    return make_float2(record.z, record.delta);
}

/* tile [ROWS][STRIDE] = the rows of one sequence's `from`; zeros where there is none and after column width − 1. By all
 * of THREADS; complete as load_rows is. */
template <int ROWS, int D, int STRIDE, int THREADS, class T>
__device__ inline void load_chosen(T *tile, const T *from, const attention_view &view, const chosen_row *rows,
                                   int width) {
    constexpr int each = pack_width<T>, packs = D / each;
    if (view.vector) {
        for (int n = static_cast<int>(threadIdx.x); n < ROWS * packs; n += THREADS) {
            const int r = n / packs, column = n % packs * each;
            const chosen_row row = rows[r];
            const bool valid = row.columns > 0 && column < width;
            copy_async(tile + r * STRIDE + column,
                       valid ? from + row.query * view.token + row.head * view.head + column : from, valid);
        }
        return;
    }
#pragma unroll 1
    for (int n = static_cast<int>(threadIdx.x); n < ROWS * D; n += THREADS) {
        const int r = n / D, column = n % D;
        const chosen_row row = rows[r];
        const bool valid = row.columns > 0 && column < width;
        tile[r * STRIDE + column] =
            valid ? from[row.query * view.token + row.head * view.head + column] : from_float<T>(0.0f);
    }
}

/* A warp's sums [16·TILES x D] to the partial results of their rows; rows: the warp's. */
template <int TILES, int D>
__device__ inline void store_partial(float *partial, int step, const chosen_row *rows,
                                     const float (&sums)[TILES][D / 8][4]) {
#pragma unroll
    for (int tile = 0; tile < TILES; tile++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const chosen_row &row = rows[tile * 16 + 8 * half + lane_row()];
            if (row.columns == 0) continue;
            float *to = partial + row.place * step;
#pragma unroll
            for (int n = 0; n < D / 8; n++) {
                const int column = n * 8 + lane_column();
                if (column >= step) break;
                const float pair[2] = {sums[tile][n][2 * half], sums[tile][n][2 * half + 1]};
                store_pack<2>(to + column, pair);
            }
        }
}

#endif

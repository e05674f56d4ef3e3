/* Learning to choose blocks: what its kernels share. For a chunk of queries and lists there is one row of numbers of
 * selection blocks for the teacher's mass and one for the importance, which becomes the gradient by the importance;
 * scores are made a tile at a time, by every kernel that needs them. */
#ifndef SQUINT_KERNELS_CUDA_BLOCK_MASS_CUH
#define SQUINT_KERNELS_CUDA_BLOCK_MASS_CUH

#include "kernels/cuda/attention_tile.cuh"
#include "kernels/cuda/documents.cuh"

struct mass_problem {
    attention_view teacher_q, teacher_k, own_q, compressed, d_own_q;
    document_blocks selection, coarse; /* selection blocks, compressed blocks */
    const float *teacher_sums;         /* [B,H,T] log Z of the teacher's scores */
    const float *log_sums;             /* [B,H,T] of the compressed blocks' */
    float *losses;                     /* [B,S,T], S = H / together */
    float *d_compressed;               /* [B,Nb,G,D] lacks its factor; NULL: not wanted */
    int64_t batch, pitch /* of rows of numbers, in elements */, places /* Nb */;
    int length, heads, groups, lists, together, width;
    int compress, stride, block, overlap, units; /* tokens; compress and block in strides */
    float scale_log2 /* scale · log2 e */, factor /* of gradients: scale · gradient_scale */;
};

/* Lists (numbers b · S + s) and queries that are in work together, and their rows: number · rows + query − first. */
struct mass_chunk {
    int64_t first_pair;
    int pairs, first, rows;
    float *masses, *importance; /* [pairs · rows][pitch] */
    float *inner;               /* [pairs · rows · together], heads before rows: Σ_c p_c dp_c of a head */
};

template <class T, int D> struct mass_shape;
template <> struct mass_shape<bf16, 64> { using shape = tile_shape<bf16, 64, 4, 1, 64>; };
template <> struct mass_shape<bf16, 128> { using shape = tile_shape<bf16, 128, 4, 1, 64>; };
template <> struct mass_shape<bf16, 256> { using shape = tile_shape<bf16, 256, 4, 1, 32>; };
template <int D> struct mass_shape<float, D> {
    using shape = tile_shape<float, D, D == 256 ? 2 : 4, 1, D == 256 ? 16 : 32>;
};

/* Of one query: its document's first token, first selection block and first compressed block, and how many compressed
 * blocks it sees. A row that is none sees nothing: its document begins behind every token. */
struct mass_query {
    int begin, selection, coarse, visible;
};
__device__ inline mass_query find_query(const mass_problem &p, int64_t b, int i, int end) {
    if (i >= end) return mass_query{INT_MAX, 0, 0, 0};
    const int64_t at = b * p.length + i;
    const int begin = p.coarse.begin[at];
    return mass_query{begin, p.selection.base[at], p.coarse.base[at],
                      whole_blocks(i - begin + 1, p.compress, p.stride)};
}

/* Selection blocks that the first `visible` compressed blocks of a document overlap. */
__device__ inline int known_blocks(const mass_problem &p, int visible) {
    return visible == 0 ? 0 : (visible + p.overlap - 2) / p.units + 1;
}

/* Σ over the strides of the document's compressed block u of the gradient of the selection block that each lies in. */
__device__ inline float block_gradient(const mass_problem &p, const float *d_importance, int u) {
    int n = u / p.units, here = min(p.units - u % p.units, p.overlap);
    float sum = 0.0f;
    for (int left = p.overlap; left > 0; here = min(p.units, left)) {
        sum += static_cast<float>(here) * d_importance[n++];
        left -= here;
    }
    return sum;
}

/* The tile, list of the chunk and head of it that a thread block of a grid [pairs][heads][tiles] takes; tiles of later
 * queries, which have more to do, come first. */
struct mass_place {
    int64_t b;
    int pair, list, head, first, end; /* head: of all; queries first … end − 1 */
};
template <int ROWS>
__device__ inline mass_place place_mass(const mass_problem &p, const mass_chunk &chunk, int heads, int64_t id) {
    const int tiles = (chunk.rows + ROWS - 1) / ROWS, units = chunk.pairs * heads;
    const int tile = tiles - 1 - static_cast<int>(id / units), unit = static_cast<int>(id % units);
    mass_place place = {};
    place.pair = unit / heads;
    place.b = (chunk.first_pair + place.pair) / p.lists;
    place.list = static_cast<int>((chunk.first_pair + place.pair) % p.lists);
    place.head = place.list * p.together + unit % heads;
    place.first = chunk.first + tile * ROWS;
    place.end = min(place.first + ROWS, chunk.first + chunk.rows);
    return place;
}

/* Gradients of own_q, and into p.d_compressed, of a chunk whose importance is its gradient: block_mass_gradient.cu. */
enum status mass_gradients(const struct ops *ops, const mass_problem &p, const mass_chunk &chunk);
/* d_compressed += factor · p.d_compressed. */
enum status mass_finish(const struct ops *ops, const mass_problem &p, struct tensor d_compressed);

#endif

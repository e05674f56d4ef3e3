/* Learning where to look: gradients of the indexer's keys. A block owns neighbouring keys of a list and walks the
 * queries whose losses know them. */
#include "kernels/cuda/index_learn.cuh"

namespace {

template <class S> __global__ void __launch_bounds__(S::threads) learn_from_queries(learn_problem p) {
    const block_place place = place_block(p.order);
    const int64_t b = place.pair / p.lists, list = place.pair % p.lists;
    const learn_memory<S> memory(shared_cutter{shared_memory()}, p.head_count, p.index_width);
    const tile_reach reach = reach_of(p.sets, b, place.tile, learn_own);
    const int32_t *from;
    const int count = entries_of(p.chosen, place.pair, place.tile, &from),
              together = p.index_heads / p.index_keys; /* index heads of a key head */
    key_source source;
    source.open(p.sets, b, reach, learn_own, from, count, memory.walk.scratch, S::warps);
    __syncthreads();
    token_walk<S, key_source> walk(source, memory.walk.words, memory.walk.tokens, memory.walk.bits);
    learn_tile<S, true> tile = {p, memory, b, list, reach.first, 0, 0, {}};
    while ((tile.here = walk.next(&tile.at)) > 0) {
        float mass[S::groups][4], scores[S::groups][4];
        walk.words_of(tile.words, tile.at, tile.here);
        tile.find_mass(mass);
        tile.find_scores(scores);
        tile.find_gradients(scores, mass, [](int, float, float) {});
        for (int n = 0; n < p.head_count * together; n++) {
            float products[1][S::groups][4];
            tile.find_product_gradients(products, scores, p.first_head * together + n, [](int, float) {});
            tile.add_rows(products, n / together);
        }
        __syncwarp(); /* the ring's places may be given away */
    }
    __syncthreads();
    store_gradients<S>(p, memory, p.d_u, b, list * p.index_keys + p.first_head, reach.first);
}

} // namespace

enum status learn_keys(const struct ops *ops, const learn_problem &whole, int64_t batch) {
    learn_problem p = whole;
    return with_learn_shape(
        ops, p, [&](auto shape) -> enum status {
            using S = decltype(shape);
            const int64_t tiles = divide_up(p.sets.length, learn_own);
            p.order = order_blocks(tiles, batch * p.lists, int64_t{1} << 20, false);
            const dim3 grid(static_cast<unsigned>(tiles * batch * p.lists));
            const int most = learn_heads_at_once<S>(p.index_keys, p.index_width);
            for (p.first_head = 0; p.first_head < p.index_keys; p.first_head += most) {
                p.head_count = min(most, p.index_keys - p.first_head);
                TRY(device_launch(ops, "index_learn", learn_from_queries<S>, grid, S::threads,
                                  learn_memory<S>::bytes(p.head_count, p.index_width), p));
            }
            return STATUS_OK;
        });
}

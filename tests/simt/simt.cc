/* Executes kernels on the host: blocks in turn, in each a fiber a thread, switched at barriers, warp operations and
 * atomics. Shared memory is poisoned before every block (values, and for AddressSanitizer what no array covers);
 * asynchronous copies arrive when they are waited for. A barrier that not all threads reach, a warp operation that not
 * all named lanes join, and use of memory that is not the block's are faults, told with block and thread, under
 * AddressSanitizer with the place in the kernel too. The runtime's calls are in runtime.cc. */
#include "tests/simt/simt.h"
#include "tests/simt/fiber.h"
#include "tests/simt/internal.h"

#include <simt_mma.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <memory>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#define SIMT_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define SIMT_ASAN 1
#endif
#endif
#ifdef SIMT_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define POISON(at, bytes)   __asan_poison_memory_region(at, bytes)
#define UNPOISON(at, bytes) __asan_unpoison_memory_region(at, bytes)
#define TELL_STACK()        __sanitizer_print_stack_trace()
#else
#define POISON(at, bytes)   ((void)0)
#define UNPOISON(at, bytes) ((void)0)
#define TELL_STACK()        ((void)0)
#endif

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;
unsigned simt_thread;

namespace {

enum { MEETINGS = 8, RED_ZONE = 128 };
constexpr size_t shared_capacity = 228 << 10;

struct copy {
    void *to;
    const void *from;
    bool valid;
};

/* Lanes of a warp under one mask come together. */
struct meeting {
    unsigned mask, arrived, votes[2];
    uint64_t generation;
    char slots[2][32][SIMT_SLOT], results[2][32][SIMT_RESULT];
};
struct warp {
    unsigned runnable, at_barrier; /* lanes; in neither: who waits for others of the warp, or is done */
    meeting meetings[MEETINGS];
};

struct thread {
    fiber stack;
    uint3 index;
    unsigned number;
    std::deque<std::vector<copy>> groups; /* committed */
    std::vector<copy> open;
};

struct shared_array {
    const void *key;
    char *at;
    size_t size;
};

struct block_run {
    std::vector<std::unique_ptr<thread>> threads; /* grows; the first `count` are the block's */
    std::vector<warp> warps;                      /* of the block: each holds 32 threads, the last one what is left */
    unsigned count, alive, at_barrier;
    thread *running;
    const std::function<void()> *body;
    struct {
        unsigned warp, to_come;       /* in turn: the warp, and the lanes that this pass over it still comes to */
        unsigned threads[1024], left; /* at random: of the round */
    } turn;
    alignas(128) char shared[shared_capacity];
    size_t shared_used, dynamic_bytes, poisoned;
    char *dynamic;
    std::vector<shared_array> arrays;
} run;

enum simt_order order_now = SIMT_FORWARD;
uint64_t order_state = 1;
simt_counts counts;

uint64_t next_random() {
    order_state = order_state * 6364136223846793005u + 1442695040888963407u;
    return order_state >> 33;
}

[[noreturn]] void fault(const char *what) {
    fprintf(stderr, "simt: %s; block (%u,%u,%u)", what, blockIdx.x, blockIdx.y, blockIdx.z);
    if (run.running) fprintf(stderr, ", thread (%u,%u,%u)", threadIdx.x, threadIdx.y, threadIdx.z);
    fprintf(stderr, "\n");
    TELL_STACK(); /* names the kernel and its line */
    abort();
}

/* Warp after warp, each as far as it comes by itself: past a barrier the first warp runs ahead of all others. */
thread *next_in_turn() {
    const unsigned warps = static_cast<unsigned>(run.warps.size());
    const bool reverse = order_now == SIMT_REVERSE;
    for (unsigned idle = 0; idle < warps; idle++) {
        const unsigned w = reverse ? warps - 1 - run.turn.warp : run.turn.warp;
        unsigned lanes = run.warps[w].runnable & run.turn.to_come;
        if (lanes == 0) lanes = run.warps[w].runnable; /* once more from its first lane on */
        if (lanes) {
            const unsigned lane = reverse ? 31 - __builtin_clz(lanes) : __builtin_ctz(lanes);
            run.turn.to_come = reverse ? (1u << lane) - 1 : ~1u << lane;
            return run.threads[32 * w + lane].get();
        }
        run.turn.to_come = ~0u;
        run.turn.warp = (run.turn.warp + 1) % warps;
    }
    return nullptr;
}

/* One turn a thread that can have one, mixed; some warps sit a round out. */
thread *next_at_random() {
    while (run.turn.left == 0) {
        const uint64_t slow = next_random();
        bool progress = false;
        for (unsigned w = 0; w < run.warps.size(); w++) {
            progress |= run.warps[w].runnable != 0;
            if (slow >> w % 16 & 1) continue;
            for (unsigned lanes = run.warps[w].runnable; lanes; lanes &= lanes - 1)
                run.turn.threads[run.turn.left++] = 32 * w + __builtin_ctz(lanes);
        }
        if (!progress) return nullptr;
    }
    unsigned *last = &run.turn.threads[run.turn.left - 1];
    std::swap(*last, run.turn.threads[next_random() * run.turn.left >> 31]);
    run.turn.left--;
    return run.threads[*last].get();
}

/* Who runs now that nobody does; nullptr: none can. */
thread *next_thread() {
    return order_now == SIMT_RANDOM ? next_at_random() : next_in_turn();
}

void become(thread *t) {
    run.running = t;
    threadIdx = t->index;
    simt_thread = t->number;
}

void yield() {
    thread *me = run.running, *next = next_thread();
    if (next == me) return;
    if (next) become(next);
    fiber_switch(&me->stack, next ? &next->stack : nullptr);
}

void finish_barrier() {
    run.at_barrier = 0;
    for (warp &w : run.warps) {
        w.runnable |= w.at_barrier;
        w.at_barrier = 0;
    }
}

warp &warp_now() {
    return run.warps[simt_thread / 32];
}

void barrier() {
    run.at_barrier++;
    if (run.at_barrier == run.alive) {
        finish_barrier();
    } else {
        warp &w = warp_now();
        w.runnable &= ~(1u << simt_lane());
        w.at_barrier |= 1u << simt_lane();
        yield();
    }
}

meeting *find_meeting(warp &w, unsigned mask) {
    for (meeting &m : w.meetings) {
        if (m.mask == mask) return &m;
        if (m.mask == 0) {
            m.mask = mask;
            return &m;
        }
    }
    fault("more different warp masks than tests/simt can hold");
}

void thread_entry() {
    thread *me = run.running;
    fiber_started();
    (*run.body)();
    if (!me->open.empty() || !me->groups.empty()) fault("asynchronous copies that nobody waited for");
    warp_now().runnable &= ~(1u << simt_lane());
    run.alive--;
    if (run.alive > 0 && run.at_barrier == run.alive) finish_barrier();
    thread *next = next_thread();
    if (next) become(next);
    fiber_leave(&me->stack, next ? &next->stack : nullptr);
}

void start_shared(size_t dynamic_bytes) {
    UNPOISON(run.shared, shared_capacity);
    memset(run.shared, 0xff, std::max(run.shared_used, run.poisoned)); /* NaN, −1: what the last block left is gone */
    run.arrays.clear();
    run.dynamic = run.shared;
    run.dynamic_bytes = dynamic_bytes;
    run.shared_used = (dynamic_bytes + RED_ZONE + 127) / 128 * 128;
    run.poisoned = run.shared_used;
    POISON(run.shared + dynamic_bytes, shared_capacity - dynamic_bytes);
}

[[noreturn]] void tell_deadlock() {
    run.running = nullptr;
    char text[160]; /* nobody can run: who is alive and not at a barrier waits for others of its warp */
    snprintf(text, sizeof text, "stuck: %u threads wait at a barrier, %u in a warp operation, %u are done",
             run.at_barrier, run.alive - run.at_barrier, run.count - run.alive);
    fault(text);
}

void run_threads() {
    run.turn.warp = run.turn.left = 0;
    run.turn.to_come = ~0u;
    if (thread *first = next_thread()) {
        become(first);
        fiber_switch(nullptr, &first->stack); /* and from one to the next, until none can run */
    }
    if (run.alive > 0) tell_deadlock();
    run.running = nullptr;
}

void run_block(size_t dynamic_bytes) {
    start_shared(dynamic_bytes);
    run.alive = run.count;
    run.at_barrier = 0;
    for (unsigned w = 0; w < run.warps.size(); w++) {
        const unsigned lanes = std::min(32u, run.count - 32 * w);
        run.warps[w].runnable = ~0u >> (32 - lanes);
        run.warps[w].at_barrier = 0;
        for (meeting &m : run.warps[w].meetings) m.mask = m.arrived = 0;
    }
    for (unsigned t = 0; t < run.count; t++) {
        thread *each = run.threads[t].get();
        each->number = t;
        each->index = {t % blockDim.x, t / blockDim.x % blockDim.y, t / blockDim.x / blockDim.y};
        each->groups.clear();
        each->open.clear();
        fiber_prepare(&each->stack, thread_entry);
    }
    counts.blocks++;
    counts.threads += run.count;
    run_threads();
}

} // namespace

void simt_run_grid(dim3 grid, dim3 block, size_t dynamic_bytes, const std::function<void()> &body) {
    run.body = &body;
    run.count = block.x * block.y * block.z;
    while (run.threads.size() < run.count) run.threads.push_back(std::make_unique<thread>());
    run.warps.resize((run.count + 31) / 32);
    gridDim = grid;
    blockDim = block;
    const uint64_t blocks = static_cast<uint64_t>(grid.x) * grid.y * grid.z;
    const uint64_t turn = order_now == SIMT_RANDOM ? next_random() % blocks : 0;
    for (uint64_t n = 0; n < blocks; n++) {
        const uint64_t b = order_now == SIMT_REVERSE ? blocks - 1 - n : (n + turn) % blocks;
        blockIdx = {static_cast<unsigned>(b % grid.x), static_cast<unsigned>(b / grid.x % grid.y),
                    static_cast<unsigned>(b / grid.x / grid.y)};
        run_block(dynamic_bytes);
    }
    UNPOISON(run.shared, shared_capacity);
    counts.launches++;
}

/* --- what kernels call -------------------------------------------------------------------------------------------- */

void __syncthreads() {
    barrier();
}
void __trap() {
    fault("trap");
}
namespace {

/* Lanes of `mask` come together; the caller's generation. What the last one to come finds is combined, if anything is
 * to be. */
meeting *meet(unsigned mask, const void *value, size_t size, simt_combine *combine, bool vote, unsigned *generation) {
    const unsigned lane = simt_lane(), first = simt_thread - lane, width = std::min(32u, run.count - first);
    if (size > SIMT_SLOT) fault("a value too large for a warp operation");
    if (!(mask >> lane & 1)) fault("a warp operation whose mask leaves out the caller");
    if (width < 32 && mask != 0xffffffffu && mask >> width)
        fault("a warp operation whose mask names lanes that do not exist");
    if (width < 32) mask &= (1u << width) - 1;
    warp &w = warp_now();
    meeting *m = find_meeting(w, mask);
    *generation = m->generation % 2;
    if (m->arrived == 0) m->votes[*generation] = 0;
    if (size > 0) memcpy(m->slots[*generation][lane], value, size);
    m->votes[*generation] |= static_cast<unsigned>(vote) << lane;
    m->arrived |= 1u << lane;
    if (m->arrived == mask) {
        if (combine) combine(m->slots[*generation][0], m->results[*generation][0]);
        m->arrived = 0;
        m->generation++;
        w.runnable |= mask;
    } else {
        w.runnable &= ~(1u << lane);
        yield();
    }
    return m;
}

/* Lane l brought the address of row l % 8 of matrix l/8 [8,8] of halves, and gets of every matrix a pair. */
void load_rows(const char *slots, char *results, bool transposed) {
    const char *rows[32];
    for (unsigned l = 0; l < 32; l++) memcpy(&rows[l], slots + l * SIMT_SLOT, sizeof rows[l]);
    for (unsigned l = 0; l < 32; l++)
        for (unsigned m = 0; m < 4; m++)
            for (unsigned h = 0; h < 2; h++) {
                const unsigned pair = 2 * (l % 4) + h, row = transposed ? pair : l / 4,
                               column = transposed ? l / 4 : pair;
                memcpy(results + l * SIMT_RESULT + 4 * m + 2 * h, rows[8 * m + row] + 2 * column, 2);
            }
}

} // namespace

simt_values simt_exchange(unsigned mask, const void *value, size_t size) {
    unsigned generation;
    const meeting *m = meet(mask, value, size, nullptr, false, &generation);
    return {m->slots[generation][0], m->mask};
}

const char *simt_together(const void *value, size_t size, simt_combine *combine) {
    unsigned generation;
    if (run.count < simt_thread / 32 * 32 + 32) fault("a tensor-core instruction in a warp without all lanes");
    const meeting *m = meet(0xffffffffu, value, size, combine, false, &generation);
    return m->results[generation][simt_lane()];
}

void simt_combine_rows(const char *slots, char *results) {
    load_rows(slots, results, false);
}
void simt_combine_columns(const char *slots, char *results) {
    load_rows(slots, results, true);
}

void __syncwarp(unsigned mask) {
    simt_exchange(mask, nullptr, 0);
}

unsigned __ballot_sync(unsigned mask, int predicate) {
    unsigned generation;
    const meeting *m = meet(mask, nullptr, 0, nullptr, predicate != 0, &generation);
    return m->votes[generation];
}

void simt_atomic() {
    if (order_now == SIMT_RANDOM && next_random() % 4 == 0) yield();
}

void *simt_dynamic_shared() {
    return run.dynamic;
}

void *simt_static_shared(const void *key, size_t size) {
    for (const shared_array &array : run.arrays) {
        if (array.key == key) return array.at;
    }
    char *at = run.shared + run.shared_used;
    run.shared_used += (size + RED_ZONE + 127) / 128 * 128;
    run.poisoned = run.shared_used;
    if (run.shared_used > shared_capacity) fault("more shared memory than a block can have");
    UNPOISON(at, size);
    run.arrays.push_back({key, at, size});
    return at;
}

const char *simt_check_shared(const void *at, size_t bytes, const char *instruction) {
    const char *from = static_cast<const char *>(at);
    char text[96];
    if (from >= run.shared && from + bytes <= run.shared + shared_capacity &&
        reinterpret_cast<uintptr_t>(at) % bytes == 0)
        return from;
    snprintf(text, sizeof text, "%s: an address that is not in shared memory, or not aligned to %zu", instruction,
             bytes);
    fault(text);
}

void copy_async(void *to, const void *from, bool valid) {
    simt_check_shared(to, 16, "cp.async");
    if (valid && reinterpret_cast<uintptr_t>(from) % 16 != 0)
        fault("cp.async: a source that is not aligned to 16 bytes");
    memset(to, 0xff, 16); /* what lay there is gone already */
    run.running->open.push_back({to, from, valid});
}

void copy_async_commit() {
    run.running->groups.push_back(std::move(run.running->open));
    run.running->open.clear();
}

void simt_copy_wait(int pending) {
    auto &groups = run.running->groups;
    while (groups.size() > static_cast<size_t>(pending)) {
        for (const copy &c : groups.front()) {
            if (c.valid) {
                memcpy(c.to, c.from, 16);
            } else {
                memset(c.to, 0, 16);
            }
        }
        groups.pop_front();
    }
}

/* --- what tests call ---------------------------------------------------------------------------------------------- */

extern "C" void simt_set_order(enum simt_order order, uint64_t seed) {
    order_now = order;
    order_state = seed * 2 + 1;
}

simt_counts *simt_counters() {
    return &counts;
}
extern "C" struct simt_counts simt_counted(void) {
    return counts;
}

namespace {
const bool order_from_environment = [] {
    const char *name = getenv("SIMT_ORDER");
    if (name && strcmp(name, "reverse") == 0) order_now = SIMT_REVERSE;
    if (name && strcmp(name, "random") == 0) order_now = SIMT_RANDOM;
    return true;
}();
} // namespace

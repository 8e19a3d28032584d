// Warp collectives: the last lane to arrive computes the results of all.
#include "warp.h"

namespace simt {

Meeting meetings[MAX_WARPS][32];
uint32_t under_way[MAX_WARPS];

// What the lanes of a warp exchange.
struct alignas(64) Lanes {
    uint64_t value[32], result[32];
    int source[32];
};
static Lanes lanes[MAX_WARPS];

void warps_reset(int warps) {
    for (int w = 0; w < warps; w++)
        for (; under_way[w]; under_way[w] &= under_way[w] - 1)
            meetings[w][__builtin_ctz(under_way[w])].arrived = 0;
}

Meeting &meeting_find(int warp, uint32_t mask) {
    for (uint32_t left = under_way[warp]; left; left &= left - 1)
        if (meetings[warp][__builtin_ctz(left)].mask == mask)
            return meetings[warp][__builtin_ctz(left)];
    Meeting &m = meetings[warp][__builtin_ctz(~under_way[warp])]; // 32 suffice
    m.mask = mask;
    return m;
}

void meeting_begin(Meeting &m, int warp, const char *what, Where where) {
    under_way[warp] |= 1u << (&m - meetings[warp]);
    m.what = what, m.where = where;
}

uint32_t lanes_missing(int warp, uint32_t mask) {
    return mask & ~meeting_of(warp, mask).arrived;
}

void refuse_lane(const char *what, uint32_t mask, Where where) {
    fail("%s (%s:%d): the calling lane is not in the mask %08x", what, where.file, where.line,
         mask);
}

void refuse_other(const char *what, uint32_t mask, Where where, const Meeting &other) {
    fail("%s (%s:%d, mask %08x): other lanes of the warp wait at %s (%s:%d, mask %08x)", what,
         where.file, where.line, mask, other.what, other.where.file, other.where.line, other.mask);
}

// Run body(lane) for the lanes of a mask; with a loop that compilers unroll if it is the whole
// warp.
template <class Body>
__attribute__((always_inline)) static inline void each(uint32_t mask, Body body) {
    if (mask == 0xffffffffu)
        for (int lane = 0; lane < 32; lane++)
            body(lane);
    else
        for (uint32_t left = mask; left; left &= left - 1)
            body(__builtin_ctz(left));
}

Turn warp_barrier(uint32_t mask, Where where) {
    return meet("__syncwarp", mask, where, copies_warp_barrier);
}

uint64_t result() {
    return lanes[self >> 5].result[self & 31];
}

// ------------------------------------------------------------------- shuffles

static void exchange_done(uint32_t mask, int warp) {
    Lanes &l = lanes[warp];
    each(mask, [&](int lane) { l.result[lane] = l.value[l.source[lane] & 31]; });
}

Turn exchange(const char *what, uint32_t mask, uint64_t value, int source, Where where) {
    Lanes &l = lanes[self >> 5];
    int lane = self & 31;
    if (!(mask >> (source & 31) & 1))
        fail("%s (%s:%d): reads lane %d, which is not in the mask %08x", what, where.file,
             where.line, source, mask);
    l.value[lane] = value, l.source[lane] = source;
    return meet(what, mask, where, exchange_done);
}

// ----------------------------------------------------------------------- votes

static void ballot_done(uint32_t mask, int warp) {
    Lanes &l = lanes[warp];
    uint64_t votes = 0;
    each(mask, [&](int lane) { votes |= l.value[lane] << lane; });
    each(mask, [&](int lane) { l.result[lane] = votes; });
}

Turn ballot(const char *what, uint32_t mask, int predicate, Where where) {
    Lanes &l = lanes[self >> 5];
    int lane = self & 31;
    l.value[lane] = predicate != 0;
    return meet(what, mask, where, ballot_done);
}

static void match_done(uint32_t mask, int warp) {
    Lanes &l = lanes[warp];
    each(mask, [&](int lane) {
        uint64_t same = 0;
        each(mask,
             [&](int other) { same |= (uint64_t)(l.value[other] == l.value[lane]) << other; });
        l.result[lane] = same;
    });
}

Turn match_any(uint32_t mask, uint64_t value, Where where) {
    Lanes &l = lanes[self >> 5];
    int lane = self & 31;
    l.value[lane] = value;
    return meet("__match_any_sync", mask, where, match_done);
}

// ------------------------------------------------------------------ reductions

static uint32_t combine(Reduction how, uint32_t a, uint32_t b) {
    switch (how) {
    case ADD:
        return a + b;
    case MIN:
        return (int32_t)b < (int32_t)a ? b : a;
    case MAX:
        return (int32_t)b > (int32_t)a ? b : a;
    case UMIN:
        return b < a ? b : a;
    case UMAX:
        return b > a ? b : a;
    case AND:
        return a & b;
    case OR:
        return a | b;
    case XOR:
        return a ^ b;
    }
    return 0;
}

Turn reduce(const char *what, Reduction how, uint32_t mask, uint32_t value, Where where) {
    Lanes &l = lanes[self >> 5];
    int mine = self & 31;
    l.value[mine] = value;
    return meet(what, mask, where, [how](uint32_t all, int warp) {
        Lanes &w = lanes[warp];
        uint32_t first = (uint32_t)__builtin_ctz(all), sum = (uint32_t)w.value[first];
        each(all & (all - 1), [&](int lane) { sum = combine(how, sum, (uint32_t)w.value[lane]); });
        each(all, [&](int lane) { w.result[lane] = sum; });
    });
}

} // namespace simt

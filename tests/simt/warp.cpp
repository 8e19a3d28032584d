// Warp collectives: the lanes of a mask meet; the last to arrive computes all results.
//
// Each lane registers a record on its own stack, which stays valid while it waits. Several
// collectives with different masks can be pending in a warp, even if the masks overlap.
#include "engine.h"

namespace simt {

struct Meeting {
    const char *what;
    uint32_t mask, arrived;
    Where where;
};

static Meeting meetings[MAX_WARPS][32];
static uint32_t under_way[MAX_WARPS]; // bit i: meeting i is pending
static void *records[MAX_WARPS][32];

void warps_reset(int warps) {
    memset(under_way, 0, (size_t)warps * sizeof *under_way);
}

// The pending collective of that mask; a new one if there is none.
static Meeting &meeting_of(int warp, uint32_t mask) {
    for (uint32_t left = under_way[warp]; left; left &= left - 1)
        if (meetings[warp][__builtin_ctz(left)].mask == mask)
            return meetings[warp][__builtin_ctz(left)];
    int at = __builtin_ctz(~under_way[warp]); // each lane waits in one at most: 32 suffice
    under_way[warp] |= 1u << at;
    meetings[warp][at].mask = mask;
    meetings[warp][at].arrived = 0;
    return meetings[warp][at];
}

uint32_t lanes_missing(int warp, uint32_t mask) {
    return mask & ~meeting_of(warp, mask).arrived;
}

void meet(const char *what, uint32_t mask, Done done, void *arg, Where where) {
    int warp = self >> 5;
    uint32_t mine = 1u << (self & 31);
    if (!(mask & mine))
        fail("%s (%s:%d): the calling lane is not in the mask %08x", what, where.file, where.line,
             mask);
    Meeting &m = meeting_of(warp, mask);
    if (!m.arrived)
        m.what = what, m.where = where;
    else if (!same_call(m.what, what))
        fail("%s (%s:%d, mask %08x): other lanes of the warp wait at %s (%s:%d, mask %08x)", what,
             where.file, where.line, mask, m.what, m.where.file, m.where.line, m.mask);
    m.arrived |= mine;
    records[warp][self & 31] = arg;
    thread_wait({what, where, mask});
    if (m.arrived == mask) {
        under_way[warp] &= ~(1u << (&m - meetings[warp]));
        if (done)
            done(mask, records[warp]);
        lanes_wake(warp, mask);
    }
    thread_continue();
}

// ------------------------------------------------------------------- shuffles

struct Exchange {
    uint64_t value, result;
    int source;
};

static void exchange_done(uint32_t mask, void **record) {
    for (uint32_t left = mask; left; left &= left - 1) {
        Exchange *mine = (Exchange *)record[__builtin_ctz(left)];
        if (mask >> mine->source & 1)
            mine->result = ((Exchange *)record[mine->source])->value;
        else
            mine->source = -1;
    }
}

uint64_t exchange(const char *what, uint32_t mask, uint64_t value, int source, Where where) {
    Exchange mine = {value, 0, source};
    meet(what, mask, exchange_done, &mine, where);
    if (mine.source < 0)
        fail("%s (%s:%d): reads lane %d, which is not in the mask %08x", what, where.file,
             where.line, source, mask);
    return mine.result;
}

// ----------------------------------------------------------------------- votes

struct Ballot {
    int predicate;
    uint32_t result;
};

static void ballot_done(uint32_t mask, void **record) {
    uint32_t votes = 0;
    for (uint32_t left = mask; left; left &= left - 1) {
        int i = __builtin_ctz(left);
        votes |= (uint32_t)(((Ballot *)record[i])->predicate != 0) << i;
    }
    for (uint32_t left = mask; left; left &= left - 1)
        ((Ballot *)record[__builtin_ctz(left)])->result = votes;
}

uint32_t ballot(const char *what, uint32_t mask, int predicate, Where where) {
    Ballot mine = {predicate, 0};
    meet(what, mask, ballot_done, &mine, where);
    return mine.result;
}

static void match_done(uint32_t mask, void **record) {
    for (uint32_t left = mask; left; left &= left - 1) {
        Exchange *mine = (Exchange *)record[__builtin_ctz(left)];
        for (uint32_t other = mask; other; other &= other - 1) {
            int i = __builtin_ctz(other);
            mine->result |= (uint64_t)(((Exchange *)record[i])->value == mine->value) << i;
        }
    }
}

uint32_t match_any(uint32_t mask, uint64_t value, Where where) {
    Exchange mine = {value, 0, 0};
    meet("__match_any_sync", mask, match_done, &mine, where);
    return (uint32_t)mine.result;
}

// ------------------------------------------------------------------ reductions

struct Reduce {
    Reduction how;
    uint32_t value;
};

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

static void reduce_done(uint32_t mask, void **record) {
    const Reduce *first = (const Reduce *)record[__builtin_ctz(mask)];
    uint32_t sum = first->value;
    for (uint32_t left = mask & (mask - 1); left; left &= left - 1)
        sum = combine(first->how, sum, ((Reduce *)record[__builtin_ctz(left)])->value);
    for (uint32_t left = mask; left; left &= left - 1)
        ((Reduce *)record[__builtin_ctz(left)])->value = sum;
}

uint32_t reduce(const char *what, Reduction how, uint32_t mask, uint32_t value, Where where) {
    Reduce mine = {how, value};
    meet(what, mask, reduce_done, &mine, where);
    return mine.value;
}

} // namespace simt

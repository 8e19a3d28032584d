// How the lanes of a mask meet in a warp collective.
//
// Several collectives with different masks can be pending in a warp, even if the masks overlap;
// each lane waits in one at most. What a lane brings and what it gets lie in arrays by lane, not on
// its stack: a result stays until that lane arrives at its next collective.
#ifndef SIMT_WARP_H
#define SIMT_WARP_H

#include "schedule.h"

namespace simt {

struct Meeting {
    const char *what;
    uint32_t mask, arrived; // arrived 0: not pending
    Where where;
};

extern Meeting meetings[MAX_WARPS][32];
extern uint32_t under_way[MAX_WARPS]; // bit i: meeting i is pending

void warps_reset(int warps);                     // no collective is pending
uint32_t lanes_missing(int warp, uint32_t mask); // lanes that have not arrived yet
[[noreturn]] void refuse_lane(const char *what, uint32_t mask, Where where);
[[noreturn]] void refuse_other(const char *what, uint32_t mask, Where where, const Meeting &other);

Meeting &meeting_find(int warp, uint32_t mask);
void meeting_begin(Meeting &m, int warp, const char *what, Where where);

// The pending collective of that mask, or the one to begin. The first is mostly right: if it once
// had the mask, no other has it now.
inline Meeting &meeting_of(int warp, uint32_t mask) {
    Meeting &first = meetings[warp][0];
    return first.mask == mask ? first : meeting_find(warp, mask);
}

// The running lane arrives and will wait for the lanes of `mask`, which must all call with the same
// `what` and mask. The last one runs done(mask, warp).
template <class Done>
__attribute__((always_inline)) inline Turn meet(const char *what, uint32_t mask, Where where,
                                                Done done) {
    int warp = self >> 5;
    uint32_t mine = 1u << (self & 31);
    if (!(mask & mine))
        refuse_lane(what, mask, where);
    Meeting &m = meeting_of(warp, mask);
    uint32_t arrived = m.arrived | mine;
    if (!m.arrived)
        meeting_begin(m, warp, what, where);
    else if (!same_call(m.what, what))
        refuse_other(what, mask, where, m);
    m.arrived = arrived;
    set_wait({what, where, mask});
    if (arrived == mask) {
        under_way[warp] &= ~(1u << (&m - meetings[warp]));
        m.arrived = 0;
        done(mask, warp);
        lanes_wake(warp, mask);
    }
    return turn_of(next_ready());
}

} // namespace simt

#endif

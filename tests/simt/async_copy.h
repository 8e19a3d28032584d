// Asynchronous copies to shared memory, and who sees what they bring, as late as on a GPU:
//
//     issued     the destination is NaN for every thread
//     waited     the copying thread sees it; while another thread runs it is NaN again
//     published  by __syncthreads, for the block; by __syncwarp, for the lanes of the mask
//
// A plain read by another thread gets NaN until the first of either. ldmatrix, whose rows go to all
// lanes, is exact: rows copied by its own warp need a __syncwarp of all lanes, others
// __syncthreads, and it reports the copy otherwise (copies_check).
#ifndef SIMT_ASYNC_COPY_H
#define SIMT_ASYNC_COPY_H

#include "engine.h"

namespace simt {

extern int unpublished;  // threads with copies that are waited, but not published
extern bool copies_used; // was one issued in this block?

void copies_switch(int from, int to);
void publish_block();
void publish_warp(uint32_t mask, int warp);

// Thread `to` runs after `from`.
inline void copies_turn(int from, int to) {
    if (unpublished)
        copies_switch(from, to);
}

// What publishes: __syncthreads, __syncwarp, and the running thread's __threadfence, after which it
// may raise a flag.
inline void copies_block_barrier() {
    if (copies_used)
        publish_block();
}
inline void copies_warp_barrier(uint32_t mask, int warp) {
    if (copies_used)
        publish_warp(mask, warp);
}
void copies_fence();

// Report if a thread's row for ldmatrix is the destination of a copy that its warp does not see.
void copies_check(int thread, const void *row);

} // namespace simt

#endif

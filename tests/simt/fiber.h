// Fibers: their stacks.
#ifndef SIMT_FIBER_H
#define SIMT_FIBER_H

#include "switch.h"

namespace simt {

void stacks_map();                               // call first; maps once
Context stack_prepare(int stack, void (*run)()); // a context that starts in `run`, on that stack
bool stack_guards(const void *address);          // does it lie in a stack's guard?
void stacks_abandon();                           // discard the stacks of an abandoned block

// Save the running context and continue another. `ends`: the running one is never continued.
// `stack` is the stack of `to`, -1 for the thread that runs the block.
void context_switch(Context *save, Context to, int stack, bool ends);
void context_arrive(); // a new context must call this first
void asan_leave(int stack, bool ends);

} // namespace simt

#endif

// What NSA_LAUNCH calls. The arguments are converted to the kernel's parameters at the call, as in
// a real launch, and kept until the kernel runs.
#ifndef SIMT_LAUNCH_H
#define SIMT_LAUNCH_H

#include "host.h"

#include <functional>
#include <tuple>
#include <utility>

namespace simt {

// Check the configuration, then run or record; `kernel` is its address, for its attributes.
void launch_submit(const char *name, const void *kernel, dim3 grid, dim3 block, size_t shared,
                   cudaStream_t stream, std::function<void()> body);

template <class... P, class... A>
void launch(const char *name, void (*kernel)(P...), dim3 grid, dim3 block, size_t shared,
            cudaStream_t stream, A &&...args) {
    static_assert(sizeof...(P) == sizeof...(A), "as many arguments as the kernel has parameters");
    std::tuple<P...> kept(static_cast<P>(std::forward<A>(args))...);
    launch_submit(name, (const void *)kernel, grid, block, shared, stream,
                  [kernel, kept]() { std::apply(kernel, kept); });
}

} // namespace simt

#endif

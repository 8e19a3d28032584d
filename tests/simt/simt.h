// The CUDA simulator: with -DNSA_SIMT, stages/common/device.h includes this in place of CUDA's
// headers. docs/simulator.md says what it catches; this folder's .cpp files are the runtime.
#ifndef SIMT_H
#define SIMT_H

#include "types.h"

#include "kernel.h"

#include "host.h"

#include "launch.h"

#include "numbers.h"

#endif

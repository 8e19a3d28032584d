/** @file gpu.c
 *  @brief Load libnsa_gpu.so if it exists, so that the command itself needs no CUDA. */
#include "bench/gpu.h"
#include "bench/timing.h"

#include <dlfcn.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* The table of libnsa_gpu.so in a folder relative to this program's; NULL if there is none. */
static const gpu_table *load_from(const char *folder) {
    char path[PATH_MAX + 64];
    ssize_t length = readlink("/proc/self/exe", path, PATH_MAX - 1);
    path[length > 0 ? length : 0] = 0;
    char *slash = strrchr(path, '/');
    if (!slash)
        return NULL;
    snprintf(slash, 64, "/%slibnsa_gpu.so", folder);
    void *object = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    const gpu_table *(*get)(void) = NULL;
    if (object) /* ISO C has no such cast: copy the bits */
        *(void **)&get = dlsym(object, "nsa_gpu_get");
    const gpu_table *table = get ? get() : NULL;
    return table && table->size == sizeof *table ? table : NULL; /* never unloaded */
}

static const gpu_table *gpu(void) {
    static const gpu_table *table;
    static int searched;
    if (!searched) {
        searched = 1;
        table = load_from("");
        table = table ? table : load_from("../lib/");
    }
    return table;
}

const char *gpu_missing(void) {
    return gpu() ? gpu()->missing() : "built without the GPU's part (make CUDA=gpu)";
}

void gpu_describe(char *text, size_t capacity) {
    text[0] = 0;
    if (!gpu_missing())
        gpu()->describe(text, capacity);
}

void gpu_flush(void) {
    if (!gpu_missing())
        gpu()->flush();
}

void gpu_warm(double seconds) {
    const double start = bench_now();
    while (!gpu_missing() && bench_now() - start < seconds)
        gpu()->flush();
}

void gpu_wait(void) {
    if (!gpu_missing())
        gpu()->wait();
}

int64_t gpu_memory(void) {
    return gpu_missing() ? 0 : gpu()->memory();
}

void gpu_ceilings(double rate[BENCH_CEILINGS]) {
    for (int i = 0; i < BENCH_CEILINGS; i++)
        rate[i] = 0;
    if (!gpu_missing())
        gpu()->ceilings(rate);
}

/* ------------------------------------------------------------------ devices */

const char *bench_device_name(bench_device device) {
    static const char *const names[] = {"cpu", "gpu", "simulator"};
    return names[device];
}

bench_device bench_device_of(const nsa_stage *stage) {
    if (!stage || !stage->device)
        return BENCH_ON_CPU;
    return strcmp(stage->device(), "simulator") ? BENCH_ON_GPU : BENCH_ON_SIMULATOR;
}

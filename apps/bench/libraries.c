/** @file libraries.c
 *  @brief Libraries that are loaded at run time, so that everything works without them: OpenBLAS,
 * because it starts threads of its own, and libnsa_gpu.so, because it needs CUDA. */
#include "bench/contender.h"

#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#ifndef BENCH_OPENBLAS /* make OPENBLAS=NAME */
#define BENCH_OPENBLAS "libopenblas.so.0"
#endif

/* ISO C has no cast from object to function pointer: copy its bits. */
static int find(void *library, const char *name, void *function) {
    void *symbol = library ? dlsym(library, name) : NULL;
    memcpy(function, &symbol, sizeof symbol);
    return symbol != NULL;
}

enum { BYTES_PER_THREAD = 256 << 20 /* a heap of its own, and a buffer of 128 MiB in it */ };

void (*blas_sgemm)(int order, int ta, int tb, int m, int n, int k, float alpha, const float *a,
                   int lda, const float *b, int ldb, float beta, float *c, int ldc);

static struct {
    void (*set_threads)(int);
    const char *(*get_config)(void);
    char missing[160];
} blas;

/* Load it, for good. Left alone it starts a thread for every core, and hangs if one cannot be
 * created; blas_threads() sets the number instead. */
static void load_blas(void) {
    (void)setenv("OPENBLAS_NUM_THREADS", "1", 1);
    void *library = dlopen(BENCH_OPENBLAS, RTLD_NOW | RTLD_LOCAL);
    if (!find(library, "cblas_sgemm", (void *)&blas_sgemm) ||
        !find(library, "openblas_set_num_threads", (void *)&blas.set_threads) ||
        !find(library, "openblas_get_config", (void *)&blas.get_config))
        snprintf(blas.missing, sizeof blas.missing, "no OpenBLAS: %.140s", dlerror());
}

const char *blas_missing(void) {
    static int searched;
    if (!searched)
        load_blas();
    searched = 1;
    return blas.missing[0] ? blas.missing : NULL;
}

const char *blas_name(void) {
    static char text[128];
    const char *missing = blas_missing();
    snprintf(text, sizeof text, "%.110s", missing ? missing : blas.get_config());
    return text;
}

/* An OpenBLAS thread that finds no memory for its buffer retries forever, so check first. */
static int has_address_space(int threads) {
    const size_t bytes = (size_t)threads * BYTES_PER_THREAD;
    void *trial = mmap(NULL, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return trial != MAP_FAILED && !munmap(trial, bytes);
}

void blas_threads(int threads) {
    if (blas_missing())
        return;
    if (has_address_space(threads))
        blas.set_threads(threads);
    else
        snprintf(blas.missing, sizeof blas.missing,
                 "no OpenBLAS: %d threads of it need %d MiB of address space each; ulimit -v?",
                 threads, BYTES_PER_THREAD >> 20);
}

const gpu_table *gpu(const char **missing) {
    static const char *why = "built without the GPU's part (make CUDA=gpu)";
    static const gpu_table *table;
    static int searched;
    const gpu_table *(*get)(void);
    /* looked for beside this program and in ../lib, which are its RPATH; never unloaded */
    if (!searched &&
        find(dlopen("libnsa_gpu.so", RTLD_NOW | RTLD_LOCAL), "nsa_gpu_get", (void *)&get) &&
        get()->size == sizeof *table) {
        table = get();
        why = table->missing();
    }
    searched = 1;
    if (missing)
        *missing = why;
    return why ? NULL : table;
}

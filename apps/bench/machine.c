/** @file machine.c
 *  @brief The machine: its caches, threads, libraries and ceilings, and its description.
 * OpenBLAS, because it starts threads of its own, and libnsa_gpu.so, because it needs CUDA, are
 * loaded at run time, so that everything works without them. */
#include "bench/contender.h"
#include "io/file.h"

#include <dlfcn.h>
#include <limits.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#ifndef BENCH_FLAGS /* the Makefile defines both */
#define BENCH_FLAGS       "not recorded"
#define BENCH_DENSE_FLAGS "not recorded"
#endif

#ifndef BENCH_OPENBLAS /* make OPENBLAS=NAME */
#define BENCH_OPENBLAS "libopenblas.so.0"
#endif

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

bench_stats bench_quartiles(double *samples, int count) {
    double q[3] = {0};
    qsort(samples, (size_t)count, sizeof *samples, ascending);
    for (int i = 0; i < 3 && count; i++) {
        const double pos = 0.25 * (i + 1) * (count - 1);
        const int low = (int)pos, high = low + 1 < count ? low + 1 : low;
        q[i] = samples[low] + (pos - low) * (samples[high] - samples[low]);
    }
    return (bench_stats){q[0], q[1], q[2]};
}

static struct {
    char *data;  /* 2 * half bytes */
    size_t half; /* the size of the last-level cache, within limits */
} arena;

int bench_arena_open(void) {
    const long cache = sysconf(_SC_LEVEL3_CACHE_SIZE), min_bytes = 64L << 20;
    /* a virtual machine may see its host's whole cache */
    const long max_bytes = sysconf(_SC_PHYS_PAGES) / 16 * sysconf(_SC_PAGESIZE);
    const long bytes = cache > min_bytes ? cache : min_bytes;
    arena.half = (size_t)(bytes < max_bytes ? bytes : max_bytes);
    arena.data = malloc(2 * arena.half);
    if (arena.data)
        memset(arena.data, 1, 2 * arena.half);
    return arena.data != NULL;
}

void bench_flush(void) {
    static unsigned char value;
    /* a new value each time, so that the write is not optimised away */
    memset(arena.data, ++value, arena.half);
    __asm__ volatile("" ::"r"(arena.data) : "memory");
}

typedef struct task {
    void (*work)(void *arg, int thread);
    void *arg;
    atomic_int next; /* thread */
} task;

static void *run_task(void *arg) {
    task *t = arg;
    t->work(t->arg, atomic_fetch_add(&t->next, 1));
    return NULL;
}

void bench_parallel(int threads, void (*work)(void *arg, int thread), void *arg) {
    pthread_t id[256];
    task t = {work, arg, 0};
    int started = 0;
    /* if one cannot be created, fewer threads share the same work */
    while (started + 1 < threads && !pthread_create(&id[started], NULL, run_task, &t))
        started++;
    run_task(&t);
    while (started)
        pthread_join(id[--started], NULL);
}

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

const char *blas_missing(void) {
    static int searched;
    if (searched++)
        return blas.missing[0] ? blas.missing : NULL;
    /* left alone it starts a thread for every core, and hangs if one cannot be created;
     * blas_threads() sets the number instead; it is never unloaded */
    (void)setenv("OPENBLAS_NUM_THREADS", "1", 1);
    void *library = dlopen(BENCH_OPENBLAS, RTLD_NOW | RTLD_LOCAL);
    if (!find(library, "cblas_sgemm", (void *)&blas_sgemm) ||
        !find(library, "openblas_set_num_threads", (void *)&blas.set_threads) ||
        !find(library, "openblas_get_config", (void *)&blas.get_config))
        snprintf(blas.missing, sizeof blas.missing, "no OpenBLAS: %.140s", dlerror());
    return blas.missing[0] ? blas.missing : NULL;
}

const char *blas_name(void) {
    const char *missing = blas_missing();
    return missing ? missing : blas.get_config();
}

void blas_threads(int threads) {
    const size_t bytes = (size_t)threads * BYTES_PER_THREAD;
    if (blas_missing())
        return;
    /* an OpenBLAS thread that finds no memory for its buffer retries forever, so check first */
    void *trial = mmap(NULL, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (trial != MAP_FAILED && !munmap(trial, bytes))
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

/* 2 SIDE^3 operations. The values vary: on zeros some processors run faster. */
static double measure_sgemm(int threads, int runs) {
    enum { SIDE = 1024 };
    const size_t count = (size_t)SIDE * SIDE;
    double seconds[6];
    blas_threads(threads);
    float *m = blas_missing() ? NULL : malloc(3 * count * sizeof *m);
    if (!m)
        return 0;
    for (size_t i = 0; i < 3 * count; i++)
        m[i] = (float)((i * 2654435761u) % 1021) / 510.0f - 1;
    for (int i = 0; i <= runs; i++) { /* the first warms up */
        double start = nsa_now();
        blas_sgemm(ROW_MAJOR, AS_IT_IS, AS_IT_IS, SIDE, SIDE, SIDE, 1, m, SIDE, m + count, SIDE, 0,
                   m + 2 * count, SIDE);
        seconds[i] = nsa_now() - start;
    }
    blas_threads(1);
    free(m);
    return 2e-9 * SIDE * SIDE * SIDE / bench_quartiles(seconds + 1, runs).median;
}

/* Each thread copies its own part. */
static void copy_part(void *arg, int thread) {
    size_t part = arena.half / (size_t) * (int *)arg, first = part * (size_t)thread;
    memcpy(arena.data + arena.half + first, arena.data + first, part);
}

void ceilings_measure(int threads, int runs, double rate[BENCH_CEILINGS]) {
    double seconds[5];
    rate[CPU_SGEMM] = measure_sgemm(threads, runs);
    for (int i = 0; i < runs; i++) { /* no warm-up: rows run with cold caches too */
        double start = nsa_now();
        bench_parallel(threads, copy_part, &threads);
        seconds[i] = nsa_now() - start;
    }
    rate[CPU_COPY] = 2e-9 * (double)arena.half / bench_quartiles(seconds, runs).median;
}

/* The first line that a shell command prints; "unknown" without one. */
static void first_line(const char *command, char *text, size_t capacity) {
    FILE *f = popen(command, "r");
    if (!f || !fgets(text, (int)capacity, f))
        snprintf(text, capacity, "unknown");
    text[strcspn(text, "\n")] = 0;
    if (f)
        pclose(f);
}

/* Extra flags of one stage; the build writes them to NN_name.flags beside the stage. */
static void add_flags(bench_run *run, const char *dir, const char *stage) {
    char path[PATH_MAX], *line;
    size_t n, used = strlen(run->own_flags);
    snprintf(path, sizeof path, "%s/%s.flags", dir, stage);
    if (file_read(path, 256, &line, &n))
        return;
    if (n > 1) /* with its newline */
        snprintf(run->own_flags + used, sizeof run->own_flags - used, "; %s: %.*s", stage,
                 (int)n - 1, line);
    free(line);
}

void machine_describe(bench_run *run, const bench_options *o, const nsa_found *found,
                      size_t stages) {
    time_t now = time(NULL);
    struct tm utc;
    first_line("sed -n '/^model name/{s/[^:]*: //p;q;}' /proc/cpuinfo", run->cpu, sizeof run->cpu);
    /* of the tree that this program was built in */
    first_line("git -C \"$(dirname \"$(readlink /proc/$PPID/exe)\")\" describe --always --dirty "
               "--abbrev=12 2>/dev/null",
               run->commit, sizeof run->commit);
    snprintf(run->compiler, sizeof run->compiler, "%s%s", /* clang's has its name in it */
             strstr(__VERSION__, "lang") ? "" : "gcc ", __VERSION__);
    snprintf(run->flags, sizeof run->flags, "%s", BENCH_FLAGS);
    snprintf(run->own_flags, sizeof run->own_flags, "%s: %s", BENCH_DENSE, BENCH_DENSE_FLAGS);
    for (size_t i = 0; i < stages; i++)
        add_flags(run, o->stage_dir ? o->stage_dir : nsa_stage_dir(), found[i].name);
    strftime(run->date, sizeof run->date, "%Y-%m-%d %H:%M UTC", gmtime_r(&now, &utc));
    workload_text(o, 0, run->workload, sizeof run->workload);
    run->cores = sysconf(_SC_NPROCESSORS_ONLN);
    run->threads = o->threads;
    run->batch = o->batch;
    if (getloadavg(&run->load, 1) != 1)
        run->load = -1;
}

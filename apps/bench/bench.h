/** @file bench.h
 *  @brief The options of `nsa bench` and its results; clocks, ceilings, ratios, tables, run files.
 */
#ifndef BENCH_H
#define BENCH_H

#include "nsa_find.h"

#include <string.h>

/** Limits of one run. */
enum {
    BENCH_MAX_SIZES = 16,  /**< lengths of one sweep */
    BENCH_MAX_STAGES = 16, /**< stages of one sweep */
    BENCH_MAX_PHASES = 16, /**< phases of one call */
    BENCH_MAX_ROWS = 1024, /**< rows of one run */
    BENCH_MAX_PACK = 16,   /**< sequences of one pack: a case has no more */
    BENCH_MAX_BATCH = 64,  /**< slots of a decode */
    BENCH_MAX_RUNS = 60    /**< timed runs of one row */
};

/** The dense baseline's name in rows. */
#define BENCH_DENSE "dense_openblas"
#define BENCH_APART 0.15 /**< part of their median by which a quiet machine's ceilings differ */
/** Prefix of a stage's name: plain causal attention by that stage's own code. */
#define BENCH_OWN_DENSE "causal by "
/** Prefix of a stage's name: that stage with one thread, in a run with several. */
#define BENCH_ONE_THREAD "one thread of "

/** Where a program runs. */
typedef enum bench_device {
    BENCH_ON_CPU = 0,  /**< on the processor */
    BENCH_ON_GPU,      /**< on a GPU */
    BENCH_ON_SIMULATOR /**< a CUDA stage in the simulator: its times mean nothing */
} bench_device;

/** Ceilings: of a GPU, and of the processor. */
typedef enum bench_ceiling {
    BENCH_FMA = 0, /**< GFLOP/s, float32 multiply-adds in registers */
    BENCH_SGEMM,   /**< GFLOP/s, cuBLAS, float32 without TF32, 8192 cubed */
    BENCH_BF16,    /**< GFLOP/s, cuBLAS, bfloat16 with float32 sums, 8192 cubed */
    BENCH_L2,      /**< GB/s, random 16 KiB boxes out of 32 MiB: the second-level cache */
    BENCH_READ,    /**< GB/s read from memory, a sum over 2 GB */
    BENCH_COPY,    /**< GB/s, a copy of 2 GB, bytes read and bytes written */
    GPU_CEILINGS,  /**< how many of a GPU */
    CPU_SGEMM = GPU_CEILINGS, /**< GFLOP/s, OpenBLAS, float32, 1024 cubed */
    CPU_COPY,      /**< GB/s, a copy larger than the last-level cache, bytes read and written */
    BENCH_CEILINGS /**< how many */
} bench_ceiling;

/** The part that needs nvcc is a shared object of its own, libnsa_gpu.so beside the program or in
 * ../lib, built from gpu.cu with CUDA=gpu. It exports this by nsa_gpu_get(). 0 is a failure. */
typedef struct gpu_table {
    uint32_t size;                /**< sizeof(gpu_table): another size is refused */
    const char *(*missing)(void); /**< NULL if a GPU answers, else why not */
    void (*describe)(char *text, size_t capacity); /**< name, clock, cache, memory, driver, ... */
    void (*flush)(void);     /**< write 256 MB or four times the cache, wait */
    void (*wait)(void);      /**< until all queued work is done */
    void (*start)(void);     /**< queue the start of a time after a millisecond's head start */
    double (*stop)(void);    /**< seconds since start() on the default stream's clock; waits */
    int64_t (*memory)(void); /**< bytes of the GPU's memory that are taken */
    void (*ceilings)(double rate[GPU_CEILINGS]); /**< the median of five runs each after one */
} gpu_table;

/** What is timed. Backward is the backward alone; decode is one step. */
typedef enum bench_pass {
    BENCH_FORWARD = 0, /**< forward of all rows */
    BENCH_BACKWARD,    /**< backward of all rows, its forward not counted */
    BENCH_DECODE,      /**< one token for each sequence, T tokens in the caches */
    BENCH_PASSES       /**< how many */
} bench_pass;

/** The options of a run. */
typedef struct bench_options {
    const char *stage[BENCH_MAX_STAGES]; /**< names, numbers or paths; none means all */
    int stages;                          /**< how many */
    int pass[BENCH_PASSES];              /**< 1 where that pass is to be timed */
    int64_t T[BENCH_MAX_SIZES];          /**< tokens of a sequence, ascending */
    int sizes;                           /**< how many */
    nsa_config cfg;                      /**< heads, dims and phi */
    int64_t batch;                       /**< sequences of a pack, or slots of a decode */
    int64_t threads;                     /**< for stages, OpenBLAS and the ceilings alike */
    int64_t rows;                        /**< rows that the check samples */
    int64_t seed;                        /**< of the inputs */
    int one_thread;                      /**< 1 to time stages with one thread as well */
    int64_t budget;                      /**< seconds that one row may take */
    int64_t runs;                        /**< timed runs of a row; 0: by how long one takes */
    int device[3];                       /**< 1 where programs on that bench_device are wanted */
    const char *judge;                   /**< stage that judges sampled rows, NULL for 00 */
    const char *peers;     /**< command that times other people's attention, or NULL */
    const char *stage_dir; /**< folder of the stages, NULL for the default */
    const char *json;      /**< run file to write, or NULL */
    const char *table;     /**< a run file to print a table of, or NULL */
    const char *plot;      /**< a run file to print points of, or NULL */
    const char *what;      /**< which table or plot */
} bench_options;

/** A median and quartiles, or of ceilings the lowest and the highest. 0 is "not known". */
typedef struct bench_stats {
    double low;    /**< first quartile, or the lowest */
    double median; /**< the median */
    double high;   /**< third quartile, or the highest */
} bench_stats;

/** Time of one phase, and the work it needs at least; 0 is "not known". */
typedef struct bench_phase {
    char name[16];  /**< as the stage calls it */
    double seconds; /**< median over the runs */
    double flops;   /**< operations, see phase_work() */
    double l2;      /**< bytes read at least from the second-level cache */
    double bytes;   /**< bytes read from or written to memory */
} bench_phase;

/** One program at one length: a row of every table. Times are seconds, ratios are how many times
 * faster than the other row; 0 is "not known". */
typedef struct bench_row {
    char name[64];                       /**< the stage, or which dense baseline */
    char pass[12];                       /**< "forward", "backward" or "decode" */
    char device[12];                     /**< "cpu", "gpu" or "simulator" */
    char arith[12];                      /**< "float64", "float32" or "bfloat16" */
    char status[256];                    /**< "" if it was timed; else why not */
    char checked[96];                    /**< the oracle it was checked against */
    char bound[8];                       /**< the ceiling that binds it: "flops" or "bytes" */
    int64_t T;                           /**< tokens of a sequence */
    int64_t runs;                        /**< timed runs */
    int64_t memory;                      /**< bytes held while it ran */
    bench_stats time;                    /**< of the runs */
    double round[BENCH_MAX_RUNS];        /**< seconds in each round; 0 where it did not run */
    int rounds;                          /**< how many; 0: not known, as in older run files */
    double cost;                         /**< seconds of what comes before; not in run files */
    double flops;                        /**< what the config needs, see workload_count() */
    double bytes;                        /**< bytes that must be moved at least */
    bench_stats with_io;                 /**< time together with load and read on the device */
    double bytes_io;                     /**< bytes that load and read must move at least */
    double tokens;                       /**< tokens of one run */
    double gflops;                       /**< ceilings in the same rounds; 0: the run's count */
    double gbs;                          /**< copy bandwidth, in the same rounds */
    double share;                        /**< of the ceiling that binds, 0..1 */
    bench_stats below;                   /**< ratio to the stage below */
    bench_stats dense;                   /**< ratio to dense attention */
    bench_phase phase[BENCH_MAX_PHASES]; /**< the break-down */
    int phases;                          /**< how many; 0 if the stage does not time them */
} bench_row;

/** Everything that one run found, and where. */
typedef struct bench_run {
    char cpu[128];       /**< model name */
    char compiler[96];   /**< that built this program and the stages */
    char flags[512];     /**< of all files, warnings left out */
    char own_flags[512]; /**< more flags, of the dense baseline and of single stages */
    char blas[160];      /**< OpenBLAS's description of itself, or why it is missing */
    char peers[512];     /**< what the peers' program said of itself; "" without one */
    char gpu[256];       /**< name, multiprocessors, clock, cache, driver; "" if not used */
    char commit[64];     /**< of the working tree, "-dirty" if it had changes */
    char date[32];       /**< UTC */
    char workload[256];  /**< heads, dims, blocks, phi, seed: a case string without T */
    char noise[256];     /**< "", or why the machine was too noisy for a claim */
    int64_t cores;       /**< online */
    int64_t threads;     /**< used */
    int64_t batch;       /**< sequences of a pack */
    int64_t rounds;      /**< timed, if all ran on the CPU, else 0, as in older run files */
    int64_t kept;        /**< of these; the others were interrupted, and thrown away */
    double load;         /**< runnable processes a minute before */
    bench_stats ceiling[BENCH_CEILINGS]; /**< 0: not measured */
    bench_row row[BENCH_MAX_ROWS];       /**< in the order they were timed */
    int rows;                            /**< how many */
} bench_run;

/** @return "forward", "backward" or "decode". */
const char *bench_pass_name(bench_pass pass);

/** Check, then time everything that was asked for; write the run file, if any, after each length.
 *  @return NSA_OK also if a stage was not timed because it is wrong; its row says so */
nsa_status bench_sweep(const bench_options *o, bench_run *run);

/* ---------------------------------------------------------------- machine.c */

/** Sort the samples and compute quartiles, interpolated linearly. */
bench_stats bench_quartiles(double *samples, int count);

/** Get memory of twice the last-level cache, to flush it and to measure copies; never freed.
 *  @return 0 if there is none */
int bench_arena_open(void);

/** Write half of it, which evicts everything else from the caches. */
void bench_flush(void);

/** Call work(arg, thread) on `threads` threads, this one among them, and wait for all. */
void bench_parallel(int threads, void (*work)(void *arg, int thread), void *arg);

/** Measure the processor's two ceilings: the median of `runs` runs each, 1 to 5. */
void ceilings_measure(int threads, int runs, double rate[BENCH_CEILINGS]);

/** Fill in everything that is not measured; the stages' extra flags are recorded. */
void machine_describe(bench_run *run, const bench_options *o, const nsa_found *found,
                      size_t stages);

/* ---------------------------------------------------------------- results.c */

/** Median and quartiles of than's time over r's, round by round: a machine speed that changes
 * slowly cancels. With fewer than three shared rounds, as in a run file without them, the ratio of
 * the medians; the quartiles of both give the lowest and the highest. */
bench_stats bench_ratio(const bench_row *r, const bench_row *than);

/** Compute shares of the ceilings, ratios and noise of a run. */
void bench_compute(bench_run *run);

/** @return the row of that name, pass and length if it was timed, else NULL. */
const bench_row *bench_find(const bench_run *run, const char *name, const char *pass, int64_t T);

/** @return 1 if the row's name is that of a stage: those begin with a digit. */
static inline int bench_is_stage(const bench_row *row) {
    return row->name[0] >= '0' && row->name[0] <= '9';
}

/** @return the length of `prefix`, BENCH_OWN_DENSE or BENCH_ONE_THREAD, if it is there, else 0. */
static inline size_t bench_prefix(const char *name, const char *prefix) {
    return strncmp(name, prefix, strlen(prefix)) ? 0 : strlen(prefix);
}

/** Write a run file, whole or not at all. @return NSA_ERR_IO or NSA_ERR_MEMORY */
nsa_status runfile_write(const bench_run *run, const char *path);

/** Read a run file. @return NSA_ERR_IO, NSA_ERR_INPUT or NSA_ERR_MEMORY, naming the file */
nsa_status runfile_read(const char *path, bench_run *run);

/* ----------------------------------------------------------------- tables.c */

/** Print the table "machine", "forward", "backward", "decode", "kernels", "io", "peers" or "own",
 * with "/STAGE" appended of that stage alone; below it the run file's name, if there is one.
 *  @return NSA_ERR_INPUT if there is no such table */
nsa_status report_table(const bench_run *run, const char *what, const char *file);

/** Print points for gnuplot, of "time" or "speedup" of the forward: for each curve a block, its
 * name in quotes, then lines T, value, low, high.
 *  @return NSA_ERR_INPUT if there is no such figure */
nsa_status report_points(const bench_run *run, const char *what);

#endif

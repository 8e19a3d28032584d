/**
 * @file bench.h
 * @brief The options of `nsa bench`, and its results: tables, figures and files are made from a
 * bench_run.
 */
#ifndef BENCH_H
#define BENCH_H

#include "nsa.h"

/** Limits of one run. */
enum {
    BENCH_MAX_SIZES = 16,  /**< lengths of one sweep */
    BENCH_MAX_STAGES = 16, /**< stages of one sweep */
    BENCH_MAX_PHASES = 16, /**< phases of one call */
    BENCH_MAX_ROWS = 1024, /**< rows of one run */
    BENCH_MAX_FITS = 256,  /**< fitted curves of one run */
    BENCH_MAX_PACK = 16,   /**< sequences of one pack: a case has no more */
    BENCH_MAX_BATCH = 64,  /**< slots of a decode */
    BENCH_MAX_RUNS = 60,   /**< maximum timed runs of one row */
    BENCH_MANY_RUNS = 20,  /**< timed runs of a short call, unless --runs says otherwise */
    BENCH_MIN_RUNS = 10    /**< minimum timed runs, unless a run takes longer than BENCH_SLOW_RUN */
};

/** A run longer than this many seconds may be timed fewer than BENCH_MIN_RUNS times. */
#define BENCH_SLOW_RUN 2.0
/** The dense baseline's name in rows. */
#define BENCH_DENSE "dense_openblas"
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

/** Ceilings of a GPU; gpu.h says how each is measured. */
typedef enum bench_ceiling {
    BENCH_FMA = 0, /**< GFLOP/s, float32 multiply-adds in registers */
    BENCH_SGEMM,   /**< GFLOP/s, cuBLAS, float32 */
    BENCH_BF16,    /**< GFLOP/s, cuBLAS, bfloat16 with float32 sums */
    BENCH_L2,      /**< GB/s out of the second-level cache */
    BENCH_READ,    /**< GB/s read from memory */
    BENCH_COPY,    /**< GB/s, bytes read and bytes written */
    BENCH_CEILINGS /**< how many */
} bench_ceiling;

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
    int64_t batch;                       /**< sequences of a pack */
    int64_t threads;                     /**< for stages, OpenBLAS and the ceilings alike */
    int64_t rows;                        /**< rows that the check samples */
    int64_t seed;                        /**< of the inputs */
    int one_thread;                      /**< 1 to time stages with one thread as well */
    double budget;                       /**< seconds that one row may take */
    int64_t runs;                        /**< timed runs of a row; 0: by how long one takes */
    double deadline;                     /**< seconds that all may take */
    int device[3];                       /**< 1 where programs on that bench_device are wanted */
    const char *judge;                   /**< stage that judges sampled rows, NULL for 00 */
    const char *peers;     /**< command that times other people's attention, or NULL */
    const char *stage_dir; /**< folder of the stages, NULL for the default */
    const char *json;      /**< run file to write, or NULL */
    const char *csv;       /**< the same rows as CSV, or NULL */
    const char *table;     /**< a run file to print a table of, or NULL */
    const char *plot;      /**< a run file to print points of, or NULL */
    const char *compare;   /**< two run files "A,B" whose ratios must agree, or NULL */
    const char *what;      /**< which table or plot */
} bench_options;

/** Time of one phase, and the work it needs at least; 0 is "not known". */
typedef struct bench_phase {
    char name[16];  /**< as the stage calls it */
    double seconds; /**< median over the runs */
    double flops;   /**< operations, see kernels.h */
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
    char below_name[64];                 /**< the stage below */
    int64_t T;                           /**< tokens of a sequence */
    int64_t runs;                        /**< timed runs */
    int64_t memory;                      /**< bytes held while it ran */
    double median;                       /**< of the runs */
    double q1;                           /**< first quartile */
    double q3;                           /**< third quartile */
    double round[BENCH_MAX_RUNS];        /**< seconds in each round; 0 where it did not run */
    int rounds;                          /**< how many; 0: not known, as in older run files */
    double flops;                        /**< what the config needs, see workload.h */
    double bytes;                        /**< bytes that must be moved at least */
    double tokens;                       /**< tokens of one run */
    double gflops;                       /**< ceilings in the same rounds; 0: the run's count */
    double gbs;                          /**< copy bandwidth, in the same rounds */
    double share;                        /**< of the ceiling that binds, 0..1 */
    double below;                        /**< ratio to the stage below */
    double below_low;                    /**< its spread: the quartiles, see ratio.h */
    double below_high;                   /**< the other end */
    double dense;                        /**< ratio to dense attention */
    double dense_low;                    /**< its spread */
    double dense_high;                   /**< the other end */
    bench_phase phase[BENCH_MAX_PHASES]; /**< the break-down */
    int phases;                          /**< how many; 0 if the stage does not time them */
} bench_row;

/** Time as a T + b T^2, for a whole pass ("all") or a phase, and where it crosses dense attention.
 * For a branch with a limit on the keys of a query, T is the number of all keys read over that
 * limit: early queries read fewer. */
typedef struct bench_fit {
    char name[64];    /**< the row's name */
    char pass[12];    /**< the row's pass */
    char phase[16];   /**< "all" or a phase */
    char against[64]; /**< the dense attention that it is compared with, "" for none */
    int64_t from;     /**< shortest length fitted */
    int64_t to;       /**< longest */
    int64_t points;   /**< how many lengths */
    int64_t slower;   /**< longest measured length at which dense is faster; 0 if none is */
    int64_t faster;   /**< the next measured length; 0 if dense is faster to the end */
    double a;         /**< seconds a token */
    double b;         /**< seconds a token squared */
    double residual;  /**< largest |fit - time| / time */
    double curved;    /**< share of b T^2 in the time at the longest length */
    double by_flops;  /**< b over the b of its FLOPs at the whole pass's rate; 0 unless cmp */
    double crosses;   /**< length at which both fits are equal; 0 if they never are */
} bench_fit;

/** Everything that one run found, and where. */
typedef struct bench_run {
    char cpu[128];       /**< model name */
    char compiler[96];   /**< that built this program and the stages */
    char flags[512];     /**< of all files, warnings left out */
    char own_flags[512]; /**< more flags, of the dense baseline and of single stages */
    char blas[128];      /**< OpenBLAS's description of itself, or why it is missing */
    char peers[512];     /**< what the peers' program said of itself; "" without one */
    char gpu[256];       /**< name, multiprocessors, clock, cache, driver; "" if not used */
    char commit[64];     /**< of the working tree, "-dirty" if it had changes */
    char date[32];       /**< UTC */
    char workload[256];  /**< heads, dims, blocks, phi, seed: a case string without T */
    char noise[256];     /**< "", or why the machine was too noisy for a claim */
    int64_t cores;       /**< online */
    int64_t threads;     /**< used */
    int64_t batch;       /**< sequences of a pack */
    double load;         /**< runnable processes a minute before */
    double gflops;       /**< ceiling: OpenBLAS sgemm 1024 cubed, 0 if unknown */
    double gflops_low;   /**< lowest measurement */
    double gflops_high;  /**< most */
    double gbs;          /**< ceiling: copy bandwidth, bytes read and written */
    double gbs_low;      /**< least */
    double gbs_high;     /**< most */
    double ceiling[BENCH_CEILINGS];      /**< of the GPU: medians; 0 if unknown */
    double ceiling_low[BENCH_CEILINGS];  /**< least */
    double ceiling_high[BENCH_CEILINGS]; /**< most */
    bench_row row[BENCH_MAX_ROWS];       /**< in the order they were timed */
    int rows;                            /**< how many */
    bench_fit fit[BENCH_MAX_FITS];       /**< in the order of the rows */
    int fits;                            /**< how many */
} bench_run;

/** @return "forward", "backward" or "decode". */
const char *bench_pass_name(bench_pass pass);

/** @return "cpu", "gpu" or "simulator". */
const char *bench_device_name(bench_device device);

/** @return where a stage runs. */
bench_device bench_device_of(const nsa_stage *stage);

/** Fill in the options from the command line.
 *  @param argc  arguments
 *  @param argv  argv[0] is "nsa bench"
 *  @param o     filled in
 *  @return an exit_code */
int bench_parse(int argc, char **argv, bench_options *o);

/** Check, then time everything that was asked for; write the run file, if any, after each length.
 *  @param o    what
 *  @param run  filled in
 *  @return NSA_OK also if a stage was not timed because it is wrong; its row says so */
nsa_status bench_sweep(const bench_options *o, bench_run *run);

#endif

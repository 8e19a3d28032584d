/**
 * @file nsa_stage.h
 * @brief The contract, the stage's side: the table of functions that a stage exports, and what they
 * get. nsa.h has the caller's side, and the letters of the shapes.
 */
#ifndef NSA_STAGE_H
#define NSA_STAGE_H

#include "nsa_device.h"

#ifdef __cplusplus
extern "C" {
#endif

/** What the stage computes in; it decides the row of the tolerance table and the type of
 * results. */
typedef enum nsa_arith {
    NSA_FLOAT64 = 0, /**< double throughout; results are NSA_F64 */
    NSA_FLOAT32,     /**< single throughout; results are NSA_F32 */
    NSA_BFLOAT16     /**< bfloat16 inputs, single sums; results are NSA_F32 */
} nsa_arith;

/** Memory of one context; see common/pool.h. */
typedef struct nsa_pool nsa_pool;

/** What `open` gets: the resolved config and everything that follows from it. Lives as long as the
 * stage. */
typedef struct nsa_plan {
    nsa_config cfg;     /**< resolved and checked; without NSA_DECODE max_seqs is at most seq_len */
    nsa_setup setup;    /**< max_rows filled in */
    int64_t group;      /**< G = Hq / Hkv */
    int64_t max_cmp;    /**< maximum compressed tokens of one load */
    int64_t max_blocks; /**< maximum selection blocks of a sequence, in a load or a decode slot */
    nsa_pool *pool;     /**< where the stage allocates its memory */
} nsa_plan;

/** What `load` gets besides the tensors: the pack, checked and complete. Valid until the
 * next load. */
typedef struct nsa_batch {
    int64_t T;                /**< tokens */
    int64_t B;                /**< sequences, at least 1, at most the plan's max_seqs */
    int64_t R;                /**< query rows to compute */
    int64_t N;                /**< compressed tokens of all sequences */
    int64_t J;                /**< selection blocks of the longest sequence */
    const int64_t *seq;       /**< [B+1] first token of each sequence; seq[B] = T */
    const int64_t *cmp;       /**< [B+1] first compressed token of each sequence; cmp[B] = N */
    const int64_t *row;       /**< [R] the token that each query row belongs to, ascending */
    int same;                 /**< 1 if all above, the geometry, is that of the load before, whose
                                 tables hold */
    const int32_t *block_idx; /**< [R,Hkv,n] forced blocks, ascending, -1 last; NULL to select, and
                                 if it is on the device, where the stage sorts and checks it */
    const int32_t *slot;      /**< [B] the slots that prefill fills; NULL without NSA_DECODE */
    int keeps_slots;          /**< 0: prefill empties all other slots */
} nsa_batch;

/** What `load_step` gets besides the tensors: one token for each active sequence. */
typedef struct nsa_step {
    int64_t A;           /**< active sequences */
    const int32_t *slot; /**< [A] the cache slot of each */
    int same;            /**< 1 if the slots are those of the step before */
    const int64_t *pos;  /**< [A] tokens already in the slot: the new token's position t; NULL
                            if only the device knows them */
    const int32_t
        *block_idx; /**< [A,Hkv,n] forced blocks, ascending, -1 last; NULL as in a batch */
} nsa_step;

/** The table of functions a stage exports; inputs are checked before any of them is called, and
 * every tensor that a call needs is present. `self` is what `open` made. A half-written stage may
 * leave backward, decode, or prefill and decode NULL: the harness skips what needs them. */
struct nsa_stage {
    uint32_t abi;     /**< NSA_ABI */
    nsa_arith arith;  /**< what it computes in */
    const char *idea; /**< the stage's one idea, a short phrase for `nsa list` */
    /** NSA_OK if this machine can run the stage; else nsa_last_error() has the reason. */
    nsa_status (*available)(void);
    /** Allocate all memory from plan->pool, which reports a failed allocation. */
    nsa_status (*open)(const nsa_plan *plan, void **self);
    /** Copy the inputs into the stage's own memory, type and layout. */
    nsa_status (*load)(void *self, const nsa_tensors *in, const nsa_batch *batch);
    /** Copy [T,Hq,dv] output gradients; rows not listed count as zero, whatever they hold. */
    nsa_status (*load_dout)(void *self, const nsa_tensor *dout);
    /** Copy one token for each active sequence. */
    nsa_status (*load_step)(void *self, const nsa_tensors *in, const nsa_step *step);
    nsa_status (*forward)(void *self);  /**< over what was loaded */
    nsa_status (*backward)(void *self); /**< after forward, load_dout; gradients start from zero */
    nsa_status (*prefill)(void *self);  /**< forward, and sequence b fills slot batch->slot[b] */
    nsa_status (*decode)(void *self);   /**< append the step's tokens and compute their rows */
    /** Plain causal attention over pair 0 cmp, 1 slc or 2 win. Optional. */
    nsa_status (*causal)(void *self, int pair);
    /** Copy a result to `to`, checked: of the result type of `arith` or NSA_BF16. */
    nsa_status (*read)(void *self, nsa_id id, const nsa_tensor *to);
    /** Release what is not the pool's: streams, handles, device memory. */
    void (*close)(void *self);
    /** List the phases of the last call and their times; returns how many. Optional. */
    int (*phases)(void *self, nsa_phase *list, int capacity);
    const char *(*device)(void); /**< where it runs, "simulator" or the GPU; NULL for the CPU */
    /* of a stage that has `device`, whose tensors may lie there: */
    size_t (*free_memory)(void); /**< free bytes there */
    /** Submit to this stream from now on; nsa_set_stream() says what still waits. */
    nsa_status (*set_stream)(void *self, void *stream);
    /** NSA_OK if kernels can read or write this device tensor. */
    nsa_status (*check)(void *self, nsa_id id, const nsa_tensor *tensor);
    /** An error that a kernel found since this was last asked, NSA_OK if none; does not wait. */
    nsa_status (*pending)(void *self);
    /** Tokens of all decode slots [max_seqs], which live on the device; waits. */
    nsa_status (*slot_lens)(void *self, int64_t *len);
    const nsa_device_calls *calls; /**< memory and streams of the device, for callers */
};

/** The one symbol a stage's shared object exports. @return the stage's table, never NULL. */
NSA_EXPORT const nsa_stage *nsa_stage_get(void);

#ifdef __cplusplus
}
#endif

#endif

/**
 * @file nsa.h
 * @brief The contract, the caller's side: the inputs and results of Native Sparse Attention, and
 * the calls. nsa_stage.h has the stage's side.
 *
 * docs/specification.md defines the operator (after arXiv:2502.11089). A caller opens a stage,
 * loads inputs, runs `forward` and `backward` or `prefill` and `decode`, and reads results. Every
 * call is checked here, once, so that a stage may trust what reaches it:
 *
 *     nsa_config cfg = nsa_config_defaults();  // then seq_len, q_heads, kv_heads, qk_dim, v_dim
 *     nsa_open(stage, &cfg, &setup, &ctx);     // all memory is allocated here
 *     nsa_load(ctx, &inputs);                  // copied into the stage's own memory and layout
 *     nsa_forward(ctx);
 *     nsa_read(ctx, NSA_OUT, &tensor);
 *     nsa_close(ctx);
 *
 * Letters of the shapes: T tokens of all packed sequences, B sequences, R query rows (T unless
 * `rows` are given), A active sequences of a decode step, Hq/Hkv query/key-value heads, G = Hq/Hkv,
 * dk/dv head dims, l/d compression block/stride, l' selection block, n blocks selected, N
 * compressed tokens, J selection blocks of the longest sequence.
 *
 * Tensors lie on the host or, for a stage that runs on a device, there. Without nsa_set_stream()
 * every call waits for its end. With it most calls only submit work to the caller's stream, as
 * CUDA's own libraries do, and may be captured: docs/contract.md says what a graph holds.
 */
#ifndef NSA_H
#define NSA_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/** Changes with the structs below; a stage built for another number is refused. */
#define NSA_ABI 5
/** Marks the one symbol that a stage exports, and the functions of libnsa. */
#define NSA_EXPORT __attribute__((visibility("default")))
/** Maximum threads of a context; a larger number is an error. */
#define NSA_MAX_THREADS 1024
/** "Fill in the default": for `phi_hidden`, `scale`, `max_seqs` and `max_seq_len`. */
#define NSA_AUTO (-1)

/* ------------------------------------------------------------------ status */

/** What every public call returns. */
typedef enum nsa_status {
    NSA_OK = 0,          /**< done */
    NSA_ERR_CONFIG,      /**< a config breaks a rule of the specification */
    NSA_ERR_INPUT,       /**< a tensor is missing, or its shape, type or values are wrong */
    NSA_ERR_MEMORY,      /**< out of memory */
    NSA_ERR_STATE,       /**< calls in the wrong order: backward before forward, say */
    NSA_ERR_UNSUPPORTED, /**< this stage does not export that function */
    NSA_ERR_DEVICE,      /**< the device the stage runs on is missing or failed */
    NSA_ERR_IO           /**< a file or shared object could not be read or written */
} nsa_status;

/** @return a short name such as "bad config"; never NULL. */
NSA_EXPORT const char *nsa_status_name(nsa_status status);

/** @return the text of this thread's last error, the value and the rule it breaks, or "". */
NSA_EXPORT const char *nsa_last_error(void);

/** Record an error text (printf style) for nsa_last_error().
 *  @return `status`, so that a stage can write `return nsa_fail(...)`. */
NSA_EXPORT nsa_status nsa_fail(nsa_status status, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

#ifdef __clang_analyzer__ /* it sees one file at a time: say that nsa_fail() returns its status */
#define nsa_fail(status, ...) (((nsa_fail)(status, __VA_ARGS__)), (status))
#endif

/* ------------------------------------------------------------------ config */

/** The compressor phi of Eq. 7. */
typedef enum nsa_phi {
    NSA_PHI_MEAN = 0, /**< the mean of the block's rows; no weights */
    NSA_PHI_GATED,    /**< a softmax over the block's rows, weighted by content and position */
    NSA_PHI_MLP       /**< the paper's: W2 silu(W1 vec(x + pe) + b1) + b2 */
} nsa_phi;

/** One NSA operator, in the letters of the specification. */
typedef struct nsa_config {
    int64_t seq_len;    /**< T: maximum tokens of one load, all sequences together; required */
    int64_t q_heads;    /**< Hq: query heads, a multiple of kv_heads; required */
    int64_t kv_heads;   /**< Hkv: key/value heads, the GQA groups; required */
    int64_t qk_dim;     /**< dk: width of a query or key head, 1..256; required */
    int64_t v_dim;      /**< dv: width of a value head, 1..256; required */
    int64_t cmp_block;  /**< l: tokens in a compression block; default 32 */
    int64_t cmp_stride; /**< d: tokens between compression blocks, divides l and l'; default 16 */
    int64_t slc_block;  /**< l': tokens in a selection block; default 64 */
    int64_t slc_count;  /**< n: selected blocks a query, forced ones included; default 16 */
    int64_t slc_init;   /**< forced blocks at the start; default 1 */
    int64_t slc_local;  /**< forced blocks at the query's own end, its own included; default 2 */
    int64_t window;     /**< w: tokens of the sliding window, self included; default 512 */
    nsa_phi phi;        /**< the compressor; default NSA_PHI_MLP */
    int64_t phi_hidden; /**< hidden width of the mlp compressor; default 2*max(dk,dv) */
    double scale;       /**< score scale of every branch, 2^-100..2^100; default 1/sqrt(dk) */
    int64_t max_seqs;   /**< B: maximum sequences of a pack, slots of the decode cache; default 1 */
    int64_t max_seq_len; /**< maximum tokens of one decode slot; default seq_len */
} nsa_config;

/** @return the paper's defaults; the five required keys are 0 and must be set. */
NSA_EXPORT nsa_config nsa_config_defaults(void);

/** Set one key from its name in config.json.
 *  @param config  changed in place
 *  @param key     a key of the table in docs/specification.md
 *  @param number  the value, for every key but `phi`
 *  @param text    the value of `phi` ("mean", "gated" or "mlp"), NULL for a number
 *  @return NSA_ERR_CONFIG for an unknown key, a fraction where a whole number belongs, or a wrong
 * kind. */
NSA_EXPORT nsa_status nsa_config_set(nsa_config *config, const char *key, double number,
                                     const char *text);

/** Replace every NSA_AUTO by its default, then check every rule and bound of the specification.
 *  @return NSA_ERR_CONFIG with a text that names the value and the rule. */
NSA_EXPORT nsa_status nsa_config_resolve(nsa_config *config);

/** @return "mean", "gated" or "mlp"; "?" for anything else. */
NSA_EXPORT const char *nsa_phi_name(nsa_phi phi);

/* ----------------------------------------------------------------- tensors */

/** Element type; little-endian, as the machine has it. */
typedef enum nsa_dtype {
    NSA_NONE = 0, /**< an absent tensor */
    NSA_F32,      /**< IEEE single */
    NSA_F64,      /**< IEEE double */
    NSA_I32,      /**< 32-bit signed integer */
    NSA_BF16      /**< the upper half of an IEEE single */
} nsa_dtype;

/** Where the elements lie. */
typedef enum nsa_place {
    NSA_HOST = 0, /**< in the memory of the process */
    NSA_DEVICE    /**< in that of the device a stage runs on */
} nsa_place;

/** A row-major, contiguous tensor that the caller owns. */
typedef struct nsa_tensor {
    void *data;       /**< the elements; may be NULL only when there are none */
    nsa_dtype dtype;  /**< NSA_NONE says that the tensor is absent */
    int32_t ndim;     /**< 1 to 3 */
    int64_t shape[3]; /**< the first `ndim` count */
    nsa_place place;  /**< of the elements; cu_seqlens, rows and active are on the host */
} nsa_tensor;

/** Every tensor by name, in the specification's order: inputs, results, gradients. */
typedef enum nsa_id {
    /* inputs of load; load_step takes q to gate (T = A), active and block_idx */
    NSA_Q,          /**< [T,Hq,dk] */
    NSA_K_CMP,      /**< [T,Hkv,dk] */
    NSA_V_CMP,      /**< [T,Hkv,dv] */
    NSA_K_SLC,      /**< [T,Hkv,dk] */
    NSA_V_SLC,      /**< [T,Hkv,dv] */
    NSA_K_WIN,      /**< [T,Hkv,dk] */
    NSA_V_WIN,      /**< [T,Hkv,dv] */
    NSA_GATE,       /**< [T,Hq,3], values in [0,1], order cmp, slc, win */
    NSA_DOUT,       /**< [T,Hq,dv]: the gradient of the output, for load_dout */
    NSA_CU_SEQLENS, /**< int32 [B+1]: where each packed sequence starts; optional */
    NSA_ROWS,       /**< int32 [R]: the query rows to compute, strictly ascending; optional */
    NSA_ACTIVE,     /**< int32 [A]: the active decode slots, distinct; in a load [B], optional */
    NSA_PHI_K_PE,   /**< [l,dk] position embedding of the key compressor (gated, mlp) */
    NSA_PHI_K_W,    /**< [dk] (gated) */
    NSA_PHI_K_B,    /**< [l] (gated) */
    NSA_PHI_K_W1,   /**< [hidden,l*dk], position-major columns (mlp) */
    NSA_PHI_K_B1,   /**< [hidden] (mlp) */
    NSA_PHI_K_W2,   /**< [dk,hidden] (mlp) */
    NSA_PHI_K_B2,   /**< [dk] (mlp) */
    NSA_PHI_V_PE,   /**< [l,dv] the same for the value compressor */
    NSA_PHI_V_W,    /**< [dv] */
    NSA_PHI_V_B,    /**< [l] */
    NSA_PHI_V_W1,   /**< [hidden,l*dv] */
    NSA_PHI_V_B1,   /**< [hidden] */
    NSA_PHI_V_W2,   /**< [dv,hidden] */
    NSA_PHI_V_B2,   /**< [dv] */
    /* input and result */
    NSA_BLOCK_IDX, /**< int32 [T,Hkv,n] as input, [R,Hkv,n] as result: blocks, -1 for none */
    /* results */
    NSA_OUT,        /**< [R,Hq,dv] */
    NSA_OUT_CMP,    /**< [R,Hq,dv] compressed branch before its gate */
    NSA_OUT_SLC,    /**< [R,Hq,dv] selected branch before its gate */
    NSA_OUT_WIN,    /**< [R,Hq,dv] window branch before its gate */
    NSA_IMPORTANCE, /**< [R,Hkv,J] Eq. 10, zero past a sequence's own blocks */
    NSA_K_PHI,      /**< [N,Hkv,dk] compressed keys, sequence after sequence */
    NSA_V_PHI,      /**< [N,Hkv,dv] compressed values */
    NSA_OUT_CAUSAL, /**< [R,Hq,dv] plain causal attention over one branch's keys and values */
    /* gradients, in the inputs' shapes (R for T in dq and dgate) */
    NSA_DQ,        /**< [R,Hq,dk] */
    NSA_DK_CMP,    /**< [T,Hkv,dk] */
    NSA_DV_CMP,    /**< [T,Hkv,dv] */
    NSA_DK_SLC,    /**< [T,Hkv,dk] */
    NSA_DV_SLC,    /**< [T,Hkv,dv] */
    NSA_DK_WIN,    /**< [T,Hkv,dk] */
    NSA_DV_WIN,    /**< [T,Hkv,dv] */
    NSA_DGATE,     /**< [R,Hq,3] */
    NSA_DPHI_K_PE, /**< gradients of the compressors' weights, in the weights' shapes */
    NSA_DPHI_K_W,  /**< [dk] */
    NSA_DPHI_K_B,  /**< [l] */
    NSA_DPHI_K_W1, /**< [hidden,l*dk] */
    NSA_DPHI_K_B1, /**< [hidden] */
    NSA_DPHI_K_W2, /**< [dk,hidden] */
    NSA_DPHI_K_B2, /**< [dk]; exactly zero in exact arithmetic: softmax ignores a shift */
    NSA_DPHI_V_PE, /**< [l,dv] */
    NSA_DPHI_V_W,  /**< [dv] */
    NSA_DPHI_V_B,  /**< [l] */
    NSA_DPHI_V_W1, /**< [hidden,l*dv] */
    NSA_DPHI_V_B1, /**< [hidden] */
    NSA_DPHI_V_W2, /**< [dv,hidden] */
    NSA_DPHI_V_B2, /**< [dv] */
    NSA_ID_COUNT,  /**< how many tensors have a name */
    NSA_PHI_FIRST = NSA_PHI_K_PE, /**< the first of 14 phi weights, 7 a compressor */
    NSA_PHI_LAST = NSA_PHI_V_B2,  /**< the last of them */
    NSA_GRAD_FIRST = NSA_DQ,      /**< the first gradient */
    NSA_GRAD_LAST = NSA_DPHI_V_B2 /**< the last gradient */
} nsa_id;

/** Inputs of one call, by name; an absent one is a zeroed struct. Pairs that alias each other are
 * legal: each still gets its own gradient, and the caller adds them. */
typedef struct nsa_tensors {
    nsa_tensor at[NSA_ID_COUNT]; /**< indexed by nsa_id */
} nsa_tensors;

/** @return the tensor's name in files: "q", "phi_k_w1", "dphi_k_w1"; NULL if `id` is none. */
NSA_EXPORT const char *nsa_name(nsa_id id);

/** @return the tensor of that name, NSA_ID_COUNT if there is none. */
NSA_EXPORT nsa_id nsa_id_named(const char *name);

/** @return elements of the tensor's shape, -1 if that overflows or a dimension is negative. */
NSA_EXPORT int64_t nsa_count(const nsa_tensor *tensor);

/** @return bytes of one element: 2, 4, 8, or 0 for NSA_NONE. */
NSA_EXPORT size_t nsa_dtype_size(nsa_dtype dtype);

/** @return 1 if a config with this compressor has that phi weight (or its gradient), 0 if not; 1
 * for every tensor that is no phi weight. */
NSA_EXPORT int nsa_has(const nsa_config *config, nsa_id id);

/* ------------------------------------------------------------------- calls */

/** The table of a stage, from nsa_find.h; nsa_stage.h says what is in it. */
typedef struct nsa_stage nsa_stage;

/** What a context will be asked to do; a stage allocates memory for nothing else. */
enum {
    NSA_BACKWARD = 1 << 0,        /**< load_dout and backward */
    NSA_DECODE = 1 << 1,          /**< prefill, load_step and decode */
    NSA_WANT_BRANCHES = 1 << 2,   /**< NSA_OUT_CMP, NSA_OUT_SLC, NSA_OUT_WIN */
    NSA_WANT_IMPORTANCE = 1 << 3, /**< NSA_IMPORTANCE */
    NSA_WANT_CAUSAL = 1 << 4,     /**< nsa_causal and NSA_OUT_CAUSAL */
    NSA_DEBUG_MEMORY = 1 << 5,    /**< poison memory with NaN where its contents must not matter */
    NSA_CHECK_VALUES = 1 << 6     /**< check gates and block lists of device tensors too, of the
                                     rows that are computed; waits */
};

/** How a context will be used; all zero asks for a plain forward. */
typedef struct nsa_setup {
    uint32_t flags;   /**< NSA_BACKWARD | NSA_WANT_BRANCHES | ... */
    int64_t max_rows; /**< maximum rows of one load: a list of `rows`, or all T; 0: seq_len */
    int32_t threads;  /**< threads a CPU stage may use, up to NSA_MAX_THREADS; 0: its choice */
} nsa_setup;

/** Time of one part of a call, summed over the call. */
typedef struct nsa_phase {
    const char *name; /**< "compress", "cmp", "select", "slc", "win", ... */
    double seconds;   /**< on the stage's own clock: monotonic, or the device's */
} nsa_phase;

/** An open stage. Use it from one thread at a time. */
typedef struct nsa_context nsa_context;

/** Open a stage: resolve and check the config, and allocate all memory that any later call needs.
 *  On any error `*context` is NULL. A stage of a GPU takes the device that is in use in this thread
 *  now (cudaSetDevice); it must be in use in every later call. */
NSA_EXPORT nsa_status nsa_open(const nsa_stage *stage, const nsa_config *config,
                               const nsa_setup *setup, nsa_context **context);

/** From now on submit all work to this stream. A call then waits in four cases only:
 *  - it loads or reads a host tensor, other than cu_seqlens, rows and active;
 *  - T, cu_seqlens or rows are not those of the load before, or `active` not the step's before;
 *  - it loads inputs into a context opened with NSA_CHECK_VALUES;
 *  - it is nsa_slot_len() or nsa_phases().
 *
 * May be called at any time, also while the stream is being captured. Make the new stream wait for
 * the one before (cudaStreamWaitEvent). It must exist until the last call before nsa_close(). There
 * is no way back to the context's own stream, which is ordered with the default stream.
 *  @param context  of a stage that runs on a device
 *  @param stream   a cudaStream_t of that device; NULL is the default stream
 *  @return NSA_ERR_UNSUPPORTED for a stage of the CPU, NSA_ERR_INPUT for another device's stream */
NSA_EXPORT nsa_status nsa_set_stream(nsa_context *context, void *stream);

/** Check and load the inputs of a forward or prefill: q, six keys and values, gate, phi weights of
 * the config, optionally cu_seqlens, rows, block_idx, dout and with NSA_DECODE `active`. float32,
 * float64 or bfloat16, converted. T = q.shape[0] is 0..seq_len. Earlier results are gone, caches
 * stay. Gates and block lists of device tensors are checked with NSA_CHECK_VALUES alone. */
NSA_EXPORT nsa_status nsa_load(nsa_context *context, const nsa_tensors *in);

/** Load the gradient of the output [T,Hq,dv] for backward, after a load. */
NSA_EXPORT nsa_status nsa_load_dout(nsa_context *context, const nsa_tensor *dout);

/** Check and load one decode step: `active` names A distinct slots; q [A,Hq,dk], the six keys and
 * values [A,Hkv,*], gate [A,Hq,3] and optionally block_idx [A,Hkv,n] (after nsa_set_stream() on the
 * device) hold their next tokens. The phi weights are those of the last load; a load of zero tokens
 * brings weights to an empty cache. A step replaces the load: earlier results are gone, forward and
 * backward need a new load. */
NSA_EXPORT nsa_status nsa_load_step(nsa_context *context, const nsa_tensors *in);

/** Compute all outputs of what was loaded (Eq. 5 to 12). */
NSA_EXPORT nsa_status nsa_forward(nsa_context *context);

/** Compute all gradients; block indices are constants. Needs forward and load_dout. */
NSA_EXPORT nsa_status nsa_backward(nsa_context *context);

/** nsa_forward, and the caches of all tokens, whichever `rows` are computed: none is legal.
 * Sequence b of the pack fills slot b and all other slots become empty; if the load had `active`,
 * sequence b fills slot active[b] and all others keep their tokens. */
NSA_EXPORT nsa_status nsa_prefill(nsa_context *context);

/** Append the loaded step to its slots and compute its A rows; results then have A in place of
 * R. */
NSA_EXPORT nsa_status nsa_decode(nsa_context *context);

/** Plain causal attention with q over pair 0 (cmp), 1 (slc) or 2 (win); read it as
 * NSA_OUT_CAUSAL. */
NSA_EXPORT nsa_status nsa_causal(nsa_context *context, int pair);

/** Fill in type, ndim and shape of a result as nsa_read() would write it now; `data` stays as it
 * is.
 *  @return NSA_ERR_STATE if that result does not exist yet. */
NSA_EXPORT nsa_status nsa_result(const nsa_context *context, nsa_id id, nsa_tensor *tensor);

/** Copy a result into `tensor`, on the host or the device, whose shape must be that of nsa_result()
 * and whose type that or, for floats, NSA_BF16. */
NSA_EXPORT nsa_status nsa_read(nsa_context *context, nsa_id id, nsa_tensor *tensor);

/** @return tokens in a decode slot now, 0 without NSA_DECODE; -1 if there is no such slot, in a
 * capture, or if the device failed. Waits for the device. */
NSA_EXPORT int64_t nsa_slot_len(nsa_context *context, int64_t slot);

/** @return how many phases of the last forward, backward, prefill or decode were listed; or 0. */
NSA_EXPORT int nsa_phases(nsa_context *context, nsa_phase *list, int capacity);

/** Close the stage and free all memory; NULL is allowed. After nsa_set_stream() first wait for that
 * stream, and destroy the graphs of this context. */
NSA_EXPORT void nsa_close(nsa_context *context);

#ifdef __cplusplus
}
#endif

#endif

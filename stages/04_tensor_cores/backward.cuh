/** @file
 *  @brief Stage 04, backward: what its files share. */
#ifndef BACKWARD_CUH
#define BACKWARD_CUH

#include "attend.cuh"

enum {
    DKV_WARPS = 4,                        /* of a CUDA block for dk and dv */
    LIST_CHUNKS = 256,                    /* chunks of rows that are inverted in parallel */
    UNIT_ROWS = 256,                      /* rows of a work unit */
    DS_TILE = BLOCK * TILE_ROWS * 2 / 16, /* pieces of 16 bytes in a tile of dS, [64 keys][16] */
    DS_TILES = 1 << 20,                   /* tiles in memory at a time: 2 GiB */
    SHORT_DS_TILES = 1024                 /* with NSA_DEBUG_MEMORY */
};

/* What backward needs of one head's softmax; zero for a head of padding, so that P = dS = 0. */
typedef struct __align__(16) row_terms {
    float row_max, weight; /* weight: gate inv_sum */
    float dgate;
    int32_t t; /* the row's position, of padding too */
}
row_terms;

/* Arguments of the attention kernels; all pointers are to device memory. `f` is forward's. A row
 * tile is 16 heads of (row r, kv head h): number (r*Hkv + h)*GT + g16. */
typedef struct grad_args {
    attend_args f;
    int64_t R, B, row_tiles; /* row_tiles: R * Hkv * GT */
    const bf16 *dout;        /* [row_tiles][16][dvp] */
    row_terms *terms;        /* [BRANCHES][row_tiles][16] */
    uint4 *ds;               /* [row tiles of a slice][width][DS_TILE] */
    real *dq, *dgate;        /* [R,Hq,dkp] [R,Hq,3] */
} grad_args;

/* A row that sees a block of keys, and the place of the block's dS among the row's. */
typedef struct __align__(8) list_entry {
    int32_t row, place;
}
list_entry;

/* Inverse list of one branch and slice: for each block of keys, the query rows that see it. A slice
 * is neighbouring rows whose dS fit into memory together. Block b is block b % stride of head b /
 * stride. The rows of a block are cut into work units of up to UNIT_ROWS rows; units are numbered
 * block after block. */
typedef struct inverse_list {
    int branch;
    int64_t first_row, end_row; /* the slice's rows */
    int width;                  /* tiles of dS of one row tile: blocks that a row sees, at most */
    int64_t blocks;             /* Hkv * stride */
    int64_t stride;
    int64_t waves;  /* of units that run together, see first_wave() */
    int64_t *start; /* [blocks] where its rows begin in `list`; without a list, its first row */
    int32_t *count; /* [blocks] its number of rows */
    int32_t *first_unit;   /* [blocks] prefix sum of units */
    list_entry *list;      /* the selected branch's rows, ascending in each block; else NULL */
    int32_t *chunk_counts; /* [Hkv,chunks,stride] selected: rows in each chunk, then offsets */
    int64_t chunk, chunks; /* rows of a chunk; their number */
    real *partial;         /* [units][2][BLOCK][wp]: a unit's sums for dv, then for dk */
} inverse_list;

/* What the attention kernels of backward need beyond the stage's own fields; in host memory. */
typedef struct scratch {
    row_terms *terms;
    uint4 *ds;
    int64_t ds_tiles;
    inverse_list inverse; /* buffers that each branch uses in turn */
    list_entry *list;
} scratch;

/* Units of a block that `count` rows see. */
static __host__ __device__ __forceinline__ int64_t units_of(int64_t count) {
    return (count + UNIT_ROWS - 1) / UNIT_ROWS;
}

/* The tile of dS of a row tile of the slice and one of the blocks that it sees: at place b % width
 * for compressed and window blocks, of which a row sees `width` neighbours at most, at
 * selected_place() for selected ones. It is stored as [4][32 lanes] pieces: of each 16 keys the
 * fragment of dS^T. */
static __device__ __forceinline__ uint4 *ds_tile(const grad_args *a, const inverse_list *inv,
                                                 int64_t tile, int place) {
    const int64_t first = inv->first_row * a->f.c.Hkv * a->f.c.GT;
    return a->ds + ((tile - first) * inv->width + place) * DS_TILE;
}

/* backward_attend.cu */
nsa_status open_queries(stage *st, scratch *s);
nsa_status gate_backward(stage *st, const grad_args *args);
nsa_status backward_queries(stage *st, const grad_args *args, const inverse_list *inv);

/* backward_inverse.cu */
void open_inverse_list(stage *st, scratch *s);
/* Of the slice that begins with row `first`. */
nsa_status build_inverse_list(stage *st, const grad_args *args, int branch, int64_t first,
                              inverse_list *inv);

/* backward_keys.cu */
nsa_status open_keys(stage *st);
nsa_status backward_keys(stage *st, const grad_args *args, const inverse_list *inv);

#endif

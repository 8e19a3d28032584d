/** @file
 *  @brief P and dS as stage 03 makes them: queries are the rows, a warp a query. */
#ifndef FLOAT_ROWS_CUH
#define FLOAT_ROWS_CUH

#include "problem.cuh"
#include "../float_tile.cuh"

/* Q^T and dO^T [D][G] of query t, one behind the other. */
static __device__ __forceinline__ void float_load_rows(float *s_q, const problem *pb, int t) {
    float_load_query(s_q, pb->q + query_offset(t));
    float_load_query(s_q + D * G, pb->dout + query_offset(t));
}

/* S = Q K^T and dP = dO V^T [16,64] of query t against a block; they become gate P and dS, 0 where
 * a key is not visible. */
static __device__ __forceinline__ void float_recompute(float_tile *p, float_tile *ds,
                                                       const problem *pb, const float *s_q, int t,
                                                       int block) {
    const uint64_t visible = visible_mask(pb, t, block) >> float_col();
    *p = *ds = {};
    float_matmul<D>(p, s_q, G, pb->kt + block_offset(block));
    float_matmul<D>(ds, s_q + D * G, G, pb->vt + block_offset(block));
#pragma unroll
    for (int i = 0; i < FLOAT_ROWS; i++) {
        const row_terms term = pb->terms32[(int64_t)t * G + float_row() + i];
        for (int j = 0; j < FLOAT_COLS; j++) {
            float *x = &p->x[i][j], *y = &ds->x[i][j];
            *x = visible >> j & 1 ? exp_score(pb->scale2, *x, term.row_max) * term.weight : 0;
            *y = visible >> j & 1 ? *x * (*y - term.dgate) : 0;
        }
    }
}

/* A tile times `by` to memory. */
static __device__ __forceinline__ void float_store_scaled(float *to, float_tile *x, float by) {
    for (int i = 0; i < FLOAT_ROWS * FLOAT_COLS; i++)
        x->x[i / FLOAT_COLS][i % FLOAT_COLS] *= by;
    float_store(to, x);
}

#endif

/** @file
 *  @brief The chain `inverse_list`: its problem, the lists that the backward needs for dk and
 *  dv.
 *
 *  The query row at position t has selected the blocks idx[t] of 64 keys. Wanted is the
 *  inverse: for each block the rows that selected it, ascending, so that what is added up row
 *  after row is added in one order in every run. The lists lie one after the other; start says
 *  where each begins.
 *
 *  Stage 02 needs no such list: a thread there owns tiles of rows, and dk and dv of its own. */
#ifndef INVERSE_LIST_PROBLEM_CUH
#define INVERSE_LIST_PROBLEM_CUH

#include "../steps.cuh"

/* All pointers are to device memory. */
typedef struct inverse_list_problem {
    int T, n, blocks;   /* rows; blocks that a row selects; ceil(T/BLOCK) */
    const int32_t *idx; /* [T,n] the blocks of each row, ascending; -1 after the last */
    int32_t *count;     /* [blocks] rows of each block */
    int32_t *start;    /* [blocks+1] where a block's rows begin in `list`; the last: their number */
    int32_t *list;     /* [T*n] the rows, ascending in each block */
    int chunk, chunks; /* rows of a chunk; chunks (steps 1 to 4) */
    int32_t *chunk_counts; /* [chunks,blocks] rows of a block in each chunk, then offsets */
} problem;

nsa_status inverse_list_0_thread_block(const problem *pb);
nsa_status inverse_list_1_count(const problem *pb);
nsa_status inverse_list_2_scatter(const problem *pb);
nsa_status inverse_list_3_lanes(const problem *pb);
nsa_status inverse_list_4_scan(const problem *pb);

#endif

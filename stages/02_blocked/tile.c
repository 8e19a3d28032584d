/** @file
 *  @brief The matrix product, from tiles. */
#include "tile.h"

void matmul(int64_t M, int64_t N, int64_t K, operand a, const float *b, int64_t ldb, float *c,
            int64_t ldc, int add) {
#if defined(__AVX512F__)
    for (; N >= 4 * LANES; N -= 4 * LANES, b += 4 * LANES, c += 4 * LANES)
        column(4, M, K, a, b, ldb, c, ldc, add, NULL);
    if (N >= 2 * LANES) {
        column(2, M, K, a, b, ldb, c, ldc, add, NULL);
        N -= 2 * LANES, b += 2 * LANES, c += 2 * LANES;
    }
#endif
    for (; N > 0; N -= LANES, b += LANES, c += LANES)
        column(1, M, K, a, b, ldb, c, ldc, add, NULL);
}

void matmul_prefetch(int64_t M, int64_t N, int64_t K, operand a, const float *b, int64_t ldb,
                     float *c, int64_t ldc, int add, const float *next) {
    for (; next && N >= TILE_VECS * LANES; N -= TILE_VECS * LANES) {
        column(TILE_VECS, M, K, a, b, ldb, c, ldc, add, next);
        b += TILE_VECS * LANES, c += TILE_VECS * LANES, next += TILE_VECS * LANES;
    }
    matmul(M, N, K, a, b, ldb, c, ldc, add); /* all without next; else what is left is short */
}

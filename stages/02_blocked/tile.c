/** @file
 *  @brief The matrix product, from register tiles. */
#include "tile.h"

/* One product, for as many columns of B and C as one tile has. Attention's are small: G or 64 rows,
 * 64 to 256 columns; the mlp's are larger. B lies as it is needed, so nothing is packed first. */
typedef struct product {
    int64_t K;
    matrix a, b, c;
    int add; /* to what C holds */
} product;

/* The first MR rows, NV vectors wide: constants at every call, so that acc stays in registers. */
static inline __attribute__((always_inline)) void tile(int MR, int NV, int prefetch, product p) {
    vec acc[TILE_ROWS][TILE_COLS / VEC];
    for (int i = 0; i < MR; i++) {
        for (int n = 0; n < NV; n++)
            acc[i][n] = p.add ? *(const vec *)(p.c.at + i * p.c.row + n * VEC) : (vec){0};
    }
    for (int64_t k = 0; k < p.K; k++) {
        vec row[TILE_COLS / VEC];
        for (int n = 0; prefetch && n < NV * VEC; n += LANES) /* a cache line */
            __builtin_prefetch(p.b.next + k * p.b.row + n);
        for (int n = 0; n < NV; n++)
            row[n] = *(const vec *)(p.b.at + k * p.b.row + n * VEC);
        for (int i = 0; i < MR; i++) {
            const float s = p.a.at[i * p.a.row + k * p.a.col];
            for (int n = 0; n < NV; n++)
                acc[i][n] += s * row[n];
        }
    }
    for (int i = 0; i < MR; i++) {
        for (int n = 0; n < NV; n++)
            *(vec *)(p.c.at + i * p.c.row + n * VEC) = acc[i][n];
    }
}

/* NV vectors of all M rows: whole tiles, then the rows that are left. The last ten are two tiles of
 * five, so the 16 heads of a group are 6, 5 and 5: as 6, 6 and 4 they took 7% longer, for a tile of
 * four is bound by its loads (12 for 8 multiply-adds at each k; here 7 for 10). Every element of C
 * is the same sum over k in the same order, whichever tile it falls into: equal rows give equal
 * bits. The first tile prefetches, if it is whole: fewer rows have nothing to hide it behind. */
static inline __attribute__((always_inline)) void column(int NV, int64_t M, product p) {
    for (int64_t rows; M > 0; M -= rows, p.a.at += rows * p.a.row, p.c.at += rows * p.c.row) {
        rows = M == 10 || M == 5 ? 5 : M >= TILE_ROWS ? TILE_ROWS : M >= 4 ? 4 : 1;
        if (rows == TILE_ROWS && p.b.next)
            tile(TILE_ROWS, NV, 1, p);
        else if (rows == TILE_ROWS)
            tile(TILE_ROWS, NV, 0, p);
        else if (rows == 5)
            tile(5, NV, 0, p);
        else if (rows == 4)
            tile(4, NV, 0, p);
        else
            tile(1, NV, 0, p);
        p.b.next = NULL;
    }
}

/* Columns of tiles: those of TILE_COLS, then of LANES, of which N is a multiple. */
static inline __attribute__((always_inline)) void multiply(int64_t M, int64_t N, product p) {
    for (int64_t cols; N > 0; N -= cols, p.b.at += cols, p.c.at += cols) {
        cols = N >= TILE_COLS ? TILE_COLS : LANES;
        if (cols == TILE_COLS)
            column(TILE_COLS / VEC, M, p);
        else
            column(LANES / VEC, M, p);
        p.b.next = p.b.next ? p.b.next + cols : NULL;
    }
}

void matmul(int64_t M, int64_t N, int64_t K, matrix a, matrix b, matrix c) {
    multiply(M, N, (product){K, a, b, c, 0});
}

void matmul_add(int64_t M, int64_t N, int64_t K, matrix a, matrix b, matrix c) {
    multiply(M, N, (product){K, a, b, c, 1});
}

// Tensor core instructions as collectives of a whole warp.
#include "tensor_core.h"

#include "numbers.h"
#include "warp.h"

namespace simt {

static const uint32_t WHOLE = 0xffffffffu;

// ------------------------------------------------------------------------- mma

typedef float Row8 __attribute__((vector_size(32))); // compilers split it where they must

// The operands of a warp's instruction; each lane writes and reads its own elements.
struct Operands {
    unsigned a[4][32]; // as in the lanes' registers
    Row8 b[16], c[16];
};
static Operands operands[MAX_WARPS];

// bfloat16 is the upper half of a float.
static void unpack(float *eight, const unsigned *pairs) {
    typedef unsigned short Half8 __attribute__((vector_size(16)));
    typedef unsigned Word8 __attribute__((vector_size(32)));
    Half8 halves;
    memcpy(&halves, pairs, sizeof halves);
    Word8 words = __builtin_convertvector(halves, Word8) << 16;
    memcpy(eight, &words, sizeof words);
}

// Every element of C is summed in the order of k.
static __attribute__((noinline)) void mma_done(uint32_t, int warp) {
    Operands &o = operands[warp];
    float a[16][16];
    for (int i = 0; i < 4; i++)
        for (int g = 0; g < 8; g++)
            unpack(&a[g + 8 * (i & 1)][8 * (i >> 1)], &o.a[i][4 * g]);
    for (int row = 0; row < 16; row += 4) {
        Row8 c0 = o.c[row], c1 = o.c[row + 1], c2 = o.c[row + 2], c3 = o.c[row + 3];
        for (int k = 0; k < 16; k++) {
            c0 += a[row][k] * o.b[k];
            c1 += a[row + 1][k] * o.b[k];
            c2 += a[row + 2][k] * o.b[k];
            c3 += a[row + 3][k] * o.b[k];
        }
        o.c[row] = c0, o.c[row + 1] = c1, o.c[row + 2] = c2, o.c[row + 3] = c3;
    }
}

// Lane 4 g + t holds rows g and g + 8 of A, column g of B, rows g and g + 8 of C; t selects two
// neighbours along k, or along C's columns. (PTX manual, mma.m16n8k16, .bf16.)
Turn mma_arrive(const float *c, const unsigned *a, const unsigned *b, Where where) {
    if (launch_major < 8)
        fail("mma (%s:%d): bfloat16 needs sm_80 and up: set NSA_SIMT_DEVICE=sm_80", where.file,
             where.line);
    Operands &o = operands[self >> 5];
    int mine = lane(), g = mine >> 2, t = mine & 3;
    for (int i = 0; i < 4; i++)
        o.a[i][mine] = a[i];
    for (int i = 0; i < 2; i++) {
        o.b[2 * t + 8 * i][g] = bits_of<float>(b[i] << 16);
        o.b[2 * t + 8 * i + 1][g] = bits_of<float>(b[i] & 0xffff0000u);
    }
    memcpy((float *)&o.c[g] + 2 * t, c, 8);
    memcpy((float *)&o.c[g + 8] + 2 * t, c + 2, 8);
    return meet("mma.m16n8k16", WHOLE, where, mma_done);
}

void mma_result(float *c) {
    const Operands &o = operands[self >> 5];
    int g = lane() >> 2, t = lane() & 3;
    memcpy(c, (const float *)&o.c[g] + 2 * t, 8);
    memcpy(c + 2, (const float *)&o.c[g + 8] + 2 * t, 8);
}

// -------------------------------------------------------------------- ldmatrix

struct Matrices {
    const unsigned short *row[32];
    unsigned fragment[4][32]; // what lane i gets of matrix m
};
static Matrices matrices[MAX_WARPS];

static void check_rows(const Matrices &m, int warp) {
    for (int i = 0; copies_used && i < 32; i++)
        copies_check(warp << 5 | i, m.row[i]);
}

// Lanes 8 m .. 8 m + 7 point to the rows of matrix m. Lane 4 r + t gets elements 2 t and 2 t + 1 of
// row r of each matrix, so that the fragments of lanes 4 r .. 4 r + 3 are that row.
static __attribute__((noinline)) void ldmatrix_done(uint32_t, int warp) {
    Matrices &m = matrices[warp];
    check_rows(m, warp);
    for (int i = 0; i < 32; i++)
        memcpy(&m.fragment[i >> 3][4 * (i & 7)], m.row[i], 16);
}

// Transposed: lane 4 r + t gets elements 2 t and 2 t + 1 of column r.
static __attribute__((noinline)) void transposed_done(uint32_t, int warp) {
    Matrices &m = matrices[warp];
    check_rows(m, warp);
    for (int i = 0; i < 32; i += 2)
        for (int r = 0; r < 8; r++)
            m.fragment[i >> 3][4 * r + (i >> 1 & 3)] = m.row[i][r] | (unsigned)m.row[i + 1][r]
                                                                         << 16;
}

Turn ldmatrix_arrive(const void *row, bool transposed, Where where) {
    if ((uintptr_t)row % 16)
        fail("ldmatrix (%s:%d): address %p is not a multiple of 16", where.file, where.line, row);
    if (!shared_owns(row, 16))
        fail("ldmatrix (%s:%d): address %p is not in shared memory", where.file, where.line, row);
    matrices[self >> 5].row[lane()] = (const unsigned short *)row;
    if (transposed)
        return meet("ldmatrix.x4.trans", WHOLE, where, transposed_done);
    return meet("ldmatrix.x4", WHOLE, where, ldmatrix_done);
}

void ldmatrix_result(unsigned *fragment) {
    for (int i = 0; i < 4; i++)
        fragment[i] = matrices[self >> 5].fragment[i][lane()];
}

// ------------------------------------------------------------------- movmatrix

struct Matrix {
    unsigned from[32], to[32];
};
static Matrix moved[MAX_WARPS];

// Lane 4 r + t has elements 2 t and 2 t + 1 of row r, and gets those of column r.
static __attribute__((noinline)) void movmatrix_done(uint32_t, int warp) {
    Matrix &m = moved[warp];
    for (int i = 0; i < 32; i++) {
        int r = i >> 2, t = i & 3, half = 16 * (r & 1);
        unsigned first = m.from[8 * t + r / 2], second = m.from[8 * t + 4 + r / 2];
        m.to[i] = (first >> half & 0xffff) | (second >> half & 0xffff) << 16;
    }
}

Turn movmatrix_arrive(unsigned pair, Where where) {
    moved[self >> 5].from[lane()] = pair;
    return meet("movmatrix.trans", WHOLE, where, movmatrix_done);
}

unsigned movmatrix_result() {
    return moved[self >> 5].to[lane()];
}

} // namespace simt

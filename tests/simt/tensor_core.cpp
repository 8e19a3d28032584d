// Tensor core instructions as warp collectives, and asynchronous copies, done when waited for.
#include "tensor_core.h"

#include "bf16.h"

#include "engine.h"

#include <vector>

namespace simt {

// ------------------------------------------------------------------------- mma

struct Fragments {
    float *c;
    const unsigned *a, *b;
};

static float half(unsigned pair, int which) {
    return bf16_value((unsigned short)(pair >> 16 * which));
}

// Lane 4 g + t holds rows g and g + 8 of A, column g of B, rows g and g + 8 of C; t selects two
// neighbours along k, or along C's columns. (PTX manual, mma.m16n8k16, .bf16.)
static void mma_done(uint32_t, void **record) {
    float a[16][16], b[16][8];
    for (int lane = 0; lane < 32; lane++) {
        const Fragments *f = (const Fragments *)record[lane];
        int g = lane >> 2, t = lane & 3;
        for (int i = 0; i < 8; i++)
            a[g + 8 * (i >> 1 & 1)][2 * t + 8 * (i >> 2) + (i & 1)] = half(f->a[i >> 1], i & 1);
        for (int i = 0; i < 4; i++)
            b[2 * t + 8 * (i >> 1) + (i & 1)][g] = half(f->b[i >> 1], i & 1);
    }
    for (int lane = 0; lane < 32; lane++) {
        float *c = ((const Fragments *)record[lane])->c;
        int g = lane >> 2, t = lane & 3;
        for (int i = 0; i < 4; i++)
            for (int k = 0; k < 16; k++)
                c[i] += a[g + 8 * (i >> 1)][k] * b[k][2 * t + (i & 1)];
    }
}

void mma_m16n8k16_bf16(float *c, const unsigned *a, const unsigned *b, Where where) {
    if (device_major() < 8)
        fail("mma (%s:%d): bfloat16 needs sm_80 and up: set NSA_SIMT_DEVICE=sm_80", where.file,
             where.line);
    Fragments mine = {c, a, b};
    meet("mma.m16n8k16", 0xffffffffu, mma_done, &mine, where);
}

// -------------------------------------------------------------------- ldmatrix

struct Rows {
    unsigned *fragment;
    const unsigned short *row;
    bool transposed;
};

// Lanes 8 m .. 8 m + 7 point to the rows of matrix m. Lane 4 r + t gets elements 2 t and 2 t + 1 of
// row r of each matrix, or of column r if transposed.
static void ldmatrix_done(uint32_t, void **record) {
    for (int lane = 0; lane < 32; lane++) {
        const Rows *mine = (const Rows *)record[lane];
        int r = lane >> 2, t = lane & 3;
        for (int m = 0; m < 4; m++) {
            unsigned pair[2];
            for (int i = 0; i < 2; i++) {
                int row = mine->transposed ? 2 * t + i : r,
                    column = mine->transposed ? r : 2 * t + i;
                pair[i] = ((const Rows *)record[8 * m + row])->row[column];
            }
            mine->fragment[m] = pair[0] | pair[1] << 16;
        }
    }
}

void ldmatrix_x4(unsigned *fragment, const void *row, bool transposed, Where where) {
    if ((uintptr_t)row % 16)
        fail("ldmatrix (%s:%d): address %p is not a multiple of 16", where.file, where.line, row);
    if (!shared_owns(row, 16))
        fail("ldmatrix (%s:%d): address %p is not in shared memory", where.file, where.line, row);
    Rows mine = {fragment, (const unsigned short *)row, transposed};
    meet(transposed ? "ldmatrix.x4.trans" : "ldmatrix.x4", 0xffffffffu, ldmatrix_done, &mine,
         where);
}

// ------------------------------------------------------------------- movmatrix

// Lane 4 r + t has elements 2 t and 2 t + 1 of row r, and gets those of column r.
static void movmatrix_done(uint32_t, void **record) {
    unsigned from[32];
    for (int lane = 0; lane < 32; lane++)
        from[lane] = *(const unsigned *)record[lane];
    for (int lane = 0; lane < 32; lane++) {
        int r = lane >> 2, t = lane & 3;
        unsigned pair = 0;
        for (int i = 0; i < 2; i++)
            pair |= (from[4 * (2 * t + i) + r / 2] >> 16 * (r & 1) & 0xffff) << 16 * i;
        *(unsigned *)record[lane] = pair;
    }
}

unsigned movmatrix_trans(unsigned pair, Where where) {
    meet("movmatrix.trans", 0xffffffffu, movmatrix_done, &pair, where);
    return pair;
}

// ------------------------------------------------------------------- cp.async

struct PendingCopy {
    void *to;
    const void *from; // NULL: zeros
    int group;
};

static std::vector<PendingCopy> pending_copies[MAX_THREADS];
static int group[MAX_THREADS]; // current group of each thread's copies
static bool any_pending;

void copies_reset() {
    if (!any_pending)
        return;
    for (int i = 0; i < MAX_THREADS; i++)
        pending_copies[i].clear(), group[i] = 0;
    any_pending = false;
}

void copy_async(void *shared, const void *global, bool valid, Where where) {
    if ((uintptr_t)shared % 16 || (valid && (uintptr_t)global % 16))
        fail("cp.async (%s:%d): to %p from %p, not both multiples of 16", where.file, where.line,
             shared, global);
    if (!shared_owns(shared, 16))
        fail("cp.async (%s:%d): the destination %p is not in shared memory", where.file, where.line,
             shared);
    if (valid && arena_device(global) < 0)
        fail("cp.async (%s:%d): the source %p is not in device memory", where.file, where.line,
             global);
    any_pending = true;
    memset(shared, 0xff, 16);
    pending_copies[self].push_back({shared, valid ? global : nullptr, group[self]});
}

void copy_commit() {
    any_pending = true;
    group[self]++;
}

void copy_wait(int pending) {
    size_t kept = 0;
    for (const PendingCopy &copy : pending_copies[self]) {
        if (copy.group >= group[self] - pending)
            pending_copies[self][kept++] = copy;
        else if (copy.from)
            memcpy(copy.to, copy.from, 16);
        else
            memset(copy.to, 0, 16);
    }
    pending_copies[self].resize(kept);
}

} // namespace simt

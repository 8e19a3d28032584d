// Asynchronous copies that are read too early: by ldmatrix, which reports it, and by plain reads,
// which get NaN.
#include "test.cuh"

#ifdef NSA_SIMT

#include "common/device_mma.h"

#include "common/fence.h"

// What stands between a copy and the read of what another thread copied.
enum between { NO_WAIT, WAIT, SHUFFLE, SYNCWARP, HALF_SYNCWARP, FENCE, SYNCTHREADS };

static __device__ void pass(enum between what) {
    if (what != NO_WAIT)
        nsa_cp_async_wait<0>();
    if (what == SHUFFLE)
        (void)__shfl_xor_sync(0xffffffffu, 1, 1);
    if (what == SYNCWARP)
        __syncwarp();
    if (what == HALF_SYNCWARP)
        __syncwarp(threadIdx.x & 16 ? 0xffff0000u : 0x0000ffffu);
    if (what == FENCE)
        __threadfence_block();
    if (what == SYNCTHREADS)
        __syncthreads();
}

// Every thread copies a row; ldmatrix reads the rows of its own warp, or with `apart` 32 of the
// other one.
enum { COPY_LINE = __LINE__ + 7 }; // of the cp.async, for the reports

template <bool trans>
static __global__ void matrices(const uint4 *from, unsigned *to, enum between what, int apart) {
    __shared__ uint4 s_rows[64];
    int i = (int)threadIdx.x;
    unsigned r[4];
    nsa_cp_async_16(s_rows + i, from + i);
    nsa_cp_async_commit();
    pass(what);
    if (trans)
        nsa_ldmatrix_x4_trans(r, s_rows + (i ^ apart));
    else
        nsa_ldmatrix_x4(r, s_rows + (i ^ apart));
    to[i] = r[0] + r[1] + r[2] + r[3];
}

// Plain reads of the next lane's copy, and of one's own, which is changed before other lanes run.
static __global__ void plain(const float *from, float *next, float *mine, enum between what) {
    NSA_DYNAMIC_SHARED(float, s_a);
    int i = (int)threadIdx.x, j = (i + 1) & 31;
    nsa_cp_async_16(s_a + 4 * i, from + 4 * i);
    nsa_cp_async_commit();
    pass(what);
    next[i] = s_a[4 * j];
    s_a[4 * i + 1] += 1;
    __shfl_sync(0xffffffffu, 0, 0);
    mine[i] = s_a[4 * i] + s_a[4 * i + 1];
}

// A ring of two rows for each thread alone needs no barrier, however often it goes round.
static __global__ void alone(const float *from, float *to) {
    __shared__ __align__(16) float s_ring[2][32 * 4];
    int i = 4 * (int)threadIdx.x;
    float sum = 0;
    nsa_cp_async_16(&s_ring[0][i], from + i);
    nsa_cp_async_commit();
    for (int k = 0; k < 6; k++) {
        nsa_cp_async_16(&s_ring[(k + 1) % 2][i], from + i);
        nsa_cp_async_commit();
        nsa_cp_async_wait<1>();
        sum += __shfl_xor_sync(0xffffffffu, s_ring[k % 2][i], 1);
        sum += s_ring[k % 2][i + 1];
    }
    to[threadIdx.x] = sum;
}

template <bool trans> static void test_matrices() {
    unsigned *g_to = device<unsigned>(64);
    float ones[256];
    for (float &x : ones)
        x = 1;
    const uint4 *g_from = (const uint4 *)device(256, ones);
    auto run = [&](enum between what, int apart) {
        NSA_LAUNCH(matrices<trans>, dim3(2), dim3(64), 0, (cudaStream_t)0, g_from, g_to, what,
                   apart);
    };
    const char *reads = trans ? "ldmatrix.x4.trans (tests/simt/test/async.cu:"
                              : "ldmatrix.x4 (tests/simt/test/async.cu:";
    char text[200];
    auto report = [&](const char *why) {
        snprintf(text, sizeof text, ",0,0), cp.async (tests/simt/test/async.cu:%d), %s", COPY_LINE,
                 why);
        expect_report("matrices", reads, text);
    };
    run(NO_WAIT, 0), report("which has not waited for it");
    run(WAIT, 0), report("with no __syncwarp or __syncthreads after its wait");
    run(SHUFFLE, 0), report("with no __syncwarp or __syncthreads after its wait");
    run(HALF_SYNCWARP, 0), report("with no __syncwarp or __syncthreads after its wait");
    run(WAIT, 32), report("");
    run(SYNCWARP, 32), report("");
    for (enum between what : {SYNCWARP, FENCE, SYNCTHREADS})
        run(what, 0);
    run(SYNCTHREADS, 32);
    EXPECT_OK(cudaGetLastError());
    free_all();
}

static void test_plain() {
    float ones[128], next[32], mine[32], *g_from, *g_next = device<float>(32);
    float *g_mine = device<float>(32);
    for (float &x : ones)
        x = 1;
    g_from = device(128, ones);
    for (enum between what : {NO_WAIT, WAIT, SHUFFLE, SYNCWARP, SYNCTHREADS}) {
        int seen = 0, right = 0, late = what == SYNCWARP || what == SYNCTHREADS;
        NSA_LAUNCH(plain, dim3(1), dim3(32), 512, (cudaStream_t)0, g_from, g_next, g_mine, what);
        EXPECT_OK(cudaGetLastError());
        copy_to_host(next, g_next, 32), copy_to_host(mine, g_mine, 32);
        nsa_show(next, sizeof next), nsa_show(mine, sizeof mine);
        for (int i = 0; i < 32; i++)
            seen += next[i] == 1, right += mine[i] == 3;
        EXPECT(seen == (late ? 32 : 0), "plain %d: %d lanes see the next one's copy", what, seen);
        EXPECT(right == (what == NO_WAIT ? 0 : 32), "plain %d: %d see their own", what, right);
    }
    NSA_LAUNCH(alone, dim3(1), dim3(32), 0, (cudaStream_t)0, g_from, g_next);
    EXPECT_OK(cudaGetLastError());
    copy_to_host(next, g_next, 32);
    EXPECT(next[0] == 12 && next[31] == 12, "alone: %g, not 12", (double)next[0]);
    free_all();
}

void test_async() {
    test_matrices<false>();
    test_matrices<true>();
    test_plain();
}

#endif

// bfloat16, tensor cores and asynchronous copies, compared with plain loops.
#include "test.cuh"

#include "common/device_mma.h"

#include <math.h>

// One warp: A [16,16] by rows in shared memory through ldmatrix, B [16,8] by rows through its
// transposed form (whose other half is B again), C [16,8].
static __global__ void multiply(const __nv_bfloat16 *a, const __nv_bfloat16 *b, float *c) {
    __shared__ __align__(16) __nv_bfloat16 s_a[16 * 16];
    __shared__ __align__(16) __nv_bfloat16 s_b[16 * 8];
    int lane = (int)threadIdx.x, g = lane / 4, t = lane % 4;
    for (int i = lane; i < 256; i += 32)
        s_a[i] = a[i];
    for (int i = lane; i < 128; i += 32)
        s_b[i] = b[i];
    __syncwarp();
    unsigned r_a[4], r_b[4], r_first[2];
    float r_c[4] = {1, 1, 1, 1};
    nsa_ldmatrix_x4(r_a, s_a + lane % 16 * 16 + lane / 16 * 8);
    nsa_ldmatrix_x4_trans(r_b, s_b + lane % 16 * 8);
    r_first[0] = r_b[0], r_first[1] = r_b[1];
    nsa_mma_m16n8k16_bf16(r_c, r_a, r_first);
    for (int i = 0; i < 4; i++)
        c[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = r_c[i];
}

static void test_multiply() {
    __nv_bfloat16 a[256], b[128];
    float c[128], worst = 0;
    for (int i = 0; i < 256; i++)
        a[i] = __float2bfloat16((float)(i * 37 % 101) / 50 - 1);
    for (int i = 0; i < 128; i++)
        b[i] = __float2bfloat16((float)(i * 53 % 97) / 48 - 1);
    float *g_c = device<float>(128);
    NSA_LAUNCH(multiply, dim3(1), dim3(32), 0, (cudaStream_t)0, device(256, a), device(128, b),
               g_c);
    EXPECT_OK(cudaGetLastError());
    copy_to_host(c, g_c, 128);
    for (int i = 0; i < 16; i++)
        for (int j = 0; j < 8; j++) {
            float sum = 1;
            for (int k = 0; k < 16; k++)
                sum += __bfloat162float(a[i * 16 + k]) * __bfloat162float(b[k * 8 + j]);
            worst = fmaxf(worst, fabsf(sum - c[i * 8 + j]));
            worst = c[i * 8 + j] == c[i * 8 + j] ? worst : 1; // NaN
        }
    EXPECT(worst < 1e-5f, "multiply: off by %g", (double)worst);
    free_all();
}

// Element (i,j) of an 8 x 8 matrix is 8 i + j; transposed, lane 4 g + t has (2t, g) and (2t+1, g).
static __global__ void transpose(unsigned *pair) {
    const int i = (int)threadIdx.x / 4 * 8 + (int)threadIdx.x % 4 * 2;
    pair[threadIdx.x] = nsa_movmatrix_trans((unsigned)(i | (i + 1) << 16));
}

static void test_transpose() {
    unsigned pair[32];
    int wrong = 0;
    unsigned *g_pair = device<unsigned>(32);
    NSA_LAUNCH(transpose, dim3(1), dim3(32), 0, (cudaStream_t)0, g_pair);
    EXPECT_OK(cudaGetLastError());
    copy_to_host(pair, g_pair, 32);
    for (int i = 0; i < 32; i++) {
        const int first = i % 4 * 2 * 8 + i / 4;
        wrong += pair[i] != (unsigned)(first | (first + 8) << 16);
    }
    EXPECT(wrong == 0, "transpose: %d of 32 are wrong", wrong);
    free_all();
}

#ifdef NSA_SIMT
// A device without tensor cores for bfloat16.
static void test_old_device() {
    setenv("NSA_SIMT_DEVICE", "sm_75", 1);
    const __nv_bfloat16 zeros[256] = {};
    NSA_LAUNCH(multiply, dim3(1), dim3(32), 0, (cudaStream_t)0, device(256, zeros),
               device(128, zeros), device<float>(128));
    expect_report("mma on sm_75", "kernel multiply", "bfloat16 needs sm_80");
    setenv("NSA_SIMT_DEVICE", "sm_80", 1); // as in main()
    free_all();
}
#endif

enum { STAGES = 3, CHUNK = 128 }; // chunks in flight; floats of one

// One block sums chunks that arrive through a ring of STAGES buffers; the last chunk is half full.
static __global__ void pipeline(const float *a, float *sum, int n) {
    NSA_DYNAMIC_SHARED(float, s_ring);
    int i = (int)threadIdx.x * 4, chunks = (n + CHUNK - 1) / CHUNK;
    float mine = 0;
    for (int c = 0; c < STAGES - 1; c++) {
        if (c < chunks)
            nsa_cp_async_16(s_ring + c * CHUNK + i, a + c * CHUNK + i, c * CHUNK + i < n);
        nsa_cp_async_commit();
    }
    for (int c = 0; c < chunks; c++) {
        nsa_cp_async_wait<STAGES - 2>();
        __syncthreads();
        int next = c + STAGES - 1;
        if (next < chunks)
            nsa_cp_async_16(s_ring + next % STAGES * CHUNK + i, a + next * CHUNK + i,
                            next * CHUNK + i < n);
        nsa_cp_async_commit();
        for (int k = 0; k < 4; k++) // loaded by another thread
            mine += s_ring[c % STAGES * CHUNK + (CHUNK - 1 - i - k)];
    }
    sum[threadIdx.x] = mine;
}

static void test_pipeline() {
    const int n = 10 * CHUNK + CHUNK / 2;
    float a[n], sum[CHUNK / 4], all = 0, expected = 0;
    for (int i = 0; i < n; i++)
        a[i] = (float)(i % 13), expected += a[i];
    float *g_sum = device<float>(CHUNK / 4);
    NSA_LAUNCH(pipeline, dim3(1), dim3(CHUNK / 4), STAGES * CHUNK * sizeof(float), (cudaStream_t)0,
               device(n, a), g_sum, n);
    EXPECT_OK(cudaGetLastError());
    copy_to_host(sum, g_sum, CHUNK / 4);
    for (float s : sum)
        all += s;
    EXPECT(all == expected, "pipeline: %g, not %g", (double)all, (double)expected);
    free_all();
}

static __global__ void convert(const float *x, unsigned short *y, int n) {
    int i = (int)threadIdx.x;
    if (i < n)
        y[i] = __bfloat16_as_ushort(__float2bfloat16_rn(x[i]));
}

static void test_convert() {
    const float x[] = {1.0f,          -2.5f, 1.00390625f /* tie, to even */,
                       1.01171875f, // tie, up
                       3.4028235e38f, NAN,   INFINITY,
                       1e-40f,        -0.0f};
    const unsigned short want[] = {0x3f80, 0xc020, 0x3f80, 0x3f82, 0x7f80,
                                   0x7fff, 0x7f80, 0x0001, 0x8000};
    unsigned short y[9];
    unsigned short *g_y = device<unsigned short>(9);
    NSA_LAUNCH(convert, dim3(1), dim3(32), 0, (cudaStream_t)0, device(9, x), g_y, 9);
    EXPECT_OK(cudaGetLastError());
    copy_to_host(y, g_y, 9);
    for (int i = 0; i < 9; i++)
        EXPECT(y[i] == want[i], "convert: %g is %04x, not %04x", (double)x[i], y[i], want[i]);
    __nv_bfloat162 pair = __floats2bfloat162_rn(1.5f, -3.0f);
    EXPECT(__low2float(pair) == 1.5f && __high2float(pair) == -3.0f, "convert: a pair");
    free_all();
}

// Pairs by three ways that must agree, and 16 bytes of an array read as one vector.
static __global__ void pairs(const float *x, unsigned *pair, uint4 *eight) {
    __shared__ __align__(16) __nv_bfloat16 s_x[64];
    int i = (int)threadIdx.x;
    __nv_bfloat162 both = __floats2bfloat162_rn(x[2 * i], x[2 * i + 1]);
    s_x[2 * i] = __low2bfloat16(both), s_x[2 * i + 1] = __high2bfloat16(both);
    pair[i] = nsa_pack_bf16(__ldg(x + 2 * i), __ldg(x + 2 * i + 1));
    pair[32 + i] = *(const unsigned *)&both;
    __syncwarp();
    if (i < 8)
        eight[i] = *(const uint4 *)(s_x + 8 * i);
}

static void test_pairs() {
    float x[64];
    unsigned pair[64], eight[32];
    int wrong = 0;
    for (int i = 0; i < 64; i++)
        x[i] = (float)(i * 29 % 61) / 7 - 4;
    unsigned *g_pair = device<unsigned>(64);
    uint4 *g_eight = device<uint4>(8);
    NSA_LAUNCH(pairs, dim3(1), dim3(32), 0, (cudaStream_t)0, device(64, x), g_pair, g_eight);
    EXPECT_OK(cudaGetLastError());
    copy_to_host(pair, g_pair, 64), copy_to_host(eight, (const unsigned *)g_eight, 32);
    for (int i = 0; i < 32; i++) {
        unsigned want = __bfloat16_as_ushort(__float2bfloat16_rn(x[2 * i])) |
                        (unsigned)__bfloat16_as_ushort(__float2bfloat16_rn(x[2 * i + 1])) << 16;
        wrong += pair[i] != want || pair[32 + i] != want || eight[i] != want;
    }
    EXPECT(wrong == 0, "pairs: %d of 32 are wrong", wrong);
    free_all();
}

// Every bfloat16 as float32, and back.
static __global__ void there_and_back(const __nv_bfloat16 *x, float *value, __nv_bfloat16 *back) {
    int i = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    value[i] = nsa_load_float(x + i);
    nsa_store_float(back + i, value[i]);
}

static void test_every_value() {
    const int n = 1 << 16;
    unsigned short *x = new unsigned short[n], *back = new unsigned short[n];
    float *value = new float[n];
    int wrong = 0, nans = 0;
    for (int i = 0; i < n; i++)
        x[i] = (unsigned short)i;
    unsigned short *g_x = device(n, x), *g_back = device<unsigned short>(n);
    float *g_value = device<float>(n);
    NSA_LAUNCH(there_and_back, dim3(n / 256), dim3(256), 0, (cudaStream_t)0,
               (const __nv_bfloat16 *)g_x, g_value, (__nv_bfloat16 *)g_back);
    EXPECT_OK(cudaGetLastError());
    copy_to_host(back, g_back, n);
    copy_to_host(value, g_value, n);
    for (int i = 0; i < n; i++) {
        unsigned bits = (unsigned)i << 16;
        bool nan = (i & 0x7fff) > 0x7f80;
        nans += nan && isnan(value[i]) && (back[i] & 0x7fff) > 0x7f80;
        wrong += !nan && (memcmp(&bits, value + i, 4) || back[i] != x[i]);
    }
    EXPECT(wrong == 0, "every value: %d are wrong", wrong);
    EXPECT(nans == 2 * 127, "every value: %d NaN, not 254", nans);
    delete[] x;
    delete[] back;
    delete[] value;
    free_all();
}

void test_tensor() {
    test_multiply();
    test_transpose();
#ifdef NSA_SIMT
    test_old_device();
#endif
    test_pipeline();
    test_convert();
    test_pairs();
    test_every_value();
}

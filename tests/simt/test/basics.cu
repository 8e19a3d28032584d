// Correct kernels, compared with plain loops.
#include "test.cuh"

#include <math.h>

static __global__ void add(const float *a, const float *b, float *c, int n) {
    int i = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    if (i < n)
        c[i] = a[i] + b[i];
}

static void test_add() {
    const int n = 1000;
    float a[n], b[n], c[n];
    for (int i = 0; i < n; i++)
        a[i] = (float)i, b[i] = 2 * (float)i;
    float *g_c = device<float>(n);
    NSA_LAUNCH(add, dim3((n + 127) / 128), dim3(128), 0, (cudaStream_t)0, device(n, a),
               device(n, b), g_c, n);
    EXPECT_OK(cudaGetLastError());
    copy_to_host(c, g_c, n);
    int wrong = 0;
    for (int i = 0; i < n; i++)
        wrong += c[i] != 3 * (float)i;
    EXPECT(wrong == 0, "add: %d of %d are wrong", wrong, n);
    free_all();
}

// A tree reduction in shared memory, then one atomic a block. A template with its own shared array.
template <class T, int N> static __global__ void total(const T *a, T *sum, int n) {
    __shared__ T s_part[N];
    int i = (int)(blockIdx.x * N + threadIdx.x);
    s_part[threadIdx.x] = i < n ? a[i] : (T)0;
    __syncthreads();
    for (int half = N / 2; half; half /= 2) {
        if ((int)threadIdx.x < half)
            s_part[threadIdx.x] += s_part[threadIdx.x + half];
        __syncthreads();
    }
    if (threadIdx.x == 0)
        atomicAdd(sum, s_part[0]);
}

template <class T> static void test_total() {
    const int n = 3000;
    T a[n], zero = 0, sum = 0, expected = 0;
    for (int i = 0; i < n; i++)
        a[i] = (T)(i % 17), expected += a[i];
    T *g_sum = device(1, &zero);
    NSA_LAUNCH((total<T, 256>), dim3((n + 255) / 256), dim3(256), 0, (cudaStream_t)0, device(n, a),
               g_sum, n);
    EXPECT_OK(cudaGetLastError());
    copy_to_host(&sum, g_sum, 1);
    EXPECT(sum == expected, "total: %g, not %g", (double)sum, (double)expected);
    free_all();
}

// Tiles of 32 x 32 through dynamic shared memory, rows padded by one word.
static __global__ void transpose(const float *a, float *b, int rows, int columns) {
    NSA_DYNAMIC_SHARED(float, s_tile);
    int x = (int)(blockIdx.x * 32 + threadIdx.x);
    for (int y = (int)threadIdx.y; y < 32; y += (int)blockDim.y)
        if (x < columns && (int)blockIdx.y * 32 + y < rows)
            s_tile[y * 33 + (int)threadIdx.x] = a[((int)blockIdx.y * 32 + y) * columns + x];
    __syncthreads();
    x = (int)(blockIdx.y * 32 + threadIdx.x);
    for (int y = (int)threadIdx.y; y < 32; y += (int)blockDim.y)
        if (x < rows && (int)blockIdx.x * 32 + y < columns)
            b[((int)blockIdx.x * 32 + y) * rows + x] = s_tile[(int)threadIdx.x * 33 + y];
}

static void test_transpose() {
    const int rows = 45, columns = 70;
    float a[rows * columns], b[rows * columns];
    for (int i = 0; i < rows * columns; i++)
        a[i] = (float)i;
    float *g_b = device<float>(rows * columns);
    NSA_LAUNCH(transpose, dim3(3, 2), dim3(32, 8), 32 * 33 * sizeof(float), (cudaStream_t)0,
               device(rows * columns, a), g_b, rows, columns);
    EXPECT_OK(cudaGetLastError());
    copy_to_host(b, g_b, rows * columns);
    int wrong = 0;
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < columns; j++)
            wrong += b[j * rows + i] != a[i * columns + j];
    EXPECT(wrong == 0, "transpose: %d of %d are wrong", wrong, rows * columns);
    free_all();
}

// Each warp: an inclusive scan, the total by a butterfly, a broadcast of the last lane's value.
static __global__ void scan(const int *a, int *up, int *all, int *last, double *narrow) {
    int i = (int)(blockIdx.x * blockDim.x + threadIdx.x), lane = (int)threadIdx.x & 31;
    int sum = a[i];
    for (int d = 1; d < 32; d *= 2) {
        int below = __shfl_up_sync(0xffffffffu, sum, (unsigned)d);
        sum += lane >= d ? below : 0;
    }
    up[i] = sum;
    int both = a[i];
    for (int d = 16; d; d /= 2)
        both += __shfl_xor_sync(0xffffffffu, both, d);
    all[i] = both;
    last[i] = __shfl_sync(0xffffffffu, a[i], 31);
    narrow[i] = __shfl_down_sync(0xffffffffu, (double)a[i], 3, 8);
}

static void test_scan() {
    const int n = 128;
    int a[n], up[n], all[n], last[n], wrong = 0;
    double narrow[n];
    for (int i = 0; i < n; i++)
        a[i] = i * i % 23;
    int *g_up = device<int>(n), *g_all = device<int>(n), *g_last = device<int>(n);
    double *g_narrow = device<double>(n);
    NSA_LAUNCH(scan, dim3(2), dim3(64), 0, (cudaStream_t)0, device(n, a), g_up, g_all, g_last,
               g_narrow);
    EXPECT_OK(cudaGetLastError());
    copy_to_host(up, g_up, n), copy_to_host(all, g_all, n), copy_to_host(last, g_last, n),
        copy_to_host(narrow, g_narrow, n);
    for (int i = 0; i < n; i++) {
        int first = i & ~31, sum = 0, whole = 0;
        for (int j = first; j < first + 32; j++)
            sum += j <= i ? a[j] : 0, whole += a[j];
        wrong += up[i] != sum || all[i] != whole || last[i] != a[first + 31] ||
                 narrow[i] != a[(i & 7) + 3 < 8 ? i + 3 : i];
    }
    EXPECT(wrong == 0, "scan: %d of %d are wrong", wrong, n);
    free_all();
}

// Votes and reductions, the odd and the even lanes under masks of their own.
static __global__ void votes(const int *a, unsigned *r) {
    int i = (int)threadIdx.x, odd = i & 1;
    unsigned mask = odd ? 0xaaaaaaaau : 0x55555555u;
    unsigned *mine = r + i * 12;
    if (odd) {
        mine[0] = __ballot_sync(mask, a[i] > 5);
        mine[1] = (unsigned)__any_sync(mask, a[i] == 7);
    } else {
        mine[0] = __ballot_sync(mask, a[i] > 5);
        mine[1] = (unsigned)__any_sync(mask, a[i] == 7);
    }
    mine[2] = (unsigned)__all_sync(mask, a[i] >= 0);
#if defined NSA_SIMT || (defined __CUDA_ARCH__ && __CUDA_ARCH__ >= 800)
    mine[3] = (unsigned)__reduce_add_sync(mask, a[i]);
    mine[4] = (unsigned)__reduce_min_sync(mask, a[i] - 4);
    mine[5] = __reduce_max_sync(mask, (unsigned)a[i]);
    mine[10] = (unsigned)__reduce_max_sync(mask, a[i] - 100); // signed: all are negative
    mine[11] = __reduce_min_sync(mask, (unsigned)(a[i] - 4)); // unsigned: 0 is the least
#endif
    mine[6] = __match_any_sync(mask, a[i]);
    __syncwarp();
    mine[7] = (unsigned)__syncthreads_count(a[i] == 3);
    mine[8] = (unsigned)__syncthreads_or(a[i] == 100);
    mine[9] = (unsigned)__syncthreads_and(a[i] < 100);
}

static void test_votes() {
    int a[32], wrong = 0;
    unsigned r[32][12];
    for (int i = 0; i < 32; i++)
        a[i] = i * 7 % 11;
    unsigned *g_r = device<unsigned>(384);
    NSA_LAUNCH(votes, dim3(1), dim3(32), 0, (cudaStream_t)0, device(32, a), g_r);
    EXPECT_OK(cudaGetLastError());
    copy_to_host(&r[0][0], g_r, 384);
    for (int i = 0; i < 32; i++) {
        unsigned ballot = 0, same = 0, any = 0, min_a = 1000, max_a = 0, sum = 0, threes = 0;
        unsigned least = ~0u;
        for (int j = 0; j < 32; j++) {
            threes += a[j] == 3;
            if ((i ^ j) & 1)
                continue;
            ballot |= (unsigned)(a[j] > 5) << j, same |= (unsigned)(a[j] == a[i]) << j;
            any |= a[j] == 7, sum += (unsigned)a[j];
            min_a = (unsigned)a[j] < min_a ? (unsigned)a[j] : min_a;
            max_a = (unsigned)a[j] > max_a ? (unsigned)a[j] : max_a;
            least = (unsigned)(a[j] - 4) < least ? (unsigned)(a[j] - 4) : least;
        }
        wrong += r[i][0] != ballot || r[i][1] != any || r[i][2] != 1 || r[i][3] != sum ||
                 r[i][4] != min_a - 4 || r[i][5] != max_a || r[i][6] != same || r[i][7] != threes ||
                 r[i][8] != 0 || r[i][9] != 1 || r[i][10] != max_a - 100 || r[i][11] != least;
    }
    EXPECT(wrong == 0, "votes: %d of 32 are wrong", wrong);
    free_all();
}

// Threads of a block take turns by a ticket: no thread may starve.
static __global__ void tickets(int *turn, int *seen) {
    while (atomicAdd(turn, 0) != (int)threadIdx.x)
        __threadfence();
    seen[threadIdx.x] = (int)threadIdx.x + 1;
    atomicExch(turn, (int)threadIdx.x + 1);
}

static __global__ void atomics(int *i, unsigned *u, unsigned long long *l, float *f) {
    atomicMax(i, (int)threadIdx.x), atomicMin(i + 1, -(int)threadIdx.x);
    atomicOr(u, 1u << threadIdx.x % 32), atomicAdd(u + 1, 2u);
    atomicAdd(l, 1ull << 33);
    atomicAdd(f, 0.5f);
    int old = i[2], now;
    do {
        now = old;
        old = atomicCAS(i + 2, now, now + 3);
    } while (old != now);
}

static void test_atomics() {
    int i[3] = {0, 0, 0}, turn = 0, seen[48];
    unsigned u[2] = {0, 0};
    unsigned long long l = 0;
    float f = 0;
    int *g_i = device(3, i), *g_turn = device(1, &turn), *g_seen = device<int>(48);
    unsigned *g_u = device(2, u);
    unsigned long long *g_l = device(1, &l);
    float *g_f = device(1, &f);
    NSA_LAUNCH(atomics, dim3(3), dim3(100), 0, (cudaStream_t)0, g_i, g_u, g_l, g_f);
    NSA_LAUNCH(tickets, dim3(1), dim3(48), 0, (cudaStream_t)0, g_turn, g_seen);
    EXPECT_OK(cudaGetLastError());
    copy_to_host(i, g_i, 3), copy_to_host(u, g_u, 2), copy_to_host(&l, g_l, 1),
        copy_to_host(&f, g_f, 1);
    copy_to_host(seen, g_seen, 48), copy_to_host(&turn, g_turn, 1);
    EXPECT(i[0] == 99 && i[1] == -99 && i[2] == 900, "atomics: %d %d %d", i[0], i[1], i[2]);
    EXPECT(u[0] == ~0u && u[1] == 600 && l == 300ull << 33 && f == 150, "atomics: %x %u %g", u[0],
           u[1], (double)f);
    EXPECT(turn == 48 && seen[0] == 1 && seen[47] == 48, "tickets: %d", turn);
    free_all();
}

static __global__ void numbers(float *f, int *i, float x) {
    f[0] = rsqrtf(x), f[1] = __fdividef(x, 2.0f), f[2] = exp2f(3.0f), f[3] = fmaf(x, x, 1.0f);
    f[4] = fmaxf(x, -1.0f), f[5] = min(x, 2.0f), f[6] = __uint_as_float(0x40400000u);
    f[7] = __expf(0.0f), f[8] = __frcp_rn(x), f[9] = __fmul_rn(x, x);
    i[0] = __popc(0xf0f0u), i[1] = __ffs(8), i[2] = __clz(1), i[3] = (int)__brev(1u);
    i[4] = max(3, 5), i[5] = __clzll(1ll), i[6] = __popcll(~0ull), i[7] = __float_as_int(1.0f);
    i[8] = (int)(gridDim.x * 100 + blockDim.x * 10 + (unsigned)warpSize);
    i[9] = (int)__byte_perm(0x33221100u, 0x77665544u, 0x7041u);
}

static void test_numbers() {
    float f[10], want_f[10] = {0.5f, 2, 8, 17, 4, 2, 3, 1, 0.25f, 16};
    int i[10], want_i[10] = {8, 4, 31, (int)0x80000000u, 5, 63, 64, 0x3f800000, 142, 0x77004411};
    float *g_f = device<float>(10);
    int *g_i = device<int>(10);
    NSA_LAUNCH(numbers, dim3(1), dim3(1), 0, (cudaStream_t)0, g_f, g_i, 4.0f);
    EXPECT_OK(cudaGetLastError());
    copy_to_host(f, g_f, 10), copy_to_host(i, g_i, 10);
    for (int k = 0; k < 10; k++)
        EXPECT(fabsf(f[k] - want_f[k]) <= 1e-6f, "numbers: f[%d] = %g", k, (double)f[k]);
    for (int k = 0; k < 10; k++)
        EXPECT(i[k] == want_i[k], "numbers: i[%d] = %d", k, i[k]);
    free_all();
}

void test_basics() {
    test_add();
    test_total<float>();
    test_total<int>();
    test_transpose();
    test_scan();
    test_votes();
    test_atomics();
    test_numbers();
}

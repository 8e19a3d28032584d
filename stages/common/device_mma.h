/**
 * @file device_mma.h
 * @brief Tensor cores and asynchronous copies, for device code that includes device.h: the PTX
 * instructions on a GPU of sm_80 and up, emulated by the simulator.
 *
 * Fragments are laid out in registers as in the PTX manual's figures for mma.m16n8k16. Lane 4 g + t
 * holds
 *
 *     a[0] A[g][2t, 2t+1]      a[1] A[g+8][2t, 2t+1]      b[0] B[2t, 2t+1][g]
 *     a[2] A[g][2t+8, 2t+9]    a[3] A[g+8][2t+8, 2t+9]    b[1] B[2t+8, 2t+9][g]
 *     c[0], c[1] C[g][2t, 2t+1]                           c[2], c[3] C[g+8][2t, 2t+1]
 *
 * two bfloat16 in an unsigned, the first in the lower half. All lanes of the warp must call.
 */
#ifndef NSA_DEVICE_MMA_H
#define NSA_DEVICE_MMA_H

#include "device.h"

#include "device_bf16.h"

#ifdef NSA_SIMT
#include "simt/tensor_core.h"
/** The call site, as a last parameter, for the simulator's reports; nothing on a GPU. */
#define NSA_CALL_SITE , simt::Where where = SIMT_HERE
#else
#define NSA_CALL_SITE
#endif

/** @return a pair of a fragment: both rounded to the nearest, `first` in the lower half. */
static __device__ __forceinline__ unsigned nsa_pack_bf16(float first, float second) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(first, second);
    unsigned bits;
    memcpy(&bits, &pair, sizeof bits);
    return bits;
}

/** C[16,8] += A[16,16] B[16,8], bfloat16 in, float32 sums. */
static __device__ __forceinline__ void nsa_mma_m16n8k16_bf16(float (&c)[4], const unsigned (&a)[4],
                                                             const unsigned (&b)[2] NSA_CALL_SITE) {
#ifdef NSA_SIMT
    simt::mma_m16n8k16_bf16(c, a, b, where);
#elif !defined __CUDA_ARCH__ || __CUDA_ARCH__ >= 800
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};\n"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    (void)a, (void)b, (void)c;
    __trap(); /* bfloat16 needs sm_80 */
#endif
}

/** Four 8x8 matrices of 2-byte elements from shared memory: lanes 8m..8m+7 give the addresses of
 * the 16-byte rows of matrix m; r[m] gets elements 2t, 2t+1 of its row g. */
static __device__ __forceinline__ void nsa_ldmatrix_x4(unsigned (&r)[4],
                                                       const void *s_row NSA_CALL_SITE) {
#ifdef NSA_SIMT
    simt::ldmatrix_x4(r, s_row, false, where);
#else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"((unsigned)__cvta_generic_to_shared(s_row))
                 : "memory");
#endif
}

/** The same transposed: r[m] gets elements 2t, 2t+1 of column g of matrix m. */
static __device__ __forceinline__ void nsa_ldmatrix_x4_trans(unsigned (&r)[4],
                                                             const void *s_row NSA_CALL_SITE) {
#ifdef NSA_SIMT
    simt::ldmatrix_x4(r, s_row, true, where);
#else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"((unsigned)__cvta_generic_to_shared(s_row))
                 : "memory");
#endif
}

/** An 8x8 matrix of 2-byte elements in registers, transposed: lane 4 g + t gives elements 2t, 2t+1
 * of row g, and gets those of column g. */
static __device__ __forceinline__ unsigned nsa_movmatrix_trans(unsigned pair NSA_CALL_SITE) {
#ifdef NSA_SIMT
    return simt::movmatrix_trans(pair, where);
#else
    unsigned transposed;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;\n" : "=r"(transposed) : "r"(pair));
    return transposed;
#endif
}

/** Start copying 16 bytes from global to shared memory, or zeros if not `valid`. The copying thread
 * sees them after its wait, the other threads of its block after a barrier that follows. */
static __device__ __forceinline__ void nsa_cp_async_16(void *s_dst, const void *g_src,
                                                       bool valid = true NSA_CALL_SITE) {
#ifdef NSA_SIMT
    simt::copy_async(s_dst, g_src, valid, where);
#elif !defined __CUDA_ARCH__ || __CUDA_ARCH__ >= 800
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n"
                 :
                 : "r"((unsigned)__cvta_generic_to_shared(s_dst)), "l"(g_src), "r"(valid ? 16 : 0)
                 : "memory");
#else
    *(uint4 *)s_dst = valid ? *(const uint4 *)g_src : make_uint4(0, 0, 0, 0);
#endif
}

/** Close a group: all copies that this thread started since its last commit. */
static __device__ __forceinline__ void nsa_cp_async_commit(void) {
#ifdef NSA_SIMT
    simt::copy_commit();
#elif !defined __CUDA_ARCH__ || __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;\n" ::: "memory");
#endif
}

/** Wait until at most N of this thread's latest groups are pending. */
template <int N> static __device__ __forceinline__ void nsa_cp_async_wait(void) {
#ifdef NSA_SIMT
    simt::copy_wait(N);
#elif !defined __CUDA_ARCH__ || __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;\n" ::"n"(N) : "memory");
#endif
}

#undef NSA_CALL_SITE

#endif

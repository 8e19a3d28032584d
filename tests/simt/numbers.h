// CUDA's arithmetic functions that C++ lacks. The approximate ones are correctly rounded here, or
// nearly: a GPU's errors are not simulated.
#ifndef SIMT_NUMBERS_H
#define SIMT_NUMBERS_H

#include "kernel.h"

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

namespace simt {
template <class To, class From> inline To bits_of(From from) {
    static_assert(sizeof(To) == sizeof(From), "as many bits");
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}
inline float reciprocal_root(float x) {
    return (float)(1.0 / sqrt((double)x));
}
inline double reciprocal_root(double x) {
    return 1.0 / sqrt(x);
}
} // namespace simt

// glibc declares some of these names itself, so they are macros here.
#define __expf(x)    expf(x)
#define __exp10f(x)  ((float)pow(10.0, (double)(x)))
#define __logf(x)    logf(x)
#define __log2f(x)   log2f(x)
#define __powf(x, y) powf(x, y)
#define __sinf(x)    sinf(x)
#define __cosf(x)    cosf(x)
#define rsqrtf(x)    simt::reciprocal_root((float)(x))
#define rsqrt(x)     simt::reciprocal_root((double)(x))

inline float __fdividef(float x, float y) {
    return x / y;
}
inline float __fdiv_rn(float x, float y) {
    return x / y;
}
inline float __frcp_rn(float x) {
    return 1.0f / x;
}
inline float __fsqrt_rn(float x) {
    return sqrtf(x);
}
inline float __frsqrt_rn(float x) {
    return simt::reciprocal_root(x);
}
inline float __fmul_rn(float x, float y) {
    return x * y;
}
inline float __fadd_rn(float x, float y) {
    return x + y;
}
inline float __fsub_rn(float x, float y) {
    return x - y;
}
inline float __fmaf_rn(float x, float y, float z) {
    return fmaf(x, y, z);
}
inline double __dmul_rn(double x, double y) {
    return x * y;
}
inline double __dadd_rn(double x, double y) {
    return x + y;
}
inline float __saturatef(float x) {
    return x > 0 ? (x < 1 ? x : 1) : 0; // 0 for NaN, as on the device
}

inline unsigned __float_as_uint(float x) {
    return simt::bits_of<unsigned>(x);
}
inline int __float_as_int(float x) {
    return simt::bits_of<int>(x);
}
inline float __uint_as_float(unsigned x) {
    return simt::bits_of<float>(x);
}
inline float __int_as_float(int x) {
    return simt::bits_of<float>(x);
}
inline long long __double_as_longlong(double x) {
    return simt::bits_of<long long>(x);
}
inline double __longlong_as_double(long long x) {
    return simt::bits_of<double>(x);
}
inline int __float2int_rn(float x) {
    return (int)nearbyintf(x);
}
inline int __float2int_rd(float x) {
    return (int)floorf(x);
}
inline float __int2float_rn(int x) {
    return (float)x;
}

inline int __popc(unsigned x) {
    return __builtin_popcount(x);
}
inline int __popcll(unsigned long long x) {
    return __builtin_popcountll(x);
}
inline int __ffs(int x) {
    return __builtin_ffs(x);
}
inline int __ffsll(long long x) {
    return __builtin_ffsll(x);
}
inline int __clz(int x) {
    return x ? __builtin_clz((unsigned)x) : 32;
}
inline int __clzll(long long x) {
    return x ? __builtin_clzll((unsigned long long)x) : 64;
}
inline unsigned __brev(unsigned x) {
    x = (x >> 16) | (x << 16);
    x = ((x & 0xff00ff00u) >> 8) | ((x & 0x00ff00ffu) << 8);
    x = ((x & 0xf0f0f0f0u) >> 4) | ((x & 0x0f0f0f0fu) << 4);
    x = ((x & 0xccccccccu) >> 2) | ((x & 0x33333333u) << 2);
    return ((x & 0xaaaaaaaau) >> 1) | ((x & 0x55555555u) << 1);
}
// Byte n of the result is byte s[4n+2:4n] of y:x. Bit 4n+3 must be 0: CUDA's manual does not name
// it, and a GPU would copy that byte's sign.
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned s) {
    uint64_t bytes = (uint64_t)y << 32 | x;
    unsigned result = 0;
    if (s & 0x8888u)
        simt::fail("__byte_perm: selector %04x: a digit is above 7", s & 0xffffu);
    for (int n = 0; n < 4; n++)
        result |= (unsigned)(bytes >> 8 * (s >> 4 * n & 7) & 0xff) << 8 * n;
    return result;
}
inline int __mulhi(int x, int y) {
    return (int)(((int64_t)x * y) >> 32);
}
inline unsigned __umulhi(unsigned x, unsigned y) {
    return (unsigned)(((uint64_t)x * y) >> 32);
}

#define SIMT_MIN_MAX(T)                                                                            \
    inline T min(T x, T y) {                                                                       \
        return y < x ? y : x;                                                                      \
    }                                                                                              \
    inline T max(T x, T y) {                                                                       \
        return x < y ? y : x;                                                                      \
    }
SIMT_MIN_MAX(int)
SIMT_MIN_MAX(unsigned)
SIMT_MIN_MAX(long)
SIMT_MIN_MAX(unsigned long)
SIMT_MIN_MAX(long long)
SIMT_MIN_MAX(unsigned long long)
#undef SIMT_MIN_MAX
// Floats as fminf: if one operand is NaN, the other one.
inline float min(float x, float y) {
    return fminf(x, y);
}
inline float max(float x, float y) {
    return fmaxf(x, y);
}
inline double min(double x, double y) {
    return fmin(x, y);
}
inline double max(double x, double y) {
    return fmax(x, y);
}

#endif

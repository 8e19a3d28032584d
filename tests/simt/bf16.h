// bfloat16: the upper half of a float32, rounded to the nearest, ties to even; NaN stays NaN.
// Copy functions are written out as in types.h, for the check of alignment.
#ifndef SIMT_BF16_H
#define SIMT_BF16_H

#include "numbers.h"

#include "types.h"

namespace simt {
inline unsigned short bf16_bits(float x) {
    uint32_t u = bits_of<uint32_t>(x);
    if ((u & 0x7fffffffu) > 0x7f800000u)
        return 0x7fff; // the NaN that CUDA's conversion gives
    return (unsigned short)((u + 0x7fffu + (u >> 16 & 1)) >> 16);
}
inline float bf16_value(unsigned short bits) {
    return bits_of<float>((uint32_t)bits << 16);
}
} // namespace simt

struct __nv_bfloat16 {
    unsigned short bits;
    __nv_bfloat16() = default;
    __nv_bfloat16(float x) : bits(simt::bf16_bits(x)) {
    }
    __nv_bfloat16(const __nv_bfloat16 &v) : bits(v.bits) {
    }
    __nv_bfloat16 &operator=(const __nv_bfloat16 &v) {
        bits = v.bits;
        return *this;
    }
    operator float() const {
        return simt::bf16_value(bits);
    }
};
struct alignas(4) __nv_bfloat162 {
    __nv_bfloat16 x, y;
    __nv_bfloat162() = default;
    __nv_bfloat162(const __nv_bfloat16 &vx, const __nv_bfloat16 &vy) : x(vx), y(vy) {
    }
    __nv_bfloat162(const __nv_bfloat162 &v) : x(v.x), y(v.y) {
    }
    __nv_bfloat162 &operator=(const __nv_bfloat162 &v) {
        x = v.x, y = v.y;
        return *this;
    }
};
typedef __nv_bfloat16 nv_bfloat16;
typedef __nv_bfloat162 nv_bfloat162;
static_assert(sizeof(__nv_bfloat16) == 2 && sizeof(__nv_bfloat162) == 4, "as on the device");

inline __nv_bfloat16 __float2bfloat16(float x) {
    return __nv_bfloat16(x);
}
inline __nv_bfloat16 __float2bfloat16_rn(float x) {
    return __nv_bfloat16(x);
}
inline float __bfloat162float(__nv_bfloat16 x) {
    return (float)x;
}
inline __nv_bfloat162 __halves2bfloat162(__nv_bfloat16 x, __nv_bfloat16 y) {
    return __nv_bfloat162{x, y};
}
inline __nv_bfloat162 make_bfloat162(__nv_bfloat16 x, __nv_bfloat16 y) {
    return __nv_bfloat162{x, y};
}
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) {
    return __nv_bfloat162{__nv_bfloat16(x), __nv_bfloat16(y)};
}
inline __nv_bfloat162 __float22bfloat162_rn(float2 v) {
    return __floats2bfloat162_rn(v.x, v.y);
}
inline __nv_bfloat162 __float2bfloat162_rn(float x) {
    return __floats2bfloat162_rn(x, x);
}
inline float2 __bfloat1622float2(__nv_bfloat162 v) {
    return make_float2((float)v.x, (float)v.y);
}
inline float __low2float(__nv_bfloat162 v) {
    return (float)v.x;
}
inline float __high2float(__nv_bfloat162 v) {
    return (float)v.y;
}
inline __nv_bfloat16 __low2bfloat16(__nv_bfloat162 v) {
    return v.x;
}
inline __nv_bfloat16 __high2bfloat16(__nv_bfloat162 v) {
    return v.y;
}
inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short bits) {
    __nv_bfloat16 x;
    x.bits = bits;
    return x;
}
inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 x) {
    return x.bits;
}

#endif

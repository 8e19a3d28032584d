// Vector types and dim3, with CUDA's names, sizes and alignments.
//
// Copy functions are written out, because only then all compilers check a copied vector's
// alignment: where the reference is bound. They copy all bytes at once, not member by member, which
// would be a check and an instruction each. The default constructor stays trivial, or shared arrays
// of vectors would be initialised.
#ifndef SIMT_TYPES_H
#define SIMT_TYPES_H

#define SIMT_VECTOR2(NAME, T, BYTES)                                                               \
    struct alignas(BYTES) NAME {                                                                   \
        T x, y;                                                                                    \
        NAME() = default;                                                                          \
        constexpr NAME(T vx, T vy) : x(vx), y(vy) {                                                \
        }                                                                                          \
        NAME(const NAME &v) {                                                                      \
            __builtin_memcpy(this, &v, sizeof v);                                                  \
        }                                                                                          \
        NAME &operator=(const NAME &v) {                                                           \
            __builtin_memcpy(this, &v, sizeof v);                                                  \
            return *this;                                                                          \
        }                                                                                          \
    };                                                                                             \
    constexpr NAME make_##NAME(T x, T y) {                                                         \
        return NAME(x, y);                                                                         \
    }
#define SIMT_VECTOR3(NAME, T)                                                                      \
    struct NAME {                                                                                  \
        T x, y, z;                                                                                 \
    };                                                                                             \
    constexpr NAME make_##NAME(T x, T y, T z) {                                                    \
        return NAME{x, y, z};                                                                      \
    }
#define SIMT_VECTOR4(NAME, T, BYTES)                                                               \
    struct alignas(BYTES) NAME {                                                                   \
        T x, y, z, w;                                                                              \
        NAME() = default;                                                                          \
        constexpr NAME(T vx, T vy, T vz, T vw) : x(vx), y(vy), z(vz), w(vw) {                      \
        }                                                                                          \
        NAME(const NAME &v) {                                                                      \
            __builtin_memcpy(this, &v, sizeof v);                                                  \
        }                                                                                          \
        NAME &operator=(const NAME &v) {                                                           \
            __builtin_memcpy(this, &v, sizeof v);                                                  \
            return *this;                                                                          \
        }                                                                                          \
    };                                                                                             \
    constexpr NAME make_##NAME(T x, T y, T z, T w) {                                               \
        return NAME(x, y, z, w);                                                                   \
    }

SIMT_VECTOR2(char2, signed char, 2)
SIMT_VECTOR4(char4, signed char, 4)
SIMT_VECTOR2(uchar2, unsigned char, 2)
SIMT_VECTOR4(uchar4, unsigned char, 4)
SIMT_VECTOR2(short2, short, 4)
SIMT_VECTOR4(short4, short, 8)
SIMT_VECTOR2(ushort2, unsigned short, 4)
SIMT_VECTOR4(ushort4, unsigned short, 8)
SIMT_VECTOR2(int2, int, 8)
SIMT_VECTOR3(int3, int)
SIMT_VECTOR4(int4, int, 16)
SIMT_VECTOR2(uint2, unsigned, 8)
SIMT_VECTOR3(uint3, unsigned)
SIMT_VECTOR4(uint4, unsigned, 16)
SIMT_VECTOR2(float2, float, 8)
SIMT_VECTOR3(float3, float)
SIMT_VECTOR4(float4, float, 16)
SIMT_VECTOR2(longlong2, long long, 16)
SIMT_VECTOR4(longlong4, long long, 16)
SIMT_VECTOR2(ulonglong2, unsigned long long, 16)
SIMT_VECTOR2(double2, double, 16)
SIMT_VECTOR3(double3, double)
SIMT_VECTOR4(double4, double, 16)

// The extent of a grid or a block; missing dimensions are 1.
struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned vx = 1, unsigned vy = 1, unsigned vz = 1) : x(vx), y(vy), z(vz) {
    }
    constexpr dim3(uint3 v) : x(v.x), y(v.y), z(v.z) {
    }
    constexpr operator uint3() const {
        return uint3{x, y, z};
    }
};

#endif

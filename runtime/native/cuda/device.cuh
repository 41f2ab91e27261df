// What the kernels stand on: storage types, loads of 16 bytes, and the names by which a test compiles them for the
// host. No header of CUDA's is needed, so that NVRTC compiles the kernels with no include path.
#pragma once

#include "core/numerics/formula.hpp"

#if defined(__CUDACC__)
#define ARCFLOW_DEVICE __device__ __forceinline__
#define ARCFLOW_KERNEL extern "C" __global__ void
#define ARCFLOW_SHARED(name) extern __shared__ __align__(16) float name[]
#define ARCFLOW_UNROLL _Pragma("unroll")
#else
// tests/cuda/cuda_on_host.hpp defines threadIdx, blockIdx, blockDim, gridDim, __syncthreads, __launch_bounds__,
// ARCFLOW_KERNEL and ARCFLOW_SHARED.
#define ARCFLOW_DEVICE inline
#define ARCFLOW_UNROLL
#endif

namespace arcflow::cuda {

// The bits of 16-bit floats as they lie in memory; CUDA's own types need its headers.
struct Half {
  unsigned short bits;
};
struct Bfloat16 {
  unsigned short bits;
};

ARCFLOW_DEVICE float to_float(float value) { return value; }

ARCFLOW_DEVICE float float_from_bits(unsigned bits) {
#if defined(__CUDA_ARCH__)
  return __uint_as_float(bits);
#else
  float value;
  static_assert(sizeof value == sizeof bits);
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
#endif
}

ARCFLOW_DEVICE unsigned bits_of(float value) {
#if defined(__CUDA_ARCH__)
  return __float_as_uint(value);
#else
  unsigned bits;
  __builtin_memcpy(&bits, &value, sizeof bits);
  return bits;
#endif
}

ARCFLOW_DEVICE float to_float(Bfloat16 value) { return float_from_bits(static_cast<unsigned>(value.bits) << 16); }

ARCFLOW_DEVICE float to_float(Half value) {
#if defined(__CUDA_ARCH__)
  float wide;
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(value.bits));
  return wide;
#else
  const unsigned sign = (value.bits & 0x8000u) << 16;
  const unsigned exponent = (value.bits >> 10) & 0x1Fu;
  const unsigned mantissa = value.bits & 0x3FFu;
  if (exponent == 0) {  // zero and subnormals: mantissa * 2^-24
    const float small = static_cast<float>(mantissa) * 0x1p-24f;
    return sign != 0 ? -small : small;
  }
  const unsigned wide = exponent == 31 ? 0xFFu : exponent + 112u;
  return float_from_bits(sign | (wide << 23) | (mantissa << 13));
#endif
}

// N neighbouring values; aligned as a whole, so that 16 bytes are one load or store.
template <class T, int N>
struct alignas(sizeof(T) * N) Pack {
  T value[N];
};

// How many values are 16 bytes.
template <class T>
constexpr int kWide = 16 / static_cast<int>(sizeof(T));

// What a load brings, bits as they lie in memory, and each value as a float where it is used. Sixteen bytes are kept as
// the four registers that the load fills: taken apart into values of 16 bits they would have to be waited for at once.
template <class T, int N>
struct Loaded {
  static_assert(sizeof(T) * N == 16, "one value, or 16 bytes");
  alignas(16) unsigned word[4];

  ARCFLOW_DEVICE float operator[](int i) const {
    if constexpr (sizeof(T) == 4) {
      return float_from_bits(word[i]);
    } else {
      return to_float(T{static_cast<unsigned short>(word[i / 2] >> (i % 2 * 16))});
    }
  }
};
template <class T>
struct Loaded<T, 1> {
  T value;

  ARCFLOW_DEVICE float operator[](int) const { return to_float(value); }
};

// Reads what is read once in the kernel: 16 bytes pass by the caches as the first to be evicted.
template <class T, int N>
ARCFLOW_DEVICE Loaded<T, N> load_once(const T* from) {
  Loaded<T, N> loaded;
  if constexpr (N == 1) {
    loaded.value = *from;
  } else {
#if defined(__CUDA_ARCH__)
    const uint4 words = __ldcs(reinterpret_cast<const uint4*>(from));
    loaded.word[0] = words.x;
    loaded.word[1] = words.y;
    loaded.word[2] = words.z;
    loaded.word[3] = words.w;
#else
    __builtin_memcpy(loaded.word, from, sizeof loaded.word);
#endif
  }
  return loaded;
}

// N floats of memory that this thread alone reads and then writes: 16 bytes at a time where N allows.
template <int N>
ARCFLOW_DEVICE void load_floats(const float* from, float* to) {
  constexpr int kStep = N % 4 == 0 ? 4 : 1;
  for (int i = 0; i < N; i += kStep) {
    const auto pack = *reinterpret_cast<const Pack<float, kStep>*>(from + i);
    for (int j = 0; j < kStep; ++j) to[i + j] = pack.value[j];
  }
}

template <int N>
ARCFLOW_DEVICE void store_floats(const float* from, float* to) {
  constexpr int kStep = N % 4 == 0 ? 4 : 1;
  for (int i = 0; i < N; i += kStep) {
    Pack<float, kStep> pack;
    for (int j = 0; j < kStep; ++j) pack.value[j] = from[i + j];
    *reinterpret_cast<Pack<float, kStep>*>(to + i) = pack;
  }
}

}  // namespace arcflow::cuda

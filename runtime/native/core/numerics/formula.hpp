// The closed form, log-softmax over modes and the noise as formulas: the one source for the host (g++, clang) and the
// device (nvcc, and NVRTC without any header). Each is a template over the real type; a caller chooses float or double.
//
//     x_b = x_a - sum_k coefficient_k v_k,
//     coefficient_k = pi_k exp(l_k (sigma_src - sigma_a)) D phi1(l_k D),    D = sigma_a - sigma_b,    l_0 = 0
//
// Integers are spelled as the language has them, since NVRTC has no <cstdint>: int has 32 bits, long long has 64.
#pragma once

#if defined(__CUDACC__)
#define ARCFLOW_HD __host__ __device__ inline
#else
#define ARCFLOW_HD inline
#endif

#if !defined(__CUDACC_RTC__)
#include <cmath>
#endif

namespace arcflow::formula {

#if defined(__CUDACC_RTC__)
using ::cos;
using ::exp;
using ::expm1;
using ::log;
using ::sqrt;
#else
using std::cos;
using std::exp;
using std::expm1;
using std::log;
using std::sqrt;
#endif

static_assert(sizeof(unsigned) == 4 && sizeof(unsigned long long) == 8, "words of 32 and of 64 bits");

// (e^z - 1)/z with phi1(0) = 1. Under |z| = 1e-2, where the quotient is 0/0 or loses the last digits, its Taylor
// polynomial: 0.01^8/9! is far below the last digit of a double. NaN stays NaN.
template <class Real>
ARCFLOW_HD Real phi1(Real z) {
  if (z >= Real(1e-2) || z <= Real(-1e-2) || z != z) return expm1(z) / z;
  Real sum = Real(1.0 / 40320.0);
  sum = Real(1.0 / 5040.0) + sum * z;
  sum = Real(1.0 / 720.0) + sum * z;
  sum = Real(1.0 / 120.0) + sum * z;
  sum = Real(1.0 / 24.0) + sum * z;
  sum = Real(1.0 / 6.0) + sum * z;
  sum = Real(0.5) + sum * z;
  return Real(1.0) + sum * z;
}

// What mode 0 is multiplied with: its rate is 0, a straight line. span = sigma_a - sigma_b.
template <class Real>
ARCFLOW_HD Real straight_coefficient(Real logweight, Real span) {
  return exp(logweight) * span;
}

// What a mode's velocity is multiplied with in the displacement. start = sigma_src - sigma_a, 0 for a whole segment.
// In the order in which runtime/solver.py multiplies; a factor of exactly 1 is left out.
template <class Real>
ARCFLOW_HD Real coefficient(Real logweight, Real rate, Real start, Real span) {
  Real gate = exp(logweight);
  if (start != Real(0)) gate *= exp(rate * start);
  return gate * span * phi1(rate * span);
}

// log(sum_k exp(x_k)) of `count` values `stride` apart: subtracted from raw logits it makes them logweights.
template <class Real>
ARCFLOW_HD Real log_sum_exp(const Real* logits, int count, int stride) {
  Real most = logits[0];
  for (int k = 1; k < count; ++k) most = logits[k * stride] > most ? logits[k * stride] : most;
  Real sum = Real(0);
  for (int k = 0; k < count; ++k) sum += exp(logits[k * stride] - most);
  return most + log(sum);
}

struct Words {
  unsigned w[4];
};

// Philox4x32 with ten rounds (Salmon et al., SC 2011): four random words of a counter under a key.
ARCFLOW_HD Words philox4x32(Words counter, unsigned key0, unsigned key1) {
  for (int round = 0; round < 10; ++round) {
    const unsigned long long p0 = counter.w[0] * 0xD2511F53ull;
    const unsigned long long p1 = counter.w[2] * 0xCD9E8D57ull;
    counter = {{static_cast<unsigned>(p1 >> 32) ^ counter.w[1] ^ key0, static_cast<unsigned>(p1),
                static_cast<unsigned>(p0 >> 32) ^ counter.w[3] ^ key1, static_cast<unsigned>(p0)}};
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return counter;
}

// A number in (0, 1] of two words: the upper 53 bits of 64, plus a half, rounded to nearest even.
template <class Real>
ARCFLOW_HD Real uniform(unsigned low, unsigned high) {
  const unsigned long long bits = low | (static_cast<unsigned long long>(high) << 32);
  return (static_cast<Real>(bits >> 11) + Real(0.5)) * Real(0x1p-53);
}

// Element `index` of the noise of the image with that seed (DESIGN.md, "Noise"). Real is double: the definition says
// so.
template <class Real>
ARCFLOW_HD float normal(unsigned long long seed, unsigned long long index) {
  static_assert(sizeof(Real) == 8, "the noise is defined in float64");
  const Words counter = {{static_cast<unsigned>(index), static_cast<unsigned>(index >> 32), 0u, 0u}};
  const Words r = philox4x32(counter, static_cast<unsigned>(seed), static_cast<unsigned>(seed >> 32));
  const Real u1 = uniform<Real>(r.w[0], r.w[1]);
  const Real u2 = uniform<Real>(r.w[2], r.w[3]);
  return static_cast<float>(sqrt(Real(-2) * log(u1)) * cos(Real(6.283185307179586476925286766559) * u2));
}

// A product that is rounded before anything is added to it, whatever a compiler for the device is told about FMA.
ARCFLOW_HD float product(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fmul_rn(a, b);
#else
  return a * b;
#endif
}

// float32 in about [-1, 1] -> 0 .. 255, rounded half to even and clipped; NaN is black. A sum with 1.5 * 2^23 keeps no
// fraction: the processor's own rounding does it, on host and device alike. What is too large for that is clipped
// anyway; to clip last is what lets a compiler vectorise a loop over it.
ARCFLOW_HD unsigned char level(float value) {
  const float rounded = (product(value * 0.5f + 0.5f, 255.0f) + 12582912.0f) - 12582912.0f;
  const float low = rounded > 0.0f ? rounded : 0.0f;
  const float clipped = low < 255.0f ? low : 255.0f;
  return static_cast<unsigned char>(static_cast<int>(clipped));
}

// Whether a float32 with these bits is neither infinite nor NaN.
ARCFLOW_HD bool finite_bits(unsigned bits) { return (bits & 0x7F800000u) != 0x7F800000u; }

}  // namespace arcflow::formula

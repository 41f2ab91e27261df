// ArcFlow's kernels under plain names: for nvcc (launch.cu includes this file) and for NVRTC, which makes a cubin of it
// that any program can load. NVRTC needs no include path; these go in by name, as headers of the program:
//
//     "core/numerics/formula.hpp"  "cuda/device.cuh"  "cuda/solver.cuh"  "cuda/elements.cuh"
//
// with the options --std=c++17 --gpu-architecture=sm_XX. Do not ask for fast math.
//
// All pointers are to device memory. Grids are one-dimensional.
//
// arcflow_advance_f32, _f16, _bf16: x_b = x_a + displacement(sigma_a -> sigma_b), see core/numerics/formula.hpp
//     const T*  means       [tokens, modes, channels], tokens of all images of the batch
//     const T*  logweights  [tokens, modes, positions]; log-softmax over modes, as the momentum head gives them
//     const T*  loggammas   [tokens, modes - 1, positions]
//     const float* x, float* out  [tokens, channels]; out may be x
//     long long tokens; int modes, channels, positions (must be 4), tokens_per_block
//     float     start = sigma_src - sigma_a, span = sigma_a - sigma_b
//     int       raw_logits: 0 for logweights as above; 1 where they still are logits: their softmax is done here
//   All pointers aligned to 16 bytes; channels a multiple of 16 bytes of T (4, or 8 of a 16-bit type).
// arcflow_advance_f32_modes16, _f16_modes16, _bf16_modes16: the same for 16 modes, which is known when compiled: all
//   loads of a place are under way at once. The same result to the bit.
// arcflow_advance_f32_any, _f16_any, _bf16_any: the same for any positions, channels and alignment, a value a load.
//   Block: 128 threads. tokens_per_block: a multiple of 8, best the least one of at least 128 * V / channels, where V
//   is the values of a load (4 for f32, 8 for f16 and bf16, 1 for _any). Grid: ceil(tokens / tokens_per_block). Shared
//   memory: tokens_per_block * (2 * modes - 1) * positions * 4 bytes.
//
// The others go through their work with a stride, 256 threads a block, any grid:
// arcflow_normal (unsigned long long seed, unsigned long long first, unsigned long long count, float* out)
//     elements first .. first + count - 1 of that seed's noise (DESIGN.md, "Noise"); arithmetic in float64
// arcflow_unpack (const float* tokens, float* latents, unsigned long long batch, unsigned rows, unsigned columns,
//                 unsigned channels, unsigned patch, Factors factors)
//     [batch, rows*columns, channels*patch^2] -> [batch, channels, rows*patch, columns*patch], value / scaling + shift;
//     Factors is { int count; float scaling[256]; float shift[256]; }, count 0 (as they are), 1, or channels
// arcflow_to_rgb8 (const float* images, unsigned char* pixels, unsigned long long batch, unsigned long long plane)
//     [batch, 3, height, width] in about [-1, 1] -> [batch, height, width, 3], plane = height*width; aligned to 16
//     bytes
// arcflow_find_nonfinite (const float* values, unsigned long long count, unsigned* found)
//     sets *found, which the caller has cleared, to 1 where a value is infinite or NaN; values aligned to 16 bytes
//
// Networks' ports are float32 in every precision, so nothing else needs to be cast.
#include "cuda/elements.cuh"
#include "cuda/solver.cuh"

#define ARCFLOW_ADVANCE(name, T, V, P, K)                                                                           \
  ARCFLOW_KERNEL __launch_bounds__(128, 4)                                                                          \
      name(const T* means, const T* logweights, const T* loggammas, const float* x, float* out, long long tokens,   \
           int modes, int channels, int positions, int tokens_per_block, float start, float span, int raw_logits) { \
    ARCFLOW_SHARED(arcflow_shared);                                                                                 \
    arcflow::cuda::advance<T, V, P, K>(means, logweights, loggammas, x, out, tokens, modes, channels, positions,    \
                                       tokens_per_block, start, span, raw_logits, arcflow_shared);                  \
  }

ARCFLOW_ADVANCE(arcflow_advance_f32, float, 4, 4, 0)
ARCFLOW_ADVANCE(arcflow_advance_f16, arcflow::cuda::Half, 8, 4, 0)
ARCFLOW_ADVANCE(arcflow_advance_bf16, arcflow::cuda::Bfloat16, 8, 4, 0)
ARCFLOW_ADVANCE(arcflow_advance_f32_modes16, float, 4, 4, 16)
ARCFLOW_ADVANCE(arcflow_advance_f16_modes16, arcflow::cuda::Half, 8, 4, 16)
ARCFLOW_ADVANCE(arcflow_advance_bf16_modes16, arcflow::cuda::Bfloat16, 8, 4, 16)
ARCFLOW_ADVANCE(arcflow_advance_f32_any, float, 1, 0, 0)
ARCFLOW_ADVANCE(arcflow_advance_f16_any, arcflow::cuda::Half, 1, 0, 0)
ARCFLOW_ADVANCE(arcflow_advance_bf16_any, arcflow::cuda::Bfloat16, 1, 0, 0)

ARCFLOW_KERNEL __launch_bounds__(256)
    arcflow_normal(unsigned long long seed, unsigned long long first, unsigned long long count, float* out) {
  arcflow::cuda::normal(seed, first, count, out);
}

ARCFLOW_KERNEL __launch_bounds__(256)
    arcflow_unpack(const float* tokens, float* latents, unsigned long long batch, unsigned rows, unsigned columns,
                   unsigned channels, unsigned patch, const arcflow::cuda::Factors factors) {
  arcflow::cuda::unpack(tokens, latents, batch, rows, columns, channels, patch, factors);
}

ARCFLOW_KERNEL __launch_bounds__(256)
    arcflow_to_rgb8(const float* images, unsigned char* pixels, unsigned long long batch, unsigned long long plane) {
  arcflow::cuda::to_rgb8(images, pixels, batch, plane);
}

ARCFLOW_KERNEL __launch_bounds__(256)
    arcflow_find_nonfinite(const float* values, unsigned long long count, unsigned* found) {
  arcflow::cuda::find_nonfinite(values, count, found);
}

// Launches of the kernels on a stream, for hosts that are compiled with CUDA's headers. Nothing here waits. Pointers
// are to device memory; what is 0 long is not launched. The kernels themselves are described in arcflow_kernels.cu.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace arcflow::cuda {

enum class Type : std::int32_t { kFloat32 = 0, kFloat16 = 1, kBfloat16 = 2 };

// Tokens of the whole batch; the levels are those of ArcflowHostAdvance.
struct Advance {
  const void* means;
  const void* logweights;
  const void* loggammas;
  const float* x;
  float* out;
  Type type;
  std::int64_t tokens, modes, channels, positions;
  double sigma_src, sigma_a, sigma_b;
  bool raw_logits;  // logweights are logits yet: take their softmax over the modes
};

// cudaErrorInvalidValue, here and below, where the sizes are out of what the kernels take.
cudaError_t advance(const Advance& arguments, cudaStream_t stream);

cudaError_t normal(std::uint64_t seed, std::uint64_t first, std::uint64_t count, float* out, cudaStream_t stream);

// scaling and shift: [factor_count] in main memory, or null. factor_count is at most 256.
cudaError_t unpack(const float* tokens, float* latents, std::int64_t batch, std::int64_t rows, std::int64_t columns,
                   std::int64_t channels, std::int64_t patch, const float* scaling, const float* shift,
                   std::int64_t factor_count, cudaStream_t stream);

cudaError_t to_rgb8(const float* images, std::uint8_t* pixels, std::int64_t batch, std::int64_t height,
                    std::int64_t width, cudaStream_t stream);

// *found: 1 where a value is infinite or NaN, else 0.
cudaError_t find_nonfinite(const float* values, std::uint64_t count, std::uint32_t* found, cudaStream_t stream);

}  // namespace arcflow::cuda

// The kernels for every architecture that is built for, and their launches.
#include "cuda/arcflow_kernels.cu"
#include "cuda/launch.hpp"
#include "cuda/plan.hpp"

namespace arcflow::cuda {
namespace {

constexpr std::int64_t kThreads = 256;

// A grid that fills any GPU; the kernels go through the rest with a stride.
unsigned blocks_for(std::uint64_t work) {
  const std::uint64_t blocks = (work + kThreads - 1) / kThreads;
  return static_cast<unsigned>(blocks < 65536 ? blocks : 65536);
}

bool aligned(const void* pointer) { return reinterpret_cast<std::uintptr_t>(pointer) % 16 == 0; }

// kernels: in the order of Variant.
template <class T, class Kernel>
cudaError_t launch_advance(const Kernel (&kernels)[3], const Advance& a, const AdvancePlan& plan, cudaStream_t stream) {
  const Kernel kernel = kernels[static_cast<int>(plan.variant)];
  kernel<<<plan.blocks, static_cast<unsigned>(kAdvanceThreads), plan.shared_bytes, stream>>>(
      static_cast<const T*>(a.means), static_cast<const T*>(a.logweights), static_cast<const T*>(a.loggammas), a.x,
      a.out, a.tokens, static_cast<int>(a.modes), static_cast<int>(a.channels), static_cast<int>(a.positions),
      plan.tokens_per_block, static_cast<float>(a.sigma_src - a.sigma_a), static_cast<float>(a.sigma_a - a.sigma_b),
      a.raw_logits ? 1 : 0);
  return cudaGetLastError();
}

}  // namespace

cudaError_t advance(const Advance& a, cudaStream_t stream) {
  const bool on_16 =
      aligned(a.means) && aligned(a.logweights) && aligned(a.loggammas) && aligned(a.x) && aligned(a.out);
  AdvancePlan plan;
  if (!plan_advance(a.tokens, a.modes, a.channels, a.positions, a.type == Type::kFloat32 ? 4 : 2, on_16, &plan)) {
    return cudaErrorInvalidValue;
  }
  switch (a.type) {
    case Type::kFloat32:
      return launch_advance<float>({arcflow_advance_f32_any, arcflow_advance_f32, arcflow_advance_f32_modes16}, a, plan,
                                   stream);
    case Type::kFloat16:
      return launch_advance<Half>({arcflow_advance_f16_any, arcflow_advance_f16, arcflow_advance_f16_modes16}, a, plan,
                                  stream);
    case Type::kBfloat16:
      return launch_advance<Bfloat16>({arcflow_advance_bf16_any, arcflow_advance_bf16, arcflow_advance_bf16_modes16}, a,
                                      plan, stream);
  }
  return cudaErrorInvalidValue;
}

cudaError_t normal(std::uint64_t seed, std::uint64_t first, std::uint64_t count, float* out, cudaStream_t stream) {
  if (count == 0) return cudaSuccess;
  arcflow_normal<<<blocks_for(count), kThreads, 0, stream>>>(seed, first, count, out);
  return cudaGetLastError();
}

cudaError_t unpack(const float* tokens, float* latents, std::int64_t batch, std::int64_t rows, std::int64_t columns,
                   std::int64_t channels, std::int64_t patch, const float* scaling, const float* shift,
                   std::int64_t factor_count, cudaStream_t stream) {
  const bool factored = scaling != nullptr && shift != nullptr;
  constexpr std::int64_t kMost = 1 << 15;  // keeps products of two within 32 bits
  if (batch < 1 || rows < 1 || columns < 1 || channels < 1 || patch < 1 || rows > kMost || columns > kMost ||
      channels > kMost || patch > 64 || channels * patch * patch > (std::int64_t{1} << 30) ||
      (factored && factor_count != 1 && factor_count != channels) || (factored && factor_count > kMaxFactors)) {
    return cudaErrorInvalidValue;
  }
  Factors factors = {};
  if (factored) {
    factors.count = static_cast<int>(factor_count);
    for (std::int64_t i = 0; i < factor_count; ++i) {
      factors.scaling[i] = scaling[i];
      factors.shift[i] = shift[i];
    }
  }
  const auto work = static_cast<std::uint64_t>(batch) * static_cast<std::uint64_t>(channels) *
                    static_cast<std::uint64_t>(rows * patch) * static_cast<std::uint64_t>(columns);
  arcflow_unpack<<<blocks_for(work), kThreads, 0, stream>>>(
      tokens, latents, static_cast<unsigned long long>(batch), static_cast<unsigned>(rows),
      static_cast<unsigned>(columns), static_cast<unsigned>(channels), static_cast<unsigned>(patch), factors);
  return cudaGetLastError();
}

cudaError_t to_rgb8(const float* images, std::uint8_t* pixels, std::int64_t batch, std::int64_t height,
                    std::int64_t width, cudaStream_t stream) {
  if (batch < 1 || height < 1 || width < 1 || height > (1 << 20) || width > (1 << 20) || !aligned(images) ||
      !aligned(pixels)) {
    return cudaErrorInvalidValue;
  }
  const auto plane = static_cast<std::uint64_t>(height) * static_cast<std::uint64_t>(width);
  const std::uint64_t work = static_cast<std::uint64_t>(batch) * ((plane + 3) / 4);
  arcflow_to_rgb8<<<blocks_for(work), kThreads, 0, stream>>>(images, pixels, static_cast<unsigned long long>(batch),
                                                             plane);
  return cudaGetLastError();
}

cudaError_t find_nonfinite(const float* values, std::uint64_t count, std::uint32_t* found, cudaStream_t stream) {
  if (!aligned(values)) return cudaErrorInvalidValue;
  const cudaError_t status = cudaMemsetAsync(found, 0, sizeof *found, stream);
  if (status != cudaSuccess || count == 0) return status;
  arcflow_find_nonfinite<<<blocks_for((count + 3) / 4), kThreads, 0, stream>>>(values, count, found);
  return cudaGetLastError();
}

}  // namespace arcflow::cuda

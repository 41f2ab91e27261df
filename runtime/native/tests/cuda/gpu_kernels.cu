// The kernels on a real GPU: every one against the CPU's path, and the solver's bandwidth against a plain copy of as
// many bytes. Exit code 1 on a difference, 77 where there is no GPU. Not yet run: it was built where there is none.
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "core/numerics/compute.hpp"
#include "cuda/launch.hpp"

namespace {

using namespace arcflow;

void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(status));
  std::exit(status == cudaErrorNoDevice || status == cudaErrorInsufficientDriver ? 77 : 1);
}

int failures = 0;
void expect(bool good, const char* what, double figure = 0.0) {
  std::printf("%-44s %s  %.3g\n", what, good ? "ok" : "WRONG", figure);
  failures += good ? 0 : 1;
}

template <class T>
struct DeviceArray {
  explicit DeviceArray(const std::vector<T>& values) : count(values.size()) {
    check(cudaMalloc(&data, std::max<std::size_t>(count, 1) * sizeof(T)), "cudaMalloc");
    check(cudaMemcpy(data, values.data(), count * sizeof(T), cudaMemcpyHostToDevice), "copy to the device");
  }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;
  ~DeviceArray() { cudaFree(data); }
  std::vector<T> host() const {
    std::vector<T> values(count);
    check(cudaMemcpy(values.data(), data, count * sizeof(T), cudaMemcpyDeviceToHost), "copy from the device");
    return values;
  }
  T* data = nullptr;
  std::size_t count;
};

std::vector<float> draw(std::int64_t count, float mean, float spread, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> gauss(mean, spread);
  std::vector<float> values(static_cast<std::size_t>(count));
  for (float& value : values) value = gauss(random);
  return values;
}

float bf16(float value) {  // truncated to what bfloat16 holds
  unsigned bits;
  std::memcpy(&bits, &value, 4);
  bits &= 0xFFFF0000u;
  std::memcpy(&value, &bits, 4);
  return value;
}

std::vector<unsigned short> words(const std::vector<float>& values) {
  std::vector<unsigned short> result;
  for (const float value : values) {
    unsigned bits;
    std::memcpy(&bits, &value, 4);
    result.push_back(static_cast<unsigned short>(bits >> 16));
  }
  return result;
}

double worst(const std::vector<float>& actual, const std::vector<float>& expected) {
  double scale = 1e-30, error = 0.0;
  for (std::size_t i = 0; i < actual.size(); ++i) {
    scale = std::max(scale, static_cast<double>(std::abs(expected[i])));
    const double one = std::abs(static_cast<double>(actual[i]) - static_cast<double>(expected[i]));
    error = std::max(error, std::isnan(one) ? 1e30 : one);
  }
  return error / scale;
}

template <class Work>
double milliseconds(const Work& work) {
  cudaEvent_t begin, end;
  check(cudaEventCreate(&begin), "event");
  check(cudaEventCreate(&end), "event");
  constexpr int kRuns = 50;
  for (int i = 0; i < 5; ++i) work();
  cudaEventRecord(begin);
  for (int i = 0; i < kRuns; ++i) work();
  cudaEventRecord(end);
  check(cudaEventSynchronize(end), "timing");
  float total = 0.0f;
  cudaEventElapsedTime(&total, begin, end);
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  return total / kRuns;
}

void solver(const core::Segment& s, cuda::Type type, const char* name) {
  const std::int64_t tokens = s.batch * s.tokens;
  auto x = draw(tokens * s.channels, 0, 1, 1);
  auto means = draw(tokens * s.modes * s.channels, 0, 1, 2);
  auto weights = draw(tokens * s.modes * s.positions, -2.7f, 0.5f, 3);
  auto gammas = draw(tokens * (s.modes - 1) * s.positions, 0, 1, 4);
  if (type == cuda::Type::kBfloat16) {
    for (auto* values : {&means, &weights, &gammas}) {
      for (float& value : *values) value = bf16(value);
    }
  }
  std::vector<float> expected(x.size());
  core::advance(s, x.data(), means.data(), weights.data(), gammas.data(), expected.data());

  const bool wide = type == cuda::Type::kFloat32;
  DeviceArray<float> device_x(x), out(std::vector<float>(x.size()));
  DeviceArray<float> m32(wide ? means : std::vector<float>{}), w32(wide ? weights : std::vector<float>{}),
      g32(wide ? gammas : std::vector<float>{});
  DeviceArray<unsigned short> m16(wide ? std::vector<unsigned short>{} : words(means)),
      w16(wide ? std::vector<unsigned short>{} : words(weights)),
      g16(wide ? std::vector<unsigned short>{} : words(gammas));
  cuda::Advance arguments{};
  arguments.means = wide ? static_cast<const void*>(m32.data) : m16.data;
  arguments.logweights = wide ? static_cast<const void*>(w32.data) : w16.data;
  arguments.loggammas = wide ? static_cast<const void*>(g32.data) : g16.data;
  arguments.x = device_x.data;
  arguments.out = out.data;
  arguments.type = type;
  arguments.tokens = tokens;
  arguments.modes = s.modes;
  arguments.channels = s.channels;
  arguments.positions = s.positions;
  arguments.sigma_src = s.sigma_src;
  arguments.sigma_a = s.sigma_a;
  arguments.sigma_b = s.sigma_b;
  check(cuda::advance(arguments, nullptr), "advance");
  check(cudaDeviceSynchronize(), "advance");
  const double error = worst(out.host(), expected);
  expect(error < 2e-6, name, error);

  const double bytes = static_cast<double>(means.size() + weights.size() + gammas.size()) * (wide ? 4 : 2) +
                       static_cast<double>(2 * x.size()) * 4;
  const double time = milliseconds([&] { cuda::advance(arguments, nullptr); });
  void *from = nullptr, *to = nullptr;
  const auto half = static_cast<std::size_t>(bytes / 2);
  check(cudaMalloc(&from, half), "cudaMalloc");
  check(cudaMalloc(&to, half), "cudaMalloc");
  const double copy = milliseconds([&] { cudaMemcpyAsync(to, from, half, cudaMemcpyDeviceToDevice); });
  cudaFree(from);
  cudaFree(to);
  std::printf(
      "  %lld tokens, %.1f MB: %.4f ms, %.0f GB/s; a copy of as many bytes %.4f ms, %.0f GB/s (both may stay in L2)\n",
      static_cast<long long>(tokens), bytes / 1e6, time, bytes / time / 1e6, copy, bytes / copy / 1e6);
}

void elements() {
  DeviceArray<float> noise(std::vector<float>(1 << 20));
  check(cuda::normal(7, 0, noise.count, noise.data, nullptr), "normal");
  std::vector<float> expected(noise.count);
  core::normal(7, 0, expected.size(), expected.data());
  const auto made = noise.host();
  std::size_t different = 0;
  for (std::size_t i = 0; i < made.size(); ++i) different += made[i] == expected[i] ? 0 : 1;
  // The last bit of a float64 logarithm or cosine shows in float32 about once in 10^8.
  expect(different <= 2, "noise: values that differ in the last bit", static_cast<double>(different));

  const auto tokens = draw(2 * 64 * 48 * 64, 0, 1, 5);
  const std::vector<float> scaling(16, 0.3611f), shift(16, 0.1159f);
  DeviceArray<float> packed(tokens), latents(std::vector<float>(tokens.size()));
  check(cuda::unpack(packed.data, latents.data, 2, 64, 48, 16, 2, scaling.data(), shift.data(), 16, nullptr), "unpack");
  std::vector<float> unpacked(tokens.size());
  core::unpack(tokens.data(), 2, 64, 48, 16, 2, scaling.data(), shift.data(), 16, unpacked.data());
  expect(latents.host() == unpacked, "tokens to latents");

  const auto drawn = draw(2 * 3 * 256 * 192, 0, 1, 6);
  DeviceArray<float> images(drawn);
  DeviceArray<std::uint8_t> pixels(std::vector<std::uint8_t>(drawn.size()));
  check(cuda::to_rgb8(images.data, pixels.data, 2, 256, 192, nullptr), "to_rgb8");
  std::vector<std::uint8_t> levels(drawn.size());
  core::to_rgb8(drawn.data(), 2, 256, 192, levels.data());
  expect(pixels.host() == levels, "images to bytes");

  DeviceArray<std::uint32_t> found(std::vector<std::uint32_t>(1, 7));
  check(cuda::find_nonfinite(images.data, drawn.size(), found.data, nullptr), "find_nonfinite");
  expect(found.host()[0] == 0, "all finite");
  auto bad = drawn;
  bad.back() = NAN;
  DeviceArray<float> with_nan(bad);
  check(cuda::find_nonfinite(with_nan.data, bad.size(), found.data, nullptr), "find_nonfinite");
  expect(found.host()[0] == 1, "one that is not");
}

}  // namespace

int main() {
  int count = 0;
  check(cudaGetDeviceCount(&count), "no usable GPU");
  cudaDeviceProp properties{};
  check(cudaGetDeviceProperties(&properties, 0), "device");
  std::printf("%s, compute capability %d.%d\n", properties.name, properties.major, properties.minor);
  solver({1, 4096, 16, 64, 4, 1.0, 1.0, 0.7619}, cuda::Type::kFloat32, "advance, float32, 1024 x 1024");
  solver({1, 4096, 16, 64, 4, 1.0, 1.0, 0.7619}, cuda::Type::kBfloat16, "advance, bfloat16, 1024 x 1024");
  solver({4, 16384, 16, 64, 4, 0.76, 0.6, 0.1}, cuda::Type::kFloat32, "advance, float32, four of 2048 x 2048");
  solver({3, 37, 5, 18, 6, 0.76, 0.6, 0.1}, cuda::Type::kFloat32, "advance, odd sizes");
  elements();
  std::printf("%s\n", failures == 0 ? "all good" : "FAILED");
  return failures == 0 ? 0 : 1;
}

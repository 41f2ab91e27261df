// The kernels' source compiled for the host, each called by name with the arguments that cuLaunchKernel takes: an array
// of addresses. A block is run by one thread that does the work of all (every loop of the kernels has the block's size
// as its stride), so a barrier has nothing to wait for. What blocks of many threads do is tested by the native core.
#include <cstddef>
#include <cstring>
#include <tuple>
#include <utility>
#include <vector>

namespace {
struct Index {
  unsigned x = 0;
};
Index thread_index, block_index, block_dimension{1}, grid_dimension;
float* shared_memory = nullptr;
}  // namespace

#define threadIdx thread_index
#define blockIdx block_index
#define blockDim block_dimension
#define gridDim grid_dimension
#define __syncthreads() static_cast<void>(0)
#define __launch_bounds__(...)
#define ARCFLOW_KERNEL static void
#define ARCFLOW_SHARED(name) float* const name = shared_memory

#include "cuda/arcflow_kernels.cu"

namespace {

// Calls a kernel with what the addresses point to, each read as the type that the kernel declares.
template <class... Types, std::size_t... Places>
void call(void (*kernel)(Types...), void** arguments, std::index_sequence<Places...>) {
  kernel(*static_cast<std::remove_cv_t<Types>*>(arguments[Places])...);
}

template <class... Types>
void run(void (*kernel)(Types...), unsigned blocks, void** arguments) {
  grid_dimension.x = blocks;
  for (block_index.x = 0; block_index.x < blocks; ++block_index.x) {
    call(kernel, arguments, std::index_sequence_for<Types...>{});
  }
}

}  // namespace

// 0, or 1 for an unknown name, or 2 for threads of a block that the kernel was not written for.
extern "C" int arcflow_host_launch(const char* name, unsigned blocks, unsigned threads, unsigned shared_bytes,
                                   void** arguments) {
  std::vector<double> shared(shared_bytes / sizeof(double) + 2);  // doubles, for alignment to 16 bytes by malloc
  shared_memory = reinterpret_cast<float*>(shared.data());
#define ARCFLOW_TRY(kernel, block)       \
  if (std::strcmp(name, #kernel) == 0) { \
    if (threads != (block)) return 2;    \
    run(kernel, blocks, arguments);      \
    return 0;                            \
  }
  ARCFLOW_TRY(arcflow_advance_f32, 128)
  ARCFLOW_TRY(arcflow_advance_f16, 128)
  ARCFLOW_TRY(arcflow_advance_bf16, 128)
  ARCFLOW_TRY(arcflow_advance_f32_modes16, 128)
  ARCFLOW_TRY(arcflow_advance_f16_modes16, 128)
  ARCFLOW_TRY(arcflow_advance_bf16_modes16, 128)
  ARCFLOW_TRY(arcflow_advance_f32_any, 128)
  ARCFLOW_TRY(arcflow_advance_f16_any, 128)
  ARCFLOW_TRY(arcflow_advance_bf16_any, 128)
  ARCFLOW_TRY(arcflow_normal, 256)
  ARCFLOW_TRY(arcflow_unpack, 256)
  ARCFLOW_TRY(arcflow_to_rgb8, 256)
  ARCFLOW_TRY(arcflow_find_nonfinite, 256)
  return 1;
}

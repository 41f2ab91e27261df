// Just enough of CUDA's language for g++ and clang to compile the kernels for the host, to run them block by block with
// a thread for each of the block's threads and a barrier for __syncthreads: their logic is tested where there is no
// GPU, and ThreadSanitizer sees a race in shared memory. The kernels are included at its end, where the names are
// defined.
#pragma once

#include <pthread.h>

#include <cstddef>
#include <cstring>
#include <thread>
#include <vector>

namespace cuda_on_host {

struct Index {
  unsigned x = 0;
};

inline thread_local Index thread_index, block_index, block_dimension, grid_dimension;
inline thread_local float* shared_memory = nullptr;
inline thread_local pthread_barrier_t* barrier = nullptr;

// kernel<<<blocks, threads, shared_bytes>>>(): `call` is the call of the kernel.
template <class Call>
void launch(unsigned blocks, unsigned threads, std::size_t shared_bytes, const Call& call) {
  pthread_barrier_t all;
  pthread_barrier_init(&all, nullptr, threads);
  std::vector<double> shared(shared_bytes / sizeof(double) + 2);  // doubles, for alignment to 16 bytes by malloc
  std::vector<std::thread> running;
  for (unsigned thread = 0; thread < threads; ++thread) {
    running.emplace_back([&, thread] {
      thread_index.x = thread;
      block_dimension.x = threads;
      grid_dimension.x = blocks;
      shared_memory = reinterpret_cast<float*>(shared.data());
      barrier = &all;
      for (unsigned block = 0; block < blocks; ++block) {
        block_index.x = block;
        call();
        pthread_barrier_wait(&all);  // Blocks come one after another: they share the memory here.
      }
    });
  }
  for (std::thread& one : running) one.join();
  pthread_barrier_destroy(&all);
}

// Memory as CUDA hands it out, aligned to 16 bytes; or `shift` values beside that.
template <class T>
struct Device {
  explicit Device(const std::vector<T>& values, std::size_t shift = 0) : room(values.size() * sizeof(T) / 16 + 4) {
    data = reinterpret_cast<T*>(room.data()) + shift;
    if (!values.empty()) std::memcpy(static_cast<void*>(data), values.data(), values.size() * sizeof(T));
  }
  struct alignas(16) Line {
    unsigned char bytes[16];
  };
  std::vector<Line> room;
  T* data;
};

}  // namespace cuda_on_host

#define threadIdx (::cuda_on_host::thread_index)
#define blockIdx (::cuda_on_host::block_index)
#define blockDim (::cuda_on_host::block_dimension)
#define gridDim (::cuda_on_host::grid_dimension)
#define __syncthreads() pthread_barrier_wait(::cuda_on_host::barrier)
#define __launch_bounds__(...)
#define ARCFLOW_KERNEL inline void
#define ARCFLOW_SHARED(name) float* const name = ::cuda_on_host::shared_memory

#include "cuda/arcflow_kernels.cu"

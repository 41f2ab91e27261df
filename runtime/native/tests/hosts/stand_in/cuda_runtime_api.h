// A stand-in for CUDA's runtime with as much of it as the TensorRT host uses: "device" memory is main memory, and a
// stream is a queue that moves only when somebody waits for it or asks about it, so that what does not wait is seen not
// to. A capture goes into a graph and not into the queue. It shows the host's own logic, and nothing about CUDA.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <set>
#include <string>
#include <vector>

#define CUDART_VERSION 13000

enum cudaError_t : int {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorMemoryAllocation = 2,
  cudaErrorInsufficientDriver = 35,
  cudaErrorNoDevice = 100,
  cudaErrorNotReady = 600,
  cudaErrorStreamCaptureInvalidated = 901,
};
enum cudaMemcpyKind { cudaMemcpyHostToDevice = 1, cudaMemcpyDeviceToHost = 2, cudaMemcpyDeviceToDevice = 3 };
enum cudaStreamCaptureStatus { cudaStreamCaptureStatusNone = 0, cudaStreamCaptureStatusActive = 1 };
enum cudaStreamCaptureMode { cudaStreamCaptureModeThreadLocal = 1 };
constexpr unsigned cudaStreamNonBlocking = 1, cudaEventDisableTiming = 2;

using StandInWork = std::function<void()>;
struct StandInStream {
  std::deque<StandInWork> queue;
  std::unique_ptr<std::vector<StandInWork>> capture;
  long done = 0, queued = 0;
};
struct StandInEvent {
  StandInStream* stream = nullptr;
  long place = 0;
};
using cudaStream_t = StandInStream*;
using cudaEvent_t = StandInEvent*;
using cudaGraph_t = std::vector<StandInWork>*;
using cudaGraphExec_t = std::vector<StandInWork>*;
struct cudaDeviceProp {
  char name[256];
  int major, minor;
};

// What the test sets and sees.
struct StandInCuda {
  std::set<void*> memory;       // allocated and not yet freed
  bool stuck = false;           // the device does nothing
  bool refuse_capture = false;  // a capture ends as invalid
  bool full = false;            // allocations fail
  int graphs = 0;               // executable graphs that exist
  int launches = 0;
};
inline StandInCuda stand_in;

inline void stand_in_put(cudaStream_t stream, StandInWork work) {
  if (stream->capture) {
    stream->capture->push_back(std::move(work));
  } else {
    stream->queue.push_back(std::move(work));
    ++stream->queued;
  }
}
inline bool stand_in_step(cudaStream_t stream) {
  if (stand_in.stuck || stream->queue.empty()) return false;
  const StandInWork work = std::move(stream->queue.front());
  stream->queue.pop_front();
  work();
  ++stream->done;
  return true;
}

inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t status) {
  return status == cudaSuccess ? "no error" : "stand-in error";
}
inline cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }
inline cudaError_t cudaDriverGetVersion(int* version) { return *version = 13000, cudaSuccess; }
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
inline cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
  *properties = {"Stand-in", 9, 0};
  return cudaSuccess;
}
inline cudaError_t cudaMemGetInfo(std::size_t* free, std::size_t* total) {
  return *free = *total = 1 << 30, cudaSuccess;
}

inline cudaError_t stand_in_allocate(void** data, std::size_t bytes) {
  if (stand_in.full) return cudaErrorMemoryAllocation;
  *data = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
  std::memset(*data, 0xAB, bytes);
  stand_in.memory.insert(*data);
  return cudaSuccess;
}
inline cudaError_t stand_in_free(void* data) {
  if (stand_in.memory.erase(data) == 0) std::abort();
  std::free(data);
  return cudaSuccess;
}
inline cudaError_t cudaMalloc(void** data, std::size_t bytes) { return stand_in_allocate(data, bytes); }
inline cudaError_t cudaMallocHost(void** data, std::size_t bytes) { return stand_in_allocate(data, bytes); }
inline cudaError_t cudaFree(void* data) { return stand_in_free(data); }
inline cudaError_t cudaFreeHost(void* data) { return stand_in_free(data); }

inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  *stream = new StandInStream;
  return cudaSuccess;
}
inline cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  delete stream;
  return cudaSuccess;
}
inline cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  stand_in.stuck = false;
  while (stand_in_step(stream)) {
  }
  return cudaSuccess;
}
inline cudaError_t cudaStreamQuery(cudaStream_t stream) {
  stand_in_step(stream);
  return stream->queue.empty() ? cudaSuccess : cudaErrorNotReady;
}
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind, cudaStream_t stream) {
  stand_in_put(stream, [=] { std::memmove(to, from, bytes); });
  return cudaSuccess;
}
inline cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  *event = new StandInEvent;
  return cudaSuccess;
}
inline cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return cudaSuccess;
}
inline cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  *event = {stream, stream->queued};
  return cudaSuccess;
}
inline cudaError_t cudaEventQuery(cudaEvent_t event) {
  if (event->stream != nullptr) stand_in_step(event->stream);
  return event->stream == nullptr || event->stream->done >= event->place ? cudaSuccess : cudaErrorNotReady;
}
inline cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  stand_in.stuck = false;
  while (cudaEventQuery(event) != cudaSuccess) {
  }
  return cudaSuccess;
}
inline cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  *status = stream->capture ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
inline cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  stream->capture = std::make_unique<std::vector<StandInWork>>();
  return cudaSuccess;
}
inline cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  const auto captured = std::move(stream->capture);
  if (stand_in.refuse_capture) return cudaErrorStreamCaptureInvalidated;
  *graph = new std::vector<StandInWork>(*captured);
  return cudaSuccess;
}
inline cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph, unsigned long long) {
  *executable = new std::vector<StandInWork>(*graph);
  ++stand_in.graphs;
  return cudaSuccess;
}
inline cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}
inline cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
  delete executable;
  --stand_in.graphs;
  return cudaSuccess;
}
inline cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
  ++stand_in.launches;
  stand_in_put(stream, [executable] {
    for (const StandInWork& work : *executable) work();
  });
  return cudaSuccess;
}

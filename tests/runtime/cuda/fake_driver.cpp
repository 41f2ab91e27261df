// A libcuda.so.1 of main memory, so that our calls of the driver's API run through the real bindings where there is no
// GPU: signatures, order, argument packing, error statuses. Work on the stream waits in a queue until something waits
// for it; a recorded stream keeps it as a graph. Kernels are those of host_kernels.cpp. No GPU is imitated beyond that.
//
// ARCFLOW_FAKE_CUDA sets what is wrong: "version=12080", "init=100", "devices=0", "memory=1048576" (bytes of the GPU),
// "begin=901", "end=901", "instantiate=2" (statuses of graph calls), "fail=700" (of the next wait), separated by
// commas.
#include <dlfcn.h>

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <string>
#include <vector>

extern "C" int arcflow_host_launch(const char*, unsigned, unsigned, unsigned, void**);

namespace {

using Action = std::function<void()>;
using Status = int;
using Address = unsigned long long;
constexpr Status kInvalid = 1, kMemory = 2, kNotReady = 600, kNoContext = 201, kBadHandle = 400, kNotFound = 500,
                 kCapture = 900;

struct Event {
  bool recorded = false, passed = false;
  std::chrono::steady_clock::time_point time;
};
struct Graph {
  std::vector<Action> actions;
};
struct Function {
  std::string name;
  unsigned arguments;
};
// Bytes of the arguments of each kernel, which a real driver reads from the code.
const std::map<std::string, std::vector<unsigned>> kArguments = {
    {"arcflow_advance", {8, 8, 8, 8, 8, 8, 4, 4, 4, 4, 4, 4, 4}},
    {"arcflow_normal", {8, 8, 8, 8}},
    {"arcflow_unpack", {8, 8, 8, 4, 4, 4, 4, 2052}},
    {"arcflow_to_rgb8", {8, 8, 8, 8}},
    {"arcflow_find_nonfinite", {8, 8, 8}},
    {"arcflow_stub", {8, 8, 8, 8, 8, 4, 4, 4, 8, 4, 4}},  // gpu/kernels/stub.py's, where it is linked in.
};

std::vector<Action> queue;
Graph* capturing = nullptr;
bool invalidated = false;
thread_local bool context_current = false;
std::map<Address, std::size_t> device_memory, host_memory;
int live_graphs = 0, live_events = 0, live_streams = 0, retained = 0, live_modules = 0;
int a_stream, a_module, a_context;

long setting(const char* name, long fallback) {
  const char* all = std::getenv("ARCFLOW_FAKE_CUDA");
  const std::string text = "," + std::string(all == nullptr ? "" : all), key = "," + std::string(name) + "=";
  const std::size_t at = text.find(key);
  return at == std::string::npos ? fallback : std::strtol(text.c_str() + at + key.size(), nullptr, 10);
}

std::size_t total() { return static_cast<std::size_t>(setting("memory", 256 << 20)); }
std::size_t used() {
  std::size_t sum = 0;
  for (const auto& [address, size] : device_memory) sum += size;
  return sum;
}

bool inside(const std::map<Address, std::size_t>& memory, Address address, std::size_t size) {
  auto after = memory.upper_bound(address);
  if (after == memory.begin()) return false;
  --after;
  return address + size <= after->first + after->second;
}

Status put(void* stream, Action action) {
  if (!context_current) return kNoContext;
  if (stream != &a_stream) return kBadHandle;
  (capturing == nullptr ? queue : capturing->actions).push_back(std::move(action));
  return 0;
}

Status wait() {
  if (!context_current) return kNoContext;
  if (capturing != nullptr) {
    invalidated = true;
    return kCapture;
  }
  std::vector<Action> now;
  now.swap(queue);
  for (const Action& action : now) action();
  return static_cast<Status>(setting("fail", 0));
}

// What must not be done while this thread records.
Status unsafe() {
  if (!context_current) return kNoContext;
  if (capturing == nullptr) return 0;
  invalidated = true;
  return kCapture;
}

void pass(Event* event) {
  event->passed = true;
  event->time = std::chrono::steady_clock::now();
}

}  // namespace

extern "C" {

Status cuInit(unsigned) { return static_cast<Status>(setting("init", 0)); }
Status cuDriverGetVersion(int* version) { return *version = static_cast<int>(setting("version", 13000)), 0; }
Status cuDeviceGetCount(int* count) { return *count = static_cast<int>(setting("devices", 1)), 0; }
Status cuDeviceGet(int* device, int ordinal) { return *device = ordinal, 0; }
Status cuDeviceGetName(char* name, int length, int) { return std::snprintf(name, length, "fake GPU"), 0; }
Status cuDeviceTotalMem_v2(std::size_t* bytes, int) { return *bytes = total(), 0; }
Status cuDeviceGetAttribute(int* value, int attribute, int) {
  *value = attribute == 75 ? 9 : attribute == 76 ? 0 : attribute == 38 ? 52428800 : attribute == 16 ? 132 : -1;
  return 0;
}
Status cuDevicePrimaryCtxRetain(void** context, int) { return ++retained, *context = &a_context, 0; }
Status cuDevicePrimaryCtxRelease_v2(int) { return --retained, 0; }
Status cuCtxSetCurrent(void* context) { return context_current = context == &a_context, 0; }
Status cuGetErrorName(Status status, const char** text) {
  *text = status == kMemory ? "CUDA_ERROR_OUT_OF_MEMORY" : "CUDA_ERROR_OF_A_KIND";
  return 0;
}
Status cuGetErrorString(Status, const char** text) { return *text = "as the driver says", 0; }

Status cuMemGetInfo_v2(std::size_t* free, std::size_t* all) { return *all = total(), *free = total() - used(), 0; }
Status cuMemAlloc_v2(Address* address, std::size_t size) {
  if (const Status status = unsafe()) return status;
  if (size == 0) return kInvalid;
  if (used() + size > total()) return kMemory;
  void* memory = std::aligned_alloc(256, (size + 255) / 256 * 256);
  std::memset(memory, 0xFF, size);
  *address = reinterpret_cast<Address>(memory);
  device_memory[*address] = size;
  return 0;
}
Status cuMemFree_v2(Address address) {
  if (const Status status = unsafe()) return status;
  if (device_memory.erase(address) == 0) return kInvalid;
  std::free(reinterpret_cast<void*>(address));
  return 0;
}
Status cuMemHostAlloc(void** address, std::size_t size, unsigned) {
  if (const Status status = unsafe()) return status;
  if (size == 0) return kInvalid;
  *address = std::malloc(size);
  host_memory[reinterpret_cast<Address>(*address)] = size;
  return 0;
}
Status cuMemFreeHost(void* address) {
  if (host_memory.erase(reinterpret_cast<Address>(address)) == 0) return kInvalid;
  std::free(address);
  return 0;
}
Status cuMemcpyHtoDAsync_v2(Address to, const void* from, std::size_t size, void* stream) {
  const auto source = reinterpret_cast<Address>(from);
  if (size == 0 || !inside(device_memory, to, size) || !inside(host_memory, source, size)) return kInvalid;
  return put(stream, [=] { std::memcpy(reinterpret_cast<void*>(to), from, size); });
}
Status cuMemcpyDtoHAsync_v2(void* to, Address from, std::size_t size, void* stream) {
  const auto target = reinterpret_cast<Address>(to);
  if (!inside(device_memory, from, size) || !inside(host_memory, target, size)) return kInvalid;
  return put(stream, [=] { std::memcpy(to, reinterpret_cast<void*>(from), size); });
}
Status cuLaunchHostFunc(void* stream, void (*function)(void*), void* user) {
  return put(stream, [=] { function(user); });
}
Status cuMemcpyDtoDAsync_v2(Address to, Address from, std::size_t size, void* stream) {
  if (!inside(device_memory, from, size) || !inside(device_memory, to, size)) return kInvalid;
  return put(stream, [=] { std::memmove(reinterpret_cast<void*>(to), reinterpret_cast<void*>(from), size); });
}
Status cuMemsetD32Async(Address to, unsigned value, std::size_t count, void* stream) {
  if (!inside(device_memory, to, 4 * count)) return kInvalid;
  return put(stream, [=] {
    for (std::size_t i = 0; i < count; ++i) reinterpret_cast<unsigned*>(to)[i] = value;
  });
}

Status cuStreamCreate(void** stream, unsigned flags) {
  if (!context_current) return kNoContext;
  return flags == 1 ? (++live_streams, *stream = &a_stream, 0) : kInvalid;
}
Status cuStreamDestroy_v2(void*) { return --live_streams, 0; }
Status cuStreamSynchronize(void* stream) { return stream == &a_stream ? wait() : kBadHandle; }

Status cuEventCreate(void** event, unsigned) { return ++live_events, *event = new Event, 0; }
Status cuEventDestroy_v2(void* event) { return --live_events, delete static_cast<Event*>(event), 0; }
Status cuEventRecord(void* event, void* stream) {
  auto* one = static_cast<Event*>(event);
  if (capturing == nullptr) one->recorded = true, one->passed = false;
  return put(stream, capturing == nullptr ? Action([one] { pass(one); }) : Action([] {}));
}
Status cuEventRecordWithFlags(void* event, void* stream, unsigned flags) {
  if (flags == 1 && capturing == nullptr) return kInvalid;
  auto* one = static_cast<Event*>(event);
  return put(stream, [one] { one->recorded = true, pass(one); });
}
Status cuEventSynchronize(void* event) {
  auto* one = static_cast<Event*>(event);
  return one->passed ? 0 : wait();
}
Status cuEventElapsedTime_v2(float* milliseconds, void* start, void* end) {
  auto *from = static_cast<Event*>(start), *to = static_cast<Event*>(end);
  if (!from->recorded || !to->recorded) return kBadHandle;
  if (!from->passed || !to->passed) return kNotReady;
  *milliseconds = std::chrono::duration<float, std::milli>(to->time - from->time).count();
  return 0;
}

Status cuStreamBeginCapture_v2(void* stream, int mode) {
  if (const auto status = static_cast<Status>(setting("begin", 0))) return status;
  if (stream != &a_stream || mode != 1 || capturing != nullptr) return kInvalid;
  capturing = new Graph;
  invalidated = false;
  return 0;
}
Status cuStreamEndCapture(void*, void** graph) {
  Graph* const made = capturing;
  capturing = nullptr;
  *graph = nullptr;
  if (made == nullptr) return kInvalid;
  const auto set = static_cast<Status>(setting("end", 0));
  if (invalidated || set != 0) {
    delete made;
    return set != 0 ? set : 901;
  }
  ++live_graphs;
  *graph = made;
  return 0;
}
Status cuGraphInstantiateWithFlags(void** executable, void* graph, unsigned long long) {
  if (const auto status = static_cast<Status>(setting("instantiate", 0))) return status;
  ++live_graphs;
  *executable = new Graph(*static_cast<Graph*>(graph));
  return 0;
}
Status cuGraphDestroy(void* graph) { return --live_graphs, delete static_cast<Graph*>(graph), 0; }
Status cuGraphExecDestroy(void* graph) { return --live_graphs, delete static_cast<Graph*>(graph), 0; }
Status cuGraphLaunch(void* graph, void* stream) {
  const std::vector<Action> actions = static_cast<Graph*>(graph)->actions;
  return put(stream, [actions] {
    for (const Action& action : actions) action();
  });
}

Status cuModuleLoadData(void** module, const void* image) {
  if (!context_current) return kNoContext;
  if (std::memcmp(image, "\177ELF", 4) != 0) return 200;
  return ++live_modules, *module = &a_module, 0;
}
Status cuModuleUnload(void*) { return --live_modules, 0; }
Status cuModuleGetFunction(void** function, void* module, const char* name) {
  for (const auto& [start, sizes] : kArguments) {
    if (module == &a_module && std::strncmp(name, start.c_str(), start.size()) == 0) {
      static std::map<std::string, Function> functions;
      Function& one = functions[name];
      one.name = name;
      *function = &one;
      return 0;
    }
  }
  return kNotFound;
}
Status cuLaunchKernel(void* function, unsigned x, unsigned y, unsigned z, unsigned threads, unsigned threads_y,
                      unsigned threads_z, unsigned shared, void* stream, void** arguments, void** extra) {
  if (x == 0 || y != 1 || z != 1 || threads_y != 1 || threads_z != 1 || shared > 49152 || extra != nullptr) {
    return kInvalid;
  }
  const std::string name = static_cast<Function*>(function)->name;
  // The arguments are the caller's again as soon as this returns.
  std::vector<std::vector<char>> copies;
  for (const auto& [start, sizes] : kArguments) {
    if (name.compare(0, start.size(), start) != 0) continue;
    for (std::size_t i = 0; i < sizes.size(); ++i) {
      const char* from = static_cast<const char*>(arguments[i]);
      copies.emplace_back(from, from + sizes[i]);
    }
  }
  return put(stream, [=]() mutable {
    std::vector<void*> places;
    for (std::vector<char>& one : copies) places.push_back(one.data());
    if (arcflow_host_launch(name.c_str(), x, threads, shared, places.data()) != 0) std::abort();
  });
}

// The newest of each function, as the driver's own table gives it.
Status cuGetProcAddress_v2(const char* symbol, void** function, int, unsigned long long, int* found) {
  const std::string name = symbol;
  *function = nullptr;
  for (const char* suffix : {"_v2", "", "WithFlags"}) {
    *function = *function != nullptr ? *function : dlsym(RTLD_DEFAULT, (name + suffix).c_str());
  }
  if (*function == nullptr) {
    if (void* self = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_NOLOAD)) {
      for (const char* suffix : {"_v2", "", "WithFlags"}) {
        *function = *function != nullptr ? *function : dlsym(self, (name + suffix).c_str());
      }
    }
  }
  if (found != nullptr) *found = *function == nullptr ? 1 : 0;
  return *function == nullptr ? kNotFound : 0;
}

// What is alive, for the tests: graphs, events, streams, contexts, modules, blocks on the device, pinned blocks.
int fake_cuda_alive(int* counts) {
  const int now[] = {live_graphs,
                     live_events,
                     live_streams,
                     retained,
                     live_modules,
                     static_cast<int>(device_memory.size()),
                     static_cast<int>(host_memory.size())};
  std::memcpy(counts, now, sizeof now);
  return static_cast<int>(queue.size());
}

}  // extern "C"

// What an engine host gives the core: a table of functions over memory that the host owns.
//
// A host is a module of its own (libarcflow_host_<name>.so) that the core loads when a bundle calls for it, so that the
// library itself links neither ONNX Runtime nor TensorRT nor CUDA. The core's pipeline is written once on these
// functions: on a CPU they act at once on main memory, on a GPU they are put on the session's stream, and nothing waits
// for the device but `read`, `finite` and `synchronize`. The table is plain C because the module may come from another
// compiler; nothing throws through it (hosts/table.hpp makes it of C++ functions that do).
//
// Every function that returns a code returns 0 for success, else an ArcflowCode with its message in `error`.
#pragma once

#include <cstddef>
#include <cstdint>

extern "C" {

constexpr std::uint32_t kArcflowHostVersion = 2;

struct ArcflowHostModel;    // the loaded networks of a bundle; immutable, shared by sessions
struct ArcflowHostSession;  // one stream of work; used by one thread at a time
struct ArcflowHostBuffer;   // memory of the session's device
struct ArcflowHostPrepared;

struct ArcflowHostError {
  char message[2048];
};

enum ArcflowHostType : std::int32_t {
  kArcflowFloat32 = 0,
  kArcflowFloat16 = 1,
  kArcflowBfloat16 = 2,
  kArcflowInt64 = 3,
  kArcflowInt32 = 4,
};

struct ArcflowHostPort {
  const char* name;
  std::int32_t type;  // ArcflowHostType
  std::int32_t rank;
  const std::int64_t* dims;  // -1 where the dimension is symbolic
  // The profile of a plan's input; null for ONNX and for outputs.
  const std::int64_t* least;
  const std::int64_t* usual;
  const std::int64_t* most;
};

struct ArcflowHostBlob {
  const char* name;  // the file's name, without folders
  const void* data;
  std::uint64_t size;
};

struct ArcflowHostNetwork {
  const char* name;             // "backbone"
  ArcflowHostBlob model;        // the verified bytes of the ONNX file or plan
  const ArcflowHostBlob* data;  // its external data, verified and mapped; valid until model_destroy
  std::size_t data_count;
  const ArcflowHostPort* inputs;
  std::size_t input_count;
  const ArcflowHostPort* outputs;
  std::size_t output_count;
};

struct ArcflowHostOptions {
  const char* library;    // path of the engine's library, or null: search
  std::uint32_t threads;  // 1 or more
  std::uint32_t device;
  void (*log)(void* user, std::int32_t level, const char* message);  // may be null; any thread
  void* log_user;
};

struct ArcflowHostBinding {
  const char* name;
  ArcflowHostBuffer* buffer;
  std::uint64_t offset;  // bytes
  std::int32_t rank;
  const std::int64_t* dims;
};

// x + displacement(sigma_a -> sigma_b), packed tokens; see core/numerics/formula.hpp for the formula. float32 state.
struct ArcflowHostAdvance {
  ArcflowHostBuffer* x;           // [batch, tokens, channels]
  ArcflowHostBuffer* means;       // [batch, tokens, modes, channels]
  ArcflowHostBuffer* logweights;  // [batch, tokens, modes, positions]
  ArcflowHostBuffer* loggammas;   // [batch, tokens, modes - 1, positions]
  ArcflowHostBuffer* out;         // [batch, tokens, channels]; may be x
  std::int32_t type;              // of means, logweights and loggammas
  std::int64_t batch, tokens, modes, channels, positions;
  double sigma_src, sigma_a, sigma_b;
};

// Packed tokens to latents [batch, channels, rows*patch, columns*patch]; value / scaling + shift where scaling is
// given.
struct ArcflowHostUnpack {
  ArcflowHostBuffer* tokens;
  ArcflowHostBuffer* latents;
  std::int64_t batch, rows, columns, channels, patch;
  const float* scaling;  // [factor_count] in main memory, or null: as they are
  const float* shift;
  std::int64_t factor_count;  // 1 or channels
};

struct ArcflowHostApi {
  std::uint32_t version;  // kArcflowHostVersion
  const char* name;       // "ort"

  std::int32_t (*model_create)(const ArcflowHostOptions*, const ArcflowHostNetwork*, std::size_t count,
                               ArcflowHostModel**, ArcflowHostError*);
  void (*model_destroy)(ArcflowHostModel*);
  const char* (*model_backend)(const ArcflowHostModel*);  // "ONNX Runtime 1.32.0, CPU, 2 threads"
  void (*model_memory)(const ArcflowHostModel*, std::uint64_t* host, std::uint64_t* device);

  // stream: the caller's cudaStream_t, or null for an own one.
  std::int32_t (*session_create)(ArcflowHostModel*, void* stream, ArcflowHostSession**, ArcflowHostError*);
  void (*session_destroy)(ArcflowHostSession*);
  void (*session_memory)(const ArcflowHostSession*, std::uint64_t* host, std::uint64_t* device);

  std::int32_t (*buffer_create)(ArcflowHostSession*, std::uint64_t bytes, ArcflowHostBuffer**, ArcflowHostError*);
  void (*buffer_destroy)(ArcflowHostBuffer*);  // after the session's work on it is done
  std::int32_t (*write)(ArcflowHostSession*, ArcflowHostBuffer*, std::uint64_t offset, const void*, std::uint64_t bytes,
                        ArcflowHostError*);  // the source may be reused when it returns
  std::int32_t (*read)(ArcflowHostSession*, ArcflowHostBuffer*, std::uint64_t offset, void*, std::uint64_t bytes,
                       ArcflowHostError*);  // waits
  std::int32_t (*copy)(ArcflowHostSession*, ArcflowHostBuffer* from, std::uint64_t from_offset, ArcflowHostBuffer* to,
                       std::uint64_t to_offset, std::uint64_t bytes, ArcflowHostError*);

  // One evaluation of a network: every port bound, shapes within the limits.
  std::int32_t (*run)(ArcflowHostSession*, std::size_t network, const ArcflowHostBinding* inputs,
                      std::size_t input_count, const ArcflowHostBinding* outputs, std::size_t output_count,
                      ArcflowHostError*);
  std::int32_t (*normal)(ArcflowHostSession*, std::uint64_t seed, ArcflowHostBuffer*, std::uint64_t offset,
                         std::uint64_t count,
                         ArcflowHostError*);  // offset in bytes, count float32 values from element 0
  std::int32_t (*advance)(ArcflowHostSession*, const ArcflowHostAdvance*, ArcflowHostError*);
  std::int32_t (*unpack)(ArcflowHostSession*, const ArcflowHostUnpack*, ArcflowHostError*);
  // float32 [batch, 3, height, width] in about [-1, 1] -> uint8 [batch, height, width, 3].
  std::int32_t (*to_rgb8)(ArcflowHostSession*, ArcflowHostBuffer* images, ArcflowHostBuffer* pixels, std::int64_t batch,
                          std::int64_t height, std::int64_t width, ArcflowHostError*);
  std::int32_t (*finite)(ArcflowHostSession*, ArcflowHostBuffer*, std::uint64_t count, std::int32_t* all_finite,
                         ArcflowHostError*);  // waits
  std::int32_t (*synchronize)(ArcflowHostSession*, ArcflowHostError*);

  // A recorded stretch of work, by key: begin returns with *mode 0: do the calls, nothing is recorded (a host without
  // graphs, or a shape whose capture was rejected); 1: do the calls, they are being recorded; 2: skip the calls, end
  // replays them. Buffers and shapes of a key never change while it is recorded. end must follow begin.
  std::int32_t (*graph_begin)(ArcflowHostSession*, std::uint64_t key, std::int32_t* mode, ArcflowHostError*);
  std::int32_t (*graph_end)(ArcflowHostSession*, ArcflowHostError*);
  void (*graph_reset)(ArcflowHostSession*);  // forgets what was recorded: buffers were made anew

  // From any thread: a run in progress ends soon with ARCFLOW_CANCELLED, as do those after it, until rearm.
  void (*interrupt)(ArcflowHostSession*);
  void (*rearm)(ArcflowHostSession*);

  // What does not depend on the networks, such as opening the engine's library, done while their files are still being
  // read: model_create with the same options then finds it done. Null where there is nothing of the kind; null as the
  // result where it failed, which model_create will tell. unprepare: after model_create.
  ArcflowHostPrepared* (*prepare)(const ArcflowHostOptions*);
  void (*unprepare)(ArcflowHostPrepared*);
};

// The one symbol of a module.
typedef const ArcflowHostApi* (*ArcflowHostGetApi)(std::uint32_t version);
#define ARCFLOW_HOST_SYMBOL "arcflow_host_get_api"
}

// An engine host whose networks are a few sums: the whole pipeline in microseconds, with every breach of the host
// interface reported as an error. It fails on purpose where the option `library` says so, a list of words:
//
//   slow=MS   a network takes that long unless it is interrupted      nan       the field is not finite
//   fail=NAME the network of that name fails                          memory    no buffer can be made
//   recall    work is recorded and replayed, as CUDA graphs are       unknown   failures have a code nobody knows
//   devices=N there are so many; without the word, any ordinal is the one there is
//
// A session that ends logs how often it ran each network, recorded, replayed and waited.
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "core/error.hpp"
#include "core/numerics/compute.hpp"
#include "hosts/table.hpp"
#include "tests/hosts/fake_host/networks.hpp"

using arcflow::core::Error;
using namespace arcflow::fake;

namespace {

struct Recorded {
  std::vector<std::function<void()>> work;
};

}  // namespace

struct ArcflowHostSession {
  ArcflowHostModel* model;
  std::mutex mutex;
  std::condition_variable changed;
  bool interrupted = false;
  std::map<std::uint64_t, Recorded> recorded;
  Recorded* recording = nullptr;
  bool replaying = false, fresh = false;
  std::uint64_t bytes = 0;
  std::map<std::string, int> runs;  // by network
  int records = 0, replays = 0, waits = 0;
};

namespace {

// Work on the stream: done now, or put aside while recording.
void enqueue(ArcflowHostSession* session, std::function<void()> work) {
  if (session->replaying) breach("work during a replay");
  if (session->recording != nullptr) {
    session->recording->work.push_back(std::move(work));
  } else {
    work();
  }
}

void outside_recording(ArcflowHostSession* session, const char* what) {
  if (session->recording != nullptr || session->replaying) breach(std::string(what) + " within a recording");
}

void pause_as_told(ArcflowHostSession* session) {
  const std::string slow = session->model->value("slow");
  std::unique_lock<std::mutex> lock(session->mutex);
  if (!slow.empty()) {
    session->changed.wait_for(lock, std::chrono::milliseconds(std::stoi(slow)), [&] { return session->interrupted; });
  }
  if (session->interrupted) throw Error(ARCFLOW_CANCELLED, "fake host: interrupted");
}

// Buffers are counted by the session that made them; the table's destroy does not name it.
std::map<Buffer*, ArcflowHostSession*>& owners() {
  static std::map<Buffer*, ArcflowHostSession*> all;
  return all;
}
std::mutex& owners_mutex() {
  static std::mutex mutex;
  return mutex;
}

struct Host : arcflow::hosts::Unprepared {
  static void model_create(const ArcflowHostOptions* options, const ArcflowHostNetwork* networks, std::size_t count,
                           ArcflowHostModel** out) {
    auto model = std::make_unique<ArcflowHostModel>();
    model->options = options->library != nullptr ? options->library : "";
    model->log = options->log;
    model->log_user = options->log_user;
    if (model->has("broken")) throw Error(ARCFLOW_BACKEND_UNAVAILABLE, "fake host: told to reject the model");
    const std::string devices = model->value("devices");
    if (!devices.empty()) {
      if (options->device >= static_cast<std::uint32_t>(std::stoi(devices))) {
        throw Error(ARCFLOW_BACKEND_UNAVAILABLE, "fake host: there is no device " + std::to_string(options->device));
      }
      model->backend += ", device " + std::to_string(options->device);
    }
    const auto ports = [](const ArcflowHostPort* all, std::size_t size) {
      std::vector<ArcflowHostModel::Port> result;
      for (std::size_t i = 0; i < size; ++i) {
        result.push_back({all[i].name, all[i].type, {all[i].dims, all[i].dims + all[i].rank}});
      }
      return result;
    };
    for (std::size_t i = 0; i < count; ++i) {
      const ArcflowHostNetwork& one = networks[i];
      if (one.model.size == 0 || std::strchr(one.model.name, '/') != nullptr) breach("no model's bytes");
      model->networks.push_back({one.name, ports(one.inputs, one.input_count), ports(one.outputs, one.output_count)});
    }
    *out = model.release();
  }

  static void session_create(ArcflowHostModel* model, void*, ArcflowHostSession** out) {
    *out = new ArcflowHostSession{};
    (*out)->model = model;
  }

  static void session_destroy(ArcflowHostSession* session) {
    const ArcflowHostModel& model = *session->model;
    if (model.log != nullptr) {
      std::string text = "fake session: ";
      for (const auto& [network, runs] : session->runs) text += network + " ran " + std::to_string(runs) + ", ";
      text += std::to_string(session->records) + " recorded, " + std::to_string(session->replays) + " replayed, " +
              std::to_string(session->waits) + " waits, " + std::to_string(session->bytes) + " bytes left";
      model.log(model.log_user, ARCFLOW_LOG_DEBUG, text.c_str());
    }
    delete session;
  }

  static void buffer_create(ArcflowHostSession* session, std::uint64_t bytes, ArcflowHostBuffer** out) {
    if (session->model->has("memory")) throw Error(ARCFLOW_OUT_OF_MEMORY, "fake host: told to have no memory");
    *out = new Buffer{std::vector<char>(bytes, '\x7f')};
    session->bytes += bytes;
    const std::lock_guard<std::mutex> lock(owners_mutex());
    owners()[*out] = session;
  }

  static void buffer_destroy(ArcflowHostBuffer* buffer) {
    const std::lock_guard<std::mutex> lock(owners_mutex());
    const auto owner = owners().find(buffer);
    owner->second->bytes -= buffer->bytes.size();
    owners().erase(owner);
    delete buffer;
  }

  static void write(ArcflowHostSession* session, ArcflowHostBuffer* to, std::uint64_t offset, const void* data,
                    std::uint64_t bytes) {
    outside_recording(session, "a write");
    std::memcpy(at<char>(to, offset, bytes), data, bytes);
  }

  static void read(ArcflowHostSession* session, ArcflowHostBuffer* from, std::uint64_t offset, void* data,
                   std::uint64_t bytes) {
    outside_recording(session, "a read");
    ++session->waits;
    std::memcpy(data, at<char>(from, offset, bytes), bytes);
  }

  static void copy(ArcflowHostSession* session, ArcflowHostBuffer* from, std::uint64_t from_offset,
                   ArcflowHostBuffer* to, std::uint64_t to_offset, std::uint64_t bytes) {
    outside_recording(session, "a copy");
    std::memcpy(at<char>(to, to_offset, bytes), at<char>(from, from_offset, bytes), bytes);
  }

  static void run(ArcflowHostSession* session, std::size_t index, const ArcflowHostBinding* inputs,
                  std::size_t input_count, const ArcflowHostBinding* outputs, std::size_t output_count) {
    const ArcflowHostModel& model = *session->model;
    const ArcflowHostModel::Network& network = model.networks.at(index);
    if (model.value("fail") == network.name) {
      throw Error(ARCFLOW_BACKEND_UNAVAILABLE, "fake host: told to fail in " + network.name);
    }
    const Bound in("inputs", network.inputs, inputs, input_count);
    const Bound out("outputs", network.outputs, outputs, output_count);
    enqueue(session, [session, in, out, name = network.name, first = network.outputs.front().name] {
      ++session->runs[name];
      pause_as_told(session);
      if (name == "backbone") {
        backbone(in, out, session->model->has("nan"));
      } else if (name == "conditioner") {
        condition(in, out);
      } else if (name == "vae_decoder") {
        decode(in, out);
      } else {
        encode(in, out, first);
      }
    });
  }

  static void normal(ArcflowHostSession* session, std::uint64_t seed, ArcflowHostBuffer* to, std::uint64_t offset,
                     std::uint64_t count) {
    outside_recording(session, "noise");
    arcflow::core::normal(seed, 0, count, at<float>(to, offset, count));
  }

  static void advance(ArcflowHostSession* session, const ArcflowHostAdvance* given) {
    enqueue(session, [a = *given] {
      const auto values = [&](ArcflowHostBuffer* buffer, std::int64_t each) {
        return at<float>(buffer, 0, static_cast<std::uint64_t>(a.batch * a.tokens * each));
      };
      arcflow::core::advance({a.batch, a.tokens, a.modes, a.channels, a.positions, a.sigma_src, a.sigma_a, a.sigma_b},
                             values(a.x, a.channels), values(a.means, a.modes * a.channels),
                             values(a.logweights, a.modes * a.positions),
                             values(a.loggammas, (a.modes - 1) * a.positions), values(a.out, a.channels));
    });
  }

  static void unpack(ArcflowHostSession* session, const ArcflowHostUnpack* u) {
    outside_recording(session, "an unpack");
    const auto count = static_cast<std::uint64_t>(u->batch * u->rows * u->columns * u->channels * u->patch * u->patch);
    arcflow::core::unpack(at<float>(u->tokens, 0, count), u->batch, u->rows, u->columns, u->channels, u->patch,
                          u->scaling, u->shift, u->factor_count, at<float>(u->latents, 0, count));
  }

  static void to_rgb8(ArcflowHostSession*, ArcflowHostBuffer* images, ArcflowHostBuffer* pixels, std::int64_t batch,
                      std::int64_t height, std::int64_t width) {
    const auto count = static_cast<std::uint64_t>(batch * height * width * 3);
    arcflow::core::to_rgb8(at<float>(images, 0, count), batch, height, width, at<std::uint8_t>(pixels, 0, count));
  }

  static void finite(ArcflowHostSession* session, ArcflowHostBuffer* buffer, std::uint64_t count,
                     std::int32_t* all_finite) {
    outside_recording(session, "a question");
    ++session->waits;
    *all_finite = arcflow::core::all_finite(at<float>(buffer, 0, count), count) ? 1 : 0;
  }

  static void synchronize(ArcflowHostSession* session) {
    outside_recording(session, "a wait");
    ++session->waits;
  }

  static void graph_begin(ArcflowHostSession* session, std::uint64_t key, std::int32_t* mode) {
    outside_recording(session, "another recording");
    *mode = 0;
    if (!session->model->has("recall")) return;
    const auto [place, fresh] = session->recorded.try_emplace(key);
    session->fresh = fresh;
    session->recording = &place->second;
    session->replaying = !fresh;
    *mode = fresh ? 1 : 2;
  }

  static void graph_end(ArcflowHostSession* session) {
    Recorded* recorded = std::exchange(session->recording, nullptr);
    session->replaying = false;
    if (recorded == nullptr) return;
    ++(session->fresh ? session->records : session->replays);
    for (const auto& work : recorded->work) work();
  }

  static void interrupt(ArcflowHostSession* session) {
    const std::lock_guard<std::mutex> lock(session->mutex);
    session->interrupted = true;
    session->changed.notify_all();
  }

  static void rearm(ArcflowHostSession* session) {
    const std::lock_guard<std::mutex> lock(session->mutex);
    session->interrupted = false;
  }

  static void model_destroy(ArcflowHostModel* model) { delete model; }
  static const char* model_backend(const ArcflowHostModel* model) { return model->backend.c_str(); }
  static void model_memory(const ArcflowHostModel*, std::uint64_t* host, std::uint64_t* device) {
    *host = 1000;
    *device = 0;
  }
  static void session_memory(const ArcflowHostSession* session, std::uint64_t* host, std::uint64_t* device) {
    *host = session->bytes;
    *device = 0;
  }
  static void graph_reset(ArcflowHostSession* session) { session->recorded.clear(); }
};

std::int32_t run_or_unknown(ArcflowHostSession* session, std::size_t index, const ArcflowHostBinding* inputs,
                            std::size_t input_count, const ArcflowHostBinding* outputs, std::size_t output_count,
                            ArcflowHostError* error) {
  const std::int32_t code = arcflow::hosts::Guarded<&Host::run, arcflow::hosts::Anywhere>::call(
      session, index, inputs, input_count, outputs, output_count, error);
  return code != 0 && session->model->has("unknown") ? 4711 : code;
}

constexpr ArcflowHostApi fake() {
  ArcflowHostApi table = arcflow::hosts::table_of<Host>("fake");
  table.run = run_or_unknown;
  return table;
}
constexpr ArcflowHostApi kApi = fake();

}  // namespace

extern "C" __attribute__((visibility("default"))) const ArcflowHostApi* arcflow_host_get_api(std::uint32_t) {
  return &kApi;
}

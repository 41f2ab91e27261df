// Opening a bundle for use, in the order of runtime/pipeline.py: what can be rejected cheaply is rejected first.
#include "core/pipeline/model.hpp"

#include <algorithm>
#include <cstdio>
#include <deque>
#include <filesystem>
#include <future>
#include <system_error>
#include <thread>

#if defined(__linux__)
#include <sched.h>
#endif

#include "core/error.hpp"
#include "core/pipeline/host_loader.hpp"

namespace arcflow::core {
namespace {

constexpr std::uint32_t kMaxThreads = 1024;
constexpr std::uint32_t kMaxDefaultThreads = 8;

// The cores this process may use, at most 8.
std::uint32_t default_threads() {
#if defined(__linux__)
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) == 0) {
    return std::clamp<std::uint32_t>(static_cast<std::uint32_t>(CPU_COUNT(&set)), 1, kMaxDefaultThreads);
  }
#endif
  return std::clamp<std::uint32_t>(std::thread::hardware_concurrency(), 1, kMaxDefaultThreads);
}

std::uint32_t checked_threads(std::uint32_t threads) {
  if (threads > kMaxThreads) {
    throw Error(ARCFLOW_INVALID_ARGUMENT,
                "threads is " + std::to_string(threads) + "; it must be from 1 to " + std::to_string(kMaxThreads) +
                    ", or 0 for the cores of this machine, at most " + std::to_string(kMaxDefaultThreads));
  }
  return threads == 0 ? default_threads() : threads;
}

std::int32_t type_of(const std::string& dtype) {
  if (dtype == "float32") return kArcflowFloat32;
  if (dtype == "float16") return kArcflowFloat16;
  if (dtype == "bfloat16") return kArcflowBfloat16;
  return dtype == "int64" ? kArcflowInt64 : kArcflowInt32;
}

// The manifest's networks in the host's structs. What these point to lives as long as this object.
class HostNetworks {
 public:
  std::vector<ArcflowHostNetwork> all;

  void add(const std::string& name, const Network& spec, const Manifest& manifest, const Blob& model,
           const std::vector<const Blob*>& data) {
    ArcflowHostNetwork network{};
    network.name = name.c_str();
    network.model = blob(spec.file, model);
    std::vector<ArcflowHostBlob>& blobs = blobs_.emplace_back();
    for (std::size_t i = 0; i < data.size(); ++i) blobs.push_back(blob(spec.data[i], *data[i]));
    network.data = blobs.data();
    network.data_count = blobs.size();
    const std::map<std::string, ShapeRange>* profile = nullptr;
    if (manifest.engine) profile = &manifest.engine->profiles.at(name);
    const std::vector<ArcflowHostPort>& inputs = ports(spec.inputs, profile);
    network.inputs = inputs.data();
    network.input_count = inputs.size();
    const std::vector<ArcflowHostPort>& outputs = ports(spec.outputs, nullptr);
    network.outputs = outputs.data();
    network.output_count = outputs.size();
    all.push_back(network);
  }

 private:
  ArcflowHostBlob blob(const std::string& path, const Blob& bytes) {
    const std::string& name = names_.emplace_back(std::filesystem::path(path).filename().string());
    return {name.c_str(), bytes.data(), bytes.size()};
  }

  const std::vector<ArcflowHostPort>& ports(const std::vector<Port>& specs,
                                            const std::map<std::string, ShapeRange>* profile) {
    std::vector<ArcflowHostPort>& result = ports_.emplace_back();
    for (const Port& spec : specs) {
      std::vector<std::int64_t>& dims = dims_.emplace_back();
      for (const Dimension& size : spec.shape) {
        const auto* fixed = std::get_if<std::int64_t>(&size);
        dims.push_back(fixed != nullptr ? *fixed : -1);
      }
      ArcflowHostPort port{};
      port.name = spec.name.c_str();
      port.type = type_of(spec.dtype);
      port.rank = static_cast<std::int32_t>(dims.size());
      port.dims = dims.data();
      if (profile != nullptr) {
        const ShapeRange& range = profile->at(spec.name);
        port.least = range.min.data();
        port.usual = range.opt.data();
        port.most = range.max.data();
      }
      result.push_back(port);
    }
    return result;
  }

  // Deques: what they hold does not move when they grow.
  std::deque<std::string> names_;
  std::deque<std::vector<ArcflowHostBlob>> blobs_;
  std::deque<std::vector<ArcflowHostPort>> ports_;
  std::deque<std::vector<std::int64_t>> dims_;
};

// What the host can do before the networks' files are read, in a thread of its own.
class Preparation {
 public:
  Preparation(const ArcflowHostApi& api, const ArcflowHostOptions& options) : api_(api) {
    if (api.prepare == nullptr) return;
    try {
      work_ = std::async(std::launch::async, [&api, options] { return api.prepare(&options); });
    } catch (const std::system_error&) {  // No thread to be had: the host does it later.
    }
  }
  ~Preparation() {
    wait();
    if (prepared_ != nullptr) api_.unprepare(prepared_);
  }
  Preparation(const Preparation&) = delete;
  Preparation& operator=(const Preparation&) = delete;

  void wait() {
    if (work_.valid()) prepared_ = work_.get();
  }

 private:
  const ArcflowHostApi& api_;
  std::future<ArcflowHostPrepared*> work_;
  ArcflowHostPrepared* prepared_ = nullptr;
};

void forward_log(void* user, std::int32_t level, const char* message) {
  static_cast<const Log*>(user)->write(level, message != nullptr ? message : "");
}

}  // namespace

Model::Model(std::shared_ptr<Context> context, const OpenOptions& options)
    : context_(std::move(context)),
      bundle_(find_bundle(options.bundle, options.precision, options.target, built_in_bundles(), options.allow_links)),
      folder_(bundle_.root().string()) {
  const Clock::time_point start = Clock::now();
  load(options);
  if (context_->log.wants(ARCFLOW_LOG_INFO)) {
    char seconds[32];
    std::snprintf(seconds, sizeof seconds, "%.3f", std::chrono::duration<double>(Clock::now() - start).count());
    context_->log.write(ARCFLOW_LOG_INFO, "opened " + folder_ + " on " + backend_ + " in " + seconds + " s");
  }
}

void Model::load(const OpenOptions& options) {
  const Manifest& manifest = bundle_.manifest();
  const std::uint32_t threads = checked_threads(options.threads);
  const std::string host = host_for(manifest, bundle_.root(), options.host);
  require_ours(manifest);
  architecture_ = Architecture::of(manifest);
  api_ = &load_host(host, context_->host_directory);
  ArcflowHostOptions host_options{};
  host_options.library = options.library.empty() ? nullptr : options.library.c_str();
  host_options.threads = threads;
  host_options.device = options.device;
  if (context_->log.wants(ARCFLOW_LOG_ERROR)) {
    host_options.log = &forward_log;
    host_options.log_user = &context_->log;
  }
  Preparation preparation(*api_, host_options);

  for (const auto& [name, spec] : manifest.tokenizers) {
    const Blob json = bundle_.read(spec.file);
    tokenizers_.emplace_back(name, std::string_view(static_cast<const char*>(json.data()), json.size()), spec);
  }
  std::deque<Blob> models;
  HostNetworks networks;
  for (const auto& [name, spec] : manifest.networks) {
    networks_.push_back(name);
    const Blob& model = models.emplace_back(bundle_.read(spec.file));
    std::deque<Blob> mapped;
    std::vector<const Blob*> data;
    for (const std::string& path : spec.data) data.push_back(&mapped.emplace_back(bundle_.map(path)));
    networks.add(name, spec, manifest, model, data);
    for (Blob& blob : mapped) data_.push_back(std::move(blob));
  }
  preparation.wait();
  ArcflowHostModel* made = nullptr;
  call_host(api_->model_create, &host_options, networks.all.data(), networks.all.size(), &made);
  loaded_ = {made, api_->model_destroy};
  const char* backend = api_->model_backend(made);
  backend_ = backend != nullptr ? backend : host;
}

}  // namespace arcflow::core

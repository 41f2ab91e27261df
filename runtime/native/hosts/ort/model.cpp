// Loading networks into ONNX Runtime from verified bytes, and holding their ports to the manifest.
#include "hosts/ort/model.hpp"

#include <algorithm>
#include <atomic>
#include <future>
#include <iterator>
#include <system_error>

namespace arcflow::ort {
namespace {

using core::Error;

// The types of host.h, in their order.
constexpr struct {
  ONNXTensorElementDataType type;
  const char* name;
  std::uint64_t bytes;
} kTypes[] = {{ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, "float32", 4},
              {ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16, "float16", 2},
              {ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16, "bfloat16", 2},
              {ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64, "int64", 8},
              {ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32, "int32", 4}};
static_assert(kArcflowFloat32 == 0 && kArcflowInt32 + 1 == std::size(kTypes), "a row for each type");

const char* type_name(ONNXTensorElementDataType type) {
  const auto row =
      std::find_if(std::begin(kTypes), std::end(kTypes), [&](const auto& one) { return one.type == type; });
  return row == std::end(kTypes) ? "of another type" : row->name;
}

// As Python writes a list of names.
std::string quoted(const std::vector<std::string>& names) {
  std::string text;
  for (const std::string& name : names) text += (text.empty() ? "'" : ", '") + name + "'";
  return "[" + text + "]";
}

std::vector<std::string> sorted(std::vector<std::string> names) {
  std::sort(names.begin(), names.end());
  return names;
}

std::vector<std::string> names_of(const std::vector<Port>& ports) {
  std::vector<std::string> names;
  for (const Port& port : ports) names.push_back(port.name);
  return names;
}

std::uint64_t bytes_of(const ArcflowHostNetwork& network) {
  std::uint64_t bytes = network.model.size;
  for (std::size_t index = 0; index < network.data_count; ++index) bytes += network.data[index].size;
  return bytes;
}

}  // namespace

ONNXTensorElementDataType element_type(std::int32_t type) {
  if (type < 0 || static_cast<std::size_t>(type) >= std::size(kTypes)) {
    throw Error(ARCFLOW_INTERNAL, "a port has the unknown type number " + std::to_string(type));
  }
  return kTypes[type].type;
}

std::uint64_t element_bytes(ONNXTensorElementDataType type) {
  for (const auto& one : kTypes) {
    if (one.type == type) return one.bytes;
  }
  return 4;
}

Model::Model(const ArcflowHostOptions& options, const ArcflowHostNetwork* networks, std::size_t count)
    : environment_(options.library),
      log_{options.log, options.log_user},
      memory_(nullptr, environment_.library.api->ReleaseMemoryInfo) {
  OrtMemoryInfo* memory = nullptr;
  check(api(), api().CreateCpuMemoryInfo(OrtDeviceAllocator, OrtMemTypeDefault, &memory), "ONNX Runtime cannot start");
  memory_.reset(memory);

  const std::uint32_t threads = options.threads;
  load_all(networks, count, threads);
  backend_ = "ONNX Runtime " + environment_.library.version + ", CPU, " + std::to_string(threads) +
             (threads == 1 ? " thread" : " threads");
}

Handle<OrtSessionOptions> Model::session_options(const ArcflowHostNetwork& network, std::uint32_t threads) const {
  const std::string context = std::string("ONNX Runtime cannot prepare the ") + network.name + " network";
  const auto require = [this, &context](OrtStatus* status) { check(api(), status, context); };
  OrtSessionOptions* raw = nullptr;
  require(api().CreateSessionOptions(&raw));
  Handle<OrtSessionOptions> options(raw, api().ReleaseSessionOptions);
  require(api().SetIntraOpNumThreads(raw, static_cast<int>(threads)));
  require(api().SetInterOpNumThreads(raw, 1));
  if (log_.write != nullptr) {
    require(api().SetUserLoggingFunction(raw, &Model::forward, const_cast<Log*>(&log_)));
    require(api().SetSessionLogSeverityLevel(raw, ORT_LOGGING_LEVEL_WARNING));
  } else {
    require(api().SetSessionLogSeverityLevel(raw, ORT_LOGGING_LEVEL_FATAL));
  }
  // One or two evaluations an image: an arena and its plans cost more than they save, idle spinning costs a core.
  require(api().DisableCpuMemArena(raw));
  require(api().DisableMemPattern(raw));
  require(api().AddSessionConfigEntry(raw, "session.intra_op.allow_spinning", "0"));
  // Where else a model's weights could be looked for: nowhere.
  require(api().AddSessionConfigEntry(raw, "session.model_external_initializers_file_folder_path", "/dev/null"));
  if (network.data_count > 0) {
    std::vector<const char*> names;
    std::vector<char*> contents;
    std::vector<std::size_t> sizes;
    for (std::size_t index = 0; index < network.data_count; ++index) {
      const ArcflowHostBlob& blob = network.data[index];
      names.push_back(blob.name);
      contents.push_back(static_cast<char*>(const_cast<void*>(blob.data)));  // It is only read: see its documentation.
      sizes.push_back(static_cast<std::size_t>(blob.size));
    }
    require(
        api().AddExternalInitializersFromFilesInMemory(raw, names.data(), contents.data(), sizes.data(), names.size()));
  }
  return options;
}

// Making a session is one thread's work in ONNX Runtime, and most of what opening a model takes: where there may be
// several threads, the networks are loaded side by side, the largest first, since that one decides how long it takes.
// What fails is told in the networks' order all the same.
void Model::load_all(const ArcflowHostNetwork* networks, std::size_t count, std::uint32_t threads) {
  std::vector<std::packaged_task<Network()>> tasks;
  std::vector<std::future<Network>> loading;
  std::vector<std::size_t> order;
  for (std::size_t index = 0; index < count; ++index) {
    tasks.emplace_back([this, networks, index, threads] { return load(networks[index], threads); });
    loading.push_back(tasks.back().get_future());
    order.push_back(index);
    bytes_ += bytes_of(networks[index]);
  }
  std::sort(order.begin(), order.end(),
            [networks](std::size_t a, std::size_t b) { return bytes_of(networks[a]) > bytes_of(networks[b]); });
  std::atomic<std::size_t> next{0};
  const auto work = [&] {
    for (std::size_t place = next++; place < count; place = next++) tasks[order[place]]();
  };
  std::vector<std::future<void>> helpers;  // They end before what they use goes.
  for (std::size_t helper = 1; helper < std::min<std::size_t>(threads, count); ++helper) {
    try {
      helpers.push_back(std::async(std::launch::async, work));
    } catch (const std::system_error&) {  // No thread to be had: this one does it all.
      break;
    }
  }
  work();
  for (std::future<void>& helper : helpers) helper.get();
  networks_.reserve(count);
  for (std::future<Network>& one : loading) networks_.push_back(one.get());
}

Network Model::load(const ArcflowHostNetwork& network, std::uint32_t threads) const {
  const std::string name = network.name;
  const Handle<OrtSessionOptions> options = session_options(network, threads);
  OrtSession* raw = nullptr;
  check(api(),
        api().CreateSessionFromArray(environment_.handle.get(), network.model.data,
                                     static_cast<std::size_t>(network.model.size), options.get(), &raw),
        "ONNX Runtime cannot load the " + name + " network '" + network.model.name + "'");
  Handle<OrtSession> session(raw, api().ReleaseSession);
  Network loaded{name, std::move(session), {}, {}};
  loaded.inputs = ports(network, raw, true);
  loaded.outputs = ports(network, raw, false);
  return loaded;
}

// The ports of one side, after they were found to be those of the manifest: names in any order, and types.
std::vector<Port> Model::ports(const ArcflowHostNetwork& network, const OrtSession* session, bool inputs) const {
  const std::string context = std::string("ONNX Runtime cannot tell the ports of the ") + network.name + " network";
  const auto require = [this, &context](OrtStatus* status) { check(api(), status, context); };
  OrtAllocator* allocator = nullptr;
  require(api().GetAllocatorWithDefaultOptions(&allocator));
  std::size_t count = 0;
  require(inputs ? api().SessionGetInputCount(session, &count) : api().SessionGetOutputCount(session, &count));
  std::vector<Port> actual;
  for (std::size_t index = 0; index < count; ++index) {
    char* text = nullptr;
    require(inputs ? api().SessionGetInputName(session, index, allocator, &text)
                   : api().SessionGetOutputName(session, index, allocator, &text));
    const std::string port = text;
    require(api().AllocatorFree(allocator, text));
    OrtTypeInfo* raw = nullptr;
    require(inputs ? api().SessionGetInputTypeInfo(session, index, &raw)
                   : api().SessionGetOutputTypeInfo(session, index, &raw));
    const Handle<OrtTypeInfo> info(raw, api().ReleaseTypeInfo);
    const OrtTensorTypeAndShapeInfo* tensor = nullptr;  // Stays null for what is no tensor.
    require(api().CastTypeInfoToTensorInfo(raw, &tensor));
    ONNXTensorElementDataType type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
    if (tensor != nullptr) require(api().GetTensorElementType(tensor, &type));
    actual.push_back({port, type});
  }

  const char* kind = inputs ? "inputs" : "outputs";
  const ArcflowHostPort* expected = inputs ? network.inputs : network.outputs;
  std::vector<std::string> names;
  for (std::size_t index = 0; index < (inputs ? network.input_count : network.output_count); ++index) {
    names.emplace_back(expected[index].name);
  }
  if (sorted(names_of(actual)) != sorted(names)) {
    throw Error(ARCFLOW_BACKEND_UNAVAILABLE, std::string("the ") + network.name + " network has " + kind + " " +
                                                 quoted(names_of(actual)) + "; the bundle's manifest says " +
                                                 quoted(names));
  }
  for (const Port& port : actual) {
    const auto place = std::find(names.begin(), names.end(), port.name) - names.begin();
    const ONNXTensorElementDataType wanted = element_type(expected[place].type);
    if (port.type != wanted) {
      throw Error(ARCFLOW_BACKEND_UNAVAILABLE, std::string("the ") + network.name + " network's '" + port.name +
                                                   "' is " + type_name(port.type) + "; the bundle's manifest says " +
                                                   type_name(wanted));
    }
  }
  return actual;
}

void ORT_API_CALL Model::forward(void* log, OrtLoggingLevel severity, const char* category, const char* id,
                                 const char* location, const char* message) {
  (void)category, (void)id, (void)location;
  const Log* sink = static_cast<const Log*>(log);
  // VERBOSE, INFO, WARNING, ERROR, FATAL to DEBUG, INFO, WARNING, ERROR, ERROR.
  sink->write(sink->user, std::min<std::int32_t>(severity, ARCFLOW_LOG_ERROR), message);
}

}  // namespace arcflow::ort

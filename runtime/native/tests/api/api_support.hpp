// What the tests of the C interface share: the table with its objects as values, and the embedded bundle in the fake
// host.
#pragma once

#include <cstdint>
#include <cstdio>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "arcflow/arcflow.h"

namespace arcflow::test {

inline const ArcflowApi& api() {
  static const ArcflowApi* const table = arcflow_get_api(ARCFLOW_API_VERSION);
  return *table;
}

// What a call said: its code and its message.
struct Said {
  std::int32_t code = ARCFLOW_OK;
  std::string message;
  bool ok() const { return code == ARCFLOW_OK; }
  bool has(const std::string& words) const { return message.find(words) != std::string::npos; }
};

inline Said said(ArcflowStatus* status) {
  Said result{api().status_code(status), api().status_message(status)};
  api().status_destroy(status);
  return result;
}

template <class T>
using Handle = std::unique_ptr<T, void (*)(T*)>;

inline std::string bundle_folder() { return std::string(ARCFLOW_SOURCE_DIR) + "/engines/bundles/tiny-fp16-cpu"; }
inline std::string fake_hosts() { return std::string(ARCFLOW_TEST_HOSTS) + "-test"; }

// All that was logged through a context.
struct Lines {
  std::mutex mutex;
  std::vector<std::string> all;
  static void ARCFLOW_CALL write(void* user, std::int32_t level, const char* message) {
    auto& self = *static_cast<Lines*>(user);
    const std::lock_guard<std::mutex> lock(self.mutex);
    self.all.push_back(std::to_string(level) + " " + message);
  }
  bool has(const std::string& words) {
    const std::lock_guard<std::mutex> lock(mutex);
    for (const std::string& line : all) {
      if (line.find(words) != std::string::npos) return true;
    }
    return false;
  }
};

inline Handle<ArcflowContext> make_context(Lines* lines = nullptr, std::int32_t level = ARCFLOW_LOG_DEBUG) {
  const std::string folder = fake_hosts();
  ArcflowContextOptions options = ARCFLOW_INIT(ArcflowContextOptions);
  options.host_directory = folder.c_str();
  options.least_level = level;
  if (lines != nullptr) {
    options.logger = &Lines::write;
    options.logger_user = lines;
  }
  ArcflowContext* context = nullptr;
  const Said what = said(api().context_create(&options, &context));
  if (!what.ok()) std::fprintf(stderr, "%s\n", what.message.c_str());
  return {context, api().context_destroy};
}

// How the fake host should behave: the words of tests/hosts/fake_host/fake_host.cpp.
inline Said open_model(ArcflowContext* context, Handle<ArcflowModel>& out, const char* behaviour = "",
                       const char* host = "fake", const std::string& bundle = bundle_folder()) {
  ArcflowModelOptions options = ARCFLOW_INIT(ArcflowModelOptions);
  options.bundle = bundle.c_str();
  options.host = host;
  options.library = behaviour;
  ArcflowModel* model = nullptr;
  Said result = said(api().model_open(context, &options, &model));
  out = Handle<ArcflowModel>(model, api().model_destroy);
  return result;
}

inline Handle<ArcflowModel> make_model(ArcflowContext* context, const char* behaviour = "") {
  Handle<ArcflowModel> model(nullptr, api().model_destroy);
  const Said what = open_model(context, model, behaviour);
  if (!what.ok()) std::fprintf(stderr, "%s\n", what.message.c_str());
  return model;
}

inline Handle<ArcflowSession> make_session(ArcflowModel* model) {
  ArcflowSession* session = nullptr;
  const Said what = said(api().session_create(model, nullptr, &session));
  if (!what.ok()) std::fprintf(stderr, "%s\n", what.message.c_str());
  return {session, api().session_destroy};
}

inline Handle<ArcflowCancel> make_cancel() {
  ArcflowCancel* cancel = nullptr;
  said(api().cancel_create(&cancel));
  return {cancel, api().cancel_destroy};
}

// A request for one prompt, and where its results go.
struct Call {
  std::vector<const char*> prompts{"a smiling face with sunglasses"};
  ArcflowRequest request = ARCFLOW_INIT(ArcflowRequest);
  ArcflowOutput output = ARCFLOW_INIT(ArcflowOutput);
  std::vector<std::uint8_t> rgb8;
  std::vector<float> images, latents;

  Call() { use_prompts(); }
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

  void use_prompts() {
    request.prompts = prompts.data();
    request.prompt_count = prompts.size();
  }

  Said generate(ArcflowModel* model, ArcflowSession* session) {
    ArcflowShape shape = ARCFLOW_INIT(ArcflowShape);
    const Said checked = said(api().model_shape(model, &request, &shape));
    if (!checked.ok()) return checked;
    rgb8.assign(shape.rgb8_bytes, 0);
    images.assign(shape.image_floats, 0.0F);
    latents.assign(shape.latent_floats, 0.0F);
    output.rgb8 = rgb8.data();
    output.rgb8_bytes = rgb8.size();
    output.images = images.data();
    output.image_floats = images.size();
    output.latents = latents.data();
    output.latent_floats = latents.size();
    return said(api().session_generate(session, &request, &output));
  }
};

// All that a request needs, on a fake host with that behaviour.
struct Fixture {
  Lines lines;
  Handle<ArcflowContext> context = make_context(&lines);
  Handle<ArcflowModel> model;
  Handle<ArcflowSession> session;
  Call call;

  explicit Fixture(const char* behaviour = "")
      : model(make_model(context.get(), behaviour)), session(make_session(model.get())) {}
  Said generate() { return call.generate(model.get(), session.get()); }
};

}  // namespace arcflow::test

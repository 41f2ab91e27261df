// The C interface through its table alone (arcflow_get_api): structs of other ages, missing arguments, opening,
// objects.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>
#include <unistd.h>

#include <cstddef>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <string>

#include "api_support.hpp"

using namespace arcflow::test;
namespace fs = std::filesystem;

namespace {

// A copy of the embedded bundle that a test may spoil.
class BundleCopy {
 public:
  BundleCopy() : folder_(fs::temp_directory_path() / ("arcflow-test-" + std::to_string(::getpid()))) {
    fs::remove_all(folder_);
    fs::copy(bundle_folder(), folder_, fs::copy_options::recursive);
  }
  ~BundleCopy() { fs::remove_all(folder_); }
  std::string path() const { return folder_.string(); }
  void flip(const std::string& file, std::streamoff at) const {
    std::fstream stream(folder_ / file, std::ios::in | std::ios::out | std::ios::binary);
    stream.seekg(at);
    const char byte = static_cast<char>(stream.get() ^ 1);
    stream.seekp(at);
    stream.put(byte);
  }

 private:
  fs::path folder_;
};

void check(const Said& what, std::int32_t code, const std::string& words) {
  CHECK_MESSAGE(what.code == code, what.message);
  CHECK_MESSAGE(what.has(words), what.message);
}

}  // namespace

TEST_CASE("the table") {
  REQUIRE(arcflow_get_api(ARCFLOW_API_VERSION) != nullptr);
  CHECK(arcflow_get_api(0) == nullptr);
  CHECK(arcflow_get_api(ARCFLOW_API_VERSION + 1) == nullptr);
  CHECK(api().struct_size == sizeof(ArcflowApi));
  CHECK(api().version == ARCFLOW_API_VERSION);
  CHECK(std::string(api().library_version()) == "0.1.0");
  // Every entry is there.
  const auto* words = reinterpret_cast<void* const*>(&api());
  for (std::size_t i = 2; i < sizeof(ArcflowApi) / sizeof(void*); ++i) CHECK(words[i] != nullptr);
}

TEST_CASE("no status, no object: nothing happens") {
  CHECK(api().status_code(nullptr) == ARCFLOW_OK);
  CHECK(std::string(api().status_message(nullptr)).empty());
  api().status_destroy(nullptr);
  api().context_destroy(nullptr);
  api().model_destroy(nullptr);
  api().session_destroy(nullptr);
  api().cancel_destroy(nullptr);
  api().cancel_request(nullptr);
  api().bytes_destroy(nullptr);
  CHECK(api().bytes_data(nullptr) == nullptr);
  CHECK(api().bytes_size(nullptr) == 0);
}

TEST_CASE("what is required is named where it is missing") {
  const auto context = make_context();
  const auto model = make_model(context.get());
  const auto session = make_session(model.get());
  Call call;
  ArcflowContext* no_context = nullptr;
  ArcflowModel* no_model = nullptr;
  ArcflowSession* no_session = nullptr;
  ArcflowBytes* bytes = nullptr;
  ArcflowModelOptions options = ARCFLOW_INIT(ArcflowModelOptions);
  options.bundle = "tiny";
  ArcflowMemory memory = ARCFLOW_INIT(ArcflowMemory);
  ArcflowModelInfo info = ARCFLOW_INIT(ArcflowModelInfo);
  ArcflowShape shape = ARCFLOW_INIT(ArcflowShape);
  const auto missing = [](ArcflowStatus* status, const char* words) {
    check(said(status), ARCFLOW_INVALID_ARGUMENT, words);
  };
  missing(api().context_create(nullptr, nullptr), "out is NULL");
  missing(api().model_open(nullptr, &options, &no_model), "context is NULL");
  missing(api().model_open(context.get(), nullptr, &no_model), "options is NULL");
  missing(api().model_open(context.get(), &options, nullptr), "out is NULL");
  options.bundle = nullptr;
  missing(api().model_open(context.get(), &options, &no_model), "bundle of the options is missing");
  missing(api().model_info(nullptr, &info), "model is NULL");
  missing(api().model_info(model.get(), nullptr), "info is NULL");
  missing(api().model_memory(nullptr, &memory), "model is NULL");
  missing(api().model_memory(model.get(), nullptr), "memory is NULL");
  missing(api().model_shape(nullptr, &call.request, &shape), "model is NULL");
  missing(api().model_shape(model.get(), nullptr, &shape), "request is NULL");
  missing(api().model_shape(model.get(), &call.request, nullptr), "shape is NULL");
  missing(api().session_create(nullptr, nullptr, &no_session), "model is NULL");
  missing(api().session_create(model.get(), nullptr, nullptr), "out is NULL");
  missing(api().session_memory(nullptr, &memory), "session is NULL");
  missing(api().session_warm_up(nullptr, &call.request), "session is NULL");
  missing(api().session_warm_up(session.get(), nullptr), "request is NULL");
  missing(api().session_generate(nullptr, &call.request, &call.output), "session is NULL");
  missing(api().session_generate(session.get(), nullptr, &call.output), "request is NULL");
  missing(api().session_generate(session.get(), &call.request, nullptr), "output is NULL");
  missing(api().cancel_create(nullptr), "out is NULL");
  missing(api().describe_image(nullptr, &call.request, 0, &bytes), "model is NULL");
  missing(api().encode_png(nullptr, 1, 1, nullptr, &bytes), "rgb8 is NULL");
  missing(api().verify_bundle(nullptr), "folder is NULL");
  missing(api().noise(0, 0, 1, nullptr), "out is NULL");
  CHECK(said(api().noise(0, 0, 0, nullptr)).ok());
  CHECK(no_context == nullptr);
  CHECK(no_model == nullptr);
  CHECK(no_session == nullptr);
}

TEST_CASE("structs carry their size") {
  const auto context = make_context();
  const auto model = make_model(context.get());
  Call call;
  ArcflowShape shape = ARCFLOW_INIT(ArcflowShape);
  const auto ask = [&] { return said(api().model_shape(model.get(), &call.request, &shape)); };
  CHECK(ask().ok());

  SUBCASE("sizes that no program has") {
    for (const std::size_t size :
         {std::size_t{0}, std::size_t{4}, sizeof(ArcflowRequest) - 1, SIZE_MAX, SIZE_MAX - 7}) {
      call.request.struct_size = size;
      check(ask(), ARCFLOW_INVALID_ARGUMENT, "struct_size of request is " + std::to_string(size));
    }
    call.request = ARCFLOW_INIT(ArcflowRequest);
    call.use_prompts();
    shape.struct_size = 0;
    check(ask(), ARCFLOW_INVALID_ARGUMENT, "struct_size of shape is 0");
  }
  SUBCASE("an older program's request ends early: the rest is the default") {
    call.request.width = 128;
    call.request.struct_size = offsetof(ArcflowRequest, num_images);
    CHECK(ask().ok());
    CHECK(shape.width == 64);
  }
  SUBCASE("an older program's result is filled in as far as it reaches") {
    shape.rgb8_bytes = 4711;
    shape.struct_size = offsetof(ArcflowShape, rgb8_bytes);
    CHECK(ask().ok());
    CHECK(shape.width == 64);
    CHECK(shape.rgb8_bytes == 4711);
    CHECK(shape.struct_size == offsetof(ArcflowShape, rgb8_bytes));
  }
  SUBCASE("a newer program may not ask for what is unknown here") {
    struct Newer {
      ArcflowRequest request;
      std::uint64_t more[2];
    } newer{call.request, {0, 0}};
    newer.request.struct_size = sizeof newer;
    CHECK(said(api().model_shape(model.get(), &newer.request, &shape)).ok());
    newer.more[1] = 1;
    check(said(api().model_shape(model.get(), &newer.request, &shape)), ARCFLOW_INVALID_ARGUMENT,
          "request asks for something that this library (version 0.1.0) does not know");
  }
  SUBCASE("a list of tokens has the caller's stride") {
    struct Newer {
      ArcflowTokens tokens;
      std::uint64_t more;
    };
    const std::int64_t ids[] = {1, 2, 3};
    Newer two[2] = {};
    two[0].tokens = {sizeof(Newer), "clip", ids, nullptr, 3};
    two[1].tokens = {sizeof(Newer), "t5", ids, nullptr, 3};
    call.request.tokens = &two[0].tokens;
    call.request.token_count = 2;
    CHECK(ask().ok());
    two[1].tokens.struct_size = sizeof(ArcflowTokens);
    check(ask(), ARCFLOW_INVALID_ARGUMENT, "struct_size of tokens[1] is 40, of the first 48");
    call.request.token_count = SIZE_MAX;
    check(ask(), ARCFLOW_INVALID_ARGUMENT, "token_count is");
  }
}

TEST_CASE("a context's options") {
  ArcflowContext* context = nullptr;
  CHECK(said(api().context_create(nullptr, &context)).ok());
  api().context_destroy(context);
  ArcflowContextOptions options = ARCFLOW_INIT(ArcflowContextOptions);
  options.least_level = 4;
  check(said(api().context_create(&options, &context)), ARCFLOW_INVALID_ARGUMENT, "least_level is 4");
  CHECK(context == nullptr);
}

TEST_CASE("a model that cannot be opened") {
  const auto context = make_context();
  Handle<ArcflowModel> model(nullptr, api().model_destroy);
  const auto open = [&](const char* host, const char* behaviour = "") {
    return open_model(context.get(), model, behaviour, host);
  };
  check(open_model(context.get(), model, "", "fake", "no-such-model"), ARCFLOW_BUNDLE_REJECTED,
        "no bundle for 'no-such-model'");
  check(open_model(context.get(), model, "", "fake", "/no/such/folder"), ARCFLOW_BUNDLE_REJECTED, "/no/such/folder");
  check(open("missing"), ARCFLOW_BACKEND_UNAVAILABLE, fake_hosts() + "/libarcflow_host_missing.so");
  CHECK(open("missing").has("libarcflow_host_fake.so"));  // what there is
  check(open("tensorrt"), ARCFLOW_BACKEND_UNAVAILABLE,
        "holds ONNX files; the host 'tensorrt' does not run them, 'ort' does");
  check(open("../evil"), ARCFLOW_INVALID_ARGUMENT, "host is '../evil'");
  check(open("old"), ARCFLOW_BACKEND_UNAVAILABLE, "is not of this library's version");
  check(open("empty"), ARCFLOW_BACKEND_UNAVAILABLE, "is not of this library's version");
  check(open("fake", "broken"), ARCFLOW_BACKEND_UNAVAILABLE, "told to reject the model");
  CHECK(model == nullptr);

  ArcflowModelOptions options = ARCFLOW_INIT(ArcflowModelOptions);
  const std::string folder = bundle_folder();
  options.bundle = folder.c_str();
  options.host = "fake";
  options.threads = 1025;
  ArcflowModel* none = nullptr;
  check(said(api().model_open(context.get(), &options, &none)), ARCFLOW_INVALID_ARGUMENT, "threads is 1025");
  options.threads = 1;
  options.precision = "bf16";
  check(said(api().model_open(context.get(), &options, &none)), ARCFLOW_BUNDLE_REJECTED, "bf16");
}

TEST_CASE("a bundle that was altered is rejected, whatever the file") {
  const auto context = make_context();
  for (const char* file : {"backbone.onnx", "clip.onnx", "conditioner.onnx", "t5.onnx", "vae_decoder.onnx",
                           "tokenizers/t5.json", "manifest.json"}) {
    const BundleCopy copy;
    CHECK(said(api().verify_bundle(copy.path().c_str())).ok());
    copy.flip(file, 1000);
    Handle<ArcflowModel> model(nullptr, api().model_destroy);
    check(open_model(context.get(), model, "", "fake", copy.path()), ARCFLOW_BUNDLE_REJECTED, "");
    check(said(api().verify_bundle(copy.path().c_str())), ARCFLOW_BUNDLE_REJECTED, "");
  }
}

TEST_CASE("links are followed for a program that knows of it and asks for it") {
  const auto context = make_context();
  const BundleCopy copy;
  const std::string folder = copy.path();
  fs::remove(folder + "/t5.onnx");
  fs::create_symlink(bundle_folder() + "/t5.onnx", folder + "/t5.onnx");
  ArcflowModelOptions options = ARCFLOW_INIT(ArcflowModelOptions);
  options.bundle = folder.c_str();
  options.host = "fake";
  options.library = "";
  const auto open = [&] {
    ArcflowModel* model = nullptr;
    Said what = said(api().model_open(context.get(), &options, &model));
    api().model_destroy(model);
    return what;
  };
  check(open(), ARCFLOW_BUNDLE_REJECTED, "'t5.onnx' is a symbolic link");
  options.allow_links = 1;
  CHECK(open().ok());
  options.struct_size = offsetof(ArcflowModelOptions, allow_links);  // of the release before
  check(open(), ARCFLOW_BUNDLE_REJECTED, "'t5.onnx' is a symbolic link");
}

TEST_CASE("what a model says of itself") {
  Lines lines;
  const auto context = make_context(&lines, ARCFLOW_LOG_INFO);
  const auto model = make_model(context.get());
  ArcflowModelInfo info = ARCFLOW_INIT(ArcflowModelInfo);
  REQUIRE(said(api().model_info(model.get(), &info)).ok());
  CHECK(std::string(info.model) == "tiny");
  CHECK(std::string(info.architecture) == "flux");
  CHECK(std::string(info.precision) == "fp16");
  CHECK(std::string(info.target) == "cpu");
  CHECK(std::strlen(info.digest) == 64);
  CHECK(std::string(info.bundle) == bundle_folder());
  CHECK(std::string(info.backend) == "a fake");
  CHECK(info.batch.max == 16);
  CHECK(info.width.min == 32);
  CHECK(info.height.opt == 64);
  CHECK(info.multiple == 16);
  CHECK(info.nfe == 2);
  CHECK(info.max_nfe == 64);
  CHECK(info.latent_channels == 16);
  CHECK(info.latent_factor == 8);
  ArcflowMemory memory = ARCFLOW_INIT(ArcflowMemory);
  REQUIRE(said(api().model_memory(model.get(), &memory)).ok());
  CHECK(memory.host_bytes == 1000);
  CHECK(lines.has("1 opened " + bundle_folder() + " on a fake"));
  CHECK(lines.all.size() == 1);
}

TEST_CASE("a logger that throws, or logs, does no harm") {
  const std::string folder = fake_hosts();
  ArcflowContextOptions options = ARCFLOW_INIT(ArcflowContextOptions);
  options.host_directory = folder.c_str();
  options.logger = [](void*, std::int32_t, const char*) { throw std::runtime_error("from the logger"); };
  ArcflowContext* context = nullptr;
  REQUIRE(said(api().context_create(&options, &context)).ok());
  CHECK(make_model(context) != nullptr);
  api().context_destroy(context);
}

TEST_CASE("settings, PNG and noise") {
  const auto context = make_context();
  const auto model = make_model(context.get());
  Call call;
  call.request.seed = UINT64_MAX;
  call.request.num_images = 2;
  ArcflowBytes* bytes = nullptr;
  REQUIRE(said(api().describe_image(model.get(), &call.request, 1, &bytes)).ok());
  const std::string settings(reinterpret_cast<const char*>(api().bytes_data(bytes)), api().bytes_size(bytes));
  api().bytes_destroy(bytes);
  CHECK(settings.rfind("{\"prompt\": \"a smiling face with sunglasses\", \"seed\": 0, \"model\": \"tiny\"", 0) == 0);
  check(said(api().describe_image(model.get(), &call.request, 2, &bytes)), ARCFLOW_INVALID_ARGUMENT,
        "image is 2; the request makes 2");
  CHECK(bytes == nullptr);

  const std::vector<std::uint8_t> pixels(4 * 4 * 3, 200);
  REQUIRE(said(api().encode_png(pixels.data(), 4, 4, settings.c_str(), &bytes)).ok());
  CHECK(std::memcmp(api().bytes_data(bytes), "\x89PNG", 4) == 0);
  CHECK(api().bytes_data(bytes)[api().bytes_size(bytes)] == 0);
  api().bytes_destroy(bytes);
  check(said(api().encode_png(pixels.data(), 0, 4, nullptr, &bytes)), ARCFLOW_INVALID_ARGUMENT, "");
  check(said(api().encode_png(pixels.data(), 4, 4, "[", &bytes)), ARCFLOW_INVALID_ARGUMENT, "");

  float all[8];
  float part[4];
  REQUIRE(said(api().noise(7, 0, 8, all)).ok());
  REQUIRE(said(api().noise(7, 4, 4, part)).ok());
  CHECK(std::memcmp(all + 4, part, sizeof part) == 0);
}

TEST_CASE("objects go in any order") {
  Lines lines;
  auto context = make_context(&lines);
  auto model = make_model(context.get());
  auto session = make_session(model.get());
  auto cancel = make_cancel();
  Call call;
  call.request.cancel = cancel.get();
  context.reset();
  CHECK(call.generate(model.get(), session.get()).ok());
  call.request.timeout = 60.0;  // the watch still works
  CHECK(call.generate(model.get(), session.get()).ok());
  auto second = make_session(model.get());
  ArcflowModel* gone = model.release();
  std::vector<float> before = call.latents;
  ArcflowOutput output = call.output;
  api().model_destroy(gone);
  CHECK(said(api().session_generate(session.get(), &call.request, &output)).ok());
  CHECK(call.latents == before);
  cancel.reset();
  call.request.cancel = nullptr;
  CHECK(said(api().session_generate(second.get(), &call.request, &output)).ok());
  session.reset();
  CHECK(said(api().session_generate(second.get(), &call.request, &output)).ok());
  second.reset();
  CHECK(lines.has("0 bytes left"));
}

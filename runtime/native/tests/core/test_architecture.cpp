// How the networks of an architecture are fed, on the fake host: the conditioner's rows, and ports that do not fit.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

#include <algorithm>
#include <memory>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "core/error.hpp"
#include "core/numerics/compute.hpp"
#include "core/pipeline/model.hpp"

using namespace arcflow::core;

namespace {

// The embedded bundle in the fake host: its conditioner's rows begin with level, guidance and mean of the pooled text,
// and its backbone adds them to the mean of the context, which comes first where x is 0.
struct Opened {
  std::shared_ptr<Context> context =
      std::make_shared<Context>(nullptr, nullptr, ARCFLOW_LOG_ERROR, ARCFLOW_TEST_HOSTS "-test");
  Model model{context, {ARCFLOW_SOURCE_DIR "/engines/bundles/tiny-fp16-cpu", "", "", "fake", "", 1}};
  Device device{model.api(), model.loaded(), model.networks(), nullptr};

  std::vector<float> read(Slot slot, std::uint64_t offset, std::size_t count) {
    std::vector<float> values(count);
    device.read(slot, offset, values.data(), count * sizeof(float));
    return values;
  }
};

Manifest tiny() { return Bundle::open(ARCFLOW_SOURCE_DIR "/engines/bundles/tiny-fp16-cpu").manifest(); }

Port& port(std::vector<Port>& ports, const std::string& name) {
  return *std::find_if(ports.begin(), ports.end(), [&](const Port& one) { return one.name == name; });
}

}  // namespace

TEST_CASE("each evaluation of each image has the conditioner's row of its level") {
  Opened opened;
  Device& device = opened.device;
  const Architecture& architecture = opened.model.architecture();
  TokensByEncoder tokens;
  tokens["clip"] = {3, 24, std::vector<std::int64_t>(72), {}, {}};
  tokens["t5"] = {3, 12, std::vector<std::int64_t>(36), {}, {}};
  std::fill(tokens["clip"].ids.begin() + 24, tokens["clip"].ids.begin() + 48, 1);
  std::fill(tokens["clip"].ids.begin() + 48, tokens["clip"].ids.end(), 2);
  const Encoded encoded = architecture.encode(device, tokens);
  std::vector<double> sigmas;
  for (int level = 17; level >= 0; --level) sigmas.push_back(level / 17.0);
  const bool rounded = tiny().schedule.conditioning_dtype == "bfloat16";
  const auto modes = static_cast<std::uint64_t>(tiny().momentum.modes);
  const std::int64_t columns =
      std::get<std::int64_t>(port(tiny().networks.at("backbone").inputs, "modulation").shape.back());

  for (const auto& prompts : std::vector<std::vector<std::size_t>>{{1}, {2, 0, 1}, std::vector<std::size_t>(16, 1)}) {
    BatchShape shape;
    shape.batch = static_cast<std::int64_t>(prompts.size());
    shape.grid = architecture.grid(32, 48);
    shape.text_tokens = architecture.gather(device, encoded, prompts);
    architecture.prepare(device, shape, sigmas);
    const std::uint64_t row_bytes = static_cast<std::uint64_t>(columns) * sizeof(float);
    const std::vector<float> nothing(prompts.size() * architecture.token_values(shape.grid));
    device.put(Slot::kTokens, nothing.data(), nothing.size() * sizeof(float));
    for (std::size_t step = 0; step + 1 < sigmas.size(); ++step) {
      CAPTURE(step);
      architecture.evaluate(device, shape, step);
      for (std::size_t image = 0; image < prompts.size(); ++image) {
        CAPTURE(image);
        const auto row = opened.read(Slot::kModulation, (step * prompts.size() + image) * row_bytes, 3);
        const auto pooled = opened.read(Slot::kPooledAll, encoded.pooled.offset(prompts[image]), 64);
        const auto level = static_cast<float>(sigmas[step]);
        CHECK(row[0] == (rounded ? scaled_bfloat16(level) : level));
        CHECK(row[1] == 2.0F);
        CHECK(row[2] == doctest::Approx(std::accumulate(pooled.begin(), pooled.end(), 0.0) / 64));
        const std::uint64_t field =
            image * static_cast<std::uint64_t>(shape.grid.tokens()) * modes * 64 * sizeof(float);
        const float context = 31.5F / 97;  // of ids that are 0, the mean of w / 97 for w < 64
        CHECK(opened.read(Slot::kMeans, field, 1)[0] == doctest::Approx(row[2] + context + 0.2F + row[0]));
      }
    }
  }
}

TEST_CASE("ports that do not fit are rejected before anything is loaded") {
  const auto refused = [](const std::string& words, auto change) {
    Manifest manifest = tiny();
    REQUIRE_NOTHROW(Architecture::of(manifest));
    change(manifest.networks);
    std::string said;
    try {
      Architecture::of(manifest);
    } catch (const Error& error) {
      said = error.what();
      CHECK(error.code() == ARCFLOW_BACKEND_UNAVAILABLE);
    }
    CHECK_MESSAGE(said.find(words) != said.npos, said);
    CHECK_MESSAGE(said.find("; build the bundle again: python -m export.build") != said.npos, said);
  };
  using Networks = std::map<std::string, Network>;
  refused(
      "the conditioner network cannot be fed: its manifest has the inputs timestep, pooled_projections, "
      "encoder_hidden_states, img_ids, txt_ids; flux has timestep, guidance, pooled_projections, ",
      [](Networks& all) { all["conditioner"].inputs.erase(all["conditioner"].inputs.begin() + 1); });
  refused("the conditioner network cannot be fed: its manifest has the outputs modulation, context, image_rotary; flux",
          [](Networks& all) { all["conditioner"].outputs.pop_back(); });
  refused(
      "the backbone network cannot be fed: its manifest has the inputs hidden_states, modulation, context, "
      "image_rotary, text_rotary, timestep; flux has ",
      [](Networks& all) { all["backbone"].inputs.push_back({"timestep", "float32", {"batch"}}); });
  refused("the backbone network cannot be fed: its input modulation has no fixed width in the manifest",
          [](Networks& all) { port(all["backbone"].inputs, "modulation").name = "other"; });
  refused("the backbone network cannot be fed: its input modulation has a width of 7300; it must be a multiple of 64",
          [](Networks& all) { port(all["backbone"].inputs, "modulation").shape.back() = 7300; });
  refused("the conditioner network cannot be fed: the shape of its port modulation does not fit the rest",
          [](Networks& all) { port(all["backbone"].inputs, "modulation").shape.back() = 64; });
  refused("the conditioner network cannot be fed: the shape of its port context does not fit the rest",
          [](Networks& all) { port(all["conditioner"].outputs, "context").shape.back() = 64; });
  refused("the conditioner network cannot be fed: its port text_rotary is float16",
          [](Networks& all) { port(all["conditioner"].outputs, "text_rotary").dtype = "float16"; });
  refused("the backbone network cannot be fed: the shape of its port text_rotary does not fit the rest",
          [](Networks& all) { port(all["backbone"].inputs, "text_rotary").shape.back() = 32; });
  refused("the clip network cannot be fed: the shape of its port pooled does not fit the rest",
          [](Networks& all) { port(all["conditioner"].inputs, "pooled_projections").shape.back() = 32; });
}

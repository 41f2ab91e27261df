// Requests through the C interface (arcflow_get_api) on the fake host: results, callbacks, recorded work.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>

#include "api_support.hpp"

using namespace arcflow::test;

namespace {

void check(const Said& what, std::int32_t code, const std::string& words) {
  CHECK_MESSAGE(what.code == code, what.message);
  CHECK_MESSAGE(what.has(words), what.message);
}

}  // namespace

TEST_CASE("a request fills in its outputs") {
  Fixture f;
  f.call.request.seed = 7;
  REQUIRE(f.generate().ok());
  CHECK(f.call.rgb8.size() == 64 * 64 * 3);
  CHECK(f.call.images.size() == 3 * 64 * 64);
  CHECK(f.call.latents.size() == 16 * 8 * 8);
  std::ifstream manifest(bundle_folder() + "/manifest.json");
  const auto latent = nlohmann::json::parse(manifest)["latent"];
  const float scaling = latent["scaling_factor"][0], shift = latent["shift_factor"][0];
  // The pixels are those of the floats, and the floats what the fake decoder makes of the latents.
  for (std::size_t c = 0; c < 3; ++c) {
    for (std::size_t y = 0; y < 64; ++y) {
      for (std::size_t x = 0; x < 64; ++x) {
        const float value = f.call.images[(c * 64 + y) * 64 + x];
        const float level = std::nearbyint(std::min(std::max(value * 0.5F + 0.5F, 0.0F), 1.0F) * 255.0F);
        REQUIRE(f.call.rgb8[(y * 64 + x) * 3 + c] == static_cast<std::uint8_t>(level));
        const float z = f.call.latents[(c * 8 + y / 8) * 8 + x / 8] / scaling + shift;
        REQUIRE(value == doctest::Approx(std::tanh(z)));
      }
    }
  }
  const ArcflowOutput& o = f.call.output;
  CHECK(o.total_seconds > 0.0);
  const double stages =
      o.tokenize_seconds + o.text_seconds + o.noise_seconds + o.backbone_seconds + o.solver_seconds + o.vae_seconds;
  CHECK(stages <= o.total_seconds);
  const std::vector<float> first = f.call.latents;
  REQUIRE(f.generate().ok());
  CHECK(f.call.latents == first);
}

TEST_CASE("outputs that are not wanted, or too small") {
  Fixture f;
  ArcflowOutput output = ARCFLOW_INIT(ArcflowOutput);
  CHECK(said(api().session_generate(f.session.get(), &f.call.request, &output)).ok());
  std::vector<std::uint8_t> pixels(64 * 64 * 3);
  output.rgb8 = pixels.data();
  output.rgb8_bytes = pixels.size() - 1;
  check(said(api().session_generate(f.session.get(), &f.call.request, &output)), ARCFLOW_INVALID_ARGUMENT,
        "rgb8_bytes of the output is 12287; the request makes 12288");
  float one = 0.0F;
  output = ARCFLOW_INIT(ArcflowOutput);
  output.images = &one;
  output.image_floats = 1;
  check(said(api().session_generate(f.session.get(), &f.call.request, &output)), ARCFLOW_INVALID_ARGUMENT,
        "image_floats");
  output = ARCFLOW_INIT(ArcflowOutput);
  output.latents = &one;
  check(said(api().session_generate(f.session.get(), &f.call.request, &output)), ARCFLOW_INVALID_ARGUMENT,
        "latent_floats of the output is 0; the request makes 1024");
}

TEST_CASE("an image does not depend on what is made beside it") {
  Fixture f;
  f.call.prompts = {"a woman astronaut", "a lemon", "a woman astronaut"};
  f.call.use_prompts();
  f.call.request.num_images = 7;  // 21 images: batches of 16 and 5
  f.call.request.seed = UINT64_MAX - 3;
  f.call.request.width = 32;
  f.call.request.height = 128;
  REQUIRE(f.generate().ok());
  const std::vector<float> together = f.call.latents;
  const std::size_t each = together.size() / 21;
  for (const std::size_t j : {0U, 6U, 7U, 15U, 16U, 20U}) {
    Call alone;
    alone.prompts = {f.call.prompts[j / 7]};
    alone.use_prompts();
    alone.request.seed = f.call.request.seed + j;
    alone.request.width = 32;
    alone.request.height = 128;
    REQUIRE(alone.generate(f.model.get(), f.session.get()).ok());
    const auto begin = together.begin() + static_cast<std::ptrdiff_t>(j * each);
    CHECK(std::equal(alone.latents.begin(), alone.latents.end(), begin));
  }
}

TEST_CASE("a seed for each image") {
  Fixture f;
  const std::uint64_t seeds[] = {9, 5, 9};
  f.call.request.seeds = seeds;
  f.call.request.seed_count = 3;
  f.call.request.num_images = 3;
  REQUIRE(f.generate().ok());
  const auto image = [&](std::ptrdiff_t j) {
    return std::vector<float>(f.call.latents.begin() + j * 1024, f.call.latents.begin() + (j + 1) * 1024);
  };
  CHECK(image(0) == image(2));
  CHECK(image(0) != image(1));
  f.call.request.seed_count = 2;
  check(f.generate(), ARCFLOW_INVALID_ARGUMENT, "seed_count is 2, but the request makes 3 images");
}

TEST_CASE("tokens in place of prompts") {
  Fixture f;
  const std::int64_t clip[] = {1831, 5, 6, 1832, 0, 1831, 7, 1832, 1, 1};
  const std::int64_t clip_mask[] = {1, 1, 1, 1, 0, 1, 1, 1, 0, 0};
  const std::int64_t t5[] = {3, 4, 1, 5, 6, 1};
  ArcflowTokens tokens[2] = {ARCFLOW_INIT(ArcflowTokens), ARCFLOW_INIT(ArcflowTokens)};
  tokens[0].encoder = "t5";
  tokens[0].ids = t5;
  tokens[0].length = 3;
  tokens[1].encoder = "clip";
  tokens[1].ids = clip;
  tokens[1].mask = clip_mask;
  tokens[1].length = 5;
  f.call.request.prompts = nullptr;
  f.call.request.prompt_count = 2;
  f.call.request.tokens = tokens;
  f.call.request.token_count = 2;
  REQUIRE(f.generate().ok());
  const std::vector<float> both = f.call.latents;
  // What lies under the mask does not matter; the second prompt alone makes the second image.
  const std::int64_t other[] = {1831, 5, 6, 1832, 17, 1831, 7, 1832, 18, 19};
  tokens[1].ids = other;
  REQUIRE(f.generate().ok());
  CHECK(f.call.latents == both);
  tokens[0].ids += 3;
  tokens[1].ids += 5;
  tokens[1].mask += 5;
  f.call.request.prompt_count = 1;
  f.call.request.seed = 1;
  REQUIRE(f.generate().ok());
  CHECK(std::equal(f.call.latents.begin(), f.call.latents.end(), both.begin() + 1024));
}

TEST_CASE("steps are reported in order") {
  Fixture f;
  struct Seen {
    std::vector<ArcflowStep> steps;
  } seen;
  f.call.request.nfe = 3;
  f.call.request.num_images = 17;
  f.call.request.user = &seen;
  f.call.request.on_step = [](void* user, const ArcflowStep* step) {
    static_cast<Seen*>(user)->steps.push_back(*step);
    return 0;
  };
  REQUIRE(f.generate().ok());
  REQUIRE(seen.steps.size() == 6);
  for (std::uint32_t i = 0; i < 6; ++i) {
    CHECK(seen.steps[i].struct_size == sizeof(ArcflowStep));
    CHECK(seen.steps[i].index == i);
    CHECK(seen.steps[i].total == 6);
    CHECK(seen.steps[i].first_image == i / 3 * 16);
    CHECK(seen.steps[i].image_count == (i < 3 ? 16 : 1));
    if (i % 3 > 0) CHECK(seen.steps[i].sigma_from == seen.steps[i - 1].sigma_to);
  }
  CHECK(seen.steps[0].sigma_from == 1.0);
  CHECK(seen.steps[2].sigma_to == 0.0);
}

TEST_CASE("previews, noisiest first, do not change the image") {
  Fixture f;
  f.call.request.num_images = 2;
  REQUIRE(f.generate().ok());
  const std::vector<float> plain = f.call.latents;
  struct Seen {
    std::vector<ArcflowPreview> previews;
    std::vector<std::vector<std::uint8_t>> pixels;
  } seen;
  f.call.request.previews = 5;
  check(f.generate(), ARCFLOW_INVALID_ARGUMENT, "previews is 5, but on_preview is NULL");
  f.call.request.user = &seen;
  f.call.request.on_preview = [](void* user, const ArcflowPreview* preview) {
    auto& all = *static_cast<Seen*>(user);
    all.previews.push_back(*preview);
    all.pixels.emplace_back(preview->rgb8, preview->rgb8 + preview->width * preview->height * 3);
    return 0;
  };
  REQUIRE(f.generate().ok());
  CHECK(f.call.latents == plain);
  REQUIRE(seen.previews.size() == 10);
  for (std::uint32_t i = 0; i < 10; ++i) {
    CHECK(seen.previews[i].frame == i / 2);
    CHECK(seen.previews[i].image == i % 2);
    if (i >= 2) CHECK(seen.previews[i].sigma < seen.previews[i - 2].sigma);
  }
  CHECK(seen.pixels[0] != seen.pixels[2]);
  CHECK(seen.pixels[8] != std::vector<std::uint8_t>(f.call.rgb8.begin(), f.call.rgb8.begin() + 12288));
}

TEST_CASE("a prompt that was cut brings a warning") {
  Fixture f;
  const std::string prompt = "a smiling face with sunglasses and " + std::string(60, 'x') + " the end";
  f.call.prompts = {prompt.c_str(), prompt.c_str()};
  f.call.use_prompts();
  std::vector<std::string> warnings;
  f.call.request.user = &warnings;
  f.call.request.on_warning = [](void* user, const char* text) {
    static_cast<std::vector<std::string>*>(user)->push_back(text);
  };
  REQUIRE(f.generate().ok());
  REQUIRE(warnings.size() == 2);  // equal prompts once, by each encoder
  CHECK(warnings[0].rfind("the clip encoder takes 24 tokens; this end of the prompt is unused: ", 0) == 0);
  CHECK(warnings[1].rfind("the t5 encoder takes 12 tokens; ", 0) == 0);
  CHECK(f.lines.has("2 the clip encoder takes 24 tokens"));
}

TEST_CASE("recorded work gives the same images, with no wait inside") {
  Fixture plain;
  Fixture f("recall");
  REQUIRE(plain.generate().ok());
  const auto both = [&](std::uint32_t images, std::uint32_t width, std::uint32_t nfe) {
    for (Fixture* one : {&plain, &f}) {
      one->call.request.num_images = images;
      one->call.request.width = width;
      one->call.request.nfe = nfe;
      one->call.request.seed = images + width + nfe;
      REQUIRE(one->generate().ok());
    }
    CHECK(plain.call.latents == f.call.latents);
  };
  both(1, 64, 2);   // recorded
  both(1, 64, 2);   // replayed
  both(1, 64, 4);   // recorded
  both(1, 32, 2);   // recorded
  both(1, 64, 2);   // replayed
  both(3, 128, 2);  // buffers grow: all is forgotten, recorded
  both(1, 64, 2);   // recorded
  both(1, 64, 2);   // replayed
  f.session.reset();
  CHECK(f.lines.has("5 recorded, 3 replayed"));
}

TEST_CASE("the conditioner runs once for up to eight evaluations of a batch, and outside of what is recorded") {
  const auto told = [](std::uint32_t nfe, std::uint32_t images, const char* behaviour) {
    Fixture f(behaviour);
    f.call.request.nfe = nfe;
    f.call.request.num_images = images;
    REQUIRE(f.generate().ok());
    f.session.reset();
    return f.lines.has("conditioner ran 1,") ? 1 : f.lines.has("conditioner ran 2,") ? 2 : 0;
  };
  for (const char* behaviour : {"", "recall"}) {
    CHECK(told(1, 1, behaviour) == 1);
    CHECK(told(2, 1, behaviour) == 1);
    CHECK(told(8, 3, behaviour) == 1);
    CHECK(told(9, 1, behaviour) == 2);
    CHECK(told(16, 16, behaviour) == 2);
    CHECK(told(2, 32, behaviour) == 1);  // a second batch of the same prompts
    CHECK(told(2, 33, behaviour) == 2);  // batches of 16, 16 and 1
  }
  Fixture plain;
  Fixture f("recall");
  for (const char* prompt : {"a woman astronaut", "a lemon", "a woman astronaut"}) {  // recorded, replayed
    for (Fixture* one : {&plain, &f}) {
      one->call.prompts = {prompt};
      one->call.use_prompts();
      one->call.request.nfe = 9;
      REQUIRE(one->generate().ok());
    }
    CHECK(plain.call.latents == f.call.latents);
  }
  f.session.reset();
  CHECK(f.lines.has("conditioner ran 6, "));
  CHECK(f.lines.has("1 recorded, 2 replayed"));
}

TEST_CASE("warming up runs every network, and memory is told") {
  Fixture f;
  ArcflowMemory before = ARCFLOW_INIT(ArcflowMemory);
  ArcflowMemory after = ARCFLOW_INIT(ArcflowMemory);
  REQUIRE(said(api().session_memory(f.session.get(), &before)).ok());
  f.call.request.num_images = 20;
  REQUIRE(said(api().session_warm_up(f.session.get(), &f.call.request)).ok());
  REQUIRE(said(api().session_memory(f.session.get(), &after)).ok());
  CHECK(before.host_bytes == 0);
  CHECK(after.host_bytes > 16 * 64 * 64 * 15);
  REQUIRE(f.generate().ok());  // makes nothing new but the latents of the caller
  ArcflowMemory later = ARCFLOW_INIT(ArcflowMemory);
  REQUIRE(said(api().session_memory(f.session.get(), &later)).ok());
  CHECK(later.host_bytes - after.host_bytes == 16 * 16 * 8 * 8 * sizeof(float));
  f.session.reset();
  for (const char* network : {"backbone", "clip", "conditioner", "t5", "vae_decoder"}) {
    CHECK(f.lines.has(std::string(network) + " ran "));
  }
}

// Generations for pytest, through the C++ header: JSON lines in, what Pipeline.generate gives out.
//
// Usage: probe_parity BUNDLE HOSTS ONNXRUNTIME THREADS. In: {"prompts", "seed", "num_images", "nfe", "width", "height",
// "previews"}. Out: {"latents": hex, "pngs": [hex], "frames": [{"image", "sigma", "png": hex}], "settings": [object],
// "steps": [[first image, sigma from, sigma to]], "warnings": [text]} or {"error", "code"}.
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <nlohmann/json.hpp>
#include <string>

#include "arcflow/arcflow.hpp"

namespace {

using Json = nlohmann::ordered_json;

std::string to_hex(const void* data, std::size_t size) {
  std::string text;
  for (std::size_t i = 0; i < size; ++i) {
    const unsigned value = static_cast<const unsigned char*>(data)[i];
    text += "0123456789abcdef"[value >> 4];
    text += "0123456789abcdef"[value & 15];
  }
  return text;
}

Json png_of(const arcflow::Image& image, const std::string& settings) {
  const std::string png = arcflow::encode_png(image, settings);
  return to_hex(png.data(), png.size());
}

Json generate(const arcflow::Model& model, arcflow::Session& session, const Json& line) {
  Json answer = {{"frames", Json::array()}, {"steps", Json::array()}, {"warnings", Json::array()}};
  arcflow::Request request;
  request.prompts = line["prompts"].get<std::vector<std::string>>();
  request.seed = line["seed"];
  request.num_images = line["num_images"];
  request.nfe = line["nfe"];
  request.width = line["width"];
  request.height = line["height"];
  request.previews = line["previews"];
  request.on_step = [&](const ArcflowStep& step) {
    answer["steps"].push_back({step.first_image, step.sigma_from, step.sigma_to});
  };
  request.on_preview = [&](const ArcflowPreview& preview) {
    const std::size_t bytes = std::size_t{3} * preview.width * preview.height;
    const arcflow::Image image{preview.width, preview.height, {preview.rgb8, preview.rgb8 + bytes}};
    Json settings = Json::parse(model.describe(request, preview.image));
    settings["sigma"] = preview.sigma;
    answer["frames"].push_back(
        {{"image", preview.image}, {"sigma", preview.sigma}, {"png", png_of(image, settings.dump())}});
  };
  request.on_warning = [&](const std::string& message) { answer["warnings"].push_back(message); };
  const arcflow::Result result = session.generate(request, arcflow::Keep::kEverything);
  answer["latents"] = to_hex(result.latents.data(), result.latents.size() * sizeof(float));
  for (std::uint32_t i = 0; i < result.size(); ++i) {
    const std::string settings = model.describe(request, i);
    answer["settings"].push_back(Json::parse(settings));
    answer["pngs"].push_back(png_of(result.image(i), settings));
  }
  return answer;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 5) return 2;
  arcflow::ContextOptions context;
  context.host_directory = argv[2];
  arcflow::ModelOptions options;
  options.bundle = argv[1];
  options.library = argv[3];
  options.threads = static_cast<std::uint32_t>(std::atoi(argv[4]));
  const arcflow::Model model = arcflow::Context(context).open(options);
  arcflow::Session session = model.session();
  for (std::string line; std::getline(std::cin, line);) {
    Json answer;
    try {
      answer = generate(model, session, Json::parse(line));
    } catch (const arcflow::Error& error) {
      answer = {{"error", error.what()}, {"code", error.code()}};
    }
    std::cout << answer.dump() << std::endl;
  }
}

// arcflow-cli "a smiling face with sunglasses": a prompt in, PNG files out. The command `python -m runtime.generate` in
// C++: the same options, file names, bytes, messages and exit codes (0; 2 and one line for what the user can mend).
#include <time.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <arcflow/arcflow.hpp>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "files.hpp"

namespace {

using namespace cli;

using Json = nlohmann::ordered_json;
using Numbers = std::map<std::string, std::string>;  // options as they were typed, by their names in messages

constexpr std::uint32_t kMaxScale = 64, kMaxSide = 16384, kMaxImages = 1024, kMaxPreviews = 64, kMaxThreads = 1024;
constexpr const char* kFolder = "arcflow-out";
constexpr const char* kExamples = R"(examples:
  arcflow-cli "a smiling face with sunglasses"
  arcflow-cli "picture of a pizza" --seed 7 --num-images 4 --scale 8
  arcflow-cli "a red apple" --out apple.png --previews 6 --json
  arcflow-cli "a red heart" --model engines/bundles/tiny-fp16-cpu --nfe 4

The image's settings are in its text chunks. The same seed gives the same bytes.
)";

struct Arguments {
  std::string prompt, out;
  arcflow::ModelOptions model;
  Numbers numbers = {{"seed", "0"}, {"num_images", "1"}, {"previews", "0"}, {"scale", "1"}};
  bool json = false;
};

// [+-]digits without leading zeros, or nothing.
std::optional<std::string> whole(const std::string& text) {
  const bool sign = !text.empty() && (text[0] == '-' || text[0] == '+');
  std::string digits = text.substr(sign ? 1 : 0);
  if (digits.empty() || digits.find_first_not_of("0123456789") != std::string::npos) return std::nullopt;
  digits.erase(0, std::min(digits.find_first_not_of('0'), digits.size() - 1));
  return (text[0] == '-' && digits != "0" ? "-" : "") + digits;
}

// The option's value, or the fallback where it was not given. Throws UserError unless it is from low to high.
std::uint64_t number(const Numbers& numbers, const std::string& name, std::uint64_t fallback, std::uint64_t low,
                     std::uint64_t high) {
  const auto found = numbers.find(name);
  if (found == numbers.end()) return fallback;
  errno = 0;
  const std::uint64_t value = std::strtoull(found->second.c_str(), nullptr, 10);
  if (found->second[0] == '-' || errno != 0 || value < low || value > high) {
    throw UserError(name + " is " + found->second + "; it must be from " + std::to_string(low) + " to " +
                    std::to_string(high));
  }
  return value;
}

std::uint32_t small(const Numbers& numbers, const std::string& name, std::uint32_t fallback, std::uint32_t low,
                    std::uint32_t high) {
  return static_cast<std::uint32_t>(number(numbers, name, fallback, low, high));
}

// Reads the command line; gives an exit code where there is nothing more to do.
std::optional<int> parse(int count, char** words, Arguments& arguments) {
  arguments.model.bundle = "tiny";
  CLI::App app("Generate images from a prompt.", "arcflow-cli");
  app.footer(kExamples);
  app.option_defaults()->take_last();
  app.add_option("prompt", arguments.prompt, "what the image should show")->required();
  app.add_option("--model", arguments.model.bundle, "a model's name, or a bundle's folder (default: tiny)");
  app.add_option("--precision", arguments.model.precision, "which bundle of the model: fp16, ...");
  app.add_option("--target", arguments.model.target, "which bundle of the model: cpu, ...");
  app.add_option("--library", arguments.model.library, "libonnxruntime (default: $ARCFLOW_ONNXRUNTIME)");
  app.add_flag("--allow-links", arguments.model.allow_links,
               "the bundle's files may be links, as in caches; digests must still fit");
  const std::vector<std::pair<std::string, std::string>> numbers = {
      {"seed", "0 to 2^64 - 1 (default: 0); image j uses seed + j"},
      {"nfe", "network evaluations (default: the bundle's, 2 for tiny)"},
      {"num_images", "images to make (default: 1)"},
      {"width", "pixels, within the bundle's limits (default: its usual width)"},
      {"height", "pixels, within the bundle's limits (default: its usual height)"},
      {"previews", "also write so many frames between noise and image"},
      {"scale", "enlarge each pixel to N x N (default: 1)"},
      {"threads", "compute threads (default: the cores, at most 8)"}};
  for (const auto& [name, help] : numbers) {
    std::string option = "--" + name;
    std::replace(option.begin(), option.end(), '_', '-');
    const auto set = [&arguments, name = name, option](const std::string& text) {
      const auto value = whole(text);
      if (!value) throw CLI::ValidationError("argument " + option + ": invalid int value: '" + text + "'", 2);
      arguments.numbers[name] = *value;
    };
    app.add_option_function<std::string>(option, set, help)->type_name("N");
  }
  app.add_option("--out", arguments.out, "where to write (default: arcflow-out/PROMPT-SEED.png)")
      ->type_name("FILE.png");
  app.add_flag("--json", arguments.json, "print one JSON object: settings, files, timings in seconds");
  try {
    app.parse(count, words);
  } catch (const CLI::Success& success) {
    return app.exit(success);
  } catch (const CLI::ParseError& error) {
    std::fprintf(stderr, "arcflow-cli: error: %s (see arcflow-cli --help)\n", error.what());
    return 2;
  }
  return std::nullopt;
}

arcflow::Image enlarge(const arcflow::Image& image, std::uint32_t scale) {
  arcflow::Image out{image.width * scale, image.height * scale, {}};
  out.rgb8.reserve(image.rgb8.size() * scale * scale);
  for (std::size_t y = 0; y < out.height; ++y) {
    for (std::size_t x = 0; x < out.width; ++x) {
      const auto pixel = image.rgb8.begin() + static_cast<std::ptrdiff_t>((y / scale * image.width + x / scale) * 3);
      out.rgb8.insert(out.rgb8.end(), pixel, pixel + 3);
    }
  }
  return out;
}

double seconds_of(clockid_t clock) {
  timespec now{};
  clock_gettime(clock, &now);
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) * 1e-9;
}

// Seconds since this process was started, to a clock tick (10 ms).
double since_process_start() {
  std::ifstream file("/proc/self/stat");
  std::string line;
  std::getline(file, line);
  // Field 22, counted after the command's name, which may hold blanks and parentheses.
  std::istringstream rest(line.substr(std::min(line.rfind(')'), line.size())));
  std::string skipped;
  for (int field = 2; field < 22; ++field) rest >> skipped;
  double ticks = 0;
  rest >> ticks;
  return std::max(seconds_of(CLOCK_BOOTTIME) - ticks / static_cast<double>(sysconf(_SC_CLK_TCK)), 0.0);
}

// The request, every value checked before any network runs; what is wrong is told in the order of the options.
arcflow::Request check_request(const arcflow::Model& model, const Arguments& arguments) {
  const Numbers& numbers = arguments.numbers;
  const ArcflowModelInfo info = model.info();
  arcflow::Request request;
  request.prompts = {arguments.prompt};
  model.shape(request);
  request.seed = number(numbers, "seed", 0, 0, UINT64_MAX);
  request.nfe = small(numbers, "nfe", info.nfe, 1, info.max_nfe);
  request.num_images = small(numbers, "num_images", 1, 1, kMaxImages);
  request.width = small(numbers, "width", info.width.opt, info.width.min, info.width.max);
  model.shape(request);  // multiples
  request.height = small(numbers, "height", info.height.opt, info.height.min, info.height.max);
  request.previews = small(numbers, "previews", 0, 0, kMaxPreviews);
  model.shape(request);
  return request;
}

void check_scale(const arcflow::Request& request, std::uint32_t scale) {
  const std::uint64_t side = std::uint64_t{std::max(request.width, request.height)} * scale;
  if (side > kMaxSide) {
    throw UserError("scale " + std::to_string(scale) + " makes a side of " + std::to_string(side) + " px; at most " +
                    std::to_string(kMaxSide) + " are allowed");
  }
}

// Ends the program. The system takes back at once what the model would give back piece by piece, in a tenth of the time
// that a small model's image takes.
[[noreturn]] void leave() {
  if (std::fflush(stdout) == 0 && std::ferror(stdout) == 0) std::_Exit(0);
  std::fprintf(stderr, "error: cannot write to standard output: %s\n", std::strerror(errno));
  std::_Exit(2);
}

[[noreturn]] void generate(const Arguments& arguments) {
  Json seconds;
  seconds["start"] = since_process_start();
  std::string out = arguments.out;
  if (out.empty()) {
    out = std::string(kFolder) + "/" + slug(arguments.prompt) + "-" + arguments.numbers.at("seed") + ".png";
  }
  out = tidy(out);
  check_ending(out);

  const double opening = seconds_of(CLOCK_MONOTONIC);
  arcflow::ModelOptions options = arguments.model;
  options.threads = small(arguments.numbers, "threads", 0, 1, kMaxThreads);
  const arcflow::Context context;
  const arcflow::Model model = context.open(options);
  arcflow::Session session = model.session();
  seconds["open"] = seconds_of(CLOCK_MONOTONIC) - opening;

  arcflow::Request request = check_request(model, arguments);
  const std::uint32_t scale = small(arguments.numbers, "scale", 1, 1, kMaxScale);
  check_scale(request, scale);
  const std::vector<std::string> paths = targets(out, request.num_images, request.previews);
  check_targets(paths);

  std::vector<std::pair<double, arcflow::Image>> frames(std::size_t{request.num_images} * request.previews);
  std::vector<std::string> warnings;
  request.on_preview = [&](const ArcflowPreview& preview) {
    const std::size_t bytes = std::size_t{preview.width} * preview.height * 3;
    frames.at(std::size_t{preview.image} * request.previews + preview.frame) = {
        preview.sigma, {preview.width, preview.height, {preview.rgb8, preview.rgb8 + bytes}}};
  };
  request.on_warning = [&](const std::string& message) { warnings.push_back(message); };
  const arcflow::Result result = session.generate(request);
  for (const auto& [stage, took] : arcflow::stage_seconds(result.output)) seconds[stage] = took;

  const double writing = seconds_of(CLOCK_MONOTONIC);
  Files files;
  Json images = Json::array();
  auto path = paths.begin();
  const auto add = [&](const arcflow::Image& image, Json settings) {
    settings["scale"] = scale;
    files.add(*path++, arcflow::encode_png(enlarge(image, scale), settings.dump()));
  };
  for (std::uint32_t index = 0; index < request.num_images; ++index) {
    const Json settings = Json::parse(model.describe(request, index));
    images.push_back(settings);
    add(result.image(index), settings);
    for (std::uint32_t frame = 0; frame < request.previews; ++frame) {
      const auto& [sigma, image] = frames.at(std::size_t{index} * request.previews + frame);
      Json with_sigma = settings;
      with_sigma["sigma"] = sigma;
      add(image, with_sigma);
    }
  }
  files.commit();
  seconds["write"] = seconds_of(CLOCK_MONOTONIC) - writing;
  seconds["total"] = since_process_start();

  for (const std::string& warning : warnings) std::fprintf(stderr, "warning: %s\n", warning.c_str());
  if (arguments.json) {
    Json document;
    for (auto& value : seconds) value = std::round(value.get<double>() * 1e6) / 1e6;
    document["images"] = images;
    document["files"] = paths;
    document["scale"] = scale;
    document["timings"] = seconds;
    document["warnings"] = warnings;
    std::printf("%s\n", document.dump(2, ' ', true, Json::error_handler_t::replace).c_str());
    leave();
  }
  for (const std::string& one : paths) std::printf("%s\n", one.c_str());
  std::printf("%u x %ux%u px, %u evaluations, seed %s, %.2f s from start to file\n", request.num_images, request.width,
              request.height, request.nfe, std::to_string(request.seed).c_str(), seconds["total"].get<double>());
  leave();
}

// glibc reads how it is to allot memory when a process starts, and only from its environment: so this program starts
// once more, with pages of 2 MiB and memory that is kept when it is freed. Of the time to a small model's image the
// system spends a third on pages of 4 KiB. Where that is not possible all goes on as it is; a value of the user's
// stays.
void start_with_large_pages(char** words) {
  constexpr const char* kName = "GLIBC_TUNABLES";
  constexpr const char* kValue =
      "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=1073741824:glibc.malloc.trim_threshold=1073741824:"
      "glibc.malloc.top_pad=67108864";
  if (std::getenv(kName) != nullptr || setenv(kName, kValue, 0) != 0) return;
  execv("/proc/self/exe", words);
}

}  // namespace

int main(int count, char** words) {
  start_with_large_pages(words);
  try {
    Arguments arguments;
    const std::optional<int> end = parse(count, words, arguments);
    if (end) return *end;
    generate(arguments);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 2;
  }
}

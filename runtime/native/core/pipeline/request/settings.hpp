// What determined an image, as JSON and as text for a person: runtime/result.py and runtime/image.py, byte for byte.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "core/bundle/manifest/manifest.hpp"

namespace arcflow::core {

// JSON whose objects keep the order they were written in.
using Settings = nlohmann::ordered_json;

// What a request says of one image, its defaults filled in. sigmas: nfe + 1 noise levels from 1 to 0.
struct ImageSettings {
  std::string prompt;
  std::uint64_t seed = 0;
  std::int64_t nfe = 0;
  std::vector<double> sigmas;
  std::int64_t width = 0, height = 0;
};

// The settings of one image in the order of runtime/result.py, Settings.of_image, as json.dumps writes them.
std::string describe(const Manifest& manifest, const ImageSettings& image);

// Reads a JSON object with settings. Throws Error(ARCFLOW_INVALID_ARGUMENT): not an object, nested more than 32 deep, a
// text that is not UTF-8, a number that is not finite or a whole one of more than 64 bits.
Settings parse_settings(std::string_view text);

enum class KeyOrder { kGiven, kSorted };
// As Python's json.dumps: ", " and ": " between, ASCII alone, the shortest digits that give a float back.
std::string to_json(const Settings& value, KeyOrder order);

// For a person (runtime/image.py, describe): the prompt, then one line of "name: value", six digits of every float.
std::string summary(const Settings& settings);

}  // namespace arcflow::core

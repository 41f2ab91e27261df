// The core's arithmetic for tests/native/core/test_compute.py: a JSON line in, a JSON line out; arrays travel as base64
// text of little-endian numbers. {"do": "advance" | "normal" | "unpack" | "to_rgb8" | "ids" | "sigmas" | "levels" |
// "time",
// ...}
#include <chrono>
#include <cstring>
#include <iostream>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

#include "core/numerics/compute.hpp"

namespace {

using Json = nlohmann::json;
using namespace arcflow;

constexpr char kDigits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

template <class T>
std::string packed(const std::vector<T>& values) {
  std::vector<unsigned char> bytes(values.size() * sizeof(T));
  if (!bytes.empty()) std::memcpy(bytes.data(), values.data(), bytes.size());
  std::string text;
  for (std::size_t i = 0; i < bytes.size(); i += 3) {
    unsigned group = 0;
    for (std::size_t j = 0; j < 3; ++j) group = group << 8 | (i + j < bytes.size() ? bytes[i + j] : 0u);
    for (unsigned j = 0; j < 4; ++j) text += i + j > bytes.size() ? '=' : kDigits[group >> (18 - 6 * j) & 63];
  }
  return text;
}

std::vector<float> floats(const Json& entry) {
  std::vector<unsigned char> bytes;
  unsigned group = 0;
  int bits = 0;
  for (const char letter : entry.get<std::string>()) {
    const char* place = letter == '\0' ? nullptr : std::strchr(kDigits, letter);
    if (place == nullptr) break;
    group = (group << 6 | static_cast<unsigned>(place - kDigits)) & 0xFFFFFF;
    bits += 6;
    if (bits >= 8) {
      bits -= 8;
      bytes.push_back(static_cast<unsigned char>(group >> bits));
    }
  }
  std::vector<float> values(bytes.size() / sizeof(float));
  if (!values.empty()) std::memcpy(values.data(), bytes.data(), values.size() * sizeof(float));
  return values;
}

core::Segment segment(const Json& in) {
  return {in.at("batch"),     in.at("tokens"),    in.at("modes"),   in.at("channels"),
          in.at("positions"), in.at("sigma_src"), in.at("sigma_a"), in.at("sigma_b")};
}

// Least seconds of nine runs of `advance` at a size.
double least_time(const core::Segment& s) {
  std::mt19937 random(1);
  std::normal_distribution<float> gauss;
  const auto draw = [&](std::int64_t count) {
    std::vector<float> values(static_cast<std::size_t>(count));
    for (float& value : values) value = gauss(random);
    return values;
  };
  const std::int64_t tokens = s.batch * s.tokens;
  std::vector<float> x = draw(tokens * s.channels);
  const auto means = draw(tokens * s.modes * s.channels), weights = draw(tokens * s.modes * s.positions),
             gammas = draw(tokens * (s.modes - 1) * s.positions);
  double least = 1e9;
  for (int run = 0; run < 9; ++run) {
    const auto begin = std::chrono::steady_clock::now();
    core::advance(s, x.data(), means.data(), weights.data(), gammas.data(), x.data());
    least = std::min(least, std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
  }
  return least;
}

Json answer(const Json& in) {
  const std::string what = in.at("do");
  if (what == "advance") {
    const std::vector<float> x = floats(in.at("x"));
    std::vector<float> out(x.size());
    core::advance(segment(in), x.data(), floats(in.at("means")).data(), floats(in.at("logweights")).data(),
                  floats(in.at("loggammas")).data(), out.data());
    return {{"out", packed(out)}};
  }
  if (what == "normal") {
    std::vector<float> out(in.at("count").get<std::size_t>());
    core::normal(in.at("seed"), in.at("first"), out.size(), out.data());
    return {{"out", packed(out)}};
  }
  if (what == "unpack") {
    const std::vector<float> tokens = floats(in.at("tokens")), scaling = floats(in.at("scaling")),
                             shift = floats(in.at("shift"));
    std::vector<float> out(tokens.size());
    const bool factors = !scaling.empty();
    core::unpack(tokens.data(), in.at("batch"), in.at("rows"), in.at("columns"), in.at("channels"), in.at("patch"),
                 factors ? scaling.data() : nullptr, factors ? shift.data() : nullptr,
                 static_cast<std::int64_t>(scaling.size()), out.data());
    return {{"out", packed(out)}};
  }
  if (what == "to_rgb8") {
    const std::vector<float> images = floats(in.at("images"));
    std::vector<std::uint8_t> out(images.size());
    core::to_rgb8(images.data(), in.at("batch"), in.at("height"), in.at("width"), out.data());
    return {{"out", packed(out)}, {"finite", core::all_finite(images.data(), images.size())}};
  }
  if (what == "ids") {
    const std::int64_t rows = in.at("rows"), columns = in.at("columns");
    return {{"ids", core::image_ids(rows, columns)},
            {"centred", core::centred_image_ids(rows, columns)},
            {"text", core::text_positions(rows, columns, in.at("tokens"))}};
  }
  if (what == "sigmas") {
    return {{"sigmas", packed(core::sigmas(in.at("nfe"), in.at("shift"), in.at("ratio")))},
            {"previews", packed(core::preview_sigmas(in.at("count"), in.at("shift")))}};
  }
  if (what == "levels") {
    std::vector<float> scaled, once;
    for (const float value : floats(in.at("values"))) {
      scaled.push_back(core::scaled_bfloat16(value));
      once.push_back(core::to_bfloat16(value));
    }
    return {{"scaled", packed(scaled)}, {"once", packed(once)}};
  }
  if (what == "time") return {{"seconds", least_time(segment(in))}};
  return {{"error", "unknown: " + what}};
}

}  // namespace

int main() {
  for (std::string line; std::getline(std::cin, line);) {
    Json out;
    try {
      out = answer(Json::parse(line));
    } catch (const std::exception& error) {
      out = {{"error", error.what()}};
    }
    std::cout << out.dump() << std::endl;
  }
}

// PNG files for pytest: {"rgb8": hex, "width", "height", "settings": text or null} -> {"png": hex} or {"error",
// "code"}.
#include <cstdint>
#include <iostream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "core/error.hpp"
#include "core/numerics/png.hpp"

namespace {

int nibble(char digit) { return digit <= '9' ? digit - '0' : digit - 'a' + 10; }

std::vector<std::uint8_t> from_hex(const std::string& text) {
  std::vector<std::uint8_t> bytes(text.size() / 2);
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    bytes[i] = static_cast<std::uint8_t>(nibble(text[2 * i]) * 16 + nibble(text[2 * i + 1]));
  }
  return bytes;
}

std::string to_hex(const std::string& bytes) {
  std::string text;
  for (const char byte : bytes) {
    const auto value = static_cast<unsigned char>(byte);
    text += "0123456789abcdef"[value >> 4];
    text += "0123456789abcdef"[value & 15];
  }
  return text;
}

}  // namespace

int main() {
  for (std::string line; std::getline(std::cin, line);) {
    const auto request = nlohmann::json::parse(line);
    const auto rgb8 = from_hex(request["rgb8"].get<std::string>());
    const auto& settings = request["settings"];
    nlohmann::json answer;
    try {
      const std::string text = settings.is_null() ? "" : settings.get<std::string>();
      answer["png"] = to_hex(arcflow::core::encode_png(rgb8.data(), request["width"], request["height"],
                                                       settings.is_null() ? nullptr : text.c_str()));
    } catch (const arcflow::core::Error& error) {
      answer = {{"error", error.what()}, {"code", error.code()}};
    }
    answer["zlib"] = arcflow::core::zlib_release();
    std::cout << answer.dump() << std::endl;
  }
}

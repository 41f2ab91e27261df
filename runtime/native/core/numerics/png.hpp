// PNG files, the same bytes as runtime/png.py makes where both use the same release of zlib.
#pragma once

#include <cstdint>
#include <string>

namespace arcflow::core {

// The longest side in pixels: runtime/image.py, MAX_SIDE.
constexpr std::uint32_t kMaxPngSide = 16'384;

// The PNG of rgb8 [height, width, 3]. settings: a JSON object that becomes two text chunks, "parameters" for people and
// "arcflow" in JSON (runtime/image.py, encode_png), or null for none.
// Throws Error(ARCFLOW_INVALID_ARGUMENT) for a side that is not from 1 to kMaxPngSide and for settings that are no JSON
// object; std::bad_alloc.
std::string encode_png(const std::uint8_t* rgb8, std::uint32_t width, std::uint32_t height, const char* settings);

// The release of zlib that this core was linked with: "1.2.13".
std::string zlib_release();

}  // namespace arcflow::core

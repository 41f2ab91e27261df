// Images as JPEG and WebP files, by libjpeg-turbo and libwebp.
#pragma once

#include <string>

#include "server/engine.hpp"

namespace arcflow::serve {

enum class FileFormat { kPng, kJpeg, kWebp };

// "png", "jpeg", "webp".
const char* name_of(FileFormat format);

// quality: 0 to 100. The settings stand in a JPEG's comment; a WebP has none. Throws EngineError.
std::string encode_jpeg(const Shape& shape, const Image& image, int quality);
std::string encode_webp(const Shape& shape, const Image& image, int quality);

}  // namespace arcflow::serve

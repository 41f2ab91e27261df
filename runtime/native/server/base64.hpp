// Bytes as base64, by OpenSSL.
#pragma once

#include <string>

namespace arcflow::serve {

// With padding, without line breaks. Throws std::length_error beyond 1 GiB.
std::string base64(const std::string& bytes);

}  // namespace arcflow::serve

// Bytes as base64, by OpenSSL.
#pragma once

#include <openssl/evp.h>

#include <stdexcept>
#include <string>

namespace arcflow::serve {

// With padding, without line breaks. Throws std::length_error beyond 1 GiB.
inline std::string base64(const std::string& bytes) {
  if (bytes.size() > std::size_t{1} << 30) throw std::length_error("too long for base64");
  std::string out((bytes.size() + 2) / 3 * 4 + 1, '\0');  // its encoder ends with a NUL
  const int length =
      EVP_EncodeBlock(reinterpret_cast<unsigned char*>(out.data()),
                      reinterpret_cast<const unsigned char*>(bytes.data()), static_cast<int>(bytes.size()));
  out.resize(static_cast<std::size_t>(length));
  return out;
}

}  // namespace arcflow::serve

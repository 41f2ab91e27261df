// OpenSSL's block encoder works on int lengths and ends with a NUL.
#include "server/base64.hpp"

#include <openssl/evp.h>

#include <stdexcept>

namespace arcflow::serve {

std::string base64(const std::string& bytes) {
  constexpr std::size_t most = std::size_t{1} << 30;
  if (bytes.size() > most) {
    throw std::length_error("too long for base64");
  }
  std::string out((bytes.size() + 2) / 3 * 4 + 1, '\0');
  const int length =
      EVP_EncodeBlock(reinterpret_cast<unsigned char*>(out.data()),
                      reinterpret_cast<const unsigned char*>(bytes.data()), static_cast<int>(bytes.size()));
  out.resize(static_cast<std::size_t>(length));
  return out;
}

}  // namespace arcflow::serve

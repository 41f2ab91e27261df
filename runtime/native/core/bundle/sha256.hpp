// SHA-256 and HMAC-SHA256, by OpenSSL (which uses the processor's own instructions where it has them).
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>

struct evp_md_ctx_st;  // OpenSSL's EVP_MD_CTX

namespace arcflow::core {

// A digest under way. Every function throws Error(ARCFLOW_INTERNAL) where OpenSSL has no SHA-256 to offer.
class Sha256 {
 public:
  Sha256();
  void update(const void* data, std::size_t size);
  // The digest in 64 hexadecimal digits; ends it.
  std::string hex();

 private:
  std::unique_ptr<evp_md_ctx_st, void (*)(evp_md_ctx_st*)> context_;
};

std::string sha256_hex(const void* data, std::size_t size);

// HMAC-SHA256 in 64 hexadecimal digits.
std::string hmac_hex(std::string_view key, std::string_view message);

// Whether two texts are equal, in a time that does not tell where they differ.
bool equal_secret(std::string_view a, std::string_view b);

}  // namespace arcflow::core

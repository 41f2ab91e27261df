// Reading a file of keys, and finding one by its hash.
#include "server/access/keys.hpp"

#include <openssl/crypto.h>
#include <openssl/evp.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <sstream>
#include <stdexcept>

namespace arcflow::serve {
namespace {

using Digest = std::array<unsigned char, 32>;

constexpr std::size_t kMostDigits = 6;
constexpr std::size_t kMostName = 64;

int hex(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

Digest digest_of(const std::string& text) {
  if (text.size() != 64 || std::any_of(text.begin(), text.end(), [](char c) { return hex(c) < 0; })) {
    throw std::invalid_argument("the SHA-256 of a key has 64 hexadecimal digits, as sha256sum prints them");
  }
  Digest digest{};
  for (std::size_t i = 0; i < digest.size(); ++i) {
    digest[i] = static_cast<unsigned char>(hex(text[2 * i]) * 16 + hex(text[2 * i + 1]));
  }
  return digest;
}

void read_limit(const std::string& word, KeyLimits& limits) {
  const std::size_t sign = word.find('=');
  const std::string name = word.substr(0, sign);
  const std::string digits = sign == std::string::npos ? "" : word.substr(sign + 1);
  const bool good = !digits.empty() && digits.size() <= kMostDigits &&
                    digits.find_first_not_of("0123456789") == std::string::npos && std::stoul(digits) > 0;
  if (!good || (name != "requests" && name != "images" && name != "nfe")) {
    throw std::invalid_argument("'" + word.substr(0, 64) +
                                "' is no limit; there are requests=N, images=N and nfe=N, with N from 1");
  }
  const auto number = static_cast<std::uint32_t>(std::stoul(digits));
  if (name == "requests") limits.requests = number;
  if (name == "images") limits.images = number;
  if (name == "nfe") limits.nfe = number;
}

ApiKey read_line(const std::string& line) {
  std::istringstream words(line);
  ApiKey key;
  std::string digest, word;
  words >> key.name >> digest;
  if (key.name.size() > kMostName) throw std::invalid_argument("the name is longer than 64 characters");
  key.digest = digest_of(digest);
  while (words >> word) read_limit(word, key.limits);
  return key;
}

}  // namespace

ApiKeys ApiKeys::parse(const std::string& text) {
  ApiKeys keys;
  std::istringstream lines(text);
  std::string line;
  for (std::size_t number = 1; std::getline(lines, line); ++number) {
    const std::size_t begin = line.find_first_not_of(" \t\r");
    if (begin == std::string::npos || line[begin] == '#') continue;
    try {
      ApiKey key = read_line(line);
      for (const ApiKey& other : keys.keys_) {
        if (other.name == key.name) throw std::invalid_argument("the name '" + key.name + "' stands there twice");
        if (other.digest == key.digest) throw std::invalid_argument("this key is already that of " + other.name);
      }
      keys.keys_.push_back(std::move(key));
    } catch (const std::invalid_argument& error) {
      throw std::invalid_argument("line " + std::to_string(number) + ": " + error.what());
    }
  }
  if (keys.empty()) throw std::invalid_argument("it holds no key, so nobody could ask for anything");
  return keys;
}

ApiKeys ApiKeys::read(const std::string& path) {
  errno = 0;
  std::ifstream file(path);
  std::ostringstream text;
  if (file) text << file.rdbuf();
  if (!file) throw std::invalid_argument("cannot read " + path + ": " + std::strerror(errno == 0 ? EIO : errno));
  try {
    return parse(text.str());
  } catch (const std::invalid_argument& error) {
    throw std::invalid_argument(path + ": " + error.what());
  }
}

const ApiKey* ApiKeys::find(std::string_view key) const {
  Digest digest{};
  if (EVP_Digest(key.data(), key.size(), digest.data(), nullptr, EVP_sha256(), nullptr) != 1) return nullptr;
  const ApiKey* found = nullptr;
  for (const ApiKey& one : keys_) {
    if (CRYPTO_memcmp(one.digest.data(), digest.data(), digest.size()) == 0) found = &one;
  }
  return found;
}

}  // namespace arcflow::serve

// API keys, of which the server knows the hashes alone.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace arcflow::serve {

// What the owner of a key may ask for; 0 where the server's own limits hold.
struct KeyLimits {
  std::size_t requests = 0;  // that wait or run
  std::uint32_t images = 0;  // of one request
  std::uint32_t nfe = 0;     // evaluations
};

struct ApiKey {
  std::string name;  // for the log, and for turns in the queue
  std::array<unsigned char, 32> digest{};
  KeyLimits limits;
};

class ApiKeys {
 public:
  // One key a line: its name, the SHA-256 of the key in 64 hexadecimal digits, and limits ("requests=4 images=2
  // nfe=8") where there are any. Empty lines and those that start with # count for nothing. Throws
  // std::invalid_argument that names the line.
  static ApiKeys parse(const std::string& text);
  // The same from a file. Throws std::invalid_argument.
  static ApiKeys read(const std::string& path);

  bool empty() const { return keys_.empty(); }
  // The key's entry, or null. Takes as long whichever it is.
  const ApiKey* find(std::string_view key) const;

 private:
  std::vector<ApiKey> keys_;
};

}  // namespace arcflow::serve

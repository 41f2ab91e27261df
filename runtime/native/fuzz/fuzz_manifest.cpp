// libFuzzer over the manifest's reader: any bytes are taken or rejected with an Error; nothing else leaves it.
//
// The reader checks a digest of the bytes, which a fuzzer cannot guess: each input is read as it is, and once more with
// a digest that fits, so that the rules behind it are reached.
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "core/bundle/manifest/manifest.hpp"
#include "core/bundle/sha256.hpp"
#include "core/error.hpp"

namespace {

void read(std::string_view data) {
  try {
    arcflow::core::parse_manifest(data);
  } catch (const arcflow::core::Error&) {
    return;
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* bytes, std::size_t size) {
  constexpr std::string_view kField = "\"digest\": \"";
  std::string data(reinterpret_cast<const char*>(bytes), size);
  read(data);
  const auto field = data.find(kField);
  if (field == std::string::npos) return 0;
  const auto start = field + kField.size(), end = data.find('"', start);
  if (end == std::string::npos) return 0;
  data.erase(start, end - start);
  data.insert(start, arcflow::core::sha256_hex(data.data(), data.size()));
  read(data);
  return 0;
}

// libFuzzer: a hostile tokenizer.json, then prompts for it. The input is the file, a byte 0xFF (which no UTF-8 has), a
// byte of settings, and the prompt; without 0xFF it is a file alone.
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "core/error.hpp"
#include "core/text/tokenizer/tokenizer.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using arcflow::core::PromptTokenizer;
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const std::size_t end = input.find('\xff');
  std::string_view rest = end == input.npos ? std::string_view() : input.substr(end + 1);
  const auto settings = rest.empty() ? 0u : static_cast<unsigned>(static_cast<std::uint8_t>(rest.front()));
  if (!rest.empty()) rest.remove_prefix(1);

  arcflow::core::TokenizerSpec spec;
  spec.file = "tokenizers/fuzz.json";
  spec.max_tokens = 1 + (settings >> 2 & 15);
  spec.pad = (settings & 1) != 0 ? "max" : "longest";
  if ((settings & 2) != 0) spec.tmpl = "<|im_start|>user {}<|im_end|>";
  try {
    const PromptTokenizer tokenizer("text", input.substr(0, end), spec);
    const arcflow::core::TokenIds tokens = tokenizer({std::string(rest), "a B\xC3\xA9  it's \xE2\x96\x81</s>", ""});
    if (tokens.prompts != 3 || tokens.ids.size() != 3 * tokens.length || tokens.mask.size() != tokens.ids.size()) {
      __builtin_trap();
    }
  } catch (const arcflow::core::Error&) {
  }
  return 0;
}

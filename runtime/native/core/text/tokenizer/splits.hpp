// The regular expressions by which CLIP and Qwen2 split text, as functions written by hand.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace arcflow::core::tokenizer {

// Where the match that begins at `at` ends; `at` itself where none begins there. at < text.size().
using Splitter = std::size_t (*)(std::u32string_view text, std::size_t at);

// The function for a regular expression, or nullptr where it is none that is known. Known, each as its publisher writes
// it: CLIP's (with and without its special tokens), Qwen2's, and GPT-2's.
Splitter splitter(std::string_view regex) noexcept;

// GPT-2's, which the pre-tokenizer ByteLevel has built in.
std::size_t gpt2_split(std::u32string_view text, std::size_t at);

}  // namespace arcflow::core::tokenizer

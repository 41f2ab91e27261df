// Prompts to ids: the encoder's tokens, the tokens around them or the template, truncation, padding and mask.
#include "core/text/tokenizer/tokenizer.hpp"

#include <algorithm>
#include <utility>

#include "core/error.hpp"
#include "core/text/document/document.hpp"
#include "core/text/python_text.hpp"
#include "core/text/tokenizer/encoder.hpp"

namespace arcflow::core {

using tokenizer::Encoder;
using tokenizer::Token;

namespace {

// Padding to "max" makes rows of this length, so it is bounded: no encoder takes a thousandth of it.
constexpr std::int64_t kMostTokens = 1 << 20;

// A piece of the template: a special token, or text with or without the prompt in it.
struct Piece {
  std::optional<std::uint32_t> special;
  std::u32string before, after;  // around the prompt; all of the text in `before` where the prompt is not in it
  bool has_prompt = false;
};

struct Encoded {
  std::vector<std::uint32_t> ids;
  std::u32string_view dropped;  // the end of the prompt that did not fit, or nothing
};

std::vector<Piece> split_template(const std::string& text, const std::map<std::string, std::uint32_t>& special) {
  std::vector<Piece> pieces;
  std::string held;
  const auto flush = [&] {
    if (held.empty()) return;
    const std::size_t hole = held.find("{}");
    Piece piece;
    piece.has_prompt = hole != std::string::npos;
    piece.before = tokenizer::decode(std::string_view(held).substr(0, hole));
    if (piece.has_prompt) piece.after = tokenizer::decode(std::string_view(held).substr(hole + 2));
    pieces.push_back(std::move(piece));
    held.clear();
  };
  for (std::size_t at = 0; at < text.size();) {
    const std::pair<const std::string, std::uint32_t>* longest = nullptr;
    for (const auto& token : special) {
      const bool here = text.compare(at, token.first.size(), token.first) == 0;
      if (here && (longest == nullptr || token.first.size() > longest->first.size())) longest = &token;
    }
    if (longest == nullptr) {
      held += text[at++];
      continue;
    }
    flush();
    pieces.push_back({longest->second, {}, {}, false});
    at += longest->first.size();
  }
  flush();
  return pieces;
}

void append_ids(std::vector<std::uint32_t>& ids, const std::vector<Token>& tokens, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) ids.push_back(tokens[i].id);
}

}  // namespace

struct PromptTokenizer::Impl {
  Impl(std::string its_name, std::string_view json, const TokenizerSpec& its_spec)
      : name(std::move(its_name)), spec(its_spec), encoder(tokenizer::parse(json)) {
    if (spec.max_tokens < 1 || spec.max_tokens > kMostTokens || spec.pad_id < 0) {
      tokenizer::fail("max_tokens is " + std::to_string(spec.max_tokens) + " and pad_id " +
                      std::to_string(spec.pad_id) + " in the manifest; allowed are 1 to " +
                      std::to_string(kMostTokens) + ", and 0 and above");
    }
    most = static_cast<std::size_t>(spec.max_tokens);
    if (spec.tmpl.empty() && encoder.around().size() > most) {
      tokenizer::fail("its post_processor adds " + std::to_string(encoder.around().size()) +
                      " tokens to a prompt, more than the max_tokens in the manifest, " + std::to_string(most));
    }
    pieces = split_template(spec.tmpl, encoder.special());
  }

  // With the start and end of the tokenizer; the end stays when a prompt is cut.
  Encoded alone(const std::u32string& prompt) const {
    const auto& around = encoder.around();
    const std::size_t room = most - around.size();
    const std::vector<Token> tokens = encoder(tokenizer::with_origins(prompt), room + 1);
    Encoded result{around.before, {}};
    append_ids(result.ids, tokens, std::min(tokens.size(), room));
    result.ids.insert(result.ids.end(), around.after.begin(), around.after.end());
    if (tokens.size() > room) result.dropped = python_strip(std::u32string_view(prompt).substr(tokens[room].start));
    return result;
  }

  // Between the template's special tokens; all that is too long is cut, the template's end with it.
  Encoded in_template(const std::u32string& prompt) const {
    Encoded result;
    for (const Piece& piece : pieces) {
      if (piece.special) {
        result.ids.push_back(*piece.special);
        continue;
      }
      const std::u32string text = piece.has_prompt ? piece.before + prompt + piece.after : piece.before;
      const std::size_t room = most - std::min(result.ids.size(), most);
      const std::vector<Token> tokens = encoder(tokenizer::with_origins(text), room + 1);
      if (piece.has_prompt && tokens.size() > room) {
        const std::size_t start = tokens[room].start;
        const std::size_t from = std::min(start - std::min(start, piece.before.size()), prompt.size());
        result.dropped = python_strip(std::u32string_view(prompt).substr(from));
      }
      append_ids(result.ids, tokens, tokens.size());
    }
    result.ids.resize(std::min(result.ids.size(), most));
    return result;
  }

  std::string warning(std::u32string_view dropped) const {
    return "the " + name + " encoder takes " + std::to_string(most) +
           " tokens; this end of the prompt is unused: " + python_repr(tokenizer::encode(dropped));
  }

  std::string name;
  TokenizerSpec spec;
  Encoder encoder;
  std::size_t most = 0;
  std::vector<Piece> pieces;
};

PromptTokenizer::PromptTokenizer(std::string name, std::string_view json, const TokenizerSpec& spec) {
  const std::string which = "the " + name + " tokenizer '" + spec.file + "'";
  try {
    impl_ = std::make_unique<const Impl>(std::move(name), json, spec);
  } catch (const Error& error) {
    throw Error(ARCFLOW_BACKEND_UNAVAILABLE, which + " cannot be read: " + error.what());
  }
}

PromptTokenizer::~PromptTokenizer() = default;
PromptTokenizer::PromptTokenizer(PromptTokenizer&&) noexcept = default;
PromptTokenizer& PromptTokenizer::operator=(PromptTokenizer&&) noexcept = default;

const std::string& PromptTokenizer::name() const noexcept { return impl_->name; }

TokenIds PromptTokenizer::operator()(const std::vector<std::string>& prompts) const {
  TokenIds result;
  std::vector<std::vector<std::uint32_t>> rows;
  rows.reserve(prompts.size());
  std::size_t longest = 0;
  for (const std::string& prompt : prompts) {
    const std::u32string chars = tokenizer::decode(prompt);
    Encoded encoded = impl_->pieces.empty() ? impl_->alone(chars) : impl_->in_template(chars);
    if (!encoded.dropped.empty()) result.warnings.push_back(impl_->warning(encoded.dropped));
    longest = std::max(longest, encoded.ids.size());
    rows.push_back(std::move(encoded.ids));
  }
  result.prompts = prompts.size();
  result.length = impl_->spec.pad == "max" ? impl_->most : longest;
  result.ids.assign(result.prompts * result.length, impl_->spec.pad_id);
  result.mask.assign(result.ids.size(), 0);
  for (std::size_t row = 0; row < rows.size(); ++row) {
    const auto at = static_cast<std::ptrdiff_t>(row * result.length);
    std::copy(rows[row].begin(), rows[row].end(), result.ids.begin() + at);
    std::fill_n(result.mask.begin() + at, rows[row].size(), 1);
  }
  return result;
}

}  // namespace arcflow::core

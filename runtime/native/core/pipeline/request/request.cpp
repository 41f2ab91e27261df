// The rules of a request, in the order and words of runtime/request.py; token ids that are given directly have their
// own.
#include "core/pipeline/request/request.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "core/error.hpp"
#include "core/numerics/compute.hpp"
#include "core/text/python_text.hpp"

namespace arcflow::core {
namespace {

constexpr std::int64_t kMaxTokenId = std::numeric_limits<std::int32_t>::max();

[[noreturn]] void refuse(const std::string& message) { throw Error(ARCFLOW_INVALID_ARGUMENT, message); }

void check_within(const char* name, std::int64_t value, std::int64_t least, std::int64_t most) {
  if (value < least || value > most) {
    refuse(std::string(name) + " is " + std::to_string(value) + "; it must be from " + std::to_string(least) + " to " +
           std::to_string(most));
  }
}

std::uint32_t number(const char* name, std::uint32_t value, std::int64_t usual, std::int64_t least, std::int64_t most) {
  const std::int64_t chosen = value == 0 ? usual : value;
  check_within(name, chosen, least, most);
  return static_cast<std::uint32_t>(chosen);
}

std::uint32_t pixels(const char* name, std::uint32_t value, const Range& limit, std::int64_t multiple) {
  const std::uint32_t chosen = number(name, value, limit.opt, limit.min, limit.max);
  if (chosen % multiple != 0) {
    refuse(std::string(name) + " is " + std::to_string(chosen) + " px; it must be a multiple of " +
           std::to_string(multiple) + " from " + std::to_string(limit.min) + " to " + std::to_string(limit.max));
  }
  return chosen;
}

void check_total(std::size_t prompts, std::uint32_t num_images) {
  const std::size_t most = kMaxImages;
  if (prompts > most || prompts * std::max<std::size_t>(num_images, 1) > most) {
    const double total = static_cast<double>(prompts) * std::max<double>(num_images, 1.0);
    const std::string count = total < 1e15 ? std::to_string(static_cast<std::uint64_t>(total)) : "far too many";
    refuse("the request asks for " + count + " images in all; at most " + std::to_string(most) + " are allowed");
  }
}

void check_prompt(const std::string& prompt, bool described_only) {
  const TextFacts facts = inspect_utf8(prompt);
  if (facts.blank && !described_only) refuse("the prompt is empty: say in a few words what the image should show");
  if (facts.characters > kMaxPromptCharacters) {
    refuse("the prompt has " + std::to_string(facts.characters) + " characters; at most " +
           std::to_string(kMaxPromptCharacters) + " are allowed");
  }
  if (!facts.valid) refuse("the prompt is not plain text: it holds a NUL or a byte that is not UTF-8");
}

std::vector<std::string> checked_prompts(const ArcflowRequest& request, bool has_tokens) {
  if (request.prompt_count == 0) refuse("there is no prompt: give one prompt or more");
  if (request.prompt_count > kMaxImages) check_total(request.prompt_count, request.num_images);
  if (request.prompts == nullptr) {
    if (!has_tokens) refuse("prompts is NULL; it may be only where tokens are given");
    return std::vector<std::string>(request.prompt_count);
  }
  std::vector<std::string> prompts;
  prompts.reserve(request.prompt_count);
  for (std::size_t i = 0; i < request.prompt_count; ++i) {
    if (request.prompts[i] == nullptr) refuse("prompts[" + std::to_string(i) + "] is NULL");
    prompts.emplace_back(request.prompts[i]);
    check_prompt(prompts.back(), has_tokens);
  }
  return prompts;
}

// Tokens of a row of a mask: ones, then zeros.
std::size_t tokens_in(const std::string& encoder, const std::int64_t* mask, std::size_t length) {
  const auto is_wrong = [](std::int64_t value) { return value != 0 && value != 1; };
  const std::int64_t* wrong = std::find_if(mask, mask + length, is_wrong);
  if (wrong != mask + length) {
    refuse("the mask of '" + encoder + "' holds " + std::to_string(*wrong) + "; it is 1 for a token and 0 for padding");
  }
  const std::int64_t* end = std::find(mask, mask + length, 0);
  if (std::find(end, mask + length, 1) != mask + length) {
    refuse("the mask of '" + encoder + "' has a token after padding; tokens come first, padding at the end");
  }
  return static_cast<std::size_t>(end - mask);
}

TokenIds checked_tokens(const ArcflowTokens& given, std::size_t prompts, const TokenizerSpec& spec) {
  const std::string encoder = given.encoder;
  if (given.ids == nullptr) refuse("the ids of the tokens of '" + encoder + "' are NULL");
  if (given.length < 1 || given.length > static_cast<std::size_t>(spec.max_tokens)) {
    refuse("the tokens of '" + encoder + "' have a length of " + std::to_string(given.length) +
           "; it must be from 1 to " + std::to_string(spec.max_tokens));
  }
  std::vector<std::size_t> lengths(prompts, given.length);
  for (std::size_t row = 0; row < prompts; ++row) {
    const std::int64_t* ids = given.ids + row * given.length;
    for (std::size_t i = 0; i < given.length; ++i) {
      if (ids[i] < 0 || ids[i] > kMaxTokenId) {
        refuse("a token of '" + encoder + "' is " + std::to_string(ids[i]) + "; it must be from 0 to " +
               std::to_string(kMaxTokenId));
      }
    }
    if (given.mask != nullptr) lengths[row] = tokens_in(encoder, given.mask + row * given.length, given.length);
    if (lengths[row] <= static_cast<std::size_t>(spec.drop)) {
      refuse("a prompt has " + std::to_string(lengths[row]) + " tokens for '" + encoder + "'; it needs more than " +
             std::to_string(spec.drop) + (spec.drop > 0 ? ", which are the template's" : ""));
    }
  }
  TokenIds tokens;
  tokens.prompts = prompts;
  tokens.length =
      spec.pad == "max" ? static_cast<std::size_t>(spec.max_tokens) : *std::max_element(lengths.begin(), lengths.end());
  tokens.ids.assign(prompts * tokens.length, spec.pad_id);
  tokens.mask.assign(prompts * tokens.length, 0);
  for (std::size_t row = 0; row < prompts; ++row) {
    const auto place = static_cast<std::ptrdiff_t>(row * tokens.length);
    std::copy_n(given.ids + row * given.length, lengths[row], tokens.ids.begin() + place);
    std::fill_n(tokens.mask.begin() + place, lengths[row], 1);
  }
  return tokens;
}

std::map<std::string, TokenIds> all_tokens(const Manifest& manifest, const ArcflowRequest& request) {
  std::string encoders;
  for (const auto& [name, spec] : manifest.tokenizers) encoders += (encoders.empty() ? "" : ", ") + name;
  const std::string rule = "tokens are given for every text encoder of " + manifest.model + " or for none: " + encoders;
  if (request.token_count > 0 && request.tokens == nullptr) refuse("tokens is NULL, but token_count is not 0");
  if (request.token_count != 0 && request.token_count != manifest.tokenizers.size()) refuse(rule);
  std::map<std::string, TokenIds> tokens;
  for (std::size_t i = 0; i < request.token_count; ++i) {
    const ArcflowTokens& given = request.tokens[i];
    if (given.encoder == nullptr) refuse("the encoder of tokens[" + std::to_string(i) + "] is NULL; " + rule);
    const auto spec = manifest.tokenizers.find(given.encoder);
    if (spec == manifest.tokenizers.end()) refuse("'" + std::string(given.encoder) + "' is no text encoder; " + rule);
    if (tokens.count(spec->first) != 0) refuse("tokens of '" + spec->first + "' are given twice; " + rule);
    tokens.emplace(spec->first, checked_tokens(given, request.prompt_count, spec->second));
  }
  return tokens;
}

std::vector<std::uint64_t> image_seeds(const ArcflowRequest& request, std::size_t total) {
  if (request.seeds == nullptr) {
    if (request.seed_count != 0) refuse("seeds is NULL, but seed_count is not 0");
    std::vector<std::uint64_t> seeds(total);
    for (std::size_t j = 0; j < total; ++j) seeds[j] = request.seed + j;  // modulo 2^64, as unsigned sums are
    return seeds;
  }
  if (request.seed_count != total) {
    refuse("seed_count is " + std::to_string(request.seed_count) + ", but the request makes " + std::to_string(total) +
           " images: give one seed for each");
  }
  return std::vector<std::uint64_t>(request.seeds, request.seeds + total);
}

}  // namespace

CheckedRequest check_request(const Manifest& manifest, const ArcflowRequest& request) {
  const Limits& limits = manifest.limits;
  const Schedule& schedule = manifest.schedule;
  CheckedRequest checked;
  checked.prompts = checked_prompts(request, request.token_count != 0);
  checked.nfe = number("nfe", request.nfe, schedule.nfe, 1, schedule.max_nfe);
  checked.num_images = number("num_images", request.num_images, 1, 1, kMaxImages);
  checked.width = pixels("width", request.width, limits.width, limits.multiple);
  checked.height = pixels("height", request.height, limits.height, limits.multiple);
  checked.previews = request.previews;
  check_within("previews", request.previews, 0, kMaxPreviews);
  check_total(checked.prompts.size(), checked.num_images);
  checked.tokens = all_tokens(manifest, request);
  checked.seeds = image_seeds(request, checked.total());
  if (!std::isfinite(request.timeout) || request.timeout < 0.0) {
    refuse("timeout is " + std::to_string(request.timeout) +
           "; it must be a finite number of seconds, 0 or more (0: none)");
  }
  checked.timeout = request.timeout;
  checked.sigmas = sigmas(checked.nfe, schedule.shift, schedule.final_step_ratio);
  return checked;
}

}  // namespace arcflow::core

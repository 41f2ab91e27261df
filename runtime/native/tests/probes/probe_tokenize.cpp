// Tokenizers for pytest. A JSON line {"json" or "file", "name", "spec", "prompts" or "base64"} in, its ids, mask,
// warnings and the milliseconds for loading and encoding out; {"error", "code"} where it throws.
#include <chrono>
#include <fstream>
#include <iostream>
#include <iterator>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "core/error.hpp"
#include "core/text/characters/charsmap.hpp"
#include "core/text/tokenizer/tokenizer.hpp"

namespace {

using Json = nlohmann::json;
using arcflow::core::PromptTokenizer;

double milliseconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
}

std::string contents(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

Json answer(const Json& request, std::unique_ptr<PromptTokenizer>& held) {
  Json result;
  // A line without a tokenizer goes to the one before.
  if (request.contains("json") || request.contains("file")) {
    const Json& fields = request.at("spec");
    arcflow::core::TokenizerSpec spec;
    spec.file = fields.at("file");
    spec.max_tokens = fields.at("max_tokens");
    spec.pad_id = fields.at("pad_id");
    spec.tmpl = fields.value("template", "");
    spec.drop = fields.value("drop", 0);
    spec.pad = fields.value("pad", "max");
    const std::string json = request.contains("file") ? contents(request["file"]) : request["json"].get<std::string>();
    held.reset();
    const auto start = std::chrono::steady_clock::now();
    held = std::make_unique<PromptTokenizer>(request.value("name", "clip"), json, spec);
    result["load_ms"] = milliseconds_since(start);
  }
  std::vector<std::string> prompts = request.value("prompts", std::vector<std::string>());
  for (const std::string& text : request.value("base64", std::vector<std::string>())) {
    prompts.push_back(arcflow::core::tokenizer::from_base64(text).value());
  }
  if (!held) return {{"error", "no tokenizer"}, {"code", -1}};
  const auto start = std::chrono::steady_clock::now();
  const arcflow::core::TokenIds tokens = (*held)(prompts);
  result["encode_ms"] = milliseconds_since(start);
  result["shape"] = {tokens.prompts, tokens.length};
  result["ids"] = tokens.ids;
  result["mask"] = tokens.mask;
  result["warnings"] = tokens.warnings;
  return result;
}

}  // namespace

int main() {
  std::unique_ptr<PromptTokenizer> held;
  for (std::string line; std::getline(std::cin, line);) {
    Json result;
    try {
      result = answer(Json::parse(line), held);
    } catch (const arcflow::core::Error& error) {
      result = {{"error", error.what()}, {"code", error.code()}};
    } catch (const std::exception& error) {
      result = {{"error", error.what()}, {"code", -1}};
    }
    std::cout << result.dump(-1, ' ', false, Json::error_handler_t::replace) << std::endl;
  }
  return 0;
}

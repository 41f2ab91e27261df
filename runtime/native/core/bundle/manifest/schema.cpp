#include "core/bundle/manifest/schema.hpp"

#include <algorithm>
#include <limits>
#include <utility>

#include "core/bundle/manifest/fields.hpp"

namespace arcflow::core {
namespace {

constexpr auto kSizeMax = std::numeric_limits<std::int64_t>::max();
constexpr auto kRefuse = FieldReader::Unknown::refuse;

using At = const Place*;

bool lower(char c) { return c >= 'a' && c <= 'z'; }
bool decimal(char c) { return c >= '0' && c <= '9'; }
bool hexadecimal(char c) { return decimal(c) || (c >= 'a' && c <= 'f'); }

bool is_hex(std::string_view text, std::size_t size) {
  return text.size() == size && std::all_of(text.begin(), text.end(), hexadecimal);
}

// The patterns of engines/schema.py, which Python applies as regular expressions.
const Pattern kName{
    R"(^[a-z0-9][a-z0-9._-]*\Z)", [](std::string_view text) {
      const auto inner = [](char c) { return lower(c) || decimal(c) || c == '.' || c == '_' || c == '-'; };
      return !text.empty() && (lower(text[0]) || decimal(text[0])) && std::all_of(text.begin(), text.end(), inner);
    }};
const Pattern kWord{R"(^[a-z0-9_]+\Z)", [](std::string_view text) {
                      return !text.empty() && std::all_of(text.begin(), text.end(),
                                                          [](char c) { return lower(c) || decimal(c) || c == '_'; });
                    }};
const Pattern kSha256{R"(^[0-9a-f]{64}\Z)", [](std::string_view text) { return is_hex(text, 64); }};
const Pattern kDigest{R"(^([0-9a-f]{64})?\Z)", [](std::string_view text) { return text.empty() || is_hex(text, 64); }};
const Pattern kCapability{R"(^sm[0-9]{2,3}\Z)", [](std::string_view text) {
                            return (text.size() == 4 || text.size() == 5) && text.substr(0, 2) == "sm" &&
                                   std::all_of(text.begin() + 2, text.end(), decimal);
                          }};
const Pattern kSeal{R"(^([0-9a-f]{16}:[0-9a-f]{64})?\Z)", [](std::string_view text) {
                      return text.empty() || (text.size() == 81 && is_hex(text.substr(0, 16), 16) && text[16] == ':' &&
                                              is_hex(text.substr(17), 64));
                    }};

std::int64_t count(FieldReader& in, At at) { return in.integer(at, 1, kCountMax); }

template <class Item>
auto list(FieldReader& in, At at, Item item) {
  std::vector<decltype(item(at))> out;
  in.array(at, [&](At place) { out.push_back(item(place)); });
  return out;
}

template <class Item>
auto mapping(FieldReader& in, At at, Item item) {
  std::map<std::string, decltype(item(at))> out;
  in.map(at, [&](std::string key, At place) { out.insert_or_assign(std::move(key), item(place)); });
  return out;
}

std::vector<std::string> texts(FieldReader& in, At at) {
  return list(in, at, [&](At place) { return in.text(place); });
}

std::map<std::string, std::string> text_by_text(FieldReader& in, At at) {
  return mapping(in, at, [&](At place) { return in.text(place); });
}

Port port(FieldReader& in, At at) {
  Port out;
  in.object(
      at, kRefuse,
      {{"name", true, [&](At p) { out.name = in.text(p); }},
       {"dtype", true, [&](At p) { out.dtype = in.literal(p, {"float32", "float16", "bfloat16", "int64", "int32"}); }},
       {"shape", true,
        [&](At p) { out.shape = list(in, p, [&](At place) { return in.integer_or_text(place, 1, kCountMax); }); }}});
  return out;
}

Network network(FieldReader& in, At at) {
  Network out;
  const auto ports = [&](At p) { return list(in, p, [&](At place) { return port(in, place); }); };
  in.object(at, kRefuse,
            {{"file", true, [&](At p) { out.file = in.text(p); }},
             {"inputs", true, [&](At p) { out.inputs = ports(p); }},
             {"outputs", true, [&](At p) { out.outputs = ports(p); }},
             {"format", false, [&](At p) { out.format = in.literal(p, {"onnx", "plan"}); }},
             {"data", false, [&](At p) { out.data = texts(in, p); }},
             {"compute", false, [&](At p) { out.compute = in.literal(p, {"float32", "float16", "bfloat16"}); }}});
  return out;
}

Range range(FieldReader& in, At at) {
  Range out;
  in.object(at, kRefuse,
            {{"min", true, [&](At p) { out.min = count(in, p); }},
             {"opt", true, [&](At p) { out.opt = count(in, p); }},
             {"max", true, [&](At p) { out.max = count(in, p); }}});
  return out;
}

Limits limits(FieldReader& in, At at) {
  Limits out;
  in.object(at, kRefuse,
            {{"batch", true, [&](At p) { out.batch = range(in, p); }},
             {"width", true, [&](At p) { out.width = range(in, p); }},
             {"height", true, [&](At p) { out.height = range(in, p); }},
             {"text_tokens", true, [&](At p) { out.text_tokens = range(in, p); }},
             {"multiple", true, [&](At p) { out.multiple = count(in, p); }}});
  return out;
}

Latent latent(FieldReader& in, At at) {
  Latent out;
  const auto positive = [&](At place) { return in.positive(place); };
  const auto real = [&](At place) { return in.real(place); };
  in.object(at, kRefuse,
            {{"channels", true, [&](At p) { out.channels = count(in, p); }},
             {"patch", true, [&](At p) { out.patch = count(in, p); }},
             {"vae_factor", true, [&](At p) { out.vae_factor = count(in, p); }},
             {"scaling_factor", true, [&](At p) { out.scaling_factor = list(in, p, positive); }},
             {"shift_factor", true, [&](At p) { out.shift_factor = list(in, p, real); }}});
  return out;
}

Schedule schedule(FieldReader& in, At at) {
  Schedule out;
  in.object(
      at, kRefuse,
      {{"shift", true, [&](At p) { out.shift = in.positive(p); }},
       {"guidance", true, [&](At p) { out.guidance = in.real(p); }},
       {"nfe", true, [&](At p) { out.nfe = count(in, p); }},
       {"final_step_ratio", true, [&](At p) { out.final_step_ratio = in.positive(p); }},
       {"conditioning_dtype", true, [&](At p) { out.conditioning_dtype = in.literal(p, {"float32", "bfloat16"}); }},
       {"max_nfe", false, [&](At p) { out.max_nfe = count(in, p); }}});
  return out;
}

Momentum momentum(FieldReader& in, At at) {
  Momentum out;
  in.object(at, kRefuse,
            {{"modes", true, [&](At p) { out.modes = count(in, p); }},
             {"packed_channels", true, [&](At p) { out.packed_channels = count(in, p); }},
             {"patch_positions", true, [&](At p) { out.patch_positions = count(in, p); }}});
  return out;
}

TokenizerSpec tokenizer(FieldReader& in, At at) {
  TokenizerSpec out;
  in.object(at, kRefuse,
            {{"file", true, [&](At p) { out.file = in.text(p); }},
             {"max_tokens", true, [&](At p) { out.max_tokens = count(in, p); }},
             {"pad_id", true, [&](At p) { out.pad_id = in.integer(p, 0, kCountMax); }},
             {"template", false, [&](At p) { out.tmpl = in.text(p); }},
             {"drop", false, [&](At p) { out.drop = in.integer(p, 0, kCountMax); }},
             {"pad", false, [&](At p) { out.pad = in.literal(p, {"max", "longest"}); }}});
  return out;
}

ShapeRange shape_range(FieldReader& in, At at) {
  ShapeRange out;
  const auto sizes = [&](At p) { return list(in, p, [&](At place) { return count(in, place); }); };
  in.object(at, kRefuse,
            {{"min", true, [&](At p) { out.min = sizes(p); }},
             {"opt", true, [&](At p) { out.opt = sizes(p); }},
             {"max", true, [&](At p) { out.max = sizes(p); }}});
  return out;
}

Engine engine(FieldReader& in, At at) {
  Engine out;
  const auto profile = [&](At p) { return mapping(in, p, [&](At place) { return shape_range(in, place); }); };
  in.object(
      at, kRefuse,
      {{"flavour", true, [&](At p) { out.flavour = in.literal(p, {"tensorrt", "tensorrt-rtx"}); }},
       {"version", true, [&](At p) { out.version = in.text(p); }},
       {"compute_capabilities", true,
        [&](At p) {
          out.compute_capabilities = list(in, p, [&](At place) { return in.matching(place, kCapability); });
        }},
       {"opt_level", true, [&](At p) { out.opt_level = in.integer(p, 0, 5); }},
       {"profiles", true, [&](At p) { out.profiles = mapping(in, p, profile); }},
       {"onnx", true, [&](At p) { out.onnx = mapping(in, p, [&](At place) { return in.matching(place, kSha256); }); }},
       {"seal", false, [&](At p) { out.seal = in.matching(p, kSeal); }}});
  return out;
}

FileEntry file_entry(FieldReader& in, At at) {
  FileEntry out;
  in.object(at, kRefuse,
            {{"path", true, [&](At p) { out.path = in.text(p); }},
             {"sha256", true, [&](At p) { out.sha256 = in.matching(p, kSha256); }},
             {"size", true, [&](At p) { out.size = in.integer(p, 0, kSizeMax); }}});
  return out;
}

// What follows is held to the schema and not kept: no runtime needs it.

void quantisation(FieldReader& in, At at) {
  in.object(at, kRefuse,
            {{"calibration", true, [&](At p) { in.matching(p, kSha256); }},
             {"method", true, [&](At p) { in.text(p); }},
             {"synthetic", true, [&](At p) { in.boolean(p); }},
             {"layers", true, [&](At p) { texts(in, p); }},
             {"kept_high", false, [&](At p) { texts(in, p); }},
             {"options", false, [&](At p) { text_by_text(in, p); }}});
}

void gate_result(FieldReader& in, At at) {
  in.object(at, kRefuse,
            {{"measure", true, [&](At p) { in.text(p); }},
             {"value", true, [&](At p) { in.real(p); }},
             {"limit", true, [&](At p) { in.real(p); }}});
}

void gate(FieldReader& in, At at) {
  in.object(at, kRefuse,
            {{"nfe", true, [&](At p) { count(in, p); }},
             {"pictures", true, [&](At p) { count(in, p); }},
             {"results", true, [&](At p) { in.array(p, [&](At place) { gate_result(in, place); }); }}});
}

void parity_result(FieldReader& in, At at) {
  in.object(at, kRefuse,
            {{"network", true, [&](At p) { in.text(p); }},
             {"shape", true, [&](At p) { in.map(p, [&](const std::string&, At place) { in.any_integer(place); }); }},
             {"relative_error", true, [&](At p) { in.real(p); }},
             {"limit", true, [&](At p) { in.real(p); }},
             {"twin", false, [&](At p) { in.boolean(p); }}});
}

}  // namespace

ManifestHeader read_header(std::string_view data) {
  FieldReader in(data);
  ManifestHeader out;
  in.object(nullptr, FieldReader::Unknown::skip,
            {{"schema_version", true, [&](At p) { out.schema_version = in.any_integer(p); }},
             {"kind", true, [&](At p) { out.kind = in.text(p); }}});
  in.finish();
  return out;
}

ReadManifest read_manifest_fields(std::string_view data) {
  FieldReader in(data);
  ReadManifest out;
  Manifest& m = out.manifest;
  const auto network_at = [&](At place) { return network(in, place); };
  const auto tokenizer_at = [&](At place) { return tokenizer(in, place); };
  const auto file_at = [&](At place) { return file_entry(in, place); };
  in.object(
      nullptr, kRefuse,
      {{"model", true, [&](At p) { m.model = in.matching(p, kName); }},
       {"architecture", true, [&](At p) { m.architecture = in.literal(p, {"flux", "qwen"}); }},
       {"precision", true, [&](At p) { m.precision = in.matching(p, kWord); }},
       {"target", true, [&](At p) { m.target = in.matching(p, kWord); }},
       {"networks", true, [&](At p) { m.networks = mapping(in, p, network_at); }},
       {"limits", true, [&](At p) { m.limits = limits(in, p); }},
       {"latent", true, [&](At p) { m.latent = latent(in, p); }},
       {"schedule", true, [&](At p) { m.schedule = schedule(in, p); }},
       {"momentum", true, [&](At p) { m.momentum = momentum(in, p); }},
       {"tokenizers", true, [&](At p) { m.tokenizers = mapping(in, p, tokenizer_at); }},
       {"parents", true, [&](At p) { m.parents = text_by_text(in, p); }},
       {"tools", true, [&](At p) { m.tools = text_by_text(in, p); }},
       {"parity", true, [&](At p) { in.array(p, [&](At place) { parity_result(in, place); }); }},
       {"engine", false, [&](At p) { m.engine = in.object_or_null(p) ? std::optional(engine(in, p)) : std::nullopt; }},
       {"quantisation", false,
        [&](At p) {
          out.quantised = in.object_or_null(p);
          if (out.quantised) quantisation(in, p);
        }},
       {"gate", false,
        [&](At p) {
          if (in.object_or_null(p)) gate(in, p);
        }},
       {"files", false, [&](At p) { m.files = list(in, p, file_at); }},
       {"digest", false, [&](At p) { m.digest = in.matching(p, kDigest); }},
       {"kind", false, [&](At p) { in.literal(p, {"arcflow-bundle"}); }},
       {"schema_version", false, [&](At p) { in.any_integer(p); }}});
  in.finish();
  return out;
}

}  // namespace arcflow::core

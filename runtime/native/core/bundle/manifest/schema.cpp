// The reader of a manifest's fields. Written by `python -m scripts.manifest_schema` from engines/schema.py.
#include "core/bundle/manifest/schema.hpp"

#include "core/bundle/manifest/readers.hpp"

namespace arcflow::core {
namespace {

using namespace readers;

constexpr Pattern kName{
    R"(^[a-z0-9][a-z0-9._-]*\Z)",
    false,
    {{{"0123456789abcdefghijklmnopqrstuvwxyz", 1, 1}, {"-.0123456789_abcdefghijklmnopqrstuvwxyz", 0, kAny}}}};
constexpr Pattern kWord{R"(^[a-z0-9_]+\Z)", false, {{{"0123456789_abcdefghijklmnopqrstuvwxyz", 1, kAny}}}};
constexpr Pattern kSha256{R"(^[0-9a-f]{64}\Z)", false, {{{"0123456789abcdef", 64, 64}}}};
constexpr Pattern kDigest{R"(^([0-9a-f]{64})?\Z)", true, {{{"0123456789abcdef", 64, 64}}}};
constexpr Pattern kCapability{R"(^sm[0-9]{2,3}\Z)", false, {{{"s", 1, 1}, {"m", 1, 1}, {"0123456789", 2, 3}}}};
constexpr Pattern kSeal{R"(^([0-9a-f]{16}:[0-9a-f]{64})?\Z)",
                        true,
                        {{{"0123456789abcdef", 16, 16}, {":", 1, 1}, {"0123456789abcdef", 64, 64}}}};

Port port(const Json& value, At at) {
  return object(value, at, needed("name", &Port::name, text),
                needed("dtype", &Port::dtype, one_of({"bfloat16", "float16", "float32", "int32", "int64"})),
                needed("shape", &Port::shape, list_of(dimension(1, kCountMax))));
}

Network network(const Json& value, At at) {
  return object(value, at, needed("file", &Network::file, text), needed("inputs", &Network::inputs, list_of(port)),
                needed("outputs", &Network::outputs, list_of(port)),
                defaulted("format", &Network::format, one_of({"onnx", "plan"})),
                defaulted("data", &Network::data, list_of(text)),
                defaulted("compute", &Network::compute, one_of({"bfloat16", "float16", "float32"})));
}

Range range(const Json& value, At at) {
  return object(value, at, needed("min", &Range::min, integer(1, kCountMax)),
                needed("opt", &Range::opt, integer(1, kCountMax)), needed("max", &Range::max, integer(1, kCountMax)));
}

Limits limits(const Json& value, At at) {
  return object(value, at, needed("batch", &Limits::batch, range), needed("width", &Limits::width, range),
                needed("height", &Limits::height, range), needed("text_tokens", &Limits::text_tokens, range),
                needed("multiple", &Limits::multiple, integer(1, kCountMax)));
}

Latent latent(const Json& value, At at) {
  return object(value, at, needed("channels", &Latent::channels, integer(1, kCountMax)),
                needed("patch", &Latent::patch, integer(1, kCountMax)),
                needed("vae_factor", &Latent::vae_factor, integer(1, kCountMax)),
                needed("scaling_factor", &Latent::scaling_factor, list_of(positive)),
                needed("shift_factor", &Latent::shift_factor, list_of(real)));
}

Schedule schedule(const Json& value, At at) {
  return object(value, at, needed("shift", &Schedule::shift, positive), needed("guidance", &Schedule::guidance, real),
                needed("nfe", &Schedule::nfe, integer(1, kCountMax)),
                needed("final_step_ratio", &Schedule::final_step_ratio, positive),
                needed("conditioning_dtype", &Schedule::conditioning_dtype, one_of({"bfloat16", "float32"})),
                defaulted("max_nfe", &Schedule::max_nfe, integer(1, kCountMax)));
}

Momentum momentum(const Json& value, At at) {
  return object(value, at, needed("modes", &Momentum::modes, integer(1, kCountMax)),
                needed("packed_channels", &Momentum::packed_channels, integer(1, kCountMax)),
                needed("patch_positions", &Momentum::patch_positions, integer(1, kCountMax)));
}

TokenizerSpec tokenizer_spec(const Json& value, At at) {
  return object(value, at, needed("file", &TokenizerSpec::file, text),
                needed("max_tokens", &TokenizerSpec::max_tokens, integer(1, kCountMax)),
                needed("pad_id", &TokenizerSpec::pad_id, integer(0, kCountMax)),
                defaulted("template", &TokenizerSpec::tmpl, text),
                defaulted("drop", &TokenizerSpec::drop, integer(0, kCountMax)),
                defaulted("pad", &TokenizerSpec::pad, one_of({"longest", "max"})));
}

ParityResult parity_result(const Json& value, At at) {
  return object(value, at, needed("network", &ParityResult::network, text),
                needed("shape", &ParityResult::shape, map_of(any_integer)),
                needed("relative_error", &ParityResult::relative_error, real),
                needed("limit", &ParityResult::limit, real), defaulted("twin", &ParityResult::twin, boolean),
                defaulted("device", &ParityResult::device, text));
}

ShapeRange shape_range(const Json& value, At at) {
  return object(value, at, needed("min", &ShapeRange::min, list_of(integer(1, kCountMax))),
                needed("opt", &ShapeRange::opt, list_of(integer(1, kCountMax))),
                needed("max", &ShapeRange::max, list_of(integer(1, kCountMax))));
}

PlanMemory plan_memory(const Json& value, At at) {
  return object(value, at, needed("weights", &PlanMemory::weights, integer(0, INT64_MAX)),
                needed("activations", &PlanMemory::activations, integer(0, INT64_MAX)));
}

Engine engine(const Json& value, At at) {
  return object(value, at, needed("flavour", &Engine::flavour, one_of({"tensorrt", "tensorrt-rtx"})),
                needed("version", &Engine::version, text),
                needed("compute_capabilities", &Engine::compute_capabilities, list_of(matching(kCapability))),
                needed("opt_level", &Engine::opt_level, integer(0, 5)),
                needed("profiles", &Engine::profiles, map_of(map_of(shape_range))),
                needed("onnx", &Engine::onnx, map_of(matching(kSha256))),
                defaulted("memory", &Engine::memory, map_of(plan_memory)),
                defaulted("seal", &Engine::seal, matching(kSeal)));
}

Quantisation quantisation(const Json& value, At at) {
  return object(value, at, needed("calibration", &Quantisation::calibration, matching(kSha256)),
                needed("method", &Quantisation::method, text), needed("synthetic", &Quantisation::synthetic, boolean),
                needed("layers", &Quantisation::layers, list_of(text)),
                defaulted("stored", &Quantisation::stored, map_of(list_of(text))),
                defaulted("kept_high", &Quantisation::kept_high, list_of(text)),
                defaulted("options", &Quantisation::options, map_of(text)));
}

GateResult gate_result(const Json& value, At at) {
  return object(value, at, needed("measure", &GateResult::measure, text), needed("value", &GateResult::value, real),
                needed("limit", &GateResult::limit, real));
}

Gate gate(const Json& value, At at) {
  return object(
      value, at, needed("nfe", &Gate::nfe, integer(1, kCountMax)),
      needed("images", &Gate::images, integer(1, kCountMax)), needed("width", &Gate::width, integer(1, kCountMax)),
      needed("height", &Gate::height, integer(1, kCountMax)), needed("results", &Gate::results, list_of(gate_result)));
}

FileEntry file_entry(const Json& value, At at) {
  return object(value, at, needed("path", &FileEntry::path, text),
                needed("sha256", &FileEntry::sha256, matching(kSha256)),
                needed("size", &FileEntry::size, integer(0, INT64_MAX)));
}

Manifest manifest(const Json& value, At at) {
  return object(
      value, at, needed("model", &Manifest::model, matching(kName)),
      needed("architecture", &Manifest::architecture, one_of({"flux", "qwen"})),
      needed("precision", &Manifest::precision, matching(kWord)), needed("target", &Manifest::target, matching(kWord)),
      needed("networks", &Manifest::networks, map_of(network)), needed("limits", &Manifest::limits, limits),
      needed("latent", &Manifest::latent, latent), needed("schedule", &Manifest::schedule, schedule),
      needed("momentum", &Manifest::momentum, momentum),
      needed("tokenizers", &Manifest::tokenizers, map_of(tokenizer_spec)),
      needed("parents", &Manifest::parents, map_of(text)), needed("tools", &Manifest::tools, map_of(text)),
      needed("parity", &Manifest::parity, list_of(parity_result)),
      defaulted("engine", &Manifest::engine, nullable(engine)),
      defaulted("quantisation", &Manifest::quantisation, nullable(quantisation)),
      defaulted("gate", &Manifest::gate, nullable(gate)), defaulted("files", &Manifest::files, list_of(file_entry)),
      defaulted("digest", &Manifest::digest, matching(kDigest)),
      defaulted("kind", &Manifest::kind, one_of({"arcflow-bundle"})),
      defaulted("schema_version", &Manifest::schema_version, any_integer));
}

}  // namespace

std::vector<std::string> networks_of(std::string_view name) {
  if (name == "flux") return {"backbone", "clip", "conditioner", "t5", "vae_decoder"};
  if (name == "qwen") return {"backbone", "text", "vae_decoder"};
  return {};
}

std::vector<std::string> tokenizers_of(std::string_view name) {
  if (name == "flux") return {"clip", "t5"};
  if (name == "qwen") return {"text"};
  return {};
}

std::vector<std::string> capabilities_of_target(std::string_view name) {
  if (name == "rtx") return {"sm120", "sm89"};
  return {std::string(name)};
}

bool is_onnx_target(std::string_view name) { return name == "cpu" || name == "onnx"; }

Manifest read_manifest_fields(const Json& document) { return manifest(document, nullptr); }

}  // namespace arcflow::core

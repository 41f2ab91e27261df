// Bundles as the core sees them, for tests/native/core/test_bundle.py: a JSON object a line in, one a line out.
//
//   {"op": "parse", "hex": ...}                  a manifest's bytes      -> {"ok": true, "manifest": {...}}
//   {"op": "open" | "verify", "path": ...}       a bundle's folder       -> {"ok": true, "root": ...}
//   {"op": "find", "source": ..., "precision": "", "target": "", "built_in": ...}
//   {"op": "read" | "map", "path": ..., "file": ...}                     -> {"ok": true, "sha256": ..., "size": ...}
//   {"op": "repr", "hex": ...}                   text as Python shows it -> {"ok": true, "text": ...}
//
// "allow_links": true of any but "parse" and "repr" opens it so. "verify" also asks whether the plans are this
// machine's. "env" of any line sets environment variables, null unsets. What is rejected answers {"code": ...,
// "message": ...}.
#include <cstdlib>
#include <iostream>
#include <nlohmann/json.hpp>
#include <string>

#include "core/bundle/bundle.hpp"
#include "core/bundle/sha256.hpp"
#include "core/error.hpp"
#include "core/text/python_text.hpp"

namespace {

using arcflow::core::Bundle;
using nlohmann::json;

std::string bytes_of(const std::string& hex) {
  std::string out;
  for (std::size_t i = 0; i + 1 < hex.size(); i += 2) {
    out += static_cast<char>(std::stoi(hex.substr(i, 2), nullptr, 16));
  }
  return out;
}

json ports_of(const std::vector<arcflow::core::Port>& ports) {
  json out = json::array();
  for (const auto& port : ports) {
    json shape = json::array();
    for (const auto& size : port.shape) std::visit([&](const auto& value) { shape.push_back(value); }, size);
    out.push_back({{"name", port.name}, {"dtype", port.dtype}, {"shape", shape}});
  }
  return out;
}

json range_of(const arcflow::core::Range& range) {
  return {{"min", range.min}, {"opt", range.opt}, {"max", range.max}};
}

json engine_of(const arcflow::core::Engine& engine) {
  json memory = json::object();
  for (const auto& [network, taken] : engine.memory)
    memory[network] = {{"weights", taken.weights}, {"activations", taken.activations}};
  json profiles = json::object();
  for (const auto& [network, inputs] : engine.profiles) {
    for (const auto& [name, shape] : inputs) {
      profiles[network][name] = {{"min", shape.min}, {"opt", shape.opt}, {"max", shape.max}};
    }
  }
  return {{"flavour", engine.flavour},     {"version", engine.version},
          {"opt_level", engine.opt_level}, {"compute_capabilities", engine.compute_capabilities},
          {"profiles", profiles},          {"memory", memory},
          {"onnx", engine.onnx},           {"seal", engine.seal}};
}

// The manifest as it stands in its file, less what the core does not keep.
json manifest_of(const arcflow::core::Manifest& m) {
  json out{{"model", m.model},   {"architecture", m.architecture},
           {"target", m.target}, {"precision", m.precision},
           {"digest", m.digest}, {"parents", m.parents},
           {"tools", m.tools},   {"engine", m.engine ? engine_of(*m.engine) : json()}};
  for (const auto& [name, network] : m.networks) {
    out["networks"][name] = {{"file", network.file},       {"inputs", ports_of(network.inputs)},
                             {"format", network.format},   {"outputs", ports_of(network.outputs)},
                             {"compute", network.compute}, {"data", network.data}};
  }
  for (const auto& [name, spec] : m.tokenizers) {
    out["tokenizers"][name] = {{"file", spec.file},     {"max_tokens", spec.max_tokens},
                               {"pad_id", spec.pad_id}, {"template", spec.tmpl},
                               {"drop", spec.drop},     {"pad", spec.pad}};
  }
  out["limits"] = {{"batch", range_of(m.limits.batch)},
                   {"width", range_of(m.limits.width)},
                   {"height", range_of(m.limits.height)},
                   {"text_tokens", range_of(m.limits.text_tokens)},
                   {"multiple", m.limits.multiple}};
  out["latent"] = {{"channels", m.latent.channels},
                   {"patch", m.latent.patch},
                   {"vae_factor", m.latent.vae_factor},
                   {"scaling_factor", m.latent.scaling_factor},
                   {"shift_factor", m.latent.shift_factor}};
  out["schedule"] = {{"shift", m.schedule.shift},
                     {"guidance", m.schedule.guidance},
                     {"nfe", m.schedule.nfe},
                     {"max_nfe", m.schedule.max_nfe},
                     {"conditioning_dtype", m.schedule.conditioning_dtype},
                     {"final_step_ratio", m.schedule.final_step_ratio}};
  out["momentum"] = {{"modes", m.momentum.modes},
                     {"packed_channels", m.momentum.packed_channels},
                     {"patch_positions", m.momentum.patch_positions}};
  out["files"] = json::array();
  for (const auto& file : m.files) {
    out["files"].push_back({{"path", file.path}, {"sha256", file.sha256}, {"size", file.size}});
  }
  return out;
}

json answer(const json& request) {
  const json env = request.value("env", json::object());
  for (const auto& [name, value] : env.items()) {
    if (value.is_null()) {
      ::unsetenv(name.c_str());
    } else {
      ::setenv(name.c_str(), value.get<std::string>().c_str(), 1);
    }
  }
  const std::string op = request.at("op");
  if (op == "parse") return {{"manifest", manifest_of(arcflow::core::parse_manifest(bytes_of(request.at("hex"))))}};
  if (op == "repr") return {{"text", arcflow::core::python_repr(bytes_of(request.at("hex")))}};
  const bool allow_links = request.value("allow_links", false);
  if (op == "find") {
    const Bundle bundle = arcflow::core::find_bundle(request.at("source"), request.value("precision", std::string()),
                                                     request.value("target", std::string()),
                                                     request.at("built_in").get<std::string>(), allow_links);
    return {{"root", bundle.root().native()}};
  }
  const Bundle bundle = Bundle::open(request.at("path").get<std::string>(), allow_links);
  if (op == "read" || op == "map") {
    const std::string file = request.at("file");
    const arcflow::core::Blob blob = op == "read" ? bundle.read(file) : bundle.map(file);
    return {{"sha256", arcflow::core::sha256_hex(blob.data(), blob.size())}, {"size", blob.size()}};
  }
  if (op == "verify") {
    bundle.verify();
    arcflow::core::require_ours(bundle.manifest());
  }
  return {{"root", bundle.root().native()}};
}

}  // namespace

int main() {
  for (std::string line; std::getline(std::cin, line);) {
    json reply;
    try {
      reply = answer(json::parse(line));
      reply["ok"] = true;
    } catch (const arcflow::core::Error& error) {
      reply = {{"code", static_cast<int>(error.code())}, {"message", error.what()}};
    }
    std::cout << reply.dump(-1, ' ', false, json::error_handler_t::replace) << std::endl;
  }
}

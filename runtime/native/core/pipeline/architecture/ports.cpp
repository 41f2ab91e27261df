// Whether the networks of a manifest have the ports that its architecture feeds, found out before anything is loaded.
#include <algorithm>
#include <set>

#include "core/bundle/names.hpp"
#include "core/error.hpp"
#include "core/pipeline/architecture/architecture.hpp"

namespace arcflow::core {
namespace {

[[noreturn]] void refuse(const std::string& network, const std::string& message) {
  throw Error(ARCFLOW_BACKEND_UNAVAILABLE, "the " + network + " network cannot be fed: " + message +
                                               "; build the bundle again: python -m export.build");
}

std::string names(const std::vector<std::string>& all) { return all.empty() ? "none" : joined(all); }

}  // namespace

const Port* Architecture::find_input(const std::string& network, const std::string& input) const {
  const std::vector<Port>& inputs = manifest_.networks.at(network).inputs;
  const auto found = std::find_if(inputs.begin(), inputs.end(), [&](const Port& port) { return port.name == input; });
  return found == inputs.end() ? nullptr : &*found;
}

std::int64_t Architecture::width_of(const std::string& network, const std::string& input, std::int64_t multiple) const {
  const Port* port = find_input(network, input);
  if (port == nullptr || port->shape.empty() || !std::holds_alternative<std::int64_t>(port->shape.back())) {
    refuse(network, "its input " + input + " has no fixed width in the manifest");
  }
  const std::int64_t width = std::get<std::int64_t>(port->shape.back());
  if (width < 1 || width % multiple != 0) {
    refuse(network, "its input " + input + " has a width of " + std::to_string(width) + "; it must be a multiple of " +
                        std::to_string(multiple));
  }
  return width;
}

void Architecture::check_ports(const std::string& network, const std::vector<Rule>& inputs,
                               const std::vector<Rule>& outputs) const {
  const auto check = [&](const char* kind, const std::vector<Port>& ports, const std::vector<Rule>& rules) {
    std::vector<std::string> found;
    std::vector<std::string> expected;
    for (const Port& port : ports) found.push_back(port.name);
    for (const Rule& rule : rules) expected.emplace_back(rule.port);
    if (std::multiset<std::string>(found.begin(), found.end()) !=
        std::multiset<std::string>(expected.begin(), expected.end())) {
      refuse(network, std::string("its manifest has the ") + kind + " " + names(found) + "; " + manifest_.architecture +
                          " has " + names(expected));
    }
    for (const Rule& rule : rules) {
      const Port& port = *std::find_if(ports.begin(), ports.end(), [&](const Port& p) { return p.name == rule.port; });
      const bool is_float = port.dtype == "float32";
      const bool is_integer = port.dtype == "int64" || port.dtype == "int32";
      const bool fits = rule.kind == Kind::kFloat ? is_float : rule.kind == Kind::kInteger ? is_integer : !is_integer;
      if (!fits) refuse(network, "its port " + port.name + " is " + port.dtype);
      bool same = port.shape.size() == rule.dims.size();
      for (std::size_t i = 0; same && i < rule.dims.size(); ++i) {
        const auto* size = std::get_if<std::int64_t>(&port.shape[i]);
        same = size == nullptr || rule.dims[i] < 0 || *size == rule.dims[i];
      }
      if (!same) refuse(network, "the shape of its port " + port.name + " does not fit the rest of the manifest");
    }
  };
  const Network& spec = manifest_.networks.at(network);
  check("inputs", spec.inputs, inputs);
  check("outputs", spec.outputs, outputs);
}

void Architecture::check_backbone(std::vector<Rule> conditions) {
  const Momentum& momentum = manifest_.momentum;
  const Latent& latent = manifest_.latent;
  conditions.push_back({"hidden_states", Kind::kFloat, {-1, -1, momentum.packed_channels}});
  check_ports("backbone", conditions,
              {{"means", Kind::kField, {-1, -1, momentum.modes, momentum.packed_channels}},
               {"logweights", Kind::kField, {-1, -1, momentum.modes, momentum.patch_positions}},
               {"loggammas", Kind::kField, {-1, -1, momentum.modes - 1, momentum.patch_positions}}});
  const std::vector<Port>& field = manifest_.networks.at("backbone").outputs;
  const std::string& type = field.front().dtype;
  for (const Port& port : field) {
    if (port.dtype != type) refuse("backbone", "its outputs are of different types");
  }
  field_type_ = type == "float16" ? kArcflowFloat16 : type == "bfloat16" ? kArcflowBfloat16 : kArcflowFloat32;
  field_bytes_ = field_type_ == kArcflowFloat32 ? kFloatBytes : kFloatBytes / 2;
  const Network& vae = manifest_.networks.at("vae_decoder");
  if (vae.outputs.size() != 1) refuse("vae_decoder", "it has several outputs");
  check_ports("vae_decoder", {{"latents", Kind::kFloat, {-1, latent.channels, -1, -1}}},
              {{vae.outputs.front().name.c_str(), Kind::kFloat, {-1, 3, -1, -1}}});
}

}  // namespace arcflow::core

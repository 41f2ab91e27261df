// What the parts of a well-typed manifest must agree on (engines/checks.py).
#include <algorithm>
#include <functional>
#include <set>
#include <utility>

#include "core/bundle/manifest/manifest.hpp"
#include "core/bundle/names.hpp"
#include "core/error.hpp"
#include "core/text/python_text.hpp"

namespace arcflow::core {
namespace {

using Names = std::vector<std::string>;

[[noreturn]] void refuse(const std::string& message) {
  throw Error(ARCFLOW_BUNDLE_REJECTED, "manifest.json: " + message);
}

std::string number(std::int64_t value) { return std::to_string(value); }

template <class Map>
Names keys(const Map& map) {
  Names out;
  for (const auto& entry : map) out.push_back(entry.first);
  return out;
}

template <class Map>
void check_keys(const std::string& field, const std::string& architecture, const Map& found, const Names& expected) {
  const Names names = keys(found);
  if (names == expected) return;
  refuse(field + " are " + (names.empty() ? "none" : joined(names)) + "; " + architecture + " has " + joined(expected));
}

void need(const std::string& key, const std::string& path, const std::set<std::string>& listed) {
  if (listed.count(path) == 0)
    refuse(python_repr(key) + " needs " + python_repr(path) + ", which is not among its files");
}

bool strictly_sorted(const Names& names) {
  return std::adjacent_find(names.begin(), names.end(), std::greater_equal<>()) == names.end();
}

void check_files(const std::vector<FileEntry>& files) {
  Names paths;
  for (const FileEntry& entry : files) {
    if (const auto reason = unsafe_path(entry.path)) {
      refuse("the file path " + python_repr(entry.path) + " " + *reason + "; it must lie in the bundle");
    }
    if (entry.path == kManifestName) throw Error(ARCFLOW_BUNDLE_REJECTED, "manifest.json lists itself among its files");
    paths.push_back(entry.path);
  }
  if (!strictly_sorted(paths)) refuse("files are not sorted by path, or one is listed twice");
}

// The folder of a path that unsafe_path lets pass.
std::string_view folder_of(std::string_view path) {
  const auto slash = path.rfind('/');
  return slash == path.npos ? std::string_view() : path.substr(0, slash);
}

void check_network(const std::string& key, const Network& network, const std::set<std::string>& listed) {
  need(key, network.file, listed);
  for (const std::string& path : network.data) need(key, path, listed);
  if (network.format == "plan" && !network.data.empty()) {
    refuse("the plan of " + python_repr(key) + " has data files; a plan holds its weights itself");
  }
  const auto elsewhere = [&](const std::string& path) {
    return folder_of(path) != folder_of(network.file) || path == network.file;
  };
  if (std::any_of(network.data.begin(), network.data.end(), elsewhere)) {
    refuse("the data files of " + python_repr(key) + " do not lie beside " + python_repr(network.file));
  }
  if (!strictly_sorted(network.data)) {
    refuse("the data files of " + python_repr(key) + " are not sorted, or one is listed twice");
  }
}

void check_tokenizer(const std::string& key, const TokenizerSpec& tokenizer, const std::set<std::string>& listed) {
  need(key, tokenizer.file, listed);
  std::size_t marks = 0;
  for (auto at = tokenizer.tmpl.find("{}"); at != std::string::npos; at = tokenizer.tmpl.find("{}", at + 2)) ++marks;
  if (!tokenizer.tmpl.empty() && marks != 1) {
    refuse("the template of tokenizer " + python_repr(key) + " must hold \"{}\" once, where the prompt goes");
  }
  if (tokenizer.drop >= tokenizer.max_tokens) {
    refuse("tokenizer " + python_repr(key) + " drops " + number(tokenizer.drop) + " of " +
           number(tokenizer.max_tokens) + " tokens: nothing is left");
  }
}

void check_ranges(const Limits& limits) {
  const std::pair<const char*, const Range*> fields[] = {{"batch", &limits.batch},
                                                         {"width", &limits.width},
                                                         {"height", &limits.height},
                                                         {"text_tokens", &limits.text_tokens}};
  for (const auto& [field, range] : fields) {
    if (range->min <= range->opt && range->opt <= range->max) continue;
    refuse(std::string("limits.") + field + " is " + number(range->min) + "/" + number(range->opt) + "/" +
           number(range->max) + "; min <= opt <= max must hold");
  }
}

// No product overflows: every factor is a count, at most 2^20.
void check_geometry(const Manifest& manifest) {
  const Limits& limits = manifest.limits;
  const Latent& latent = manifest.latent;
  const std::int64_t token_pixels = latent.patch * latent.vae_factor;
  if (limits.multiple % token_pixels != 0) {
    refuse("limits.multiple is " + number(limits.multiple) + "; " + number(token_pixels) + " px must divide it");
  }
  const std::pair<const char*, const Range*> sides[] = {{"width", &limits.width}, {"height", &limits.height}};
  for (const auto& [field, range] : sides) {
    if (range->min % limits.multiple == 0 && range->opt % limits.multiple == 0 && range->max % limits.multiple == 0) {
      continue;
    }
    refuse(std::string("limits.") + field + " has a value that " + number(limits.multiple) + " does not divide");
  }
  const std::pair<const char*, std::size_t> factors[] = {{"scaling_factor", latent.scaling_factor.size()},
                                                         {"shift_factor", latent.shift_factor.size()}};
  for (const auto& [field, count] : factors) {
    if (count == 1 || count == static_cast<std::uint64_t>(latent.channels)) continue;
    refuse(std::string("latent.") + field + " has " + std::to_string(count) +
           " numbers; it needs 1, or one for each of " + number(latent.channels) + " channels");
  }
  const std::int64_t positions = latent.patch * latent.patch;
  const Momentum& momentum = manifest.momentum;
  if (momentum.patch_positions != positions || momentum.packed_channels != latent.channels * positions) {
    refuse("momentum has " + number(momentum.packed_channels) + " packed channels and " +
           number(momentum.patch_positions) + " patch positions; the latent makes " +
           number(latent.channels * positions) + " and " + number(positions));
  }
}

// Whether min <= opt <= max hold for every dimension of `shape` and meet its fixed ones.
bool fits(const ShapeRange& profile, const std::vector<Dimension>& shape) {
  const std::size_t rank = shape.size();
  if (profile.min.size() != rank || profile.opt.size() != rank || profile.max.size() != rank) return false;
  for (std::size_t i = 0; i < rank; ++i) {
    const std::int64_t low = profile.min[i], usual = profile.opt[i], high = profile.max[i];
    if (low > usual || usual > high) return false;
    const auto* fixed = std::get_if<std::int64_t>(&shape[i]);
    if (fixed != nullptr && (low != *fixed || high != *fixed)) return false;
  }
  return true;
}

std::string shown(const std::vector<Dimension>& shape) {
  Names parts;
  for (const Dimension& size : shape) {
    const auto* fixed = std::get_if<std::int64_t>(&size);
    parts.push_back(fixed != nullptr ? number(*fixed) : python_repr(std::get<std::string>(size)));
  }
  return "[" + joined(parts) + "]";
}

void check_profiles(const Manifest& manifest) {
  for (const auto& [key, network] : manifest.networks) {
    const auto& profile = manifest.engine->profiles.at(key);
    Names order;  // of equal names the first has the place and the last the shape, as in Python's dictionary
    std::map<std::string, const std::vector<Dimension>*> inputs;
    for (const Port& port : network.inputs) {
      if (inputs.count(port.name) == 0) order.push_back(port.name);
      inputs[port.name] = &port.shape;
    }
    if (keys(profile) != keys(inputs)) {
      refuse("engine.profiles of " + python_repr(key) + " are for " + joined(keys(profile)) + "; it takes " +
             joined(order));
    }
    for (const std::string& name : order) {
      if (fits(profile.at(name), *inputs[name])) continue;
      refuse("engine.profiles: input " + python_repr(name) + " of " + python_repr(key) + " does not fit " +
             shown(*inputs[name]) + ", or falls");
    }
  }
}

// Plans and a description of their engine go with a GPU's target, ONNX files with the others.
void check_engine(const Manifest& manifest) {
  const bool plans = !is_onnx_target(manifest.target);
  Names wrong;
  for (const auto& [key, network] : manifest.networks) {
    if (network.format != (plans ? "plan" : "onnx")) wrong.push_back(key);
  }
  const std::string target = python_repr(manifest.target);
  if (!wrong.empty()) {
    refuse("each network of target " + target + " is " + (plans ? "a plan" : "an ONNX file") + "; not so " +
           joined(wrong));
  }
  if (manifest.engine.has_value() != plans) {
    refuse("target is " + target + "; an engine must be described for plans, and for them only");
  }
  if (!plans) return;
  const Engine& engine = *manifest.engine;
  const Names allowed = capabilities_of_target(manifest.target);
  if (engine.compute_capabilities != allowed) {
    const Names& found = engine.compute_capabilities;
    refuse("target is " + target + ", which is " + joined(allowed) + "; its engine is for " +
           (found.empty() ? "none" : joined(found)));
  }
  const Names expected = networks_of(manifest.architecture);
  check_keys("engine.onnx", manifest.architecture, engine.onnx, expected);
  check_keys("engine.profiles", manifest.architecture, engine.profiles, expected);
  if (!engine.memory.empty()) check_keys("engine.memory", manifest.architecture, engine.memory, expected);
  check_profiles(manifest);
}

}  // namespace

void check_manifest(const Manifest& manifest) {
  check_files(manifest.files);
  std::set<std::string> listed;
  for (const FileEntry& entry : manifest.files) listed.insert(entry.path);
  const std::string& architecture = manifest.architecture;
  check_keys("networks", architecture, manifest.networks, networks_of(architecture));
  check_keys("tokenizers", architecture, manifest.tokenizers, tokenizers_of(architecture));
  for (const auto& [key, network] : manifest.networks) check_network(key, network, listed);
  for (const auto& [key, tokenizer] : manifest.tokenizers) check_tokenizer(key, tokenizer, listed);
  check_ranges(manifest.limits);
  check_geometry(manifest);
  const Schedule& schedule = manifest.schedule;
  if (schedule.nfe > schedule.max_nfe) {
    refuse("schedule.nfe is " + number(schedule.nfe) + ", above max_nfe " + number(schedule.max_nfe));
  }
  check_engine(manifest);
  if (manifest.quantisation.has_value() != (manifest.precision == "fp8")) {
    refuse("precision is " + python_repr(manifest.precision) +
           "; quantisation must be described where it is 'fp8', only there");
  }
}

std::optional<std::string> unsafe_path(std::string_view path) {
  const auto byte = [](char c) { return static_cast<unsigned char>(c); };
  if (std::any_of(path.begin(), path.end(), [&](char c) { return byte(c) >= 0x80; })) {
    return "has characters beyond ASCII";
  }
  if (path.empty() || std::any_of(path.begin(), path.end(), [&](char c) { return byte(c) < 0x20 || c == 0x7F; })) {
    return "is empty or has control characters";
  }
  if (path.find('\\') != path.npos) return "has a backslash";
  if (path[0] == '/' || (path.size() > 1 && path[1] == ':')) return "is absolute";
  const std::string padded = "/" + std::string(path) + "/";
  if (padded.find("/../") != padded.npos) return "leaves the bundle";
  if (padded.find("//") != padded.npos || padded.find("/./") != padded.npos) return "is not in its shortest form";
  return std::nullopt;
}

}  // namespace arcflow::core

// The manifest of a bundle: the structs of engines/schema.py, read as strictly and refused in the same words.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace arcflow::core {

// A dimension: a number, or the name of a symbolic one.
using Dimension = std::variant<std::int64_t, std::string>;

struct Port {
  std::string name;
  std::string dtype;  // float32, float16, bfloat16, int64, int32
  std::vector<Dimension> shape;
};

struct Network {
  std::string file;
  std::vector<Port> inputs;
  std::vector<Port> outputs;
  std::string format = "onnx";  // or "plan"
  std::vector<std::string> data;
  std::string compute = "float32";
};

struct Range {
  std::int64_t min = 1, opt = 1, max = 1;
};

struct Limits {
  Range batch, width, height, text_tokens;
  std::int64_t multiple = 1;
};

struct Latent {
  std::int64_t channels = 1, patch = 1, vae_factor = 1;
  std::vector<double> scaling_factor, shift_factor;
};

struct Schedule {
  double shift = 1.0, guidance = 0.0;
  std::int64_t nfe = 1;
  double final_step_ratio = 1.0;
  std::string conditioning_dtype = "float32";  // or "bfloat16"
  std::int64_t max_nfe = 64;
};

struct Momentum {
  std::int64_t modes = 1, packed_channels = 1, patch_positions = 1;
};

struct TokenizerSpec {
  std::string file;
  std::int64_t max_tokens = 1, pad_id = 0;
  std::string tmpl;  // "template" in the file
  std::int64_t drop = 0;
  std::string pad = "max";  // or "longest"
};

struct ShapeRange {
  std::vector<std::int64_t> min, opt, max;
};

struct Engine {
  std::string flavour, version;
  std::vector<std::string> compute_capabilities;
  std::int64_t opt_level = 0;
  std::map<std::string, std::map<std::string, ShapeRange>> profiles;
  std::map<std::string, std::string> onnx;
  std::string seal;
};

struct FileEntry {
  std::string path, sha256;
  std::int64_t size = 0;
};

// What the runtime needs of a manifest. Quantisation, gate and parity are checked by the reader and not kept.
struct Manifest {
  std::string model, architecture, precision, target;
  std::map<std::string, Network> networks;
  Limits limits;
  Latent latent;
  Schedule schedule;
  Momentum momentum;
  std::map<std::string, TokenizerSpec> tokenizers;
  std::map<std::string, std::string> parents, tools;
  std::optional<Engine> engine;
  std::vector<FileEntry> files;
  std::string digest;
};

// Decodes and checks the bytes of a manifest.json, its own digest included (engines/manifest.py, parse_manifest).
// Throws Error(ARCFLOW_BUNDLE_REJECTED) with the text that Python gives.
Manifest parse_manifest(std::string_view data);

}  // namespace arcflow::core

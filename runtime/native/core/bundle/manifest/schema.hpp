// The structs and constants of a manifest, and the order in which bundles are preferred. Written by
// `python -m scripts.manifest_schema` from engines/schema.py and engines/locate.py.
#pragma once

#include <cstdint>
#include <map>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace arcflow::core {

constexpr std::int64_t kCountMax = 2097151;
constexpr std::int64_t kSchemaVersion = 4;
constexpr const char* kBundleKind = "arcflow-bundle";
constexpr const char* kManifestName = "manifest.json";
constexpr const char* kSourceTarget = "onnx";
constexpr std::int64_t kLevelsARun = 8;
constexpr const char* kEmbedded = "tiny";
constexpr std::string_view kTargets[] = {"cpu", "sm120", "sm100", "sm90", "sm89", "sm86", "sm80", "rtx", "onnx"};
constexpr std::string_view kCpuPrecisions[] = {"fp32", "fp16", "fp8"};
constexpr std::string_view kGpuPrecisions[] = {"bf16", "fp16", "fp8", "fp32"};
constexpr std::string_view kWithoutFp8[] = {"sm80", "sm86"};

std::vector<std::string> networks_of(std::string_view name);
std::vector<std::string> tokenizers_of(std::string_view name);
std::vector<std::string> capabilities_of_target(std::string_view name);
bool is_onnx_target(std::string_view name);

// A dimension: a number, or the name of a symbolic one.
using Dimension = std::variant<std::int64_t, std::string>;

// One input or output of a network; a dimension that is a string is symbolic (free within the limits).
struct Port {
  std::string name;
  std::string dtype;
  std::vector<Dimension> shape;
};

// One network of the bundle: its file, its ports, and what kind of file it is.
struct Network {
  std::string file;
  std::vector<Port> inputs;
  std::vector<Port> outputs;
  std::string format = "onnx";
  std::vector<std::string> data;
  std::string compute = "float32";
};

// The least, usual and greatest value of a dimension.
struct Range {
  std::int64_t min = 1;
  std::int64_t opt = 1;
  std::int64_t max = 1;
};

// Shapes the networks take: images a call, pixels (multiples of ``multiple``), text tokens of the backbone.
struct Limits {
  Range batch;
  Range width;
  Range height;
  Range text_tokens;
  std::int64_t multiple = 1;
};

// Geometry of the latent: ``vae_factor`` pixels a latent cell, ``patch`` x ``patch`` cells a token.
struct Latent {
  std::int64_t channels = 1;
  std::int64_t patch = 1;
  std::int64_t vae_factor = 1;
  std::vector<double> scaling_factor;
  std::vector<double> shift_factor;
};

// Constants of the sigma schedule, the guidance fed to the backbone, and the evaluations: usual and most.
struct Schedule {
  double shift = 1.0;
  double guidance = 0.0;
  std::int64_t nfe = 1;
  double final_step_ratio = 1.0;
  std::string conditioning_dtype;
  std::int64_t max_nfe = 64;
};

// Shape of the momentum field: K modes, packed channels of a token, patch positions that share a gate.
struct Momentum {
  std::int64_t modes = 1;
  std::int64_t packed_channels = 1;
  std::int64_t patch_positions = 1;
};

// A ``tokenizer.json`` and how its ids are brought to length (start and end ids come from the file itself).
struct TokenizerSpec {
  std::string file;
  std::int64_t max_tokens = 1;
  std::int64_t pad_id = 0;
  std::string tmpl;
  std::int64_t drop = 0;
  std::string pad = "max";
};

// How far a network was from its original at one shape when the bundle was built, and what was allowed.
struct ParityResult {
  std::string network;
  std::map<std::string, std::int64_t> shape;
  double relative_error = 0.0;
  double limit = 0.0;
  bool twin = false;
  std::string device;
};

// The least, usual and greatest shape of one input: an optimisation profile.
struct ShapeRange {
  std::vector<std::int64_t> min;
  std::vector<std::int64_t> opt;
  std::vector<std::int64_t> max;
};

// Bytes that a plan takes of a GPU: its weights, and what an evaluation at its greatest shapes works in.
struct PlanMemory {
  std::int64_t weights = 0;
  std::int64_t activations = 0;
};

// What makes the plans of a bundle valid: anything that differs on a machine makes them unusable there.
struct Engine {
  std::string flavour;
  std::string version;
  std::vector<std::string> compute_capabilities;
  std::int64_t opt_level = 0;
  std::map<std::string, std::map<std::string, ShapeRange>> profiles;
  std::map<std::string, std::string> onnx;
  std::map<std::string, PlanMemory> memory;
  std::string seal;
};

// How an FP8 backbone was quantised.
struct Quantisation {
  std::string calibration;
  std::string method;
  bool synthetic = false;
  std::vector<std::string> layers;
  std::map<std::string, std::vector<std::string>> stored;
  std::vector<std::string> kept_high;
  std::map<std::string, std::string> options;
};

// One measure of the quality gate ("latent", "image"): what was found and what was allowed.
struct GateResult {
  std::string measure;
  double value = 0.0;
  double limit = 0.0;
};

// The end of the path against the unquantised student: relative L2 errors, means over ``images`` at ``nfe``.
struct Gate {
  std::int64_t nfe = 1;
  std::int64_t images = 1;
  std::int64_t width = 1;
  std::int64_t height = 1;
  std::vector<GateResult> results;
};

// A file of the bundle: posix path relative to its root, sha256 in hexadecimal, size in bytes.
struct FileEntry {
  std::string path;
  std::string sha256;
  std::int64_t size = 0;
};

// Everything the runtime must know of a bundle. ``files`` and ``digest`` are filled in by the writer.
struct Manifest {
  std::string model;
  std::string architecture;
  std::string precision;
  std::string target;
  std::map<std::string, Network> networks;
  Limits limits;
  Latent latent;
  Schedule schedule;
  Momentum momentum;
  std::map<std::string, TokenizerSpec> tokenizers;
  std::map<std::string, std::string> parents;
  std::map<std::string, std::string> tools;
  std::vector<ParityResult> parity;
  std::optional<Engine> engine;
  std::optional<Quantisation> quantisation;
  std::optional<Gate> gate;
  std::vector<FileEntry> files;
  std::string digest;
  std::string kind = "arcflow-bundle";
  std::int64_t schema_version = 4;
};

// The fields of a manifest.json. Throws readers::JsonError where they do not follow the schema.
Manifest read_manifest_fields(const nlohmann::ordered_json& document);

}  // namespace arcflow::core

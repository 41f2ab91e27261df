// What the architectures share: the backbone's state and its field, noise levels, the VAE, and batches of prompts.
#include "core/pipeline/architecture/architecture.hpp"

#include <algorithm>

#include "core/error.hpp"
#include "core/numerics/compute.hpp"

namespace arcflow::core {
namespace {

constexpr const char* kBackbone = "backbone";
constexpr const char* kVae = "vae_decoder";
constexpr std::size_t kUsualEvaluations = 64;

std::vector<float> as_floats(const std::vector<double>& values, std::int64_t count) {
  std::vector<float> floats;
  for (const double value : values) floats.push_back(static_cast<float>(value));
  // The host takes one count for both factors.
  if (floats.size() == 1) floats.resize(static_cast<std::size_t>(count), floats.front());
  return floats;
}

}  // namespace

EncodedRows::EncodedRows(std::size_t prompts, std::uint64_t row_bytes, std::int64_t most)
    : prompts_(prompts), row_bytes_(row_bytes) {
  most_ = std::max<std::uint64_t>(1, std::min<std::uint64_t>(static_cast<std::uint64_t>(most), prompts));
  stride_ = aligned(product({static_cast<std::int64_t>(most_), static_cast<std::int64_t>(row_bytes)}));
}

std::unique_ptr<const Architecture> Architecture::of(const Manifest& manifest) {
  if (manifest.architecture == "flux") return make_flux(manifest);
  if (manifest.architecture == "qwen") return make_qwen(manifest);
  throw Error(ARCFLOW_BACKEND_UNAVAILABLE,
              "the architecture '" + manifest.architecture + "' is not one this library runs");
}

Architecture::Architecture(const Manifest& manifest) : manifest_(manifest) {
  const Latent& latent = manifest_.latent;
  const bool apart = latent.scaling_factor.size() != 1 || latent.shift_factor.size() != 1;
  scaling_ = as_floats(latent.scaling_factor, apart ? latent.channels : 1);
  shift_ = as_floats(latent.shift_factor, apart ? latent.channels : 1);
}

Grid Architecture::grid(std::int64_t width, std::int64_t height) const noexcept {
  const std::int64_t token_pixels = manifest_.latent.patch * manifest_.latent.vae_factor;
  return {height / token_pixels, width / token_pixels};
}

std::uint64_t Architecture::token_values(const Grid& grid) const {
  return product({grid.rows, grid.columns, manifest_.momentum.packed_channels});
}

std::uint64_t Architecture::image_values(const Grid& grid) const {
  const std::int64_t token_pixels = manifest_.latent.patch * manifest_.latent.vae_factor;
  return product({3, grid.rows, token_pixels, grid.columns, token_pixels});
}

void Architecture::prepare(Device& device, const BatchShape& shape, const std::vector<double>& sigmas) const {
  const Momentum& momentum = manifest_.momentum;
  const std::int64_t batch = shape.batch;
  const std::int64_t tokens = shape.grid.tokens();
  const auto field = [&](std::int64_t modes, std::int64_t width) {
    return product({batch, tokens, modes, width, field_bytes_});
  };
  const std::uint64_t state = product({batch, static_cast<std::int64_t>(token_values(shape.grid)), kFloatBytes});
  device.need(Slot::kTokens, state);
  device.need(Slot::kMeans, field(momentum.modes, momentum.packed_channels));
  device.need(Slot::kLogweights, field(momentum.modes, momentum.patch_positions));
  device.need(Slot::kLoggammas, field(momentum.modes - 1, momentum.patch_positions));

  const std::vector<float> image = image_positions(shape.grid);
  const std::vector<float> text = text_positions(shape);
  device.put(Slot::kImageIds, image.data(), image.size() * sizeof(float));
  device.put(Slot::kTextIds, text.data(), text.size() * sizeof(float));
  std::vector<float> levels;
  for (std::size_t step = 0; step + 1 < sigmas.size(); ++step) levels.push_back(as_trained(sigmas[step]));
  condition(device, shape, levels);
}

std::uint64_t Architecture::levels_offset(std::int64_t batch, std::int64_t a_run, std::uint64_t run) {
  return run * aligned(product({a_run, batch, kFloatBytes}));
}

void Architecture::write_levels(Device& device, std::int64_t batch, const std::vector<float>& levels,
                                std::int64_t a_run) const {
  const auto each = static_cast<std::uint64_t>(a_run);
  const auto runs = [each](std::uint64_t count) { return (count + each - 1) / each; };
  // Room for any usual number of evaluations: a buffer that grows costs what was recorded.
  device.need(Slot::kTimestep, levels_offset(batch, a_run, runs(kUsualEvaluations)));
  std::vector<float> rows(levels_offset(batch, a_run, runs(levels.size())) / sizeof(float));
  for (std::uint64_t level = 0; level < levels.size(); ++level) {
    const std::uint64_t row = level % each * static_cast<std::uint64_t>(batch);
    const std::uint64_t at = levels_offset(batch, a_run, level / each) / sizeof(float) + row;
    std::fill_n(rows.begin() + static_cast<std::ptrdiff_t>(at), batch, levels[level]);
  }
  device.put(Slot::kTimestep, rows.data(), rows.size() * sizeof(float));
}

float Architecture::as_trained(double value) const noexcept {
  const auto level = static_cast<float>(value);
  return manifest_.schedule.conditioning_dtype == "float32" ? level : bfloat16_level(level);
}

void Architecture::evaluate(Device& device, const BatchShape& shape, std::size_t step) const {
  const Momentum& momentum = manifest_.momentum;
  const std::int64_t batch = shape.batch;
  const std::int64_t tokens = shape.grid.tokens();
  std::vector<Binding> inputs = conditions(shape, step);
  inputs.push_back({"hidden_states", Slot::kTokens, {batch, tokens, momentum.packed_channels}});
  device.run(kBackbone, inputs,
             {{"means", Slot::kMeans, {batch, tokens, momentum.modes, momentum.packed_channels}},
              {"logweights", Slot::kLogweights, {batch, tokens, momentum.modes, momentum.patch_positions}},
              {"loggammas", Slot::kLoggammas, {batch, tokens, momentum.modes - 1, momentum.patch_positions}}});
}

void Architecture::advance(Device& device, const BatchShape& shape, Slot x, Slot out, double sigma_src,
                           double sigma_b) const {
  const Momentum& momentum = manifest_.momentum;
  ArcflowHostAdvance segment{};
  segment.type = field_type_;
  segment.batch = shape.batch;
  segment.tokens = shape.grid.tokens();
  segment.modes = momentum.modes;
  segment.channels = momentum.packed_channels;
  segment.positions = momentum.patch_positions;
  segment.sigma_src = segment.sigma_a = sigma_src;
  segment.sigma_b = sigma_b;
  device.advance(x, out, segment);
}

ArcflowHostUnpack Architecture::layout(const BatchShape& shape) const {
  ArcflowHostUnpack layout{};
  layout.batch = shape.batch;
  layout.rows = shape.grid.rows;
  layout.columns = shape.grid.columns;
  layout.channels = manifest_.latent.channels;
  layout.patch = manifest_.latent.patch;
  return layout;
}

void Architecture::unpack(Device& device, const BatchShape& shape, Slot tokens) const {
  device.need(Slot::kLatents, product({shape.batch, static_cast<std::int64_t>(token_values(shape.grid)), kFloatBytes}));
  device.unpack(tokens, Slot::kLatents, layout(shape));
}

void Architecture::decode(Device& device, const BatchShape& shape, Slot tokens) const {
  const Latent& latent = manifest_.latent;
  const Grid& grid = shape.grid;
  device.need(Slot::kVaeLatents, product({shape.batch, static_cast<std::int64_t>(token_values(grid)), kFloatBytes}));
  device.need(Slot::kImages, product({shape.batch, static_cast<std::int64_t>(image_values(grid)), kFloatBytes}));
  ArcflowHostUnpack scaled = layout(shape);
  scaled.scaling = scaling_.data();
  scaled.shift = shift_.data();
  scaled.factor_count = static_cast<std::int64_t>(scaling_.size());
  device.unpack(tokens, Slot::kVaeLatents, scaled);
  const std::int64_t high = grid.rows * latent.patch;
  const std::int64_t wide = grid.columns * latent.patch;
  const char* images = manifest_.networks.at(kVae).outputs.front().name.c_str();
  device.run(kVae, {{"latents", Slot::kVaeLatents, {shape.batch, latent.channels, high, wide}}},
             {{images, Slot::kImages, {shape.batch, 3, high * latent.vae_factor, wide * latent.vae_factor}}});
}

EncodedRows Architecture::encode_in_batches(Device& device, const std::string& network,
                                            const std::vector<TextInput>& inputs, std::size_t prompts, Slot out,
                                            const std::vector<std::int64_t>& row) const {
  std::int64_t row_values = 1;
  for (const std::int64_t size : row) row_values = static_cast<std::int64_t>(product({row_values, size}));
  const std::int64_t most = manifest_.limits.batch.max;
  const EncodedRows rows(prompts, product({row_values, kFloatBytes}), most);
  device.need(out, rows.bytes());
  const char* output = manifest_.networks.at(network).outputs.front().name.c_str();
  const auto step = static_cast<std::size_t>(most);
  for (std::size_t first = 0; first < prompts; first += step) {
    const std::size_t count = std::min(step, prompts - first);
    const auto batch = static_cast<std::int64_t>(count);
    std::vector<Binding> bound;
    for (const TextInput& input : inputs) {
      const std::size_t length = input.values.size() / prompts;
      write_integers(device, network, input.port, input.slot, input.values.data() + first * length, count * length);
      bound.push_back({input.port, input.slot, {batch, static_cast<std::int64_t>(length)}});
    }
    std::vector<std::int64_t> dims{batch};
    dims.insert(dims.end(), row.begin(), row.end());
    device.run(network, bound, {{output, out, dims, rows.offset(first)}});
  }
  return rows;
}

void Architecture::write_integers(Device& device, const std::string& network, const char* input, Slot slot,
                                  const std::int64_t* values, std::size_t count) const {
  const Port* port = find_input(network, input);
  if (port != nullptr && port->dtype == "int32") {
    std::vector<std::int32_t> narrow(count);
    std::transform(values, values + count, narrow.begin(), [](std::int64_t v) { return static_cast<std::int32_t>(v); });
    device.put(slot, narrow.data(), count * sizeof(std::int32_t));
  } else {
    device.put(slot, values, count * sizeof(std::int64_t));
  }
}

}  // namespace arcflow::core

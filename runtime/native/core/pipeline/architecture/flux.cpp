// The networks of a FLUX bundle: how each is fed (runtime/architectures/flux.py).
#include <algorithm>

#include "core/error.hpp"
#include "core/numerics/compute.hpp"
#include "core/pipeline/architecture/architecture.hpp"

namespace arcflow::core {
namespace {

constexpr const char* kConditioner = "conditioner";

// CLIP, T5, the conditioner, the backbone and the VAE decoder.
class Flux final : public Architecture {
 public:
  explicit Flux(const Manifest& manifest)
      : Architecture(manifest),
        pooled_(width_of(kConditioner, "pooled_projections")),
        sequence_(width_of(kConditioner, "encoder_hidden_states")),
        modulation_(width_of("backbone", "modulation", kAlignment / kFloatBytes)),
        context_(width_of("backbone", "context")),
        rotary_(width_of("backbone", "image_rotary")) {
    check_encoder("clip", {-1, pooled_});
    check_encoder("t5", {-1, -1, sequence_});
    const std::vector<Rule> made{{"modulation", Kind::kFloat, {-1, modulation_}},
                                 {"context", Kind::kFloat, {-1, -1, context_}},
                                 {"image_rotary", Kind::kFloat, {-1, rotary_}},
                                 {"text_rotary", Kind::kFloat, {-1, rotary_}}};
    check_ports(kConditioner,
                {{"timestep", Kind::kFloat, {-1}},
                 {"guidance", Kind::kFloat, {-1}},
                 {"pooled_projections", Kind::kFloat, {-1, pooled_}},
                 {"encoder_hidden_states", Kind::kFloat, {-1, -1, sequence_}},
                 {"img_ids", Kind::kFloat, {-1, 3}},
                 {"txt_ids", Kind::kFloat, {-1, 3}}},
                made);
    check_backbone(made);
  }

  Encoded encode(Device& device, const TokensByEncoder& tokens) const override {
    const TokenIds& clip = tokens.at("clip");
    const TokenIds& t5 = tokens.at("t5");
    Encoded encoded;
    encoded.tokens = static_cast<std::int64_t>(t5.length);
    encoded.pooled = encode_in_batches(device, "clip", {{"input_ids", Slot::kIds, clip.ids}}, clip.prompts,
                                       Slot::kPooledAll, {pooled_});
    encoded.sequence = encode_in_batches(device, "t5", {{"input_ids", Slot::kIds, t5.ids}}, t5.prompts,
                                         Slot::kSequenceAll, {encoded.tokens, sequence_});
    return encoded;
  }

  std::int64_t gather(Device& device, const Encoded& encoded, const std::vector<std::size_t>& prompts) const override {
    const std::uint64_t pooled = encoded.pooled.row_bytes();
    const std::uint64_t sequence = encoded.sequence.row_bytes();
    // With room for the rows of the other noise levels, which condition() fills in.
    device.need(Slot::kPooled, kLevelsARun * prompts.size() * pooled);
    device.need(Slot::kSequence, prompts.size() * sequence);
    for (std::size_t i = 0; i < prompts.size(); ++i) {
      device.copy(Slot::kPooledAll, encoded.pooled.offset(prompts[i]), Slot::kPooled, i * pooled, pooled);
      device.copy(Slot::kSequenceAll, encoded.sequence.offset(prompts[i]), Slot::kSequence, i * sequence, sequence);
    }
    return encoded.tokens;
  }

 private:
  // Noise level and guidance are rounded before the factor of 1000 and after it.
  float bfloat16_level(float value) const noexcept override { return scaled_bfloat16(value); }

  std::vector<Binding> conditions(const BatchShape& shape, std::size_t step) const override {
    const std::uint64_t row = product({shape.batch, modulation_, kFloatBytes});
    return {{"modulation", Slot::kModulation, {shape.batch, modulation_}, step * row},
            {"context", Slot::kContext, {shape.batch, shape.text_tokens, context_}},
            {"image_rotary", Slot::kImageRotary, {shape.grid.tokens(), rotary_}},
            {"text_rotary", Slot::kTextRotary, {shape.text_tokens, rotary_}}};
  }

  // Runs the conditioner for all images at each of the noise levels: row `level * batch + image`.
  void condition(Device& device, const BatchShape& shape, const std::vector<float>& levels) const override {
    const auto [batch, grid, text] = shape;
    const auto count = static_cast<std::int64_t>(levels.size());
    const std::int64_t most = std::min(count, kLevelsARun) * batch;
    write_levels(device, batch, levels, kLevelsARun);
    const std::vector<float> guidance(static_cast<std::size_t>(most), as_trained(manifest_.schedule.guidance));
    device.put(Slot::kGuidance, guidance.data(), guidance.size() * sizeof(float));
    const std::uint64_t pooled = product({batch, pooled_, kFloatBytes});
    for (std::int64_t level = 1; level * batch < most; ++level) {
      device.copy(Slot::kPooled, 0, Slot::kPooled, static_cast<std::uint64_t>(level) * pooled, pooled);
    }
    // Room for all that one run makes: a buffer that grows costs what was recorded.
    device.need(Slot::kModulation, product({std::max(count, kLevelsARun), batch, modulation_, kFloatBytes}));
    device.need(Slot::kContext, product({batch, text, context_, kFloatBytes}));
    device.need(Slot::kImageRotary, product({grid.tokens(), rotary_, kFloatBytes}));
    device.need(Slot::kTextRotary, product({text, rotary_, kFloatBytes}));
    for (std::int64_t first = 0; first < count; first += kLevelsARun) {
      const std::int64_t rows = std::min(kLevelsARun, count - first) * batch;
      const auto run = static_cast<std::uint64_t>(first / kLevelsARun);
      std::vector<Binding> made = conditions(shape, static_cast<std::size_t>(first));
      made.front().dims.front() = rows;  // the modulation of this run's levels
      device.run(kConditioner,
                 {{"timestep", Slot::kTimestep, {rows}, levels_offset(batch, kLevelsARun, run)},
                  {"guidance", Slot::kGuidance, {rows}},
                  {"pooled_projections", Slot::kPooled, {rows, pooled_}},
                  {"encoder_hidden_states", Slot::kSequence, {batch, text, sequence_}},
                  {"img_ids", Slot::kImageIds, {grid.tokens(), 3}},
                  {"txt_ids", Slot::kTextIds, {text, 3}}},
                 made);
    }
  }

  std::vector<float> image_positions(const Grid& grid) const override { return image_ids(grid.rows, grid.columns); }
  // The text has none.
  std::vector<float> text_positions(const BatchShape& shape) const override {
    return std::vector<float>(static_cast<std::size_t>(shape.text_tokens) * 3, 0.0F);
  }

  void check_encoder(const std::string& name, const std::vector<std::int64_t>& output) const {
    const Network& spec = manifest_.networks.at(name);
    const TokenizerSpec& tokenizer = manifest_.tokenizers.at(name);
    const char* port = spec.outputs.size() == 1 ? spec.outputs.front().name.c_str() : "one output";
    const std::int64_t length = tokenizer.pad == "max" ? tokenizer.max_tokens : -1;
    check_ports(name, {{"input_ids", Kind::kInteger, {-1, length}}}, {{port, Kind::kFloat, output}});
  }

  std::int64_t pooled_, sequence_, modulation_, context_, rotary_;  // widths
};

}  // namespace

std::unique_ptr<const Architecture> make_flux(const Manifest& manifest) { return std::make_unique<Flux>(manifest); }

}  // namespace arcflow::core

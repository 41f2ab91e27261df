// The networks of a FLUX bundle: how each is fed (runtime/architectures/flux.py).
#include "core/error.hpp"
#include "core/numerics/compute.hpp"
#include "core/pipeline/architecture/architecture.hpp"

namespace arcflow::core {
namespace {

// CLIP, T5, the backbone and the VAE decoder.
class Flux final : public Architecture {
 public:
  explicit Flux(const Manifest& manifest)
      : Architecture(manifest),
        pooled_(width_of("backbone", "pooled_projections")),
        sequence_(width_of("backbone", "encoder_hidden_states")) {
    check_encoder("clip", {-1, pooled_});
    check_encoder("t5", {-1, -1, sequence_});
    check_backbone({{"encoder_hidden_states", Kind::kFloat, {-1, -1, sequence_}},
                    {"pooled_projections", Kind::kFloat, {-1, pooled_}},
                    {"guidance", Kind::kFloat, {-1}},
                    {"txt_ids", Kind::kFloat, {-1, 3}}});
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
    device.need(Slot::kPooled, prompts.size() * pooled);
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

  // The text has no positions.
  std::vector<Binding> text_inputs(const BatchShape& shape) const override {
    return {{"encoder_hidden_states", Slot::kSequence, {shape.batch, shape.text_tokens, sequence_}},
            {"pooled_projections", Slot::kPooled, {shape.batch, pooled_}},
            {"guidance", Slot::kGuidance, {shape.batch}},
            {"txt_ids", Slot::kTextIds, {shape.text_tokens, 3}}};
  }

  std::vector<float> image_positions(const Grid& grid) const override { return image_ids(grid.rows, grid.columns); }
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

  std::int64_t pooled_, sequence_;  // widths
};

}  // namespace

std::unique_ptr<const Architecture> make_flux(const Manifest& manifest) { return std::make_unique<Flux>(manifest); }

}  // namespace arcflow::core

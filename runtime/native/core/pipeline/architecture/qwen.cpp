// The networks of a Qwen-Image bundle: how each is fed (runtime/architectures/qwen.py).
#include <algorithm>

#include "core/error.hpp"
#include "core/numerics/compute.hpp"
#include "core/pipeline/architecture/architecture.hpp"

namespace arcflow::core {
namespace {

// Values [prompts, length] with zeros to the right of each row. Padding changes nothing there: a token sees those
// before it only.
std::vector<std::int64_t> widened(const std::vector<std::int64_t>& values, std::size_t prompts, std::size_t length,
                                  std::size_t width) {
  std::vector<std::int64_t> wide(prompts * width, 0);
  for (std::size_t row = 0; row < prompts; ++row) {
    std::copy_n(values.begin() + static_cast<std::ptrdiff_t>(row * length), length,
                wide.begin() + static_cast<std::ptrdiff_t>(row * width));
  }
  return wide;
}

// The text path of Qwen2.5-VL, the backbone and the VAE decoder.
class Qwen final : public Architecture {
 public:
  explicit Qwen(const Manifest& manifest)
      : Architecture(manifest),
        drop_(manifest.tokenizers.at("text").drop),
        least_(manifest.limits.text_tokens.min),
        sequence_(width_of("backbone", "encoder_hidden_states")) {
    const Network& text = manifest_.networks.at("text");
    const char* port = text.outputs.size() == 1 ? text.outputs.front().name.c_str() : "one output";
    check_ports("text", {{"input_ids", Kind::kInteger, {-1, -1}}, {"attention_mask", Kind::kInteger, {-1, -1}}},
                {{port, Kind::kFloat, {-1, -1, sequence_}}});
    check_backbone({{"encoder_hidden_states", Kind::kFloat, {-1, -1, sequence_}},
                    {"encoder_hidden_states_mask", Kind::kInteger, {-1, -1}},
                    {"timestep", Kind::kFloat, {-1}},
                    {"img_ids", Kind::kFloat, {-1, 3}},
                    {"txt_ids", Kind::kFloat, {-1}}});
  }

  // The template's head is dropped when the encodings are gathered.
  Encoded encode(Device& device, const TokensByEncoder& tokens) const override {
    const TokenIds& text = tokens.at("text");
    const std::size_t width = std::max(text.length, static_cast<std::size_t>(drop_ + least_));
    const std::vector<std::int64_t> ids = widened(text.ids, text.prompts, text.length, width);
    const std::vector<std::int64_t> mask = widened(text.mask, text.prompts, text.length, width);
    Encoded encoded;
    encoded.tokens = static_cast<std::int64_t>(width);
    for (std::size_t row = 0; row < text.prompts; ++row) {
      const auto begin = mask.begin() + static_cast<std::ptrdiff_t>(row * width);
      encoded.lengths.push_back(std::count(begin + drop_, begin + static_cast<std::ptrdiff_t>(width), 1));
    }
    encoded.sequence =
        encode_in_batches(device, "text", {{"input_ids", Slot::kIds, ids}, {"attention_mask", Slot::kIdsMask, mask}},
                          text.prompts, Slot::kSequenceAll, {encoded.tokens, sequence_});
    return encoded;
  }

  // As long as the longest of these prompts needs; zero where there is no token.
  std::int64_t gather(Device& device, const Encoded& encoded, const std::vector<std::size_t>& prompts) const override {
    std::int64_t width = least_;
    for (const std::size_t prompt : prompts) width = std::max(width, encoded.lengths[prompt]);
    const std::uint64_t token = product({sequence_, kFloatBytes});
    const std::uint64_t row = product({width, sequence_, kFloatBytes});
    if (device.need(Slot::kZeros, row)) {
      const std::vector<char> zeros(row);
      device.write(Slot::kZeros, 0, zeros.data(), row);
    }
    device.need(Slot::kSequence, prompts.size() * row);
    std::vector<std::int64_t> mask(prompts.size() * static_cast<std::size_t>(width), 0);
    for (std::size_t i = 0; i < prompts.size(); ++i) {
      const std::int64_t length = encoded.lengths[prompts[i]];
      const std::uint64_t used = static_cast<std::uint64_t>(length) * token;
      const std::uint64_t from = encoded.sequence.offset(prompts[i]) + static_cast<std::uint64_t>(drop_) * token;
      if (used > 0) device.copy(Slot::kSequenceAll, from, Slot::kSequence, i * row, used);
      if (used < row) device.copy(Slot::kZeros, 0, Slot::kSequence, i * row + used, row - used);
      std::fill_n(mask.begin() + static_cast<std::ptrdiff_t>(i) * width, length, 1);
    }
    write_integers(device, "backbone", "encoder_hidden_states_mask", Slot::kSequenceMask, mask.data(), mask.size());
    return width;
  }

 private:
  // The noise level is rounded once: the factor of 1000 comes in float32.
  float bfloat16_level(float value) const noexcept override { return to_bfloat16(value); }

  // Guidance was distilled into the student and is not fed.
  std::vector<Binding> conditions(const BatchShape& shape, std::size_t step) const override {
    return {{"encoder_hidden_states", Slot::kSequence, {shape.batch, shape.text_tokens, sequence_}},
            {"encoder_hidden_states_mask", Slot::kSequenceMask, {shape.batch, shape.text_tokens}},
            {"timestep", Slot::kTimestep, {shape.batch}, levels_offset(shape.batch, 1, step)},
            {"img_ids", Slot::kImageIds, {shape.grid.tokens(), 3}},
            {"txt_ids", Slot::kTextIds, {shape.text_tokens}}};
  }
  void condition(Device& device, const BatchShape& shape, const std::vector<float>& levels) const override {
    write_levels(device, shape.batch, levels, 1);
  }

  std::vector<float> image_positions(const Grid& grid) const override {
    return centred_image_ids(grid.rows, grid.columns);
  }
  std::vector<float> text_positions(const BatchShape& shape) const override {
    return core::text_positions(shape.grid.rows, shape.grid.columns, shape.text_tokens);
  }

  std::int64_t drop_, least_, sequence_;
};

}  // namespace

std::unique_ptr<const Architecture> make_qwen(const Manifest& manifest) { return std::make_unique<Qwen>(manifest); }

}  // namespace arcflow::core

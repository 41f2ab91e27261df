// How the networks of an architecture are fed. What they have in common is here; flux.cpp and qwen.cpp say what is
// their own. The C++ twin of runtime/architectures/base.py.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "core/bundle/manifest/manifest.hpp"
#include "core/pipeline/device.hpp"
#include "core/text/tokenizer/tokenizer.hpp"

namespace arcflow::core {

// Image tokens of an image.
struct Grid {
  std::int64_t rows = 1, columns = 1;
  std::int64_t tokens() const noexcept { return rows * columns; }
};

// The images that go through the networks together.
struct BatchShape {
  std::int64_t batch = 1;
  Grid grid;
  std::int64_t text_tokens = 1;
};

// Where the encodings of prompts lie in a buffer: as their batches came out of the network, each at an aligned address.
class EncodedRows {
 public:
  EncodedRows() = default;
  EncodedRows(std::size_t prompts, std::uint64_t row_bytes, std::int64_t most);
  std::uint64_t bytes() const noexcept { return (prompts_ + most_ - 1) / most_ * stride_; }
  std::uint64_t offset(std::size_t row) const noexcept { return row / most_ * stride_ + row % most_ * row_bytes_; }
  std::uint64_t row_bytes() const noexcept { return row_bytes_; }

 private:
  std::uint64_t prompts_ = 0, row_bytes_ = 0, most_ = 1, stride_ = 0;
};

// What the text encoders said of the different prompts of a request; the values themselves are in the device's buffers.
struct Encoded {
  EncodedRows pooled, sequence;
  std::int64_t tokens = 0;            // columns of the sequence
  std::vector<std::int64_t> lengths;  // tokens of each prompt that are no padding, without the template's head
};

using TokensByEncoder = std::map<std::string, TokenIds>;

class Architecture {
 public:
  // Throws Error(ARCFLOW_BACKEND_UNAVAILABLE) where the manifest's ports are not what its architecture feeds.
  static std::unique_ptr<const Architecture> of(const Manifest& manifest);
  virtual ~Architecture() = default;

  // Runs the text encoders on any number of prompts.
  virtual Encoded encode(Device& device, const TokensByEncoder& tokens) const = 0;
  // Puts the encodings of these prompts, one an image, where conditioner or backbone finds them; returns their text
  // tokens.
  virtual std::int64_t gather(Device& device, const Encoded& encoded,
                              const std::vector<std::size_t>& prompts) const = 0;

  Grid grid(std::int64_t width, std::int64_t height) const noexcept;
  // Makes the buffers of a batch that was gathered and fills in what its evaluations are fed that no latent enters;
  // a conditioner runs here, for all noise levels.
  void prepare(Device& device, const BatchShape& shape, const std::vector<double>& sigmas) const;
  // The field at evaluation `step` of those prepared, from kTokens.
  void evaluate(Device& device, const BatchShape& shape, std::size_t step) const;
  // out = x, which is at sigma_src, moved to sigma_b by the field.
  void advance(Device& device, const BatchShape& shape, Slot x, Slot out, double sigma_src, double sigma_b) const;
  // Tokens to latents in kLatents, as the caller gets them.
  void unpack(Device& device, const BatchShape& shape, Slot tokens) const;
  // Tokens to images in kImages, float32 [batch, 3, height, width].
  void decode(Device& device, const BatchShape& shape, Slot tokens) const;
  // Values of one image: of its tokens (or latents), and of its three channels of pixels.
  std::uint64_t token_values(const Grid& grid) const;
  std::uint64_t image_values(const Grid& grid) const;

 protected:
  // What a port must be: -1 for a dimension that is free. kField: any floating type.
  enum class Kind { kFloat, kInteger, kField };
  struct Rule {
    const char* port;
    Kind kind;
    std::vector<std::int64_t> dims;
  };
  // An input of a text encoder: [prompts, length].
  struct TextInput {
    const char* port;
    Slot slot;
    const std::vector<std::int64_t>& values;
  };

  explicit Architecture(const Manifest& manifest);

  // What the backbone is fed besides the state, at evaluation `step` of those prepared.
  virtual std::vector<Binding> conditions(const BatchShape& shape, std::size_t step) const = 0;
  // Fills that in for the noise levels of all evaluations; the positions are there.
  virtual void condition(Device& device, const BatchShape& shape, const std::vector<float>& levels) const = 0;
  virtual std::vector<float> image_positions(const Grid& grid) const = 0;
  virtual std::vector<float> text_positions(const BatchShape& shape) const = 0;
  // A noise level or guidance as a backbone of this architecture saw it that was trained in bfloat16.
  virtual float bfloat16_level(float value) const noexcept = 0;

  // A noise level or guidance as the student saw it in training: what the networks are fed.
  float as_trained(double value) const noexcept;
  // Noise levels into kTimestep, each a row of the batch, those of one run of a network after the other. levels_offset:
  // where those of run `run` begin.
  void write_levels(Device& device, std::int64_t batch, const std::vector<float>& levels, std::int64_t a_run) const;
  static std::uint64_t levels_offset(std::int64_t batch, std::int64_t a_run, std::uint64_t run);

  // conditions: the rules of the backbone's inputs but the state's.
  void check_backbone(std::vector<Rule> conditions);
  void check_ports(const std::string& network, const std::vector<Rule>& inputs, const std::vector<Rule>& outputs) const;
  // The last dimension of a network's input; throws where it is symbolic, missing or no multiple of that.
  std::int64_t width_of(const std::string& network, const std::string& input, std::int64_t multiple = 1) const;
  // Runs a text encoder on prompts, at most a batch at a time, into `out`. row: the shape of one prompt's output.
  EncodedRows encode_in_batches(Device& device, const std::string& network, const std::vector<TextInput>& inputs,
                                std::size_t prompts, Slot out, const std::vector<std::int64_t>& row) const;
  // Values [count] in the integer type that a network's port has.
  void write_integers(Device& device, const std::string& network, const char* input, Slot slot,
                      const std::int64_t* values, std::size_t count) const;

  const Manifest manifest_;

 private:
  ArcflowHostUnpack layout(const BatchShape& shape) const;
  const Port* find_input(const std::string& network, const std::string& input) const;

  std::int32_t field_type_ = kArcflowFloat32;
  std::int64_t field_bytes_ = kFloatBytes;
  std::vector<float> scaling_, shift_;
};

std::unique_ptr<const Architecture> make_flux(const Manifest& manifest);
std::unique_ptr<const Architecture> make_qwen(const Manifest& manifest);

}  // namespace arcflow::core

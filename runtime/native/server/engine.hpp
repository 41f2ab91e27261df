// What the service needs of a model, and no more: the library behind it is one implementation, the tests have another.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace arcflow::serve {

struct Limits {
  std::uint32_t min = 1, usual = 1, max = 1;
};

// What a model is and what it takes. width, height: pixels, multiples of `multiple`.
struct ModelDescription {
  std::string name;    // "tiny"
  std::string bundle;  // "tiny-fp16-cpu"
  std::string precision, target, digest, backend, version;
  Limits batch, width, height;
  std::uint32_t multiple = 1;
  std::uint32_t nfe = 1, max_nfe = 1;
};

// Images that can go through the networks together have equal shapes. partials: frames between noise and image; each
// takes a run of the VAE of every image in the batch.
struct Shape {
  std::uint32_t width = 0, height = 0, nfe = 0, partials = 0;
  friend bool operator==(const Shape& a, const Shape& b) {
    return a.width == b.width && a.height == b.height && a.nfe == b.nfe && a.partials == b.partials;
  }
};

struct Item {
  std::string prompt;
  std::uint64_t seed = 0;
};

// rgb8: [height, width, 3]. settings: the JSON object that goes into the image's file.
struct Image {
  std::vector<std::uint8_t> rgb8;
  std::string settings;
};

// A frame between noise and image. index: from 0, the noisiest first. sigma: its noise level, below 1 and above 0.
struct Partial {
  std::uint32_t index = 0;
  double sigma = 0;
  Image image;
};

// Takes a frame of the batch's item. Called while the batch is made, on the thread that makes it.
using PartialSink = std::function<void(std::size_t item, Partial&& partial)>;

using StageSeconds = std::map<std::string, double>;  // "tokenize", "text", "noise", "backbone", "solver", "vae"

struct BatchResult {
  std::vector<Image> images;  // one an item, in order
  StageSeconds seconds;
  double total_seconds = 0;
};

// Why an engine did not do it.
class EngineError : public std::runtime_error {
 public:
  enum class Kind { kInvalid, kCancelled, kOther };
  EngineError(Kind kind, const std::string& message) : std::runtime_error(message), kind_(kind) {}
  Kind kind() const noexcept { return kind_; }

 private:
  Kind kind_;
};

// Ends what runs with it, from any thread.
class CancelToken {
 public:
  virtual ~CancelToken() = default;
  virtual void cancel() noexcept = 0;
};

// The buffers of one thread.
class EngineSession {
 public:
  virtual ~EngineSession() = default;
  // Throws EngineError, or what the sink threw; nothing of a batch that failed is kept. The sink gets each item's
  // shape.partials frames in their order.
  virtual BatchResult generate(const Shape& shape, const std::vector<Item>& items, CancelToken& token,
                               const PartialSink& sink) = 0;
  virtual void warm_up(const Shape& shape, std::uint32_t batch) = 0;
};

// A loaded model. All of it may be called from any thread.
class Engine {
 public:
  virtual ~Engine() = default;
  virtual const ModelDescription& model() const = 0;
  // Throws EngineError(kInvalid) with the library's own words where it would reject this prompt at this shape.
  virtual void check(const Shape& shape, const std::string& prompt) const = 0;
  virtual std::unique_ptr<EngineSession> session() = 0;
  virtual std::unique_ptr<CancelToken> cancel_token() = 0;
  // The image as a PNG file.
  virtual std::string encode(const Shape& shape, const Image& image) const = 0;
};

}  // namespace arcflow::serve

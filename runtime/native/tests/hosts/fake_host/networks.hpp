// The fake host's model and the arithmetic of its networks, each port checked before it is read or written.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <map>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "core/bundle/manifest/schema.hpp"
#include "core/error.hpp"
#include "hosts/host.h"

struct ArcflowHostModel {
  struct Port {
    std::string name;
    std::int32_t type;
    std::vector<std::int64_t> dims;
  };
  struct Network {
    std::string name;
    std::vector<Port> inputs, outputs;
  };
  std::vector<Network> networks;
  std::string options, backend = "a fake";
  void (*log)(void*, std::int32_t, const char*) = nullptr;
  void* log_user = nullptr;

  bool has(const std::string& word) const { return (',' + options + ',').find(',' + word + ',') != std::string::npos; }
  std::string value(const std::string& word) const {
    const std::string all = ',' + options + ',';
    const std::size_t at = all.find(',' + word + '=');
    if (at == std::string::npos) return "";
    const std::size_t begin = at + word.size() + 2;
    return all.substr(begin, all.find(',', begin) - begin);
  }
};

struct ArcflowHostBuffer {
  std::vector<char> bytes;
};

namespace arcflow::fake {

using Buffer = ArcflowHostBuffer;

[[noreturn]] inline void breach(const std::string& what) { throw core::Error(ARCFLOW_INTERNAL, "fake host: " + what); }

template <class T>
T* at(Buffer* buffer, std::uint64_t offset, std::uint64_t count) {
  if (buffer == nullptr) breach("a buffer is null");
  if (offset > buffer->bytes.size() || count > (buffer->bytes.size() - offset) / sizeof(T)) {
    breach("a buffer is too small");
  }
  return reinterpret_cast<T*>(buffer->bytes.data() + offset);
}

// The bindings of one call, found by port.
class Bound {
 public:
  Bound(const char* kind, const std::vector<ArcflowHostModel::Port>& ports, const ArcflowHostBinding* bindings,
        std::size_t count) {
    if (count != ports.size()) breach(std::string("a wrong number of ") + kind);
    for (std::size_t i = 0; i < count; ++i) {
      const ArcflowHostBinding& one = bindings[i];
      std::vector<std::int64_t> dims(one.dims, one.dims + one.rank);
      const auto port = std::find_if(ports.begin(), ports.end(), [&](const auto& p) { return p.name == one.name; });
      if (port == ports.end()) breach(std::string("no port ") + one.name);
      if (dims.size() != port->dims.size()) breach(std::string("another rank of ") + one.name);
      for (std::size_t d = 0; d < dims.size(); ++d) {
        if (dims[d] < 0 || (port->dims[d] >= 0 && port->dims[d] != dims[d]))
          breach(std::string("the shape of ") + one.name);
      }
      if (one.offset % 256 != 0) breach(std::string("an address that is not aligned for ") + one.name);
      if (!all_.emplace(one.name, Entry{one.buffer, one.offset, std::move(dims)}).second) breach("a port twice");
    }
  }
  const std::vector<std::int64_t>& dims(const std::string& name) const { return all_.at(name).dims; }
  template <class T>
  T* data(const std::string& name) const {
    const Entry& one = all_.at(name);
    const auto count = std::accumulate(one.dims.begin(), one.dims.end(), std::int64_t{1}, std::multiplies<>());
    return at<T>(one.buffer, one.offset, static_cast<std::uint64_t>(count));
  }

 private:
  struct Entry {
    Buffer* buffer;
    std::uint64_t offset;
    std::vector<std::int64_t> dims;
  };
  std::map<std::string, Entry> all_;
};

inline void encode(const Bound& in, const Bound& out, const std::string& output) {
  const auto& ids_dims = in.dims("input_ids");
  const auto& dims = out.dims(output);
  const std::int64_t* ids = in.data<std::int64_t>("input_ids");
  float* values = out.data<float>(output);
  if (dims[0] != ids_dims[0]) breach("another batch");
  const std::int64_t length = ids_dims[1];
  const std::int64_t tokens = dims.size() == 3 ? dims[1] : 1;
  if (dims.size() == 3 && tokens != length) breach("another length");
  for (std::int64_t b = 0; b < dims[0]; ++b) {
    const std::int64_t sum = std::accumulate(ids + b * length, ids + (b + 1) * length, std::int64_t{0});
    for (std::int64_t t = 0; t < tokens; ++t) {
      const std::int64_t what = dims.size() == 3 ? ids[b * length + t] : sum;
      for (std::int64_t w = 0; w < dims.back(); ++w) *values++ = static_cast<float>((what + w) % 97) / 97.0F;
    }
  }
}

inline float mean(const float* values, std::int64_t count) {
  return std::accumulate(values, values + count, 0.0F) / static_cast<float>(count);
}

// A row of the modulation: noise level, guidance, mean of the pooled text, zeros. The rest is repeated to its width.
inline void condition(const Bound& in, const Bound& out) {
  const auto& dims = out.dims("modulation");  // [levels, columns]
  const auto& pooled = in.dims("pooled_projections");
  const std::int64_t batch = in.dims("encoder_hidden_states")[0];
  for (const char* port : {"timestep", "guidance", "pooled_projections"}) {
    if (in.dims(port)[0] != dims[0]) breach(std::string("another number of levels of ") + port);
  }
  if (dims[0] % batch != 0 || dims[0] / batch > core::kLevelsARun) breach("a wrong number of levels");
  float* rows = out.data<float>("modulation");
  std::fill_n(rows, dims[0] * dims[1], 0.0F);
  for (std::int64_t level = 0; level < dims[0]; ++level, rows += dims[1]) {
    rows[0] = in.data<float>("timestep")[level];
    rows[1] = in.data<float>("guidance")[level];
    rows[2] = mean(in.data<float>("pooled_projections") + level * pooled[1], pooled[1]);
  }
  const auto repeat = [&](const char* from, const char* to) {
    const auto &source = in.dims(from), &target = out.dims(to);
    if (!std::equal(source.begin(), source.end() - 1, target.begin(), target.end() - 1)) breach("another shape");
    const std::int64_t count = std::accumulate(target.begin(), target.end(), std::int64_t{1}, std::multiplies<>());
    for (std::int64_t i = 0; i < count; ++i) {
      const std::int64_t row = i / target.back(), column = i % target.back() % source.back();
      out.data<float>(to)[i] = in.data<float>(from)[row * source.back() + column];
    }
  };
  repeat("encoder_hidden_states", "context");
  repeat("img_ids", "image_rotary");
  repeat("txt_ids", "text_rotary");
}

inline void backbone(const Bound& in, const Bound& out, bool nan) {
  const auto& dims = out.dims("means");  // [batch, tokens, modes, channels]
  const float* x = in.data<float>("hidden_states");
  const float* modulation = in.data<float>("modulation");
  const float* context = in.data<float>("context");
  const float* positions = in.data<float>("image_rotary");
  const std::int64_t columns = in.dims("modulation")[1], rotary = in.dims("image_rotary")[1];
  const std::int64_t text = in.dims("context")[1] * in.dims("context")[2];
  float* means = out.data<float>("means");
  for (std::int64_t b = 0; b < dims[0]; ++b) {
    const float* row = modulation + b * columns;
    const float said = row[2] + mean(context + b * text, text) + 0.1F * row[1] + row[0];
    for (std::int64_t s = 0; s < dims[1]; ++s) {
      for (std::int64_t k = 0; k < dims[2]; ++k) {
        for (std::int64_t c = 0; c < dims[3]; ++c) {
          *means++ = 0.9F * x[(b * dims[1] + s) * dims[3] + c] + 0.01F * static_cast<float>(k) + said +
                     0.001F * positions[s * rotary + 1];
        }
      }
    }
  }
  if (nan) out.data<float>("means")[0] = std::numeric_limits<float>::quiet_NaN();
  const auto fill = [&out](const std::string& name, float value) {
    const auto& size = out.dims(name);
    const auto count = std::accumulate(size.begin(), size.end(), std::int64_t{1}, std::multiplies<>());
    std::fill_n(out.data<float>(name), count, value);
  };
  fill("logweights", -std::log(static_cast<float>(dims[2])));
  fill("loggammas", 0.25F);
}

inline void decode(const Bound& in, const Bound& out) {
  const auto& from = in.dims("latents");
  const auto& to = out.dims("images");
  const float* latents = in.data<float>("latents");
  float* images = out.data<float>("images");
  const std::int64_t factor = to[2] / from[2];
  for (std::int64_t b = 0; b < to[0]; ++b) {
    for (std::int64_t c = 0; c < 3; ++c) {
      for (std::int64_t y = 0; y < to[2]; ++y) {
        for (std::int64_t x = 0; x < to[3]; ++x) {
          *images++ = std::tanh(latents[((b * from[1] + c) * from[2] + y / factor) * from[3] + x / factor]);
        }
      }
    }
  }
}

}  // namespace arcflow::fake

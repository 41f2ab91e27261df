// A bundle that is loaded: verified, its tokenizers read, its networks in an engine host. Immutable, shared by threads.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "core/bundle/bundle.hpp"
#include "core/bundle/manifest/manifest.hpp"
#include "core/pipeline/architecture/architecture.hpp"
#include "core/pipeline/context.hpp"
#include "core/text/tokenizer/tokenizer.hpp"
#include "hosts/host.h"

namespace arcflow::core {

// What to open; "" and 0 are the defaults of ArcflowModelOptions.
struct OpenOptions {
  std::string bundle, precision, target, host, library;
  std::uint32_t threads = 0, device = 0;
  bool allow_links = false;
};

class Model {
 public:
  // Throws Error: ARCFLOW_INVALID_ARGUMENT, ARCFLOW_BUNDLE_REJECTED, ARCFLOW_BACKEND_UNAVAILABLE,
  // ARCFLOW_OUT_OF_MEMORY.
  Model(std::shared_ptr<Context> context, const OpenOptions& options);
  Model(const Model&) = delete;
  Model& operator=(const Model&) = delete;

  Context& context() const noexcept { return *context_; }
  const Manifest& manifest() const noexcept { return bundle_.manifest(); }
  const Architecture& architecture() const noexcept { return *architecture_; }
  const ArcflowHostApi& api() const noexcept { return *api_; }
  ArcflowHostModel* loaded() const noexcept { return loaded_.get(); }
  const std::vector<std::string>& networks() const noexcept { return networks_; }
  const std::vector<PromptTokenizer>& tokenizers() const noexcept { return tokenizers_; }
  const std::string& folder() const noexcept { return folder_; }
  const std::string& backend() const noexcept { return backend_; }
  void memory(std::uint64_t& host, std::uint64_t& device) const noexcept {
    api_->model_memory(loaded_.get(), &host, &device);
  }

 private:
  void load(const OpenOptions& options);

  std::shared_ptr<Context> context_;
  Bundle bundle_;
  std::string folder_, backend_;
  std::unique_ptr<const Architecture> architecture_;
  std::vector<PromptTokenizer> tokenizers_;
  std::vector<std::string> networks_;
  std::vector<Blob> data_;  // external data, which the host goes on reading
  const ArcflowHostApi* api_ = nullptr;
  std::unique_ptr<ArcflowHostModel, void (*)(ArcflowHostModel*)> loaded_{nullptr, nullptr};
};

}  // namespace arcflow::core

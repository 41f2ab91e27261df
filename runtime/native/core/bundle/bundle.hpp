// Opening a bundle: nothing of it is used before it is known to be exactly what its manifest says (engines/bundle.py).
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "core/bundle/manifest/manifest.hpp"

namespace arcflow::core {

// Bytes that were hashed and are then used: held in memory, or mapped from the file that was hashed. Shared, immutable.
class Blob {
 public:
  const void* data() const noexcept { return data_; }
  std::size_t size() const noexcept { return size_; }
  Blob(std::shared_ptr<const void> owner, const void* data, std::size_t size)
      : owner_(std::move(owner)), data_(data), size_(size) {}

 private:
  std::shared_ptr<const void> owner_;
  const void* data_;
  std::size_t size_;
};

class Bundle {
 public:
  // Checks the manifest, and that exactly the listed files are there, plain and inside. No content is read.
  // allow_links: files may be symbolic links to plain files anywhere, and have other names; folders may not.
  static Bundle open(const std::filesystem::path& folder, bool allow_links = false);

  const std::filesystem::path& root() const noexcept { return root_; }
  const Manifest& manifest() const noexcept { return manifest_; }

  // Reads and checks every listed file in constant memory.
  void verify() const;
  // A file in memory, read once and hashed there.
  Blob read(const std::string& path) const;
  // A file mapped read-only and hashed through that mapping; see engines/bundle.py for what that does not protect from.
  Blob map(const std::string& path) const;

 private:
  Bundle(std::filesystem::path root, Manifest manifest, bool allow_links);
  const FileEntry& entry(const std::string& path) const;

  std::filesystem::path root_;
  Manifest manifest_;
  bool allow_links_;
};

// The verified, unread bundle that `source` names: a folder if it holds a path separator (or is "." or ".."), else a
// model's name, looked up as engines/locate.py does in $ARCFLOW_ENGINES and then in `built_in`. precision and target:
// "" for the best there is. Throws Error(ARCFLOW_BUNDLE_REJECTED) in Python's words.
Bundle find_bundle(const std::string& source, const std::string& precision, const std::string& target,
                   const std::filesystem::path& built_in, bool allow_links = false);

// Rejects plans that this machine did not build (engines/trust.py: the seal). A bundle without plans passes.
void require_ours(const Manifest& manifest);

}  // namespace arcflow::core

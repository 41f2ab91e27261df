// The files of a bundle, one by one: opened as plain files only, held to their size and digest (engines/files.py).
//
// A file is opened once; what is checked and what is used are read through that one descriptor. Every function throws
// Error(ARCFLOW_BUNDLE_REJECTED) in Python's words. `root` is the bundle's folder, resolved. allow_links: a file may
// also be a symbolic link to a plain file, wherever that lies, or have other names (hard links), as caches have it.
#pragma once

#include <sys/stat.h>
#include <unistd.h>

#include <string>

#include "core/bundle/bundle.hpp"
#include "core/bundle/manifest/manifest.hpp"

namespace arcflow::core {

// The bytes of the manifest in `root`, at most 16 MiB.
std::string read_manifest(const std::string& root, bool allow_links);

// A listed file, read once and then hashed in memory. Error(ARCFLOW_OUT_OF_MEMORY) where it does not fit.
Blob read_file(const std::string& root, const FileEntry& entry, bool allow_links);

// A listed file, mapped read-only and hashed through that mapping.
Blob map_file(const std::string& root, const FileEntry& entry, bool allow_links);

// Reads a listed file in constant memory and checks its size and digest.
void verify_file(const std::string& root, const FileEntry& entry, bool allow_links);

// Rejects what is not a plain file, and unless links are allowed one with other names (hard links).
void check_kind(const std::string& root, const std::string& path, const struct stat& status, bool allow_links);

// Rejects a symbolic link that does not lead to a plain file.
void check_link(const std::string& root, const std::string& path);

// An open file, closed at the end.
struct Handle {
  explicit Handle(int file) : value(file) {}
  Handle(const Handle&) = delete;
  Handle& operator=(const Handle&) = delete;
  ~Handle() {
    if (value >= 0) ::close(value);
  }
  const int value;
};

// Up to `size` bytes of an open file, fewer at its end only; -1 and errno where it cannot be read.
ssize_t read_up_to(const Handle& file, void* out, std::size_t size);

// What the system says of an errno: "Permission denied".
std::string system_text(int error);

}  // namespace arcflow::core

#include "core/bundle/files.hpp"

#include <fcntl.h>
#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <new>
#include <system_error>
#include <vector>

#include "core/bundle/names.hpp"
#include "core/bundle/sha256.hpp"
#include "core/error.hpp"
#include "core/text/python_text.hpp"

namespace arcflow::core {
namespace {

// A manifest beyond this is rejected before it is read into memory.
constexpr std::uint64_t kManifestMax = std::uint64_t{16} << 20;
constexpr std::size_t kManifestChunk = std::size_t{1} << 16;
constexpr std::size_t kChunk = std::size_t{1} << 20;

[[noreturn]] void reject_link(const std::string& root, const std::string& path) {
  reject(
      root + ": " + python_repr(path) +
      " is a symbolic link; a bundle holds plain files only: copy the bundle with cp -rL and use the copy, or run it "
      "with --allow-links");
}

[[noreturn]] void unreadable(const std::string& root, const std::string& path, int error) {
  reject(root + ": cannot read " + python_repr(path) + ": " + system_text(error) + "; " + hint(root));
}

bool is_link(const std::string& root, const std::string& path) {
  struct stat status{};
  return ::lstat((root + "/" + path).c_str(), &status) == 0 && S_ISLNK(status.st_mode);
}

// A plain file of the bundle, open.
class PlainFile {
 public:
  // A fifo that took the file's place must not block the open; a link that did must not be followed unasked.
  PlainFile(const std::string& root, const std::string& path, bool allow_links)
      : root_(root), path_(path), allow_links_(allow_links), handle_(open_file()) {
    struct stat status{};
    if (handle_.value < 0 || ::fstat(handle_.value, &status) != 0) fail(errno);
    check_kind(root, path, status, allow_links);
    size_ = static_cast<std::uint64_t>(status.st_size);
  }

  std::uint64_t size() const { return size_; }

  std::size_t read(void* out, std::size_t size) {
    const ssize_t got = read_up_to(handle_, out, size);
    if (got < 0) fail(errno);
    return static_cast<std::size_t>(got);
  }

  void* map() {
    void* data = ::mmap(nullptr, static_cast<std::size_t>(size_), PROT_READ, MAP_SHARED, handle_.value, 0);
    if (data == MAP_FAILED) fail(errno);
    return data;
  }

 private:
  int open_file() const {
    if (allow_links_) check_link(root_, path_);
    const int flags = O_RDONLY | O_NONBLOCK | O_CLOEXEC | (allow_links_ ? 0 : O_NOFOLLOW);
    return ::open((root_ + "/" + path_).c_str(), flags);
  }

  [[noreturn]] void fail(int error) const {
    if (error == ENOENT) reject(root_ + ": the file " + python_repr(path_) + " is missing; " + hint(root_));
    if (!allow_links_ && is_link(root_, path_)) reject_link(root_, path_);
    unreadable(root_, path_, error);
  }

  const std::string& root_;
  const std::string& path_;
  const bool allow_links_;
  const Handle handle_;
  std::uint64_t size_ = 0;
};

void check_size(const std::string& root, const FileEntry& entry, std::uint64_t actual) {
  if (actual == static_cast<std::uint64_t>(entry.size)) return;
  reject(root + ": " + python_repr(entry.path) + " has " + std::to_string(actual) + " bytes, its manifest says " +
         std::to_string(entry.size) + "; " + hint(root));
}

void check_digest(const std::string& root, const FileEntry& entry, const std::string& actual) {
  if (actual == entry.sha256) return;
  reject(root + ": " + python_repr(entry.path) + " was altered: its sha256 is " + actual.substr(0, 16) +
         "..., its manifest says " + entry.sha256.substr(0, 16) + "...; " + hint(root));
}

}  // namespace

ssize_t read_up_to(const Handle& file, void* out, std::size_t size) {
  std::size_t done = 0;
  while (done < size) {
    const ssize_t got = ::read(file.value, static_cast<char*>(out) + done, std::min(size - done, kChunk));
    if (got == 0) break;
    if (got < 0 && errno != EINTR) return got;
    if (got > 0) done += static_cast<std::size_t>(got);
  }
  return static_cast<ssize_t>(done);
}

std::string system_text(int error) { return std::generic_category().message(error); }

std::string read_manifest(const std::string& root, bool allow_links) {
  const std::string path = kManifestName;
  PlainFile file(root, path, allow_links);
  if (file.size() > kManifestMax) {
    reject(root + ": " + python_repr(path) + " has " + std::to_string(file.size()) +
           " bytes, more than any manifest; " + hint(root));
  }
  std::string data;
  for (std::size_t got = 1; got > 0 && data.size() < kManifestMax;) {  // the file may have grown since
    const std::size_t before = data.size();
    data.resize(std::min<std::size_t>(before + kManifestChunk, kManifestMax));
    got = file.read(data.data() + before, data.size() - before);
    data.resize(before + got);
  }
  return data;
}

Blob read_file(const std::string& root, const FileEntry& entry, bool allow_links) {
  PlainFile file(root, entry.path, allow_links);
  check_size(root, entry, file.size());
  const auto size = static_cast<std::size_t>(file.size());
  std::shared_ptr<unsigned char[]> data;
  try {
    data.reset(new unsigned char[size + 1]);
  } catch (const std::bad_alloc&) {
    throw Error(ARCFLOW_OUT_OF_MEMORY,
                root + ": no memory for the " + std::to_string(size) + " bytes of " + python_repr(entry.path));
  }
  check_size(root, entry, file.read(data.get(), size + 1));  // one more byte tells a file that grew
  check_digest(root, entry, sha256_hex(data.get(), size));
  const void* bytes = data.get();
  return Blob(std::move(data), bytes, size);
}

Blob map_file(const std::string& root, const FileEntry& entry, bool allow_links) {
  if (entry.size == 0) return read_file(root, entry, allow_links);  // there is nothing to map
  PlainFile file(root, entry.path, allow_links);
  check_size(root, entry, file.size());
  const auto size = static_cast<std::size_t>(file.size());
  void* bytes = file.map();
  std::shared_ptr<const void> owner(bytes, [size](const void* data) { ::munmap(const_cast<void*>(data), size); });
  check_digest(root, entry, sha256_hex(bytes, size));
  return Blob(std::move(owner), bytes, size);
}

void verify_file(const std::string& root, const FileEntry& entry, bool allow_links) {
  PlainFile file(root, entry.path, allow_links);
  check_size(root, entry, file.size());
  std::vector<unsigned char> chunk(kChunk);
  Sha256 hash;
  while (const std::size_t got = file.read(chunk.data(), chunk.size())) hash.update(chunk.data(), got);
  check_digest(root, entry, hash.hex());
}

void check_kind(const std::string& root, const std::string& path, const struct stat& status, bool allow_links) {
  const std::string place = root + ": " + python_repr(path);
  if (S_ISLNK(status.st_mode)) reject_link(root, path);
  if (!S_ISREG(status.st_mode)) reject(place + " is not a plain file; a bundle holds plain files only; " + hint(root));
  if (status.st_nlink > 1 && !allow_links) {
    reject(place + " is a hard link (it has " + std::to_string(status.st_nlink) +
           " names); a bundle holds plain files only: copy the bundle with cp -rL and use the copy, or run it with "
           "--allow-links");
  }
}

void check_link(const std::string& root, const std::string& path) {
  if (!is_link(root, path)) return;
  const std::string place = root + ": " + python_repr(path);
  struct stat status{};
  if (::stat((root + "/" + path).c_str(), &status) != 0) {
    if (errno != ENOENT) unreadable(root, path, errno);
    reject(place + " is a symbolic link that leads nowhere: fetch the bundle again, or " + hint(root));
  }
  if (!S_ISREG(status.st_mode)) {
    reject(place +
           " is a symbolic link that leads to no plain file: copy the bundle with cp -rL and use the copy, or " +
           hint(root));
  }
}

}  // namespace arcflow::core

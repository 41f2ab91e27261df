#include "core/bundle/bundle.hpp"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <set>
#include <system_error>
#include <utility>

#include "core/bundle/files.hpp"
#include "core/bundle/names.hpp"
#include "core/error.hpp"
#include "core/text/python_text.hpp"

namespace arcflow::core {
namespace {

struct Child {
  std::string name;
  struct stat status;
};

[[noreturn]] void refuse(const std::string& message) { throw Error(ARCFLOW_BUNDLE_REJECTED, message); }

bool is_folder(const std::string& path) {
  struct stat status{};
  if (path.find('\0') != std::string::npos) return false;  // no name that the system would look at
  return ::stat(path.c_str(), &status) == 0 && S_ISDIR(status.st_mode);
}

std::string resolved(const std::string& path) {
  const std::unique_ptr<char, void (*)(void*)> real(::realpath(path.c_str(), nullptr), std::free);
  if (real == nullptr) refuse("cannot list " + path + ": " + system_text(errno) + "; " + hint(path));
  return real.get();
}

// What a folder holds, sorted by name. Throws std::system_error with its errno.
std::vector<Child> children_of(const std::string& folder) {
  const auto require = [](bool done) {
    if (!done) throw std::system_error(errno, std::generic_category());
  };
  const std::unique_ptr<DIR, int (*)(DIR*)> listing(::opendir(folder.c_str()), ::closedir);
  require(listing != nullptr);
  std::vector<Child> children;
  for (;;) {
    errno = 0;
    const dirent* entry = ::readdir(listing.get());
    if (entry == nullptr) break;
    Child child{entry->d_name, {}};
    if (child.name == "." || child.name == "..") continue;
    require(::fstatat(::dirfd(listing.get()), entry->d_name, &child.status, AT_SYMLINK_NOFOLLOW) == 0);
    children.push_back(std::move(child));
  }
  require(errno == 0);
  std::sort(children.begin(), children.end(), [](const Child& a, const Child& b) { return a.name < b.name; });
  return children;
}

// Rejects unless the files under `root` are the manifest and exactly those that it lists.
void check_listing(const std::string& root, const std::vector<FileEntry>& files) {
  std::set<std::string> missing{kManifestName}, folders;
  for (const FileEntry& entry : files) {
    missing.insert(entry.path);
    for (auto at = entry.path.rfind('/'); at != std::string::npos && at > 0; at = entry.path.rfind('/', at - 1)) {
      folders.insert(entry.path.substr(0, at));
    }
  }
  const std::string mend = " is not in the manifest: remove it, or " + hint(root);
  std::vector<std::string> pending{""};
  while (!pending.empty()) {
    const std::string folder = std::move(pending.back());
    pending.pop_back();
    std::vector<Child> children;
    try {
      children = children_of(root + "/" + folder);
    } catch (const std::system_error& error) {
      refuse("cannot list " + root + ": " + system_text(error.code().value()) + "; " + hint(root));
    }
    for (const Child& child : children) {
      const std::string path = folder + child.name;
      if (S_ISDIR(child.status.st_mode)) {
        if (folders.count(path) == 0) refuse(root + ": the folder " + python_repr(path) + mend);
        pending.push_back(path + "/");
        continue;
      }
      check_kind(root, path, child.status);
      if (missing.erase(path) == 0) refuse(root + ": the file " + python_repr(path) + mend);
    }
  }
  if (!missing.empty()) {
    refuse(root + ": the file " + python_repr(*missing.begin()) + " is missing (" + std::to_string(missing.size()) +
           " in all); " + hint(root));
  }
}

Manifest manifest_of(const std::string& root) {
  const std::string data = read_manifest(root);
  try {
    return parse_manifest(data);
  } catch (const Error& error) {
    throw Error(error.code(), root + ": " + error.what() + "; " + hint(root));
  }
}

}  // namespace

Bundle::Bundle(std::filesystem::path root, Manifest manifest)
    : root_(std::move(root)), manifest_(std::move(manifest)) {}

Bundle Bundle::open(const std::filesystem::path& folder) {
  const std::string path = plain_path(folder.native());
  if (!is_folder(path)) refuse("there is no bundle at " + path + ": the folder does not exist; " + hint(path));
  const std::string root = resolved(path);
  Manifest manifest = manifest_of(root);
  check_listing(root, manifest.files);
  return Bundle(root, std::move(manifest));
}

void Bundle::verify() const {
  for (const FileEntry& file : manifest_.files) verify_file(root_.native(), file);
}

Blob Bundle::read(const std::string& path) const { return read_file(root_.native(), entry(path)); }

Blob Bundle::map(const std::string& path) const { return map_file(root_.native(), entry(path)); }

const FileEntry& Bundle::entry(const std::string& path) const {
  const auto& files = manifest_.files;
  const auto found = std::find_if(files.begin(), files.end(), [&](const FileEntry& file) { return file.path == path; });
  if (found != files.end()) return *found;
  std::vector<std::string> paths;
  for (const FileEntry& file : files) paths.push_back(file.path);
  refuse(root_.native() + " has no file " + python_repr(path) + "; it has " + joined(paths));
}

}  // namespace arcflow::core

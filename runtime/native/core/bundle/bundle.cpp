#include "core/bundle/bundle.hpp"

#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <set>
#include <system_error>
#include <utility>

#include "core/bundle/files.hpp"
#include "core/bundle/names.hpp"
#include "core/error.hpp"
#include "core/text/python_text.hpp"

namespace arcflow::core {
namespace fs = std::filesystem;
namespace {

[[noreturn]] void cannot_list(const std::string& root, int error) {
  reject("cannot list " + root + ": " + system_text(error) + "; " + hint(root));
}

// What a folder holds, sorted.
std::vector<std::string> names_in(const std::string& folder) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder)) names.push_back(entry.path().filename().native());
  std::sort(names.begin(), names.end());
  return names;
}

// Rejects unless the files under `root` are the manifest and exactly those that it lists.
void check_listing(const std::string& root, const std::vector<FileEntry>& files, bool allow_links) {
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
    std::vector<std::string> names;
    try {
      names = names_in(root + "/" + folder);
    } catch (const std::system_error& error) {
      cannot_list(root, error.code().value());
    }
    for (const std::string& name : names) {
      const std::string path = folder + name;
      struct stat status{};
      if (::lstat((root + "/" + path).c_str(), &status) != 0) cannot_list(root, errno);
      if (S_ISDIR(status.st_mode)) {
        if (folders.count(path) == 0) reject(root + ": the folder " + python_repr(path) + mend);
        pending.push_back(path + "/");
        continue;
      }
      if (allow_links && S_ISLNK(status.st_mode)) {
        check_link(root, path);
      } else {
        check_kind(root, path, status, allow_links);
      }
      if (missing.erase(path) == 0) reject(root + ": the file " + python_repr(path) + mend);
    }
  }
  if (!missing.empty()) {
    reject(root + ": the file " + python_repr(*missing.begin()) + " is missing (" + std::to_string(missing.size()) +
           " in all); " + hint(root));
  }
}

Manifest manifest_of(const std::string& root, bool allow_links) {
  const std::string data = read_manifest(root, allow_links);
  try {
    return parse_manifest(data);
  } catch (const Error& error) {
    throw Error(error.code(), root + ": " + error.what() + "; " + hint(root));
  }
}

}  // namespace

Bundle::Bundle(fs::path root, Manifest manifest, bool allow_links)
    : root_(std::move(root)), manifest_(std::move(manifest)), allow_links_(allow_links) {}

Bundle Bundle::open(const fs::path& folder, bool allow_links) {
  const std::string path = plain_path(folder.native());
  std::error_code fault;
  // A NUL would end the name that the system looks at.
  if (path.find('\0') != std::string::npos || !fs::is_directory(path, fault)) {
    reject("there is no bundle at " + path + ": the folder does not exist; " + hint(path));
  }
  const std::string root = fs::canonical(path, fault).native();
  if (fault) cannot_list(path, fault.value());
  Manifest manifest = manifest_of(root, allow_links);
  check_listing(root, manifest.files, allow_links);
  return Bundle(root, std::move(manifest), allow_links);
}

void Bundle::verify() const {
  for (const FileEntry& file : manifest_.files) verify_file(root_.native(), file, allow_links_);
}

Blob Bundle::read(const std::string& path) const { return read_file(root_.native(), entry(path), allow_links_); }

Blob Bundle::map(const std::string& path) const { return map_file(root_.native(), entry(path), allow_links_); }

const FileEntry& Bundle::entry(const std::string& path) const {
  const auto& files = manifest_.files;
  const auto found = std::find_if(files.begin(), files.end(), [&](const FileEntry& file) { return file.path == path; });
  if (found != files.end()) return *found;
  std::vector<std::string> paths;
  for (const FileEntry& file : files) paths.push_back(file.path);
  reject(root_.native() + " has no file " + python_repr(path) + "; it has " + joined(paths));
}

}  // namespace arcflow::core

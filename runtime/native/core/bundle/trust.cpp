// Whose plans are executed: a plan is code, so only those that this machine built are (engines/trust.py).
#include <fcntl.h>
#include <pwd.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstdlib>
#include <optional>
#include <string>

#include "core/bundle/bundle.hpp"
#include "core/bundle/files.hpp"
#include "core/bundle/names.hpp"
#include "core/bundle/sha256.hpp"
#include "core/error.hpp"

namespace arcflow::core {
namespace {

constexpr std::size_t kKeyBytes = 32;

std::string variable(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

std::string home() {
  if (const char* named = std::getenv("HOME")) return named[0] == '\0' ? "/" : named;
  passwd entry{};
  passwd* found = nullptr;
  char text[4096];
  if (::getpwuid_r(::getuid(), &entry, text, sizeof(text), &found) == 0 && found != nullptr) return found->pw_dir;
  return "/";
}

std::string key_path() {
  std::string folder = variable("ARCFLOW_KEYS");
  if (folder.empty()) {
    std::string base = variable("XDG_CONFIG_HOME");
    if (base.empty()) base = variable("APPDATA");
    folder = (base.empty() ? home() + "/.config" : base) + "/arcflow";
  }
  return plain_path(folder + "/plans.key");
}

// The key, nothing where there is none; a key that others may read or replace is rejected.
std::optional<std::string> read_key() {
  const std::string path = key_path();
  const auto unreadable = [&](int error) {
    reject("cannot read the key " + path + ": " + system_text(error) + "; it must be a file of your own");
  };
  const Handle handle(::open(path.c_str(), O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC));
  if (handle.value < 0) {
    if (errno == ENOENT) return std::nullopt;
    unreadable(errno);
  }
  struct stat status{};
  if (::fstat(handle.value, &status) != 0) unreadable(errno);
  if (!S_ISREG(status.st_mode) || status.st_uid != ::geteuid() || (status.st_mode & 077) != 0) {
    reject("the key " + path + " is open to others or not yours; run: chmod 600 " + path +
           " (or remove it, and build your plans again)");
  }
  std::string key(kKeyBytes + 1, '\0');
  const ssize_t size = read_up_to(handle, key.data(), key.size());
  if (size < 0) unreadable(errno);
  if (size != static_cast<ssize_t>(kKeyBytes))
    reject("the key " + path + " is damaged: remove it, and build your plans again");
  key.resize(kKeyBytes);
  return key;
}

std::string key_id(const std::string& key) { return hmac_hex(key, "arcflow key id").substr(0, 16); }

// The seal of the bundle's plans with this key. The names of networks are plain words: the manifest was checked.
std::string seal_of(const Manifest& manifest, const std::string& key) {
  std::map<std::string, std::string> digests;
  for (const FileEntry& file : manifest.files) digests[file.path] = file.sha256;
  std::string plans;
  for (const auto& [name, network] : manifest.networks) {
    if (network.format != "plan") continue;
    plans += (plans.empty() ? "\"" : ", \"") + name + "\": \"" + digests[network.file] + "\"";
  }
  return key_id(key) + ":" + hmac_hex(key, R"({"plans": {)" + plans + R"(}, "purpose": "arcflow plans 1"})");
}

}  // namespace

void require_ours(const Manifest& manifest) {
  if (!manifest.engine) return;
  const auto key = read_key();
  const std::string& seal = manifest.engine->seal;
  if (key && equal_secret(seal_of(manifest, *key), seal)) return;
  std::string reason = "the seal of its plans is broken: they are not those that were built here";
  if (seal.empty()) {
    reason = "its plans have no seal: no machine vouches for them";
  } else if (!key || seal.substr(0, seal.find(':')) != key_id(*key)) {
    reason = "its plans were built on another machine (plans are code: they run only where they were built)";
  }
  const std::string name = name_of(manifest).str();
  reject(name + ": " + reason + "; " + hint(name));
}

}  // namespace arcflow::core

#include "core/bundle/locate.hpp"

#include <dirent.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <map>
#include <memory>
#include <optional>
#include <string_view>
#include <tuple>

#include "core/bundle/bundle.hpp"
#include "core/error.hpp"
#include "core/text/python_text.hpp"

namespace arcflow::core {
namespace {

using Order = std::vector<std::string_view>;
using Bundles = std::map<BundleName, std::string>;

[[noreturn]] void refuse(const std::string& message) { throw Error(ARCFLOW_BUNDLE_REJECTED, message); }

// The bundles right under a root; none where it is missing or closed to us.
Bundles bundles_of(const std::string& root) {
  const std::unique_ptr<DIR, int (*)(DIR*)> listing(::opendir(root.c_str()), ::closedir);
  if (listing == nullptr) return {};
  Bundles found;
  const std::string before = root.back() == '/' ? root : root == "." ? "" : root + "/";
  while (const dirent* entry = ::readdir(listing.get())) {
    const auto name = parse_name(entry->d_name);
    struct stat status{};
    const std::string folder = before + entry->d_name;
    if (name && ::stat(folder.c_str(), &status) == 0 && S_ISDIR(status.st_mode)) found.emplace(*name, folder);
  }
  return found;
}

Bundles available(const std::vector<std::string>& roots) {
  Bundles found;
  for (const std::string& root : roots) found.merge(bundles_of(plain_path(root)));  // what is there stays
  return found;
}

std::size_t place(std::string_view value, const Order& order) {
  return static_cast<std::size_t>(std::find(order.begin(), order.end(), value) - order.begin());
}

std::tuple<std::size_t, std::size_t, BundleName> preference(const BundleName& name) {
  static const Order targets{"cpu", "sm120", "sm100", "sm90", "sm89", "sm86", "sm80", "rtx", "onnx"};
  static const Order on_cpu{"fp32", "fp16", "fp8"}, on_gpu{"bf16", "fp16", "fp8", "fp32"};
  return {place(name.target, targets), place(name.precision, name.target == "cpu" ? on_cpu : on_gpu), name};
}

// What makes that bundle. What was left open is for a GPU, in the smallest type it computes in, but for tiny.
std::string command(const std::string& model, const std::string& precision, const std::string& target) {
  const bool embedded = model == "tiny";
  const std::string there = !target.empty() ? target : embedded ? "cpu" : "rtx";
  const std::string usual = there == "cpu" ? "fp32" : there == "sm80" || there == "sm86" ? "bf16" : "fp8";
  return "python -m export.build --model " + model + " --precision " + (precision.empty() ? usual : precision) +
         " --target " + there + (target.empty() && !embedded ? " (RTX 40 and 50 cards; an H100 is sm90)" : "");
}

bool is_path(const std::string& source) {
  return source == "." || source == ".." || source.find('/') != std::string::npos;
}

std::string name_of(const Manifest& manifest) {
  return BundleName{manifest.model, manifest.precision, manifest.target}.str();
}

Bundle open_found(const std::string& folder) {
  Bundle bundle = Bundle::open(folder);
  const std::string name = name_of(bundle.manifest());
  if (folder.substr(folder.rfind('/') + 1) != name) {
    refuse(folder + " holds " + name + ", not what its name says: rename it, or open it by path");
  }
  return bundle;
}

}  // namespace

std::vector<std::string> default_roots(const std::string& built_in) {
  std::vector<std::string> roots;
  const char* variable = std::getenv("ARCFLOW_ENGINES");
  std::string_view rest = variable == nullptr ? "" : variable;
  while (!rest.empty()) {
    const auto end = std::min(rest.find(':'), rest.size());
    if (end > 0) roots.emplace_back(rest.substr(0, end));
    rest.remove_prefix(std::min(end + 1, rest.size()));
  }
  if (!built_in.empty()) roots.push_back(built_in);
  return roots;
}

std::string locate(const std::string& model, const std::string& precision, const std::string& target,
                   const std::vector<std::string>& roots) {
  const Bundles bundles = available(roots);
  std::optional<BundleName> best;
  std::vector<std::string> names;
  for (const auto& [name, folder] : bundles) {
    names.push_back(name.str());
    const bool matches = name.model == model && (precision.empty() || precision == name.precision) &&
                         (target.empty() || serves(name, target));
    if (matches && (!best || preference(name) < preference(*best))) best = name;
  }
  if (best) return bundles.at(*best);
  std::string wanted;
  for (const std::string& part : {model, precision, target}) {
    if (!part.empty()) (wanted += wanted.empty() ? "" : " ") += part;
  }
  refuse("no bundle for " + python_repr(wanted) + "; available: " + (names.empty() ? "none" : joined(names)) +
         "; to make it, run: " + command(model, precision, target));
}

bool serves(const BundleName& name, const std::string& target) {
  const auto covered = capabilities_of_target(name.target);
  return target == name.target || std::find(covered.begin(), covered.end(), target) != covered.end();
}

Bundle find_bundle(const std::string& source, const std::string& precision, const std::string& target,
                   const std::filesystem::path& built_in) {
  Bundle bundle = is_path(source) ? Bundle::open(source)
                                  : open_found(locate(source, precision, target, default_roots(built_in.native())));
  const Manifest& manifest = bundle.manifest();
  const BundleName name{manifest.model, manifest.precision, manifest.target};
  const auto require = [&](const std::string& asked, bool fits) {
    if (!asked.empty() && !fits) {
      refuse(bundle.root().native() + " is " + name.str() + ", but " + python_repr(asked) + " was asked for");
    }
  };
  require(precision, precision == name.precision);
  require(target, serves(name, target));
  return bundle;
}

}  // namespace arcflow::core

// Finding a bundle by model, precision and target; which comes first is told in engines/locate.py.
#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <iterator>
#include <map>
#include <optional>
#include <string_view>
#include <tuple>

#include "core/bundle/bundle.hpp"
#include "core/bundle/names.hpp"
#include "core/error.hpp"
#include "core/text/python_text.hpp"

namespace arcflow::core {
namespace fs = std::filesystem;
namespace {

using Bundles = std::map<BundleName, std::string>;

// The bundles right under the roots; none where one is missing or closed to us. Of equal names the first counts.
Bundles available(const std::vector<std::string>& roots) {
  Bundles found;
  for (const std::string& one : roots) {
    const std::string root = plain_path(one);
    const std::string before = root.back() == '/' ? root : root == "." ? "" : root + "/";
    std::error_code fault, ignored;
    for (fs::directory_iterator entry(root, fault), end; !fault && entry != end; entry.increment(fault)) {
      const std::string folder = entry->path().filename().native();
      const auto name = parse_name(folder);
      if (name && fs::is_directory(before + folder, ignored)) found.emplace(*name, before + folder);
    }
  }
  return found;
}

template <std::size_t N>
std::size_t place(std::string_view value, const std::string_view (&order)[N]) {
  return static_cast<std::size_t>(std::find(order, order + N, value) - order);
}

std::tuple<std::size_t, std::size_t, BundleName> preference(const BundleName& name) {
  const bool on_cpu = name.target == kTargets[0];
  return {place(name.target, kTargets),
          on_cpu ? place(name.precision, kCpuPrecisions) : place(name.precision, kGpuPrecisions), name};
}

// What makes that bundle. What was left open: the GPU that is there; FP8 where it has it, fp16 on a CPU.
std::string command(const std::string& model, const std::string& precision, const std::string& target) {
  const std::string_view there = !target.empty() ? target : model == kEmbedded ? kTargets[0] : "";
  const bool without_fp8 = place(there, kWithoutFp8) < std::size(kWithoutFp8);
  const std::string_view usual = there == kTargets[0] ? "fp16" : without_fp8 ? "bf16" : "fp8";
  const std::string rest =
      there.empty() ? " (where the GPU is; RTX 30 cards and the A100 take bf16)" : " --target " + std::string(there);
  return "python -m export.build --model " + model + " --precision " +
         (precision.empty() ? std::string(usual) : precision) + rest;
}

bool is_path(const std::string& source) {
  return source == "." || source == ".." || source.find('/') != std::string::npos;
}

// The folders of $ARCFLOW_ENGINES, then `built_in`, unless it is empty.
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

// The folder of the bundle of `model` under the first of `roots` that has it; its content is not looked at.
// precision, target: "" leaves the choice open.
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
  reject("no bundle for " + python_repr(wanted) + "; available: " + (names.empty() ? "none" : joined(names)) +
         "; to make it, run: " + command(model, precision, target));
}

Bundle open_found(const std::string& folder, bool allow_links) {
  Bundle bundle = Bundle::open(folder, allow_links);
  const std::string name = name_of(bundle.manifest()).str();
  if (folder.substr(folder.rfind('/') + 1) != name) {
    reject(folder + " holds " + name + ", not what its name says: rename it, or open it by path");
  }
  return bundle;
}

}  // namespace

Bundle find_bundle(const std::string& source, const std::string& precision, const std::string& target,
                   const std::filesystem::path& built_in, bool allow_links) {
  Bundle bundle = is_path(source)
                      ? Bundle::open(source, allow_links)
                      : open_found(locate(source, precision, target, default_roots(built_in.native())), allow_links);
  const BundleName name = name_of(bundle.manifest());
  const auto require = [&](const std::string& asked, bool fits) {
    if (!asked.empty() && !fits) {
      reject(bundle.root().native() + " is " + name.str() + ", but " + python_repr(asked) + " was asked for");
    }
  };
  require(precision, precision == name.precision);
  require(target, serves(name, target));
  return bundle;
}

}  // namespace arcflow::core

#include "core/bundle/names.hpp"

#include <algorithm>
#include <tuple>

namespace arcflow::core {
namespace {

bool letter(char c) { return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9'); }
bool target_letter(char c) { return letter(c) || c == '_'; }
bool model_letter(char c) { return target_letter(c) || c == '.' || c == '-'; }

}  // namespace

bool operator<(const BundleName& a, const BundleName& b) {
  return std::tie(a.model, a.precision, a.target) < std::tie(b.model, b.precision, b.target);
}

std::optional<BundleName> parse_name(std::string_view folder) {
  const auto last = folder.rfind('-');
  if (last == folder.npos || last == 0) return std::nullopt;
  const auto middle = folder.rfind('-', last - 1);
  if (middle == folder.npos) return std::nullopt;
  const std::string_view model = folder.substr(0, middle);
  const std::string_view precision = folder.substr(middle + 1, last - middle - 1);
  const std::string_view target = folder.substr(last + 1);
  if (model.empty() || precision.empty() || target.empty() || !letter(model[0])) return std::nullopt;
  if (!std::all_of(model.begin(), model.end(), model_letter) ||
      !std::all_of(precision.begin(), precision.end(), letter) ||
      !std::all_of(target.begin(), target.end(), target_letter)) {
    return std::nullopt;
  }
  return BundleName{std::string(model), std::string(precision), std::string(target)};
}

bool serves(const BundleName& name, const std::string& target) {
  const auto covered = capabilities_of_target(name.target);
  return target == name.target || std::find(covered.begin(), covered.end(), target) != covered.end();
}

std::string hint(std::string_view root) {
  const auto slash = root.rfind('/');
  const auto name = parse_name(slash == root.npos ? root : root.substr(slash + 1));
  if (!name) return "build it again with: python -m export.build";
  return "run: python -m export.build --model " + name->model + " --precision " + name->precision + " --target " +
         name->target;
}

std::string plain_path(std::string_view path) {
  std::string out;
  if (!path.empty() && path[0] == '/') out = path.substr(0, 2) == "//" && path.substr(0, 3) != "///" ? "//" : "/";
  const std::size_t start = out.size();
  for (std::size_t at = 0; at < path.size();) {
    const auto end = std::min(path.find('/', at), path.size());
    const std::string_view part = path.substr(at, end - at);
    if (!part.empty() && part != ".") {
      if (out.size() > start) out += '/';
      out += part;
    }
    at = end + 1;
  }
  return out.empty() ? "." : out;
}

std::string joined(const std::vector<std::string>& parts) {
  std::string out;
  for (std::size_t i = 0; i < parts.size(); ++i) (out += i == 0 ? "" : ", ") += parts[i];
  return out;
}

}  // namespace arcflow::core

// Comparisons of header values.
#include "server/access/headers.hpp"

#include <algorithm>
#include <cctype>

namespace arcflow::serve {
namespace {

bool same(std::string_view one, std::string_view other) {
  const auto lower = [](char c) { return std::tolower(static_cast<unsigned char>(c)); };
  return one.size() == other.size() &&
         std::equal(one.begin(), one.end(), other.begin(), [&](char a, char b) { return lower(a) == lower(b); });
}

bool is_id(std::string_view text, std::size_t size, bool may_be_nought) {
  return text.size() == size && text.find_first_not_of("0123456789abcdef") == std::string_view::npos &&
         (may_be_nought || text.find_first_not_of('0') != std::string_view::npos);
}

}  // namespace

std::string_view bearer_of(std::string_view authorization) {
  constexpr std::string_view scheme = "Bearer ";
  if (!same(authorization.substr(0, scheme.size()), scheme)) return {};
  std::string_view key = authorization.substr(scheme.size());
  key.remove_prefix(std::min(key.find_first_not_of(' '), key.size()));
  return key;
}

bool is_allowed_host(std::string_view host, const std::vector<std::string>& allowed) {
  // "[::1]:8080": the port comes after the bracket.
  const std::size_t bracket = host.find(']');
  const std::string_view name = host.substr(0, host.find(':', bracket == std::string_view::npos ? 0 : bracket));
  return allowed.empty() ||
         std::any_of(allowed.begin(), allowed.end(), [&](const auto& one) { return same(one, name); });
}

bool is_traceparent(std::string_view value) {
  return value.size() == 55 && value.substr(0, 3) == "00-" && value[35] == '-' && value[52] == '-' &&
         is_id(value.substr(3, 32), 32, false) && is_id(value.substr(36, 16), 16, false) &&
         is_id(value.substr(53), 2, true);
}

bool is_allowed_origin(std::string_view origin, std::string_view cors) {
  return !origin.empty() && !cors.empty() && (cors == "*" || cors == origin);
}

}  // namespace arcflow::serve

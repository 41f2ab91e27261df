// Small things of HTTP's syntax that the parser leaves to us.
#include "server/http/message.hpp"

#include <algorithm>
#include <boost/beast/core/string.hpp>
#include <boost/beast/http/status.hpp>
#include <cctype>
#include <cstdlib>
#include <ostream>

namespace arcflow::serve {
namespace beast = boost::beast;

std::string Request::get_header_value(const std::string& name) const {
  const auto same = [&name](const auto& header) { return beast::iequals(header.first, name); };
  const auto found = std::find_if(headers.begin(), headers.end(), same);
  return found == headers.end() ? "" : found->second;
}

void Response::set_content(std::string content, const std::string& type) {
  body = std::move(content);
  set_header("Content-Type", type);
}

std::string head_of(const Response& response, const Headers& more) {
  const auto known = beast::http::int_to_status(static_cast<unsigned>(response.status));
  const beast::string_view reason = beast::http::obsolete_reason(known);
  std::string head = "HTTP/1.1 " + std::to_string(response.status) + " ";
  head.append(reason.data(), reason.size()).append("\r\n");
  for (const Headers* part : {&response.headers, &more}) {
    for (const auto& [name, value] : *part) head += name + ": " + value + "\r\n";
  }
  if (response.status == 204 || response.status == 304 || response.streamed) return head + "\r\n";
  return head + "Content-Length: " + std::to_string(response.body.size()) + "\r\n\r\n";
}

std::string path_of(const std::string& target) {
  std::size_t begin = 0;
  if (const std::size_t scheme = target.find("://"); target.front() != '/' && scheme != std::string::npos) {
    begin = std::min(target.find_first_of("/?", scheme + 3), target.size());
  }
  const std::string raw = target.substr(begin, target.find_first_of("?#", begin) - begin);
  std::string path;
  for (std::size_t i = 0; i < raw.size(); ++i) {
    const auto is_hex = [&raw](std::size_t at) {
      return at < raw.size() && std::isxdigit(static_cast<unsigned char>(raw[at])) != 0;
    };
    if (raw[i] == '%' && is_hex(i + 1) && is_hex(i + 2)) {
      path += static_cast<char>(std::strtol(raw.substr(i + 1, 2).c_str(), nullptr, 16));
      i += 2;
    } else {
      path += raw[i];
    }
  }
  return path.empty() ? "/" : path;
}

}  // namespace arcflow::serve

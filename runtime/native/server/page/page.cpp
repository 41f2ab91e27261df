// Headers of the embedded files.
#include "server/page/page.hpp"

#include <openssl/evp.h>

#include <array>
#include <stdexcept>

#include "server/page/embedded.hpp"
#include "server/requests/base64.hpp"

namespace arcflow::serve {
namespace {

std::string sha256(std::string_view text) {
  std::array<unsigned char, 32> digest{};
  if (EVP_Digest(text.data(), text.size(), digest.data(), nullptr, EVP_sha256(), nullptr) != 1) {
    throw std::logic_error("there is no SHA-256");
  }
  return base64({digest.begin(), digest.end()});
}

// How a policy names what stands between two tags.
std::string source_of(std::string_view page, std::string_view opening, std::string_view closing) {
  const std::size_t begin = page.find(opening);
  const std::size_t end = page.find(closing, begin == std::string_view::npos ? begin : begin + opening.size());
  if (end == std::string_view::npos) throw std::logic_error("the page lacks " + std::string(opening));
  return "'sha256-" + sha256(page.substr(begin + opening.size(), end - begin - opening.size())) + "'";
}

void give(const Request& request, Response& response, std::string_view file, const std::string& tag, const char* type) {
  response.set_header("ETag", tag);
  response.set_header("Cache-Control", "no-cache");
  response.set_header("X-Content-Type-Options", "nosniff");
  if (request.get_header_value("If-None-Match").find(tag) != std::string::npos) {
    response.status = 304;
    return;
  }
  response.set_content(std::string(file), type);
}

std::string tag_of(std::string_view file) { return '"' + sha256(file) + '"'; }

}  // namespace

std::string content_policy(std::string_view page) {
  return "default-src 'none'; script-src " + source_of(page, "<script type=\"module\">", "</script>") + "; style-src " +
         source_of(page, "<style>", "</style>") +
         "; img-src blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
         "require-trusted-types-for 'script'";
}

void give_page(const Request& request, Response& response) {
  static const std::string policy = content_policy(embedded::page);
  static const std::string tag = tag_of(embedded::page);
  give(request, response, embedded::page, tag, "text/html; charset=utf-8");
  response.set_header("Content-Security-Policy", policy);
  response.set_header("Referrer-Policy", "no-referrer");
}

void give_openapi(const Request& request, Response& response) {
  static const std::string tag = tag_of(embedded::openapi);
  give(request, response, embedded::openapi, tag, "application/json");
}

}  // namespace arcflow::serve

// Look-up by path and method.
#include "server/http/routes.hpp"

#include <new>
#include <set>

namespace arcflow::serve {
namespace {

// The handler of that path, else that of the pattern "/folder/*" it falls under, or null.
const Handler* look_up(const std::map<std::string, Handler>& table, const std::string& path) {
  if (const auto exact = table.find(path); exact != table.end()) return &exact->second;
  for (std::size_t at = path.rfind('/'); at != std::string::npos && at != 0; at = path.rfind('/', at - 1)) {
    if (const auto found = table.find(path.substr(0, at) + "/*"); found != table.end()) return &found->second;
  }
  return nullptr;
}

}  // namespace

bool Routes::begin(const Request& request, Response& response, bool admin) const {
  static const std::set<std::string> paths = {"/health", "/ready", "/metrics"};
  if (before_ && before_(request, response) == HandlerResponse::Handled) return true;
  if (!admin || paths.count(request.path) != 0) return false;
  response.status = 404;
  return true;
}

void Routes::handle(const Request& request, Response& response) const {
  const Handler* handler = look_up(request.method == "POST" ? post_ : get_, request.path);
  if (handler == nullptr) {
    response.status = 404;
    return;
  }
  try {
    (*handler)(request, response);
  } catch (const std::bad_alloc&) {  // others may be answered; this one may be asked again
    if (response.streamed) throw;
    response.headers.clear();
    response.body.clear();
    response.status = 503;
  } catch (...) {
    if (response.streamed) throw;
    response.status = 500;
    if (exception_) exception_(request, response, std::current_exception());
  }
}

void Routes::finish(const Request& request, Response& response) const {
  if (!response.streamed) {
    if (response.status >= 400 && error_) error_(request, response);
    head(request, response);
  }
  if (after_) after_(request, response);
}

void Routes::head(const Request& request, Response& response) const {
  if (head_) head_(request, response);
}

}  // namespace arcflow::serve

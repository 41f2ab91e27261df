// Look-up by path and method.
#include "server/http/routes.hpp"

#include <new>
#include <set>

namespace arcflow::serve {

bool Routes::begin(const Request& request, Response& response, bool admin) const {
  static const std::set<std::string> paths = {"/health", "/ready", "/metrics"};
  if (before_ && before_(request, response) == HandlerResponse::Handled) return true;
  if (!admin || paths.count(request.path) != 0) return false;
  response.status = 404;
  return true;
}

void Routes::handle(const Request& request, Response& response) const {
  const auto& table = request.method == "POST" ? post_ : get_;
  const auto found = table.find(request.path);
  if (found == table.end()) {
    response.status = 404;
    return;
  }
  try {
    found->second(request, response);
  } catch (const std::bad_alloc&) {  // others may be answered; this one may be asked again
    response.headers.clear();
    response.body.clear();
    response.status = 503;
  } catch (...) {
    response.status = 500;
    if (exception_) exception_(request, response, std::current_exception());
  }
}

void Routes::finish(const Request& request, Response& response) const {
  if (response.status >= 400 && error_) error_(request, response);
  if (after_) after_(request, response);
}

}  // namespace arcflow::serve

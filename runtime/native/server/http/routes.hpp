// Which handler answers a request, and what happens around it. The server's thread answers GET and HEAD itself, so
// their handlers must be quick; those of POST run on the pool's threads and may wait.
#pragma once

#include <exception>
#include <functional>
#include <map>
#include <string>

#include "server/http/message.hpp"

namespace arcflow::serve {

enum class HandlerResponse { Handled, Unhandled };
using Handler = std::function<void(const Request&, Response&)>;

class Routes {
 public:
  // Called when a request's head is there. Handled: the response is the answer, and the body is not read.
  void set_pre_routing_handler(std::function<HandlerResponse(const Request&, Response&)> f) { before_ = std::move(f); }
  // Called once for every answer before its head is sent, on the thread that made it.
  void set_head_handler(Handler f) { head_ = std::move(f); }
  // Called once for every answer, when it is complete.
  void set_post_routing_handler(Handler f) { after_ = std::move(f); }
  // Called for an answer of 400 and above.
  void set_error_handler(Handler f) { error_ = std::move(f); }
  // Called for what a handler threw.
  void set_exception_handler(std::function<void(const Request&, Response&, std::exception_ptr)> f) {
    exception_ = std::move(f);
  }
  // path: whole, or "/folder/*" for all that is under it.
  void Get(const std::string& path, Handler handler) { get_[path] = std::move(handler); }
  void Post(const std::string& path, Handler handler) { post_[path] = std::move(handler); }

  // Whether the response is the answer already. admin: only the paths of the admin port are there.
  bool begin(const Request& request, Response& response, bool admin) const;
  // Fills in the response. Does not throw but for want of memory, or once the answer has begun.
  void handle(const Request& request, Response& response) const;
  // What is done with every answer: an error's body, the last headers, counting, logging.
  void finish(const Request& request, Response& response) const;
  // The last headers alone.
  void head(const Request& request, Response& response) const;

 private:
  std::function<HandlerResponse(const Request&, Response&)> before_;
  Handler head_, after_, error_;
  std::function<void(const Request&, Response&, std::exception_ptr)> exception_;
  std::map<std::string, Handler> get_, post_;
};

}  // namespace arcflow::serve

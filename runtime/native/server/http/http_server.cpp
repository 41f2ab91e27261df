// What the service sees of the loop.
#include "server/http/http_server.hpp"

#include "server/http/loop.hpp"

namespace arcflow::serve {

HttpServer::HttpServer(const ConnectionRules& rules) : loop_(std::make_unique<Loop>(rules, *this)) {}
HttpServer::~HttpServer() = default;

void HttpServer::set_connection_hook(ConnectionHook hook) { loop_->hook = std::move(hook); }
int HttpServer::bind(const std::string& host, int port, bool admin) { return loop_->bind(host, port, admin); }
const std::string& HttpServer::bind_error() const { return loop_->bind_error; }
void HttpServer::listen_after_bind() { loop_->run(); }
void HttpServer::wait_until_ready() const { loop_->ready.get_future().wait(); }
void HttpServer::halt() { loop_->halt(); }
std::string HttpServer::render_connections() const { return loop_->render(); }

}  // namespace arcflow::serve

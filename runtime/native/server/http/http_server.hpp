// The HTTP server of the service: one thread reads, parses and writes every connection, and hands whole requests to a
// pool of threads. With the rules of a public service: a deadline for a request to arrive, one for its answer to be
// taken, no further request after an error, and an end that waits for answers but not for idle callers.
#pragma once

#include <chrono>
#include <cstddef>
#include <functional>
#include <memory>
#include <string>

#include "server/http/routes.hpp"

namespace arcflow::serve {

struct ConnectionRules {
  std::size_t threads = 64;                   // requests with a body that are handled at once; more wait
  std::size_t waiting = 1024;                 // requests that may wait for a thread; more get 503
  std::size_t connections = 16'384;           // open at once, where the limit of descriptors allows; more get 503
  std::size_t max_body = 1 << 20;             // bytes
  std::size_t bodies = std::size_t{1} << 28;  // bytes of all bodies that are held or announced; more get 503
  std::chrono::milliseconds idle{15'000};     // between two requests of a connection, and before the first
  std::chrono::milliseconds request{10'000};  // from a request's first byte to its last
  std::chrono::milliseconds answer{60'000};   // for the caller to take the whole answer
  std::chrono::milliseconds stall{10'000};    // for the caller to take any of it
  std::chrono::milliseconds linger{500};      // for the caller to close, after the last answer
  std::size_t requests = 10'000;              // of one connection
};

// A connection that ended without an answer to its last bytes, or without any. reason: as in the metrics.
using ConnectionHook = std::function<void(const std::string& remote, const std::string& reason, double seconds)>;

class HttpServer : public Routes {
 public:
  // Makes the first thread of the pool; throws std::system_error where that fails.
  explicit HttpServer(const ConnectionRules& rules);
  ~HttpServer();

  void set_connection_hook(ConnectionHook hook);

  // Binds and gives the port, or 0 where that fails: bind_error says why. port 0: any free one. admin: a port that
  // answers /health, /ready and /metrics alone; its connections do not count among the others.
  int bind(const std::string& host, int port, bool admin = false);
  const std::string& bind_error() const;

  // Serves until halt.
  void listen_after_bind();
  void wait_until_ready() const;

  // Closes the listening sockets and every connection that owes nobody an answer; listen_after_bind returns when all
  // answers are written. Call it once, while listen_after_bind runs.
  void halt();

  // What was counted of connections, in Prometheus' text format. For handlers of GET.
  std::string render_connections() const;

 private:
  std::unique_ptr<class Loop> loop_;
};

}  // namespace arcflow::serve

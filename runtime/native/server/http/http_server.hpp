// cpp-httplib's server with the connection rules of a public service: a deadline for a request to arrive, one for its
// answer to be taken, no further request after an error, and an end that waits for answers but not for idle callers.
#pragma once

// The listen queue; 5 is too short for a burst.
#define CPPHTTPLIB_LISTEN_BACKLOG 512
#include <httplib.h>

#include <atomic>
#include <chrono>
#include <cstddef>
#include <mutex>
#include <set>
#include <string>

namespace arcflow::serve {

struct ConnectionRules {
  std::size_t threads = 64;                   // connections that are served at once; more wait
  std::size_t waiting = 1024;                 // connections that may wait for a thread; more are closed
  std::size_t max_body = 1 << 20;             // bytes
  std::chrono::milliseconds idle{15'000};     // between two requests of a connection
  std::chrono::milliseconds request{10'000};  // from a request's first byte to its last
  std::chrono::milliseconds answer{60'000};   // for the caller to take the whole answer
  std::chrono::milliseconds stall{10'000};    // for the caller to take any of it
  std::size_t requests = 10'000;              // of one connection
};

class HttpServer final : public httplib::Server {
 public:
  explicit HttpServer(const ConnectionRules& rules);

  // Binds and gives the port, or 0 where that fails: errno says why. port 0: any free one.
  int bind(const std::string& host, int port);

  // Closes the listening socket and every connection that owes nobody an answer; listen_after_bind returns when all
  // answers are written. Call it once, while listen_after_bind runs.
  void halt();

 private:
  bool process_and_close_socket(socket_t socket) override;
  bool await_request(socket_t socket) const;

  const ConnectionRules rules_;
  std::atomic<std::size_t> pending_{0};  // connections that wait for a thread
  std::atomic<bool> halted_{false};
  std::mutex mutex_;
  std::set<socket_t> open_;
};

}  // namespace arcflow::serve

// One TCP connection as cpp-httplib's Stream: buffered reads, all of a request within one deadline.
#pragma once

#include <chrono>
#include <string>
#include <vector>

#include "server/http/http_server.hpp"

namespace arcflow::serve {

// Waits until the socket has something (events: POLLIN, POLLOUT) or the time is up. True also for an error or the end
// of the stream: the call that follows finds out.
bool wait_for(socket_t socket, short events, std::chrono::steady_clock::time_point until);

class Connection final : public httplib::Stream {
 public:
  using Clock = std::chrono::steady_clock;

  // Keeps the socket but does not own it.
  Connection(socket_t socket, const ConnectionRules& rules);

  // To be called before each request: its deadline runs from now, and its answer's status is not known yet.
  void begin();
  // Whether the answer that was written is an error. What is left of its request must not be read as another one.
  bool answered_with_error() const { return status_class_ >= '4'; }

  bool is_readable() const override { return next_ < buffer_.size(); }
  bool wait_readable() const override;
  bool wait_writable() const override;
  bool is_peer_alive() const override { return wait_writable(); }
  ssize_t read(char* data, size_t size) override;
  ssize_t write(const char* data, size_t size) override;
  void get_remote_ip_and_port(std::string& ip, int& port) const override;
  void get_local_ip_and_port(std::string& ip, int& port) const override;
  socket_t socket() const override { return socket_; }
  time_t duration() const override;

 private:
  const socket_t socket_;
  const ConnectionRules& rules_;
  Clock::time_point begun_;
  Clock::time_point answered_;  // when the answer's first byte was written
  char status_class_ = 0;       // the first digit of its status
  std::vector<char> buffer_;
  std::size_t next_ = 0;
};

}  // namespace arcflow::serve

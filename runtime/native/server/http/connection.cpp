// Reads and writes with deadlines, by poll.
#include "server/http/connection.hpp"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace arcflow::serve {
namespace {

constexpr std::size_t kBuffer = 16 * 1024;

void describe(const sockaddr_storage& address, std::string& ip, int& port) {
  char text[INET6_ADDRSTRLEN] = "";
  if (address.ss_family == AF_INET) {
    sockaddr_in four{};
    std::memcpy(&four, &address, sizeof four);
    inet_ntop(AF_INET, &four.sin_addr, text, sizeof text);
    port = ntohs(four.sin_port);
  } else if (address.ss_family == AF_INET6) {
    sockaddr_in6 six{};
    std::memcpy(&six, &address, sizeof six);
    inet_ntop(AF_INET6, &six.sin6_addr, text, sizeof text);
    port = ntohs(six.sin6_port);
  }
  ip = text;
}

}  // namespace

bool wait_for(socket_t socket, short events, std::chrono::steady_clock::time_point until) {
  for (;;) {
    const auto left =
        std::chrono::duration_cast<std::chrono::milliseconds>(until - std::chrono::steady_clock::now()).count();
    pollfd request{socket, events, 0};
    const int ready = poll(&request, 1, static_cast<int>(std::clamp<long long>(left, 0, 3'600'000)));
    if (ready >= 0 || errno != EINTR) return ready > 0;
  }
}

Connection::Connection(socket_t socket, const ConnectionRules& rules) : socket_(socket), rules_(rules) { begin(); }

void Connection::begin() {
  begun_ = Clock::now();
  status_class_ = 0;
}

bool Connection::wait_readable() const { return is_readable() || wait_for(socket_, POLLIN, begun_ + rules_.request); }

bool Connection::wait_writable() const {
  const Clock::time_point stall = Clock::now() + rules_.stall;
  const Clock::time_point until = status_class_ == 0 ? stall : std::min(stall, answered_ + rules_.answer);
  return wait_for(socket_, POLLOUT, until);
}

ssize_t Connection::read(char* data, size_t size) {
  if (!is_readable()) {
    if (!wait_readable()) {
      error_ = httplib::Error::Timeout;
      return -1;
    }
    buffer_.resize(kBuffer);
    next_ = 0;
    ssize_t count = 0;
    do {
      count = recv(socket_, buffer_.data(), buffer_.size(), 0);
    } while (count < 0 && errno == EINTR);
    buffer_.resize(count > 0 ? static_cast<std::size_t>(count) : 0);
    if (count <= 0) {
      error_ = count == 0 ? httplib::Error::ConnectionClosed : httplib::Error::Read;
      return count;
    }
  }
  const std::size_t count = std::min(size, buffer_.size() - next_);
  std::memcpy(data, buffer_.data() + next_, count);
  next_ += count;
  return static_cast<ssize_t>(count);
}

ssize_t Connection::write(const char* data, size_t size) {
  constexpr std::size_t status_at = sizeof "HTTP/1.1 " - 1;
  // "100 Continue" comes before the answer and is none.
  if (status_class_ == 0 && size > status_at && data[status_at] != '1') {
    status_class_ = data[status_at];
    answered_ = Clock::now();
  }
  if (!wait_writable()) {
    error_ = httplib::Error::Timeout;
    return -1;
  }
  ssize_t count = 0;
  do {
    count = send(socket_, data, size, MSG_NOSIGNAL | MSG_DONTWAIT);
  } while (count < 0 && errno == EINTR);
  if (count < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return wait_writable() ? write(data, size) : -1;
  return count;
}

void Connection::get_remote_ip_and_port(std::string& ip, int& port) const {
  sockaddr_storage address{};
  socklen_t length = sizeof address;
  if (getpeername(socket_, reinterpret_cast<sockaddr*>(&address), &length) == 0) describe(address, ip, port);
}

void Connection::get_local_ip_and_port(std::string& ip, int& port) const {
  sockaddr_storage address{};
  socklen_t length = sizeof address;
  if (getsockname(socket_, reinterpret_cast<sockaddr*>(&address), &length) == 0) describe(address, ip, port);
}

time_t Connection::duration() const {
  return std::chrono::duration_cast<std::chrono::milliseconds>(Clock::now() - begun_).count();
}

}  // namespace arcflow::serve

// The life of a connection: wait for a request, serve it, and again, until an error, the end, or others who wait.
#include "server/http/http_server.hpp"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <condition_variable>
#include <deque>
#include <functional>
#include <thread>
#include <vector>

#include "server/http/connection.hpp"

namespace arcflow::serve {
namespace {

// Threads for connections, made when they are first needed: memory follows the most connections there ever were at
// once. httplib's own pool either makes all of them at its start or leaves tasks waiting that it could have served.
class Pool final : public httplib::TaskQueue {
 public:
  Pool(const ConnectionRules& rules, std::atomic<std::size_t>& pending) : rules_(rules), pending_(pending) {}
  ~Pool() override { shutdown(); }

  bool enqueue(std::function<void()> task) override {
    const std::lock_guard lock(mutex_);
    if (ending_ || tasks_.size() >= rules_.waiting) return false;
    tasks_.push_back(std::move(task));
    if (tasks_.size() > idle_ && threads_.size() < rules_.threads) threads_.emplace_back([this] { work(); });
    pending_ = tasks_.size();
    changed_.notify_one();
    return true;
  }

  // Finishes what was enqueued.
  void shutdown() override {
    {
      const std::lock_guard lock(mutex_);
      ending_ = true;
    }
    changed_.notify_all();
    for (std::thread& thread : threads_) {
      if (thread.joinable()) thread.join();
    }
  }

 private:
  void work() {
    std::unique_lock lock(mutex_);
    for (;;) {
      ++idle_;
      changed_.wait(lock, [this] { return ending_ || !tasks_.empty(); });
      --idle_;
      if (tasks_.empty()) return;
      const std::function<void()> task = std::move(tasks_.front());
      tasks_.pop_front();
      pending_ = tasks_.size();
      lock.unlock();
      task();
      lock.lock();
    }
  }

  const ConnectionRules rules_;
  std::atomic<std::size_t>& pending_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<void()>> tasks_;
  std::vector<std::thread> threads_;
  std::size_t idle_ = 0;
  bool ending_ = false;
};

// Sends the end of the answer. After an error what the caller still sends is taken for a moment: closing at once would
// reset the connection and take the answer from under a caller who is still writing.
void finish(socket_t socket, bool error) {
  shutdown(socket, SHUT_WR);
  const auto until = std::chrono::steady_clock::now() + std::chrono::milliseconds(200);
  char rest[4096];
  while (error && std::chrono::steady_clock::now() < until && wait_for(socket, POLLIN, until)) {
    if (recv(socket, rest, sizeof rest, MSG_DONTWAIT) <= 0) break;
  }
}

}  // namespace

HttpServer::HttpServer(const ConnectionRules& rules) : rules_(rules) {
  new_task_queue = [this] { return new Pool(rules_, pending_); };
  set_payload_max_length(rules.max_body);
  set_keep_alive_max_count(rules.requests);
  set_keep_alive_timeout(std::chrono::duration_cast<std::chrono::seconds>(rules.idle).count());
  set_tcp_nodelay(true);
  // Not SO_REUSEPORT, httplib's default: a second server on the same port must be an error, not a share of the callers.
  set_socket_options([](socket_t socket) { httplib::set_socket_opt(socket, SOL_SOCKET, SO_REUSEADDR, 1); });
}

int HttpServer::bind(const std::string& host, int port) {
  if (port == 0) {
    const int given = bind_to_any_port(host);
    return std::max(given, 0);
  }
  return bind_to_port(host, port) ? port : 0;
}

void HttpServer::halt() {
  {
    const std::lock_guard lock(mutex_);
    halted_ = true;
    for (const socket_t socket : open_) {
      shutdown(socket, SHUT_RD);  // whoever reads sees the end; whoever writes goes on
    }
  }
  stop();
}

// Waits for the first byte of the next request. False where there will be none, or where others need the thread more.
bool HttpServer::await_request(socket_t socket) const {
  constexpr std::chrono::milliseconds slice{100};
  const auto until = std::chrono::steady_clock::now() + rules_.idle;
  for (auto now = std::chrono::steady_clock::now(); now < until; now = std::chrono::steady_clock::now()) {
    if (wait_for(socket, POLLIN, std::min(now + slice, until))) return true;
    if (halted_ || pending_ > 0) return false;
  }
  return false;
}

bool HttpServer::process_and_close_socket(socket_t socket) {
  {
    const std::lock_guard lock(mutex_);
    open_.insert(socket);
    if (halted_) shutdown(socket, SHUT_RD);
  }
  Connection connection(socket, rules_);
  std::string remote, local;
  int remote_port = 0, local_port = 0;
  connection.get_remote_ip_and_port(remote, remote_port);
  connection.get_local_ip_and_port(local, local_port);
  bool good = true;
  for (std::size_t left = rules_.requests; left > 0; --left) {
    if (!connection.is_readable() && !await_request(socket)) break;
    connection.begin();
    bool closed = false;
    // Parts of an answer are not served: a Range header means nothing here.
    const auto setup = [](httplib::Request& request) { request.ranges.clear(); };
    good = process_request(connection, remote, remote_port, local, local_port, left == 1 || halted_, closed, setup);
    if (!good || closed || halted_ || connection.answered_with_error()) break;
  }
  {
    const std::lock_guard lock(mutex_);
    open_.erase(socket);
  }
  finish(socket, connection.answered_with_error());
  close(socket);
  return good;
}

}  // namespace arcflow::serve

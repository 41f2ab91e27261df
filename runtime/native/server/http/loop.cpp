// Accepting connections, also where there is no room for them, and living on after a failure.
#include "server/http/loop.hpp"

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <boost/asio/post.hpp>
#include <cstdio>
#include <thread>

#include "server/http/session.hpp"

namespace arcflow::serve {
namespace {

namespace asio = boost::asio;

constexpr rlim_t kDescriptors = 65'536;          // at most, where the hard limit allows
constexpr std::size_t kReserved = 64;            // descriptors for files, the admin port and the library
constexpr int kAtOnce = 64;                      // connections taken before others have their turn
constexpr std::size_t kAdmins = 32;              // connections of the admin port
constexpr std::chrono::milliseconds kPause{50};  // before accepting again where the system has no room

// How many connections the limit of descriptors leaves room for; the soft limit is raised first.
std::size_t room_for_connections(std::size_t wanted) {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return wanted;
  const rlim_t target = std::min(limit.rlim_max, kDescriptors);
  if (limit.rlim_cur < target) {
    const rlimit raised{target, limit.rlim_max};
    if (setrlimit(RLIMIT_NOFILE, &raised) == 0) limit = raised;
  }
  const auto all = static_cast<std::size_t>(std::min(limit.rlim_cur, kDescriptors));
  return std::min(wanted, all > 2 * kReserved ? all - kReserved : all / 2);
}

}  // namespace

Loop::Loop(const ConnectionRules& wanted, const Routes& handlers)
    : rules(wanted),
      routes(handlers),
      work_(io.get_executor()),
      most_(room_for_connections(wanted.connections)),
      pool(wanted.threads, wanted.waiting) {
  for (const char* reason : {"done", "unused", "idle", "late", "stalled", "reset", "refused", "memory", "shutdown"}) {
    ended_[reason] = 0;
  }
  hold_spare();
}

Loop::~Loop() {
  if (spare_ >= 0) close(spare_);
}

void Loop::hold_spare() {
  if (spare_ < 0) spare_ = open("/dev/null", O_RDONLY | O_CLOEXEC);
}

int Loop::bind(const std::string& host, int port, bool admin) {
  Error error;
  Tcp::resolver resolver(io);
  const auto places =
      resolver.resolve(host, std::to_string(port), Tcp::resolver::passive | Tcp::resolver::numeric_service, error);
  for (const auto& place : places) {
    Listener listener(io, admin);
    Tcp::acceptor& acceptor = listener.acceptor;
    acceptor.open(place.endpoint().protocol(), error);
    // Not SO_REUSEPORT: a second server on the same port must be an error, not a share of the callers.
    if (!error) acceptor.set_option(Tcp::acceptor::reuse_address(true), error);
    if (!error) acceptor.bind(place.endpoint(), error);
    if (!error) acceptor.listen(asio::socket_base::max_listen_connections, error);
    if (!error) acceptor.non_blocking(true, error);
    if (error) continue;
    const int given = acceptor.local_endpoint().port();
    listeners_.push_back(std::move(listener));
    return given;
  }
  bind_error = error ? error.message() : "the name has no address";
  return 0;
}

void Loop::run() {
  bool told = false;
  for (;;) {
    try {
      arm_all();
      if (!told) ready.set_value();
      told = true;
      io.run();
      return;
    } catch (const std::exception&) {  // of memory, most likely: whoever was being served has been let go
      note("", "memory", 0);
      std::this_thread::sleep_for(kPause);
    }
  }
}

void Loop::halt() {
  asio::post(io, [this] {
    halted_ = true;
    for (Listener& listener : listeners_) {
      Error ignored;
      listener.acceptor.close(ignored);
      listener.pause.cancel();
    }
    for (Session* session : std::set<Session*>(sessions_)) session->halt();
    if (sessions_.empty()) work_.reset();
  });
}

void Loop::arm_all() {
  for (Listener& listener : listeners_) arm(listener);
}

void Loop::arm(Listener& listener) {
  if (listener.armed || halted_) return;
  listener.acceptor.async_wait(Tcp::acceptor::wait_read, [this, &listener](const Error& error) {
    listener.armed = false;
    if (error != asio::error::operation_aborted) take(listener);
  });
  listener.armed = true;
}

void Loop::take(Listener& listener) {
  if (halted_) return;
  for (int i = 0; i < kAtOnce; ++i) {
    if (!take_one(listener)) return;
  }
  arm(listener);
}

// Whether there may be more, and room for it; else whoever called this has nothing more to do.
bool Loop::take_one(Listener& listener) {
  Tcp::socket socket(io);
  Tcp::endpoint peer;
  Error error;
  listener.acceptor.accept(socket, peer, error);
  if (error == asio::error::would_block || error == asio::error::try_again) {
    arm(listener);
    return false;
  }
  if (error == asio::error::connection_aborted || error == asio::error::interrupted) return true;
  if (error) {
    relieve(listener);
    return false;
  }
  ++accepted_;
  const std::size_t admins = sessions_.size() - usual_;
  if (listener.admin ? admins >= kAdmins : usual_ >= most_) {
    refuse(socket, peer, "refused");
    return true;
  }
  try {
    Error ignored;
    socket.set_option(Tcp::no_delay(true), ignored);
    const auto session =
        std::make_shared<Session>(*this, std::move(socket), peer.address().to_string(), listener.admin);
    sessions_.insert(session.get());
    if (!listener.admin) ++usual_;
    session->start();
  } catch (const std::bad_alloc&) {
    if (socket.is_open()) refuse(socket, peer, "memory");
  }
  return true;
}

// There is no descriptor, or no memory, for connections that wait: the spare descriptor is given up for as long as it
// takes to tell them. Without that they would wait until others go, and the loop would spin meanwhile.
void Loop::relieve(Listener& listener) {
  if (spare_ >= 0) close(spare_);
  spare_ = -1;
  Error error;
  for (int i = 0; i < kAtOnce && !error; ++i) {
    Tcp::socket socket(io);
    Tcp::endpoint peer;
    listener.acceptor.accept(socket, peer, error);
    if (error) break;
    ++accepted_;
    refuse(socket, peer, "refused");
  }
  hold_spare();
  listener.armed = true;
  listener.pause.expires_after(kPause);
  listener.pause.async_wait([this, &listener](const Error& failure) {
    listener.armed = false;
    if (!failure) take(listener);
  });
}

// Tells the caller in one write, as far as the socket takes it, and closes.
void Loop::refuse(Tcp::socket& socket, const Tcp::endpoint& peer, const std::string& reason) {
  static const std::string answer = [] {
    Response response;
    response.status = 503;
    response.set_content(
        R"({"error":{"message":"there are too many connections; try again soon","type":"server_error","param":null,)"
        R"("code":"busy"}})",
        "application/json");
    return head_of(response, {{"Retry-After", "1"}, {"Connection", "close"}}) + response.body;
  }();
  const int descriptor = socket.native_handle();
  send(descriptor, answer.data(), answer.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
  shutdown(descriptor, SHUT_WR);
  char rest[4096];  // closing with bytes unread would take the answer back
  while (recv(descriptor, rest, sizeof rest, MSG_DONTWAIT) > 0) {
  }
  Error ignored;
  socket.close(ignored);
  ++ended_[reason];
  note(peer.address().to_string(), reason, 0);
}

void Loop::forget(Session* session, const std::string& reason) {
  if (sessions_.erase(session) == 0) return;
  if (!session->is_admin()) --usual_;
  ++ended_[reason];
  if (halted_ && sessions_.empty()) work_.reset();
}

void Loop::note(const std::string& remote, const std::string& reason, double seconds) noexcept {
  try {
    if (hook) hook(remote, reason, seconds);
  } catch (...) {  // the count stays
  }
}

bool Loop::reserve_body(std::size_t bytes) {
  if (bodies_ + bytes > rules.bodies) return false;
  bodies_ += bytes;
  return true;
}

std::string Loop::render() const {
  const auto head = [](const char* name, const char* type, const char* help) {
    return std::string("# HELP ") + name + " " + help + "\n# TYPE " + name + " " + type + "\n";
  };
  std::string out = head("arcflow_connections", "gauge", "Connections that are open.") + "arcflow_connections " +
                    std::to_string(sessions_.size()) + "\n";
  out += head("arcflow_connections_total", "counter", "Connections that were accepted.") +
         "arcflow_connections_total " + std::to_string(accepted_) + "\n";
  out += head("arcflow_connections_ended_total", "counter", "Connections that ended, by reason.");
  for (const auto& [reason, count] : ended_) {
    out += "arcflow_connections_ended_total{reason=\"" + reason + "\"} " + std::to_string(count) + "\n";
  }
  return out;
}

}  // namespace arcflow::serve

// The server's one thread of input and output: listening sockets, open connections, and what is counted of them.
#pragma once

#include <array>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/steady_timer.hpp>
#include <cstdint>
#include <future>
#include <list>
#include <map>
#include <set>

#include "server/http/http_server.hpp"
#include "server/http/pool.hpp"

namespace arcflow::serve {

class Session;

class Loop {
 public:
  using Tcp = boost::asio::ip::tcp;
  using Error = boost::system::error_code;

  Loop(const ConnectionRules& wanted, const Routes& handlers);
  ~Loop();

  int bind(const std::string& host, int port, bool admin);
  void run();
  void halt();
  std::string render() const;

  // --- for sessions; all but `io` and `pool` on the loop's thread ---
  // Ends the account of a session. reason: "done", or why it ended.
  void forget(Session* session, const std::string& reason);
  void note(const std::string& remote, const std::string& reason, double seconds) noexcept;
  bool reserve_body(std::size_t bytes);
  void release_body(std::size_t bytes) { bodies_ -= bytes; }
  bool halted() const { return halted_; }

  const ConnectionRules rules;
  const Routes& routes;
  boost::asio::io_context io{1};
  ConnectionHook hook;
  std::string bind_error;
  std::promise<void> ready;
  std::array<char, 4096> scratch;  // for bytes that nobody reads

 private:
  struct Listener {
    Listener(boost::asio::io_context& context, bool for_admin) : acceptor(context), pause(context), admin(for_admin) {}
    Tcp::acceptor acceptor;
    boost::asio::steady_timer pause;
    bool admin;
    bool armed = false;
  };

  void arm(Listener& listener);
  void arm_all();
  void take(Listener& listener);
  bool take_one(Listener& listener);
  void relieve(Listener& listener);
  void refuse(Tcp::socket& socket, const Tcp::endpoint& peer, const std::string& reason);
  void hold_spare();

  boost::asio::executor_work_guard<boost::asio::io_context::executor_type> work_;
  std::list<Listener> listeners_;
  std::set<Session*> sessions_;
  std::size_t most_ = 0;   // connections, without those of the admin port
  std::size_t usual_ = 0;  // of these, open now
  std::size_t bodies_ = 0;
  std::uint64_t accepted_ = 0;
  std::map<std::string, std::uint64_t> ended_;
  int spare_ = -1;  // a descriptor to be given up when there are no more
  bool halted_ = false;

 public:
  Pool pool;  // the last member: what runs in it may use all others
};

}  // namespace arcflow::serve

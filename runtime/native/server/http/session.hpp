// One connection: wait for a request, read it, have it handled, write the answer, and again.
#pragma once

#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/string_body.hpp>
#include <deque>
#include <memory>
#include <optional>

#include "server/http/loop.hpp"

namespace arcflow::serve {

// All of it runs on the loop's thread, but for the handler of a POST and what it writes. While a handler runs the
// socket is not closed, and but for what it writes not touched: it asks of the descriptor whether the caller is there.
class Session : public std::enable_shared_from_this<Session> {
 public:
  Session(Loop& loop, Loop::Tcp::socket&& socket, std::string remote, bool admin);
  ~Session();
  void start() { await(); }
  // Ends it now where nobody is owed an answer, else after the answer.
  void halt();
  bool is_admin() const { return admin_; }

 private:
  using Clock = std::chrono::steady_clock;
  using Error = Loop::Error;
  enum class Phase { kIdle, kHead, kBody, kBusy, kStream, kAnswer, kLinger, kClosed };
  struct Exchange {
    Request request;
    Response response;
    bool chunked = false;  // the caller takes an answer in pieces that say how long they are
  };
  // An answer that is written in pieces.
  struct Stream {
    std::deque<std::string> pieces;  // not yet taken; the first of them up to `sent`
    std::size_t sent = 0;
    bool sending = false;
    bool ended = false;  // the handler has returned
    std::string broken;  // why nothing more is sent, or ""
  };

  void await();
  void read_head();
  void on_head(const Error& error);
  int refusal() const;
  int prepare_body();
  void read_body();
  void on_body(const Error& error);
  void on_broken(const Error& error);
  void fill_request();
  void dispatch();
  void work(const std::shared_ptr<Exchange>& exchange);
  void refuse(int status);
  void answer();
  Headers settle(int status, bool framed);
  void send();
  void on_sent(const Error& error, std::size_t count);
  void write(Exchange& exchange, const std::string& bytes);
  void open_stream(const Response& head, bool chunked);
  void push(std::string piece);
  void send_piece();
  void on_piece(const Error& error, std::size_t count);
  void end_stream();
  void fail(const std::string& reason) noexcept;
  void linger();
  void drop_rest();
  void end_by(Clock::time_point until);
  void on_deadline();
  void close(const std::string& reason) noexcept;

  // A completion handler that keeps the session and ends it where the step throws: for want of memory.
  template <typename Step>
  auto guarded(Step step) {
    return [self = shared_from_this(), step](const Error& error, auto... more) {
      if (self->phase_ == Phase::kClosed) return;
      try {
        step(error, more...);
      } catch (const std::exception&) {
        self->fail("memory");
      }
    };
  }
  // Has the loop's thread do it.
  template <typename Step>
  void post(Step step) {
    boost::asio::post(loop_.io, [run = guarded([step](const Error&) { step(); })] { run({}); });
  }

  Loop& loop_;
  Loop::Tcp::socket socket_;
  boost::asio::steady_timer timer_;
  const std::string remote_;
  const bool admin_;
  Phase phase_ = Phase::kIdle;
  boost::beast::flat_buffer buffer_;
  std::optional<boost::beast::http::request_parser<boost::beast::http::string_body>> parser_;
  std::shared_ptr<Exchange> exchange_;
  Stream stream_;
  std::string head_;      // of the answer
  std::size_t sent_ = 0;  // bytes of the answer
  std::size_t left_;      // requests
  std::size_t body_ = 0;  // bytes reserved
  bool keep_ = false;     // the connection, after the answer
  bool late_ = false;
  Clock::time_point opened_ = Clock::now(), began_, answered_;
};

}  // namespace arcflow::serve

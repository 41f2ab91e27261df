// From a handler's answer to the next request, or to the end of the connection.
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <boost/asio/buffer.hpp>

#include "server/http/session.hpp"

namespace arcflow::serve {
namespace asio = boost::asio;

void Session::answer() {
  phase_ = Phase::kAnswer;
  Request& request = exchange_->request;
  Response& response = exchange_->response;
  loop_.routes.finish(request, response);
  head_ = head_of(response, settle(response.status, true));
  if (request.method == "HEAD") response.body.clear();
  sent_ = 0;
  answered_ = Clock::now();
  send();
}

// Decides whether the connection is kept after this answer, and gives the headers that say so. framed: the caller can
// tell where the answer ends.
Headers Session::settle(int status, bool framed) {
  loop_.release_body(std::exchange(body_, 0));
  --left_;
  // What is left of the request after an error must not be read as another one.
  keep_ = framed && status < 400 && parser_->is_done() && parser_->keep_alive() && left_ > 0 && !loop_.halted();
  const auto seconds = std::chrono::duration_cast<std::chrono::seconds>(loop_.rules.idle).count();
  Headers more;
  if (keep_) {
    if (parser_->get().version() < 11) more.emplace_back("Connection", "keep-alive");
    more.emplace_back("Keep-Alive", "timeout=" + std::to_string(seconds) + ", max=" + std::to_string(left_));
  } else {
    more.emplace_back("Connection", "close");
  }
  return more;
}

void Session::send() {
  const std::string& body = exchange_->response.body;
  const std::size_t of_head = std::min(sent_, head_.size());
  const std::array<asio::const_buffer, 2> rest = {asio::buffer(head_) + of_head,
                                                  asio::buffer(body) + (sent_ - of_head)};
  end_by(std::min(Clock::now() + loop_.rules.stall, answered_ + loop_.rules.answer));
  socket_.async_write_some(rest, guarded([this](const Error& error, std::size_t count) {
                             if (phase_ == Phase::kAnswer) on_sent(error, count);
                           }));
}

void Session::on_sent(const Error& error, std::size_t count) {
  if (error) return close("reset");
  sent_ += count;
  if (sent_ < head_.size() + exchange_->response.body.size()) return send();
  if (keep_ && !loop_.halted()) return await();
  linger();
}

// Sends the end of the answer, and takes what the caller still sends until it has closed too, for a moment: closing
// at once would reset the connection and take the answer from under a caller who is still writing.
void Session::linger() {
  phase_ = Phase::kLinger;
  Error ignored;
  socket_.shutdown(Loop::Tcp::socket::shutdown_send, ignored);
  end_by(Clock::now() + loop_.rules.linger);
  drop_rest();
}

void Session::drop_rest() {
  // Not buffer_: a read that was overtaken by its deadline may still use it.
  socket_.async_read_some(asio::buffer(loop_.scratch), guarded([this](const Error& error, std::size_t) {
                            if (phase_ != Phase::kLinger) return;
                            if (error) return close(late_ ? "late" : "done");
                            drop_rest();
                          }));
}

void Session::end_by(Clock::time_point until) {
  timer_.expires_at(until);
  timer_.async_wait(guarded([this](const Error& error) {
    if (!error && timer_.expiry() <= Clock::now()) on_deadline();
  }));
}

void Session::on_deadline() {
  switch (phase_) {
    case Phase::kIdle:
      return close("idle");
    case Phase::kHead:
    case Phase::kBody: {
      late_ = true;
      Error ignored;
      if (phase_ == Phase::kHead) fill_request();
      phase_ = Phase::kAnswer;  // whoever reads finds that it is too late
      socket_.cancel(ignored);
      return refuse(408);
    }
    case Phase::kAnswer:
      return close("stalled");
    case Phase::kStream:
      if (stream_.sending) fail("stalled");
      return;
    case Phase::kLinger:
      return close(late_ ? "late" : "done");
    case Phase::kBusy:
    case Phase::kClosed:
      return;
  }
}

void Session::halt() {
  if (phase_ == Phase::kIdle || phase_ == Phase::kHead || phase_ == Phase::kBody) close("shutdown");
}

void Session::close(const std::string& reason) noexcept {
  if (phase_ == Phase::kClosed) return;
  phase_ = Phase::kClosed;
  try {
    loop_.release_body(std::exchange(body_, 0));
    Error ignored;
    socket_.close(ignored);
    timer_.cancel();
    loop_.forget(this, reason);
    const bool unanswered = left_ == loop_.rules.requests;
    if (reason != "done" && reason != "late" && (unanswered || reason != "idle") && reason != "shutdown") {
      loop_.note(remote_, reason, std::chrono::duration<double>(Clock::now() - opened_).count());
    }
  } catch (...) {  // of a lock or of memory: the descriptor is closed all the same
  }
}

}  // namespace arcflow::serve

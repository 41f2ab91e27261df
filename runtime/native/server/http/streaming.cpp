// An answer in pieces: from the handler's thread to the loop's, and from there to a caller who may be slow, or gone.
#include <algorithm>
#include <boost/asio/buffer.hpp>
#include <cstdio>
#include <utility>

#include "server/http/session.hpp"

namespace arcflow::serve {
namespace {

constexpr const char* kLastChunk = "0\r\n\r\n";

std::string chunk_of(const std::string& bytes) {
  char size[20];
  std::snprintf(size, sizeof size, "%zx\r\n", bytes.size());
  return size + bytes + "\r\n";
}

}  // namespace

// On the handler's thread.
void Session::write(Exchange& exchange, const std::string& bytes) {
  Response& response = exchange.response;
  if (!response.streamed) {
    loop_.routes.head(exchange.request, response);
    response.streamed = true;
    Response head;  // a copy: the handler's own goes on changing
    head.status = response.status;
    head.headers = response.headers;
    head.streamed = true;
    post([this, head = std::move(head), chunked = exchange.chunked] { open_stream(head, chunked); });
  }
  if (bytes.empty()) return;  // an empty chunk would be the last one
  const auto piece = std::make_shared<std::string>(exchange.chunked ? chunk_of(bytes) : bytes);
  post([this, piece] { push(std::move(*piece)); });
}

void Session::open_stream(const Response& head, bool chunked) {
  phase_ = Phase::kStream;
  Headers more = settle(head.status, chunked);
  if (chunked) more.emplace_back("Transfer-Encoding", "chunked");
  push(head_of(head, more));
}

void Session::push(std::string piece) {
  if (phase_ != Phase::kStream || !stream_.broken.empty()) return;
  stream_.pieces.push_back(std::move(piece));
  if (!stream_.sending) send_piece();
}

void Session::send_piece() {
  stream_.sending = true;
  const Clock::time_point stalls = Clock::now() + loop_.rules.stall;
  end_by(stream_.ended ? std::min(stalls, answered_ + loop_.rules.answer) : stalls);
  socket_.async_write_some(boost::asio::buffer(stream_.pieces.front()) + stream_.sent,
                           guarded([this](const Error& error, std::size_t count) { on_piece(error, count); }));
}

void Session::on_piece(const Error& error, std::size_t count) {
  stream_.sending = false;
  if (!stream_.broken.empty()) return;
  if (error) return fail("reset");
  stream_.sent += count;
  if (stream_.sent == stream_.pieces.front().size()) {
    stream_.pieces.pop_front();
    stream_.sent = 0;
  }
  if (!stream_.pieces.empty()) return send_piece();
  timer_.cancel();
  if (!stream_.ended) return;
  if (keep_ && !loop_.halted()) return await();
  linger();
}

// The handler has returned.
void Session::end_stream() {
  stream_.ended = true;
  answered_ = Clock::now();
  loop_.routes.finish(exchange_->request, exchange_->response);
  if (phase_ != Phase::kStream) return close("memory");  // not even its head could be sent
  if (!stream_.broken.empty()) return close(stream_.broken);
  if (exchange_->response.cut) return close("reset");
  if (exchange_->chunked) return push(kLastChunk);
  if (!stream_.sending) linger();
}

// Ends the session, but while the handler asks of the descriptor whether the caller is there it stays open, shut down:
// the handler sees a caller who is gone, and returns.
void Session::fail(const std::string& reason) noexcept {
  if (phase_ != Phase::kStream || stream_.ended) return close(reason);
  if (!stream_.broken.empty()) return;
  stream_.broken = reason;
  Error ignored;
  timer_.cancel(ignored);
  socket_.shutdown(Loop::Tcp::socket::shutdown_both, ignored);
}

}  // namespace arcflow::serve

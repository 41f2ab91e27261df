// From a request's first byte to its handler.
#include "server/http/session.hpp"

#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <boost/beast/http/read.hpp>
#include <limits>
#include <thread>

namespace arcflow::serve {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = boost::beast::http;

constexpr std::uint32_t kHeadLimit = 16 * 1024;  // bytes of the request line and all headers
constexpr std::size_t kTargetLimit = 8192;       // bytes
constexpr std::ptrdiff_t kHeadersLimit = 100;
constexpr std::size_t kFirstBuffer = 1024, kBodyBuffer = 16 * 1024, kMostBuffer = 64 * 1024;

std::string text(beast::string_view view) { return {view.data(), view.size()}; }

// A caller who closes at least its sending half is gone, also behind bytes that nobody has read.
bool is_gone(int descriptor) {
#if defined(POLLRDHUP)
  pollfd state{descriptor, POLLRDHUP, 0};
  return poll(&state, 1, 0) > 0;
#else
  char byte;
  const ssize_t count = recv(descriptor, &byte, 1, MSG_PEEK | MSG_DONTWAIT);
  return count == 0 || (count < 0 && errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR);
#endif
}

}  // namespace

Session::Session(Loop& loop, Loop::Tcp::socket&& socket, std::string remote, bool admin)
    : loop_(loop),
      socket_(std::move(socket)),
      timer_(loop.io),
      remote_(std::move(remote)),
      admin_(admin),
      buffer_(kMostBuffer),
      left_(loop.rules.requests) {}

Session::~Session() { close("memory"); }

void Session::await() {
  phase_ = Phase::kIdle;
  parser_.reset();
  exchange_.reset();
  head_ = {};
  stream_ = {};
  if (buffer_.size() > 0) return read_head();
  buffer_.shrink_to_fit();  // who is idle holds little
  end_by(Clock::now() + loop_.rules.idle);
  socket_.async_wait(Loop::Tcp::socket::wait_read, guarded([this](const Error&) {
                       if (phase_ == Phase::kIdle) read_head();
                     }));
}

void Session::read_head() {
  phase_ = Phase::kHead;
  began_ = Clock::now();
  late_ = false;
  parser_.emplace();
  parser_->header_limit(kHeadLimit);
  parser_->body_limit(std::numeric_limits<std::uint64_t>::max());  // prepare_body looks after it
  buffer_.reserve(kFirstBuffer);
  end_by(began_ + loop_.rules.request);
  http::async_read_header(socket_, buffer_, *parser_, guarded([this](const Error& error, std::size_t) {
                            if (phase_ == Phase::kHead) on_head(error);
                          }));
}

void Session::on_head(const Error& error) {
  if (error && error != http::error::partial_message && !parser_->got_some() && buffer_.size() == 0) {
    return close(left_ == loop_.rules.requests ? "unused" : "done");
  }
  fill_request();
  if (error == http::error::header_limit || error == http::error::buffer_overflow) {
    return refuse(parser_->get().target().empty() ? 414 : 431);
  }
  if (error) return on_broken(error);
  int status = refusal();
  if (status == 0 && loop_.routes.begin(exchange_->request, exchange_->response, admin_)) return answer();
  if (status == 0) status = prepare_body();
  if (status != 0) return refuse(status);
  if (parser_->is_done()) return dispatch();
  const std::string expected = text(parser_->get()[http::field::expect]);
  if (expected.empty() || parser_->get().version() < 11 || buffer_.size() > 0) return read_body();
  if (!beast::iequals(expected, "100-continue")) return refuse(417);
  static const std::string go_on = "HTTP/1.1 100 Continue\r\n\r\n";
  Error ignored;  // a caller that has not read one line yet has room for this one
  socket_.non_blocking(true, ignored);
  socket_.write_some(asio::buffer(go_on), ignored);
  read_body();
}

// What the head has against it, as a status, or 0.
int Session::refusal() const {
  const auto& message = parser_->get();
  if (message.target().size() > kTargetLimit) return 414;
  if (std::distance(message.begin(), message.end()) > kHeadersLimit) return 431;
  const auto coding = message[http::field::transfer_encoding];
  if (message.count(http::field::transfer_encoding) == 0) return 0;
  // Two ways to say where the body ends are one too many, and there is one coding that ends it.
  const bool plain = message.version() >= 11 && beast::iequals(coding, "chunked") &&
                     message.count(http::field::transfer_encoding) == 1 &&
                     message.count(http::field::content_length) == 0;
  return plain ? 0 : 400;
}

int Session::prepare_body() {
  const auto& message = parser_->get();
  const auto length = parser_->content_length();
  if (message.method() == http::verb::post) {
    const std::string coding = text(message[http::field::content_encoding]);
    if (!coding.empty() && !beast::iequals(coding, "identity")) return 415;
    if (!length && !parser_->chunked()) return 411;
  }
  if (length && *length > loop_.rules.max_body) return 413;
  if (parser_->is_done()) return 0;
  const std::size_t bytes = length ? static_cast<std::size_t>(*length) : loop_.rules.max_body;
  if (!loop_.reserve_body(bytes)) return 503;
  body_ = bytes;
  return 0;
}

void Session::read_body() {
  phase_ = Phase::kBody;
  parser_->body_limit(loop_.rules.max_body);
  buffer_.reserve(kBodyBuffer);
  http::async_read(socket_, buffer_, *parser_, guarded([this](const Error& error, std::size_t) {
                     if (phase_ == Phase::kBody) on_body(error);
                   }));
}

void Session::on_body(const Error& error) {
  if (error == http::error::body_limit) return refuse(413);
  if (error) return on_broken(error);
  dispatch();
}

void Session::on_broken(const Error& error) {
  const bool syntax = error.category() == http::make_error_code(http::error::bad_target).category();
  if (!syntax) return close("reset");
  refuse(400);
}

void Session::fill_request() {
  exchange_ = std::make_shared<Exchange>();
  Request& request = exchange_->request;
  const auto& message = parser_->get();
  request.method = text(message.method_string());
  if (!message.target().empty()) request.path = path_of(text(message.target()));
  for (const auto& field : message) request.headers.emplace_back(text(field.name_string()), text(field.value()));
  request.remote_addr = remote_;
  request.began = began_;
  if (request.method == "<unknown>") request.method.clear();
}

void Session::dispatch() {
  phase_ = Phase::kBusy;
  timer_.cancel();
  Request& request = exchange_->request;
  request.body = std::move(parser_->get().body());
  if (request.method != "POST") {
    loop_.routes.handle(request, exchange_->response);
    return answer();
  }
  exchange_->chunked = parser_->get().version() >= 11;
  request.is_connection_closed = [descriptor = socket_.native_handle()] { return is_gone(descriptor); };
  if (!loop_.pool.submit([self = shared_from_this(), exchange = exchange_] { self->work(exchange); })) refuse(503);
}

// On a thread of the pool.
void Session::work(const std::shared_ptr<Exchange>& exchange) {
  const Request& request = exchange->request;
  Response& response = exchange->response;
  try {
    if (request.is_connection_closed()) {
      response.status = 499;
    } else {
      response.write = [this, &exchange](const std::string& bytes) { write(*exchange, bytes); };
      loop_.routes.handle(request, response);
    }
  } catch (const std::exception&) {
    response.cut = response.streamed;
    if (!response.streamed) response.status = 503;
  }
  response.write = nullptr;
  for (;;) {
    try {
      return response.streamed ? post([this] { end_stream(); }) : post([this] { answer(); });
    } catch (const std::exception&) {  // for want of memory: the answer is not lost for that
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
  }
}

void Session::refuse(int status) {
  Response& response = exchange_->response;
  response.status = status;
  response.headers.clear();
  response.body.clear();
  answer();
}

}  // namespace arcflow::serve

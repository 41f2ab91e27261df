// A request as handlers see it, and the answer that they fill in.
#pragma once

#include <any>
#include <chrono>
#include <functional>
#include <string>
#include <utility>
#include <vector>

namespace arcflow::serve {

using Headers = std::vector<std::pair<std::string, std::string>>;  // in the order of arrival

struct Request {
  std::string method;
  std::string path;  // without the query, percent signs decoded
  Headers headers;
  std::string body;
  std::string remote_addr;
  std::chrono::steady_clock::time_point began;  // when its first byte was there
  // Whether nobody waits for the answer any more. From any thread, while the handler runs.
  std::function<bool()> is_connection_closed = [] { return false; };

  // The first of that name in any case of letters, or "".
  std::string get_header_value(const std::string& name) const;
};

struct Response {
  int status = 200;
  Headers headers;
  std::string body;
  std::any user_data;  // what the service keeps about the request

  // In place of a body: sends the head, the first time, and then these bytes. For handlers of POST. Returns at once and
  // never fails for the caller's sake: what a slow one has not taken waits in memory.
  std::function<void(const std::string& bytes)> write;
  bool streamed = false;  // write was called: status and headers cannot change any more
  bool cut = false;       // what was written is not whole: the connection ends in a way that shows it

  void set_header(std::string name, std::string value) { headers.emplace_back(std::move(name), std::move(value)); }
  void set_content(std::string content, const std::string& type);
};

// The answer's first lines, to the empty one. Of one that is streamed `more` says where it ends.
std::string head_of(const Response& response, const Headers& more);

// The path of a request's target in origin form ("/health?x") or absolute form ("http://host/health"), decoded.
std::string path_of(const std::string& target);

}  // namespace arcflow::serve

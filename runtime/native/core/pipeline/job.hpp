// What the files of the pipeline share: a request on its way, clocks of its stages, calls to the caller's functions.
#pragma once

#include <chrono>
#include <cstdint>
#include <exception>
#include <string>
#include <utility>
#include <vector>

#include "core/error.hpp"
#include "core/pipeline/pipeline.hpp"

namespace arcflow::core {

// Prompts as token ids, equal prompts once.
struct EncodedPrompts {
  TokensByEncoder tokens;           // a row for each prompt that differs from those before it
  std::vector<std::size_t> row_of;  // by prompt of the request
  std::vector<std::string> warnings;
};

// The token ids of a request: those it came with, or what the tokenizers make of its prompts.
EncodedPrompts tokenize(const CheckedRequest& request, const std::vector<PromptTokenizer>& tokenizers);

inline double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// Adds the time from its making to its end to a stage.
class Stage {
 public:
  explicit Stage(double& total) : total_(total), start_(Clock::now()) {}
  Stage(const Stage&) = delete;
  Stage& operator=(const Stage&) = delete;
  ~Stage() { total_ += seconds_since(start_); }

 private:
  double& total_;
  Clock::time_point start_;
};

// Calls one of the caller's functions. What it throws becomes an error: C has no exceptions.
template <class Call>
void call_back(const char* name, Call&& call) {
  std::string what;
  try {
    call();
    return;
  } catch (const Error&) {
    throw;
  } catch (const std::exception& error) {
    what = error.what();
  } catch (...) {
    what = "an exception";
  }
  throw Error(ARCFLOW_INTERNAL, std::string("the callback ") + name + " threw: " + what +
                                    "; callbacks end a request by what they return");
}

// Where a request stands.
struct Session::Job {
  const CheckedRequest& request;
  const Listener& listener;
  ArcflowOutput& output;
  const Supervised& supervised;
  bool all_networks = false;  // decode though nobody asked for pixels
  EncodedPrompts prompts{};
  Encoded encoded{};
  std::vector<std::size_t> rows{};  // by image of the batch: its prompt's row
  std::int64_t text_tokens = 0;     // of the batch
  std::uint32_t evaluations = 0;    // of the whole request
  std::uint32_t done = 0;           // evaluations
  std::uint32_t frame = 0;          // previews of the batch so far

  bool watched() const noexcept { return listener.on_step != nullptr || request.previews > 0; }
};

}  // namespace arcflow::core

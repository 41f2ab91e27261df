// The command line of arcflow-serve.
#pragma once

#include <arcflow/arcflow.hpp>
#include <cstddef>
#include <string>
#include <variant>
#include <vector>

#include "server/engine.hpp"
#include "server/telemetry/log.hpp"

namespace arcflow::serve {

struct Options {
  ModelOptions model;
  std::string host = "127.0.0.1";
  int port = 8080;
  int admin_port = -1;  // -1: none
  std::size_t workers = 1;
  std::size_t queue = 64;
  std::size_t max_batch = 0;  // images; 0: the model's
  double batch_wait = 2;      // milliseconds
  double timeout = 60;        // seconds
  double grace = 30;          // seconds
  std::size_t max_body = 1 << 20;
  // Sizes "WIDTHxHEIGHT" to warm up at; "usual" and "none" stand for the model's usual size and for nothing.
  std::vector<std::string> warm_up = {"usual"};
  LogFormat log_format = LogFormat::kText;
};

// What is to be printed before the end, and the exit code: help (0), or one line about a bad option (2).
struct Exit {
  int code = 0;
  std::string text;
};

std::variant<Options, Exit> parse_options(int count, const char* const* arguments);

// The shapes to warm up at, or throws std::invalid_argument with a sentence.
std::vector<Shape> warm_up_shapes(const std::vector<std::string>& sizes, const ModelDescription& model);

}  // namespace arcflow::serve

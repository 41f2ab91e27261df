// The command line of arcflow-serve.
#pragma once

#include <arcflow/arcflow.hpp>
#include <cstddef>
#include <string>
#include <variant>
#include <vector>

#include "server/engine.hpp"
#include "server/requests/request.hpp"
#include "server/telemetry/log.hpp"

namespace arcflow::serve {

struct Options {
  ModelOptions model;                          // what all models have in common; its bundle and device are not read
  std::vector<std::string> models = {"tiny"};  // names or folders of bundles
  std::vector<std::uint32_t> devices = {0};    // ordinals of GPUs; every model is on each
  std::string host = "127.0.0.1";
  int port = 8080;
  int admin_port = -1;               // -1: none
  std::size_t workers = 1;           // sessions of a model on a device
  std::size_t queue = 64;            // requests of a model
  std::size_t max_batch = 0;         // images; 0: the model's
  std::size_t batch_work = 64;       // evaluations of a batch
  std::size_t queue_per_caller = 0;  // requests; 0: any number
  std::uint32_t max_nfe = 0;         // of a request; 0: the model's
  std::uint32_t max_images = kMaxImages;
  double batch_wait = 2;   // milliseconds
  double timeout = 60;     // seconds
  double drain_delay = 0;  // seconds
  double grace = 30;       // seconds
  std::size_t max_body = 1 << 20;
  // Sizes "WIDTHxHEIGHT" to warm up at; "usual" and "none" stand for the model's usual size and for nothing.
  std::vector<std::string> warm_up = {"usual"};
  std::vector<std::string> aliases;  // "NAME=MODEL"
  std::string api_keys;              // a file, or "" where anybody may ask
  std::vector<std::string> allowed_hosts;
  std::string cors;
  bool page = true;  // whether there is one at /
  LogFormat log_format = LogFormat::kText;
  std::string log_level = "info";  // the least that is written
};

// What is to be printed before the end, and the exit code: help (0), or one line about a bad option (2).
struct Exit {
  int code = 0;
  std::string text;
};

std::variant<Options, Exit> parse_options(int count, const char* const* arguments);

// The shapes to warm up each model at: those of the sizes that it takes. Throws std::invalid_argument with a sentence
// for a size that none of them takes.
std::vector<std::vector<Shape>> warm_up_shapes(const std::vector<std::string>& sizes, const Catalogue& catalogue);

}  // namespace arcflow::serve

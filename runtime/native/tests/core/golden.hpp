// The repository's golden vectors, for the tests of every implementation.
#pragma once

#include <algorithm>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/numerics/compute.hpp"

namespace golden {

inline nlohmann::json read(const std::string& name) {
  std::ifstream file(std::string(ARCFLOW_SOURCE_DIR) + "/tests/golden/" + name);
  if (!file) throw std::runtime_error("cannot read tests/golden/" + name);
  return nlohmann::json::parse(file);
}

// Nested lists of numbers in their order.
inline void flatten(const nlohmann::json& nested, std::vector<double>& out) {
  if (nested.is_array()) {
    for (const auto& part : nested) flatten(part, out);
  } else {
    out.push_back(nested.get<double>());
  }
}

inline std::vector<float> floats(const std::vector<double>& values) { return {values.begin(), values.end()}; }

// The greatest difference by the greatest expected value; 1e30 where there is a NaN.
inline double relative_error(const std::vector<float>& actual, const std::vector<double>& expected) {
  if (actual.size() != expected.size()) throw std::runtime_error("values of two lengths cannot be compared");
  double scale = 1e-30, worst = 0.0;
  for (const double value : expected) scale = std::max(scale, std::abs(value));
  for (std::size_t i = 0; i < actual.size(); ++i) {
    const double error = std::abs(static_cast<double>(actual[i]) - expected[i]);
    worst = std::max(worst, std::isnan(error) ? 1e30 : error);
  }
  return worst / scale;
}

struct SolverCase {
  std::string name;
  arcflow::core::Segment segment;
  std::vector<double> x_a, means, logweights, loggammas, x_b;
};

inline std::vector<SolverCase> solver_cases() {
  std::vector<SolverCase> cases;
  const nlohmann::json document = read("solver.json");
  for (const auto& entry : document.at("cases")) {
    const auto& shape = entry.at("shape");
    SolverCase one;
    one.name = entry.at("name");
    one.segment = {shape.at("batch"),     shape.at("tokens"),    shape.at("modes"),   shape.at("channels"),
                   shape.at("positions"), entry.at("sigma_src"), entry.at("sigma_a"), entry.at("sigma_b")};
    flatten(entry.at("x_a"), one.x_a);
    flatten(entry.at("means"), one.means);
    flatten(entry.at("logweights"), one.logweights);
    flatten(entry.at("loggammas"), one.loggammas);
    flatten(entry.at("x_b"), one.x_b);
    cases.push_back(one);
  }
  if (cases.size() < 9) throw std::runtime_error("tests/golden/solver.json holds too few cases");
  return cases;
}

}  // namespace golden

// Finding a bundle by model, precision and target; which comes first is told in engines/locate.py.
#pragma once

#include <string>
#include <vector>

#include "core/bundle/names.hpp"

namespace arcflow::core {

// The folders of $ARCFLOW_ENGINES, then `built_in`, unless it is empty.
std::vector<std::string> default_roots(const std::string& built_in);

// The folder of the bundle of `model` under the first of `roots` that has it; its content is not looked at.
// precision, target: "" leaves the choice open. Throws Error(ARCFLOW_BUNDLE_REJECTED), which lists what there is.
std::string locate(const std::string& model, const std::string& precision, const std::string& target,
                   const std::vector<std::string>& roots);

// Whether the bundle of that name is one for `target`: the same, or a GPU among those of its plans.
bool serves(const BundleName& name, const std::string& target);

}  // namespace arcflow::core

// Files of this folder that the build puts into the program (embed.cmake).
#pragma once

#include <string_view>

namespace arcflow::serve::embedded {

extern const std::string_view page;     // index.html with its style and its scripts inside
extern const std::string_view openapi;  // openapi.json

}  // namespace arcflow::serve::embedded

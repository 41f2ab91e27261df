// The page at / and the description of the API: what is sent, and with which headers.
#pragma once

#include <string>
#include <string_view>

#include "server/http/message.hpp"

namespace arcflow::serve {

// What lets a browser run this page's own style and script, show images that the script made, speak to this server, and
// nothing else. The style and the script are known by their hashes. Throws std::logic_error where the page has none.
std::string content_policy(std::string_view page);

// The page as a browser needs it; 304 to one that has it.
void give_page(const Request& request, Response& response);
// The OpenAPI document of all paths; 304 to a caller that has it.
void give_openapi(const Request& request, Response& response);

}  // namespace arcflow::serve

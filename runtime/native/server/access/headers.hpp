// What request headers say about who asks and from where. Pure.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace arcflow::serve {

// The key of "Bearer KEY", or "" where the header's value is something else.
std::string_view bearer_of(std::string_view authorization);

// Whether a Host header's value names one of these hosts, whatever the port and the case. True where none are given.
bool is_allowed_host(std::string_view host, const std::vector<std::string>& allowed);

// Whether this is a trace context of the W3C's version 00: 00-<32 digits>-<16 digits>-<2 digits>, in small hexadecimal
// digits, and neither id nought.
bool is_traceparent(std::string_view value);

// Whether a web page of this origin may read answers: cors is the one that may, "*" for all, "" for none.
bool is_allowed_origin(std::string_view origin, std::string_view cors);

}  // namespace arcflow::serve

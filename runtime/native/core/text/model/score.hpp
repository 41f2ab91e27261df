// Numbers as Rust's serde_json reads them.
#pragma once

namespace arcflow::core::tokenizer {

// The tokenizers package gets its scores through serde_json, which reads "-1.3713527811216915" as the whole number
// divided by a power of ten: two roundings where a correct reader makes one. The last bit decides between paths of
// nearly equal score, so it is reproduced: the value that serde_json has for the shortest text of `exact`.
double as_serde_reads(double exact);

}  // namespace arcflow::core::tokenizer

// A strict reader of JSON text, forward only, that rejects in msgspec's words.
//
// Not nlohmann's parser: that turns integers beyond 64 bits into floats, keeps no order of faults (a wrong type is
// found after a syntax error further on) and places its errors otherwise, so that Python and C++ could not be compared.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>

namespace arcflow::core {

// What is wrong with a text, without the file's name.
class JsonError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// A number as it was written.
struct JsonNumber {
  std::string_view text;
  bool is_float = false;        // has a fraction or an exponent
  bool fits = false;            // an integer from -2^63 to 2^64 - 1
  bool negative = false;        // starts with a minus
  std::uint64_t magnitude = 0;  // where it fits

  // The nearest double; nothing where that is infinite.
  std::optional<double> real() const;
};

class JsonReader {
 public:
  // data: any bytes; must outlive the reader.
  explicit JsonReader(std::string_view data) : data_(data) {}

  // The next byte that is not white space, which stays where it is. Every function throws JsonError.
  char peek();
  // The string that starts here, escapes resolved. Whether it is UTF-8 is left to the caller.
  std::string string();
  JsonNumber number();
  // The rest of null, true or false: a word that starts with the byte that was peeked.
  void word(std::string_view whole);
  // Whether there is one more element in the array whose '[' was passed; the ']' is passed with the last.
  bool element(bool& first);
  // The next key of the object whose '{' was passed, which a colon must follow; nothing after the last.
  std::optional<std::string> key(bool& first);
  void colon();
  // Passes one byte: the bracket that was peeked.
  void pass() { ++at_; }
  // Passes a whole value, whatever it is.
  void skip();
  // Rejects what follows the value.
  void finish();

 private:
  enum class Use { read, skip };

  [[noreturn]] void malformed(const char* reason) const;
  [[noreturn]] static void truncated();
  bool done() const { return at_ == data_.size(); }
  unsigned char byte() const { return static_cast<unsigned char>(data_[at_]); }
  bool digit() const { return !done() && byte() >= '0' && byte() <= '9'; }
  std::size_t digits();
  bool next(char end, const char* expected, const char* trailing, bool& first);
  void text(std::string* out);
  void escape(std::string* out);
  std::uint32_t hex4();
  std::uint32_t code_point(Use use);
  JsonNumber scan(Use use);
  void skip_container(bool object, int depth);
  void skip_value(int depth);
  void skip_word(std::string_view whole);

  std::string_view data_;
  std::size_t at_ = 0;
};

}  // namespace arcflow::core

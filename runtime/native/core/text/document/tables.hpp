// Tables that are filled once and then only read, made for vocabularies of some hundred thousand entries.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace arcflow::core::tokenizer {

// Texts one after the other in one block of memory.
class Texts {
 public:
  std::size_t size() const noexcept { return ends_.size(); }
  void add(std::string_view text) {
    bytes_ += text;
    ends_.push_back(bytes_.size());
  }
  std::string_view operator[](std::size_t i) const {
    const std::size_t begin = i == 0 ? 0 : ends_[i - 1];
    return std::string_view(bytes_).substr(begin, ends_[i] - begin);
  }

 private:
  std::string bytes_;
  std::vector<std::size_t> ends_;
};

// Pieces and their ids. Of several with one text the last counts.
class Vocabulary {
 public:
  void add(std::string_view piece, std::uint32_t id);
  std::optional<std::uint32_t> find(std::string_view piece) const;

  // The pieces in the order in which they came first.
  std::size_t size() const noexcept { return pieces_.size(); }
  std::string_view piece(std::size_t i) const { return pieces_[i]; }
  std::uint32_t id(std::size_t i) const { return ids_[i]; }

 private:
  std::size_t slot(std::string_view piece) const;
  void grow();

  Texts pieces_;
  std::vector<std::uint32_t> ids_;
  std::vector<std::uint32_t> slots_;  // index of a piece plus one; 0: free. A power of two, at most half of them taken.
};

// What two tokens in a row merge to.
struct Merge {
  std::uint32_t rank = 0, id = 0;
};

// Merges by the ids of the pair. Of several of one pair the last counts.
class Merges {
 public:
  explicit Merges(std::size_t count = 0);
  void add(std::uint32_t left, std::uint32_t right, Merge merge);  // at most `count` of them
  const Merge* find(std::uint32_t left, std::uint32_t right) const noexcept;

 private:
  struct Entry {
    std::uint64_t pair = 0;
    Merge merge;
    bool taken = false;
  };
  std::size_t slot(std::uint64_t pair) const noexcept;

  std::vector<Entry> entries_;  // a power of two, at most half of them taken
};

}  // namespace arcflow::core::tokenizer

// Hash tables with open addressing: an entry that finds its slot taken goes to the next one.
#include "core/text/document/tables.hpp"

#include <functional>

namespace arcflow::core::tokenizer {
namespace {

std::uint64_t pair_of(std::uint32_t left, std::uint32_t right) noexcept {
  return static_cast<std::uint64_t>(left) << 32 | right;
}

// Ids are small and in a row; the slots must not be.
std::size_t mixed(std::uint64_t value) noexcept {
  value = (value ^ value >> 32) * 0x9E3779B97F4A7C15u;
  return static_cast<std::size_t>(value ^ value >> 29);
}

}  // namespace

std::size_t Vocabulary::slot(std::string_view piece) const {
  const std::size_t mask = slots_.size() - 1;
  std::size_t at = std::hash<std::string_view>()(piece) & mask;
  while (slots_[at] != 0 && pieces_[slots_[at] - 1] != piece) at = (at + 1) & mask;
  return at;
}

void Vocabulary::grow() {
  slots_.assign(slots_.empty() ? 1024 : 2 * slots_.size(), 0);
  for (std::size_t i = 0; i < pieces_.size(); ++i) slots_[slot(pieces_[i])] = static_cast<std::uint32_t>(i + 1);
}

void Vocabulary::add(std::string_view piece, std::uint32_t id) {
  if (2 * (pieces_.size() + 1) > slots_.size()) grow();
  std::uint32_t& index = slots_[slot(piece)];
  if (index != 0) {
    ids_[index - 1] = id;
    return;
  }
  pieces_.add(piece);
  ids_.push_back(id);
  index = static_cast<std::uint32_t>(pieces_.size());
}

std::optional<std::uint32_t> Vocabulary::find(std::string_view piece) const {
  if (slots_.empty()) return std::nullopt;
  const std::uint32_t index = slots_[slot(piece)];
  return index == 0 ? std::nullopt : std::optional(ids_[index - 1]);
}

Merges::Merges(std::size_t count) {
  std::size_t size = 2;
  while (size < 2 * count) size *= 2;
  entries_.resize(size);
}

std::size_t Merges::slot(std::uint64_t pair) const noexcept {
  const std::size_t mask = entries_.size() - 1;
  std::size_t at = mixed(pair) & mask;
  while (entries_[at].taken && entries_[at].pair != pair) at = (at + 1) & mask;
  return at;
}

void Merges::add(std::uint32_t left, std::uint32_t right, Merge merge) {
  const std::uint64_t pair = pair_of(left, right);
  entries_[slot(pair)] = {pair, merge, true};
}

const Merge* Merges::find(std::uint32_t left, std::uint32_t right) const noexcept {
  const Entry& entry = entries_[slot(pair_of(left, right))];
  return entry.taken ? &entry.merge : nullptr;
}

}  // namespace arcflow::core::tokenizer

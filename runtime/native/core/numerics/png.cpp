// Writing PNG with zlib. One filter a row is chosen, that whose differences sum to the least.
#include "core/numerics/png.hpp"

#include <zlib.h>

#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <new>
#include <optional>
#include <vector>

#include "core/error.hpp"
#include "core/pipeline/request/settings.hpp"

namespace arcflow::core {
namespace {

constexpr std::size_t kPixel = 3;  // bytes
constexpr std::size_t kFilters = 5;
constexpr int kLevel = 6;

std::string big_endian(std::uint32_t value) {
  return {static_cast<char>(value >> 24), static_cast<char>(value >> 16), static_cast<char>(value >> 8),
          static_cast<char>(value)};
}

void append_chunk(std::string& png, const std::string& kind, const std::string& data) {
  const std::size_t start = png.size() + 4;
  png += big_endian(static_cast<std::uint32_t>(data.size())) + kind + data;
  const auto* bytes = reinterpret_cast<const Bytef*>(png.data() + start);
  const uLong checksum = crc32(0, bytes, static_cast<uInt>(png.size() - start));
  png += big_endian(static_cast<std::uint32_t>(checksum));
}

// Valid UTF-8 in Latin-1, or nothing where that has not all of its characters.
std::optional<std::string> latin1(const std::string& text) {
  std::string result;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const auto byte = static_cast<unsigned char>(text[i]);
    if (byte < 0x80) {
      result += text[i];
    } else if (byte <= 0xC3 && i + 1 < text.size()) {  // Two bytes, U+0080 to U+00FF.
      result += static_cast<char>((byte & 0x03) << 6 | (static_cast<unsigned char>(text[++i]) & 0x3F));
    } else {
      return std::nullopt;
    }
  }
  return result;
}

void append_text(std::string& png, const std::string& keyword, const std::string& value) {
  if (const auto narrow = latin1(value)) {
    append_chunk(png, "tEXt", keyword + '\0' + *narrow);
  } else {
    append_chunk(png, "iTXt", keyword + std::string(5, '\0') + value);  // Uncompressed, of no language.
  }
}

// What the filter makes of a byte whose neighbours are `left`, `up` and, between them, `corner`.
template <std::size_t kFilter>
std::uint8_t filtered(unsigned here, unsigned left, unsigned up, unsigned corner) {
  if constexpr (kFilter == 0) return static_cast<std::uint8_t>(here);
  if constexpr (kFilter == 1) return static_cast<std::uint8_t>(here - left);
  if constexpr (kFilter == 2) return static_cast<std::uint8_t>(here - up);
  if constexpr (kFilter == 3) return static_cast<std::uint8_t>(here - (left + up) / 2);
  // Paeth: the neighbour that is nearest to left + up - corner; left before up before corner.
  const int across = static_cast<int>(up) - static_cast<int>(corner);
  const int down = static_cast<int>(left) - static_cast<int>(corner);
  const int to_left = std::abs(across), to_up = std::abs(down), to_corner = std::abs(across + down);
  const unsigned other = to_up <= to_corner ? up : corner;
  return static_cast<std::uint8_t>(here - (to_left <= to_up && to_left <= to_corner ? left : other));
}

// Fills out[1 ..] with the filtered row and returns the sum of its differences; each row begins after a pixel of zeros.
template <std::size_t kFilter>
std::uint64_t filter_row(const std::uint8_t* row, const std::uint8_t* above, std::size_t bytes, std::uint8_t* out) {
  std::uint64_t cost = 0;
  out[0] = static_cast<std::uint8_t>(kFilter);
  for (std::size_t i = 0; i < bytes; ++i) {
    const std::uint8_t value = filtered<kFilter>(row[kPixel + i], row[i], above[kPixel + i], above[i]);
    out[1 + i] = value;
    cost += std::min<std::uint8_t>(value, static_cast<std::uint8_t>(-value));  // A difference of 255 is one of -1.
  }
  return cost;
}

// zlib's compressor, fed row by row: how it is fed does not change what comes out.
class Deflate {
 public:
  Deflate() {
    if (deflateInit(&stream_, kLevel) != Z_OK) throw std::bad_alloc();
  }
  ~Deflate() { deflateEnd(&stream_); }
  Deflate(const Deflate&) = delete;
  Deflate& operator=(const Deflate&) = delete;

  void append(const std::uint8_t* data, std::size_t bytes, int flush, std::string& out) {
    stream_.next_in = const_cast<Bytef*>(data);
    stream_.avail_in = static_cast<uInt>(bytes);
    do {
      stream_.next_out = buffer_.data();
      stream_.avail_out = static_cast<uInt>(buffer_.size());
      deflate(&stream_, flush);
      out.append(reinterpret_cast<const char*>(buffer_.data()), buffer_.size() - stream_.avail_out);
    } while (stream_.avail_out == 0);
  }

 private:
  z_stream stream_{};
  std::vector<Bytef> buffer_ = std::vector<Bytef>(std::size_t{1} << 16);
};

std::string compressed(const std::uint8_t* rgb8, std::size_t width, std::size_t height) {
  const std::size_t bytes = width * kPixel;
  std::vector<std::uint8_t> above(kPixel + bytes), row(kPixel + bytes);
  std::vector<std::uint8_t> rows[kFilters];
  for (auto& candidate : rows) candidate.resize(1 + bytes);
  Deflate deflate;
  std::string out;
  for (std::size_t y = 0; y < height; ++y) {
    std::copy_n(rgb8 + y * bytes, bytes, row.begin() + kPixel);
    const std::uint64_t costs[kFilters] = {
        filter_row<0>(row.data(), above.data(), bytes, rows[0].data()),
        filter_row<1>(row.data(), above.data(), bytes, rows[1].data()),
        filter_row<2>(row.data(), above.data(), bytes, rows[2].data()),
        filter_row<3>(row.data(), above.data(), bytes, rows[3].data()),
        filter_row<4>(row.data(), above.data(), bytes, rows[4].data()),
    };
    const auto& best = rows[std::min_element(std::begin(costs), std::end(costs)) - std::begin(costs)];
    deflate.append(best.data(), best.size(), y + 1 == height ? Z_FINISH : Z_NO_FLUSH, out);
    std::swap(row, above);
  }
  return out;
}

}  // namespace

std::string encode_png(const std::uint8_t* rgb8, std::uint32_t width, std::uint32_t height, const char* settings) {
  if (width < 1 || width > kMaxPngSide || height < 1 || height > kMaxPngSide) {
    throw Error(ARCFLOW_INVALID_ARGUMENT, "an image of " + std::to_string(width) + " x " + std::to_string(height) +
                                              " px; each side must be from 1 to " + std::to_string(kMaxPngSide));
  }
  std::string png = "\x89PNG\r\n\x1a\n";
  // Eight bits a channel, RGB, deflate, adaptive filters, not interlaced.
  append_chunk(png, "IHDR", big_endian(width) + big_endian(height) + std::string{8, 2, 0, 0, 0});
  if (settings != nullptr) {
    const Settings values = parse_settings(settings);
    append_text(png, "parameters", summary(values));
    append_text(png, "arcflow", to_json(values, KeyOrder::kSorted));
  }
  append_chunk(png, "IDAT", compressed(rgb8, width, height));
  append_chunk(png, "IEND", "");
  return png;
}

std::string zlib_release() { return zlibVersion(); }

}  // namespace arcflow::core

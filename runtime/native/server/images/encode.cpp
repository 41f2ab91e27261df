// libjpeg reports failures by a jump, libwebp by a size of nought.
#include "server/images/encode.hpp"

#include <webp/encode.h>

#include <algorithm>
#include <csetjmp>
#include <cstdio>
#include <cstdlib>
// After <cstdio>, whose FILE it takes as given.
#include <jpeglib.h>

namespace arcflow::serve {
namespace {

constexpr std::size_t kMostComment = 65'533;  // bytes of a JPEG's comment

struct Failure {
  jpeg_error_mgr manager;
  std::jmp_buf back;
};

void check(const Shape& shape, const Image& image) {
  if (image.rgb8.size() != std::size_t{shape.width} * shape.height * 3) {
    throw EngineError(EngineError::Kind::kOther, "the image has another size than it was asked for");
  }
}

// Nothing in it may need a destructor: a failure jumps out of the library. Gives false then; bytes is the caller's to
// free in either case.
bool write_jpeg(const Shape& shape, const Image& image, int quality, unsigned char** bytes, unsigned long* size) {
  jpeg_compress_struct state;
  Failure failure;
  state.err = jpeg_std_error(&failure.manager);
  failure.manager.error_exit = [](j_common_ptr common) {
    std::longjmp(reinterpret_cast<Failure*>(common->err)->back, 1);
  };
  if (setjmp(failure.back) != 0) {
    jpeg_destroy_compress(&state);
    return false;
  }
  jpeg_create_compress(&state);
  jpeg_mem_dest(&state, bytes, size);
  state.image_width = shape.width;
  state.image_height = shape.height;
  state.input_components = 3;
  state.in_color_space = JCS_RGB;
  jpeg_set_defaults(&state);
  jpeg_set_quality(&state, quality, TRUE);
  jpeg_start_compress(&state, TRUE);
  jpeg_write_marker(&state, JPEG_COM, reinterpret_cast<const JOCTET*>(image.settings.data()),
                    static_cast<unsigned>(std::min(image.settings.size(), kMostComment)));
  while (state.next_scanline < state.image_height) {
    auto* row = const_cast<JSAMPLE*>(image.rgb8.data()) + std::size_t{state.next_scanline} * shape.width * 3;
    jpeg_write_scanlines(&state, &row, 1);
  }
  jpeg_finish_compress(&state);
  jpeg_destroy_compress(&state);
  return true;
}

}  // namespace

const char* name_of(FileFormat format) {
  return format == FileFormat::kPng ? "png" : format == FileFormat::kJpeg ? "jpeg" : "webp";
}

std::string encode_jpeg(const Shape& shape, const Image& image, int quality) {
  check(shape, image);
  unsigned char* bytes = nullptr;
  unsigned long size = 0;
  const bool done = write_jpeg(shape, image, quality, &bytes, &size);
  const std::string file(reinterpret_cast<const char*>(bytes), done ? size : 0);
  std::free(bytes);
  if (!done) throw EngineError(EngineError::Kind::kOther, "the image cannot be written as JPEG");
  return file;
}

std::string encode_webp(const Shape& shape, const Image& image, int quality) {
  check(shape, image);
  std::uint8_t* bytes = nullptr;
  const std::size_t size =
      WebPEncodeRGB(image.rgb8.data(), static_cast<int>(shape.width), static_cast<int>(shape.height),
                    static_cast<int>(shape.width) * 3, static_cast<float>(quality), &bytes);
  const std::string file(reinterpret_cast<const char*>(bytes), size);
  WebPFree(bytes);
  if (size == 0) throw EngineError(EngineError::Kind::kOther, "the image cannot be written as WebP");
  return file;
}

}  // namespace arcflow::serve

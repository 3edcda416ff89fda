// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <span>

#include <vggload/core/error.hpp>
#include <vggload/data/colour.hpp>
#include <vggload/data/decode_options.hpp>
#include <vggload/data/image.hpp>
#include <vggload/data/image_decoder.hpp>
#include <vggload/data/scratch.hpp>
#include <vggload/memory/out_of_memory.hpp>

namespace {

/// Decodes a file and looks at every pixel. Errors of the library are what is expected.
void decode(std::span<const std::byte> file, const vggload::decode_options& options) {
  // As a worker has them, for one file after another.
  static vggload::image_decoder decoder;
  static vggload::scratch memory(std::size_t{16} << 20U);
  memory.reset();
  try {
    const vggload::image_view image = decoder.decode("input", file, options, memory);
    if (image.channels != vggload::channels_of(options.colour)) std::abort();
    if (image.height * image.width == 0) std::abort();
    if (image.height * image.width > options.pixel_limit) std::abort();
    unsigned sum = 0;
    for (std::size_t y = 0; y < image.height; ++y) {
      for (const std::uint8_t value : std::span(image.row(y), image.width * image.channels)) {
        sum += value;
      }
    }
    volatile const unsigned seen = sum;
    (void)seen;
  } catch (const vggload::error&) {
  } catch (const vggload::out_of_memory&) {
    // Refused, as it should be.
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto file = std::as_bytes(std::span(data, size));
  // An image of many scans costs all its pixels for each.
  constexpr std::uint64_t limit = 65536;
  decode(file, {.pixel_limit = limit});
  decode(file,
         {.colour = vggload::colour_mode::rgba, .pixel_limit = limit, .apply_orientation = true});
  decode(file, {.colour = vggload::colour_mode::grey, .pixel_limit = limit, .at_least = {8, 8}});
  return 0;
}

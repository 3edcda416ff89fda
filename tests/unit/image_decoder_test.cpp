// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <algorithm>
#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <limits>
#include <random>
#include <span>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include <doctest/doctest.h>
#include <zlib.h>

#include <vggload/core/error.hpp>
#include <vggload/core/shape.hpp>
#include <vggload/data/colour.hpp>
#include <vggload/data/decode_options.hpp>
#include <vggload/data/image.hpp>
#include <vggload/data/image_decoder.hpp>
#include <vggload/data/scratch.hpp>
#include <vggload/io/input_file.hpp>
#include <vggload/io/npy_reader.hpp>
#include <vggload/memory/counting_resource.hpp>
#include <vggload/memory/out_of_memory.hpp>

#include "../support/message_of.hpp"
#include "../support/temporary_folder.hpp"
#include "../support/write_jpeg.hpp"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define MALLOC_IS_COUNTED 0
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define MALLOC_IS_COUNTED 0
#endif
#endif
#ifndef MALLOC_IS_COUNTED
#define MALLOC_IS_COUNTED 1
#endif

namespace {

std::atomic<std::size_t> mallocs = 0;

}  // namespace

#if MALLOC_IS_COUNTED
// What libjpeg, libpng and zlib call too; the sanitizers have such functions of their own.
extern "C" {
void* __libc_malloc(std::size_t bytes);                     // NOLINT(bugprone-reserved-identifier)
void* __libc_calloc(std::size_t count, std::size_t bytes);  // NOLINT(bugprone-reserved-identifier)
void* malloc(std::size_t bytes) {
  ++mallocs;
  return __libc_malloc(bytes);
}
void* calloc(std::size_t count, std::size_t bytes) {
  ++mallocs;
  return __libc_calloc(count, bytes);
}
}
#endif

using namespace vggload;
using test::message_of;

namespace {

const std::string folder = FIXTURES "/images/";

std::span<const std::byte> bytes_of(std::string_view text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

std::string image_file(std::string_view name) {
  std::string bytes = test::read_file(folder + std::string(name));
  REQUIRE_MESSAGE(!bytes.empty(), name);
  return bytes;
}

/// The images among the fixtures, in the order of their names.
std::vector<std::string> image_names() {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    const std::string extension = entry.path().extension().string();
    if (extension != ".npy" && extension != ".py") names.push_back(entry.path().filename());
  }
  std::ranges::sort(names);
  return names;
}

/// What Pillow gave: red, green, blue, alpha and grey of each pixel.
struct expected_pixels {
  image_size size;
  std::vector<std::uint8_t> values;

  explicit expected_pixels(const std::string& name)
      : expected_pixels(npy_reader(input_file(folder + name + ".npy"))) {}
  explicit expected_pixels(const npy_reader& file) {
    const vggload::shape& shape = file.tensors().front().shape;
    REQUIRE(shape.rank() == 3);
    REQUIRE(shape[2] == 5);
    size = {shape[0], shape[1]};
    values.resize(size.height * size.width * 5);
    file.read(0, 0, std::as_writable_bytes(std::span(values)));
  }

  /// How many values of `image` are others.
  [[nodiscard]] std::size_t differing(const image_view& image, colour_mode mode) const {
    std::size_t count = 0;
    const std::size_t first = mode == colour_mode::grey ? 4 : 0;
    for (std::size_t y = 0; y < size.height; ++y) {
      for (std::size_t x = 0; x < size.width; ++x) {
        for (std::size_t c = 0; c < image.channels; ++c) {
          const std::uint8_t wanted = values[(y * size.width + x) * 5 + first + c];
          if (image.row(y)[x * image.channels + c] != wanted) ++count;
        }
      }
    }
    return count;
  }
};

void check_pixels(const std::string& name, const image_view& image, const std::string& expected,
                  colour_mode mode = colour_mode::rgb) {
  INFO(name << " as " << expected << " with " << channels_of(mode) << " channels");
  const expected_pixels wanted(expected);
  CHECK(image.channels == channels_of(mode));
  CHECK(image.row_bytes >= image.width * image.channels);
  CHECK(image.size() == wanted.size);
  if (image.size() == wanted.size) CHECK(wanted.differing(image, mode) == 0);
}

struct decoding {
  image_decoder decoder;
  scratch memory;

  image_view operator()(std::string_view file, const decode_options& options = {}) {
    memory.reset();
    return decoder.decode("image", bytes_of(file), options, memory);
  }
  std::string refusal(std::string_view file, const decode_options& options = {}) {
    return message_of<format_error>([&, this] { (void)(*this)(file, options); });
  }
};

/// Where the two bytes of a JPEG's marker stand.
std::size_t find_marker(std::string_view jpeg, unsigned char marker) {
  const std::array<char, 2> bytes{'\xFF', static_cast<char>(marker)};
  const std::size_t at = jpeg.find(std::string_view(bytes.data(), 2));
  REQUIRE(at != std::string_view::npos);
  return at;
}

/// The length of the segment at `at`, its marker included.
std::size_t segment_bytes(std::string_view jpeg, std::size_t at) {
  return 2 + static_cast<unsigned char>(jpeg[at + 2]) * std::size_t{256} +
         static_cast<unsigned char>(jpeg[at + 3]);
}

std::string big_endian(std::uint32_t value) {
  std::string bytes;
  for (int shift = 24; shift >= 0; shift -= 8) bytes += static_cast<char>(value >> shift & 0xFFU);
  return bytes;
}

/// What stands behind a PNG's chunk of this type and these data.
std::string sum_of(std::string_view chunk) {
  return big_endian(static_cast<std::uint32_t>(
      crc32(0, reinterpret_cast<const Bytef*>(chunk.data()), static_cast<uInt>(chunk.size()))));
}

std::string compressed(std::string_view bytes) {
  std::string packed(compressBound(bytes.size()), '\0');
  uLongf size = packed.size();
  REQUIRE(compress(reinterpret_cast<Bytef*>(packed.data()), &size,
                   reinterpret_cast<const Bytef*>(bytes.data()), bytes.size()) == Z_OK);
  packed.resize(size);
  return packed;
}

/// A BMP that only claims a size.
std::string bmp_header(std::uint32_t width, std::uint32_t height) {
  std::string file = "BM";
  const auto number = [&file](std::uint32_t value, int bytes) {
    for (int i = 0; i < bytes; ++i) file += static_cast<char>(value >> (8 * i) & 0xFFU);
  };
  number(54, 4);
  number(0, 4);
  number(54, 4);
  number(40, 4);
  number(width, 4);
  number(height, 4);
  number(1, 2);
  number(24, 2);
  for (int i = 0; i < 6; ++i) number(0, 4);
  return file;
}

}  // namespace

TEST_CASE("no row of a JPEG lies where libjpeg-turbo would write it past the caches") {
  decoding decode;
  for (const colour_mode mode : {colour_mode::rgb, colour_mode::rgba}) {
    const image_view image =
        decode(test::read_file(FIXTURES "/images/jpeg_restarts.jpg"), {.colour = mode});
    for (std::size_t y = 0; y < image.height; ++y) {
      CHECK(reinterpret_cast<std::uintptr_t>(image.row(y)) % 16 != 0);
    }
  }
}

TEST_CASE("every kind of image is what Pillow decodes it to, in each mode") {
  decoding decode;
  const std::vector<std::string> names = image_names();
  CHECK(names.size() == 84);
  for (const std::string& name : names) {
    const std::string file = image_file(name);
    for (const colour_mode mode : {colour_mode::rgb, colour_mode::rgba, colour_mode::grey}) {
      check_pixels(name, decode(file, {.colour = mode}), name, mode);
    }
  }
}

TEST_CASE("orientations are applied where that is asked for") {
  decoding decode;
  std::size_t count = 0;
  for (const std::string& name : image_names()) {
    if (!std::filesystem::exists(folder + name + ".oriented.npy")) continue;
    ++count;
    const std::string file = image_file(name);
    for (const colour_mode mode : {colour_mode::rgb, colour_mode::rgba, colour_mode::grey}) {
      check_pixels(name, decode(file, {.colour = mode, .apply_orientation = true}),
                   name + ".oriented", mode);
    }
  }
  CHECK(count == 10);
}

TEST_CASE("EXIF data that are damaged ask for nothing") {
  decoding decode;
  const std::string whole = image_file("jpeg_orientation_6.jpg");
  const std::size_t exif = find_marker(whole, 0xE1);
  const std::size_t end = exif + segment_bytes(whole, exif);
  const image_size turned = decode(whole, {.apply_orientation = true}).size();
  CHECK(turned == image_size{21, 12});
  std::size_t still_turned = 0;
  for (std::size_t at = exif + 4; at < end; ++at) {
    for (const char value : {'\x00', '\x7F', '\xFF'}) {
      std::string damaged = whole;
      damaged[at] = value;
      const image_size size = decode(damaged, {.apply_orientation = true}).size();
      CHECK((size == turned || size == image_size{12, 21}));
      if (size == turned) ++still_turned;
    }
  }
  CHECK(still_turned < (end - exif) * 3);
}

TEST_CASE("a JPEG is decoded at the smallest scale that is large enough") {
  decoding decode;
  const auto scaled = [&decode](const std::string& name, image_size at_least) {
    return decode(image_file(name), {.at_least = at_least});
  };
  for (const std::string name : {"jpeg_444.jpg", "jpeg_420.jpg", "jpeg_grey.jpg"}) {  // 25 x 33
    check_pixels(name, scaled(name, {}), name);
    check_pixels(name, scaled(name, {25, 33}), name);
    check_pixels(name, scaled(name, {99, 1}), name);
    check_pixels(name, scaled(name, {14, 1}), name);
    check_pixels(name, scaled(name, {13, 17}), name + ".half");
    check_pixels(name, scaled(name, {7, 10}), name + ".half");
    check_pixels(name, scaled(name, {7, 9}), name + ".quarter");
    check_pixels(name, scaled(name, {5, 0}), name + ".quarter");
    check_pixels(name, scaled(name, {4, 5}), name + ".eighth");
    check_pixels(name, scaled(name, {1, 1}), name + ".eighth");
  }
  // 12 x 21, and 21 x 12 when it is turned.
  const std::string turned = "jpeg_scaled_orientation.jpg";
  check_pixels(turned, scaled(turned, {6, 11}), turned + ".half");
  CHECK(scaled(turned, {11, 6}).size() == image_size{12, 21});
  decode.memory.reset();
  const auto size = [&](image_size at_least) {
    return decode(image_file(turned), {.apply_orientation = true, .at_least = at_least}).size();
  };
  CHECK(size({11, 6}) == image_size{11, 6});
  CHECK(size({6, 11}) == image_size{21, 12});
  // Other formats come whole.
  check_pixels("png_rgb_8.png", scaled("png_rgb_8.png", {1, 1}), "png_rgb_8.png");
}

TEST_CASE("colours are converted by the rules of Pillow's, in numbers") {
  using detail::luma;
  CHECK(luma({255, 255, 255}) == 255);
  CHECK(luma({0, 0, 0}) == 0);
  CHECK(luma({255, 0, 0}) == 76);   // 76.24
  CHECK(luma({0, 255, 0}) == 150);  // 149.69
  CHECK(luma({0, 0, 255}) == 29);   // 29.07
  CHECK(luma({0, 52, 184}) == 52);  // 51.5
  for (unsigned value = 0; value < 256; ++value) {
    CHECK(luma(detail::grey_pixel(static_cast<std::uint8_t>(value))) == value);
  }
  for (unsigned a = 0; a < 256; ++a) {
    for (unsigned b = 0; b < 256; ++b) REQUIRE(detail::multiply_255(a, b) == (a * b + 127) / 255);
  }
}

TEST_CASE("what a file is decides how it is read, not its name") {
  const test::temporary_folder files;
  image_decoder decoder;
  scratch memory;
  for (const std::string name :
       {"jpeg_420.jpg", "png_rgb_8.png", "bmp_24.bmp", "binary.ppm", "text.pbm"}) {
    const std::string path = files.write("wrong.tiff", image_file(name));
    memory.reset();
    check_pixels(name, decoder.decode_file(path, {}, memory), name);
  }
}

TEST_CASE("what is no image is named, and said what it is instead") {
  decoding decode;
  using namespace std::string_view_literals;
  const std::string only = " is not decoded: only JPEG, PNG, BMP, PPM, PGM and PBM are";
  CHECK(decode.refusal("II*\0\x08\0\0\0"sv) == "image: TIFF" + only);
  CHECK(decode.refusal("MM\0*\0\0\0\x08"sv) == "image: TIFF" + only);
  CHECK(decode.refusal("GIF89a") == "image: GIF" + only);
  CHECK(decode.refusal("RIFF\x10\0\0\0WEBPVP8 "sv) == "image: WebP" + only);
  CHECK(decode.refusal("\0\0\0\x1C"
                       "ftypavif"sv) == "image: AVIF" + only);
  CHECK(decode.refusal("P7\nWIDTH 3") == "image: PAM" + only);
  CHECK(decode.refusal("") == "image: the file is empty");
  const std::string neither = "image: neither JPEG, PNG, BMP, PPM, PGM nor PBM: it begins with";
  CHECK(decode.refusal("\xFF\xD8") == neither + " FF D8");
  CHECK(decode.refusal("<!DOCTYPE html>") == neither + " 3C 21 44 4F 43 54 59 50");
  CHECK(decode.refusal("P6") == neither + " 50 36");
}

TEST_CASE("files that cannot be read") {
  const test::temporary_folder files;
  image_decoder decoder;
  scratch memory;
  const auto decode = [&](const std::string& path) { (void)decoder.decode_file(path, {}, memory); };
  const std::string missing = files.file("missing.jpg");
  const auto no_file = message_of<io_error>([&] { decode(missing); });
  CHECK(no_file == missing + ": cannot open: No such file or directory");
  const std::string path = files.path().string();
  CHECK(message_of<io_error>([&] { decode(path); }) == path + ": not a regular file");
  const std::string empty = files.write("empty.jpg", "");
  CHECK(message_of<format_error>([&] { decode(empty); }) == empty + ": the file is empty");
  const std::string tiff = files.write("x.tif", "II*");
  CHECK(message_of<format_error>([&] { decode(tiff); }) ==
        tiff + ": neither JPEG, PNG, BMP, PPM, PGM nor PBM: it begins with 49 49 2A");
}

TEST_CASE("a size that is claimed is refused before memory is taken for it") {
  memory_counts counts;
  image_decoder decoder;
  scratch memory(std::size_t{1} << 20U, counting_resource<>(counts));
  const auto refusal = [&](std::string_view file, std::uint64_t limit) {
    memory.reset();
    return message_of<format_error>(
        [&] { (void)decoder.decode("x", bytes_of(file), {.pixel_limit = limit}, memory); });
  };
  const std::string is_larger = " pixels is larger than the limit of ";
  CHECK(refusal(bmp_header(20'000, 30'000), 178'956'970) ==
        "x: an image of 20000 x 30000" + is_larger + "178956970 pixels");
  CHECK(refusal(bmp_header(0xFFFFFFFF, 0x7FFFFFFF), 178'956'970) ==
        "x: an image of 4294967295 x 2147483647" + is_larger + "178956970 pixels");
  CHECK(refusal(bmp_header(0, 7), 100) == "x: an image of 0 x 7 pixels has no pixels");
  CHECK(refusal(bmp_header(7, 0), 100) == "x: an image of 7 x 0 pixels has no pixels");
  CHECK(refusal("P5 9999999999 9999999999 255 ", UINT64_MAX) ==
        "x: an image of 9999999999 x 9999999999" + is_larger + "18446744073709551615 pixels");
  CHECK(refusal("P6 0 3 255 ", 100) == "x: an image of 0 x 3 pixels has no pixels");
  CHECK(refusal(image_file("jpeg_420.jpg"), 824) ==
        "x: an image of 33 x 25" + is_larger + "824 pixels");
  CHECK(refusal(image_file("png_rgb_8.png"), 824) ==
        "x: an image of 33 x 25" + is_larger + "824 pixels");
  CHECK(counts.peak_bytes <= std::size_t{256} << 10U);
  memory.reset();
  CHECK_NOTHROW((void)decoder.decode("x", bytes_of(image_file("jpeg_420.jpg")),
                                     {.pixel_limit = 825}, memory));
  // Without a limit it is the memory that ends.
  memory.reset();
  CHECK(message_of<out_of_memory>([&] {
          (void)decoder.decode("x", bytes_of(bmp_header(0x7FFFFFFF, 0x7FFFFFFF)),
                               {.pixel_limit = UINT64_MAX}, memory);
        }).starts_with("x: "));
}

TEST_CASE("an image that ends early is an error at every length") {
  decoding decode;
  for (const std::string name :
       {"jpeg_420.jpg", "jpeg_420_progressive.jpg", "jpeg_restarts.jpg", "jpeg_cmyk.jpg",
        "png_rgb_8.png", "png_palette_4_alphas.png", "png_grey_16_interlaced.png", "bmp_24.bmp",
        "bmp_palette_4.bmp", "bmp_16_masks.bmp", "bmp_rle8.bmp", "bmp_rle4.bmp", "text.pbm",
        "binary.pbm", "binary.pgm", "largest_1000.ppm"}) {
    const std::string whole = image_file(name);
    INFO(name);
    // An image in text ends with its last number, one of a BMP may miss the padding of its last row or the code
    // for its end.
    std::size_t needed = whole.size();
    if (name == "text.pbm") needed -= 1;
    if (name == "bmp_24.bmp") needed -= 1;
    if (name == "bmp_palette_4.bmp") needed -= 3;
    if (name == "bmp_16_masks.bmp") needed -= 2;
    if (name == "bmp_rle8.bmp") needed -= 4;
    for (std::size_t size = 0; size < needed; ++size) {
      const std::string message = decode.refusal(std::string_view(whole).substr(0, size));
      REQUIRE_MESSAGE(message.starts_with("image: "), size);
      REQUIRE_MESSAGE(message.size() > 15, size);
    }
    for (std::size_t size = needed; size <= whole.size(); ++size) {
      check_pixels(name, decode(std::string_view(whole).substr(0, size)), name);
    }
    // What follows an image is not looked at.
    check_pixels(name, decode(whole + "something else"), name);
  }
}

TEST_CASE("a JPEG that ends as it should, after some of its scans, is an error") {
  decoding decode;
  for (const auto& [scans, count] : {std::pair(test::jpeg_scans::progressive, 10),
                                     std::pair(test::jpeg_scans::one_for_each_component, 3)}) {
    const std::string whole = test::jpeg_file(40, 50, 1, scans);
    CHECK(decode(whole).size() == image_size{40, 50});
    int refused = 0;
    for (std::size_t at = find_marker(whole, 0xDA); at + 2 < whole.size(); ++at) {
      const auto marker = static_cast<unsigned char>(whole[at + 1]);
      if (whole[at] != '\xFF' || (marker != 0xDA && marker != 0xC4)) continue;
      INFO(at);
      CHECK(decode.refusal(whole.substr(0, at) + "\xFF\xD9").starts_with("image: "));
      if (marker == 0xDA) ++refused;
      at += segment_bytes(whole, at) - 1;
    }
    CHECK(refused == count);
  }
}

TEST_CASE("an image one pixel wide takes the memory of its pixels") {
  image_decoder decoder;
  // A million rows of 3 bytes, and the file's own million; a row on a cache line would take 64 MB.
  scratch memory(4'100'000);
  const std::string file = "P5 1 1000000 255\n" + std::string(1'000'000, 'x');
  CHECK(decoder.decode("image", bytes_of(file), {}, memory).size() == image_size{1'000'000, 1});
}

TEST_CASE("each bit of a PNG counts") {
  decoding decode;
  for (const std::string name : {"png_grey_1.png", "png_palette_4_transparent.png"}) {
    const std::string whole = image_file(name);
    for (std::size_t bit = 0; bit < whole.size() * 8; ++bit) {
      std::string damaged = whole;
      damaged[bit / 8] = static_cast<char>(damaged[bit / 8] ^ (1 << bit % 8));
      INFO(name << ", bit " << bit);
      REQUIRE(decode.refusal(damaged).starts_with("image: "));
    }
  }
  CHECK(decode.refusal(image_file("png_rgb_8.png").replace(41, 1, "x")) ==
        "image: libpng: gAMA: CRC error");
}

TEST_CASE("pixels of a PNG that are not what was compressed, under a sum that is right") {
  decoding decode;
  const std::string whole = image_file("png_rgb_8.png");
  const std::size_t first = whole.find("IDAT");
  const std::size_t second = whole.find("IDAT", first + 1);
  const std::size_t end = whole.find("tEXt") - 8;
  std::string damaged = whole.substr(0, end);
  damaged[end - 1] = static_cast<char>(damaged[end - 1] ^ 1);  // of zlib's sum over the pixels
  const std::string chunk = damaged.substr(second);
  damaged += sum_of(chunk) + whole.substr(end + 4);
  CHECK(decode.refusal(damaged).starts_with("image: libpng: IDAT: "));
}

TEST_CASE("a PNG of more pixels than it says") {
  decoding decode;
  const auto one_pixel = [](std::string_view rows) {
    std::string file = "\x89PNG\r\n\x1A\n";
    const auto add = [&file](const std::string& chunk) {
      file += big_endian(static_cast<std::uint32_t>(chunk.size() - 4)) + chunk + sum_of(chunk);
    };
    add("IHDR" + big_endian(1) + big_endian(1) + std::string("\x08\0\0\0\0", 5));
    add("IDAT" + compressed(rows));
    add("IEND");
    return file;
  };
  using namespace std::string_view_literals;
  CHECK(*decode(one_pixel("\0\x55"sv)).row(0) == 0x55);
  CHECK(decode.refusal(one_pixel("\0\x55\0\x66"sv)) == "image: libpng: IDAT: Too much image data");
  CHECK(decode.refusal(one_pixel("\0"sv)).starts_with("image: libpng: "));
}

TEST_CASE("texts and profiles in a PNG take no memory, however large they are") {
  decoding decode;
  const std::string whole = image_file("png_rgb_8.png");
  CHECK(decode(whole).height == 25);
  const std::size_t peak = decode.memory.peak();
  const std::string zeros = compressed(std::string(4'000'000, '\0'));
  const std::string text = std::string("zTXtComment\0\0", 13) + zeros;
  const std::string profile = std::string("iCCPprofile\0\0", 13) + zeros;
  std::string file = whole.substr(0, 33);
  for (const std::string& chunk : {text, profile}) {
    file += big_endian(static_cast<std::uint32_t>(chunk.size() - 4)) + chunk + sum_of(chunk);
  }
  file += whole.substr(33);
  check_pixels("with texts", decode(file), "png_rgb_8.png");
  CHECK(decode.memory.peak() == peak);
}

TEST_CASE("ten thousand damaged images: each is an error, or an image of some pixels") {
  decoding decode;
  std::vector<std::string> files;
  for (const std::string& name : image_names()) files.push_back(image_file(name));
  std::mt19937 random(42);  // NOLINT(cert-msc32-c,cert-msc51-cpp): the same in every run
  const auto below = [&random](std::size_t bound) { return random() % bound; };
  std::size_t errors = 0;
  std::size_t images = 0;
  std::uint64_t sum = 0;
  constexpr std::array modes{colour_mode::rgb, colour_mode::rgba, colour_mode::grey};
  for (std::size_t i = 0; i < 10'000; ++i) {
    std::string file = files[i % files.size()];
    const std::size_t flips = below(4);
    for (std::size_t flip = 0; flip < flips; ++flip) {
      char& byte =
          file[below(2) == 0 ? below(file.size()) : below(std::min<std::size_t>(64, file.size()))];
      byte = static_cast<char>(byte ^ (1 << below(8)));
    }
    if (flips == 0 || below(4) == 0) file.resize(below(file.size()));
    if (below(8) == 0) file.insert(below(file.size() + 1), 1, static_cast<char>(random()));
    decode_options options{.colour = modes[below(3)], .pixel_limit = 1'000'000};
    options.apply_orientation = below(2) == 0;
    if (below(4) == 0) options.at_least = {1 + below(30), 1 + below(30)};
    try {
      const image_view image = decode(file, options);
      ++images;
      REQUIRE(image.height > 0);
      REQUIRE(image.width > 0);
      REQUIRE(image.channels == channels_of(options.colour));
      for (std::size_t y = 0; y < image.height; ++y) {
        for (std::size_t x = 0; x < image.width * image.channels; ++x) sum += image.row(y)[x];
      }
    } catch (const format_error& e) {
      ++errors;
      REQUIRE(std::string_view(e.what()).starts_with("image: "));
    }
  }
  // Flips of the pixels themselves, in BMP and PPM, nobody can see.
  CHECK(errors > 5'000);
  CHECK(images > 500);
  CHECK(sum > 0);
}

TEST_CASE("damage that libjpeg only warns of is an error") {
  decoding decode;
  const std::string whole = image_file("jpeg_444.jpg");
  const std::size_t scan = find_marker(whole, 0xDA);
  const std::size_t data = scan + segment_bytes(whole, scan);

  std::string cut = whole;
  cut.erase(data + 40, 200);
  CHECK(decode.refusal(cut).starts_with("image: Corrupt JPEG data: "));
  // All blocks were there, and bytes are left; up to eight are in libjpeg's buffer and go unseen.
  std::string longer = whole;
  longer.insert(longer.size() - 2, 20, '\x12');
  const std::string message = decode.refusal(longer);
  CHECK(message.starts_with("image: Corrupt JPEG data: "));
  CHECK(message.ends_with(" extraneous bytes before marker 0xd9"));
  std::string marker = whole;
  marker.replace(data + 100, 2, "\xFF\xD3");
  CHECK(decode.refusal(marker).starts_with("image: Corrupt JPEG data: "));
  const std::string restarts = image_file("jpeg_restarts.jpg");
  std::string out_of_order = restarts;
  out_of_order[find_marker(restarts, 0xD1) + 1] = '\xD5';
  CHECK(decode.refusal(out_of_order).starts_with("image: Corrupt JPEG data: "));
}

TEST_CASE("what does not concern the pixels is no error") {
  decoding decode;
  const std::string whole = image_file("jpeg_444.jpg");
  std::string junk = whole;
  junk.insert(find_marker(whole, 0xDB), "\x12\x34\x56");
  check_pixels("junk between segments", decode(junk), "jpeg_444.jpg");
  std::string version = whole;
  version[find_marker(whole, 0xE0) + 9] = 3;
  check_pixels("another version of JFIF", decode(version), "jpeg_444.jpg");
  std::string sequential = whole;
  const std::size_t scan = find_marker(whole, 0xDA);
  sequential[scan + segment_bytes(whole, scan) - 2] = 0;  // the last coefficient, 63
  check_pixels("a scan that says it is of one coefficient", decode(sequential), "jpeg_444.jpg");
}

TEST_CASE("JPEGs that are not decoded") {
  decoding decode;
  const std::string whole = image_file("jpeg_grey.jpg");
  const std::size_t frame = find_marker(whole, 0xC0);
  std::string file = whole;
  file[frame + 4] = 12;
  CHECK(decode.refusal(file) == "image: Unsupported JPEG data precision 12");
  // Two components instead of one.
  file = whole;
  file[frame + 3] = 14;
  file[frame + 9] = 2;
  file.insert(frame + 13, "\x02\x11\0", 3);
  CHECK(decode.refusal(file) == "image: a JPEG of 2 components is not decoded");
}

TEST_CASE("a JPEG of more scans than anyone writes is refused") {
  decoding decode;
  const std::string whole = image_file("jpeg_grey_progressive.jpg");
  // Its first scan again and again, as one of all bits: that may come any number of times.
  const std::size_t first = find_marker(whole, 0xDA);
  const std::size_t length = segment_bytes(whole, first);
  std::string scan = whole.substr(first, whole.find('\xFF', first + length) - first);
  scan[length - 1] = 0;
  std::string many = whole.substr(0, whole.size() - 2);
  for (int i = 0; i < 400; ++i) many += scan;
  CHECK(decode(many + "\xFF\xD9").size() == image_size{25, 33});
  for (int i = 0; i < 200; ++i) many += scan;
  CHECK(decode.refusal(many + "\xFF\xD9") == "image: more than 500 scans in one image");
}

TEST_CASE("a JPEG has no tables but its own, whatever was decoded before") {
  decoding decode;
  const std::string whole = image_file("jpeg_444.jpg");
  std::string without = whole;
  for (std::size_t at = 0; (at = without.find("\xFF\xDB")) != std::string::npos;) {
    without.erase(at, segment_bytes(without, at));
  }
  const std::string message = "image: Quantization table 0x00 was not defined";
  CHECK(decode.refusal(without) == message);
  check_pixels("before", decode(whole), "jpeg_444.jpg");
  CHECK(decode.refusal(without) == message);
  check_pixels("after", decode(whole), "jpeg_444.jpg");
}

TEST_CASE("colours that a palette does not have") {
  decoding decode;
  std::string bmp = image_file("bmp_palette_of_11.bmp");
  bmp[bmp.size() - 40] = 11;
  CHECK(decode.refusal(bmp) == "image: a pixel has colour 11 of a palette of 11");
}

TEST_CASE("BMPs that are not decoded") {
  decoding decode;
  const std::string whole = image_file("bmp_24.bmp");
  const auto changed = [&whole](std::size_t at, char value) {
    std::string file = whole;
    file[at] = value;
    return file;
  };
  CHECK(decode.refusal(changed(14, 41)) == "image: a BMP whose header has 41 bytes is not decoded");
  CHECK(decode.refusal(changed(28, 2)) == "image: a BMP of 2 bits for each pixel is not decoded");
  CHECK(decode.refusal(changed(30, 5)) ==
        "image: a BMP of 24 bits with compression 5 is not decoded");
  std::string masks = image_file("bmp_16_masks.bmp");
  masks[54] = 0x0F;
  CHECK(decode.refusal(masks) == "image: the masks 63503, 2016, 31, 0 of 16 bits are not decoded");
  std::string run = image_file("bmp_rle8.bmp");
  run[54 + 1024] = 10;
  CHECK(decode.refusal(run) ==
        "image: a run of 10 pixels from pixel 0 of line 0 on leaves the image of 9 x 6");
}

TEST_CASE("PPMs that are not decoded") {
  decoding decode;
  CHECK(decode.refusal("P5 2 2 0 abcd") == "image: the largest value is 0 and must be 1 to 65535");
  CHECK(decode.refusal("P5 2 2 65536 abcd") ==
        "image: the largest value is 65536 and must be 1 to 65535");
  CHECK(decode.refusal("P5 2 -2 255 abcd") == "image: no number at byte 5");
  CHECK(decode.refusal("P5 12345678901 1 255 a") ==
        "image: a number of more than 10 digits at byte 3");
  CHECK(decode.refusal("P5 2 2 255 abc") ==
        "image: the file ends within the image: 2 x 2 pixels from byte 11 on, and it has 14 bytes");
  CHECK(decode.refusal("P2 1 1 15 16 ") == "image: the value 16 at byte 10 is larger than 15");
  CHECK(decode.refusal("P1 2 1 1 2") == "image: neither 0 nor 1 at byte 9");
}

TEST_CASE("once warm, decoding takes no memory but what the scratch holds") {
  memory_counts counts;
  image_decoder decoder;
  scratch memory(std::numeric_limits<std::size_t>::max(), counting_resource<>(counts));
  std::vector<std::string> files;
  for (const std::string& name : image_names()) files.push_back(image_file(name));
  const auto decode_all = [&] {
    for (const std::string& file : files) {
      for (const colour_mode mode : {colour_mode::rgb, colour_mode::rgba, colour_mode::grey}) {
        memory.reset();
        (void)decoder.decode("image", bytes_of(file), {.colour = mode}, memory);
      }
    }
    memory.reset();
  };
  decode_all();
  decode_all();  // the first time it may hold several blocks
  const std::uint64_t allocations = counts.allocations;
  const std::size_t mallocs_before = mallocs;
  decode_all();
  CHECK(counts.allocations == allocations);
  CHECK(mallocs == mallocs_before);
#if MALLOC_IS_COUNTED
  CHECK(mallocs > 0);
#endif
}

TEST_CASE(
    "whichever allocation is refused: one error that names the image, and the next one works") {
  image_decoder decoder;
  for (const std::string name :
       {"jpeg_420.jpg", "jpeg_420_progressive.jpg", "jpeg_cmyk.jpg", "png_rgb_8.png",
        "png_palette_4_alphas.png", "bmp_rle8.bmp", "binary.ppm"}) {
    INFO(name);
    const std::string file = image_file(name);
    std::size_t refusals = 0;
    for (std::size_t limit = 0;; limit += scratch::alignment) {
      scratch memory(limit);
      try {
        check_pixels(name, decoder.decode("some.image", bytes_of(file), {}, memory), name);
        break;
      } catch (const out_of_memory& e) {
        ++refusals;
        REQUIRE(std::string_view(e.what()).starts_with("some.image: "));
        REQUIRE(e.requested() > 0);
      }
    }
    CHECK(refusals > 3);
  }
}

TEST_CASE("each thread has its decoder") {
  const std::vector<std::string> names = image_names();
  std::atomic<std::size_t> wrong = 0;
  {
    std::vector<std::jthread> threads;
    for (int i = 0; i < 4; ++i) {
      threads.emplace_back([&] {
        decoding decode;
        for (const std::string& name : names) {
          const expected_pixels expected(name);
          const image_view image = decode(test::read_file(folder + name));
          if (image.size() != expected.size || expected.differing(image, colour_mode::rgb) != 0) {
            ++wrong;
          }
        }
      });
    }
  }
  CHECK(wrong == 0);
}

TEST_CASE("a decoder may be moved") {
  decoding first;
  image_decoder second = std::move(first.decoder);
  scratch memory;
  const std::string file = image_file("jpeg_444.jpg");
  check_pixels("moved", second.decode("image", bytes_of(file), {}, memory), "jpeg_444.jpg");
}

// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

// The steps of bilinear.hpp with x86's vector instructions, bit for bit. Each function carries the instruction set
// that it needs as an attribute; who calls one has asked the processor before.

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include <immintrin.h>

#include <vggload/data/affine_map.hpp>
#include <vggload/data/augmentation.hpp>
#include <vggload/data/bilinear.hpp>

#define VGGLOAD_AVX2 __attribute__((target("avx2,fma,f16c")))

// GCC's own macros for some intrinsics convert a signed constant.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wsign-conversion"
#if !defined(__clang__)
// GCC 12 takes its own "undefined" vectors for uninitialised ones (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif

namespace vggload::detail::bilinear_avx2 {

[[gnu::always_inline]] VGGLOAD_AVX2 inline __m256i load(const void* from) noexcept {
  return _mm256_loadu_si256(static_cast<const __m256i*>(from));
}
[[gnu::always_inline]] VGGLOAD_AVX2 inline void store(void* to, __m256i bits) noexcept {
  _mm256_storeu_si256(static_cast<__m256i*>(to), bits);
}

/// The positions of eight pixels in a row, in the map's units. Pixels 0, 1, 4, 5 and 2, 3, 6, 7: so that the
/// lower halves come out in order, shuffled within halves of a register.
struct positions {
  __m256i first;
  __m256i second;

  [[gnu::always_inline]] VGGLOAD_AVX2 static positions from(std::int64_t start,
                                                            std::int64_t step) noexcept {
    // Rounds what the shift in `rounded` drops.
    start += std::int64_t{1} << (affine_map::fraction_bits - weight_bits - 1);
    return {
        _mm256_setr_epi64x(start, start + step, start + 4 * step, start + 5 * step),
        _mm256_setr_epi64x(start + 2 * step, start + 3 * step, start + 6 * step, start + 7 * step)};
  }
  [[gnu::always_inline]] VGGLOAD_AVX2 void advance(__m256i eight_steps) noexcept {
    first = _mm256_add_epi64(first, eight_steps);
    second = _mm256_add_epi64(second, eight_steps);
  }
  /// As `rounded_position`, of pixels 0 to 7. The upper halves, where the sign is, are not used.
  [[nodiscard, gnu::always_inline]] VGGLOAD_AVX2 __m256i rounded() const noexcept {
    constexpr int dropped = affine_map::fraction_bits - weight_bits;
    return _mm256_castps_si256(
        _mm256_shuffle_ps(_mm256_castsi256_ps(_mm256_srli_epi64(first, dropped)),
                          _mm256_castsi256_ps(_mm256_srli_epi64(second, dropped)), 0b10'00'10'00));
  }
};

/// Whether all positions between the two, rounded, fit into 32 bits.
[[nodiscard]] inline bool fit(std::int64_t first, std::int64_t last) noexcept {
  constexpr std::int64_t limit = (static_cast<std::int64_t>(max_source_pixels) - 1)
                                 << affine_map::fraction_bits;
  return first > -limit && first < limit && last > -limit && last < limit;
}

[[gnu::always_inline]] VGGLOAD_AVX2 inline __m256i outside(__m256i position,
                                                           std::int64_t pixels) noexcept {
  const auto low = static_cast<std::int32_t>(-whole_weight / 2);
  const auto high = static_cast<std::int32_t>(pixels * whole_weight - whole_weight / 2 - 1);
  return _mm256_or_si256(_mm256_cmpgt_epi32(_mm256_set1_epi32(low), position),
                         _mm256_cmpgt_epi32(position, _mm256_set1_epi32(high)));
}

[[gnu::always_inline]] VGGLOAD_AVX2 inline __m256i last_position(std::int64_t pixels) noexcept {
  return _mm256_set1_epi32(static_cast<std::int32_t>((pixels - 1) * whole_weight));
}

/// As `find_taps`, of whole blocks.
[[gnu::noinline]] VGGLOAD_AVX2 inline void find_taps(const affine_map& map, std::int64_t x,
                                                     std::int64_t y, const tap_source& source,
                                                     std::size_t count,
                                                     const row_taps& taps) noexcept {
  count = (count + pixel_block - 1) / pixel_block * pixel_block;
  const auto steps = static_cast<std::int64_t>(count);
  if (!fit(x, x + steps * map.x_by_column) || !fit(y, y + steps * map.y_by_column)) {
    detail::find_taps(map, x, y, source, count, taps);
    return;
  }
  const bool folds = source.fill == fill_mode::reflect || source.fill == fill_mode::wrap;
  const __m256i last_x = last_position(source.width);
  const __m256i last_y = last_position(source.height);
  const __m256i zero = _mm256_setzero_si256();
  const __m256i fraction = _mm256_set1_epi32(whole_weight - 1);
  const __m256i half = _mm256_set1_epi32(whole_weight / 2);
  const __m256i whole = _mm256_set1_epi32(whole_weight);
  const __m256i channels = _mm256_set1_epi32(source.channels);
  const __m256i x_steps = _mm256_set1_epi64x(8 * map.x_by_column);
  const __m256i y_steps = _mm256_set1_epi64x(8 * map.y_by_column);
  positions xs = positions::from(x, map.x_by_column);
  positions ys = positions::from(y, map.y_by_column);
  for (std::size_t i = 0; i < count; i += pixel_block) {
    __m256i column = xs.rounded();
    __m256i line = ys.rounded();
    xs.advance(x_steps);
    ys.advance(y_steps);
    if (folds) {
      const __m256i beyond =
          _mm256_or_si256(outside(column, source.width), outside(line, source.height));
      if (_mm256_testz_si256(beyond, beyond) == 0) {
        const auto done = static_cast<std::int64_t>(i);
        detail::find_taps(map, x + done * map.x_by_column, y + done * map.y_by_column, source,
                          pixel_block,
                          {taps.line + i, taps.offset + i, taps.upper + i, taps.lower + i});
        continue;
      }
    }
    column = _mm256_min_epi32(_mm256_max_epi32(column, zero), last_x);
    line = _mm256_min_epi32(_mm256_max_epi32(line, zero), last_y);
    const __m256i right = _mm256_and_si256(column, fraction);
    const __m256i down = _mm256_and_si256(line, fraction);
    // The upper halves of the lanes are zero: the sum of two products is the product.
    const __m256i both =
        _mm256_srli_epi32(_mm256_add_epi32(_mm256_madd_epi16(right, down), half), weight_bits);
    const __m256i upper_right = _mm256_sub_epi32(right, both);
    const __m256i lower_left = _mm256_sub_epi32(down, both);
    const __m256i upper_left = _mm256_sub_epi32(_mm256_sub_epi32(whole, right), lower_left);
    store(taps.line + i, _mm256_srli_epi32(line, weight_bits));
    store(taps.offset + i, _mm256_mullo_epi32(_mm256_srli_epi32(column, weight_bits), channels));
    store(taps.upper + i, _mm256_or_si256(upper_left, _mm256_slli_epi32(upper_right, 16)));
    store(taps.lower + i, _mm256_or_si256(lower_left, _mm256_slli_epi32(both, 16)));
  }
}

/// Eight bytes from the left neighbour on, of two pixels, in the upper row or the one below.
[[gnu::always_inline]] VGGLOAD_AVX2 inline __m256i neighbours(const std::uint8_t* const* rows,
                                                              const row_taps& taps,
                                                              std::size_t first,
                                                              std::size_t second) noexcept {
  const auto* const low = rows[taps.line[first]] + taps.offset[first];
  const auto* const high = rows[taps.line[second]] + taps.offset[second];
  return _mm256_setr_m128i(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(low)),
                           _mm_loadl_epi64(reinterpret_cast<const __m128i*>(high)));
}

/// The sums of eight pixels of three or four channels: four channels of pixels j and j + 4 in `pixels[j]`.
struct block_sums {
  // NOLINTNEXTLINE(modernize-avoid-c-arrays): a std::array of vectors loses their attributes
  __m256i pixels[4];

  [[gnu::always_inline]] VGGLOAD_AVX2 block_sums(const std::uint8_t* const* rows,
                                                 const row_taps& taps, std::size_t i,
                                                 __m256i order) noexcept {
    const __m256i upper = load(taps.upper + i);
    const __m256i lower = load(taps.lower + i);
    pixels[0] = sums<0>(rows, taps, i, order, upper, lower);
    pixels[1] = sums<1>(rows, taps, i, order, upper, lower);
    pixels[2] = sums<2>(rows, taps, i, order, upper, lower);
    pixels[3] = sums<3>(rows, taps, i, order, upper, lower);
  }

  template <int J>
  [[gnu::always_inline]] VGGLOAD_AVX2 static __m256i sums(const std::uint8_t* const* rows,
                                                          const row_taps& taps, std::size_t i,
                                                          __m256i order, __m256i upper,
                                                          __m256i lower) noexcept {
    constexpr int all_of = J * 0b01'01'01'01;
    const __m256i above = _mm256_shuffle_epi8(neighbours(rows, taps, i + J, i + J + 4), order);
    const __m256i below = _mm256_shuffle_epi8(neighbours(rows + 1, taps, i + J, i + J + 4), order);
    return _mm256_add_epi32(_mm256_madd_epi16(above, _mm256_shuffle_epi32(upper, all_of)),
                            _mm256_madd_epi16(below, _mm256_shuffle_epi32(lower, all_of)));
  }
};

/// For the shuffle of eight bytes, two pixels beside each other: 16-bit pairs of a channel's left and right byte, in
/// the result's order of channels, in both halves of a register.
template <std::size_t Channels>
[[gnu::always_inline]] VGGLOAD_AVX2 inline __m256i channel_pairs(const channel_map& map) noexcept {
  std::array<std::uint8_t, 32> bytes;
  bytes.fill(0x80);  // makes a zero
  for (std::size_t half = 0; half < 32; half += 16) {
    for (std::size_t channel = 0; channel < Channels; ++channel) {
      bytes[half + 4 * channel] = map.from[channel];
      bytes[half + 4 * channel + 2] = static_cast<std::uint8_t>(map.from[channel] + Channels);
    }
  }
  return load(bytes.data());
}

/// What becomes of the sums: the same for all lanes, or for four channels twice.
struct lane_map {
  __m256 scale;
  __m256 offset;
  __m256 low;
  __m256 high;

  [[gnu::always_inline]] VGGLOAD_AVX2 static lane_map of_channels(const channel_map& map) noexcept {
    return {twice(map.scale), twice(map.offset), twice(map.low), twice(map.high)};
  }
  [[gnu::always_inline]] VGGLOAD_AVX2 static lane_map of_channel(const channel_map& map,
                                                                 std::size_t c) noexcept {
    return {_mm256_set1_ps(map.scale[c]), _mm256_set1_ps(map.offset[c]), _mm256_set1_ps(map.low[c]),
            _mm256_set1_ps(map.high[c])};
  }
  [[gnu::always_inline]] VGGLOAD_AVX2 static __m256 twice(
      const std::array<float, 4>& four) noexcept {
    return _mm256_broadcast_ps(reinterpret_cast<const __m128*>(four.data()));
  }
  [[nodiscard, gnu::always_inline]] VGGLOAD_AVX2 __m256 values(__m256i sums) const noexcept {
    const __m256 value = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sums), scale, offset);
    return _mm256_min_ps(_mm256_max_ps(value, low), high);
  }
};

/// Eight pixels, their channels beside each other; writes one value more where a pixel has three.
template <std::size_t Channels>
[[gnu::always_inline]] VGGLOAD_AVX2 inline void store_interleaved(const block_sums& sums,
                                                                  const lane_map& map,
                                                                  float* to) noexcept {
  const __m256 first = map.values(sums.pixels[0]);
  const __m256 second = map.values(sums.pixels[1]);
  const __m256 third = map.values(sums.pixels[2]);
  const __m256 fourth = map.values(sums.pixels[3]);
  // In this order: the fourth value of a pixel of three is the next one's first.
  _mm_storeu_ps(to, _mm256_castps256_ps128(first));
  _mm_storeu_ps(to + Channels, _mm256_castps256_ps128(second));
  _mm_storeu_ps(to + 2 * Channels, _mm256_castps256_ps128(third));
  _mm_storeu_ps(to + 3 * Channels, _mm256_castps256_ps128(fourth));
  _mm_storeu_ps(to + 4 * Channels, _mm256_extractf128_ps(first, 1));
  _mm_storeu_ps(to + 5 * Channels, _mm256_extractf128_ps(second, 1));
  _mm_storeu_ps(to + 6 * Channels, _mm256_extractf128_ps(third, 1));
  _mm_storeu_ps(to + 7 * Channels, _mm256_extractf128_ps(fourth, 1));
}

/// Transposed within the halves: `pixels[c]` becomes channel c of pixels 0 to 7.
[[gnu::always_inline]] VGGLOAD_AVX2 inline void transpose(block_sums& sums) noexcept {
  const __m256i low_01 = _mm256_unpacklo_epi32(sums.pixels[0], sums.pixels[1]);
  const __m256i low_23 = _mm256_unpacklo_epi32(sums.pixels[2], sums.pixels[3]);
  const __m256i high_01 = _mm256_unpackhi_epi32(sums.pixels[0], sums.pixels[1]);
  const __m256i high_23 = _mm256_unpackhi_epi32(sums.pixels[2], sums.pixels[3]);
  sums.pixels[0] = _mm256_unpacklo_epi64(low_01, low_23);
  sums.pixels[1] = _mm256_unpackhi_epi64(low_01, low_23);
  sums.pixels[2] = _mm256_unpacklo_epi64(high_01, high_23);
  sums.pixels[3] = _mm256_unpackhi_epi64(high_01, high_23);
}

/// As `interpolate`, of whole blocks: `target` has room for them, and for one value more. Either a pixel's channels
/// or a channel's pixels stand beside each other.
template <std::size_t Channels>
[[gnu::noinline]] VGGLOAD_AVX2 void interpolate(const std::uint8_t* const* rows,
                                                const row_taps& taps, const channel_map& map,
                                                std::size_t count,
                                                const row_target& target) noexcept {
  const __m256i order = channel_pairs<Channels>(map);
  if (target.channel_stride == sizeof(float)) {
    const lane_map lanes = lane_map::of_channels(map);
    auto* const to = reinterpret_cast<float*>(target.values);
    for (std::size_t i = 0; i < count; i += pixel_block) {
      store_interleaved<Channels>(block_sums(rows, taps, i, order), lanes, to + i * Channels);
    }
    return;
  }
  for (std::size_t i = 0; i < count; i += pixel_block) {
    block_sums sums(rows, taps, i, order);
    transpose(sums);
    for (std::size_t c = 0; c < Channels; ++c) {
      auto* const to = reinterpret_cast<float*>(target.values + c * target.channel_stride);
      _mm256_storeu_ps(to + i, lane_map::of_channel(map, c).values(sums.pixels[c]));
    }
  }
}

/// Two bytes of each of eight pixels of one channel, weighted.
[[gnu::always_inline]] VGGLOAD_AVX2 inline __m256i weighted(const std::uint8_t* const* rows,
                                                            const row_taps& taps, std::size_t i,
                                                            const std::uint32_t* weights) noexcept {
  std::array<std::uint16_t, pixel_block> pairs;
  for (std::size_t j = 0; j < pixel_block; ++j) {
    std::memcpy(&pairs[j], rows[taps.line[i + j]] + taps.offset[i + j], 2);
  }
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(pairs.data()));
  return _mm256_madd_epi16(_mm256_cvtepu8_epi16(bytes), load(weights + i));
}

/// One channel: pixels side by side.
template <>
[[gnu::noinline]] VGGLOAD_AVX2 inline void interpolate<1>(const std::uint8_t* const* rows,
                                                          const row_taps& taps,
                                                          const channel_map& map, std::size_t count,
                                                          const row_target& target) noexcept {
  const lane_map lanes = lane_map::of_channel(map, 0);
  auto* const to = reinterpret_cast<float*>(target.values);
  for (std::size_t i = 0; i < count; i += pixel_block) {
    const __m256i sums = _mm256_add_epi32(weighted(rows, taps, i, taps.upper),
                                          weighted(rows + 1, taps, i, taps.lower));
    _mm256_storeu_ps(to + i, lanes.values(sums));
  }
}

}  // namespace vggload::detail::bilinear_avx2

#pragma GCC diagnostic pop

#undef VGGLOAD_AVX2

#endif

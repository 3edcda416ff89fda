// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include <vggload/core/error.hpp>
#include <vggload/io/hdf5_reader.hpp>
#include <vggload/io/input_file.hpp>
#include <vggload/io/weight_reader.hpp>
#include <vggload/io/zip_archive.hpp>

namespace vggload {

/// A model as Keras 3 saves it (`.keras`): a zip whose member `model.weights.h5` holds the weights,
/// stored as it is, so that they are read and shown where they lie. All that `hdf5_reader` says
/// applies. Format: keras/src/saving/saving_lib.py, https://github.com/keras-team/keras.
///
/// A model of `weight_reader`.
class keras_reader : public detail::hdf5_reader_base {
 public:
  /// Throws `io_error` and `format_error`; one that says what to do where the member is deflated.
  explicit keras_reader(input_file file)
      : hdf5_reader_base{place_of_weights(file), std::move(file)} {}

  /// Whether a file is a zip with such a member. Throws `io_error`.
  [[nodiscard]] static bool matches(const input_file& file, std::span<const std::byte> head) {
    if (!zip_archive::matches(head)) return false;
    try {
      return zip_archive(file).find(member_name) != nullptr;
    } catch (const format_error&) {
      return false;  // for whoever reads zips of any kind to say
    }
  }

  [[nodiscard]] std::string_view format() const noexcept { return "keras"; }

 private:
  static constexpr std::string_view member_name = "model.weights.h5";

  [[nodiscard]] static detail::hdf5_place place_of_weights(const input_file& file) {
    const zip_archive zip(file);
    const zip_member* weights = zip.find(member_name);
    const std::string subject = printable(file.path()) + ": member " + in_quotes(member_name);
    if (weights == nullptr) throw format_error(subject + " is not in the zip");
    if (weights->deflated) {
      throw format_error(subject +
                         " is deflated, so libhdf5 cannot read it in place: unpack it, "
                         "or store it uncompressed as Keras does");
    }
    return {weights->data_offset, weights->bytes};
  }
};

static_assert(weight_reader<keras_reader>);

}  // namespace vggload

// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include <protozero/types.hpp>

#include <vggload/core/checked.hpp>
#include <vggload/core/dtype.hpp>
#include <vggload/core/error.hpp>
#include <vggload/core/shape.hpp>
#include <vggload/io/find_duplicate.hpp>
#include <vggload/io/input_file.hpp>
#include <vggload/io/mapped_file.hpp>
#include <vggload/io/protobuf_walker.hpp>
#include <vggload/io/strided_read.hpp>
#include <vggload/io/weight_reader.hpp>

namespace vggload {

namespace detail {

/// Limits on what a model may hold, all far above any real one's, and such that it takes no more
/// than 16 MiB before it is refused.
inline constexpr std::size_t onnx_max_tensors = 20'000;
inline constexpr std::uint64_t onnx_max_dims = 131'072;  // of all tensors
inline constexpr std::size_t onnx_max_metadata = 10'000;
inline constexpr std::uint64_t onnx_max_kept_bytes = std::uint64_t{4} << 20U;  // of all texts
inline constexpr std::size_t onnx_max_pieces = 100'000;  // of typed data, in the whole model
inline constexpr std::size_t onnx_max_external_files = 512;
inline constexpr std::size_t onnx_max_rank = 64;  // as numpy has it
inline constexpr std::uint64_t onnx_max_text_bytes = 65'535;

/// Numbers of the fields of a TensorProto.
namespace onnx_field {
enum : std::uint32_t {
  none = 0,
  dims = 1,
  data_type = 2,
  segment = 3,
  float_data = 4,
  int32_data = 5,
  string_data = 6,
  int64_data = 7,
  name = 8,
  raw_data = 9,
  double_data = 10,
  uint64_data = 11,
  external_data = 13,
  data_location = 14,
};
}  // namespace onnx_field

/// Of the fields that hold elements, for messages.
[[nodiscard]] inline std::string onnx_field_name(std::uint32_t number) {
  switch (number) {
    case onnx_field::float_data: return "float_data";
    case onnx_field::int32_data: return "int32_data";
    case onnx_field::string_data: return "string_data";
    case onnx_field::int64_data: return "int64_data";
    case onnx_field::raw_data: return "raw_data";
    case onnx_field::double_data: return "double_data";
    case onnx_field::uint64_data: return "uint64_data";
    default: return "field " + std::to_string(number);
  }
}

/// An element type, and the field that holds such elements where they are not raw.
struct onnx_type {
  std::string_view name;
  vggload::dtype dtype;
  std::uint32_t data_field;
};

// In the order of `TensorProto.DataType`, onnx 1.23.
inline constexpr std::array<onnx_type, 29> onnx_types{{
    {"UNDEFINED", dtype::opaque, onnx_field::none},
    {"FLOAT", dtype::f32, onnx_field::float_data},
    {"UINT8", dtype::u8, onnx_field::int32_data},
    {"INT8", dtype::i8, onnx_field::int32_data},
    {"UINT16", dtype::u16, onnx_field::int32_data},
    {"INT16", dtype::i16, onnx_field::int32_data},
    {"INT32", dtype::i32, onnx_field::int32_data},
    {"INT64", dtype::i64, onnx_field::int64_data},
    {"STRING", dtype::opaque, onnx_field::string_data},
    {"BOOL", dtype::boolean, onnx_field::int32_data},
    {"FLOAT16", dtype::f16, onnx_field::int32_data},
    {"DOUBLE", dtype::f64, onnx_field::double_data},
    {"UINT32", dtype::u32, onnx_field::uint64_data},
    {"UINT64", dtype::u64, onnx_field::uint64_data},
    {"COMPLEX64", dtype::c64, onnx_field::float_data},
    {"COMPLEX128", dtype::opaque, onnx_field::double_data},
    {"BFLOAT16", dtype::bf16, onnx_field::int32_data},
    {"FLOAT8E4M3FN", dtype::f8_e4m3, onnx_field::int32_data},
    {"FLOAT8E4M3FNUZ", dtype::f8_e4m3fnuz, onnx_field::int32_data},
    {"FLOAT8E5M2", dtype::f8_e5m2, onnx_field::int32_data},
    {"FLOAT8E5M2FNUZ", dtype::f8_e5m2fnuz, onnx_field::int32_data},
    {"UINT4", dtype::opaque, onnx_field::int32_data},
    {"INT4", dtype::opaque, onnx_field::int32_data},
    {"FLOAT4E2M1", dtype::opaque, onnx_field::int32_data},
    {"FLOAT8E8M0", dtype::f8_e8m0, onnx_field::int32_data},
    {"UINT2", dtype::opaque, onnx_field::int32_data},
    {"INT2", dtype::opaque, onnx_field::int32_data},
    {"FLOAT6E2M3", dtype::opaque, onnx_field::int32_data},
    {"FLOAT6E3M2", dtype::opaque, onnx_field::int32_data},
}};

/// The wire type of one number of typed data.
[[nodiscard]] constexpr protozero::pbf_wire_type onnx_wire_type(std::uint32_t data_field) noexcept {
  using protozero::pbf_wire_type;
  if (data_field == onnx_field::float_data) return pbf_wire_type::fixed32;
  if (data_field == onnx_field::double_data) return pbf_wire_type::fixed64;
  return pbf_wire_type::varint;
}

/// Where a part of a tensor's typed data lies in the file: numbers one behind the other (packed),
/// or each behind a tag of its own.
struct onnx_piece {
  std::uint64_t begin;
  std::uint64_t end;
  bool tagged;
};

/// Typed data that does not lie in the file as a payload does: varints, or numbers in pieces. It is
/// decoded from the front on. Every so many numbers their place is remembered, so that no part
/// costs more than a short way the second time.
class onnx_values {
 public:
  /// `count` numbers in the file, each the low `element_bytes` (up to 8) of what one of the
  /// `pieces`, none of which is empty, says.
  onnx_values(std::vector<onnx_piece> pieces, std::uint32_t data_field, std::uint64_t count,
              std::size_t element_bytes)
      : pieces_(std::move(pieces)),
        data_field_(data_field),
        count_(count),
        element_bytes_(element_bytes),
        starts_{{0, pieces_.front().begin}} {}

  /// Fills `out` with bytes of the payload from `offset` on. `subject`: what a message begins with.
  /// From several threads at once. Throws `io_error` and `format_error`.
  void read(const input_file& file, const std::string& subject, std::uint64_t offset,
            std::span<std::byte> out) const {
    protobuf_walker walker(file, window_bytes);
    read_whole_elements(element_bytes_, offset, out,
                        [&, this](std::uint64_t first, std::span<std::byte> elements) {
                          decode(walker, subject, first, elements);
                        });
  }

 private:
  struct place {
    std::size_t piece;
    std::uint64_t offset;  // in the file
  };

  static constexpr std::uint64_t block_elements = 4096;
  static constexpr std::size_t window_bytes = std::size_t{16} << 10U;

  void decode(protobuf_walker& walker, const std::string& subject, std::uint64_t first,
              std::span<std::byte> out) const {
    using protozero::pbf_wire_type;
    const auto fail = [&, this](const char* what) {
      throw format_error(subject + ": its " + onnx_field_name(data_field_) + " has " + what +
                         " than the " + std::to_string(count_) + " numbers of its shape");
    };
    std::uint64_t block = first / block_elements;
    place at = last_known_start(block);
    std::uint64_t index = block * block_elements;
    std::uint64_t skipped = first - index;  // numbers on the way
    const auto put = [&, this](std::uint64_t value) {
      if (skipped > 0) {
        --skipped;
        return;
      }
      put_low_bytes(value, out.data());
      out = out.subspan(element_bytes_);
    };
    while (!out.empty()) {
      if (index % block_elements == 0) remember_start(index / block_elements, at);
      while (at.offset == pieces_[at.piece].end) {
        if (at.piece + 1 == pieces_.size()) fail("fewer");
        at = {at.piece + 1, pieces_[at.piece + 1].begin};
      }
      const onnx_piece& piece = pieces_[at.piece];
      if (piece.tagged) (void)walker.varint(at.offset, piece.end);
      const pbf_wire_type type = onnx_wire_type(data_field_);
      if (type == pbf_wire_type::varint) {
        const std::uint64_t most = std::min<std::uint64_t>(block_elements - index % block_elements,
                                                           skipped + out.size() / element_bytes_);
        index += walker.varints(at.offset, piece.end, piece.tagged ? 1 : most, put);
      } else {
        put(type == pbf_wire_type::fixed32 ? walker.fixed<std::uint32_t>(at.offset, piece.end)
                                           : walker.fixed<std::uint64_t>(at.offset, piece.end));
        ++index;
      }
      if (index == count_ &&
          (at.piece + 1 != pieces_.size() || at.offset != pieces_[at.piece].end)) {
        fail("more");
      }
    }
  }

  /// They stand in front: the machine is little-endian. Copies of a fixed size are fast.
  void put_low_bytes(std::uint64_t value, std::byte* out) const noexcept {
    switch (element_bytes_) {
      case 1: std::memcpy(out, &value, 1); break;
      case 2: std::memcpy(out, &value, 2); break;
      case 4: std::memcpy(out, &value, 4); break;
      default: std::memcpy(out, &value, 8); break;
    }
  }

  /// The start of `block`, or of the last one before it that is known, which `block` becomes.
  [[nodiscard]] place last_known_start(std::uint64_t& block) const {
    const std::scoped_lock lock(mutex_);
    block = std::min<std::uint64_t>(block, starts_.size() - 1);
    return starts_[static_cast<std::size_t>(block)];
  }
  void remember_start(std::uint64_t block, place at) const {
    const std::scoped_lock lock(mutex_);
    if (block == starts_.size()) starts_.push_back(at);
  }

  const std::vector<onnx_piece> pieces_;
  const std::uint32_t data_field_;
  const std::uint64_t count_;
  const std::size_t element_bytes_;
  mutable std::mutex mutex_;
  mutable std::vector<place> starts_;  // of the blocks of elements, as far as they are known
};

/// What a TensorProto says, not checked yet.
struct onnx_tensor {
  struct range {
    std::uint64_t begin;
    std::uint64_t end;
  };

  std::string name;
  std::vector<std::uint64_t> dims;
  std::int32_t data_type = 0;
  std::int32_t data_location = 0;
  bool has_segment = false;
  std::optional<range> raw_data;
  /// The fields of typed data that are not empty: the first one, and another one if there is.
  std::uint32_t data_field = onnx_field::none;
  std::uint32_t other_data_field = onnx_field::none;
  std::vector<onnx_piece> pieces;
  std::uint64_t data_bytes = 0;  // of typed data, in the file
  /// How many numbers the pieces hold: from the least to the most that fit into their bytes.
  std::uint64_t least_numbers = 0;
  std::uint64_t most_numbers = 0;
  /// The entries of external_data.
  std::optional<std::string> location;
  std::optional<std::string> offset;
  std::optional<std::string> length;
};

/// Walks a ModelProto to the initializers of its graph.
class onnx_model_parser {
 public:
  explicit onnx_model_parser(const input_file& file) : file_(file), walker_(file, window_bytes) {}

  /// Calls `on_tensor(tensor)` for each initializer and `on_sparse_tensor(values, bytes)` for each
  /// sparse one: its values, but with the dims of the whole, and what it takes in the file.
  template <class OnTensor, class OnSparseTensor>
  void parse(OnTensor&& on_tensor, OnSparseTensor&& on_sparse_tensor) {
    bool has_graph = false;
    for (std::uint64_t position = 0; position < file_.size();) {
      const protobuf_field field = walker_.next(position, file_.size());
      if (field.number == 7) {
        // A message may come in pieces, which follow each other.
        require_message(field);
        parse_graph(field, on_tensor, on_sparse_tensor);
        has_graph = true;
      } else if (field.number == 14) {
        parse_metadata(field);
      }
    }
    if (!has_graph) fail("the model has no graph");
  }

  std::vector<metadata_entry> metadata;

 private:
  static constexpr std::size_t window_bytes = 4096;

  [[noreturn]] void fail(const std::string& what) const {
    throw format_error(printable(file_.path()) + ": " + what);
  }
  [[noreturn]] void fail_at(const protobuf_field& field, const std::string& what) const {
    fail("at byte " + std::to_string(field.begin) + ": " + what);
  }
  [[noreturn]] void fail_type(const protobuf_field& field) const {
    fail_at(field, "field " + std::to_string(field.number) + " has the wrong wire type " +
                       std::to_string(static_cast<unsigned>(field.type)));
  }
  void require_message(const protobuf_field& field) const {
    if (field.type != protozero::pbf_wire_type::length_delimited) fail_type(field);
  }
  void require_number(const protobuf_field& field) const {
    if (field.type != protozero::pbf_wire_type::varint) fail_type(field);
  }
  [[nodiscard]] std::string text(const protobuf_field& field) {
    require_message(field);
    if (field.bytes() > onnx_max_text_bytes) {
      fail_at(field, "a text of " + std::to_string(field.bytes()) + " bytes, more than the " +
                         std::to_string(onnx_max_text_bytes) + " that are allowed");
    }
    return walker_.text(field);
  }
  /// The same of what is kept while the file is open.
  [[nodiscard]] std::string kept_text(const protobuf_field& field) {
    std::string kept = text(field);
    kept_bytes_ += kept.size();
    if (kept_bytes_ > onnx_max_kept_bytes) {
      fail_at(field, "with a text of " + std::to_string(kept.size()) +
                         " bytes the names and the metadata have " + std::to_string(kept_bytes_) +
                         ", more than the " + std::to_string(onnx_max_kept_bytes) +
                         " that are allowed");
    }
    return kept;
  }
  /// Enums and other 32-bit numbers are the low half of what is there.
  [[nodiscard]] std::int32_t number_32(const protobuf_field& field) const {
    require_number(field);
    return static_cast<std::int32_t>(static_cast<std::uint32_t>(field.value));
  }

  /// A StringStringEntryProto.
  [[nodiscard]] std::pair<std::string, std::string> parse_entry(const protobuf_field& entry,
                                                                bool kept) {
    const auto read = [&, this](const protobuf_field& field) {
      return kept ? kept_text(field) : text(field);
    };
    require_message(entry);
    std::pair<std::string, std::string> key_and_value;
    for (std::uint64_t position = entry.begin; position < entry.end;) {
      const protobuf_field field = walker_.next(position, entry.end);
      if (field.number == 1) key_and_value.first = read(field);
      if (field.number == 2) key_and_value.second = read(field);
    }
    return key_and_value;
  }

  void parse_metadata(const protobuf_field& field) {
    // Too long to be of interest; all else of it is checked.
    if (field.bytes() > onnx_max_text_bytes) return;
    if (metadata.size() == onnx_max_metadata) {
      fail("more than the " + std::to_string(onnx_max_metadata) +
           " metadata entries that are allowed");
    }
    metadata.push_back(parse_entry(field, true));
  }

  template <class OnTensor, class OnSparseTensor>
  void parse_graph(const protobuf_field& graph, OnTensor& on_tensor,
                   OnSparseTensor& on_sparse_tensor) {
    for (std::uint64_t position = graph.begin; position < graph.end;) {
      const protobuf_field field = walker_.next(position, graph.end);
      if (field.number != 5 && field.number != 15) continue;
      require_message(field);
      if (++tensors_ > onnx_max_tensors) {
        fail("more than the " + std::to_string(onnx_max_tensors) +
             " initializers that are allowed");
      }
      if (field.number == 5) {
        on_tensor(parse_tensor(field));
      } else {
        on_sparse_tensor(parse_sparse_tensor(field), field.bytes());
      }
    }
  }

  [[nodiscard]] onnx_tensor parse_sparse_tensor(const protobuf_field& message) {
    onnx_tensor tensor;
    std::vector<std::uint64_t> dims;
    for (std::uint64_t position = message.begin; position < message.end;) {
      const protobuf_field field = walker_.next(position, message.end);
      if (field.number == 1) {
        require_message(field);
        tensor = parse_tensor(field);
      } else if (field.number == 3) {
        parse_dims(field, dims);
      }
    }
    tensor.dims = std::move(dims);
    return tensor;
  }

  [[nodiscard]] onnx_tensor parse_tensor(const protobuf_field& message) {
    onnx_tensor tensor;
    for (std::uint64_t position = message.begin; position < message.end;) {
      const std::uint64_t start = position;
      const protobuf_field field = walker_.next(position, message.end);
      switch (field.number) {
        case onnx_field::dims: parse_dims(field, tensor.dims); break;
        case onnx_field::data_type: tensor.data_type = number_32(field); break;
        case onnx_field::segment: tensor.has_segment = true; break;
        case onnx_field::name: tensor.name = kept_text(field); break;
        case onnx_field::raw_data:
          require_message(field);
          tensor.raw_data = {field.begin, field.end};
          break;
        case onnx_field::external_data: parse_external_entry(field, tensor); break;
        case onnx_field::data_location: tensor.data_location = number_32(field); break;
        case onnx_field::float_data:
        case onnx_field::int32_data:
        case onnx_field::int64_data:
        case onnx_field::double_data:
        case onnx_field::uint64_data: parse_numbers(field, start, tensor); break;
        case onnx_field::string_data:
          require_message(field);
          note_data(field, tensor);
          break;
        default: break;  // doc_string, metadata_props, and what is to come
      }
    }
    return tensor;
  }

  void parse_dims(const protobuf_field& field, std::vector<std::uint64_t>& dims) {
    const auto add = [&, this](std::uint64_t dim) {
      if (dims.size() == onnx_max_rank) {
        fail_at(field, "a tensor has more than the " + std::to_string(onnx_max_rank) +
                           " dims that are allowed");
      }
      if (++dims_ > onnx_max_dims) {
        fail_at(field, "the tensors have more than the " + std::to_string(onnx_max_dims) +
                           " dims in all that are allowed");
      }
      dims.push_back(dim);
    };
    if (field.type == protozero::pbf_wire_type::varint) {
      add(field.value);
    } else {
      require_message(field);
      for (std::uint64_t position = field.begin; position < field.end;) {
        add(walker_.varint(position, field.end));
      }
    }
  }

  void parse_external_entry(const protobuf_field& field, onnx_tensor& tensor) {
    auto entry = parse_entry(field, false);
    const std::string& key = entry.first;
    const auto set = [&, this](std::optional<std::string>& value) {
      if (value) fail_at(field, "external_data has the key " + in_quotes(key) + " twice");
      value = std::move(entry.second);
    };
    // Others are no matter: "checksum", "basepath".
    if (key == "location") set(tensor.location);
    if (key == "offset") set(tensor.offset);
    if (key == "length") set(tensor.length);
  }

  static void note_data(const protobuf_field& field, onnx_tensor& tensor) {
    if (tensor.data_field == onnx_field::none) tensor.data_field = field.number;
    if (tensor.data_field != field.number) tensor.other_data_field = field.number;
    tensor.data_bytes += field.bytes();  // no more than the file has
  }

  /// One number with its tag, which is at `start`, or any number of them packed.
  void parse_numbers(const protobuf_field& field, std::uint64_t start, onnx_tensor& tensor) {
    using protozero::pbf_wire_type;
    const pbf_wire_type type = onnx_wire_type(field.number);
    const bool tagged = field.type == type;
    if (!tagged) {
      require_message(field);
      if (field.bytes() == 0) return;
    }
    note_data(field, tensor);
    if (tagged) {
      tensor.least_numbers += 1;
      tensor.most_numbers += 1;
      if (!tensor.pieces.empty() && tensor.pieces.back().tagged &&
          tensor.pieces.back().end == start) {
        tensor.pieces.back().end = field.end;
        return;
      }
    } else if (type == pbf_wire_type::varint) {
      tensor.least_numbers += (field.bytes() + 9) / 10;
      tensor.most_numbers += field.bytes();
    } else {
      const unsigned size = type == pbf_wire_type::fixed32 ? 4 : 8;
      if (field.bytes() % size != 0) {
        fail_at(field, onnx_field_name(field.number) + " of " + std::to_string(field.bytes()) +
                           " bytes, which are no whole numbers");
      }
      tensor.least_numbers += field.bytes() / size;
      tensor.most_numbers += field.bytes() / size;
    }
    if (++pieces_ > onnx_max_pieces) {
      fail("the initializers' data come in more than the " + std::to_string(onnx_max_pieces) +
           " pieces that are allowed");
    }
    tensor.pieces.push_back({tagged ? start : field.begin, field.end, tagged});
  }

  const input_file& file_;
  protobuf_walker walker_;
  std::size_t tensors_ = 0;
  std::size_t pieces_ = 0;
  std::uint64_t dims_ = 0;
  std::uint64_t kept_bytes_ = 0;  // of names and metadata
};

/// Whether a relative name stays in its folder: no component is "..", no NUL cuts it.
[[nodiscard]] inline bool stays_in_folder(std::string_view name) noexcept {
  if (name.empty() || name.front() == '/' || name.find('\0') != std::string_view::npos) {
    return false;
  }
  for (std::size_t begin = 0; begin <= name.size();) {
    const std::size_t end = std::min(name.find('/', begin), name.size());
    if (name.substr(begin, end - begin) == "..") return false;
    begin = end + 1;
  }
  return true;
}

/// A path without links; nothing, and errno, where it leads nowhere.
[[nodiscard]] inline std::optional<std::string> resolve_path(const std::string& path) {
  struct release {
    void operator()(char* text) const noexcept { std::free(text); }
  };
  const std::unique_ptr<char, release> resolved(::realpath(path.c_str(), nullptr));
  if (!resolved) return std::nullopt;
  return std::string(resolved.get());
}

}  // namespace detail

/// A model in the ONNX format: the initializers of its main graph, in the file's order. Those of
/// subgraphs, the constants of nodes and training data are not listed. Format: ModelProto of
/// https://github.com/onnx/onnx/blob/main/onnx/onnx.proto.
///
/// `raw_data`, external data, and `float_data` and `double_data` in one packed piece are the
/// payload as it is and can be viewed. Other typed data (FLOAT16 in `int32_data`, say) is decoded
/// while it is read, its numbers cut to the element's size as onnx does it; how many there are is
/// seen only then. Types of less than a byte, STRING and COMPLEX128 are opaque, with onnx's name of
/// them, and so are sparse initializers ("sparse FLOAT").
///
/// External data lies in files beside the model or below it. Names with `..`, absolute ones, and
/// links that lead out of the model's folder are refused.
///
/// Opening walks the protobuf fields and steps over all payloads. It refuses (`format_error`) what
/// is no message, duplicate names, data in two fields or none or of the wrong size, segments, and
/// counts beyond those of any real model. `metadata()` has the `metadata_props` of up to 65,535
/// bytes. A model of `weight_reader`.
class onnx_reader {
 public:
  /// Throws `io_error` and `format_error`.
  explicit onnx_reader(input_file file) {
    file_bytes_ = file.size();
    files_.push_back(std::make_unique<mapped_file>(std::move(file)));
    detail::onnx_model_parser parser(files_.front()->file());
    parser.parse([this](detail::onnx_tensor tensor) { add(std::move(tensor)); },
                 [this](detail::onnx_tensor values, std::uint64_t bytes) {
                   add_sparse(std::move(values), bytes);
                 });
    metadata_ = std::move(parser.metadata);
    file_of_location_.clear();
    const std::string* twice = detail::find_duplicate(tensors_, &name_of_tensor);
    if (twice != nullptr) fail("tensor " + in_quotes(*twice) + " occurs twice");
    twice = detail::find_duplicate(
        metadata_, [](const metadata_entry& e) -> const std::string& { return e.first; });
    if (twice != nullptr) fail("the key " + in_quotes(*twice) + " occurs twice in the metadata");
  }

  /// Whether a file is meant to be one. The format has no magic number, so this tries whether its
  /// outermost fields are those of a model, a version and a graph among them, to the end of the
  /// file; fields that are not known are passed over, as protobuf has it. A graph that is cut is one
  /// too, so that whoever opens it is told.
  [[nodiscard]] static bool matches(const input_file& file, std::span<const std::byte> /*head*/) {
    using protozero::pbf_wire_type;
    constexpr std::size_t most_fields = 100'000;
    bool has_version = false;
    bool has_graph = false;
    bool has_unknown = false;
    try {
      detail::protobuf_walker walker(file, 4096);
      std::uint64_t position = 0;
      for (std::size_t i = 0; position < file.size() && i < most_fields; ++i) {
        std::uint64_t behind_tag = position;
        const std::uint64_t tag = walker.varint(behind_tag, file.size());
        const auto type = static_cast<pbf_wire_type>(tag & 7U);
        switch (tag >> 3U) {
          case 1:
          case 5:
            if (type != pbf_wire_type::varint) return false;
            has_version = has_version || tag >> 3U == 1;
            break;
          case 7: has_graph = true; [[fallthrough]];
          case 2:
          case 3:
          case 4:
          case 6:
          case 8:
          case 14:
          case 20:
          case 25:
          case 26:
            if (type != pbf_wire_type::length_delimited) return false;
            break;
          default: has_unknown = true;
        }
        if (type == pbf_wire_type::length_delimited) {
          const std::uint64_t length = walker.varint(behind_tag, file.size());
          if (!in_bounds(behind_tag, length, file.size())) {
            return has_version && !has_unknown && tag >> 3U == 7;
          }
        }
        (void)walker.next(position, file.size());
      }
    } catch (const error&) {
      return false;
    }
    return has_version && has_graph;
  }

  [[nodiscard]] const std::string& path() const noexcept { return files_.front()->path(); }
  [[nodiscard]] std::string_view format() const noexcept { return "onnx"; }
  /// Of the model and the files of its external data.
  [[nodiscard]] std::uint64_t file_bytes() const noexcept { return file_bytes_; }
  [[nodiscard]] std::span<const tensor_info> tensors() const noexcept { return tensors_; }
  [[nodiscard]] std::span<const metadata_entry> metadata() const noexcept { return metadata_; }

  /// Throws `io_error`; `format_error` for typed data that is not what the shape needs; and
  /// `unsupported_error` for opaque elements.
  void read(std::size_t tensor, std::uint64_t offset, std::span<std::byte> out) const {
    detail::check_window(path(), tensors_[tensor], offset, out.size());
    const payload& data = payloads_[tensor];
    const mapped_file& file = *files_[data.file];
    if (data.values) {
      data.values->read(file.file(), subject_of(tensors_[tensor].name), offset, out);
    } else {
      file.read_at(data.offset + offset, out);
    }
  }

  /// The payload in place; nothing for opaque elements, for typed data that is decoded, and where
  /// the file cannot be mapped.
  [[nodiscard]] std::optional<std::span<const std::byte>> view(std::size_t tensor) const {
    const payload& data = payloads_[tensor];
    if (tensors_[tensor].dtype == dtype::opaque || data.values) return std::nullopt;
    return files_[data.file]->view(data.offset, tensors_[tensor].bytes);
  }

 private:
  /// Where a tensor's elements are: in `files_[file]` from `offset` on, or in `values`.
  struct payload {
    std::size_t file = 0;
    std::uint64_t offset = 0;
    std::unique_ptr<const detail::onnx_values> values = {};
  };

  [[nodiscard]] static const std::string& name_of_tensor(const tensor_info& info) noexcept {
    return info.name;
  }
  [[nodiscard]] std::string subject_of(const std::string& tensor) const {
    return printable(path()) + ": tensor " + in_quotes(tensor);
  }
  [[noreturn]] void fail(const std::string& what) const {
    throw format_error(printable(path()) + ": " + what);
  }
  [[noreturn]] void fail_tensor(const detail::onnx_tensor& tensor, const std::string& what) const {
    throw format_error(subject_of(tensor.name) + ": " + what);
  }

  /// onnx's name of an element type.
  [[nodiscard]] static std::string type_name(std::int32_t type) {
    const auto number = static_cast<std::uint32_t>(type);
    return number < detail::onnx_types.size() ? std::string(detail::onnx_types[number].name)
                                              : "type " + std::to_string(type);
  }

  /// Name, type and shape, with the bytes that these need; 0 for opaque elements.
  [[nodiscard]] tensor_info info_of(detail::onnx_tensor& tensor) const {
    if (tensor.data_type == 0) fail_tensor(tensor, "it has no data type");
    for (const std::uint64_t dim : tensor.dims) {
      if (const auto value = static_cast<std::int64_t>(dim); value < 0) {
        fail_tensor(tensor, "it has a dim of " + std::to_string(value));
      }
    }
    tensor_info info{tensor.name, dtype::opaque, shape(std::move(tensor.dims)), 0};
    const auto number = static_cast<std::uint32_t>(tensor.data_type);
    if (number < detail::onnx_types.size()) info.dtype = detail::onnx_types[number].dtype;
    if (info.dtype == dtype::opaque) {
      info.foreign_dtype = type_name(tensor.data_type);
    } else {
      const auto bytes = bytes_of(info.dtype, info.shape);
      if (!bytes) {
        fail_tensor(tensor, type_and_shape(info) + " has more bits than a 64-bit number can count");
      }
      info.bytes = *bytes;
    }
    return info;
  }
  [[nodiscard]] static std::string type_and_shape(const tensor_info& info) {
    return std::string(dtype_name(info)) + " " + to_string(info.shape);
  }
  /// Refuses data of another size than the shape's; that of opaque elements is what there is.
  void check_bytes(const detail::onnx_tensor& tensor, tensor_info& info, std::uint64_t bytes,
                   const char* what) const {
    if (info.dtype == dtype::opaque) info.bytes = bytes;
    if (info.bytes != bytes) {
      fail_tensor(tensor, type_and_shape(info) + " needs " + std::to_string(info.bytes) +
                              " bytes, but its " + what + " has " + std::to_string(bytes));
    }
  }

  void add(detail::onnx_tensor tensor) {
    if (tensor.has_segment) fail_tensor(tensor, "it is only a segment of a tensor");
    if (tensor.data_location != 0 && tensor.data_location != 1) {
      fail_tensor(tensor, "its data location is " + std::to_string(tensor.data_location) +
                              ", neither 0 (the model) nor 1 (a file)");
    }
    const bool external = tensor.data_location == 1;
    if (tensor.raw_data) add_data_field(tensor, detail::onnx_field::raw_data);
    if (tensor.other_data_field != detail::onnx_field::none) {
      fail_tensor(tensor, "its data is both in " + detail::onnx_field_name(tensor.data_field) +
                              " and in " + detail::onnx_field_name(tensor.other_data_field));
    }
    if (external && tensor.data_field != detail::onnx_field::none) {
      fail_tensor(tensor, "its data is both in " + detail::onnx_field_name(tensor.data_field) +
                              " and in a file");
    }
    tensor_info info = info_of(tensor);
    payload data;
    if (external) {
      data = external_payload(tensor, info);
    } else if (tensor.raw_data) {
      check_bytes(tensor, info, tensor.raw_data->end - tensor.raw_data->begin, "raw_data");
      data.offset = tensor.raw_data->begin;
    } else if (info.dtype == dtype::opaque) {
      info.bytes = tensor.data_bytes;
    } else if (tensor.data_field != detail::onnx_field::none) {
      data = typed_payload(tensor, info);
    } else if (info.bytes != 0) {
      fail_tensor(tensor, "it has no data");
    }
    info.sequential = data.values != nullptr;
    tensors_.push_back(std::move(info));
    payloads_.push_back(std::move(data));
  }
  static void add_data_field(detail::onnx_tensor& tensor, std::uint32_t field) noexcept {
    auto& free_one =
        tensor.data_field == detail::onnx_field::none ? tensor.data_field : tensor.other_data_field;
    free_one = field;
  }

  void add_sparse(detail::onnx_tensor values, std::uint64_t bytes) {
    tensor_info info = info_of(values);
    info.dtype = dtype::opaque;
    info.foreign_dtype = "sparse " + type_name(values.data_type);
    info.bytes = bytes;
    tensors_.push_back(std::move(info));
    payloads_.emplace_back();
  }

  [[nodiscard]] payload typed_payload(detail::onnx_tensor& tensor, const tensor_info& info) const {
    const auto& type = detail::onnx_types[static_cast<std::size_t>(tensor.data_type)];
    const std::string field = detail::onnx_field_name(tensor.data_field);
    if (tensor.data_field != type.data_field) {
      fail_tensor(tensor, type_name(tensor.data_type) + " does not belong into " + field);
    }
    // A complex element is two numbers.
    const std::size_t number_bytes = info.dtype == dtype::c64 ? 4 : bits_of(info.dtype) / 8;
    const std::uint64_t numbers = info.bytes / number_bytes;
    if (numbers < tensor.least_numbers || numbers > tensor.most_numbers) {
      const std::string held =
          tensor.least_numbers == tensor.most_numbers
              ? std::to_string(tensor.least_numbers)
              : std::to_string(tensor.least_numbers) + " to " + std::to_string(tensor.most_numbers);
      fail_tensor(tensor, type_and_shape(info) + " needs " + std::to_string(numbers) +
                              " numbers, but its " + field + " has " + held);
    }
    const bool whole = tensor.pieces.size() == 1 && !tensor.pieces.front().tagged;
    if (whole && tensor.least_numbers == tensor.most_numbers &&
        detail::onnx_wire_type(tensor.data_field) != protozero::pbf_wire_type::varint) {
      return {0, tensor.pieces.front().begin};
    }
    return {0, 0,
            std::make_unique<detail::onnx_values>(std::move(tensor.pieces), tensor.data_field,
                                                  numbers, number_bytes)};
  }

  [[nodiscard]] payload external_payload(const detail::onnx_tensor& tensor, tensor_info& info) {
    if (!tensor.location) fail_tensor(tensor, "its external_data has no location");
    const auto number = [&, this](const std::optional<std::string>& text, std::uint64_t otherwise,
                                  const char* what) {
      if (!text) return otherwise;
      std::uint64_t value = 0;
      const char* const end = text->data() + text->size();
      const auto [last, code] = std::from_chars(text->data(), end, value);
      if (code != std::errc() || last != end) {
        fail_tensor(tensor, std::string("the ") + what + " of its external_data is " +
                                in_quotes(*text) + ", no number from 0 to 2^64 - 1");
      }
      return value;
    };
    payload data;
    data.file = external_file(tensor);
    data.offset = number(tensor.offset, 0, "offset");
    const std::uint64_t size = files_[data.file]->size();
    const bool opaque = info.dtype == dtype::opaque;
    const std::uint64_t rest = size - std::min(data.offset, size);
    const std::uint64_t length = number(tensor.length, opaque ? rest : info.bytes, "length");
    check_bytes(tensor, info, length, "external_data");
    if (!in_bounds(data.offset, length, size)) {
      fail_tensor(tensor, "its " + std::to_string(length) + " bytes from offset " +
                              std::to_string(data.offset) + " are not in its file " +
                              in_quotes(*tensor.location) + ", which has " + std::to_string(size));
    }
    return data;
  }

  /// The index in `files_` of a tensor's external file, which is opened if it is new.
  [[nodiscard]] std::size_t external_file(const detail::onnx_tensor& tensor) {
    const std::string& location = *tensor.location;
    if (const auto known = file_of_location_.find(location); known != file_of_location_.end()) {
      return known->second;
    }
    const auto fail_file = [&, this](const std::string& what) {
      fail_tensor(tensor, "its file " + in_quotes(location) + " " + what);
    };
    if (!detail::stays_in_folder(location)) {
      fail_file("is not a name below the model's folder");
    }
    if (file_of_location_.size() == detail::onnx_max_external_files) {
      fail_file("is one more than the " + std::to_string(detail::onnx_max_external_files) +
                " that are allowed");
    }
    const std::size_t slash = path().rfind('/');
    const std::string folder = slash == std::string::npos ? "./" : path().substr(0, slash + 1);
    const auto fail_system = [&, this](int error_number) {
      const std::error_code code(error_number, std::system_category());
      throw io_error(
          subject_of(tensor.name) + ": its file " + in_quotes(location) + ": " + code.message(),
          code);
    };
    auto inside = detail::resolve_path(folder);
    if (!inside) fail_system(errno);
    if (!inside->ends_with('/')) *inside += '/';
    const auto resolved = detail::resolve_path(folder + location);
    if (!resolved) fail_system(errno);
    if (!resolved->starts_with(*inside)) {
      fail_file("is a link that leads out of the model's folder");
    }
    return file_of_location_.emplace(location, open_external(tensor, *resolved)).first->second;
  }

  [[nodiscard]] std::size_t open_external(const detail::onnx_tensor& tensor,
                                          const std::string& resolved) {
    for (std::size_t i = 1; i < files_.size(); ++i) {
      if (files_[i]->path() == resolved) return i;
    }
    try {
      files_.push_back(std::make_unique<mapped_file>(input_file(resolved)));
    } catch (const io_error& cause) {
      // The user named the model: say who needs the file that is in the way.
      throw io_error(subject_of(tensor.name) + ": its file " + cause.what(), cause.code());
    }
    const auto sum = checked_add(file_bytes_, files_.back()->size());
    if (!sum) fail("the sizes of its files exceed a 64-bit number");
    file_bytes_ = *sum;
    return files_.size() - 1;
  }

  std::vector<std::unique_ptr<const mapped_file>> files_;  // the model, then external ones
  std::map<std::string, std::size_t> file_of_location_;    // while opening
  std::uint64_t file_bytes_ = 0;
  std::vector<tensor_info> tensors_;
  std::vector<payload> payloads_;
  std::vector<metadata_entry> metadata_;
};

static_assert(weight_reader<onnx_reader>);

}  // namespace vggload

#include "kernels/linear/pack.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "base/bf16.h"
#include "base/float_mode.h"
#include "kernels/kernels.h"

namespace ernie {
namespace {

constexpr size_t kColumnsAtOnce = 256;

// A checkpoint file may place a tensor at any byte.
template <typename T>
T load(const Source& source, ptrdiff_t index) {
  T value;
  std::memcpy(&value, static_cast<const char*>(source.data) + index * static_cast<ptrdiff_t>(sizeof(T)), sizeof(T));
  return value;
}

float element(const Source& source, ptrdiff_t index) {
  switch (source.dtype) {
    case Dtype::fp32:
      return load<float>(source, index);
    case Dtype::bf16:
      return bf16_to_float(load<uint16_t>(source, index));
    case Dtype::fp16:
      return fp16_to_float(load<uint16_t>(source, index));
  }
  return 0.0f;
}

// Elements [index, index + n), one after the other in memory; one loop for each type, which compilers make vectors of.
void load_run(const Source& source, ptrdiff_t index, size_t n, float* to) {
  const auto each = [&](auto convert) {
    for (size_t i = 0; i < n; ++i) to[i] = convert(index + static_cast<ptrdiff_t>(i));
  };
  switch (source.dtype) {
    case Dtype::fp32:
      return each([&](ptrdiff_t i) { return load<float>(source, i); });
    case Dtype::bf16:
      return each([&](ptrdiff_t i) { return bf16_to_float(load<uint16_t>(source, i)); });
    case Dtype::fp16:
      return each([&](ptrdiff_t i) { return fp16_to_float(load<uint16_t>(source, i)); });
  }
}

// How many of the columns from the first on follow one another.
size_t run_of(const int32_t* cols, size_t n) {
  size_t run = 0;
  while (run < n && cols[run] >= 0 && cols[run] == cols[0] + static_cast<int32_t>(run)) ++run;
  return run;
}

// The values of 16 packed rows at packed columns [col, col + n): block[row * n + column].
void gather(const std::vector<Source>& sources, const SourceRow* rows, const int32_t* cols, size_t n, float* block) {
  const size_t run = run_of(cols, n);
  for (size_t r = 0; r < kPanelRows; ++r) {
    float* to = block + r * n;
    if (rows[r].source < 0) {
      std::memset(to, 0, n * sizeof(float));
      continue;
    }
    const Source& source = sources[rows[r].source];
    const ptrdiff_t start = static_cast<ptrdiff_t>(rows[r].row) * source.row_stride;
    const size_t straight = source.col_stride == 1 ? run : 0;
    if (straight > 0) load_run(source, start + cols[0], straight, to);
    for (size_t c = straight; c < n; ++c)
      to[c] = cols[c] < 0 ? 0.0f : element(source, start + cols[c] * source.col_stride);
  }
}

void write_fp32(const float* block, size_t n, uint8_t* lines) {
  float* out = reinterpret_cast<float*>(lines);
  for (size_t c = 0; c < n; ++c)
    for (size_t r = 0; r < kPanelRows; ++r) out[c * kPanelRows + r] = block[r * n + c];
}

void write_bf16(const float* block, size_t n, uint8_t* lines) {
  uint16_t* out = reinterpret_cast<uint16_t*>(lines);
  for (size_t c = 0; c < n; ++c)
    for (size_t r = 0; r < kPanelRows; ++r) out[(c / 2) * 32 + 2 * r + c % 2] = float_to_bf16(block[r * n + c]);
}

// What a group of 16 packed rows is made of.
struct PanelGroup {
  GroupCodes rows[kPanelRows];
};

void quantise_rows(const Kernels& kernels, Precision precision, const float* block, size_t n, PanelGroup* out) {
  for (size_t r = 0; r < kPanelRows; ++r) kernels.quantise(precision, block + r * n, n, &out->rows[r]);
}

// Group `g` of rows that have codes already.
void copy_codes(const std::vector<Source>& sources, const SourceRow* rows, size_t g, size_t group, PanelGroup* out) {
  std::memset(out, 0, sizeof *out);
  for (size_t r = 0; r < kPanelRows; ++r) {
    if (rows[r].source < 0) continue;
    const Source& source = sources[rows[r].source];
    const Codes& from = *source.codes;
    const size_t n = std::min(group, source.cols - g * group);
    GroupCodes& to = out->rows[r];
    to.scale = from.scales[rows[r].row * div_up(source.cols, group) + g];
    std::memcpy(to.codes, from.codes + rows[r].row * source.cols + g * group, n);
    if (from.subs == nullptr) continue;
    const size_t first = g * group / kSubColumns;
    std::memcpy(to.subs, from.subs + rows[r].row * div_up(source.cols, kSubColumns) + first, div_up(n, kSubColumns));
  }
}

// Eight codes, or four, as the bytes of a word. Codes are two's complement, so that adding half of their range turns one bit
// and keeps those below: (code + 8) of 4 bits is code & 15 with the bit 8 turned.
template <typename Word>
Word codes_at(const GroupCodes& row, size_t c) {
  Word word;
  std::memcpy(&word, row.codes + c, sizeof word);
  return word;
}

constexpr uint64_t kEachByte = 0x0101010101010101u;

// Eight bytes below 16 as four: the first four are low nibbles.
uint32_t join_nibbles(uint64_t bytes) { return static_cast<uint32_t>(bytes) | static_cast<uint32_t>(bytes >> 32) << 4; }

void put(uint8_t* line, size_t r, uint32_t word) { std::memcpy(line + 4 * r, &word, sizeof word); }

void write_int8(const PanelGroup& group, size_t n, uint8_t* lines) {
  for (size_t r = 0; r < kPanelRows; ++r)
    for (size_t c = 0; c < n; c += 4)
      put(lines + c / 4 * kLineBytes, r, codes_at<uint32_t>(group.rows[r], c) ^ 0x80808080u);
}

void write_int4(const PanelGroup& group, size_t n, uint8_t* lines) {
  for (size_t r = 0; r < kPanelRows; ++r)
    for (size_t c = 0; c < n; c += 8) {
      const uint64_t codes = (codes_at<uint64_t>(group.rows[r], c) ^ 8 * kEachByte) & 15 * kEachByte;
      put(lines + c / 8 * kLineBytes, r, join_nibbles(codes));
    }
}

void write_nested8(const PanelGroup& group, size_t n, uint8_t* upper, uint8_t* lower) {
  for (size_t r = 0; r < kPanelRows; ++r)
    for (size_t c = 0; c < n; c += 8) {
      const uint64_t codes = codes_at<uint64_t>(group.rows[r], c) ^ 128 * kEachByte;
      put(upper + c / 8 * kLineBytes, r, join_nibbles(codes >> 4 & 15 * kEachByte));
      put(lower + c / 8 * kLineBytes, r, join_nibbles(codes & 15 * kEachByte));
    }
}

void write_nested6(const PanelGroup& group, size_t n, uint8_t* upper, uint8_t* lower) {
  for (size_t r = 0; r < kPanelRows; ++r)
    for (size_t c = 0; c < n; c += 16) {
      uint32_t rest = 0;
      for (size_t half : {0, 1}) {
        const uint64_t codes = codes_at<uint64_t>(group.rows[r], c + 8 * half) ^ 32 * kEachByte;
        put(upper + (c / 8 + half) * kLineBytes, r, join_nibbles(codes >> 2 & 15 * kEachByte));
        const uint64_t low = codes & 3 * kEachByte;
        rest |= (static_cast<uint32_t>(low) | static_cast<uint32_t>(low >> 32) << 2) << 4 * half;
      }
      put(lower + c / 16 * kLineBytes, r, rest);
    }
}

void write_subs(const PanelGroup& group, size_t first, size_t n, uint8_t* subs) {
  for (size_t r = 0; r < kPanelRows; ++r)
    for (size_t i = 0; i < n; ++i) {
      const size_t sub = first + i;
      subs[sub / 8 * kLineBytes + 4 * r + sub % 8 / 2] |= static_cast<uint8_t>(group.rows[r].subs[i] << (sub % 2 * 4));
    }
}

// Columns [col, col + n), a scale group, of one panel; `low` is its part of the lower plane.
void write_group(const Matrix& w, const PanelGroup& group, size_t col, size_t n, uint8_t* panel, uint8_t* low) {
  uint16_t* scales = reinterpret_cast<uint16_t*>(panel + w.scales_at) + col / w.scale_group * kPanelRows;
  for (size_t r = 0; r < kPanelRows; ++r) scales[r] = group.rows[r].scale;
  uint8_t* weights = panel + w.weights_at;
  if (w.precision == Precision::int8) return write_int8(group, n, weights + col / 4 * kLineBytes);
  weights += col / 8 * kLineBytes;
  low += is_nested(w.precision) ? col / low_columns(w.precision) * kLineBytes : 0;
  if (w.precision == Precision::nested8) return write_nested8(group, n, weights, low);
  if (w.precision == Precision::nested6) return write_nested6(group, n, weights, low);
  write_int4(group, n, weights);
  write_subs(group, col / kSubColumns, n / kSubColumns, panel + w.subs_at);
}

void write_exact(const Matrix& w, const std::vector<Source>& sources, const SourceRow* rows, uint8_t* panel) {
  uint16_t* out = reinterpret_cast<uint16_t*>(panel);
  for (size_t r = 0; r < kPanelRows; ++r) {
    if (rows[r].source < 0) continue;
    const uint16_t* from = sources[rows[r].source].codes->exact_weights + rows[r].row * w.exact_count;
    for (size_t e = 0; e < w.exact_count; ++e) out[e / 2 * 32 + 2 * r + e % 2] = from[e];
  }
}

void pack_quantised(const Kernels& kernels, const Matrix& w, const std::vector<Source>& sources, const SourceRow* rows,
                    const std::vector<int32_t>& cols, uint8_t* panel, uint8_t* low) {
  const bool chosen = sources[0].codes != nullptr;
  if (chosen) write_exact(w, sources, rows, panel);
  PanelGroup group;
  float block[kPanelRows * kMaxGroup];
  for (size_t col = 0; col < w.cols; col += w.scale_group) {
    const size_t n = std::min(w.scale_group, w.cols - col);
    if (chosen) {
      copy_codes(sources, rows, col / w.scale_group, w.scale_group, &group);
    } else {
      gather(sources, rows, cols.data() + col, n, block);
      quantise_rows(kernels, w.precision, block, n, &group);
    }
    write_group(w, group, col, n, panel, low);
  }
}

void pack_panel(const Kernels& kernels, const Matrix& w, const std::vector<Source>& sources, const SourceRow* rows,
                const std::vector<int32_t>& cols, uint8_t* out, uint8_t* low) {
  if (is_quantised(w.precision)) return pack_quantised(kernels, w, sources, rows, cols, out, low);
  float block[kPanelRows * kColumnsAtOnce];
  for (size_t c = 0; c < cols.size(); c += kColumnsAtOnce) {
    const size_t n = std::min(cols.size() - c, kColumnsAtOnce);
    gather(sources, rows, cols.data() + c, n, block);
    if (w.precision == Precision::fp32) write_fp32(block, n, out + c * kLineBytes);
    if (w.precision == Precision::bf16) write_bf16(block, n, out + c / 2 * kLineBytes);
  }
}

void require(bool ok, const char* what) {
  if (!ok) throw std::invalid_argument(what);
}

bool is_plain(const std::vector<int32_t>& cols, size_t count) {
  for (size_t i = 0; i < cols.size(); ++i)
    if (cols[i] != (i < count ? static_cast<int32_t>(i) : -1)) return false;
  return true;
}

// Codes are copied column by column, so their order must be that of the source.
void check_codes(const std::vector<Source>& sources, const std::vector<int32_t>& cols) {
  const Codes& first = *sources[0].codes;
  require(is_plain(cols, sources[0].cols), "codes need a head size that is a multiple of 16");
  for (const Source& source : sources) {
    require(source.codes != nullptr, "either all matrices that are packed together have codes or none has");
    const Codes& codes = *source.codes;
    require(codes.group == first.group && codes.bits == first.bits &&
                codes.exact_count == first.exact_count &&
                std::equal(codes.exact, codes.exact + codes.exact_count, first.exact),
            "matrices that are packed together must have the same precision, group and exact columns");
  }
}

}  // namespace

Matrix describe(Precision precision, Groups groups, size_t rows, size_t cols, size_t exact_count) {
  Matrix w;
  w.precision = precision;
  w.rows = rows;
  w.cols = precision == Precision::bf16 ? round_up(cols, 32) : cols;
  if (!is_quantised(precision)) {
    w.panel_bytes = w.cols * kPanelRows * (precision == Precision::fp32 ? 4 : 2);
    return w;
  }
  require(groups.activations > 0 && groups.activations % 16 == 0 && groups.scales <= kMaxGroup &&
              groups.scales % groups.activations == 0 && groups.scales > 0,
          "a matrix's scale group must be a multiple of the activations' group, which is a multiple of 16, up to 256");
  w.group = groups.activations;
  w.scale_group = groups.scales;
  w.exact_count = exact_count;
  w.scales_at = exact_count / 2 * kLineBytes;
  w.subs_at = w.scales_at + round_up(w.scale_groups() * kPanelRows * sizeof(uint16_t), kLineBytes);
  w.weights_at = w.subs_at + (precision == Precision::int4 ? div_up(cols, 8 * kSubColumns) * kLineBytes : 0);
  w.panel_bytes = w.weights_at + cols / (precision == Precision::int8 ? 4 : 8) * kLineBytes;
  if (is_nested(precision)) w.low_bytes = cols / low_columns(precision) * kLineBytes;
  return w;
}

float Source::at(size_t row, size_t col) const {
  return element(*this, static_cast<ptrdiff_t>(row) * row_stride + static_cast<ptrdiff_t>(col) * col_stride);
}

PackedMatrix pack(Precision precision, Groups groups, const std::vector<Source>& sources,
                  const std::vector<SourceRow>& row_map, const std::vector<int32_t>& col_map, const Kernels& kernels,
                  ThreadPool& pool) {
  const DefaultFloatMode mode;
  PackedMatrix packed;
  const Codes* codes = sources[0].codes;
  if (codes != nullptr) {
    check_codes(sources, col_map);
    precision = codes->bits == 4                  ? Precision::int4
                : codes->bits == 6                ? Precision::nested6
                : precision == Precision::nested8 ? precision
                                                  : Precision::int8;
    groups.scales = codes->group;
    packed.exact.assign(codes->exact, codes->exact + codes->exact_count);
  }
  Matrix& w = packed.view;
  w = describe(precision, groups, row_map.size(), col_map.size(), packed.exact.size());
  packed.storage = AlignedBuffer(packed.bytes());
  w.set_data(packed.storage.data());
  w.exact = packed.exact.data();
  uint8_t* data = packed.storage.data();
  uint8_t* low = data + w.panels() * w.panel_bytes;
  pool.run(w.panels(), [&](size_t panel, int) {
    pack_panel(kernels, w, sources, row_map.data() + panel * kPanelRows, col_map, data + panel * w.panel_bytes,
               low + panel * w.low_bytes);
  });
  return packed;
}

std::vector<SourceRow> plain_rows(size_t rows) {
  std::vector<SourceRow> map(round_up(rows, kPanelRows));
  for (size_t i = 0; i < rows; ++i) map[i] = {0, i};
  return map;
}

std::vector<int32_t> plain_cols(size_t cols) {
  std::vector<int32_t> map(round_up(cols, 16), -1);
  for (size_t i = 0; i < cols; ++i) map[i] = static_cast<int32_t>(i);
  return map;
}

namespace {

int nibble_at(const uint8_t* lines, size_t r, size_t c) {
  const int byte = lines[c / 8 * kLineBytes + 4 * r + c % 4];
  return c % 8 < 4 ? byte & 15 : byte >> 4;
}

// Lower bits of a code of a nested matrix.
int rest_at(Precision precision, const uint8_t* low, size_t r, size_t c) {
  if (precision == Precision::nested8) return nibble_at(low, r, c);
  return low[c / 16 * kLineBytes + 4 * r + c % 4] >> (c % 16 / 4 * 2) & 3;
}

int code_at(const Matrix& w, size_t panel, size_t r, size_t c) {
  const uint8_t* base = w.data + panel * w.panel_bytes;
  const uint8_t* weights = base + w.weights_at;
  if (w.precision == Precision::int8) return weights[c / 4 * kLineBytes + 4 * r + c % 4] - 128;
  const int upper = nibble_at(weights, r, c) - 8;
  if (is_nested(w.precision))
    return (upper << low_bits(w.precision)) + rest_at(w.precision, w.low + panel * w.low_bytes, r, c);
  const size_t sub = c / kSubColumns;
  const int factor = base[w.subs_at + sub / 8 * kLineBytes + 4 * r + sub % 8 / 2] >> (sub % 2 * 4) & 15;
  return factor * upper;
}

float quantised_at(const Matrix& w, size_t panel, size_t r, size_t c) {
  const uint8_t* scales = w.data + panel * w.panel_bytes + w.scales_at;
  const float scale = bf16_to_float(reinterpret_cast<const uint16_t*>(scales)[c / w.scale_group * kPanelRows + r]);
  return scale * static_cast<float>(code_at(w, panel, r, c));
}

}  // namespace

void unpack_row(const Matrix& w, size_t row, size_t n, float* out) {
  const uint8_t* panel = w.data + row / kPanelRows * w.panel_bytes;
  const size_t r = row % kPanelRows;
  for (size_t c = 0; c < n; ++c) {
    if (w.precision == Precision::fp32) {
      out[c] = reinterpret_cast<const float*>(panel)[c * kPanelRows + r];
    } else if (w.precision == Precision::bf16) {
      out[c] = bf16_to_float(reinterpret_cast<const uint16_t*>(panel)[(c / 2) * 32 + 2 * r + c % 2]);
    } else {
      out[c] = quantised_at(w, row / kPanelRows, r, c);
    }
  }
  for (size_t e = 0; e < w.exact_count && static_cast<size_t>(w.exact[e]) < n; ++e)
    out[w.exact[e]] = bf16_to_float(reinterpret_cast<const uint16_t*>(panel)[e / 2 * 32 + 2 * r + e % 2]);
}

size_t prepared_cols(const Matrix& w) { return w.cols; }

const char* exact_columns_problem(const int32_t* exact, size_t count, size_t cols) {
  if (count > kMaxExact || count % 2 != 0) return "exact columns must be an even number up to 64";
  for (size_t i = 0; i < count; ++i)
    if (exact[i] < 0 || static_cast<size_t>(exact[i]) >= cols || (i > 0 && exact[i] <= exact[i - 1]))
      return "exact columns must ascend inside the matrix";
  return nullptr;
}

size_t prepared_bytes(const Matrix& w) {
  const size_t element = w.precision == Precision::fp32 ? 4 : w.precision == Precision::bf16 ? 2 : 1;
  return round_up(w.cols * element, kLineBytes);
}

}  // namespace ernie

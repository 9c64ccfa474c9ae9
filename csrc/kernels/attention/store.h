#pragma once

#include <cstring>

#include "kernels/attention/attention.h"

namespace ernie::ERNIE_VARIANT {

static void store_query(const float* from, size_t padded_d, KvPrecision precision, uint8_t* to, size_t query_bytes) {
  if (precision == KvPrecision::fp32) {
    std::memcpy(to, from, padded_d * sizeof(float));
    return;
  }
  for (size_t i = 0; i < padded_d; i += 16) f_store_bf16(reinterpret_cast<uint16_t*>(to) + i, f_load(from + i));
  std::memset(to + padded_d * 2, 0, query_bytes - padded_d * 2);
}

// Not a vector that is read, changed and written back: other threads write the neighbouring tokens.
template <typename T>
static inline void scatter(uint8_t* to, size_t step, const T* from, size_t count) {
  for (size_t i = 0; i < count; ++i) std::memcpy(to + i * step, from + i, sizeof(T));
}

// What one key or value is multiplied by to give its codes, and what those are multiplied by. An element that is no
// number or infinite makes the scale a NaN, so that it shows in every row that sees the token.
struct EntryScale {
  F16 inverse;
  float scale;
};
static inline EntryScale entry_scale(const float* from, size_t n) {
  F16 top = f_zero(), check = f_zero();
  for (size_t i = 0; i < n; i += 16) {
    const F16 x = f_load(from + i);
    top = f_max(f_abs(x), top);
    check = f_add(check, f_mul(x, f_zero()));
  }
  const float largest = f_maximum(top);
  const bool some = largest > 1e-30f;  // below, nothing is left of it
  return {f_set1(some ? 127.0f / largest : 0.0f), (some ? largest / 127.0f : 0.0f) + f_sum(check)};
}
static inline void entry_codes(const float* from, const EntryScale& scale, int8_t* codes) {
  f_store_s8(codes, f_round(f_mul(f_load(from), scale.inverse)));
}

static void store_key(const KvEntry& e) {
  if (e.precision == KvPrecision::fp32) return scatter(e.head + e.slot * 4, 64, e.from, e.d);
  if (e.precision == KvPrecision::bf16) {
    for (size_t i = 0; i < e.padded_d; i += 16) {
      uint32_t pairs[8];
      f_store_bf16(reinterpret_cast<uint16_t*>(pairs), f_load(e.from + i));
      scatter(e.head + i * 32 + e.slot * 4, 64, pairs, 8);
    }
    return;
  }
  const EntryScale scale = entry_scale(e.from, e.padded_d);
  for (size_t i = 0; i < e.padded_d; i += 16) {
    int8_t codes[16];
    entry_codes(e.from + i, scale, codes);
    for (size_t j = 0; j < 16; j += 2) std::memcpy(e.head + int8_offset((i + j) / 2, e.slot * 2), codes + j, 2);
  }
  std::memcpy(e.head + e.layout.key_scales + e.slot * 4, &scale.scale, 4);
}

static void store_value(const KvEntry& e) {
  uint8_t* base = e.head + e.layout.values;
  if (e.precision == KvPrecision::fp32) {
    for (size_t i = 0; i < e.padded_d; i += 16) std::memcpy(base + i * 64 + e.slot * 64, e.from + i, 64);
    return;
  }
  if (e.precision == KvPrecision::bf16) {
    for (size_t i = 0; i < e.padded_d; i += 16) {
      uint16_t words[16];
      f_store_bf16(words, f_load(e.from + i));
      scatter(base + i * 32 + e.slot / 2 * 64 + e.slot % 2 * 2, 4, words, 16);
    }
    return;
  }
  const EntryScale scale = entry_scale(e.from, e.padded_d);
  for (size_t i = 0; i < e.padded_d; i += 16) {
    int8_t codes[16];
    entry_codes(e.from + i, scale, codes);
    for (size_t j = 0; j < 16; ++j)
      std::memcpy(base + i * 16 + int8_offset(e.slot / 2, j * 2 + e.slot % 2), codes + j, 1);
  }
  std::memcpy(e.head + e.layout.value_scales + e.slot * 4, &scale.scale, 4);
}

}  // namespace ernie::ERNIE_VARIANT

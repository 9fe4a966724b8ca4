// Rows of numbers: how 16 of them are read and written in each storage format, and how many rows a thread takes.
//
// Rows whose length is no multiple of 16 end in a vector that is padded with zeros, so that their last numbers go
// through the same operations as all others.
#pragma once
#include "kernels.h"
#include "vector.h"

namespace {

template <int64_t FORMAT>
struct Stored;

template <>
struct Stored<FG_F32> {
  typedef float type;
  static f32x16 load(const float* from) { return ::load<f32x16>(from); }
  static void store(float* to, f32x16 values) { ::store(to, values); }
};

template <>
struct Stored<FG_F16> {
  typedef _Float16 type;
  static f32x16 load(const _Float16* from) { return __builtin_convertvector(::load<f16x16>(from), f32x16); }
  static void store(_Float16* to, f32x16 values) { ::store(to, __builtin_convertvector(values, f16x16)); }
};

template <>
struct Stored<FG_BF16> {
  typedef uint16_t type;
  static f32x16 load(const uint16_t* from) {
    return as_float(__builtin_convertvector(::load<u16x16>(from), u32x16) << 16);
  }
  // As `to_bf16`.
  static void store(uint16_t* to, f32x16 values) {
    u32x16 bits = as_bits(values);
    u32x16 rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
    u32x16 is_nan = (u32x16)((bits & 0x7fffffffu) > 0x7f800000u);
    bits = (is_nan & (bits | 0x400000u)) | (~is_nan & rounded);
    ::store(to, __builtin_convertvector(bits >> 16, u16x16));
  }
};

template <>
struct Stored<FG_I8> {
  typedef int8_t type;
  static f32x16 load(const int8_t* from) { return __builtin_convertvector(::load<i8x16>(from), f32x16); }
};

// The first `count` of 16 numbers, then zeros; all 16 if there are so many.
template <int64_t FORMAT>
inline f32x16 load_first(const typename Stored<FORMAT>::type* from, int64_t count) {
  if (count >= 16) return Stored<FORMAT>::load(from);
  typename Stored<FORMAT>::type padded[16] = {};
  memcpy(padded, from, count * sizeof(padded[0]));
  return Stored<FORMAT>::load(padded);
}
inline f32x16 load_first(const float* from, int64_t count) { return load_first<FG_F32>(from, count); }

// The first `count` lanes, then zeros.
inline f32x16 first_lanes(f32x16 values, int64_t count) { return load_first((const float*)&values, count); }

inline void store_first(float* to, f32x16 values, int64_t count) {
  if (count >= 16) return store(to, values);
  memcpy(to, &values, count * sizeof(float));
}

// Rows to a piece of work, so that a piece has enough numbers to be worth sharing.
inline int64_t rows_of_piece(int64_t size) { return size >= 16384 ? 1 : 16384 / size; }

}  // namespace

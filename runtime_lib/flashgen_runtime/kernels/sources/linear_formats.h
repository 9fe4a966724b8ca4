// The formats of weights, as a tile (linear.cpp) meets them. A step goes over k: one word of each column, or a group of
// int4. Each format says
//
//   MAX_ROWS       of a tile                         words           of x for a step and a row
//   steps          of a panel                        put_row         how a row of x becomes words
//   rows_per_step  rows of words that a step reads   start, finish   a sum before the first step, after the last one
//   step           R rows of x times 32 columns
//
// and, where weights can lie row-major (linear_rows.cpp), the same for 16 words of one row of W: ROW_WORDS, dot.
//
// int8 and int4 weights take activations as int8: x = scale * q, one scale per row, q = round(127 x / max |x|). Sums of
// q * w are exact integers (of a group for int4); what the offset of the weights adds is subtracted at the start.
#pragma once
#include "dot.h"
#include "panel.h"

namespace {

// Rows of a tile: as many as leave registers for weights and activations. A row's sums take two registers of 512 bits,
// four of 256 or eight of 128, and there are 32, 16 and 32.
#if defined(__AVX512F__)
constexpr int FLOAT_ROWS = 12, PAIR_ROWS = 10, BYTE_ROWS = 12, NIBBLE_ROWS = 8;
#elif defined(__x86_64__)
constexpr int FLOAT_ROWS = 2, PAIR_ROWS = 2, BYTE_ROWS = 3, NIBBLE_ROWS = 3;
#else
constexpr int FLOAT_ROWS = 3, PAIR_ROWS = 3, BYTE_ROWS = 3, NIBBLE_ROWS = 3;
#endif

// Fetches the stream of weights into the second-level cache while a tile computes: the first level has too few misses in
// flight to keep the memory busy. Tiles that share a block each fetch their part of the next one.
struct Prefetch {
  const char* at;
  int64_t bytes_per_row;  // of words
  void operator()() {
    __builtin_prefetch(at, 0, 2);
    __builtin_prefetch(at + 64, 0, 2);
    at += bytes_per_row;
  }
};

// What tiles read of a panel: a block of it.
struct Block {
  const char* weights;
  int64_t steps;
  const float* scales;  // I8: of the columns; I4: of the columns, for the groups of the block
  const float* offsets;  // I4: as scales, or null
  int64_t group_size;
};

template <int R>
FG_INLINE void multiply(f32x16 (&sum)[R][2], f32x16 a, f32x16 b, const uint32_t* x) {
  for (int r = 0; r < R; ++r) {
    const f32x16 value = splat(((const float*)x)[r]);
    sum[r][0] = fma(value, a, sum[r][0]);
    sum[r][1] = fma(value, b, sum[r][1]);
  }
}

template <int R>
FG_INLINE void multiply(i32x16 (&sum)[R][2], const ByteOperand& a, const ByteOperand& b, const uint32_t* x) {
  for (int r = 0; r < R; ++r) {
    sum[r][0] = dot_bytes(sum[r][0], a, x + r, R);
    sum[r][1] = dot_bytes(sum[r][1], b, x + r, R);
  }
}

// --- floats ----------------------------------------------------------------------------------------------------------

struct Floats {
  typedef f32x16 Sum;
  static constexpr int MAX_ROWS = FLOAT_ROWS;
  static constexpr bool HAS_ROW_SCALES = false;
  static int64_t steps(const fg_linear* layer) { return panel_word_rows(layer->format, layer->in_features, 0); }
  static int64_t rows_per_step(int64_t) { return 1; }
  static Sum start(int32_t) { return Sum{}; }
  static f32x16 finish(Sum sum, float, const float*) { return sum; }
};

struct F32 : Floats {
  static int64_t words(int64_t) { return 1; }
  static void put_row(const float* x, int64_t K, int64_t, uint32_t* words, int64_t stride, float*, int32_t*) {
    for (int64_t k = 0; k < K; ++k) memcpy(words + k * stride, x + k, 4);
  }
  template <int R>
  FG_INLINE static void step(Sum (&sum)[R][2], const Block&, const char* weights, const uint32_t* x, int64_t,
                             Prefetch& prefetch) {
    prefetch();
    multiply<R>(sum, load<f32x16>(weights), load<f32x16>(weights + 64), x);
  }

  static constexpr int64_t ROW_WORDS = 16;
  static void put_row_words(const float* x, int64_t k, int64_t K, uint32_t* words) {
    store(words, values_at(x, FG_F32, k, K));
  }
  static f32x16 dot(f32x16 sum, u32x16 weights, const uint32_t* x) {
    return fma(as_float(weights), load<f32x16>(x), sum);
  }
};

// Two values a word, widened in registers.
template <f32x16 (*lower)(u32x16), f32x16 (*upper)(u32x16)>
struct Pairs : Floats {
  static constexpr int MAX_ROWS = PAIR_ROWS;
  static int64_t words(int64_t) { return 2; }
  static void put_row(const float* x, int64_t K, int64_t, uint32_t* words, int64_t stride, float*, int32_t*) {
    for (int64_t k = 0; k < K; ++k) memcpy(words + k * stride, x + k, 4);
    if (K % 2) words[K * stride] = 0;
  }
  template <int R>
  FG_INLINE static void step(Sum (&sum)[R][2], const Block&, const char* weights, const uint32_t* x, int64_t,
                             Prefetch& prefetch) {
    prefetch();
    for (int c = 0; c < 2; ++c) {
      const u32x16 pairs = load<u32x16>(weights + 64 * c);
      const f32x16 a = lower(pairs), b = upper(pairs);
      for (int r = 0; r < R; ++r) sum[r][c] = fma(splat(((const float*)x)[r]), a, sum[r][c]);
      for (int r = 0; r < R; ++r) sum[r][c] = fma(splat(((const float*)x)[R + r]), b, sum[r][c]);
    }
  }

  // First the 16 values that meet the lower halves, then those that meet the upper ones.
  static constexpr int64_t ROW_WORDS = 32;
  static void put_row_words(const float* x, int64_t k, int64_t K, uint32_t* words) {
    const f32x16 a = values_at(x, FG_F32, k, K), b = values_at(x, FG_F32, k + 16, K);
    store(words, __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30));
    store(words + 16, __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31));
  }
  static f32x16 dot(f32x16 sum, u32x16 weights, const uint32_t* x) {
    return fma(upper(weights), load<f32x16>(x + 16), fma(lower(weights), load<f32x16>(x), sum));
  }
};

inline f32x16 f16_low(u32x16 pairs) {
  const u16x16 halves = __builtin_convertvector(pairs, u16x16);
  return __builtin_convertvector((f16x16)halves, f32x16);
}
inline f32x16 f16_high(u32x16 pairs) { return f16_low(pairs >> 16); }

typedef Pairs<f16_low, f16_high> F16;

#if defined(__AVX512BF16__)

// Activations are rounded to bfloat16 too: the instruction wants both.
struct BF16 : Floats {
  static int64_t words(int64_t) { return 1; }
  static void put_row(const float* x, int64_t K, int64_t, uint32_t* words, int64_t stride, float*, int32_t*) {
    for (int64_t k = 0; k < K; k += 16) {
      uint32_t pairs[8];
      round_16(x, k, K, pairs);
      for (int64_t i = 0; i < 8 && k + 2 * i < K; ++i) words[(k / 2 + i) * stride] = pairs[i];
    }
  }
  static void round_16(const float* x, int64_t k, int64_t K, uint32_t* pairs) {
    const __m256bh rounded = _mm512_cvtneps_pbh((__m512)values_at(x, FG_F32, k, K));
    memcpy(pairs, &rounded, 32);
  }
  template <int R>
  FG_INLINE static void step(Sum (&sum)[R][2], const Block&, const char* weights, const uint32_t* x, int64_t,
                             Prefetch& prefetch) {
    prefetch();
    const u32x16 a = load<u32x16>(weights), b = load<u32x16>(weights + 64);
    for (int r = 0; r < R; ++r) {
      const u32x16 pair = u32x16{} + x[r];
      sum[r][0] = dot_bf16(sum[r][0], a, pair);
      sum[r][1] = dot_bf16(sum[r][1], b, pair);
    }
  }

  static constexpr int64_t ROW_WORDS = 16;
  static void put_row_words(const float* x, int64_t k, int64_t K, uint32_t* words) {
    round_16(x, k, K, words);
    round_16(x, k + 16, K, words + 8);
  }
  static f32x16 dot(f32x16 sum, u32x16 weights, const uint32_t* x) { return dot_bf16(sum, weights, load<u32x16>(x)); }
};

#else

typedef Pairs<bf16_low, bf16_high> BF16;

#endif

// --- integers --------------------------------------------------------------------------------------------------------

struct Integers {
  static constexpr bool HAS_ROW_SCALES = true;

  // 127 / max |x|; 0 when all are 0.
  static float row_scale(const float* x, int64_t K, float* scale) {
    const float largest = largest_absolute(x, FG_F32, K);
    *scale = largest / 127.0f;
    return largest == 0 ? 0 : 127.0f / largest;
  }
  // 16 values of x as bytes, zeros from index `end` on; adds them to `sum`.
  static void round_16(const float* x, float inverse, int64_t k, int64_t end, uint32_t* quads, i32x16* sum) {
    const i32x16 rounded = round_to_int(values_at(x, FG_F32, k, end) * inverse);
    *sum += rounded;
    const i8x16 bytes = __builtin_convertvector(rounded, i8x16);
    memcpy(quads, &bytes, 16);
  }
};

struct I8 : Integers {
  typedef i32x16 Sum;
  static constexpr int MAX_ROWS = BYTE_ROWS;
  static int64_t steps(const fg_linear* layer) { return panel_word_rows(FG_I8, layer->in_features, 0); }
  static int64_t rows_per_step(int64_t) { return 1; }
  static int64_t words(int64_t) { return DOT_WORDS; }
  static Sum start(int32_t row_start) { return Sum{} + row_start; }

  static void put_row(const float* x, int64_t K, int64_t, uint32_t* words, int64_t stride, float* scale,
                      int32_t* row_start) {
    const float inverse = row_scale(x, K, scale);
    i32x16 sum = {};
    for (int64_t k = 0; k < K; k += 16) {
      uint32_t quads[4];
      round_16(x, inverse, k, K, quads, &sum);
      for (int64_t i = 0; i < 4 && k + 4 * i < K; ++i) {
        byte_words(quads[i], words + (k / 4 + i) * DOT_WORDS * stride, stride);
      }
    }
    *row_start = -BYTE_OFFSET * __builtin_reduce_add(sum);
  }

  template <int R>
  FG_INLINE static void step(Sum (&sum)[R][2], const Block&, const char* weights, const uint32_t* x, int64_t,
                             Prefetch& prefetch) {
    prefetch();
    multiply<R>(sum, byte_operand(load<u32x16>(weights)), byte_operand(load<u32x16>(weights + 64)), x);
  }

  static f32x16 finish(Sum sum, float row_scale, const float* scales) {
    return __builtin_convertvector(sum, f32x16) * (row_scale * load<f32x16>(scales));
  }
};

// A step is a group. Its words of x: what each row's sum starts with, then the bytes.
template <bool HAS_OFFSETS>
struct Nibbles : Integers {
  typedef f32x16 Sum;
  // Sums of the group lie beside those of the row.
  static constexpr int MAX_ROWS = NIBBLE_ROWS;
  static int64_t steps(const fg_linear* layer) { return divide_up(layer->in_features, layer->group_size); }
  static int64_t rows_per_step(int64_t group_size) { return group_size / 8; }
  static int64_t words(int64_t group_size) { return 1 + group_size / 4 * DOT_WORDS; }
  static Sum start(int32_t) { return Sum{}; }

  static void put_row(const float* x, int64_t K, int64_t group_size, uint32_t* words, int64_t stride, float* scale,
                      int32_t*) {
    const float inverse = row_scale(x, K, scale);
    for (int64_t first = 0; first < K; first += group_size) {
      const int64_t last = first + group_size, end = last < K ? last : K;
      i32x16 sum = {};
      uint32_t* quad_words = words + stride;
      for (int64_t k = first; k < last; k += 16) {
        uint32_t quads[4];
        round_16(x, inverse, k, end, quads, &sum);
        for (int64_t i = 0; i < 4 && k + 4 * i < last; ++i, quad_words += DOT_WORDS * stride) {
          byte_words(quads[i], quad_words, stride);
        }
      }
      *words = (uint32_t)(-8 * __builtin_reduce_add(sum));
      words = quad_words;
    }
  }

  template <int R>
  FG_INLINE static void step(Sum (&sum)[R][2], const Block& block, const char* weights, const uint32_t* x,
                             int64_t index, Prefetch& prefetch) {
    alignas(64) i32x16 part[R][2];
    for (int r = 0; r < R; ++r) part[r][0] = part[r][1] = i32x16{} + (int32_t)x[r];
    const uint32_t* starts = x;
    x += R;
    for (int64_t i = 0; i < block.group_size / 8; ++i) {
      prefetch();
      const u32x16 a = load<u32x16>(weights), b = load<u32x16>(weights + 64), nibble = u32x16{} + 0x0f0f0f0fu;
      multiply<R>(part, nibble_operand(a & nibble), nibble_operand(b & nibble), x);
      multiply<R>(part, nibble_operand((a >> 4) & nibble), nibble_operand((b >> 4) & nibble), x + DOT_WORDS * R);
      weights += WORD_ROW_BYTES;
      x += 2 * DOT_WORDS * R;
    }
    const float* scales = block.scales + index * WIDTH;
    const f32x16 a = load<f32x16>(scales), b = load<f32x16>(scales + 16);
    for (int r = 0; r < R; ++r) {
      sum[r][0] = fma(__builtin_convertvector(part[r][0], f32x16), a, sum[r][0]);
      sum[r][1] = fma(__builtin_convertvector(part[r][1], f32x16), b, sum[r][1]);
    }
    if constexpr (HAS_OFFSETS) {
      const float* offsets = block.offsets + index * WIDTH;
      const f32x16 c = load<f32x16>(offsets), d = load<f32x16>(offsets + 16);
      for (int r = 0; r < R; ++r) {
        // A row starts with -8 times its sum: that sum is what each value's offset is multiplied with.
        const f32x16 total = splat((float)(int32_t)starts[r] * -0.125f);
        sum[r][0] = fma(total, c, sum[r][0]);
        sum[r][1] = fma(total, d, sum[r][1]);
      }
    }
  }

  static f32x16 finish(Sum sum, float row_scale, const float*) { return sum * row_scale; }
};

typedef Nibbles<false> I4;
typedef Nibbles<true> I4WithOffsets;

}  // namespace

// Rows of logits as sampling looks at them: which values are left, their weights, and the maxima of a row's parts, with
// which most of a row can be skipped. Sums of weights are float64.
#pragma once
#include "math.h"
#include "vector.h"

static constexpr int64_t SAMPLING_BLOCK = 512;
static constexpr float INFINITE = __builtin_inff();

// Memory of one thread; arrays of a row's length have 16 values more.
struct SamplingMemory {
  float* row;     // the logits, when they are changed
  float* values;  // some of the logits, and their token ids
  int32_t* ids;
  float* keys;  // what a selection looks at and reorders, and the weights
  float* weights;
  float* distances;  // what it comes from, in the order of tokens, and the weights
  float* masses;
  float* maxima;  // [blocks, 16]
  double* sums;   // [blocks]
};

// Logits in the order of tokens: a whole row, with 16 maxima for each block of 512, the largest of its values l,
// l + 16, ... each; or some of a row, with their token ids.
struct Logits {
  const float* values;
  int64_t count;
  const float* maxima;
  const int32_t* ids;
};

// What is left of a row: scaled values s = (x - maximum) * inverse with s >= floor and |s - center| <= radius.
struct Kept {
  float maximum;
  float inverse;
  float floor;
  float center;
  float radius;
};

static int64_t num_blocks(int64_t count) { return (count + SAMPLING_BLOCK - 1) / SAMPLING_BLOCK; }
static int64_t block_end(int64_t block, int64_t count) {
  int64_t end = (block + 1) * SAMPLING_BLOCK;
  return end < count ? end : count;
}

// 16 values from `i` on; past the end minus infinity, which nothing keeps.
static inline f32x16 load_logits(const float* values, int64_t i, int64_t count) {
  if (i + 16 <= count) return load<f32x16>(values + i);
  f32x16 result = splat(-INFINITE);
  for (int64_t lane = 0; lane < count - i; ++lane) result[lane] = values[i + lane];
  return result;
}

// Bit l: whether the condition holds in lane l.
typedef bool bits16 __attribute__((ext_vector_type(16)));
static inline uint32_t lanes_where(i32x16 condition) {
  bits16 lanes = __builtin_convertvector(condition, bits16);
  uint16_t bits;
  memcpy(&bits, &lanes, sizeof(bits));
  return bits;
}
static inline bool any(i32x16 condition) { return lanes_where(condition) != 0; }

// The lane of the lowest bit, which is taken off.
static inline int next_lane(uint32_t* lanes) {
  int lane = __builtin_ctz(*lanes);
  *lanes &= *lanes - 1;
  return lane;
}

// The lanes whose bits are set follow one another at `to`, which has room for all 16.
static inline void store_lanes(float* to, f32x16 values, uint32_t lanes) {
#if defined(__AVX512F__)
  store(to, (f32x16)_mm512_maskz_compress_ps((__mmask16)lanes, (__m512)values));
#else
  while (lanes) *to++ = values[next_lane(&lanes)];
#endif
}

static inline f32x16 scaled(f32x16 x, const Kept& kept) { return (x - kept.maximum) * kept.inverse; }
static inline f32x16 weight_of(f32x16 s, const Kept& kept) {
  i32x16 is_kept = (s >= kept.floor) & (absolute(s - kept.center) <= kept.radius);
  return is_kept ? exp(s) : splat(0.0f);
}
static inline double sum_lanes(f64x16 v) {
  double lane[16];
  memcpy(lane, &v, sizeof(lane));
  for (int width = 8; width; width /= 2)
    for (int i = 0; i < width; ++i) lane[i] += lane[i + width];
  return lane[0];
}

// The largest value, with the maxima of the blocks; NaN is none.
static float find_maxima(const float* values, int64_t count, float* maxima, bool* has_nan) {
  f32x16 largest = splat(-INFINITE);
  i32x16 is_nan = {};
  for (int64_t block = 0; block < num_blocks(count); ++block) {
    f32x16 of_block = splat(-INFINITE);
    for (int64_t i = block * SAMPLING_BLOCK; i < block_end(block, count); i += 16) {
      f32x16 x = load_logits(values, i, count);
      is_nan |= x != x;
      of_block = x > of_block ? x : of_block;
    }
    store(maxima + block * 16, of_block);
    largest = of_block > largest ? of_block : largest;
  }
  *has_nan = any(is_nan);
  return max_lanes(largest);
}

// A number that a comparison and a difference can take: NaN is the worst, infinity the largest number.
static inline float usable(float x) {
  if (x != x) return -INFINITE;
  return x > __FLT_MAX__ ? __FLT_MAX__ : x;
}

static void copy_usable(const float* values, int64_t count, float* row) {
  for (int64_t i = 0; i < count; ++i) row[i] = usable(values[i]);
}

// The row with usable numbers only: itself if it has no others, else a copy in memory.row.
static Logits prepare(const float* values, int64_t count, const SamplingMemory& memory, float* maximum) {
  bool has_nan;
  *maximum = find_maxima(values, count, memory.maxima, &has_nan);
  if (has_nan || *maximum == INFINITE) {
    copy_usable(values, count, memory.row);
    values = memory.row;
    *maximum = find_maxima(values, count, memory.maxima, &has_nan);
  }
  return Logits{values, count, memory.maxima, nullptr};
}

static double sum_of_block(const Logits& logits, const Kept& kept, int64_t block) {
  if (logits.maxima && !any(scaled(load<f32x16>(logits.maxima + block * 16), kept) >= kept.floor)) return 0;
  f64x16 sum = {};
  for (int64_t i = block * SAMPLING_BLOCK; i < block_end(block, logits.count); i += 16) {
    f32x16 s = scaled(load_logits(logits.values, i, logits.count), kept);
    if (any(s >= kept.floor)) sum += __builtin_convertvector(weight_of(s, kept), f64x16);
  }
  return sum_lanes(sum);
}

static double total_of(const Logits& logits, const Kept& kept) {
  double total = 0;
  for (int64_t block = 0; block < num_blocks(logits.count); ++block) total += sum_of_block(logits, kept, block);
  return total;
}

// The mean of the scaled values: the scaled value whose information is the entropy.
static float mean_of(const Logits& logits, const Kept& kept) {
  f64x16 total = {}, weighted = {};
  for (int64_t i = 0; i < logits.count; i += 16) {
    f32x16 s = scaled(load_logits(logits.values, i, logits.count), kept);
    f32x16 weight = weight_of(s, kept);
    s = weight > 0 ? s : splat(0.0f);
    total += __builtin_convertvector(weight, f64x16);
    weighted += __builtin_convertvector(weight, f64x16) * __builtin_convertvector(s, f64x16);
  }
  return (float)(sum_lanes(weighted) / sum_lanes(total));
}

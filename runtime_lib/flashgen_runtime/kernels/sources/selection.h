// The one question that all filters ask: the smallest key up to which the weights reach a target. top_k asks it of the
// negative values with weight 1, top_p and typical_p of the distances of scaled values from a center, with their
// probabilities as weights.
//
// No vocabulary is sorted. With the maxima of a row's parts its largest few thousand values are gathered quickly, and
// mostly these hold the answer. Where they do not, a histogram of all keys finds the bucket that does, and only its
// members are ordered.
#pragma once
#include "logits.h"

static constexpr int64_t BUCKETS = 1024;

// One in so many logits is tried before all of them.
static constexpr int64_t HEAD = 64;

// Values of at least `bound` and their token ids, in the order of tokens; their number.
static int64_t gather(const Logits& logits, float bound, float* values, int32_t* ids) {
  int64_t found = 0;
  for (int64_t block = 0; block < num_blocks(logits.count); ++block) {
    if (logits.maxima && !any(load<f32x16>(logits.maxima + block * 16) >= bound)) continue;
    for (int64_t i = block * SAMPLING_BLOCK; i < block_end(block, logits.count); i += 16) {
      f32x16 x = load_logits(logits.values, i, logits.count);
      for (uint32_t lanes = lanes_where(x >= bound); lanes; ++found) {
        ids[found] = (int32_t)i + next_lane(&lanes);
        values[found] = logits.values[ids[found]];
      }
    }
  }
  return found;
}

// The smallest key such that `before` and the weights of all keys up to it reach the target; the largest if none does.
// Reorders both arrays.
static float select_key(float* keys, float* weights, int64_t count, double before, double target) {
  while (count > 32) {
    float low = keys[0], high = keys[0];
    for (int64_t i = 1; i < count; ++i) {
      low = keys[i] < low ? keys[i] : low;
      high = keys[i] > high ? keys[i] : high;
    }
    if (low == high) return low;
    // The lowest key falls into the first bucket and the highest into the last, so each round leaves fewer keys.
    const double scale = (BUCKETS - 1) / ((double)high - low);
    double sums[BUCKETS] = {};
    for (int64_t i = 0; i < count; ++i) sums[(int)(((double)keys[i] - low) * scale + 0.5)] += weights[i];
    int64_t bucket = 0;
    while (bucket < BUCKETS - 1 && before + sums[bucket] < target) before += sums[bucket++];
    int64_t members = 0;
    for (int64_t i = 0; i < count; ++i) {
      if ((int)(((double)keys[i] - low) * scale + 0.5) != bucket) continue;
      keys[members] = keys[i];
      weights[members++] = weights[i];
    }
    count = members;
  }
  for (int64_t i = 1; i < count; ++i) {
    float key = keys[i], weight = weights[i];
    int64_t place = i;
    for (; place > 0 && keys[place - 1] > key; --place) {
      keys[place] = keys[place - 1];
      weights[place] = weights[place - 1];
    }
    keys[place] = key;
    weights[place] = weight;
  }
  for (int64_t i = 0; i < count; ++i) {
    before += weights[i];
    if (before >= target) return keys[i];
  }
  return keys[count - 1];
}

// The k-th largest of values, minus infinity if fewer than k are above that.
static float kth_largest(const float* values, int64_t count, int64_t k, const SamplingMemory& memory) {
  int64_t found = 0;
  for (int64_t i = 0; i < count; ++i) {
    memory.keys[found] = -values[i];
    memory.weights[found] = 1.0f;
    found += values[i] > -INFINITE;
  }
  return found < k ? -INFINITE : -select_key(memory.keys, memory.weights, found, 0, (double)k);
}

// A bound that the k largest values of a row reach and few others; minus infinity where k are many for the row.
static float bound_of_largest(const Logits& logits, int64_t k, const SamplingMemory& memory) {
  // k maxima are k values of the row, so its k-th largest is not below the maxima's.
  return kth_largest(logits.maxima, num_blocks(logits.count) * 16, k, memory);
}

// The values of a row from `bound` up, in memory.values and memory.ids; impossible tokens never.
static Logits gather_from(const Logits& logits, float bound, const SamplingMemory& memory) {
  int64_t found = gather(logits, bound == -INFINITE ? -__FLT_MAX__ : bound, memory.values, memory.ids);
  return Logits{memory.values, found, nullptr, memory.ids};
}

// Exactly the k largest values and those equal to the last of them.
static Logits keep_largest(const Logits& logits, int64_t k, const SamplingMemory& memory) {
  const Logits few = gather_from(logits, bound_of_largest(logits, k, memory), memory);
  const float bound = kth_largest(few.values, few.count, k, memory);
  int64_t found = 0;
  for (int64_t i = 0; i < few.count; ++i) {
    memory.values[found] = memory.values[i];
    memory.ids[found] = memory.ids[i];
    found += memory.values[i] >= bound;
  }
  return Logits{memory.values, found, nullptr, memory.ids};
}

// Weights by distance from the center: bucket b holds distances d with b <= d * scale < b + 1.
struct Histogram {
  float center;
  float scale;
  // Two of each, by turns, and places for what is beyond, so that additions seldom wait for one another.
  double sums[2][BUCKETS + 16];
};

static void add_block(Histogram& histogram, const Logits& logits, const Kept& kept, int64_t block) {
  const i32x16 beyond = (int32_t)BUCKETS + (i32x16){0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  int32_t buckets[SAMPLING_BLOCK];
  double weights[SAMPLING_BLOCK];
  int64_t length = 0;
  for (int64_t i = block * SAMPLING_BLOCK; i < block_end(block, logits.count); i += 16) {
    f32x16 s = scaled(load_logits(logits.values, i, logits.count), kept);
    f32x16 place = absolute(s - histogram.center) * histogram.scale;
    i32x16 is_within = place < (float)BUCKETS;
    if (!any(is_within)) continue;
    i32x16 bucket = __builtin_convertvector(is_within ? place : splat(0.0f), i32x16);
    store(buckets + length, is_within ? bucket : beyond);
    store(weights + length, __builtin_convertvector(weight_of(s, kept), f64x16));
    length += 16;
  }
  for (int64_t i = 0; i < length; i += 2) {
    histogram.sums[0][buckets[i]] += weights[i];
    histogram.sums[1][buckets[i + 1]] += weights[i + 1];
  }
}

// The bucket in which the weights reach the target, or by rounding the last; *before: the weights in those before it.
static int64_t find_bucket(const Histogram& histogram, double target, double* before) {
  int64_t found = 0;
  double reached = 0;
  for (int64_t bucket = 0; bucket < BUCKETS && reached < target; ++bucket) {
    const double sum = histogram.sums[0][bucket] + histogram.sums[1][bucket];
    if (sum == 0) continue;
    found = bucket;
    *before = reached;
    reached += sum;
  }
  return found;
}

// Distances and weights of a bucket's members, in memory.keys and memory.weights; their number.
static int64_t gather_bucket(const Histogram& histogram, int64_t bucket, const Logits& logits, const Kept& kept,
                             const SamplingMemory& memory) {
  const float first = (float)bucket, end = (float)(bucket + 1);
  int64_t members = 0;
  for (int64_t block = 0; block < num_blocks(logits.count); ++block) {
    // Where all of a block lies below the center and even its maxima are beyond the bucket, so is all else.
    f32x16 best = scaled(load<f32x16>(logits.maxima + block * 16), kept);
    f32x16 nearest = absolute(best - histogram.center) * histogram.scale;
    if (!any((best >= histogram.center) | (nearest < end))) continue;
    for (int64_t i = block * SAMPLING_BLOCK; i < block_end(block, logits.count); i += 16) {
      f32x16 s = scaled(load_logits(logits.values, i, logits.count), kept);
      f32x16 distance = absolute(s - histogram.center), place = distance * histogram.scale;
      i32x16 is_member = (place >= first) & (place < end);
      if (!any(is_member)) continue;
      f32x16 weight = weight_of(s, kept);
      for (uint32_t lanes = lanes_where(is_member & (weight > 0)); lanes; ++members) {
        const int lane = next_lane(&lanes);
        memory.keys[members] = distance[lane];
        memory.weights[members] = weight[lane];
      }
    }
  }
  return members;
}

// select_distance over a whole row.
static float select_by_histogram(const Logits& logits, const Kept& kept, float center, double total, double target,
                                 const SamplingMemory& memory) {
  // Weights below (total - target) / count make up less than what is missing between target and total, so the answer
  // is no farther from the center than such a value, or than the largest. Beyond 128 there are no weights.
  const double least = __builtin_log((total - target) / (double)logits.count) - 1;
  const double reach = center - least > -center ? center - least : -center;
  Histogram histogram = {center, (float)(BUCKETS / ((reach < 128 ? reach : 128) * 1.001)), {}};
  for (int64_t block = 0; block < num_blocks(logits.count); ++block) add_block(histogram, logits, kept, block);
  double before = 0;
  const int64_t bucket = find_bucket(histogram, target, &before);
  const int64_t members = gather_bucket(histogram, bucket, logits, kept, memory);
  return select_key(memory.keys, memory.weights, members, before, target);
}

// The smallest distance of scaled values from the center within which they have `share` of the weight, `total`. Where
// the head of the row has all within that distance, it takes the row's place.
static float select_distance(Logits& logits, const Kept& kept, float center, double total, double share,
                             const SamplingMemory& memory) {
  const double target = share * total;
  Logits head = logits;
  float outside = INFINITE;  // no value that is not in the head is nearer than this
  if (logits.maxima) {
    const float bound = bound_of_largest(logits, logits.count / HEAD + 1, memory);
    head = gather_from(logits, bound, memory);
    outside = center - scaled(bound, kept);
  }
  int64_t members = 0;
  double sum = 0;
  for (int64_t i = 0; i < head.count; i += 16) {
    f32x16 s = scaled(load_logits(head.values, i, head.count), kept);
    f32x16 distance = absolute(s - center), weight = weight_of(s, kept);
    for (uint32_t lanes = lanes_where((distance < outside) & (weight > 0)); lanes; ++members) {
      const int lane = next_lane(&lanes);
      memory.keys[members] = distance[lane];
      memory.weights[members] = weight[lane];
      sum += weight[lane];
    }
  }
  if (logits.maxima && sum < target) return select_by_histogram(logits, kept, center, total, target, memory);
  logits = head;
  return select_key(memory.keys, memory.weights, members, 0, target);
}

// The one question that all filters ask: the smallest key up to which the weights reach a target. top_k asks it of the
// negative values with weight 1, top_p and typical_p of the distances of scaled values from a center, with their
// probabilities as weights.
//
// No vocabulary is sorted. top_k gathers the largest few thousand values, which the maxima of a row's parts tell. The
// other filters estimate the answer from the maxima and a sample, look at the whole row once, summing what is nearer
// than the estimate's range, and order what is within. Where the estimate was wrong they look once more.
#pragma once
#include "logits.h"

static constexpr int64_t BUCKETS = 1024;

// How far an estimate may be off, in standard deviations, before a row is looked at again.
static constexpr double DEVIATIONS = 4;

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

// Bit l: whether i + l < count.
static uint32_t lanes_before(int64_t i, int64_t count) { return count - i >= 16 ? 0xffff : (1u << (count - i)) - 1; }

// The bucket of each key: the lowest key's is the first, the highest one's the last.
struct Buckets {
  double lowest;
  double scale;
  i32x16 operator()(f32x16 keys) const {
    f64x16 place = (__builtin_convertvector(keys, f64x16) - lowest) * scale;
    return __builtin_convertvector(place + 0.5, i32x16);
  }
};

// Leaves only the keys among which the target is reached: *before grows by the weights of those below.
static int64_t narrow(float* keys, float* weights, int64_t count, const Buckets& bucket_of, double* before,
                      double target) {
  double sums[BUCKETS] = {};
  for (int64_t i = 0; i < count; i += 16) {
    int32_t buckets[16];
    store(buckets, bucket_of(load<f32x16>(keys + i)));
    const int64_t lanes = count - i < 16 ? count - i : 16;
    for (int64_t lane = 0; lane < lanes; ++lane) sums[buckets[lane]] += weights[i + lane];
  }
  int32_t bucket = 0;
  while (bucket < BUCKETS - 1 && *before + sums[bucket] < target) *before += sums[bucket++];
  int64_t members = 0;
  for (int64_t i = 0; i < count; i += 16) {
    const i32x16 is_member = bucket_of(load<f32x16>(keys + i)) == bucket;
    for (uint32_t lanes = lanes_where(is_member) & lanes_before(i, count); lanes; ++members) {
      const int lane = next_lane(&lanes);
      keys[members] = keys[i + lane];
      weights[members] = weights[i + lane];
    }
  }
  return members;
}

// The smallest key such that `before` and the weights of all keys up to it reach the target; the largest if none does.
// Reorders both arrays, which have 16 places more.
static float select_key(float* keys, float* weights, int64_t count, double before, double target) {
  while (count > 32) {
    for (int64_t i = count; i % 16; ++i) keys[i] = keys[0];
    f32x16 lowest = load<f32x16>(keys), highest = lowest;
    for (int64_t i = 16; i < count; i += 16) {
      lowest = min(lowest, load<f32x16>(keys + i));
      highest = max(highest, load<f32x16>(keys + i));
    }
    const float low = -max_lanes(-lowest), high = max_lanes(highest);
    if (low == high) return low;
    // The lowest and the highest key are in different buckets, so each round leaves fewer keys.
    count = narrow(keys, weights, count, Buckets{low, (BUCKETS - 1) / ((double)high - low)}, &before, target);
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

// --- distances from a center -----------------------------------------------------------------------------------------

// Distances from near up to, but without, far.
struct Range {
  float near;
  float far;
};

// Farther from any center that a distribution has there are no weights.
static constexpr float FARTHEST = 128;

// A range of distances that ends `share` of the weight most probably, from the maxima of the row's parts and one in 32
// of all others, which counts for 32.
static Range estimate_range(const Logits& logits, const Kept& kept, float center, double share) {
  // Weights below (1 - share) / count make up less than what is missing between the target and the total, which is 1 at
  // least, so the answer is no farther from the center than such a value, or than the largest.
  const double least = __builtin_log((1 - share) / (double)logits.count) - 1;
  const double reach = center - least > -center ? center - least : -center;
  const float scale = (float)(BUCKETS / ((reach < FARTHEST ? reach : FARTHEST) * 1.001));
  double sums[BUCKETS + 1] = {}, squares[BUCKETS + 1] = {};
  double total = 0;
  auto add = [&](f32x16 values, i32x16 is_counted, float factor, double* squares_of) {
    const f32x16 s = scaled(values, kept);
    const f32x16 place = min(absolute(s - center) * scale, splat(BUCKETS));
    int32_t buckets[16];
    float weights[16];
    store(buckets, __builtin_convertvector(place, i32x16));
    store(weights, is_counted ? factor * weight_of(s, kept) : splat(0.0f));
    for (int lane = 0; lane < 16; ++lane) {
      sums[buckets[lane]] += weights[lane];
      if (squares_of) squares_of[buckets[lane]] += (double)weights[lane] * weights[lane];
      total += weights[lane];
    }
  };
  for (int64_t block = 0; block < num_blocks(logits.count); ++block) {
    const f32x16 maxima = load<f32x16>(logits.maxima + block * 16);
    add(maxima, maxima == maxima, 1, nullptr);
    // Another place in each block, so that no order of the vocabulary is met.
    const int64_t vectors = (block_end(block, logits.count) - block * SAMPLING_BLOCK + 15) / 16;
    const int64_t sampled = block * SAMPLING_BLOCK + block * 11 % vectors * 16;
    const f32x16 sample = load_logits(logits.values, sampled, logits.count);
    add(sample, sample < maxima, (float)vectors, squares);
  }
  double square = 0;
  for (double each : squares) square += each;
  // What is summed up to a distance, less its share of the total: the variance is at most this where it is 0.
  double reached = 0, square_within = 0;
  int64_t bucket = 0;
  for (; bucket < BUCKETS && reached < share * total; ++bucket) {
    reached += sums[bucket];
    square_within += squares[bucket];
  }
  const double variance = (1 - share) * (1 - share) * square_within + share * share * (square - square_within);
  const double margin = DEVIATIONS * __builtin_sqrt(variance) + 1e-6 * total;
  int64_t first = bucket, last = bucket;
  while (first > 0 && reached > share * total - margin) reached -= sums[--first];
  for (reached = 0, last = 0; last < BUCKETS && reached < share * total + margin; ++last) reached += sums[last];
  return {first ? (float)first / scale : 0, last < BUCKETS ? (float)last / scale : FARTHEST};
}

// What a look at the whole row gives. Weights nearer than the range are summed by block in memory.sums, distances and
// weights of members, those within it, are in memory.distances and memory.masses, up to memory.ids[block] for a block.
struct Scan {
  double total;
  double nearer;
  double within;
  int64_t members;
};

static Scan scan_row(const Logits& logits, const Kept& kept, float center, const Range& range,
                     const SamplingMemory& memory) {
  Scan scan = {};
  f64x16 total = {}, within = {};
  for (int64_t block = 0; block < num_blocks(logits.count); ++block) {
    f64x16 nearer = {};
    // Four vectors are summed in float32, whose rounding is less than that of their exponentials.
    for (int64_t first = block * SAMPLING_BLOCK; first < block_end(block, logits.count); first += 64) {
      f32x16 all_of_four = {}, nearer_of_four = {}, within_of_four = {};
      for (int64_t i = first; i < first + 64 && i < logits.count; i += 16) {
        const f32x16 s = scaled(load_logits(logits.values, i, logits.count), kept);
        const f32x16 distance = absolute(s - center), weight = weight_of(s, kept);
        const i32x16 is_nearer = distance < range.near, is_member = (distance >= range.near) & (distance < range.far);
        all_of_four += weight;
        nearer_of_four += is_nearer ? weight : splat(0.0f);
        within_of_four += is_member ? weight : splat(0.0f);
        const uint32_t lanes = lanes_where(is_member);
        store_lanes(memory.distances + scan.members, distance, lanes);
        store_lanes(memory.masses + scan.members, weight, lanes);
        scan.members += __builtin_popcount(lanes);
      }
      total += __builtin_convertvector(all_of_four, f64x16);
      nearer += __builtin_convertvector(nearer_of_four, f64x16);
      within += __builtin_convertvector(within_of_four, f64x16);
    }
    scan.nearer += memory.sums[block] = sum_lanes(nearer);
    memory.ids[block] = (int32_t)scan.members;
  }
  scan.total = sum_lanes(total);
  scan.within = sum_lanes(within);
  return scan;
}

// Completes the sums of blocks by what members have up to a distance.
static void add_members(const Logits& logits, float distance, const SamplingMemory& memory) {
  int64_t i = 0;
  for (int64_t block = 0; block < num_blocks(logits.count); ++block) {
    for (; i < memory.ids[block]; ++i)
      if (memory.distances[i] <= distance) memory.sums[block] += memory.masses[i];
  }
}

// select_distance over a whole row. Leaves in memory.sums what each block keeps.
static float select_in_row(const Logits& logits, const Kept& kept, float center, double share,
                           const SamplingMemory& memory) {
  Range range = estimate_range(logits, kept, center, share);
  Scan scan = scan_row(logits, kept, center, range, memory);
  const double target = share * scan.total;
  if (scan.nearer >= target || scan.nearer + scan.within < target) {
    range = scan.nearer >= target ? Range{0, range.near} : Range{range.far, FARTHEST};
    scan = scan_row(logits, kept, center, range, memory);
  }
  if (scan.members == 0) return range.far;  // By rounding: all that have weight are nearer.
  memcpy(memory.keys, memory.distances, scan.members * sizeof(float));
  memcpy(memory.weights, memory.masses, scan.members * sizeof(float));
  const float distance = select_key(memory.keys, memory.weights, scan.members, scan.nearer, target);
  add_members(logits, distance, memory);
  return distance;
}

// The same over some values of a row.
static float select_among(const Logits& logits, const Kept& kept, float center, double share,
                          const SamplingMemory& memory) {
  int64_t members = 0;
  for (int64_t i = 0; i < logits.count; i += 16) {
    f32x16 s = scaled(load_logits(logits.values, i, logits.count), kept);
    f32x16 distance = absolute(s - center), weight = weight_of(s, kept);
    const uint32_t lanes = lanes_where(weight > 0);
    store_lanes(memory.keys + members, distance, lanes);
    store_lanes(memory.weights + members, weight, lanes);
    members += __builtin_popcount(lanes);
  }
  return select_key(memory.keys, memory.weights, members, 0, share * total_of(logits, kept));
}

// The smallest distance of scaled values from the center within which they have `share` of the weight.
static float select_distance(const Logits& logits, const Kept& kept, float center, double share,
                             const SamplingMemory& memory) {
  return logits.maxima ? select_in_row(logits, kept, center, share, memory)
                       : select_among(logits, kept, center, share, memory);
}

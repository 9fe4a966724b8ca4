// Chooses tokens from rows of logits, each row by its own parameters: changes of the logits, filters (`selection.h`),
// the draw, log probabilities. Filters keep values, not places: of equal logits all stay or none. Tokens are drawn in
// the order of their ids.

static bool is_changed(const fg_sampling_row& row) { return row.num_counted || row.num_biased || row.mask; }

// Penalties, then biases, then the mask, on logits in place.
static void change_logits(const fg_sampling_row& row, float* logits, int64_t vocab_size) {
  for (int64_t i = 0; i < row.num_counted; ++i) {
    int64_t id = row.counted_ids[i];
    if (id >= vocab_size) continue;
    float x = logits[id];
    x = x < 0 ? x * row.repetition_penalty : x / row.repetition_penalty;
    if (row.counts[i]) x = (x - row.frequency_penalty * (float)row.counts[i]) - row.presence_penalty;
    logits[id] = x;
  }
  for (int64_t i = 0; i < row.num_biased; ++i)
    if (row.biased_ids[i] < vocab_size) logits[row.biased_ids[i]] += row.biases[i];
  if (!row.mask) return;
  const u32x16 lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  for (int64_t i = 0; i < vocab_size; i += 16) {  // logits have room for 16 more
    u32x16 bits = ((u32x16){} + (row.mask[i / 32] >> (i % 32))) >> lane;
    f32x16 x = load<f32x16>(logits + i);
    store(logits + i, (i32x16)(bits & 1) != 0 ? x : splat(-INFINITE));
  }
}

// --- choice ----------------------------------------------------------------------------------------------------------

static void sum_blocks(const Logits& logits, const Kept& kept, double* sums) {
  for (int64_t block = 0; block < num_blocks(logits.count); ++block) sums[block] = sum_of_block(logits, kept, block);
}

// The place whose share of the cumulative distribution holds `uniform`; memory.sums are what each block keeps.
static int64_t draw(const Logits& logits, const Kept& kept, double uniform, const SamplingMemory& memory) {
  const int64_t blocks = num_blocks(logits.count);
  double total = 0;
  for (int64_t block = 0; block < blocks; ++block) total += memory.sums[block];
  const double target = uniform * total;

  // Block and place; where by rounding the target is not reached, the last that have weight.
  double before = 0, reached = 0;
  int64_t chosen = 0, place = 0;
  for (int64_t block = 0; block < blocks && reached <= target; ++block) {
    if (memory.sums[block] == 0) continue;
    chosen = block;
    before = reached;
    reached += memory.sums[block];
  }
  for (int64_t i = chosen * SAMPLING_BLOCK; i < block_end(chosen, logits.count); i += 16) {
    f32x16 weight = weight_of(scaled(load_logits(logits.values, i, logits.count), kept), kept);
    for (int lane = 0; lane < 16; ++lane) {
      if (weight[lane] == 0) continue;
      place = i + lane;
      before += weight[lane];
      if (before > target) return place;
    }
  }
  return place;
}

static int64_t find_value(const Logits& logits, float value) {
  for (int64_t block = 0; block < num_blocks(logits.count); ++block) {
    if (!any(load<f32x16>(logits.maxima + block * 16) == value)) continue;
    for (int64_t i = block * SAMPLING_BLOCK; i < block_end(block, logits.count); ++i)
      if (logits.values[i] == value) return i;
  }
  return 0;
}

static int64_t first_allowed(const uint32_t* mask, int64_t vocab_size) {
  for (int64_t i = 0; mask && i < vocab_size; ++i)
    if (mask[i / 32] >> (i % 32) & 1) return i;
  return 0;
}

// Filters in the order of transformers, then draws.
static int64_t draw_token(const fg_sampling_row& row, Logits logits, float maximum, const SamplingMemory& memory) {
  Kept kept = {maximum, row.inverse_temperature, -INFINITE, 0, INFINITE};
  if (row.top_k > 0 && row.top_k < logits.count) logits = keep_largest(logits, row.top_k, memory);
  bool has_sums = false;  // in memory.sums
  if (row.top_p < 1) {
    kept.floor = -select_distance(logits, kept, 0, row.top_p, memory);
    has_sums = logits.maxima != nullptr;
  }
  if (row.log_min_p > kept.floor) {
    kept.floor = row.log_min_p;
    has_sums = false;
  }
  if (row.typical_p < 1) {
    const float mean = mean_of(logits, kept);
    kept.radius = select_distance(logits, kept, mean, row.typical_p, memory);
    kept.center = mean;
    has_sums = logits.maxima != nullptr;
  }
  if (!has_sums) sum_blocks(logits, kept, memory.sums);
  const int64_t place = draw(logits, kept, row.uniform, memory);
  return logits.ids ? logits.ids[place] : place;
}

static int64_t choose(const fg_sampling_row& row, const Logits& logits, float maximum, const SamplingMemory& memory) {
  if (maximum == -INFINITE) return first_allowed(row.mask, logits.count);
  if (row.inverse_temperature == INFINITE) return find_value(logits, maximum);
  return draw_token(row, logits, maximum, memory);
}

// --- log probabilities -----------------------------------------------------------------------------------------------

// log sum exp of the row.
static double log_total(const Logits& logits, float maximum) {
  if (maximum == -INFINITE) return 0;
  const Kept all = {maximum, 1, -INFINITE, 0, INFINITE};
  return maximum + __builtin_log(total_of(logits, all));
}

// The `num_best` largest values minus `log_sum`, best first, of equal ones the lower id first.
static void report_best(const fg_sampling_row& row, const Logits& logits, double log_sum, const SamplingMemory& memory) {
  if (!row.num_best) return;
  const Logits few = gather_from(logits, bound_of_largest(logits, row.num_best, memory), memory);
  int64_t found = 0;
  for (int64_t i = 0; i < few.count; ++i) {
    const float value = few.values[i];
    if (found == row.num_best && value <= row.best_logprobs[found - 1]) continue;
    int64_t place = found < row.num_best ? found++ : found - 1;
    for (; place > 0 && row.best_logprobs[place - 1] < value; --place) {
      row.best_logprobs[place] = row.best_logprobs[place - 1];
      row.best_ids[place] = row.best_ids[place - 1];
    }
    row.best_logprobs[place] = value;
    row.best_ids[place] = memory.ids[i];
  }
  for (int64_t i = 0; i < found; ++i) row.best_logprobs[i] = (float)(row.best_logprobs[i] - log_sum);
  // Where fewer tokens are possible, impossible ones that are not among them fill up, the lowest ids first.
  for (int64_t id = 0; found < row.num_best; ++id) {
    if (logits.values[id] > -INFINITE) continue;
    row.best_ids[found] = id;
    row.best_logprobs[found++] = -INFINITE;
  }
}

// --- rows ------------------------------------------------------------------------------------------------------------

static void sample_row(const float* logits, int64_t vocab_size, fg_sampling_row& row, const SamplingMemory& memory) {
  float maximum;
  Logits current = {logits, vocab_size, nullptr, nullptr};
  double log_sum = 0;
  if (row.has_logprobs) {
    current = prepare(logits, vocab_size, memory, &maximum);
    log_sum = log_total(current, maximum);
    report_best(row, current, log_sum, memory);
  }
  if (is_changed(row)) {
    copy_usable(logits, vocab_size, memory.row);
    change_logits(row, memory.row, vocab_size);
    current = prepare(memory.row, vocab_size, memory, &maximum);
  } else if (!row.has_logprobs) {
    current = prepare(logits, vocab_size, memory, &maximum);
  }
  row.token_id = choose(row, current, maximum, memory);
  row.logprob = row.has_logprobs ? (float)(usable(logits[row.token_id]) - log_sum) : 0;
}

static void beam_row(const float* logits, int64_t vocab_size, fg_sampling_row& row, const SamplingMemory& memory) {
  float maximum;
  Logits current = prepare(logits, vocab_size, memory, &maximum);
  double log_sum = log_total(current, maximum);
  if (is_changed(row)) {
    for (int64_t i = 0; i < vocab_size; ++i) memory.row[i] = (float)(current.values[i] - log_sum);
    change_logits(row, memory.row, vocab_size);
    current = prepare(memory.row, vocab_size, memory, &maximum);
    log_sum = 0;
  }
  report_best(row, current, log_sum, memory);
}

static SamplingMemory sampling_memory(int64_t vocab_size) {
  const int64_t blocks = num_blocks(vocab_size), length = blocks * SAMPLING_BLOCK + 16;
  float* memory = (float*)fg_scratch(FG_SCRATCH_OTHER, length * 7 * 4 + blocks * 16 * 4 + blocks * 8);
  return SamplingMemory{memory,
                        memory + length,
                        (int32_t*)(memory + 2 * length),
                        memory + 3 * length,
                        memory + 4 * length,
                        memory + 5 * length,
                        memory + 6 * length,
                        memory + 7 * length,
                        (double*)(memory + 7 * length + blocks * 16)};
}

static void sample(const float* logits, int64_t stride, int64_t vocab_size, fg_sampling_row* rows, int64_t count) {
  parallel_for(count, 1, [&](int64_t first, int64_t last, int64_t) {
    const SamplingMemory memory = sampling_memory(vocab_size);
    for (int64_t i = first; i < last; ++i) sample_row(logits + i * stride, vocab_size, rows[i], memory);
  });
}

static void beam_candidates(const float* logits, int64_t stride, int64_t vocab_size, fg_sampling_row* rows,
                            int64_t count) {
  parallel_for(count, 1, [&](int64_t first, int64_t last, int64_t) {
    const SamplingMemory memory = sampling_memory(vocab_size);
    for (int64_t i = first; i < last; ++i) beam_row(logits + i * stride, vocab_size, rows[i], memory);
  });
}

// Rows of a table.

template <int64_t FORMAT>
static void embed_rows(const void* table, int64_t size, const int64_t* ids, int64_t rows, float scale, float* out,
                       int64_t out_stride, int64_t is_added) {
  parallel_for(rows, rows_of_piece(size), [&](int64_t first, int64_t last, int64_t) {
    for (int64_t row = first; row < last; ++row) {
      const auto* from = (const typename Stored<FORMAT>::type*)table + ids[row] * size;
      float* to = out + row * out_stride;
      for (int64_t i = 0; i < size; i += 16) {
        f32x16 value = scale * load_first<FORMAT>(from + i, size - i);
        if (is_added) value += load_first(to + i, size - i);
        store_first(to + i, value, size - i);
      }
    }
  });
}

static void embed(const void* table, int64_t format, int64_t size, const int64_t* ids, int64_t rows, float scale,
                  float* out, int64_t out_stride, int64_t is_added) {
  auto of_format = format == FG_F32   ? embed_rows<FG_F32>
                   : format == FG_F16 ? embed_rows<FG_F16>
                                      : embed_rows<FG_BF16>;
  of_format(table, size, ids, rows, scale, out, out_stride, is_added);
}

// exp, tanh, erf, sine and cosine of 16 numbers at once, accurate to two units in the last place of float32. Every lane
// goes through the same operations, so a number's result does not depend on where it stands.
#pragma once
#include "vector.h"

typedef double f64x16 __attribute__((vector_size(128), aligned(8)));

namespace {

inline f32x16 absolute(f32x16 x) { return as_float(as_bits(x) & 0x7fffffffu); }
inline f32x16 with_sign_of(f32x16 magnitude, f32x16 sign) {
  return as_float(as_bits(magnitude) | (as_bits(sign) & 0x80000000u));
}

// e^x; exactly 1 at 0, exactly 0 below -87.3 (the smallest normal number), 2.2e38 above 88.3.
// x = n ln 2 + r with |r| <= ln 2 / 2; the polynomial is that of Cephes' `expf`.
inline f32x16 exp(f32x16 x) {
  const f32x16 lowest = splat(-87.33654f), shift = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  f32x16 bounded = min(max(x, lowest), splat(88.3f));
  f32x16 shifted = fma(bounded, splat(1.44269504f), shift);
  f32x16 n = shifted - shift;
  f32x16 r = fma(n, splat(-0.693359375f), bounded);
  r = fma(n, splat(2.12194440e-4f), r);
  f32x16 p = splat(1.9875691500e-4f);
  p = fma(p, r, splat(1.3981999507e-3f));
  p = fma(p, r, splat(8.3334519073e-3f));
  p = fma(p, r, splat(4.1665795894e-2f));
  p = fma(p, r, splat(1.6666665459e-1f));
  p = fma(p, r, splat(5.0000001201e-1f));
  p = fma(p, r * r, r) + splat(1.0f);
  f32x16 power = as_float((as_bits(shifted) << 23) + 0x3f800000u);  // 2^n: the integer stands in the lowest bits
  return x < lowest ? f32x16{} : p * power;
}

// As Cephes' `tanhf`: a polynomial up to 0.625, then 1 - 2 / (e^2x + 1).
inline f32x16 tanh(f32x16 x) {
  f32x16 t = absolute(x), s = x * x;
  f32x16 p = splat(-5.70498872745e-3f);
  p = fma(p, s, splat(2.06390887954e-2f));
  p = fma(p, s, splat(-5.37397155531e-2f));
  p = fma(p, s, splat(1.33314422036e-1f));
  p = fma(p, s, splat(-3.33332819422e-1f));
  f32x16 near = fma(p * s, t, t);
  f32x16 far = 1.0f - 2.0f / (exp(t + t) + 1.0f);
  return with_sign_of(t < splat(0.625f) ? near : far, x);
}

// Two polynomials by Norbert Juffa: x + x P(x^2) near zero, 1 - e^P(|x|) beyond.
inline f32x16 erf(f32x16 x) {
  f32x16 t = absolute(x), s = x * x;
  f32x16 far = fma(splat(-1.72853470e-5f), t, splat(3.83197126e-4f));
  f32x16 odd = fma(splat(-3.88396438e-3f), t, splat(2.42546219e-2f));
  far = fma(far, s, odd);
  far = fma(far, t, splat(-1.06777877e-1f));
  far = fma(far, t, splat(-6.34846687e-1f));
  far = fma(far, t, splat(-1.28717512e-1f));
  far = fma(far, t, -t);
  far = 1.0f - exp(far);
  f32x16 near = splat(-5.96761703e-4f);
  near = fma(near, s, splat(4.99119423e-3f));
  near = fma(near, s, splat(-2.67681349e-2f));
  near = fma(near, s, splat(1.12819925e-1f));
  near = fma(near, s, splat(-3.76125336e-1f));
  near = fma(near, s, splat(1.28379166e-1f));
  near = fma(near, t, t);
  return with_sign_of(t > splat(0.927734375f) ? far : near, x);
}

// Both at once, for |x| up to 2^30. The quarter turns are taken off in float64, where the product with pi / 2 loses
// less than 2^-60 of x; the polynomials are those of Cephes' `sinf` and `cosf`.
inline void sine_and_cosine(f32x16 x, f32x16* sine, f32x16* cosine) {
  f64x16 wide = __builtin_convertvector(x, f64x16);
  f64x16 turns = wide * 0.63661977236758134308 + 6755399441055744.0;  // 1.5 * 2^52: rounds to an integer
  turns = turns - 6755399441055744.0;
  f64x16 rest = wide - turns * 1.57079632673412561417;  // the first 33 bits of pi / 2: the product is exact
  f32x16 r = __builtin_convertvector(rest - turns * 6.07710050650619224932e-11, f32x16);
  i32x16 quarter = __builtin_convertvector(turns, i32x16);

  f32x16 s = r * r;
  f32x16 a = fma(splat(-1.9515295891e-4f), s, splat(8.3321608736e-3f));
  a = fma(a, s, splat(-1.6666654611e-1f));
  a = fma(a * s, r, r);
  f32x16 b = fma(splat(2.443315711809948e-5f), s, splat(-1.388731625493765e-3f));
  b = fma(b, s, splat(4.166664568298827e-2f));
  b = fma(b, s * s, fma(s, splat(-0.5f), splat(1.0f)));

  u32x16 is_odd = (u32x16)((quarter & 1) != 0);
  u32x16 bits_a = as_bits(a), bits_b = as_bits(b);
  u32x16 for_sine = (bits_b & is_odd) | (bits_a & ~is_odd), for_cosine = (bits_a & is_odd) | (bits_b & ~is_odd);
  *sine = as_float(for_sine ^ ((u32x16)(quarter & 2) << 30));
  *cosine = as_float(for_cosine ^ ((u32x16)((quarter + 1) & 2) << 30));
}

}  // namespace

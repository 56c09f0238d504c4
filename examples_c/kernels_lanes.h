/* kernels_lanes.h: the kernels for vectors of LANES doubles and the instruction set TARGET; kernels.c includes it once for each, with
   NAME(x) to keep them apart. Matrices on the lowest positions, which lie within a vector, swap lanes with whole vectors first. */

typedef double NAME(lanes_t) __attribute__((vector_size(LANES * 8), may_alias));
#define lanes_t NAME(lanes_t)
#define layout_t NAME(layout_t)
#define LANE_BITS (LANES == 8 ? 3u : LANES == 4 ? 2u : 1u)
#if LANES == 8
#define EVEN(a, b) SHUFFLE(a, b, 0, 2, 4, 6, 8, 10, 12, 14)
#define ODD(a, b) SHUFFLE(a, b, 1, 3, 5, 7, 9, 11, 13, 15)
#define ZIP_LOW(a, b) SHUFFLE(a, b, 0, 8, 1, 9, 2, 10, 3, 11)
#define ZIP_HIGH(a, b) SHUFFLE(a, b, 4, 12, 5, 13, 6, 14, 7, 15)
#elif LANES == 4
#define EVEN(a, b) SHUFFLE(a, b, 0, 2, 4, 6)
#define ODD(a, b) SHUFFLE(a, b, 1, 3, 5, 7)
#define ZIP_LOW(a, b) SHUFFLE(a, b, 0, 4, 1, 5)
#define ZIP_HIGH(a, b) SHUFFLE(a, b, 2, 6, 3, 7)
#else
#define EVEN(a, b) SHUFFLE(a, b, 0, 2)
#define ODD(a, b) SHUFFLE(a, b, 1, 3)
#define ZIP_LOW EVEN
#define ZIP_HIGH ODD
#endif

/* ---- in and out ---- */

static TARGET void NAME(split_lanes)(const double *amplitude, double *re, double *im, size_t amplitudes) {
  for (size_t i = 0; i < amplitudes; i += LANES) {
    lanes_t a = *(const lanes_t *)(amplitude + 2 * i), b = *(const lanes_t *)(amplitude + 2 * i + LANES);
    *(lanes_t *)(re + i) = EVEN(a, b);
    *(lanes_t *)(im + i) = ODD(a, b);
  }
}

static TARGET void NAME(join_lanes)(double *amplitude, const double *re, const double *im, size_t amplitudes) {
  for (size_t i = 0; i < amplitudes; i += LANES) {
    lanes_t a = *(const lanes_t *)(re + i), b = *(const lanes_t *)(im + i);
    *(lanes_t *)(amplitude + 2 * i) = ZIP_LOW(a, b);
    *(lanes_t *)(amplitude + 2 * i + LANES) = ZIP_HIGH(a, b);
  }
}

/* ---- matrices ---- */

/* Where a matrix finds its amplitudes: which vectors make a tile, and which lane bits trade places with vector bits. */
typedef struct {
  unsigned vector_bit[MATRIX_MAX_QUBITS]; /* ascending, in units of vectors: to walk over tiles */
  size_t offset[1u << MATRIX_MAX_QUBITS]; /* of each vector of a tile, in doubles */
  unsigned swaps, swap_lane[LANE_QUBITS], swap_vector[LANE_QUBITS];
} layout_t;

/* A position below LANE_BITS borrows the lowest free vector bit: its lanes and those vectors are exchanged around the product. */
static TARGET void NAME(lay_out)(const operation_t *operation, layout_t *layout) {
  uint64_t used = 0;
  unsigned vector[MATRIX_MAX_QUBITS], count = operation->count;
  layout->swaps = 0;
  for (unsigned j = 0; j < count; j++)
    if (operation->position[j] >= LANE_BITS) vector[j] = operation->position[j] - LANE_BITS, used |= 1ull << vector[j];
  for (unsigned j = 0; j < count; j++) {
    if (operation->position[j] >= LANE_BITS) continue;
    vector[j] = (unsigned)__builtin_ctzll(~used);
    used |= 1ull << vector[j];
    layout->swap_lane[layout->swaps] = operation->position[j];
    layout->swap_vector[layout->swaps++] = j;
  }
  for (size_t r = 0; r < (size_t)1 << count; r++) {
    layout->offset[r] = 0;
    for (unsigned j = 0; j < count; j++) layout->offset[r] += (r >> j & 1) << (vector[j] + LANE_BITS);
  }
  for (unsigned j = 0; j < count; j++, used &= used - 1) layout->vector_bit[j] = (unsigned)__builtin_ctzll(used);
}

INLINE TARGET size_t NAME(tile_start)(const layout_t *layout, unsigned count, size_t tile) {
  for (unsigned j = 0; j < count; j++) {
    size_t low = tile & (((size_t)1 << layout->vector_bit[j]) - 1);
    tile = (tile - low) * 2 + low;
  }
  return tile << LANE_BITS;
}

/* Exchanges one lane bit with one vector bit; its own inverse. The loop is not unrolled: that would multiply the code by all cases. */
INLINE TARGET void NAME(swap_lanes)(lanes_t *x, unsigned side, unsigned vector, unsigned lane) {
  const unsigned step = 1u << vector;
#pragma GCC unroll 1
  for (unsigned i = 0; i < side / 2; i++) {
    lanes_t *pa = x + ((i & ~(step - 1)) * 2 + (i & (step - 1))), *pb = pa + step;
    const lanes_t a = *pa, b = *pb;
#if LANES == 8
    if (lane == 0)
      *pa = SHUFFLE(a, b, 0, 8, 2, 10, 4, 12, 6, 14), *pb = SHUFFLE(a, b, 1, 9, 3, 11, 5, 13, 7, 15);
    else if (lane == 1)
      *pa = SHUFFLE(a, b, 0, 1, 8, 9, 4, 5, 12, 13), *pb = SHUFFLE(a, b, 2, 3, 10, 11, 6, 7, 14, 15);
    else
      *pa = SHUFFLE(a, b, 0, 1, 2, 3, 8, 9, 10, 11), *pb = SHUFFLE(a, b, 4, 5, 6, 7, 12, 13, 14, 15);
#elif LANES == 4
    if (lane == 0)
      *pa = SHUFFLE(a, b, 0, 4, 2, 6), *pb = SHUFFLE(a, b, 1, 5, 3, 7);
    else
      *pa = SHUFFLE(a, b, 0, 1, 4, 5), *pb = SHUFFLE(a, b, 2, 3, 6, 7);
#else
    (void)lane;
    *pa = EVEN(a, b), *pb = ODD(a, b);
#endif
  }
}

INLINE TARGET void NAME(swap_all)(const layout_t *layout, lanes_t *x, unsigned side) {
#pragma GCC unroll 1
  for (unsigned s = 0; s < layout->swaps; s++) NAME(swap_lanes)(x, side, layout->swap_vector[s], layout->swap_lane[s]);
}

/* y := matrix * x for one tile; `count` and `real` are constants where this is inlined. Only the sum over columns is unrolled: it then
   reads its vectors from registers or the first-level cache; unrolling rows too takes compilers minutes. */
INLINE TARGET void NAME(multiply_dense)(const operation_t *operation, unsigned count, bool real, const lanes_t *xr, const lanes_t *xi,
                                        lanes_t *yr, lanes_t *yi) {
  const unsigned side = 1u << count;
#pragma GCC unroll 1
  for (unsigned r = 0; r < side; r++) {
    const double *re = operation->re + r * side, *im = operation->im + r * side;
    lanes_t sr = re[0] * xr[0], si = re[0] * xi[0];
    if (!real) sr -= im[0] * xi[0], si += im[0] * xr[0];
#pragma GCC unroll 8
    for (unsigned c = 1; c < side; c++) {
      sr += re[c] * xr[c], si += re[c] * xi[c];
      if (!real) sr -= im[c] * xi[c], si += im[c] * xr[c];
    }
    yr[r] = sr, yi[r] = si;
  }
}

INLINE TARGET void NAME(multiply_sparse)(const operation_t *operation, unsigned count, const lanes_t *xr, const lanes_t *xi, lanes_t *yr,
                                         lanes_t *yi) {
  for (unsigned r = 0; r < 1u << count; r++) {
    lanes_t sr = {0}, si = {0};
    for (unsigned e = operation->row[r]; e < operation->row[r + 1]; e++) {
      double re = operation->re[e], im = operation->im[e];
      lanes_t ar = xr[operation->column[e]], ai = xi[operation->column[e]];
      sr += re * ar - im * ai, si += re * ai + im * ar;
    }
    yr[r] = sr, yi[r] = si;
  }
}

INLINE TARGET void NAME(apply_tiles)(const operation_t *operation, unsigned count, bool dense, bool real, double *re, double *im,
                                     unsigned block_qubits) {
  layout_t layout;
  NAME(lay_out)(operation, &layout);
  const unsigned side = 1u << count;
  lanes_t xr[1u << MATRIX_MAX_QUBITS], xi[1u << MATRIX_MAX_QUBITS], yr[1u << MATRIX_MAX_QUBITS], yi[1u << MATRIX_MAX_QUBITS];
  for (size_t tile = 0; tile < (size_t)1 << (block_qubits - LANE_BITS - count); tile++) {
    size_t start = NAME(tile_start)(&layout, count, tile);
#pragma GCC unroll 1
    for (unsigned r = 0; r < side; r++) {
      xr[r] = *(lanes_t *)(re + start + layout.offset[r]);
      xi[r] = *(lanes_t *)(im + start + layout.offset[r]);
    }
    NAME(swap_all)(&layout, xr, side);
    NAME(swap_all)(&layout, xi, side);
    if (dense)
      NAME(multiply_dense)(operation, count, real, xr, xi, yr, yi);
    else
      NAME(multiply_sparse)(operation, count, xr, xi, yr, yi);
    NAME(swap_all)(&layout, yr, side);
    NAME(swap_all)(&layout, yi, side);
#pragma GCC unroll 1
    for (unsigned r = 0; r < side; r++) {
      *(lanes_t *)(re + start + layout.offset[r]) = yr[r];
      *(lanes_t *)(im + start + layout.offset[r]) = yi[r];
    }
  }
}

static TARGET void NAME(apply_dense)(const operation_t *o, double *re, double *im, unsigned q) {
  switch (o->count * 2 + o->real) {
  case 2: NAME(apply_tiles)(o, 1, true, false, re, im, q); break;
  case 3: NAME(apply_tiles)(o, 1, true, true, re, im, q); break;
  case 4: NAME(apply_tiles)(o, 2, true, false, re, im, q); break;
  case 5: NAME(apply_tiles)(o, 2, true, true, re, im, q); break;
  case 6: NAME(apply_tiles)(o, 3, true, false, re, im, q); break;
  case 7: NAME(apply_tiles)(o, 3, true, true, re, im, q); break;
  case 8: NAME(apply_tiles)(o, 4, true, false, re, im, q); break;
  default: NAME(apply_tiles)(o, 4, true, true, re, im, q); break;
  }
}

static TARGET void NAME(apply_sparse)(const operation_t *o, double *re, double *im, unsigned q) {
  NAME(apply_tiles)(o, o->count, false, false, re, im, q);
}

/* ---- diagonals ---- */

static TARGET void NAME(apply_diagonal)(const operation_t *operation, double *re, double *im, unsigned block_qubits, size_t combination) {
  const double *fr = operation->re + (combination << operation->row_bits) * 8, *fi = operation->im + (combination << operation->row_bits) * 8;
  for (size_t g = 0; g < (size_t)1 << (block_qubits - LANE_QUBITS); g++) {
    size_t at = 8 * (size_t)operation->row_index[g]; /* the plan has factors for eight amplitudes at once */
#pragma GCC unroll 4
    for (size_t k = 0; k < 8; k += LANES) {
      lanes_t cr = *(const lanes_t *)(fr + at + k), ci = *(const lanes_t *)(fi + at + k);
      lanes_t xr = *(lanes_t *)(re + 8 * g + k), xi = *(lanes_t *)(im + 8 * g + k);
      *(lanes_t *)(re + 8 * g + k) = cr * xr - ci * xi;
      *(lanes_t *)(im + 8 * g + k) = cr * xi + ci * xr;
    }
  }
}

static const kernels_t NAME(kernels) = {NAME(split_lanes), NAME(join_lanes), NAME(apply_dense), NAME(apply_sparse), NAME(apply_diagonal)};

#undef lanes_t
#undef layout_t
#undef LANE_BITS
#undef EVEN
#undef ODD
#undef ZIP_LOW
#undef ZIP_HIGH
#undef LANES
#undef TARGET
#undef NAME

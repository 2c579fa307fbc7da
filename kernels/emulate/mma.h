/* mma.h — the emulated twin of what mma.cuh takes from PTX. A warp's lanes meet, and the last to
 * come does the work of all.
 *
 * Products are exact and a sum of 16 of them and c is rounded toward zero once, as sums on tensor
 * cores lose what is shifted out rather than round it. Asynchronous copies are made when they are
 * waited for, their target poisoned until then; a kernel that ends with copies under way is an
 * error. */
#ifndef PYR_EMULATE_MMA_H
#define PYR_EMULATE_MMA_H

/* Lanes of a warp meet with what each has, and the last one calls all(what each lane has). */
void pyr_emulate_together(int kind, void *mine, void (*all)(void *const *each));
void pyr_emulate_copy(void *to, const void *from, bool real);                    /* 16 bytes */
void pyr_emulate_commit(void);
void pyr_emulate_wait(int left);

/* To f32, toward zero: 1 + 2^-24 + 2^-30 becomes 1, where rounding would give 1 + 2^-23. */
static inline float pyr_emulate_toward_zero(double x) {
  float y = static_cast<float>(x);
  return std::fabs(static_cast<double>(y)) > std::fabs(x)
      && std::isfinite(x) ? std::nextafterf(y, 0.0f) : y;
}

struct pyr_emulate_operands { float *c; const uint32_t *a; uint32_t b[2]; };
struct pyr_emulate_matrices { uint32_t *r; const uint16_t *row; };

/* The low (i = 0) or the high half of a register. */
static inline uint16_t half_of(uint32_t pair, int i) {
  return static_cast<uint16_t>(pair >> 16 * i);
}

/* Where c's value (row, col) lies: lane row % 8 * 4 + col / 2, register row / 8 * 2 + col % 2. Of
 * row 9, column 5: lane 6, c[3]. */
static inline float &c_of(void *const *each, int row, int col) {
  return static_cast<const pyr_emulate_operands *>(each[row % 8 * 4 + col / 2])->c[row / 8 * 2
      + col % 2];
}

/* Takes the operands of all lanes apart into plain matrices, as mma.cuh lays them out, multiplies,
 * and puts the sums back where the lanes have c. In double precision a product is exact. */
template <typename T> static void pyr_emulate_multiply(void *const *each) {
  /* A row of b in registers: of sums that a compiler takes to memory and back, half the time of a
   * prompt on the emulator went into this. */
  typedef double row_of_8 __attribute__((vector_size(64)));
  double a[16][16];
  row_of_8 b[16];
  for (int lane = 0; lane < 32; lane++) {
    const auto *o = static_cast<const pyr_emulate_operands *>(each[lane]);
    int g = lane / 4, t = lane % 4;
    for (int i = 0; i < 2; i++) {
      for (int r = 0; r < 4; r++)
        a[g + r % 2 * 8][t * 2 + r / 2 * 8 + i]
            = static_cast<double>(T::widen(half_of(o->a[r], i)));
      for (int r = 0; r < 2; r++)
        b[t * 2 + r * 8 + i][g] = static_cast<double>(T::widen(half_of(o->b[r], i)));
    }
  }
  for (int row = 0; row < 16; row++) {
    row_of_8 sum;
    for (int col = 0; col < 8; col++) sum[col] = static_cast<double>(c_of(each, row, col));
    for (int k = 0; k < 16; k++) sum += a[row][k] * b[k];
    for (int col = 0; col < 8; col++) c_of(each, row, col) = pyr_emulate_toward_zero(sum[col]);
  }
}

template <typename T>
static inline void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  pyr_emulate_operands mine = { c, a, { b0, b1 } };
  pyr_emulate_together(PYR_MMA, &mine, pyr_emulate_multiply<T>);
}

/* Lane l gets of each of four 8 x 8 matrices row l / 4, columns 2 (l % 4) and the next; transposed,
 * column l / 4 and two rows. Row r of the m-th is where lane 8 m + r points. All are read before
 * any is written. */
template <bool TRANSPOSED> static void pyr_emulate_load(void *const *each) {
  uint32_t r[32][4];
  for (int lane = 0; lane < 32; lane++)
    for (int m = 0; m < 4; m++) {
      uint16_t x[2];
      for (int i = 0; i < 2; i++) {
        int row = TRANSPOSED ? lane % 4 * 2 + i : lane / 4,
            col = TRANSPOSED ? lane / 4 : lane % 4 * 2 + i;
        x[i] = static_cast<const pyr_emulate_matrices *>(each[m * 8 + row])->row[col];
      }
      r[lane][m] = x[0] | static_cast<uint32_t>(x[1]) << 16;
    }
  for (int lane = 0; lane < 32; lane++)
    memcpy(static_cast<const pyr_emulate_matrices *>(each[lane])->r, r[lane], sizeof r[lane]);
}

static inline void load_matrices(uint32_t (&r)[4], const void *row) {
  pyr_emulate_matrices mine = { r, static_cast<const uint16_t *>(row) };
  pyr_emulate_together(PYR_LDMATRIX, &mine, pyr_emulate_load<false>);
}
static inline void load_transposed(uint32_t (&r)[4], const void *row) {
  pyr_emulate_matrices mine = { r, static_cast<const uint16_t *>(row) };
  pyr_emulate_together(PYR_LDMATRIX, &mine, pyr_emulate_load<true>);
}

static inline void copy_async(void *to, const void *from, bool real) {
  pyr_emulate_copy(to, from, real);
}
static inline void copy_commit() { pyr_emulate_commit(); }
template <int LEFT> static inline void copy_wait() { pyr_emulate_wait(LEFT); }

static inline uint32_t times_256(uint32_t halves) {
  uint32_t out = 0;
  for (int i = 0; i < 2; i++)
    out |= static_cast<uint32_t>(f16_of_f32(f32_of_f16(half_of(halves, i)) * 256)) << 16 * i;
  return out;
}

/* In double precision the product is exact, and so are sums of what kernels join. */
static inline uint32_t fma_halves(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t out = 0;
  for (int i = 0; i < 2; i++) {
    double of[3];
    const uint32_t pairs[3] = { a, b, c };
    for (int k = 0; k < 3; k++) of[k] = static_cast<double>(f32_of_f16(half_of(pairs[k], i)));
    out |= static_cast<uint32_t>(f16_of_f32(static_cast<float>(of[0] * of[1] + of[2]))) << 16 * i;
  }
  return out;
}

static inline float power_of_two(float x) { return exp2f(x); }

#endif

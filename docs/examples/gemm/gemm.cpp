// C = A B in float32 for square matrices: blocked for the caches, vectors in registers, OpenMP over blocks of C.
//
// What can be tuned is a macro:
//   TILE_M, TILE_N, TILE_K  blocks of C (rows, columns) and of the sum
//   UNROLL                  rows of C that are held in registers at once; divides TILE_M
//   VECTOR                  floats of a vector: 4, 8 or 16
//   THREADS                 OpenMP threads
// Run: gemm [N [REPEATS]]; N is a multiple of the tiles. It checks the product and prints the fastest repeat.
#include <math.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>

typedef float vector __attribute__((vector_size(4 * VECTOR), aligned(4)));
constexpr int COLUMNS = 2;  // vectors of a row of C that are held in registers at once
static_assert(TILE_M % UNROLL == 0 && TILE_N % (COLUMNS * VECTOR) == 0, "the registers' block must divide the tile");

// UNROLL rows and COLUMNS vectors of C gain `depth` terms of their sums.
static inline void registers_block(const float *a, const float *b, float *c, int n, int depth) {
    vector sums[UNROLL][COLUMNS];
    for (int i = 0; i < UNROLL; i++)
        for (int j = 0; j < COLUMNS; j++) sums[i][j] = *(const vector *)(c + i * n + j * VECTOR);
    for (int k = 0; k < depth; k++)
        for (int j = 0; j < COLUMNS; j++) {
            const vector right = *(const vector *)(b + k * n + j * VECTOR);
#pragma GCC unroll 16
            for (int i = 0; i < UNROLL; i++) sums[i][j] += a[i * n + k] * right;
        }
    for (int i = 0; i < UNROLL; i++)
        for (int j = 0; j < COLUMNS; j++) *(vector *)(c + i * n + j * VECTOR) = sums[i][j];
}

static void gemm(const float *a, const float *b, float *c, int n) {
#pragma omp parallel for collapse(2) schedule(static) num_threads(THREADS)
    for (int i0 = 0; i0 < n; i0 += TILE_M)
        for (int j0 = 0; j0 < n; j0 += TILE_N) {
            for (int i = i0; i < i0 + TILE_M; i++)
                for (int j = j0; j < j0 + TILE_N; j++) c[i * n + j] = 0;
            for (int k0 = 0; k0 < n; k0 += TILE_K)
                for (int j = j0; j < j0 + TILE_N; j += COLUMNS * VECTOR)
                    for (int i = i0; i < i0 + TILE_M; i += UNROLL)
                        registers_block(a + i * n + k0, b + k0 * n + j, c + i * n + j, n, TILE_K);
        }
}

int main(int count, char **given) {
    const int n = count > 1 ? atoi(given[1]) : 256, repeats = count > 2 ? atoi(given[2]) : 20;
    if (n <= 0 || n % TILE_M || n % TILE_N || n % TILE_K) {
        fprintf(stderr, "%d is no multiple of the tiles\n", n);
        return 1;
    }
    float *a = (float *)malloc(4L * n * n), *b = (float *)malloc(4L * n * n), *c = (float *)malloc(4L * n * n);
    for (int i = 0; i < n * n; i++) {
        a[i] = i % 7 - 3.0f;
        b[i] = i % 5 - 2.0f;
    }
    double fastest = INFINITY;
    for (int r = 0; r < repeats; r++) {
        const double begun = omp_get_wtime();
        gemm(a, b, c, n);
        fastest = fmin(fastest, omp_get_wtime() - begun);
    }
    for (int at = 0; at < n * n; at += n + 1 + n / 3) {  // the terms are small whole numbers: sums are exact
        float sum = 0;
        for (int k = 0; k < n; k++) sum += a[at / n * n + k] * b[k * n + at % n];
        if (sum != c[at]) {
            fprintf(stderr, "wrong product: %g, not %g, in row %d\n", c[at], sum, at / n);
            return 1;
        }
    }
    printf("%.9f s, %.2f GFLOP/s\n", fastest, 2e-9 * n * n * n / fastest);
}

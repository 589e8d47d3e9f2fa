// C = A B by tiles, row by row in memory, on one thread: compiled and called by nearpeak.measure.blocked_gemm.
#include <algorithm>
#include <cstdint>

template <typename T>
static void blocked(const T* __restrict a, const T* __restrict b, T* __restrict c, int64_t m, int64_t n, int64_t k,
                    int64_t tile_m, int64_t tile_n, int64_t tile_k) {
    std::fill(c, c + m * n, T(0));
    for (int64_t i0 = 0; i0 < m; i0 += tile_m)
        for (int64_t j0 = 0; j0 < n; j0 += tile_n)
            for (int64_t l0 = 0; l0 < k; l0 += tile_k) {
                const int64_t i1 = std::min(i0 + tile_m, m), l1 = std::min(l0 + tile_k, k);
                const int64_t columns = std::min(tile_n, n - j0);
                for (int64_t i = i0; i < i1; ++i)
                    for (int64_t l = l0; l < l1; ++l) {
                        const T factor = a[i * k + l];
                        const T* __restrict from = b + l * n + j0;
                        T* __restrict to = c + i * n + j0;
                        for (int64_t j = 0; j < columns; ++j) to[j] += factor * from[j];
                    }
            }
}

extern "C" void gemm_fp32(const float* a, const float* b, float* c, int64_t m, int64_t n, int64_t k, int64_t tile_m,
                          int64_t tile_n, int64_t tile_k) {
    blocked(a, b, c, m, n, k, tile_m, tile_n, tile_k);
}

extern "C" void gemm_fp64(const double* a, const double* b, double* c, int64_t m, int64_t n, int64_t k, int64_t tile_m,
                          int64_t tile_n, int64_t tile_k) {
    blocked(a, b, c, m, n, k, tile_m, tile_n, tile_k);
}

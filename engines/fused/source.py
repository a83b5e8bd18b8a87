"""CUDA C++ of one kernel that gives energies, forces and virials of a batch of small molecules in a single launch.

A block takes a group of whole molecules. All that an atom is lies in planes [rows, features] of shared memory; weights
stream through from L2, each read for all rows of the group; what the adjoint needs again waits in a scratch of the
block's own. Every sum has one owner and one order, so that results repeat to the bit, alone and in a batch.

The source is a list of phases between barriers, and every phase a loop over its work: g++ compiles the same with one
thread a block and no barriers. Sizes are macros, see `painn_deploy.engines.fused.plan`.
"""

from painn_deploy.engines.fused.kernel_source import KERNEL
from painn_deploy.engines.fused.pair_source import PAIRS

__all__ = ["KERNEL_NAME", "SOURCE"]

KERNEL_NAME = "molecules"

_MACHINE = r"""
#ifdef __CUDACC_RTC__
#define DEVICE static __device__ __forceinline__
#define BARRIER __syncthreads()
#define THREAD ((int)threadIdx.x)
#define BLOCK ((int)blockIdx.x)
#define BLOCKS ((int)gridDim.x)
#define ENTRY extern "C" __global__ void __launch_bounds__(THREADS, LEAST_BLOCKS)
#define MEMORY extern __shared__ float4 memory[]
#define UNROLL _Pragma("unroll")
#define INFINITE __longlong_as_double(0x7ff0000000000000LL)
typedef float4 Four;
DEVICE Four fixed(const float* p) { return __ldg((const float4*)p); }
DEVICE double add(double a, double b) { return __dadd_rn(a, b); }  // never fused, so that the host has the same bits
DEVICE double times(double a, double b) { return __dmul_rn(a, b); }
#else
#include <cmath>
#undef THREADS
#define THREADS 1
#define DEVICE static inline
#define BARRIER
#define THREAD 0
#define BLOCK block
#define BLOCKS blocks
#define ENTRY static void
#define MEMORY static float4 memory[SHARED_BYTES / 16]
#define UNROLL
#define INFINITE HUGE_VAL
struct alignas(16) float4 { float x, y, z, w; };
typedef float4 Four;
static int block, blocks;
DEVICE Four fixed(const float* p) { return *(const Four*)p; }
DEVICE double add(double a, double b) { return a + b; }
DEVICE double times(double a, double b) { return a * b; }
#endif
#define EACH(t, count) for (int t = THREAD, t##_end = (count); t < t##_end; t += THREADS)
// The same after so many tasks of a loop that no barrier ends: the threads that were left out there come first.
#define EACH_AFTER(t, count, before) \
    for (int t = (THREAD + THREADS - (before) % THREADS) % THREADS, t##_end = (count); t < t##_end; t += THREADS)

const int F = FEATURES, PLANE = ROWS * FEATURES;
const int SAVED = 16 * PLANE;  // of a layer, for its adjoint:
const int SAVED_HIDDEN = 0, SAVED_X = PLANE, SAVED_V = 4 * PLANE, SAVED_MIXED = 7 * PLANE, SAVED_UPDATE = 13 * PLANE,
          SAVED_PRODUCT = 14 * PLANE, SAVED_GATE = 15 * PLANE;

DEVICE Four get(const float* p) { return *(const Four*)p; }
DEVICE void put(float* p, Four a) { *(Four*)p = a; }
DEVICE Four four(float a) { Four f; f.x = f.y = f.z = f.w = a; return f; }
DEVICE Four operator+(Four a, Four b) { a.x += b.x; a.y += b.y; a.z += b.z; a.w += b.w; return a; }
DEVICE Four operator*(Four a, Four b) { a.x *= b.x; a.y *= b.y; a.z *= b.z; a.w *= b.w; return a; }
DEVICE Four operator*(float a, Four b) { b.x *= a; b.y *= a; b.z *= a; b.w *= a; return b; }
DEVICE void more(Four& sum, Four a, Four b)
{
    sum.x += a.x * b.x; sum.y += a.y * b.y; sum.z += a.z * b.z; sum.w += a.w * b.w;
}
DEVICE void more(Four& sum, float a, Four b)
{
    sum.x += a * b.x; sum.y += a * b.y; sum.z += a * b.z; sum.w += a * b.w;
}
DEVICE Four root(Four a)
{
    a.x = sqrtf(a.x); a.y = sqrtf(a.y); a.z = sqrtf(a.z); a.w = sqrtf(a.w);
    return a;
}
// a over a norm; v / |v| is 0 at v = 0, where squares underflow.
DEVICE float over(float a, float norm) { return a / (EPSILON > 0.0f ? norm : norm > 1e-15f ? norm : 1e-15f); }
DEVICE Four over(Four a, Four norm)
{
    a.x = over(a.x, norm.x); a.y = over(a.y, norm.y); a.z = over(a.z, norm.z); a.w = over(a.w, norm.w);
    return a;
}
DEVICE float total(Four a) { return (a.x + a.y) + (a.z + a.w); }

#if SOFTPLUS
DEVICE float activated(float x) { return (x > 20.0f ? x : log1pf(expf(x))) - 0.693147180559945f; }
DEVICE float slope(float x) { return x > 20.0f ? 1.0f : 1.0f / (1.0f + expf(-x)); }
#else
DEVICE float activated(float x) { return x / (1.0f + expf(-x)); }
DEVICE float slope(float x)
{
    float sigmoid = 1.0f / (1.0f + expf(-x));
    return sigmoid * (1.0f + x * (1.0f - sigmoid));
}
#endif
DEVICE Four activated(Four a)
{
    a.x = activated(a.x); a.y = activated(a.y); a.z = activated(a.z); a.w = activated(a.w);
    return a;
}
DEVICE Four slope(Four a)
{
    a.x = slope(a.x); a.y = slope(a.y); a.z = slope(a.z); a.w = slope(a.w);
    return a;
}
"""

_PRODUCTS = r"""
// out[slice][CAPACITY][N] = a[rows][K] * weights[K][N], of which each slice sums a part of K. A thread has ROW_TILE
// rows of four columns: a weight is read for all of these rows, and an activation for all of these columns. `a` lies in
// planes of WIDTH columns that are `step` apart. Rows after the last one of a tile hold anything, as do their results.
template <int K, int N, int SLICES, int CAPACITY, int WIDTH>
DEVICE void product(const float* a, int step, int rows, const float* weights, float* out)
{
    const int LENGTH = K / SLICES, COLUMNS = N / 4;
    static_assert(LENGTH * SLICES == K && LENGTH % 4 == 0 && N % 4 == 0, "a slice is a whole number of fours");
    int tiles = (rows + ROW_TILE - 1) / ROW_TILE;
    EACH(task, tiles * COLUMNS * SLICES) {
        int column = 4 * (task % COLUMNS), rest = task / COLUMNS, row = rest % tiles * ROW_TILE, slice = rest / tiles;
        const float* w = weights + slice * LENGTH * N + column;
        const float* from = a + row * WIDTH;
        Four sum[ROW_TILE];
        UNROLL
        for (int r = 0; r < ROW_TILE; ++r) sum[r] = four(0.0f);
        PRODUCT_UNROLL
        for (int l = 0; l < LENGTH; l += 4) {
            int k = slice * LENGTH + l;
            const float* x = from + (K > WIDTH ? k / WIDTH * step + k % WIDTH : k);
            Four w0 = fixed(w + l * N), w1 = fixed(w + (l + 1) * N), w2 = fixed(w + (l + 2) * N),
                 w3 = fixed(w + (l + 3) * N);
            UNROLL
            for (int r = 0; r < ROW_TILE; ++r) {
                Four y = get(x + r * WIDTH);
                more(sum[r], y.x, w0);
                more(sum[r], y.y, w1);
                more(sum[r], y.z, w2);
                more(sum[r], y.w, w3);
            }
        }
        UNROLL
        for (int r = 0; r < ROW_TILE; ++r) put(out + (slice * CAPACITY + row + r) * N + column, sum[r]);
    }
}

// What `product` left, four columns of a row, summed over its slices in their order.
template <int N, int SLICES, int CAPACITY>
DEVICE Four summed(const float* out, int row, int column)
{
    Four sum = get(out + row * N + column);
    UNROLL
    for (int slice = 1; slice < SLICES; ++slice) sum = sum + get(out + (slice * CAPACITY + row) * N + column);
    return sum;
}

// Of every pair the filters of CHUNK features: out[set][pair][kind][CHUNK] = basis * weights, the bias times the cutoff
// function included, where the second set has slopes by the distance.
template <int CHUNK, int SETS>
DEVICE void filters(const float* basis, int pairs, const float* weights, int feature, int kinds, float* out)
{
    const int COLUMNS = CHUNK / 4;
    int tiles = (pairs + PAIR_TILE - 1) / PAIR_TILE;
    EACH(task, SETS * tiles * COLUMNS * kinds) {
        int column = 4 * (task % COLUMNS), rest = task / COLUMNS, kind = rest % kinds, tile = rest / kinds;
        int pair = tile % tiles * PAIR_TILE + tile / tiles * PAIRS;
        const float* w = weights + kind * F + feature + column;
        const float* from = basis + pair * BASIS_WIDTH;
        Four sum[PAIR_TILE], bias = fixed(w + BASIS * 3 * F);
        UNROLL
        for (int p = 0; p < PAIR_TILE; ++p) sum[p] = from[p * BASIS_WIDTH + BASIS] * bias;
        PRODUCT_UNROLL
        for (int k = 0; k < BASIS; k += 4) {
            Four w0 = fixed(w + k * 3 * F), w1 = fixed(w + (k + 1) * 3 * F), w2 = fixed(w + (k + 2) * 3 * F),
                 w3 = fixed(w + (k + 3) * 3 * F);
            UNROLL
            for (int p = 0; p < PAIR_TILE; ++p) {
                Four y = get(from + p * BASIS_WIDTH + k);
                more(sum[p], y.x, w0);
                more(sum[p], y.y, w1);
                more(sum[p], y.z, w2);
                more(sum[p], y.w, w3);
            }
        }
        UNROLL
        for (int p = 0; p < PAIR_TILE; ++p) put(out + ((pair + p) * 3 + kind) * CHUNK + column, sum[p]);
    }
}
"""

SOURCE = _MACHINE + _PRODUCTS + PAIRS + KERNEL

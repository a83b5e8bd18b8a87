"""One kernel that gives energies, forces and virials of groups of rows, in C++ for a CPU and in CUDA C++ for a GPU.

A block takes a group, of which no pair leads out. All that an atom is lies in planes [rows, features] of the memory
that is near, which is a GPU's shared memory; weights stream through, each read for all rows of a tile; what the adjoint
needs again waits in memory that is far. Every sum has one owner and one order, so that results repeat to the bit, alone
and in a batch.

The source is a list of phases between barriers, and every phase is a loop over tasks that threads share. What differs
from machine to machine is in `host_source` and `device_source`. On a GPU sizes are macros
(`painn_deploy.engines.fused.plan`); on a CPU they are those of what is evaluated (`painn_deploy.engines.fused.host`).
"""

from painn_deploy.engines.fused.device_source import DEVICE
from painn_deploy.engines.fused.fading_source import FADING
from painn_deploy.engines.fused.host_source import HOST, HOST_BEGIN, HOST_END
from painn_deploy.engines.fused.kernel_source import KERNEL
from painn_deploy.engines.fused.pair_source import PAIRS
from painn_deploy.engines.fused.row_source import ROW_BY_ROW
from painn_deploy.engines.fused.team_source import TEAM

__all__ = ["DEVICE_SOURCE", "HOST_SOURCE", "KERNEL_NAME"]

KERNEL_NAME = "molecules"

_FUNCTIONS = r"""
DEVICE void more(Wide& sum, float a, Wide b) { more(sum, wide(a), b); }
DEVICE Quad quad(const float* p) { return *(const Quad*)p; }
DEVICE float root(float x) { return sqrtf(x); }
DEVICE Wide root(Wide a) { return each<root>(a); }

#if SOFTPLUS
DEVICE float activated(float x) { return (x > 20.0f ? x : log1pf(expf(x))) - 0.693147180559945f; }
DEVICE float slope(float x) { return x > 20.0f ? 1.0f : 1.0f / (1.0f + exponential(-x)); }
#else
DEVICE float activated(float x) { return x / (1.0f + exponential(-x)); }
DEVICE float slope(float x)
{
    float sigmoid = 1.0f / (1.0f + exponential(-x));
    return sigmoid * (1.0f + x * (1.0f - sigmoid));
}
#endif
DEVICE Wide activated(Wide a) { return each<activated>(a); }
DEVICE Wide slope(Wide a) { return each<slope>(a); }
// What a norm divides by; v / |v| is 0 at v = 0, where squares underflow.
DEVICE float divisor(float norm) { return EPSILON > 0.0f ? norm : norm > 1e-15f ? norm : 1e-15f; }
DEVICE Wide over(Wide a, Wide norm) { return a / each<divisor>(norm); }
"""

_SIZES = r"""
enum { F = FEATURES };
const int PLANE = ROWS * F;
const int SAVED = 16 * PLANE;  // of a layer, for its adjoint:
const int SAVED_HIDDEN = 0, SAVED_X = PLANE, SAVED_V = 4 * PLANE, SAVED_MIXED = 7 * PLANE, SAVED_UPDATE = 13 * PLANE,
          SAVED_PRODUCT = 14 * PLANE, SAVED_GATE = 15 * PLANE;
"""

_PRODUCTS = r"""
// out[slice][capacity][N] = a[rows][K] * weights[K][N], of which each slice sums a part of K. A thread has ROW_TILE
// rows of WIDE columns: a weight is read for all of these rows, and an activation for all of these columns. `a` lies in
// planes of WIDTH columns that are `step` apart. Rows after the last one of a tile hold anything, as do their results.
template <int K, int N, int SLICES, int WIDTH>
PHASE void product(const float* a, int step, int rows, const float* weights, float* out, int capacity)
{
    const int LENGTH = K / SLICES, COLUMNS = N / WIDE;
    static_assert(LENGTH * SLICES == K && LENGTH % 4 == 0 && N % WIDE == 0, "a slice is a whole number of fours");
    int tiles = (rows + ROW_TILE - 1) / ROW_TILE;
    EACH(task, tiles * COLUMNS * SLICES) {
        int column = WIDE * (task % COLUMNS), rest = task / COLUMNS, slice = rest / tiles;
        int row = rest % tiles * ROW_TILE;
        const float* w = weights + slice * LENGTH * N + column;
        const float* from = a + row * WIDTH;
        Wide sum[ROW_TILE];
        UNROLL
        for (int r = 0; r < ROW_TILE; ++r) sum[r] = wide(0.0f);
        PRODUCT_UNROLL
        for (int l = 0; l < LENGTH; l += 4) {
            int k = slice * LENGTH + l;
            const float* x = from + (K > WIDTH ? k / WIDTH * step + k % WIDTH : k);
            Wide w0 = fixed(w + l * N), w1 = fixed(w + (l + 1) * N), w2 = fixed(w + (l + 2) * N),
                 w3 = fixed(w + (l + 3) * N);
            UNROLL
            for (int r = 0; r < ROW_TILE; ++r) {
                Quad y = quad(x + r * WIDTH);
                more(sum[r], y.x, w0);
                more(sum[r], y.y, w1);
                more(sum[r], y.z, w2);
                more(sum[r], y.w, w3);
            }
        }
        UNROLL
        for (int r = 0; r < ROW_TILE; ++r) put(out + (slice * capacity + row + r) * N + column, sum[r]);
    }
}

// What `product` left, WIDE columns of a row, summed over its slices in their order.
template <int N, int SLICES>
DEVICE Wide summed(const float* out, int capacity, int row, int column)
{
    Wide sum = get(out + row * N + column);
    UNROLL
    for (int slice = 1; slice < SLICES; ++slice) sum = sum + get(out + (slice * capacity + row) * N + column);
    return sum;
}

// Filters of WIDE features for as many pairs as a tile has, whose results are `step` apart: radial functions times
// weights, the bias times the cutoff function included.
DEVICE void filter_tile(const float* radial, const float* weights, float* out, int step)
{
    Wide sum[PAIR_TILE], bias = fixed(weights + BASIS * 3 * F);
    UNROLL
    for (int p = 0; p < PAIR_TILE; ++p) sum[p] = radial[p * BASIS_WIDTH + BASIS] * bias;
    PRODUCT_UNROLL
    for (int k = 0; k < BASIS; k += 4) {
        const float* w = weights + k * 3 * F;
        Wide w0 = fixed(w), w1 = fixed(w + 3 * F), w2 = fixed(w + 6 * F), w3 = fixed(w + 9 * F);
        UNROLL
        for (int p = 0; p < PAIR_TILE; ++p) {
            Quad y = quad(radial + p * BASIS_WIDTH + k);
            more(sum[p], y.x, w0);
            more(sum[p], y.y, w1);
            more(sum[p], y.z, w2);
            more(sum[p], y.w, w3);
        }
    }
    UNROLL
    for (int p = 0; p < PAIR_TILE; ++p) put(out + p * step, sum[p]);
}

// Of every pair the filters of `chunk` features: out[set][pair][kind][chunk], where the second set has slopes by the
// distance.
template <int SETS>
PHASE void filters(
    const float* basis, int pairs, const float* weights, int feature, int chunk, int kinds, float* out)
{
    const int COLUMNS = chunk / WIDE;
    int tiles = (pairs + PAIR_TILE - 1) / PAIR_TILE;
    EACH(task, SETS * tiles * COLUMNS * kinds) {
        int column = WIDE * (task % COLUMNS), rest = task / COLUMNS, kind = rest % kinds, tile = rest / kinds;
        int pair = tile % tiles * PAIR_TILE + tile / tiles * PAIRS;
        filter_tile(basis + pair * BASIS_WIDTH, weights + kind * F + feature + column,
            out + (pair * 3 + kind) * chunk + column, 3 * chunk);
    }
}
"""

_PHASES = _SIZES + _PRODUCTS + FADING + PAIRS + ROW_BY_ROW + KERNEL
DEVICE_SOURCE = DEVICE + _FUNCTIONS + _PHASES
HOST_SOURCE = HOST + _FUNCTIONS + HOST_BEGIN + _PHASES + HOST_END + TEAM

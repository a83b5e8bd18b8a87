"""CUDA C++ of one kernel that gives energies, forces and virials of a batch of small molecules in a single launch.

A block takes a group of whole molecules. All that an atom is lies in planes [rows, features] of shared memory; a layer's
weights stream through from L2, each read for all rows of the group; what the adjoint needs again waits in a scratch of
the block's own. Every sum has one owner and one order, so that results repeat to the bit, alone and in a batch.

The source is a list of phases between barriers, and every phase a loop over its work: g++ compiles the same with one
thread a block and no barriers. Sizes are macros, see `painn_deploy.engines.fused.plan`.
"""

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
DEVICE void more(Four& sum, Four a, Four b) { sum.x += a.x * b.x; sum.y += a.y * b.y; sum.z += a.z * b.z; sum.w += a.w * b.w; }
DEVICE void more(Four& sum, float a, Four b) { sum.x += a * b.x; sum.y += a * b.y; sum.z += a * b.z; sum.w += a * b.w; }
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
// out[slice][CAPACITY][N] = a[rows][K] * weights[K][N], of which each slice sums a part of K. A thread has ROW_TILE rows
// of four columns: a weight is read for all of these rows, and an activation for all of these columns. `a` lies in
// planes of F columns that are `step` apart. Rows after the last one of a tile hold anything, and so do their results.
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

struct Pair {
    float r[3], distance, scale, cutoff, cutoff_slope, mask;  // Å; of the later atom seen from the earlier one
};

// What a slot is: its atoms' rows, its pair, and whether it looks as the pair does or the other way.
struct Slot {
    int here, there, pair;
    float sign;
};
DEVICE Slot slot_of(int code)
{
    Slot s;
    s.here = code & 255; s.there = code >> 8 & 255; s.pair = code >> 16;
    s.sign = s.here < s.there ? 1.0f : -1.0f;
    return s;
}
"""

_PAIRS = r"""
// Messages, eq. 7 and 8 of the paper: s += sum of w_s x_s, and v_new = v + sum of u (w_d x_d) + w_v x_v v.
template <bool FIRST>
DEVICE void gather_messages(int rows, const int* starts, const int* slots, const Pair* pairs, const float* filtered,
    int feature, const float* x, const float* v, float* s, float* v_new)
{
    const int CHUNK = CHUNK_FORWARD, COLUMNS = CHUNK / 4;
    EACH(task, rows * COLUMNS) {
        int column = 4 * (task % COLUMNS), row = task / COLUMNS, f = feature + column;
        Four sum = four(0.0f), moved[3] = {sum, sum, sum};
        for (int k = starts[row]; k < starts[row + 1]; ++k) {
            Slot slot = slot_of(slots[k]);
            const Pair& pair = pairs[slot.pair];
            const float* w = filtered + slot.pair * 3 * CHUNK + column;
            const float* y = x + slot.there * F + f;
            float scale = slot.sign * pair.scale;
            more(sum, get(w), get(y));
            Four directed = get(w + CHUNK) * get(y + PLANE);
            UNROLL
            for (int axis = 0; axis < 3; ++axis) more(moved[axis], pair.r[axis] * scale, directed);
            if (!FIRST) {
                Four carried = get(w + 2 * CHUNK) * get(y + 2 * PLANE);
                UNROLL
                for (int axis = 0; axis < 3; ++axis)
                    more(moved[axis], carried, get(v + (3 * slot.there + axis) * F + f));
            }
        }
        float* own = s + row * F + f;
        put(own, get(own) + sum);
        UNROLL
        for (int axis = 0; axis < 3; ++axis) {
            int at = (3 * row + axis) * F + f;
            put(v_new + at, FIRST ? moved[axis] : moved[axis] + get(v + at));
        }
    }
}

// Of every slot the gradient of the energy by its direction (three numbers) and its distance, added up in lanes that
// each have some of the features: no two threads add to the same number.
template <bool FIRST>
DEVICE void gather_gradients(int count, const int* slots, const Pair* pairs, const float* filtered, int feature,
    const float* x, const float* v, const float* by_s, const float* by_v, float* lanes)
{
    const int CHUNK = CHUNK_ADJOINT;
    EACH(task, count * LANES) {
        int lane = task % LANES;
        Slot slot = slot_of(slots[task / LANES]);
        const Pair& pair = pairs[slot.pair];
        float scale = slot.sign * pair.scale, u[3];
        UNROLL
        for (int axis = 0; axis < 3; ++axis) u[axis] = pair.r[axis] * scale;
        Four along[3] = {four(0.0f), four(0.0f), four(0.0f)}, by_distance = four(0.0f);
        for (int column = 4 * lane; column < CHUNK; column += 4 * LANES) {
            int f = feature + column;
            const float* w = filtered + slot.pair * 3 * CHUNK + column;
            const float* w_slope = w + PAIRS * 3 * CHUNK;
            const float* y = x + slot.there * F + f;
            Four turned[3], projected = four(0.0f), x_direction = get(y + PLANE);
            UNROLL
            for (int axis = 0; axis < 3; ++axis) {
                turned[axis] = get(by_v + (3 * slot.here + axis) * F + f);
                more(projected, u[axis], turned[axis]);
            }
            more(by_distance, get(w_slope) * get(y), get(by_s + slot.here * F + f));
            more(by_distance, get(w_slope + CHUNK) * x_direction, projected);
            Four directed = get(w + CHUNK) * x_direction;
            UNROLL
            for (int axis = 0; axis < 3; ++axis) more(along[axis], directed, turned[axis]);
            if (!FIRST) {
                Four overlap = four(0.0f);
                UNROLL
                for (int axis = 0; axis < 3; ++axis)
                    more(overlap, get(v + (3 * slot.there + axis) * F + f), turned[axis]);
                more(by_distance, get(w_slope + 2 * CHUNK) * get(y + 2 * PLANE), overlap);
            }
        }
        float* own = lanes + 4 * task;
        Four added;
        added.x = total(along[0]); added.y = total(along[1]); added.z = total(along[2]); added.w = total(by_distance);
        put(own, get(own) + added);
    }
}

// The adjoint of the messages by what was sent: the same sums over the neighbours, now of gradients, with u reversed.
DEVICE void gather_adjoints(int rows, const int* starts, const int* slots, const Pair* pairs, const float* filtered,
    int feature, const float* x, const float* v, const float* by_s, const float* by_v, float* by_x, float* by_v_before)
{
    const int CHUNK = CHUNK_ADJOINT, COLUMNS = CHUNK / 4;
    EACH(task, rows * COLUMNS) {
        int column = 4 * (task % COLUMNS), row = task / COLUMNS, f = feature + column, at = row * F + f;
        Four sent = four(0.0f), directed = sent, carried[3] = {sent, sent, sent};
        for (int k = starts[row]; k < starts[row + 1]; ++k) {
            Slot slot = slot_of(slots[k]);
            const Pair& pair = pairs[slot.pair];
            const float* w = filtered + slot.pair * 3 * CHUNK + column;
            float scale = -slot.sign * pair.scale;
            more(sent, get(w), get(by_s + slot.there * F + f));
            Four projected = four(0.0f), w_vector = get(w + 2 * CHUNK);
            UNROLL
            for (int axis = 0; axis < 3; ++axis) {
                Four turned = get(by_v + (3 * slot.there + axis) * F + f);
                more(projected, pair.r[axis] * scale, turned);
                more(carried[axis], w_vector, turned);
            }
            more(directed, get(w + CHUNK), projected);
        }
        Four by_x_vector = four(0.0f), x_vector = get(x + 2 * PLANE + at);
        UNROLL
        for (int axis = 0; axis < 3; ++axis) {
            int place = (3 * row + axis) * F + f;
            more(by_x_vector, carried[axis], get(v + place));
            put(by_v_before + place, get(by_v + place) + carried[axis] * x_vector);
        }
        put(by_x + at, sent);
        put(by_x + PLANE + at, directed);
        put(by_x + 2 * PLANE + at, by_x_vector);
    }
}
"""

_GEOMETRY = r"""
DEVICE double length(const double* here, const double* there)
{
    double squared = 0.0;
    for (int axis = 0; axis < 3; ++axis) {
        double d = add(there[axis], -here[axis]);
        squared = add(squared, times(d, d));
    }
    return sqrt(squared);
}

// d = r_later - r_earlier in float64, then rounded; a pair has |d| < cutoff in float64, as the contract says.
DEVICE Pair pair_of(const double* here, const double* there)
{
    Pair p;
    float squared = 0.0f;
    for (int axis = 0; axis < 3; ++axis) {
        p.r[axis] = (float)add(there[axis], -here[axis]);
        squared += p.r[axis] * p.r[axis];
    }
    p.mask = length(here, there) < CUTOFF ? 1.0f : 0.0f;
    p.distance = p.mask > 0.0f ? sqrtf(squared) : 1.0f;
    p.scale = p.mask / p.distance;
    float angle = p.distance * CUTOFF_FREQUENCY;
    p.cutoff = 0.5f * (cosf(angle) + 1.0f) * p.mask;
    p.cutoff_slope = -0.5f * CUTOFF_FREQUENCY * sinf(angle) * p.mask;
    return p;
}

// One radial function times the cutoff function, and the slope of that. `constants` are offsets and inverse widths of
// Gaussians, or the frequencies of sines.
DEVICE void radial(const Pair& p, const float* constants, int k, float* value, float* by_distance)
{
    float phi = 1.0f, phi_slope = 0.0f;
    if (k < BASIS) {
#if SINES
        float frequency = constants[k];
        phi = sinf(p.distance * frequency) / p.distance;
        phi_slope = (frequency * cosf(p.distance * frequency) - phi) / p.distance;
#else
        float inverse = constants[BASIS + k], scaled = (p.distance - constants[k]) * inverse;
        phi = expf(-0.5f * (scaled * scaled));
        phi_slope = -scaled * inverse * phi;
#endif
    }
    *value = phi * p.cutoff;
    *by_distance = phi_slope * p.cutoff + phi * p.cutoff_slope;
}
"""

_KERNEL = r"""
// Groups of whole molecules, one after the other for a block: rows from groups[g] to groups[g + 1] of the batch. `first`
// and `count` are of each row its molecule's first row and number of rows. `scratch` has SCRATCH for each block.
ENTRY molecules(
    const float* weights, const int* numbers, const double* positions, const int* first, const int* count,
    const int* groups, int group_count, float* scratch, float* energies, float* forces, float* virials, double* nearest)
{
    MEMORY;
    float* const shared = (float*)memory;
    float *const s = shared + 6 * PLANE, *const x = s + PLANE, *const work = x + 3 * PLANE, *const rest = work + WORK;
    float* const own = scratch + (long long)BLOCK * SCRATCH;
#if SPILLED  // of many pairs there is more than shared memory holds
    float* const basis = own + LAYERS * SAVED;
    Pair* const pairs = (Pair*)rest;
#else
    float* const basis = rest;
    Pair* const pairs = (Pair*)(rest + 2 * PAIRS * BASIS_WIDTH + 8 * PAIRS * LANES);
#endif
    float* const lanes = basis + 2 * PAIRS * BASIS_WIDTH;
    double* const place = (double*)(pairs + PAIRS);
    int *const slots = (int*)(place + 3 * ROWS), *const starts = slots + 2 * PAIRS, *const heads = starts + ROWS + 1,
        *const sizes = heads + ROWS;
    const int QUARTER = F / 4, LAST = LAYERS - 1;

    for (int group = BLOCK; group < group_count; group += BLOCKS) {
        const int begin = groups[group], rows = groups[group + 1] - begin;
        BARRIER;  // the last group is done
        EACH(t, 3 * rows) place[t] = positions[3 * (long long)begin + t];
        EACH(row, rows) {
            heads[row] = first[begin + row] - begin;
            sizes[row] = count[begin + row];
        }
        EACH(t, rows * QUARTER) {
            int row = t / QUARTER, f = 4 * (t % QUARTER), at = row * F + f;
            const float* table = weights + TABLES + numbers[begin + row] * 3 * F + f;
            put(s + at, fixed(table));
            for (int kind = 0; kind < 2; ++kind) {  // at first an atom is its element, and so are its messages
                Four sent = fixed(table + (kind + 1) * F);
                put(x + kind * PLANE + at, sent);
                put(own + SAVED_X + kind * PLANE + at, sent);
            }
        }
        EACH(t, 2 * PAIRS * LANES) put(lanes + 4 * t, four(0.0f));
        BARRIER;
        EACH(row, rows + 1) {
            int before = 0;
            for (int r = 0; r < row; ++r) before += sizes[r] - 1;
            starts[row] = before;
        }
        BARRIER;
        EACH(t, rows * LARGEST) {
            int row = t / LARGEST, k = t % LARGEST, head = heads[row], n = sizes[row], i = row - head;
            if (k < n - 1) {
                int j = k < i ? k : k + 1, low = i < j ? i : j, high = i < j ? j : i;
                int pair = starts[head] / 2 + low * (2 * n - low - 1) / 2 + high - low - 1;
                slots[starts[row] + k] = row | (head + j) << 8 | pair << 16;
                if (i < j) pairs[pair] = pair_of(place + 3 * row, place + 3 * (head + j));
            } else if (k == LARGEST - 1) {
                double least = INFINITE;
                for (int m = 0; m < n; ++m)
                    if (m != i) {
                        double d = length(place + 3 * row, place + 3 * (head + m));
                        if (d < least) least = d;
                    }
                nearest[begin + row] = least;
            }
        }
        const int pair_count = starts[rows] / 2;
        BARRIER;
        EACH(t, pair_count * (BASIS + 1)) {
            int pair = t / (BASIS + 1), k = t % (BASIS + 1), at = pair * BASIS_WIDTH + k;
            radial(pairs[pair], weights + CONSTANTS, k, basis + at, basis + PAIRS * BASIS_WIDTH + at);
        }
        BARRIER;

        float *v = shared, *v_new = shared + 3 * PLANE;
        for (int layer = 0; layer < LAYERS; ++layer) {
            const float* w = weights + layer * LAYER_WEIGHTS;
            float* const saved = own + layer * SAVED;
            if (layer > 0) {
                product<F, F, SLICES_MESSAGE_IN, ROWS, F>(s, 0, rows, w + MESSAGE_IN, work);
                BARRIER;
                EACH(t, rows * QUARTER) {
                    int row = t / QUARTER, f = 4 * (t % QUARTER), at = row * F + f;
                    Four hidden = summed<F, SLICES_MESSAGE_IN, ROWS>(work, row, f) + fixed(w + MESSAGE_IN_BIAS + f);
                    put(saved + SAVED_HIDDEN + at, hidden);
                    put(v_new + at, activated(hidden));
                }
                BARRIER;
                product<F, 3 * F, SLICES_MESSAGE_OUT, ROWS, F>(v_new, 0, rows, w + MESSAGE_OUT, work);
                BARRIER;
                EACH(t, rows * 3 * QUARTER) {
                    int row = t / (3 * QUARTER), column = 4 * (t % (3 * QUARTER));
                    int at = column / F * PLANE + row * F + column % F;
                    Four sent = summed<3 * F, SLICES_MESSAGE_OUT, ROWS>(work, row, column);
                    sent = sent + fixed(w + MESSAGE_OUT_BIAS + column);
                    put(x + at, sent);
                    put(saved + SAVED_X + at, sent);
                }
                BARRIER;
            }
            for (int feature = 0; feature < F; feature += CHUNK_FORWARD) {
                filters<CHUNK_FORWARD, 1>(basis, pair_count, w + FILTERS, feature, layer > 0 ? 3 : 2, work);
                BARRIER;
                if (layer > 0) gather_messages<false>(rows, starts, slots, pairs, work, feature, x, v, s, v_new);
                else gather_messages<true>(rows, starts, slots, pairs, work, feature, x, v, s, v_new);
                BARRIER;
            }
            float* const mixed = saved + SAVED_MIXED;
            float* const products = SLICES_MIXING == 1 ? mixed : work;
            product<F, 2 * F, SLICES_MIXING, 3 * ROWS, F>(v_new, 0, 3 * rows, w + MIXING, products);
            BARRIER;
            EACH(t, rows * QUARTER) {
                int row = t / QUARTER, f = 4 * (t % QUARTER), at = row * F + f;
                Four squared = four(EPSILON), inner = four(0.0f);
                for (int axis = 0; axis < 3; ++axis) {
                    int r = 3 * row + axis;
                    Four a = summed<2 * F, SLICES_MIXING, 3 * ROWS>(products, r, f);
                    Four b = summed<2 * F, SLICES_MIXING, 3 * ROWS>(products, r, f + F);
                    if (SLICES_MIXING > 1) {
                        put(mixed + r * 2 * F + f, a);
                        put(mixed + r * 2 * F + F + f, b);
                    }
                    more(squared, a, a);
                    more(inner, a, b);
                }
                put(x + at, root(squared));
                put(x + PLANE + at, inner);
            }
            BARRIER;
            product<2 * F, F, SLICES_UPDATE_IN, ROWS, F>(s, PLANE, rows, w + UPDATE_IN, work);
            BARRIER;
            EACH(t, rows * QUARTER) {
                int row = t / QUARTER, f = 4 * (t % QUARTER), at = row * F + f;
                Four hidden = summed<F, SLICES_UPDATE_IN, ROWS>(work, row, f) + fixed(w + UPDATE_IN_BIAS + f);
                put(saved + SAVED_UPDATE + at, hidden);
                put(x + 2 * PLANE + at, activated(hidden));
            }
            BARRIER;
            if (layer < LAST)
                product<F, 3 * F, SLICES_UPDATE_OUT, ROWS, F>(x + 2 * PLANE, 0, rows, w + UPDATE_OUT, work);
            else  // nothing reads the last interaction's vectors
                product<F, 2 * F, SLICES_LAST_OUT, ROWS, F>(x + 2 * PLANE, 0, rows, w + UPDATE_OUT, work);
            BARRIER;
            EACH(t, rows * QUARTER) {
                int row = t / QUARTER, f = 4 * (t % QUARTER), at = row * F + f;
                const float* bias = w + UPDATE_OUT_BIAS + f;
                Four change, factor;
                if (layer < LAST) {
                    change = summed<3 * F, SLICES_UPDATE_OUT, ROWS>(work, row, f);
                    factor = summed<3 * F, SLICES_UPDATE_OUT, ROWS>(work, row, F + f);
                    Four gate = summed<3 * F, SLICES_UPDATE_OUT, ROWS>(work, row, 2 * F + f) + fixed(bias + 2 * F);
                    put(saved + SAVED_GATE + at, gate);
                    for (int axis = 0; axis < 3; ++axis) {
                        int r = 3 * row + axis;
                        Four moved = get(v_new + r * F + f) + gate * get(mixed + r * 2 * F + F + f);
                        put(v_new + r * F + f, moved);
                        put(saved + SAVED + SAVED_V + r * F + f, moved);
                    }
                } else {
                    change = summed<2 * F, SLICES_LAST_OUT, ROWS>(work, row, f);
                    factor = summed<2 * F, SLICES_LAST_OUT, ROWS>(work, row, F + f);
                }
                factor = factor + fixed(bias + F);
                put(saved + SAVED_PRODUCT + at, factor);
                put(s + at, get(s + at) + (change + fixed(bias) + factor * get(x + PLANE + at)));
            }
            BARRIER;
            float* swapped = v;
            v = v_new;
            v_new = swapped;
        }

        product<F, HIDDEN, SLICES_READ_OUT, ROWS, F>(s, 0, rows, weights + READ_OUT, work);
        BARRIER;
        EACH(t, rows * (HIDDEN / 4)) {
            int row = t / (HIDDEN / 4), f = 4 * (t % (HIDDEN / 4));
            Four hidden = summed<HIDDEN, SLICES_READ_OUT, ROWS>(work, row, f) + fixed(weights + READ_OUT_BIAS + f);
            Four last = fixed(weights + READ_OUT_LAST + f);
            put(v + row * HIDDEN + f, activated(hidden) * last);
            put(v_new + row * HIDDEN + f, slope(hidden) * last);
        }
        BARRIER;
        EACH(row, rows) {
            Four sum = four(0.0f);
            for (int f = 0; f < HIDDEN; f += 4) sum = sum + get(v + row * HIDDEN + f);
            energies[begin + row] = total(sum) + weights[READ_OUT_LAST + HIDDEN];
        }
        product<HIDDEN, F, SLICES_READ_OUT_BACK, ROWS, HIDDEN>(v_new, 0, rows, weights + READ_OUT_BACK, work);
        BARRIER;
        EACH(t, rows * QUARTER) {
            int row = t / QUARTER, f = 4 * (t % QUARTER);
            put(s + row * F + f, summed<F, SLICES_READ_OUT_BACK, ROWS>(work, row, f));
        }
        BARRIER;

        // from here on s and v hold gradients of the energy by what they held
        for (int layer = LAST; layer >= 0; --layer) {
            const float* w = weights + layer * LAYER_WEIGHTS;
            const float* const saved = own + layer * SAVED;
            const float* const mixed = saved + SAVED_MIXED;
            EACH(t, rows * QUARTER) {
                int row = t / QUARTER, f = 4 * (t % QUARTER), at = row * F + f;
                Four inner = four(0.0f), gate = four(0.0f);
                for (int axis = 0; axis < 3; ++axis) {
                    int r = 3 * row + axis;
                    Four b = get(mixed + r * 2 * F + F + f);
                    more(inner, get(mixed + r * 2 * F + f), b);
                    if (layer < LAST) more(gate, get(v + r * F + f), b);
                }
                put(x + at, get(s + at) * inner);
                if (layer < LAST) put(x + PLANE + at, gate);
            }
            BARRIER;
            if (layer < LAST)
                product<3 * F, F, SLICES_UPDATE_OUT_BACK, ROWS, F>(s, PLANE, rows, w + UPDATE_OUT_BACK, work);
            else
                product<2 * F, F, SLICES_LAST_OUT_BACK, ROWS, F>(s, PLANE, rows, w + UPDATE_OUT_BACK, work);
            BARRIER;
            EACH(t, rows * QUARTER) {
                int row = t / QUARTER, f = 4 * (t % QUARTER), at = row * F + f;
                Four by_hidden = layer < LAST ? summed<F, SLICES_UPDATE_OUT_BACK, ROWS>(work, row, f)
                                              : summed<F, SLICES_LAST_OUT_BACK, ROWS>(work, row, f);
                put(x + 2 * PLANE + at, by_hidden * slope(get(saved + SAVED_UPDATE + at)));
            }
            BARRIER;
            product<F, 2 * F, SLICES_UPDATE_IN_BACK, ROWS, F>(x + 2 * PLANE, 0, rows, w + UPDATE_IN_BACK, work);
            BARRIER;
            EACH(t, rows * QUARTER) {
                int row = t / QUARTER, f = 4 * (t % QUARTER), at = row * F + f;
                Four by_s = get(s + at), by_inner = by_s * get(saved + SAVED_PRODUCT + at), squared = four(EPSILON);
                Four a[3], b[3], gate = layer < LAST ? get(saved + SAVED_GATE + at) : four(0.0f);
                for (int axis = 0; axis < 3; ++axis) {
                    int r = 3 * row + axis;
                    a[axis] = get(mixed + r * 2 * F + f);
                    b[axis] = get(mixed + r * 2 * F + F + f);
                    more(squared, a[axis], a[axis]);
                }
                Four along = over(summed<2 * F, SLICES_UPDATE_IN_BACK, ROWS>(work, row, F + f), root(squared));
                put(s + at, by_s + summed<2 * F, SLICES_UPDATE_IN_BACK, ROWS>(work, row, f));
                for (int axis = 0; axis < 3; ++axis) {
                    int place_of = (3 * row + axis) * F + f;
                    Four by_b = by_inner * a[axis];
                    if (layer < LAST) more(by_b, gate, get(v + place_of));
                    put(v_new + place_of, by_inner * b[axis] + along * a[axis]);
                    put(x + place_of, by_b);
                }
            }
            BARRIER;
            product<2 * F, F, SLICES_MIXING_BACK, 3 * ROWS, F>(
                v_new, (int)(x - v_new), 3 * rows, w + MIXING_BACK, work);
            BARRIER;
            EACH(t, 3 * rows * QUARTER) {
                int row = t / QUARTER, f = 4 * (t % QUARTER), at = row * F + f;
                Four by_v = summed<F, SLICES_MIXING_BACK, 3 * ROWS>(work, row, f);
                put(v + at, layer < LAST ? get(v + at) + by_v : by_v);
            }
            BARRIER;
            const float *x_then = saved + SAVED_X, *v_then = saved + SAVED_V;
            for (int feature = 0; feature < F; feature += CHUNK_ADJOINT) {
                filters<CHUNK_ADJOINT, 2>(basis, pair_count, w + FILTERS, feature, layer > 0 ? 3 : 2, work);
                BARRIER;
                if (layer > 0) {
                    gather_gradients<false>(
                        2 * pair_count, slots, pairs, work, feature, x_then, v_then, s, v, lanes);
                    gather_adjoints(rows, starts, slots, pairs, work, feature, x_then, v_then, s, v, x, v_new);
                } else
                    gather_gradients<true>(2 * pair_count, slots, pairs, work, feature, x_then, v_then, s, v, lanes);
                BARRIER;
            }
            if (layer > 0) {
                product<3 * F, F, SLICES_MESSAGE_OUT_BACK, ROWS, F>(x, PLANE, rows, w + MESSAGE_OUT_BACK, work);
                BARRIER;
                EACH(t, rows * QUARTER) {
                    int row = t / QUARTER, f = 4 * (t % QUARTER), at = row * F + f;
                    Four by_hidden = summed<F, SLICES_MESSAGE_OUT_BACK, ROWS>(work, row, f);
                    put(v + at, by_hidden * slope(get(saved + SAVED_HIDDEN + at)));
                }
                BARRIER;
                product<F, F, SLICES_MESSAGE_IN_BACK, ROWS, F>(v, 0, rows, w + MESSAGE_IN_BACK, work);
                BARRIER;
                EACH(t, rows * QUARTER) {
                    int row = t / QUARTER, f = 4 * (t % QUARTER), at = row * F + f;
                    put(s + at, get(s + at) + summed<F, SLICES_MESSAGE_IN_BACK, ROWS>(work, row, f));
                }
                BARRIER;
            }
            float* swapped = v;
            v = v_new;
            v_new = swapped;
        }

        // of each slot dE/d(displacement), from those by direction and by distance
        EACH(t, 2 * pair_count) {
            Slot slot = slot_of(slots[t]);
            const Pair& pair = pairs[slot.pair];
            float by[4] = {0.0f, 0.0f, 0.0f, 0.0f};
            for (int lane = 0; lane < LANES; ++lane)
                for (int part = 0; part < 4; ++part) by[part] += lanes[4 * (t * LANES + lane) + part];
            float turned = 0.0f;
            for (int axis = 0; axis < 3; ++axis) turned += by[axis] * (slot.sign * pair.r[axis]);
            float along = (by[3] - turned * (pair.scale / pair.distance)) * pair.scale;
            for (int axis = 0; axis < 3; ++axis)
                work[3 * t + axis] = pair.scale * by[axis] + along * (slot.sign * pair.r[axis]);
        }
        BARRIER;
        EACH(t, rows * 12) {
            int row = t / 12, part = t % 12, i = row - heads[row];
            float sum = 0.0f;
            for (int k = starts[row]; k < starts[row + 1]; ++k) {
                Slot slot = slot_of(slots[k]);
                if (part < 3) {
                    int j = slot.there - heads[row];
                    sum += work[3 * k + part] - work[3 * (starts[slot.there] + (i < j ? i : i - 1)) + part];
                } else
                    sum += work[3 * k + (part - 3) / 3] * (slot.sign * pairs[slot.pair].r[(part - 3) % 3]);
            }
            if (part < 3) forces[3 * (long long)(begin + row) + part] = sum;
            else virials[9 * (long long)(begin + row) + part - 3] = sum;
        }
    }
}
"""

SOURCE = _MACHINE + _PRODUCTS + _PAIRS + _GEOMETRY + _KERNEL

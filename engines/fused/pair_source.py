"""CUDA C++ of what a pair of atoms is and of the sums over neighbours, forward and back; see `source`."""

__all__ = ["PAIRS"]

PAIRS = r"""
struct Pair {
    float r[3], distance, scale, cutoff, cutoff_slope;  // Å; as the pair's leading slot sees it
};

// What a slot of an edge is: its atoms' rows, where its reverse went, its pair, and whether it looks as the pair does
// (1) or the other way (-1).
struct Slot {
    INDEX here, there, back, pair, sign;
};

// The neighbour matrix of the contract, from the first row of a group on.
struct Matrix {
    const float* displacements;
    const int* reverse;
    const float* mask;
    int width, begin;
    METHOD long long at(int row, int k) const { return (long long)(begin + row) * width + k; }
};

// Of a row's first `most` slots, how many are edges.
DEVICE int edges_before(const Matrix& m, int row, int most)
{
    int found = 0;
    for (int k = 0; k < most; ++k) found += m.mask[m.at(row, k)] > 0.0f;
    return found;
}

// Likewise how many edges among them come before their reverse: such a slot leads its pair.
DEVICE int leads_before(const Matrix& m, int row, int most)
{
    int found = 0;
    for (int k = 0; k < most; ++k) found += m.mask[m.at(row, k)] > 0.0f && m.at(row, k) < m.reverse[m.at(row, k)];
    return found;
}

DEVICE Pair pair_of(const float* displacement)
{
    Pair p;
    float squared = 0.0f;
    for (int axis = 0; axis < 3; ++axis) {
        p.r[axis] = displacement[axis];
        squared += p.r[axis] * p.r[axis];
    }
    p.distance = sqrtf(squared);
    p.scale = 1.0f / p.distance;
    cutoff(p.distance, &p.cutoff, &p.cutoff_slope);
    return p;
}

// Edges alone, row after row, in the order of their slots.
DEVICE void place_slot(const Matrix& m, int row, int k, const int* starts, const int* leads, Slot* slots, Pair* pairs)
{
    long long at = m.at(row, k);
    if (!(m.mask[at] > 0.0f)) return;
    int back = m.reverse[at], there = back / m.width - m.begin, k_there = back % m.width;
    bool leading = at < back;
    int pair = leading ? leads[row] + leads_before(m, row, k) : leads[there] + leads_before(m, there, k_there);
    Slot& slot = slots[starts[row] + edges_before(m, row, k)];
    slot.here = row; slot.there = there; slot.pair = pair; slot.sign = leading ? 1 : -1;
    slot.back = starts[there] + edges_before(m, there, k_there);
    if (leading) pairs[pair] = pair_of(m.displacements + 3 * at);
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
        phi = exponential(-0.5f * (scaled * scaled));
        phi_slope = -scaled * inverse * phi;
#endif
    }
    *value = phi * p.cutoff;
    *by_distance = phi_slope * p.cutoff + phi * p.cutoff_slope;
}

// Radial functions of every pair, and behind them their slopes; a column more of each is of the bias.
PHASE void radials(int pair_count, const Pair* pairs, const float* constants, int capacity, float* basis)
{
    EACH(t, pair_count * (BASIS + 1)) {
        int pair = t / (BASIS + 1), k = t % (BASIS + 1), at = pair * BASIS_WIDTH + k;
        radial(pairs[pair], constants, k, basis + at, basis + capacity * BASIS_WIDTH + at);
    }
}

// Messages, eq. 7 and 8 of the paper: s += sum of w_s x_s, and v_new = v + sum of u (w_d x_d) + w_v x_v v.
template <bool FIRST>
PHASE void gather_messages(int rows, const int* starts, const Slot* slots, const Pair* pairs, const float* filtered,
    int feature, const float* x, const float* v, float* s, float* v_new)
{
    const int CHUNK = CHUNK_FORWARD, COLUMNS = CHUNK / WIDE;
    EACH(task, rows * COLUMNS) {
        int column = WIDE * (task % COLUMNS), row = task / COLUMNS, f = feature + column;
        Wide sum = wide(0.0f), moved[3] = {sum, sum, sum};
        for (int k = starts[row]; k < starts[row + 1]; ++k) {
            const Slot slot = slots[k];
            const Pair& pair = pairs[slot.pair];
            const float* w = filtered + slot.pair * 3 * CHUNK + column;
            const float* y = x + slot.there * F + f;
            float scale = slot.sign * pair.scale;
            more(sum, get(w), get(y));
            Wide directed = get(w + CHUNK) * get(y + PLANE);
            UNROLL
            for (int axis = 0; axis < 3; ++axis) more(moved[axis], pair.r[axis] * scale, directed);
            if (!FIRST) {
                Wide carried = get(w + 2 * CHUNK) * get(y + 2 * PLANE);
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
PHASE void gather_gradients(int count, const Slot* slots, const Pair* pairs, const float* filtered, int feature,
    const float* x, const float* v, const float* by_s, const float* by_v, float* lanes)
{
    const int CHUNK = CHUNK_ADJOINT;
    EACH(task, count * LANES) {
        int lane = task % LANES;
        const Slot slot = slots[task / LANES];
        const Pair& pair = pairs[slot.pair];
        float scale = slot.sign * pair.scale, u[3];
        UNROLL
        for (int axis = 0; axis < 3; ++axis) u[axis] = pair.r[axis] * scale;
        Wide along[3] = {wide(0.0f), wide(0.0f), wide(0.0f)}, by_distance = wide(0.0f);
        for (int column = WIDE * lane; column < CHUNK; column += WIDE * LANES) {
            int f = feature + column;
            const float* w = filtered + slot.pair * 3 * CHUNK + column;
            const float* w_slope = w + PAIRS * 3 * CHUNK;
            const float* y = x + slot.there * F + f;
            Wide turned[3], projected = wide(0.0f), x_direction = get(y + PLANE);
            UNROLL
            for (int axis = 0; axis < 3; ++axis) {
                turned[axis] = get(by_v + (3 * slot.here + axis) * F + f);
                more(projected, u[axis], turned[axis]);
            }
            more(by_distance, get(w_slope) * get(y), get(by_s + slot.here * F + f));
            more(by_distance, get(w_slope + CHUNK) * x_direction, projected);
            Wide directed = get(w + CHUNK) * x_direction;
            UNROLL
            for (int axis = 0; axis < 3; ++axis) more(along[axis], directed, turned[axis]);
            if (!FIRST) {
                Wide overlap = wide(0.0f);
                UNROLL
                for (int axis = 0; axis < 3; ++axis)
                    more(overlap, get(v + (3 * slot.there + axis) * F + f), turned[axis]);
                more(by_distance, get(w_slope + 2 * CHUNK) * get(y + 2 * PLANE), overlap);
            }
        }
        float* own = lanes + 4 * task;
        for (int axis = 0; axis < 3; ++axis) own[axis] += total(along[axis]);
        own[3] += total(by_distance);
    }
}

// The adjoint of the messages by what was sent: the same sums over the neighbours, now of gradients, with u reversed.
// Shares its phase with so many tasks before it.
PHASE void gather_adjoints(int before, int rows, const int* starts, const Slot* slots, const Pair* pairs,
    const float* filtered, int feature, const float* x, const float* v, const float* by_s, const float* by_v,
    float* by_x, float* by_v_before)
{
    const int CHUNK = CHUNK_ADJOINT, COLUMNS = CHUNK / WIDE;
    EACH_AFTER(task, rows * COLUMNS, before) {
        int column = WIDE * (task % COLUMNS), row = task / COLUMNS, f = feature + column, at = row * F + f;
        Wide sent = wide(0.0f), directed = sent, carried[3] = {sent, sent, sent};
        for (int k = starts[row]; k < starts[row + 1]; ++k) {
            const Slot slot = slots[k];
            const Pair& pair = pairs[slot.pair];
            const float* w = filtered + slot.pair * 3 * CHUNK + column;
            float scale = -slot.sign * pair.scale;
            more(sent, get(w), get(by_s + slot.there * F + f));
            Wide projected = wide(0.0f), w_vector = get(w + 2 * CHUNK);
            UNROLL
            for (int axis = 0; axis < 3; ++axis) {
                Wide turned = get(by_v + (3 * slot.there + axis) * F + f);
                more(projected, pair.r[axis] * scale, turned);
                more(carried[axis], w_vector, turned);
            }
            more(directed, get(w + CHUNK), projected);
        }
        Wide by_x_vector = wide(0.0f), x_vector = get(x + 2 * PLANE + at);
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

"""CUDA C++ of what a pair of atoms is and of the sums over neighbours, forward and back; see `source`."""

__all__ = ["PAIRS"]

PAIRS = r"""
struct Pair {
    float r[3], distance, scale, cutoff, cutoff_slope;  // Å; as the pair's leading slot sees it
#if REPULSION
    float repulsion, repulsion_slope;  // eV, eV/Å
#endif
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

// Whether each edge of a row is one from its other end, too, and both ends are among the group's `rows`: what leads
// elsewhere would be written where there is no room.
DEVICE bool is_sound(const Matrix& m, int row, int rows)
{
    const long long first = m.at(0, 0), end = m.at(rows, 0);
    int wrong = 0;
    for (int k = 0; k < m.width; ++k) {
        const long long at = m.at(row, k), back = m.reverse[at];
        const bool inside = back >= first && back < end;
        const long long there = inside ? back : at;
        wrong |= m.mask[at] > 0.0f && (there == at || m.reverse[there] != at || !(m.mask[there] > 0.0f));
    }
    return !wrong;
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
DEVICE void place_slot(const Matrix& m, int row, int k, const int* starts, const int* leads, const int* numbers,
    const float* weights, Slot* slots, Pair* pairs)
{
    long long at = m.at(row, k);
    if (!(m.mask[at] > 0.0f)) return;
    int back = m.reverse[at], there = back / m.width - m.begin, k_there = back % m.width;
    bool leading = at < back;
    int pair = leading ? leads[row] + leads_before(m, row, k) : leads[there] + leads_before(m, there, k_there);
    Slot& slot = slots[starts[row] + edges_before(m, row, k)];
    slot.here = row; slot.there = there; slot.pair = pair; slot.sign = leading ? 1 : -1;
    slot.back = starts[there] + edges_before(m, there, k_there);
    if (!leading) return;
    Pair p = pair_of(m.displacements + 3 * at);
#if REPULSION
    repulsion(p.distance, numbers[m.begin + row], numbers[m.begin + there], weights, &p.repulsion, &p.repulsion_slope);
#else
    (void)numbers; (void)weights;
#endif
    pairs[pair] = p;
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

// Messages that an atom gets through some of its slots, eq. 7 and 8 of the paper: WIDE features of them.
struct Messages {
    Wide s, v[3];
};

template <bool FIRST>
METHOD void add_messages(Messages& sum, const Slot& slot, const Pair& pair, const float* w, int chunk, const float* x,
    const float* v, int f)
{
    const float* y = x + slot.there * F + f;
    float scale = slot.sign * pair.scale;
    more(sum.s, get(w), get(y));
    Wide directed = get(w + chunk) * get(y + PLANE);
    UNROLL
    for (int axis = 0; axis < 3; ++axis) more(sum.v[axis], pair.r[axis] * scale, directed);
    if (!FIRST) {
        Wide carried = get(w + 2 * chunk) * get(y + 2 * PLANE);
        UNROLL
        for (int axis = 0; axis < 3; ++axis) more(sum.v[axis], carried, get(v + (3 * slot.there + axis) * F + f));
    }
}

// s += sum, and v_new = v + sum.
template <bool FIRST>
METHOD void receive(const Messages& sum, int row, int f, const float* v, float* s, float* v_new)
{
    float* own = s + row * F + f;
    put(own, get(own) + sum.s);
    UNROLL
    for (int axis = 0; axis < 3; ++axis) {
        int at = (3 * row + axis) * F + f;
        put(v_new + at, FIRST ? sum.v[axis] : sum.v[axis] + get(v + at));
    }
}

template <bool FIRST>
PHASE void gather_messages(int rows, const int* starts, const Slot* slots, const Pair* pairs, const float* filtered,
    int feature, const float* x, const float* v, float* s, float* v_new)
{
    const int CHUNK = CHUNK_FORWARD, COLUMNS = CHUNK / WIDE;
    EACH(task, rows * COLUMNS) {
        int column = WIDE * (task % COLUMNS), row = task / COLUMNS, f = feature + column;
        Messages sum = {wide(0.0f), {wide(0.0f), wide(0.0f), wide(0.0f)}};
        for (int k = starts[row]; k < starts[row + 1]; ++k) {
            const Slot slot = slots[k];
            add_messages<FIRST>(sum, slot, pairs[slot.pair], filtered + slot.pair * 3 * CHUNK + column, CHUNK, x, v, f);
        }
        receive<FIRST>(sum, row, f, v, s, v_new);
    }
}

// Of a slot the gradient of the energy by its direction (three numbers) and its distance, added to those of other
// features: every LANES-th vector of `chunk` of them, from a lane's own on.
template <bool FIRST>
METHOD void add_gradient(const Slot& slot, const Pair& pair, const float* filtered, const float* slopes, int lane,
    int feature, int chunk, const float* x, const float* v, const float* by_s, const float* by_v, float* gradient)
{
    float scale = slot.sign * pair.scale, u[3];
    UNROLL
    for (int axis = 0; axis < 3; ++axis) u[axis] = pair.r[axis] * scale;
    Wide along[3] = {wide(0.0f), wide(0.0f), wide(0.0f)}, by_distance = wide(0.0f);
    for (int column = WIDE * lane; column < chunk; column += WIDE * LANES) {
        int f = feature + column;
        const float *w = filtered + column, *w_slope = slopes + column, *y = x + slot.there * F + f;
        Wide turned[3], projected = wide(0.0f), x_direction = get(y + PLANE);
        UNROLL
        for (int axis = 0; axis < 3; ++axis) {
            turned[axis] = get(by_v + (3 * slot.here + axis) * F + f);
            more(projected, u[axis], turned[axis]);
        }
        more(by_distance, get(w_slope) * get(y), get(by_s + slot.here * F + f));
        more(by_distance, get(w_slope + chunk) * x_direction, projected);
        Wide directed = get(w + chunk) * x_direction;
        UNROLL
        for (int axis = 0; axis < 3; ++axis) more(along[axis], directed, turned[axis]);
        if (!FIRST) {
            Wide overlap = wide(0.0f);
            UNROLL
            for (int axis = 0; axis < 3; ++axis)
                more(overlap, get(v + (3 * slot.there + axis) * F + f), turned[axis]);
            more(by_distance, get(w_slope + 2 * chunk) * get(y + 2 * PLANE), overlap);
        }
    }
    for (int axis = 0; axis < 3; ++axis) gradient[axis] += total(along[axis]);
    gradient[3] += total(by_distance);
}

// Of all slots, in lanes that each have some of the features: no two threads add to the same number.
template <bool FIRST>
PHASE void gather_gradients(int count, const Slot* slots, const Pair* pairs, const float* filtered, int feature,
    const float* x, const float* v, const float* by_s, const float* by_v, float* lanes)
{
    const int CHUNK = CHUNK_ADJOINT;
    EACH(task, count * LANES) {
        const Slot slot = slots[task / LANES];
        const float* w = filtered + slot.pair * 3 * CHUNK;
        add_gradient<FIRST>(slot, pairs[slot.pair], w, w + PAIRS * 3 * CHUNK, task % LANES, feature, CHUNK, x, v, by_s,
            by_v, lanes + 4 * task);
    }
}

// The adjoint of the messages by what was sent, through some of the sender's slots: the same sums over the neighbours,
// now of gradients, with u reversed.
struct Adjoints {
    Wide s, d, v[3];
};

METHOD void add_adjoints(Adjoints& sum, const Slot& slot, const Pair& pair, const float* w, int chunk,
    const float* by_s, const float* by_v, int f)
{
    float scale = -slot.sign * pair.scale;
    more(sum.s, get(w), get(by_s + slot.there * F + f));
    Wide projected = wide(0.0f), w_vector = get(w + 2 * chunk);
    UNROLL
    for (int axis = 0; axis < 3; ++axis) {
        Wide turned = get(by_v + (3 * slot.there + axis) * F + f);
        more(projected, pair.r[axis] * scale, turned);
        more(sum.v[axis], w_vector, turned);
    }
    more(sum.d, get(w + chunk), projected);
}

METHOD void give_back(const Adjoints& sum, int row, int f, const float* x, const float* v, const float* by_v,
    float* by_x, float* by_v_before)
{
    int at = row * F + f;
    Wide by_x_vector = wide(0.0f), x_vector = get(x + 2 * PLANE + at);
    UNROLL
    for (int axis = 0; axis < 3; ++axis) {
        int place = (3 * row + axis) * F + f;
        more(by_x_vector, sum.v[axis], get(v + place));
        put(by_v_before + place, get(by_v + place) + sum.v[axis] * x_vector);
    }
    put(by_x + at, sum.s);
    put(by_x + PLANE + at, sum.d);
    put(by_x + 2 * PLANE + at, by_x_vector);
}

// Shares its phase with so many tasks before it.
PHASE void gather_adjoints(int before, int rows, const int* starts, const Slot* slots, const Pair* pairs,
    const float* filtered, int feature, const float* x, const float* v, const float* by_s, const float* by_v,
    float* by_x, float* by_v_before)
{
    const int CHUNK = CHUNK_ADJOINT, COLUMNS = CHUNK / WIDE;
    EACH_AFTER(task, rows * COLUMNS, before) {
        int column = WIDE * (task % COLUMNS), row = task / COLUMNS, f = feature + column;
        Adjoints sum = {wide(0.0f), wide(0.0f), {wide(0.0f), wide(0.0f), wide(0.0f)}};
        for (int k = starts[row]; k < starts[row + 1]; ++k) {
            const Slot slot = slots[k];
            add_adjoints(sum, slot, pairs[slot.pair], filtered + slot.pair * 3 * CHUNK + column, CHUNK, by_s, by_v, f);
        }
        give_back(sum, row, f, x, v, by_v, by_x, by_v_before);
    }
}
"""

"""CUDA C++ of what a pair of atoms is and of the sums over neighbours, forward and back; see `source`."""

__all__ = ["PAIRS"]

PAIRS = r"""
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
// Shares its phase with so many tasks before it.
DEVICE void gather_adjoints(int before, int rows, const int* starts, const int* slots, const Pair* pairs,
    const float* filtered, int feature, const float* x, const float* v, const float* by_s, const float* by_v,
    float* by_x, float* by_v_before)
{
    const int CHUNK = CHUNK_ADJOINT, COLUMNS = CHUNK / 4;
    EACH_AFTER(task, rows * COLUMNS, before) {
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

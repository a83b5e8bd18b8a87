"""CUDA C++ of the kernel itself: a group's phases, from positions to forces; see `source`."""

__all__ = ["KERNEL"]

KERNEL = r"""
// Groups of whole molecules, one after the other for a block: rows from groups[g] to groups[g + 1] of the batch.
// `first` and `count` are of each row its molecule's first row and number of rows. `scratch` has SCRATCH of each block.
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
        const int BACK_TASKS = (rows + ROW_TILE - 1) / ROW_TILE * QUARTER * SLICES_READ_OUT_BACK;
        EACH_AFTER(row, rows, BACK_TASKS) {
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
                    gather_adjoints(2 * pair_count * LANES, rows, starts, slots, pairs, work, feature, x_then, v_then,
                        s, v, x, v_new);
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

"""CUDA C++ of the kernel itself: a group's phases, from positions to forces; see `source`."""

__all__ = ["KERNEL"]

KERNEL = r"""
// The mean of what members gave, of whom so many came before.
DEVICE void average(float* mean, float value, int before)
{
    *mean = before ? *mean + (value - *mean) / (before + 1) : value;
}

// Groups of rows that no pair leads out of, one after the other for a block: groups[0] of them, from row groups[g] to
// row groups[g + 1] of the matrix, which has `width` slots a row. `scratch` has SCRATCH of each block. Members of a
// committee take turns, and results are their means: `extra` are then their energies, and else features.
ENTRY molecules(
    const float* all_weights, const int* numbers, const float* displacements, const int* reverse, const float* mask,
    const float* shares, int width, const int* groups, float* scratch, float* energies, float* forces, float* virials,
    float* extra, float* spread)
{
    MEMORY;
    float* const shared = (float*)memory;
    float *const s = shared + 6 * PLANE, *const x = s + PLANE, *const work = x + 3 * PLANE, *const rest = work + WORK;
    float* const own = scratch + (long long)BLOCK * SCRATCH;
    float *const basis = SPILLED ? own + LAYERS * SAVED : rest, *const lanes = basis + 2 * PAIRS * BASIS_WIDTH;
    Pair* const pairs = (Pair*)(lanes + 8 * PAIRS * LANES);  // of many there is more than shared memory holds
    Slot* const slots = (Slot*)(pairs + PAIRS);
    int *const starts = SPILLED ? (int*)rest : (int*)(slots + 2 * PAIRS), *const leads = starts + ROWS + 1;
    const int COLUMNS = F / WIDE, LAST = LAYERS - 1;

    for (int group = 1 + BLOCK; group <= groups[0]; group += BLOCKS)
    for (int member = 0; member < MEMBERS; ++member) {
        const float* const weights = all_weights + (long long)member * MEMBER_WEIGHTS;
        const int begin = groups[group], rows = groups[group + 1] - begin;
        const Matrix matrix = {displacements, reverse, mask, width, begin};
        BARRIER;  // the last one is done
        EACH(t, rows * COLUMNS) {
            int row = t / COLUMNS, f = WIDE * (t % COLUMNS), at = row * F + f;
            const float* table = weights + TABLES + numbers[begin + row] * 3 * F + f;
            put(s + at, fixed(table));
            for (int kind = 0; kind < 2; ++kind) {  // at first an atom is its element, and so are its messages
                Wide sent = fixed(table + (kind + 1) * F);
                put(x + kind * PLANE + at, sent);
                put(own + SAVED_X + kind * PLANE + at, sent);
            }
        }
        EACH(row, rows) {
            starts[row + 1] = is_sound(matrix, row, rows) ? edges_before(matrix, row, width) : -1;
            leads[row + 1] = leads_before(matrix, row, width);
        }
        BARRIER;
        EACH(t, 1) {
            bool sound = true;
            starts[0] = leads[0] = 0;
            for (int row = 0; row < rows; ++row) {
                sound = sound && starts[row + 1] >= 0;
                starts[row + 1] += starts[row];
                leads[row + 1] += leads[row];
            }
            if (!sound || leads[rows] > PAIRS) starts[rows] = -1;
        }
        BARRIER;
        const int slot_count = starts[rows], pair_count = leads[rows];
        if (slot_count < 0) {  // what is no graph has no energy
            EACH(row, rows) {
                const long long at = begin + row;
                energies[at] = NOTHING;
                for (int part = 0; part < 3; ++part) forces[3 * at + part] = NOTHING;
                for (int part = 0; part < 9; ++part) virials[9 * at + part] = NOTHING;
                const int more = GIVES_FEATURES ? HIDDEN : MEMBERS > 1 ? MEMBERS : 0;
                for (int part = 0; part < more; ++part) extra[more * at + part] = NOTHING;
                if (MEMBERS > 1) spread[at] = NOTHING;
            }
            continue;
        }
        EACH(t, 4 * slot_count * LANES) lanes[t] = 0.0f;
        EACH(t, rows * width) place_slot(matrix, t / width, t % width, starts, leads, numbers, weights, slots, pairs);
        BARRIER;
        if (!BASIS_OF_EACH) {
            radials(pair_count, pairs, weights + CONSTANTS, PAIRS, basis);
            BARRIER;
        }

        float *v = shared, *v_new = shared + 3 * PLANE;
        for (int layer = 0; layer < LAYERS; ++layer) {
            const float* w = weights + layer * LAYER_WEIGHTS;
            float* const saved = own + layer * SAVED;
            if (layer > 0) {
                product<F, F, SLICES_MESSAGE_IN, F>(s, 0, rows, w + MESSAGE_IN, work, ROWS);
                BARRIER;
                EACH(t, rows * COLUMNS) {
                    int row = t / COLUMNS, f = WIDE * (t % COLUMNS), at = row * F + f;
                    Wide hidden = summed<F, SLICES_MESSAGE_IN>(work, ROWS, row, f) + fixed(w + MESSAGE_IN_BIAS + f);
                    put(saved + SAVED_HIDDEN + at, hidden);
                    put(v_new + at, activated(hidden));
                }
                BARRIER;
                product<F, 3 * F, SLICES_MESSAGE_OUT, F>(v_new, 0, rows, w + MESSAGE_OUT, work, ROWS);
                BARRIER;
                EACH(t, rows * 3 * COLUMNS) {
                    int row = t / (3 * COLUMNS), column = WIDE * (t % (3 * COLUMNS));
                    int at = column / F * PLANE + row * F + column % F;
                    Wide sent = summed<3 * F, SLICES_MESSAGE_OUT>(work, ROWS, row, column);
                    sent = sent + fixed(w + MESSAGE_OUT_BIAS + column);
                    put(x + at, sent);
                    put(saved + SAVED_X + at, sent);
                }
                BARRIER;
            }
            if (BASIS_OF_EACH) {
                radials(pair_count, pairs, w + CONSTANTS_OF_EACH, PAIRS, basis);
                BARRIER;
            }
            if (!CHUNK_FORWARD) {
                if (layer > 0)
                    messages_row_by_row<false>(rows, starts, slots, pairs, basis, w + FILTERS, work, x, v, s, v_new);
                else
                    messages_row_by_row<true>(rows, starts, slots, pairs, basis, w + FILTERS, work, x, v, s, v_new);
                BARRIER;
            } else for (int feature = 0; feature < F; feature += CHUNK_FORWARD) {
                filters<1>(basis, pair_count, w + FILTERS, feature, CHUNK_FORWARD, layer > 0 ? 3 : 2, work);
                BARRIER;
                if (layer > 0) gather_messages<false>(rows, starts, slots, pairs, work, feature, x, v, s, v_new);
                else gather_messages<true>(rows, starts, slots, pairs, work, feature, x, v, s, v_new);
                BARRIER;
            }
            float* const mixed = saved + SAVED_MIXED;
            float* const products = SLICES_MIXING == 1 ? mixed : work;
            product<F, 2 * F, SLICES_MIXING, F>(v_new, 0, 3 * rows, w + MIXING, products, 3 * ROWS);
            BARRIER;
            EACH(t, rows * COLUMNS) {
                int row = t / COLUMNS, f = WIDE * (t % COLUMNS), at = row * F + f;
                Wide squared = wide(EPSILON), inner = wide(0.0f);
                for (int axis = 0; axis < 3; ++axis) {
                    int r = 3 * row + axis;
                    Wide a = summed<2 * F, SLICES_MIXING>(products, 3 * ROWS, r, f);
                    Wide b = summed<2 * F, SLICES_MIXING>(products, 3 * ROWS, r, f + F);
                    if (MIXING_BIASED) {
                        a = a + fixed(w + MIXING_BIAS + f);
                        b = b + fixed(w + MIXING_BIAS + F + f);
                    }
                    if (SLICES_MIXING > 1 || MIXING_BIASED) {
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
            product<2 * F, F, SLICES_UPDATE_IN, F>(s, PLANE, rows, w + UPDATE_IN, work, ROWS);
            BARRIER;
            EACH(t, rows * COLUMNS) {
                int row = t / COLUMNS, f = WIDE * (t % COLUMNS), at = row * F + f;
                Wide hidden = summed<F, SLICES_UPDATE_IN>(work, ROWS, row, f) + fixed(w + UPDATE_IN_BIAS + f);
                put(saved + SAVED_UPDATE + at, hidden);
                put(x + 2 * PLANE + at, activated(hidden));
            }
            BARRIER;
            if (layer < LAST)
                product<F, 3 * F, SLICES_UPDATE_OUT, F>(x + 2 * PLANE, 0, rows, w + UPDATE_OUT, work, ROWS);
            else  // nothing reads the last interaction's vectors
                product<F, 2 * F, SLICES_LAST_OUT, F>(x + 2 * PLANE, 0, rows, w + UPDATE_OUT, work, ROWS);
            BARRIER;
            EACH(t, rows * COLUMNS) {
                int row = t / COLUMNS, f = WIDE * (t % COLUMNS), at = row * F + f;
                const float* bias = w + UPDATE_OUT_BIAS + f;
                Wide change, factor;
                if (layer < LAST) {
                    change = summed<3 * F, SLICES_UPDATE_OUT>(work, ROWS, row, f);
                    factor = summed<3 * F, SLICES_UPDATE_OUT>(work, ROWS, row, F + f);
                    Wide gate = summed<3 * F, SLICES_UPDATE_OUT>(work, ROWS, row, 2 * F + f) + fixed(bias + 2 * F);
                    put(saved + SAVED_GATE + at, gate);
                    for (int axis = 0; axis < 3; ++axis) {
                        int r = 3 * row + axis;
                        Wide moved = get(v_new + r * F + f) + gate * get(mixed + r * 2 * F + F + f);
                        put(v_new + r * F + f, moved);
                        put(saved + SAVED + SAVED_V + r * F + f, moved);
                    }
                } else {
                    change = summed<2 * F, SLICES_LAST_OUT>(work, ROWS, row, f);
                    factor = summed<2 * F, SLICES_LAST_OUT>(work, ROWS, row, F + f);
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

        product<F, HIDDEN, SLICES_READ_OUT, F>(s, 0, rows, weights + READ_OUT, work, ROWS);
        BARRIER;
        EACH(t, rows * (HIDDEN / WIDE)) {
            int row = t / (HIDDEN / WIDE), f = WIDE * (t % (HIDDEN / WIDE));
            Wide hidden = summed<HIDDEN, SLICES_READ_OUT>(work, ROWS, row, f) + fixed(weights + READ_OUT_BIAS + f);
            float scale = SCALED ? weights[SCALES + numbers[begin + row]] : 1.0f;
            Wide last = shares[begin + row] * fixed(weights + READ_OUT_LAST + f), shown = scale * activated(hidden);
            if (GIVES_FEATURES) put(extra + (long long)(begin + row) * HIDDEN + f, shown);
            put(v + row * HIDDEN + f, shown * last);
            put(v_new + row * HIDDEN + f, scale * slope(hidden) * last);
        }
        BARRIER;
        const int BACK_TASKS = (rows + ROW_TILE - 1) / ROW_TILE * COLUMNS * SLICES_READ_OUT_BACK;
        EACH_AFTER(row, rows, BACK_TASKS) {
            Wide sum = wide(0.0f);
            for (int f = 0; f < HIDDEN; f += WIDE) sum = sum + get(v + row * HIDDEN + f);
            float scale = SCALED ? weights[SCALES + numbers[begin + row]] : 1.0f;
            float energy = total(sum) + scale * shares[begin + row] * weights[READ_OUT_LAST + HIDDEN];
#if REPULSION
            float repelled = 0.0f;
            for (int k = starts[row]; k < starts[row + 1]; ++k) repelled += pairs[slots[k].pair].repulsion;
            energy += shares[begin + row] * repelled;
#endif
            average(energies + begin + row, energy, member);
            if (MEMBERS > 1) extra[(long long)(begin + row) * MEMBERS + member] = energy;
        }
        product<HIDDEN, F, SLICES_READ_OUT_BACK, HIDDEN>(v_new, 0, rows, weights + READ_OUT_BACK, work, ROWS);
        BARRIER;
        EACH(t, rows * COLUMNS) {
            int row = t / COLUMNS, f = WIDE * (t % COLUMNS);
            put(s + row * F + f, summed<F, SLICES_READ_OUT_BACK>(work, ROWS, row, f));
        }
        BARRIER;

        // from here on s and v hold gradients of the energy by what they held
        for (int layer = LAST; layer >= 0; --layer) {
            const float* w = weights + layer * LAYER_WEIGHTS;
            const float* const saved = own + layer * SAVED;
            const float* const mixed = saved + SAVED_MIXED;
            EACH(t, rows * COLUMNS) {
                int row = t / COLUMNS, f = WIDE * (t % COLUMNS), at = row * F + f;
                Wide inner = wide(0.0f), gate = wide(0.0f);
                for (int axis = 0; axis < 3; ++axis) {
                    int r = 3 * row + axis;
                    Wide b = get(mixed + r * 2 * F + F + f);
                    more(inner, get(mixed + r * 2 * F + f), b);
                    if (layer < LAST) more(gate, get(v + r * F + f), b);
                }
                put(x + at, get(s + at) * inner);
                if (layer < LAST) put(x + PLANE + at, gate);
            }
            BARRIER;
            if (layer < LAST)
                product<3 * F, F, SLICES_UPDATE_OUT_BACK, F>(s, PLANE, rows, w + UPDATE_OUT_BACK, work, ROWS);
            else
                product<2 * F, F, SLICES_LAST_OUT_BACK, F>(s, PLANE, rows, w + UPDATE_OUT_BACK, work, ROWS);
            BARRIER;
            EACH(t, rows * COLUMNS) {
                int row = t / COLUMNS, f = WIDE * (t % COLUMNS), at = row * F + f;
                Wide by_hidden = layer < LAST ? summed<F, SLICES_UPDATE_OUT_BACK>(work, ROWS, row, f)
                                              : summed<F, SLICES_LAST_OUT_BACK>(work, ROWS, row, f);
                put(x + 2 * PLANE + at, by_hidden * slope(get(saved + SAVED_UPDATE + at)));
            }
            BARRIER;
            product<F, 2 * F, SLICES_UPDATE_IN_BACK, F>(x + 2 * PLANE, 0, rows, w + UPDATE_IN_BACK, work, ROWS);
            BARRIER;
            EACH(t, rows * COLUMNS) {
                int row = t / COLUMNS, f = WIDE * (t % COLUMNS), at = row * F + f;
                Wide by_s = get(s + at), by_inner = by_s * get(saved + SAVED_PRODUCT + at), squared = wide(EPSILON);
                Wide a[3], b[3], gate = layer < LAST ? get(saved + SAVED_GATE + at) : wide(0.0f);
                for (int axis = 0; axis < 3; ++axis) {
                    int r = 3 * row + axis;
                    a[axis] = get(mixed + r * 2 * F + f);
                    b[axis] = get(mixed + r * 2 * F + F + f);
                    more(squared, a[axis], a[axis]);
                }
                Wide along = over(summed<2 * F, SLICES_UPDATE_IN_BACK>(work, ROWS, row, F + f), root(squared));
                put(s + at, by_s + summed<2 * F, SLICES_UPDATE_IN_BACK>(work, ROWS, row, f));
                for (int axis = 0; axis < 3; ++axis) {
                    int place_of = (3 * row + axis) * F + f;
                    Wide by_b = by_inner * a[axis];
                    if (layer < LAST) more(by_b, gate, get(v + place_of));
                    put(v_new + place_of, by_inner * b[axis] + along * a[axis]);
                    put(x + place_of, by_b);
                }
            }
            BARRIER;
            product<2 * F, F, SLICES_MIXING_BACK, F>(
                v_new, (int)(x - v_new), 3 * rows, w + MIXING_BACK, work, 3 * ROWS);
            BARRIER;
            EACH(t, 3 * rows * COLUMNS) {
                int row = t / COLUMNS, f = WIDE * (t % COLUMNS), at = row * F + f;
                Wide by_v = summed<F, SLICES_MIXING_BACK>(work, 3 * ROWS, row, f);
                put(v + at, layer < LAST ? get(v + at) + by_v : by_v);
            }
            BARRIER;
            const float *x_then = saved + SAVED_X, *v_then = saved + SAVED_V;
            if (BASIS_OF_EACH && layer < LAST) {
                radials(pair_count, pairs, w + CONSTANTS_OF_EACH, PAIRS, basis);
                BARRIER;
            }
            if (!CHUNK_ADJOINT) {
                if (layer > 0)
                    adjoints_row_by_row<false>(rows, starts, slots, pairs, basis, w + FILTERS, work, x_then, v_then, s,
                        v, x, v_new, lanes);
                else
                    adjoints_row_by_row<true>(rows, starts, slots, pairs, basis, w + FILTERS, work, x_then, v_then, s,
                        v, x, v_new, lanes);
                BARRIER;
            } else for (int feature = 0; feature < F; feature += CHUNK_ADJOINT) {
                filters<2>(basis, pair_count, w + FILTERS, feature, CHUNK_ADJOINT, layer > 0 ? 3 : 2, work);
                BARRIER;
                if (layer > 0) {
                    gather_gradients<false>(
                        slot_count, slots, pairs, work, feature, x_then, v_then, s, v, lanes);
                    gather_adjoints(slot_count * LANES, rows, starts, slots, pairs, work, feature, x_then, v_then,
                        s, v, x, v_new);
                } else
                    gather_gradients<true>(slot_count, slots, pairs, work, feature, x_then, v_then, s, v, lanes);
                BARRIER;
            }
            if (layer > 0) {
                product<3 * F, F, SLICES_MESSAGE_OUT_BACK, F>(x, PLANE, rows, w + MESSAGE_OUT_BACK, work, ROWS);
                BARRIER;
                EACH(t, rows * COLUMNS) {
                    int row = t / COLUMNS, f = WIDE * (t % COLUMNS), at = row * F + f;
                    Wide by_hidden = summed<F, SLICES_MESSAGE_OUT_BACK>(work, ROWS, row, f);
                    put(v + at, by_hidden * slope(get(saved + SAVED_HIDDEN + at)));
                }
                BARRIER;
                product<F, F, SLICES_MESSAGE_IN_BACK, F>(v, 0, rows, w + MESSAGE_IN_BACK, work, ROWS);
                BARRIER;
                EACH(t, rows * COLUMNS) {
                    int row = t / COLUMNS, f = WIDE * (t % COLUMNS), at = row * F + f;
                    put(s + at, get(s + at) + summed<F, SLICES_MESSAGE_IN_BACK>(work, ROWS, row, f));
                }
                BARRIER;
            }
            float* swapped = v;
            v = v_new;
            v_new = swapped;
        }

        // of each slot dE/d(displacement), from those by direction and by distance
        EACH(t, slot_count) {
            const Slot slot = slots[t];
            const Pair& pair = pairs[slot.pair];
            float by[4] = {0.0f, 0.0f, 0.0f, 0.0f};
            for (int lane = 0; lane < LANES; ++lane)
                for (int part = 0; part < 4; ++part) by[part] += lanes[4 * (t * LANES + lane) + part];
#if REPULSION
            by[3] += shares[begin + slot.here] * pair.repulsion_slope;
#endif
            float turned = 0.0f;
            for (int axis = 0; axis < 3; ++axis) turned += by[axis] * (slot.sign * pair.r[axis]);
            float along = (by[3] - turned * (pair.scale / pair.distance)) * pair.scale;
            for (int axis = 0; axis < 3; ++axis)
                work[3 * t + axis] = pair.scale * by[axis] + along * (slot.sign * pair.r[axis]);
        }
        BARRIER;
        EACH(t, rows * 12) {
            int row = t / 12, part = t % 12;
            float sum = 0.0f;
            for (int k = starts[row]; k < starts[row + 1]; ++k) {
                if (part < 3)
                    sum += work[3 * k + part] - work[3 * slots[k].back + part];
                else {
                    const Slot slot = slots[k];
                    sum += work[3 * k + (part - 3) / 3] * (slot.sign * pairs[slot.pair].r[(part - 3) % 3]);
                }
            }
            if (part >= 3) average(virials + 9 * (long long)(begin + row) + part - 3, sum, member);
            else if (MEMBERS == 1) forces[3 * (long long)(begin + row) + part] = sum;
            else x[3 * row + part] = sum;
        }
#if MEMBERS > 1
        BARRIER;
        EACH(row, rows) {  // Welford's sums
            float *const mean = forces + 3 * (long long)(begin + row), *const sum = spread + begin + row;
            float squares = member ? *sum : 0.0f;
            for (int axis = 0; axis < 3; ++axis) {
                float force = x[3 * row + axis], off = force - (member ? mean[axis] : force);
                average(mean + axis, force, member);
                squares += off * (force - mean[axis]);
            }
            *sum = member < MEMBERS - 1 ? squares : sqrtf(squares / (MEMBERS - 1));
        }
#endif
    }
}
"""

"""C++ of the sums over neighbours of a large group on a CPU, whose filters would leave the cache; see `source`."""

__all__ = ["ROW_BY_ROW"]

ROW_BY_ROW = r"""
// Of a group whose filters are more than a cache holds a thread computes them for a few slots at a time, and adds up
// what these give before it computes more. Then both slots of a pair have filters of their own, which takes twice the
// arithmetic; but nothing is written that is read from further than a thread's nearest cache. Sums have the order that
// they have where pairs have filters, and so the same bits.
enum { ROWS_AT_ONCE = 8 };

// What a thread has near: sums of a row, filters and their slopes of a tile of slots, and radial functions of these.
struct Near {
    float *sums, *filtered, *slopes, *radial;
};
enum { NEAR = (5 + 6 * PAIR_TILE) * F + (PAIR_TILE * BASIS_WIDTH + 15) / 16 * 16 };  // numbers

METHOD Near near_of(float* work)
{
    Near near;
    near.sums = work + THREAD * NEAR;
    near.filtered = near.sums + 5 * F;
    near.slopes = near.filtered + 3 * F * PAIR_TILE;
    near.radial = near.slopes + 3 * F * PAIR_TILE;
    return near;
}

// Filters of slots from `k` on, [slot][kind][F]; those at `end` or after it are others', and are not read.
template <int SETS>
METHOD void filters_of_slots(int k, int end, const Slot* slots, const float* basis, const float* weights, int kinds,
    const Near& near)
{
    for (int set = 0; set < SETS; ++set) {
        for (int p = 0; p < PAIR_TILE; ++p) {
            const float* from = basis + (set * PAIRS + slots[k + p < end ? k + p : end - 1].pair) * BASIS_WIDTH;
            for (int i = 0; i < BASIS_WIDTH; ++i) near.radial[p * BASIS_WIDTH + i] = from[i];
        }
        for (int kind = 0; kind < kinds; ++kind)
            for (int f = 0; f < F; f += WIDE)
                filter_tile(near.radial, weights + kind * F + f, (set ? near.slopes : near.filtered) + kind * F + f,
                    3 * F);
    }
}

// Goes through rows and their slots in order: begin() of a row, add(k, stop, offset) of slots whose filters are ready,
// those of slot k being `offset` behind the first of a tile, and end(row).
template <int SETS, typename Begin, typename Add, typename End>
PHASE void row_by_row(int rows, const int* starts, const Slot* slots, const float* basis, const float* weights,
    int kinds, const Near& near, Begin begin, Add add, End end)
{
    EACH(task, (rows + ROWS_AT_ONCE - 1) / ROWS_AT_ONCE) {
        int row = task * ROWS_AT_ONCE, after = row + ROWS_AT_ONCE < rows ? row + ROWS_AT_ONCE : rows;
        int first = starts[row], ready = first;
        for (; row < after; ++row) {
            begin();
            for (int k = starts[row], stop; k < starts[row + 1]; k = stop) {
                if (k == ready) {
                    filters_of_slots<SETS>(k, starts[after], slots, basis, weights, kinds, near);
                    first = k;
                    ready = k + PAIR_TILE;
                }
                stop = ready < starts[row + 1] ? ready : starts[row + 1];
                add(k, stop, (k - first) * 3 * F);
            }
            end(row);
        }
    }
}

template <bool FIRST>
PHASE void messages_row_by_row(int rows, const int* starts, const Slot* slots, const Pair* pairs, const float* basis,
    const float* weights, float* work, const float* x, const float* v, float* s, float* v_new)
{
    const Near near = near_of(work);
    Messages* const sums = (Messages*)near.sums;
    auto begin = [&]() {
        for (int f = 0; f < F; f += WIDE) sums[f / WIDE] = {wide(0.0f), {wide(0.0f), wide(0.0f), wide(0.0f)}};
    };
    auto add = [&](int k, int stop, int offset) {
        for (int f = 0; f < F; f += WIDE) {
            Messages sum = sums[f / WIDE];
            const float* w = near.filtered + offset + f;
            for (int i = k; i < stop; ++i, w += 3 * F)
                add_messages<FIRST>(sum, slots[i], pairs[slots[i].pair], w, F, x, v, f);
            sums[f / WIDE] = sum;
        }
    };
    auto end = [&](int row) {
        for (int f = 0; f < F; f += WIDE) receive<FIRST>(sums[f / WIDE], row, f, v, s, v_new);
    };
    row_by_row<1>(rows, starts, slots, basis, weights, FIRST ? 2 : 3, near, begin, add, end);
}

template <bool FIRST>
PHASE void adjoints_row_by_row(int rows, const int* starts, const Slot* slots, const Pair* pairs, const float* basis,
    const float* weights, float* work, const float* x, const float* v, const float* by_s, const float* by_v,
    float* by_x, float* by_v_before, float* lanes)
{
    const Near near = near_of(work);
    Adjoints* const sums = (Adjoints*)near.sums;
    const int ADJOINTS = FIRST ? 0 : F;  // what was sent at first is a table's, of which nobody wants a gradient
    auto begin = [&]() {
        for (int f = 0; f < ADJOINTS; f += WIDE)
            sums[f / WIDE] = {wide(0.0f), wide(0.0f), {wide(0.0f), wide(0.0f), wide(0.0f)}};
    };
    auto add = [&](int k, int stop, int offset) {
        for (int i = k, at = offset; i < stop; ++i, at += 3 * F)
            add_gradient<FIRST>(slots[i], pairs[slots[i].pair], near.filtered + at, near.slopes + at, 0, 0, F, x, v,
                by_s, by_v, lanes + 4 * i * LANES);
        for (int f = 0; f < ADJOINTS; f += WIDE) {
            Adjoints sum = sums[f / WIDE];
            const float* w = near.filtered + offset + f;
            for (int i = k; i < stop; ++i, w += 3 * F)
                add_adjoints(sum, slots[i], pairs[slots[i].pair], w, F, by_s, by_v, f);
            sums[f / WIDE] = sum;
        }
    };
    auto end = [&](int row) {
        for (int f = 0; f < ADJOINTS; f += WIDE) give_back(sums[f / WIDE], row, f, x, v, by_v, by_x, by_v_before);
    };
    row_by_row<2>(rows, starts, slots, basis, weights, FIRST ? 2 : 3, near, begin, add, end);
}
"""

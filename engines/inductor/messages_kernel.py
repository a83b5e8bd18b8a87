"""Kernels of Triton for what an interaction sums over neighbours, and for the adjoint of that.

What they compute is written in `painn_deploy.export.graph.messages`. A program has an atom and some of its features.
It goes through the atom's slots a tile at a time: filters are a product of the tile's radial functions with a weight
and stay in registers, neighbours' rows are gathered, and sums over slots stay in registers until the last tile. Sums
over features are partial, one for each program of an atom, and are added up after it. So every sum has one owner and
one order, and results are the same to the bit from call to call. Sums are in FP32 whatever the operands are.

What both kernels begin a tile with stands in both: with it in functions of its own, torch 2.11 refuses the program for
a GPU, which is not seen before it is compiled for one.
"""

import triton
import triton.language as tl

__all__ = ["adjoint_kernel", "messages_kernel"]


@triton.jit
def _operand(x, PRECISION: tl.constexpr):
    """What a product reads: a tensor core would drop the digits that TF32 has not, so they are rounded away before."""
    if PRECISION == "tf32" and x.dtype == tl.float32:
        x = ((x.to(tl.int32, bitcast=True) + 0x1000) & -0x2000).to(tl.float32, bitcast=True)
    return x


@triton.jit
def _filters(
    radial, weight_s, weight_d, weight_v, row, there, f, inside,
    COLUMNS: tl.constexpr, FEATURES: tl.constexpr, HAS_S: tl.constexpr, HAS_D: tl.constexpr, HAS_V: tl.constexpr,
    PRECISION: tl.constexpr, SLOTS: tl.constexpr, WIDTH: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Products of a tile's radial functions with up to three weights, [slots, features] each."""
    w_s = tl.zeros([SLOTS, WIDTH], tl.float32)
    w_d = tl.zeros([SLOTS, WIDTH], tl.float32)
    w_v = tl.zeros([SLOTS, WIDTH], tl.float32)
    for first in tl.static_range(0, COLUMNS if HAS_S or HAS_D or HAS_V else 0, DEPTH):
        k = first + tl.arange(0, DEPTH)
        some = k < COLUMNS
        phi = tl.load(radial + row[:, None] * COLUMNS + k[None, :], mask=there[:, None] & some[None, :], other=0.0)
        phi = _operand(phi, PRECISION)
        place, held = k[:, None] * FEATURES + f[None, :], some[:, None] & inside[None, :]
        if HAS_S:
            weight = _operand(tl.load(weight_s + place, mask=held, other=0.0), PRECISION)
            w_s = tl.dot(phi, weight, w_s, input_precision=PRECISION)
        if HAS_D:
            weight = _operand(tl.load(weight_d + place, mask=held, other=0.0), PRECISION)
            w_d = tl.dot(phi, weight, w_d, input_precision=PRECISION)
        if HAS_V:
            weight = _operand(tl.load(weight_v + place, mask=held, other=0.0), PRECISION)
            w_v = tl.dot(phi, weight, w_v, input_precision=PRECISION)
    return w_s, w_d, w_v


@triton.jit
def _finished(w, bias, f, inside, m, BIAS: tl.constexpr, MASKED: tl.constexpr):
    """A filter with its bias, times the mask."""
    if BIAS:
        w += tl.load(bias + f, mask=inside, other=0.0).to(tl.float32)[None, :]
    if MASKED:
        w *= m[:, None]
    return w


@triton.jit
def _rows(x, start, there, f, inside):
    """Rows that begin at these places, [slots, features], zero for a slot that is none."""
    held = there[:, None] & inside[None, :]
    return tl.load(x + start[:, None] + f[None, :], mask=held, other=0.0).to(tl.float32)


@triton.jit
def messages_kernel(
    radial, neighbours, directions, mask,
    weight_s, bias_s, x_s, sum_s, weight_d, bias_d, x_d, sum_d, weight_v, bias_v, x_v, sum_v,
    slots,
    COLUMNS: tl.constexpr, FEATURES: tl.constexpr,
    WIDTH_S: tl.constexpr, WIDTH_D: tl.constexpr, FIRST_S: tl.constexpr, FIRST_D: tl.constexpr,
    HAS_S: tl.constexpr, HAS_D: tl.constexpr, HAS_V: tl.constexpr, GATHERS_D: tl.constexpr,
    BIAS_S: tl.constexpr, BIAS_D: tl.constexpr, BIAS_V: tl.constexpr,
    MASKED_S: tl.constexpr, MASKED_D: tl.constexpr, MASKED_V: tl.constexpr,
    PRECISION: tl.constexpr, SLOTS: tl.constexpr, WIDTH: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Scalars Σ_k w x_j, dipoles Σ_k u ⊗ w x_j and vectors Σ_k w x_j of some features of an atom.

    What is absent may be any pointer. Shapes are those of `painn_deploy.engines.inductor.messages.messages`.

    Args:
        radial, neighbours, directions, mask: of slots.
        weight_s, weight_d, weight_v: of the filters of scalars, dipoles and vectors.
        bias_s, bias_d, bias_v: likewise.
        x_s, x_d, x_v: what is gathered.
        sum_s, sum_d, sum_v: results.
        slots: of an atom.
        COLUMNS, FEATURES: sizes of the weights.
        WIDTH_S, WIDTH_D, FIRST_S, FIRST_D: columns of x_s and x_d, and the first of those that are meant.
        HAS_S, HAS_D, HAS_V: which parts there are.
        GATHERS_D: whether dipoles have x.
        BIAS_S, BIAS_D, BIAS_V: which filters have a bias.
        MASKED_S, MASKED_D, MASKED_V: which filters are masked.
        PRECISION: of products of FP32, in Triton's words.
        SLOTS, WIDTH, DEPTH: slots, features and radial functions of a tile.
    """
    atom = tl.program_id(0).to(tl.int64)
    f = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    inside = f < FEATURES
    nothing = tl.zeros([SLOTS, WIDTH], tl.float32)
    s, d0, d1, d2, v0, v1, v2 = nothing, nothing, nothing, nothing, nothing, nothing, nothing
    for first in range(0, slots, SLOTS):
        slot = first + tl.arange(0, SLOTS)
        there = slot < slots
        row = atom * slots + slot
        j = tl.load(neighbours + row, mask=there, other=0).to(tl.int64)
        m = tl.load(mask + row, mask=there, other=0.0)
        w_s, w_d, w_v = _filters(
            radial, weight_s, weight_d, weight_v, row, there, f, inside,
            COLUMNS, FEATURES, HAS_S, HAS_D, HAS_V, PRECISION, SLOTS, WIDTH, DEPTH,
        )  # fmt: skip
        if HAS_S:
            s += _finished(w_s, bias_s, f, inside, m, BIAS_S, MASKED_S) * _rows(
                x_s, j * WIDTH_S + FIRST_S, there, f, inside
            )
        if HAS_D:
            w = _finished(w_d, bias_d, f, inside, m, BIAS_D, MASKED_D)
            if GATHERS_D:
                w *= _rows(x_d, j * WIDTH_D + FIRST_D, there, f, inside)
            d0 += tl.load(directions + row * 3, mask=there, other=0.0)[:, None] * w
            d1 += tl.load(directions + row * 3 + 1, mask=there, other=0.0)[:, None] * w
            d2 += tl.load(directions + row * 3 + 2, mask=there, other=0.0)[:, None] * w
        if HAS_V:
            w = _finished(w_v, bias_v, f, inside, m, BIAS_V, MASKED_V)
            v0 += w * _rows(x_v, 3 * j * FEATURES, there, f, inside)
            v1 += w * _rows(x_v, (3 * j + 1) * FEATURES, there, f, inside)
            v2 += w * _rows(x_v, (3 * j + 2) * FEATURES, there, f, inside)
    if HAS_S:
        tl.store(sum_s + atom * FEATURES + f, tl.sum(s, 0), mask=inside)
    if HAS_D:
        place = sum_d + atom * 3 * FEATURES + f
        tl.store(place, tl.sum(d0, 0), mask=inside)
        tl.store(place + FEATURES, tl.sum(d1, 0), mask=inside)
        tl.store(place + 2 * FEATURES, tl.sum(d2, 0), mask=inside)
    if HAS_V:
        place = sum_v + atom * 3 * FEATURES + f
        tl.store(place, tl.sum(v0, 0), mask=inside)
        tl.store(place + FEATURES, tl.sum(v1, 0), mask=inside)
        tl.store(place + 2 * FEATURES, tl.sum(v2, 0), mask=inside)


@triton.jit
def _own(x, start, f, inside):
    """A row of this atom, [1, features]."""
    return tl.load(x + start + f, mask=inside, other=0.0).to(tl.float32)[None, :]


@triton.jit
def adjoint_kernel(
    radial, slope, neighbours, directions, mask,
    weight_s, bias_s, x_s, own_s, g_s, by_x_s, weight_d, bias_d, x_d, own_d, g_d, by_x_d,
    weight_v, bias_v, x_v, own_v, g_v, by_x_v, by_distance, by_direction,
    atoms, slots,
    COLUMNS: tl.constexpr, FEATURES: tl.constexpr,
    WIDTH_S: tl.constexpr, WIDTH_D: tl.constexpr, FIRST_S: tl.constexpr, FIRST_D: tl.constexpr,
    HAS_S: tl.constexpr, HAS_D: tl.constexpr, HAS_V: tl.constexpr, GATHERS_D: tl.constexpr,
    GIVES_S: tl.constexpr, GIVES_D: tl.constexpr, GIVES_V: tl.constexpr, SAME_G: tl.constexpr,
    BIAS_S: tl.constexpr, BIAS_D: tl.constexpr, BIAS_V: tl.constexpr,
    MASKED_S: tl.constexpr, MASKED_D: tl.constexpr, MASKED_V: tl.constexpr,
    PRECISION: tl.constexpr, SLOTS: tl.constexpr, WIDTH: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Gradients by distances and directions, of some features each, and by what was gathered, for an atom.

    What is absent may be any pointer. Shapes are those of `painn_deploy.engines.inductor.messages.adjoint`.

    Args:
        radial, slope, neighbours, directions, mask: of slots.
        weight_s, weight_d, weight_v: of the filters of scalars, dipoles and vectors.
        bias_s, bias_d, bias_v: likewise.
        x_s, x_d, x_v: what was gathered.
        own_s, own_d, own_v: gradients by the sums, of which the atom's row is read.
        g_s, g_d, g_v: the same, of which neighbours' rows are read.
        by_x_s, by_x_d, by_x_v: results, by what was gathered.
        by_distance, by_direction: results of each program of an atom, [programs, atoms, slots] and with 3 behind.
        atoms, slots: of the matrix.
        COLUMNS, FEATURES: sizes of the weights.
        WIDTH_S, WIDTH_D, FIRST_S, FIRST_D: columns of x_s and x_d, and the first of those that are meant.
        HAS_S, HAS_D, HAS_V: which parts there are.
        GATHERS_D: whether dipoles have x.
        GIVES_S, GIVES_D, GIVES_V: which gradients by what was gathered are wanted.
        SAME_G: whether g_d and g_v are one.
        BIAS_S, BIAS_D, BIAS_V: which filters have a bias.
        MASKED_S, MASKED_D, MASKED_V: which filters are masked.
        PRECISION: of products of FP32, in Triton's words.
        SLOTS, WIDTH, DEPTH: slots, features and radial functions of a tile.
    """
    atom = tl.program_id(0).to(tl.int64)
    f = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    inside = f < FEATURES
    own, part = atom * FEATURES, tl.program_id(1).to(tl.int64) * atoms * slots
    nothing = tl.zeros([SLOTS, WIDTH], tl.float32)
    s, d, v0, v1, v2 = nothing, nothing, nothing, nothing, nothing
    if HAS_S:
        o_s = _own(own_s, own, f, inside)
    if HAS_D:
        o_d0 = _own(own_d, 3 * own, f, inside)
        o_d1 = _own(own_d, 3 * own + FEATURES, f, inside)
        o_d2 = _own(own_d, 3 * own + 2 * FEATURES, f, inside)
    if HAS_V:
        o_v0 = _own(own_v, 3 * own, f, inside)
        o_v1 = _own(own_v, 3 * own + FEATURES, f, inside)
        o_v2 = _own(own_v, 3 * own + 2 * FEATURES, f, inside)
    for first in range(0, slots, SLOTS):
        slot = first + tl.arange(0, SLOTS)
        there = slot < slots
        row = atom * slots + slot
        j = tl.load(neighbours + row, mask=there, other=0).to(tl.int64)
        m = tl.load(mask + row, mask=there, other=0.0)
        w_s, w_d, w_v = _filters(
            radial, weight_s, weight_d, weight_v, row, there, f, inside,
            COLUMNS, FEATURES, GIVES_S, HAS_D, GIVES_V, PRECISION, SLOTS, WIDTH, DEPTH,
        )  # fmt: skip
        a_s, a_d, a_v = _filters(
            slope, weight_s, weight_d, weight_v, row, there, f, inside,
            COLUMNS, FEATURES, HAS_S, HAS_D, HAS_V, PRECISION, SLOTS, WIDTH, DEPTH,
        )  # fmt: skip
        along = nothing
        if HAS_S:
            a = _finished(a_s, bias_s, f, inside, m, False, MASKED_S)
            along += a * o_s * _rows(x_s, j * WIDTH_S + FIRST_S, there, f, inside)
            if GIVES_S:
                s += _finished(w_s, bias_s, f, inside, m, BIAS_S, MASKED_S) * _rows(g_s, j * FEATURES, there, f, inside)
        if (HAS_D and GIVES_D) or (HAS_V and GIVES_V):
            g = g_v if GIVES_V else g_d
            g0 = _rows(g, 3 * j * FEATURES, there, f, inside)
            g1 = _rows(g, (3 * j + 1) * FEATURES, there, f, inside)
            g2 = _rows(g, (3 * j + 2) * FEATURES, there, f, inside)
        if HAS_V:
            a = _finished(a_v, bias_v, f, inside, m, False, MASKED_V)
            sent = o_v0 * _rows(x_v, 3 * j * FEATURES, there, f, inside)
            sent += o_v1 * _rows(x_v, (3 * j + 1) * FEATURES, there, f, inside)
            sent += o_v2 * _rows(x_v, (3 * j + 2) * FEATURES, there, f, inside)
            along += a * sent
            if GIVES_V:
                w = _finished(w_v, bias_v, f, inside, m, BIAS_V, MASKED_V)
                v0 += w * g0
                v1 += w * g1
                v2 += w * g2
        if HAS_D:
            u0 = tl.load(directions + row * 3, mask=there, other=0.0)[:, None]
            u1 = tl.load(directions + row * 3 + 1, mask=there, other=0.0)[:, None]
            u2 = tl.load(directions + row * 3 + 2, mask=there, other=0.0)[:, None]
            w = _finished(w_d, bias_d, f, inside, m, BIAS_D, MASKED_D)
            a = _finished(a_d, bias_d, f, inside, m, False, MASKED_D)
            if GIVES_D:  # the reverse edge points the other way: hence the minus
                if GIVES_V and not SAME_G:
                    g0 = _rows(g_d, 3 * j * FEATURES, there, f, inside)
                    g1 = _rows(g_d, (3 * j + 1) * FEATURES, there, f, inside)
                    g2 = _rows(g_d, (3 * j + 2) * FEATURES, there, f, inside)
                d -= w * (u0 * g0 + u1 * g1 + u2 * g2)
            if GATHERS_D:
                x = _rows(x_d, j * WIDTH_D + FIRST_D, there, f, inside)
                w *= x
                a *= x
            place = (part + row) * 3
            tl.store(by_direction + place, tl.sum(w * o_d0, 1), mask=there)
            tl.store(by_direction + place + 1, tl.sum(w * o_d1, 1), mask=there)
            tl.store(by_direction + place + 2, tl.sum(w * o_d2, 1), mask=there)
            along += a * (u0 * o_d0 + u1 * o_d1 + u2 * o_d2)
        tl.store(by_distance + part + row, tl.sum(along, 1), mask=there)
    if HAS_S and GIVES_S:
        tl.store(by_x_s + own + f, tl.sum(s, 0), mask=inside)
    if HAS_D and GIVES_D:
        tl.store(by_x_d + own + f, tl.sum(d, 0), mask=inside)
    if HAS_V and GIVES_V:
        tl.store(by_x_v + 3 * own + f, tl.sum(v0, 0), mask=inside)
        tl.store(by_x_v + 3 * own + FEATURES + f, tl.sum(v1, 0), mask=inside)
        tl.store(by_x_v + 3 * own + 2 * FEATURES + f, tl.sum(v2, 0), mask=inside)

"""What one program of a GPU does in squeezing and its backward pass, in Triton's language.

Each works on the rows of :class:`.Branches` in memory, all contiguous, and adds up in ``ACC``. A capital name is a constant it is compiled
for; ORIGIN and the like are the row of ``scale`` of a branch, -1 where it is not there. TAPS are the k k positions of a kernel, ROWS the
power of two above, as blocks must be, and BLOCKS how many of BLOCK there are.
"""

import triton
import triton.language as tl


@triton.jit
def add_up(
    kernel, product, origin, avg, freq, prior, point, depthwise, pointwise, scale,
    out_channels, inputs, per_group, stride_o, stride_t, stride_i,
    ORIGIN: tl.constexpr, AVG: tl.constexpr, FREQ: tl.constexpr, SEQUENCE: tl.constexpr, POINT: tl.constexpr, SEPARABLE: tl.constexpr,
    TAPS: tl.constexpr, ROWS: tl.constexpr, EXPANSION: tl.constexpr, BLOCK: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """One output channel's kernel, BLOCK input channels of it: the sum of all branches."""
    o = tl.program_id(0)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    t = tl.arange(0, ROWS)
    inside = i < inputs
    valid = (t < TAPS)[:, None] & inside[None, :]
    rows = (o * TAPS + t)[:, None] * inputs + i[None, :]
    row = o * inputs + i
    total = tl.zeros([ROWS, BLOCK], dtype=ACC)
    if SEQUENCE >= 0:
        s = tl.load(scale + SEQUENCE * out_channels + o).to(ACC)
        total += s * tl.load(product + rows, mask=valid, other=0).to(ACC)
    if ORIGIN >= 0:
        s = tl.load(scale + ORIGIN * out_channels + o).to(ACC)
        total += s * tl.load(origin + rows, mask=valid, other=0).to(ACC)
    if SEPARABLE >= 0:
        s = tl.load(scale + SEPARABLE * out_channels + o).to(ACC)
        for e in range(EXPANSION):
            p = s * tl.load(pointwise + (o * EXPANSION + e) * inputs + i, mask=inside, other=0).to(ACC)
            channels = ((o // per_group) * EXPANSION + e) * inputs + i
            d = tl.load(depthwise + channels[None, :] * TAPS + t[:, None], mask=valid, other=0).to(ACC)
            total += p[None, :] * d
    if FREQ >= 0:
        s = tl.load(scale + FREQ * out_channels + o).to(ACC)
        f = s * tl.load(freq + row, mask=inside, other=0).to(ACC)
        wave = tl.load(prior + o * TAPS + t, mask=t < TAPS, other=0).to(ACC)
        total += f[None, :] * wave[:, None]
    if AVG >= 0:
        s = tl.load(scale + AVG * out_channels + o).to(ACC) / TAPS
        total += (s * tl.load(avg + row, mask=inside, other=0).to(ACC))[None, :]
    if POINT >= 0:
        s = tl.load(scale + POINT * out_channels + o).to(ACC)
        p = s * tl.load(point + row, mask=inside, other=0).to(ACC)
        total += tl.where(t[:, None] == TAPS // 2, p[None, :], 0.0)
    where = o * stride_o + t[:, None] * stride_t + i[None, :] * stride_i
    tl.store(kernel + where, total.to(kernel.dtype.element_ty), mask=valid)


@triton.jit
def gradients(
    grad, origin, avg, freq, prior, point, depthwise, pointwise, scale,
    d_origin, d_avg, d_freq, d_point, d_pointwise, d_scale,
    out_channels, inputs, per_group,
    ORIGIN: tl.constexpr, AVG: tl.constexpr, FREQ: tl.constexpr, POINT: tl.constexpr, SEPARABLE: tl.constexpr,
    TAPS: tl.constexpr, ROWS: tl.constexpr, EXPANSION: tl.constexpr, BLOCKS: tl.constexpr, BLOCK: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """All gradients of one output channel that need no sum over others: each branch's but the sequence's and the depthwise weights'."""
    o = tl.program_id(0)
    t = tl.arange(0, ROWS)
    to_origin = tl.zeros([BLOCK], dtype=ACC)
    to_avg = tl.zeros([BLOCK], dtype=ACC)
    to_freq = tl.zeros([BLOCK], dtype=ACC)
    to_point = tl.zeros([BLOCK], dtype=ACC)
    to_separable = tl.zeros([BLOCK], dtype=ACC)
    for block in range(BLOCKS):
        i = block * BLOCK + tl.arange(0, BLOCK)
        inside = i < inputs
        valid = (t < TAPS)[:, None] & inside[None, :]
        rows = (o * TAPS + t)[:, None] * inputs + i[None, :]
        row = o * inputs + i
        g = tl.load(grad + rows, mask=valid, other=0).to(ACC)
        if ORIGIN >= 0:
            s = tl.load(scale + ORIGIN * out_channels + o).to(ACC)
            tl.store(d_origin + rows, (s * g).to(d_origin.dtype.element_ty), mask=valid)
            to_origin += tl.sum(g * tl.load(origin + rows, mask=valid, other=0).to(ACC), axis=0)
        if AVG >= 0:
            s = tl.load(scale + AVG * out_channels + o).to(ACC)
            pooled = tl.sum(g, axis=0) / TAPS
            tl.store(d_avg + row, (s * pooled).to(d_avg.dtype.element_ty), mask=inside)
            to_avg += pooled * tl.load(avg + row, mask=inside, other=0).to(ACC)
        if FREQ >= 0:
            s = tl.load(scale + FREQ * out_channels + o).to(ACC)
            wave = tl.load(prior + o * TAPS + t, mask=t < TAPS, other=0).to(ACC)
            filtered = tl.sum(g * wave[:, None], axis=0)
            tl.store(d_freq + row, (s * filtered).to(d_freq.dtype.element_ty), mask=inside)
            to_freq += filtered * tl.load(freq + row, mask=inside, other=0).to(ACC)
        if POINT >= 0:
            s = tl.load(scale + POINT * out_channels + o).to(ACC)
            centre = tl.sum(tl.where(t[:, None] == TAPS // 2, g, 0.0), axis=0)
            tl.store(d_point + row, (s * centre).to(d_point.dtype.element_ty), mask=inside)
            to_point += centre * tl.load(point + row, mask=inside, other=0).to(ACC)
        if SEPARABLE >= 0:
            s = tl.load(scale + SEPARABLE * out_channels + o).to(ACC)
            for e in range(EXPANSION):
                channels = ((o // per_group) * EXPANSION + e) * inputs + i
                d = tl.load(depthwise + channels[None, :] * TAPS + t[:, None], mask=valid, other=0).to(ACC)
                filtered = tl.sum(g * d, axis=0)
                where = (o * EXPANSION + e) * inputs + i
                tl.store(d_pointwise + where, (s * filtered).to(d_pointwise.dtype.element_ty), mask=inside)
                to_separable += filtered * tl.load(pointwise + where, mask=inside, other=0).to(ACC)
    if ORIGIN >= 0:
        tl.store(d_scale + ORIGIN * out_channels + o, tl.sum(to_origin, axis=0).to(d_scale.dtype.element_ty))
    if AVG >= 0:
        tl.store(d_scale + AVG * out_channels + o, tl.sum(to_avg, axis=0).to(d_scale.dtype.element_ty))
    if FREQ >= 0:
        tl.store(d_scale + FREQ * out_channels + o, tl.sum(to_freq, axis=0).to(d_scale.dtype.element_ty))
    if POINT >= 0:
        tl.store(d_scale + POINT * out_channels + o, tl.sum(to_point, axis=0).to(d_scale.dtype.element_ty))
    if SEPARABLE >= 0:
        tl.store(d_scale + SEPARABLE * out_channels + o, tl.sum(to_separable, axis=0).to(d_scale.dtype.element_ty))


@triton.jit
def sequence_gradients(product, weight, scaled, scale, d_scale, length, BLOCKS: tl.constexpr, BLOCK: tl.constexpr, ACC: tl.constexpr):
    """Of one output channel: the k x k convolution's gradient from its product with the scale left out, in place, and the scaled weight."""
    o = tl.program_id(0)
    s = tl.load(scale + o).to(ACC)
    to_scale = tl.zeros([BLOCK], dtype=ACC)
    for block in range(BLOCKS):
        each = block * BLOCK + tl.arange(0, BLOCK)
        inside = each < length
        p = tl.load(product + o * length + each, mask=inside, other=0).to(ACC)
        w = tl.load(weight + o * length + each, mask=inside, other=0).to(ACC)
        tl.store(product + o * length + each, (s * p).to(product.dtype.element_ty), mask=inside)
        tl.store(scaled + o * length + each, (s * w).to(scaled.dtype.element_ty), mask=inside)
        to_scale += p * w
    tl.store(d_scale + o, tl.sum(to_scale, axis=0).to(d_scale.dtype.element_ty))


@triton.jit
def depthwise_gradient(
    grad, pointwise, scale, partial, inputs, per_group, all_channels,
    TAPS: tl.constexpr, ROWS: tl.constexpr, EXPANSION: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The sum over CHUNK output channels of one group, for one expansion channel."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    channel, part = tl.program_id(1), tl.program_id(2)
    group, e = channel // EXPANSION, channel % EXPANSION
    t = tl.arange(0, ROWS)
    inside = i < inputs
    valid = (t < TAPS)[:, None] & inside[None, :]
    total = tl.zeros([ROWS, BLOCK], dtype=ACC)
    for c in range(CHUNK):
        in_group = part * CHUNK + c
        there = in_group < per_group
        o = group * per_group + in_group
        s = tl.load(scale + o, mask=there, other=0).to(ACC)
        p = s * tl.load(pointwise + (o * EXPANSION + e) * inputs + i, mask=inside & there, other=0).to(ACC)
        g = tl.load(grad + (o * TAPS + t)[:, None] * inputs + i[None, :], mask=valid & there, other=0).to(ACC)
        total += p[None, :] * g
    where = (part * all_channels + channel * inputs + i)[None, :] * TAPS + t[:, None]
    tl.store(partial + where, total.to(partial.dtype.element_ty), mask=valid)

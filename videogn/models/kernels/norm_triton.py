"""Triton kernels of group and batch normalisation with a residual sum and ReLU; forward.

Every kernel sees a tensor as (samples, places, channels) with three strides, in elements. With
``p`` places and ``c`` channels a tensor with its channels last has strides (p * c, c, 1), a
contiguous one (c * p, 1, p). Tiles have BLOCK_R places and BLOCK_C channels. The places of a sample
are cut into units of ``unit`` places. A program works on one block of channels, channel blocks
varying fastest, and on one of ``splits`` splits: of a kernel that reduces every ``splits``-th unit,
of one that maps a single unit. Those that reduce read a sample from its beginning to its end, and
those that map begin at the end, of which something may still be in the cache.

A group has ``per_group`` channels and ``group_size`` values. Its statistics are those of one sample
(group norm: ``stat_stride`` is the number of groups) or of all (batch norm: ``stat_stride`` is 0).

Programs only write what no other one writes and sums are taken in a fixed order, so that results
are the same bits in every run.

Reductions name ``tl.standard``'s combiners instead of calling ``tl.sum``: that one is itself
compiled or interpreted by what was set when Triton was imported, and the interpreter cannot call a
compiled one. For the same reason, and because the interpreter is slow at calls, there are no
helper functions. ReLU is written ``where(v < 0, 0, v)`` so that it passes NaN on, as torch's.
"""

# Triton has no types, and writes compile-time arguments in capitals.
# mypy: ignore-errors
# ruff: noqa: N803

import triton
import triton.language as tl


@triton.jit
def partial_stats(
    x_ptr,
    mean_ptr,
    m2_ptr,
    channels,
    places,
    per_group,
    splits,
    unit,
    channel_blocks,
    stride_n,
    stride_r,
    stride_c,
    shift_stride,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Mean, less the group's shift, and sum of squared deviations of each channel of a split.

    Welford's update per lane, one division per step and no traffic between threads; lanes are
    merged once, by Chan's formula. Values are first reduced by the first value of their group
    (the shift): at a mean of 1e4, a running mean in float32 would no longer follow steps of 1e-3.
    """
    pid = tl.program_id(0)
    block = pid % channel_blocks
    split = (pid // channel_blocks) % splits
    n = (pid // (channel_blocks * splits)).to(tl.int64)
    rows = tl.arange(0, BLOCK_R)
    lanes = tl.arange(0, BLOCK_C)
    c = block * BLOCK_C + lanes
    in_c = c < channels
    shift_offset = n * shift_stride + (c // per_group * per_group).to(tl.int64) * stride_c
    shift = tl.load(x_ptr + shift_offset, mask=in_c, other=0.0).to(tl.float32)[None, :]
    base = x_ptr + n * stride_n + (block * BLOCK_C).to(tl.int64) * stride_c
    tile = rows[:, None] * stride_r + lanes[None, :] * stride_c
    units = places // unit
    mine = (units - split + splits - 1) // splits
    mean = tl.full((BLOCK_R, BLOCK_C), 0.0, tl.float32)
    m2 = tl.full((BLOCK_R, BLOCK_C), 0.0, tl.float32)
    in_tile = in_c[None, :]
    for i in range(0, mine):
        r = (split + i * splits).to(tl.int64) * unit
        # Four loads under way before the first is used.
        x0 = tl.load(base + r * stride_r + tile, mask=in_tile, other=0.0)
        x1 = tl.load(base + (r + BLOCK_R) * stride_r + tile, mask=in_tile, other=0.0)
        x2 = tl.load(base + (r + 2 * BLOCK_R) * stride_r + tile, mask=in_tile, other=0.0)
        x3 = tl.load(base + (r + 3 * BLOCK_R) * stride_r + tile, mask=in_tile, other=0.0)
        d0 = x0.to(tl.float32) - shift
        delta = d0 - mean
        mean += delta * (1.0 / (4 * i + 1))
        m2 += delta * (d0 - mean)
        d1 = x1.to(tl.float32) - shift
        delta = d1 - mean
        mean += delta * (1.0 / (4 * i + 2))
        m2 += delta * (d1 - mean)
        d2 = x2.to(tl.float32) - shift
        delta = d2 - mean
        mean += delta * (1.0 / (4 * i + 3))
        m2 += delta * (d2 - mean)
        d3 = x3.to(tl.float32) - shift
        delta = d3 - mean
        mean += delta * (1.0 / (4 * i + 4))
        m2 += delta * (d3 - mean)
    # What is left behind the last whole unit.
    begin = units * unit
    end = tl.where(split == units % splits, places, begin)
    count = 4 * mine
    for r in range(begin, end, BLOCK_R):
        inside = (r + rows < end)[:, None] & in_tile
        at = base + begin.to(tl.int64) * stride_r + (r - begin) * stride_r
        d = tl.load(at + tile, mask=inside, other=0.0).to(tl.float32) - shift
        count += 1
        delta = tl.where(inside, d - mean, 0.0)
        mean += delta * (1.0 / count)
        m2 += delta * (d - mean)
    # How many values each lane has seen.
    more = tl.maximum((end - begin - rows + BLOCK_R - 1) // BLOCK_R, 0)
    seen = (4 * mine + more).to(tl.float32)[:, None]
    total = (mine * unit + end - begin).to(tl.float32)
    merged = tl.reduce(seen * mean, 0, tl.standard._sum_combine) / total
    apart = mean - merged[None, :]
    spread = tl.reduce(m2 + seen * apart * apart, 0, tl.standard._sum_combine)
    out = (n * splits + split) * channels + c
    tl.store(mean_ptr + out, merged, mask=in_c)
    tl.store(m2_ptr + out, spread, mask=in_c)


@triton.jit
def merge_stats(
    x_ptr,
    partial_mean_ptr,
    partial_m2_ptr,
    mean_ptr,
    rstd_ptr,
    channels,
    places,
    per_group,
    splits,
    unit,
    num_groups,
    parts,
    stride_c,
    shift_stride,
    group_size,
    eps,
    BLOCK: tl.constexpr,
):
    """Mean and 1 / sqrt(var + eps) of each group from ``parts`` times ``per_group`` partial ones.

    ``parts`` counts the splits of one sample or of all.
    """
    pid = tl.program_id(0)
    m = (pid // num_groups).to(tl.int64)
    g = pid % num_groups
    base = m * parts * channels + g * per_group
    lanes = tl.arange(0, BLOCK)
    length = parts * per_group
    units = places // unit
    rest = places - units * unit
    weighted = tl.full((BLOCK,), 0.0, tl.float32)
    for i in range(0, length, BLOCK):
        at = i + lanes
        inside = at < length
        q = at // per_group
        offset = base + q.to(tl.int64) * channels + (at - q * per_group)
        split = q % splits
        seen = (units - split + splits - 1) // splits * unit
        seen = (seen + tl.where(split == units % splits, rest, 0)).to(tl.float32)
        mean = tl.load(partial_mean_ptr + offset, mask=inside, other=0.0)
        weighted += seen * mean
    centre = tl.reduce(weighted, 0, tl.standard._sum_combine) / group_size
    spread = tl.full((BLOCK,), 0.0, tl.float32)
    for i in range(0, length, BLOCK):
        at = i + lanes
        inside = at < length
        q = at // per_group
        offset = base + q.to(tl.int64) * channels + (at - q * per_group)
        split = q % splits
        seen = (units - split + splits - 1) // splits * unit
        seen = (seen + tl.where(split == units % splits, rest, 0)).to(tl.float32)
        mean = tl.load(partial_mean_ptr + offset, mask=inside, other=0.0)
        m2 = tl.load(partial_m2_ptr + offset, mask=inside, other=0.0)
        apart = mean - centre
        spread += tl.where(inside, m2 + seen * apart * apart, 0.0)
    var = tl.reduce(spread, 0, tl.standard._sum_combine) / group_size
    shift_offset = m * shift_stride + (g * per_group).to(tl.int64) * stride_c
    shift = tl.load(x_ptr + shift_offset).to(tl.float32)
    tl.store(mean_ptr + pid, shift + centre)
    tl.store(rstd_ptr + pid, 1.0 / tl.sqrt(var + eps))


@triton.jit
def apply_forward(
    x_ptr,
    mean_ptr,
    rstd_ptr,
    weight_ptr,
    bias_ptr,
    residual_ptr,
    y_ptr,
    channels,
    places,
    per_group,
    splits,
    unit,
    channel_blocks,
    stride_n,
    stride_r,
    stride_c,
    stat_stride,
    HAS_RESIDUAL: tl.constexpr,
    RELU: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """y = relu((x - mean) * rstd * weight + bias + residual)."""
    pid = tl.num_programs(0) - 1 - tl.program_id(0)
    block = pid % channel_blocks
    split = (pid // channel_blocks) % splits
    n = (pid // (channel_blocks * splits)).to(tl.int64)
    rows = tl.arange(0, BLOCK_R)
    lanes = tl.arange(0, BLOCK_C)
    c = block * BLOCK_C + lanes
    in_c = c < channels
    stat = n * stat_stride + c // per_group
    mean = tl.load(mean_ptr + stat, mask=in_c, other=0.0)[None, :]
    rstd = tl.load(rstd_ptr + stat, mask=in_c, other=0.0)
    weight = tl.load(weight_ptr + c, mask=in_c, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + c, mask=in_c, other=0.0).to(tl.float32)[None, :]
    scale = (rstd * weight)[None, :]
    base = n * stride_n + (block * BLOCK_C).to(tl.int64) * stride_c
    tile = rows[:, None] * stride_r + lanes[None, :] * stride_c
    begin = split * unit
    begin64 = begin.to(tl.int64)
    end = tl.minimum(begin + unit, places)
    for r in range(begin, end, 2 * BLOCK_R):
        at = base + (begin64 + (r - begin)) * stride_r
        next_at = base + (begin64 + (r - begin + BLOCK_R)) * stride_r
        inside0 = (r + rows < end)[:, None] & in_c[None, :]
        inside1 = (r + BLOCK_R + rows < end)[:, None] & in_c[None, :]
        x0 = tl.load(x_ptr + at + tile, mask=inside0, other=0.0)
        x1 = tl.load(x_ptr + next_at + tile, mask=inside1, other=0.0)
        if HAS_RESIDUAL:
            s0 = tl.load(residual_ptr + at + tile, mask=inside0, other=0.0)
            s1 = tl.load(residual_ptr + next_at + tile, mask=inside1, other=0.0)
        v0 = (x0.to(tl.float32) - mean) * scale + bias
        v1 = (x1.to(tl.float32) - mean) * scale + bias
        if HAS_RESIDUAL:
            v0 += s0.to(tl.float32)
            v1 += s1.to(tl.float32)
        if RELU:
            v0 = tl.where(v0 < 0.0, 0.0, v0)
            v1 = tl.where(v1 < 0.0, 0.0, v1)
        tl.store(y_ptr + at + tile, v0.to(y_ptr.dtype.element_ty), mask=inside0)
        tl.store(y_ptr + next_at + tile, v1.to(y_ptr.dtype.element_ty), mask=inside1)

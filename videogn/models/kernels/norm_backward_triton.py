"""Triton kernels of the gradients of group and batch normalisation with a residual sum and ReLU.

Tensors, tiles, splits and statistics are those of the forward pass (``norm_triton.py``), and its
rules hold here: no atomics, sums in a fixed order, no helper functions.
"""

# Triton has no types, and writes compile-time arguments in capitals.
# mypy: ignore-errors
# ruff: noqa: N803

import triton
import triton.language as tl


@triton.jit
def partial_sums(
    x_ptr,
    grad_ptr,
    y_ptr,
    masked_ptr,
    mean_ptr,
    rstd_ptr,
    weight_ptr,
    bias_ptr,
    sum_ptr,
    product_ptr,
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
    MASK: tl.constexpr,
    WRITE_MASKED: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Sums of dy and of dy * xhat of each channel of a split, dy = the gradient behind ReLU.

    MASK says where ReLU let through: 0 everywhere, 1 where the output computed again from x is
    positive, 2 where y is. With WRITE_MASKED dy is written: the gradient of the residual.
    """
    pid = tl.program_id(0)
    block = pid % channel_blocks
    split = (pid // channel_blocks) % splits
    n = (pid // (channel_blocks * splits)).to(tl.int64)
    rows = tl.arange(0, BLOCK_R)
    lanes = tl.arange(0, BLOCK_C)
    c = block * BLOCK_C + lanes
    in_c = c < channels
    stat = n * stat_stride + c // per_group
    mean = tl.load(mean_ptr + stat, mask=in_c, other=0.0)[None, :]
    rstd = tl.load(rstd_ptr + stat, mask=in_c, other=0.0)[None, :]
    if MASK == 1:
        weight = tl.load(weight_ptr + c, mask=in_c, other=0.0).to(tl.float32)[None, :]
        bias = tl.load(bias_ptr + c, mask=in_c, other=0.0).to(tl.float32)[None, :]
        scale = rstd * weight
    base = n * stride_n + (block * BLOCK_C).to(tl.int64) * stride_c
    tile = rows[:, None] * stride_r + lanes[None, :] * stride_c
    split64 = split.to(tl.int64)
    sums = tl.full((BLOCK_R, BLOCK_C), 0.0, tl.float32)
    products = tl.full((BLOCK_R, BLOCK_C), 0.0, tl.float32)
    for i in range(split, (places + unit - 1) // unit, splits):
        r = i * unit
        r64 = (split64 + (i - split)) * unit
        at = base + r64 * stride_r
        next_at = base + (r64 + BLOCK_R) * stride_r
        inside0 = (r + rows < places)[:, None] & in_c[None, :]
        inside1 = (r + BLOCK_R + rows < places)[:, None] & in_c[None, :]
        # Values outside have a gradient of 0, which adds nothing.
        g0 = tl.load(grad_ptr + at + tile, mask=inside0, other=0.0)
        g1 = tl.load(grad_ptr + next_at + tile, mask=inside1, other=0.0)
        x0 = tl.load(x_ptr + at + tile, mask=inside0, other=0.0)
        x1 = tl.load(x_ptr + next_at + tile, mask=inside1, other=0.0)
        if MASK == 2:
            y0 = tl.load(y_ptr + at + tile, mask=inside0, other=0.0).to(tl.float32)
            y1 = tl.load(y_ptr + next_at + tile, mask=inside1, other=0.0).to(tl.float32)
        d0 = g0.to(tl.float32)
        d1 = g1.to(tl.float32)
        c0 = x0.to(tl.float32) - mean
        c1 = x1.to(tl.float32) - mean
        if MASK == 1:
            y0 = c0 * scale + bias
            y1 = c1 * scale + bias
        if MASK != 0:
            d0 = tl.where(y0 <= 0.0, 0.0, d0)
            d1 = tl.where(y1 <= 0.0, 0.0, d1)
        if WRITE_MASKED:
            element = masked_ptr.dtype.element_ty
            tl.store(masked_ptr + at + tile, d0.to(element), mask=inside0)
            tl.store(masked_ptr + next_at + tile, d1.to(element), mask=inside1)
        sums += d0
        products += d0 * (c0 * rstd)
        sums += d1
        products += d1 * (c1 * rstd)
    out = (n * splits + split) * channels + c
    tl.store(sum_ptr + out, tl.reduce(sums, 0, tl.standard._sum_combine), mask=in_c)
    tl.store(product_ptr + out, tl.reduce(products, 0, tl.standard._sum_combine), mask=in_c)


@triton.jit
def merge_sums(
    sum_ptr,
    product_ptr,
    weight_ptr,
    first_ptr,
    second_ptr,
    weight_grad_ptr,
    bias_grad_ptr,
    channels,
    per_group,
    num_groups,
    parts,
    num_stats,
    all_parts,
    group_size,
    BLOCK: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Merges the sums of ``partial_sums``.

    The first ``num_stats`` programs: one group's means of weight * dy and of weight * dy * xhat.
    The other programs: the gradients of BLOCK_C weights and biases, sums over ``all_parts``.
    """
    pid = tl.program_id(0)
    if pid < num_stats:
        m = (pid // num_groups).to(tl.int64)
        g = pid % num_groups
        base = m * parts * channels + g * per_group
        lanes = tl.arange(0, BLOCK)
        length = parts * per_group
        first = tl.full((BLOCK,), 0.0, tl.float32)
        second = tl.full((BLOCK,), 0.0, tl.float32)
        for i in range(0, length, BLOCK):
            at = i + lanes
            inside = at < length
            q = at // per_group
            j = at - q * per_group
            offset = base + q.to(tl.int64) * channels + j
            weight = tl.load(weight_ptr + g * per_group + j, mask=inside, other=0.0).to(tl.float32)
            first += weight * tl.load(sum_ptr + offset, mask=inside, other=0.0)
            second += weight * tl.load(product_ptr + offset, mask=inside, other=0.0)
        tl.store(first_ptr + pid, tl.reduce(first, 0, tl.standard._sum_combine) / group_size)
        tl.store(second_ptr + pid, tl.reduce(second, 0, tl.standard._sum_combine) / group_size)
    else:
        c = (pid - num_stats) * BLOCK_C + tl.arange(0, BLOCK_C)
        in_c = c < channels
        parts_at = tl.arange(0, BLOCK_Q)
        sums = tl.full((BLOCK_Q, BLOCK_C), 0.0, tl.float32)
        products = tl.full((BLOCK_Q, BLOCK_C), 0.0, tl.float32)
        for i in range(0, all_parts, BLOCK_Q):
            q = i + parts_at
            inside = (q < all_parts)[:, None] & in_c[None, :]
            offset = q.to(tl.int64)[:, None] * channels + c[None, :]
            sums += tl.load(sum_ptr + offset, mask=inside, other=0.0)
            products += tl.load(product_ptr + offset, mask=inside, other=0.0)
        bias_grad = tl.reduce(sums, 0, tl.standard._sum_combine)
        weight_grad = tl.reduce(products, 0, tl.standard._sum_combine)
        tl.store(bias_grad_ptr + c, bias_grad.to(bias_grad_ptr.dtype.element_ty), mask=in_c)
        tl.store(weight_grad_ptr + c, weight_grad.to(weight_grad_ptr.dtype.element_ty), mask=in_c)


@triton.jit
def apply_backward(
    x_ptr,
    grad_ptr,
    y_ptr,
    mean_ptr,
    rstd_ptr,
    weight_ptr,
    bias_ptr,
    first_ptr,
    second_ptr,
    grad_x_ptr,
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
    MASK: tl.constexpr,
    FIXED: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """dx = rstd * (weight * dy - first - xhat * second); with FIXED statistics rstd * weight * dy.

    MASK as in ``partial_sums``; it is 0 where that kernel has written dy.
    """
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
    rstd = tl.load(rstd_ptr + stat, mask=in_c, other=0.0)[None, :]
    scale = tl.load(weight_ptr + c, mask=in_c, other=0.0).to(tl.float32)[None, :] * rstd
    if MASK == 1:
        bias = tl.load(bias_ptr + c, mask=in_c, other=0.0).to(tl.float32)[None, :]
    if not FIXED:
        # dx = scale * dy - offset - (x - mean) * slope
        offset = tl.load(first_ptr + stat, mask=in_c, other=0.0)[None, :] * rstd
        slope = tl.load(second_ptr + stat, mask=in_c, other=0.0)[None, :] * rstd * rstd
    base = n * stride_n + (block * BLOCK_C).to(tl.int64) * stride_c
    tile = rows[:, None] * stride_r + lanes[None, :] * stride_c
    begin = split * unit
    begin64 = begin.to(tl.int64)
    end = tl.minimum(begin + unit, places)
    element = grad_x_ptr.dtype.element_ty
    for r in range(begin, end, 2 * BLOCK_R):
        at = base + (begin64 + (r - begin)) * stride_r
        next_at = base + (begin64 + (r - begin + BLOCK_R)) * stride_r
        inside0 = (r + rows < end)[:, None] & in_c[None, :]
        inside1 = (r + BLOCK_R + rows < end)[:, None] & in_c[None, :]
        g0 = tl.load(grad_ptr + at + tile, mask=inside0, other=0.0)
        g1 = tl.load(grad_ptr + next_at + tile, mask=inside1, other=0.0)
        if MASK == 2:
            y0 = tl.load(y_ptr + at + tile, mask=inside0, other=0.0).to(tl.float32)
            y1 = tl.load(y_ptr + next_at + tile, mask=inside1, other=0.0).to(tl.float32)
        d0 = g0.to(tl.float32)
        d1 = g1.to(tl.float32)
        if MASK == 1 or not FIXED:
            x0 = tl.load(x_ptr + at + tile, mask=inside0, other=0.0)
            x1 = tl.load(x_ptr + next_at + tile, mask=inside1, other=0.0)
            c0 = x0.to(tl.float32) - mean
            c1 = x1.to(tl.float32) - mean
        if MASK == 1:
            y0 = c0 * scale + bias
            y1 = c1 * scale + bias
        if MASK != 0:
            d0 = tl.where(y0 <= 0.0, 0.0, d0)
            d1 = tl.where(y1 <= 0.0, 0.0, d1)
        d0 *= scale
        d1 *= scale
        if not FIXED:
            d0 = d0 - offset - c0 * slope
            d1 = d1 - offset - c1 * slope
        tl.store(grad_x_ptr + at + tile, d0.to(element), mask=inside0)
        tl.store(grad_x_ptr + next_at + tile, d1.to(element), mask=inside1)

"""Triton kernels of max pooling whose winners are kept as one byte each.

A tile is ROWS x COLUMNS elements. Columns run along what lies next to each other in memory: the
channels of a channels-last tensor, else the positions of one image. Rows are the rest, so that
only rows need 64-bit offsets and most divisions.
"""
# Triton has no types, and the arguments of its kernels are not Python values.
# ruff: noqa: N803
# mypy: disable-error-code="import-untyped, untyped-decorator, no-untyped-def"

import triton
import triton.language as tl


@triton.jit
def places(
    size_c,
    size_t,
    size_h,
    size_w,
    num_rows,
    CHANNELS_LAST: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """(n, c, t, h, w) of each element of this program's tile, and which of them exist."""
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[:, None]
    column = (tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS))[None, :]
    if CHANNELS_LAST:
        exists = (row < num_rows) & (column < size_c)
        w = row % size_w
        h = row // size_w % size_h
        t = row // (size_w * size_h) % size_t
        n = row // (size_w * size_h * size_t)
        c = column
    else:
        exists = (row < num_rows) & (column < size_h * size_w)
        w = column % size_w
        h = column // size_w
        t = row % size_t
        c = row // size_t % size_c
        n = row // (size_t * size_c)
    return n, c, t, h, w, exists


@triton.jit
def forward_kernel(
    x,
    y,
    codes,
    size_c,
    in_t,
    in_h,
    in_w,
    out_t,
    out_h,
    out_w,
    num_rows,
    x_n,
    x_c,
    x_t,
    x_h,
    x_w,
    y_n,
    y_c,
    y_t,
    y_h,
    y_w,
    KERNEL_T: tl.constexpr,
    KERNEL_H: tl.constexpr,
    KERNEL_W: tl.constexpr,
    STRIDE_T: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    PAD_T: tl.constexpr,
    PAD_H: tl.constexpr,
    PAD_W: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Maximum of each window and the number of its first winner, counted along (T, H, W).

    As torch's: of NaNs the last one wins, and of nothing but -inf the first.
    """
    n, c, t, h, w, exists = places(
        size_c, out_t, out_h, out_w, num_rows, CHANNELS_LAST, ROWS, COLUMNS
    )
    first_t, first_h, first_w = t * STRIDE_T - PAD_T, h * STRIDE_H - PAD_H, w * STRIDE_W - PAD_W
    x_at = x + n.to(tl.int64) * x_n + c.to(tl.int64) * x_c
    x_at += first_t.to(tl.int64) * x_t + first_h.to(tl.int64) * x_h + first_w.to(tl.int64) * x_w
    best = tl.full((ROWS, COLUMNS), float("-inf"), tl.float32)
    code = tl.full((ROWS, COLUMNS), -1, tl.int32)
    for kt in tl.static_range(KERNEL_T):
        for kh in tl.static_range(KERNEL_H):
            for kw in tl.static_range(KERNEL_W):
                # Only where there is padding can a window reach over an edge.
                inside = exists
                if PAD_T > 0:
                    inside = inside & (first_t + kt >= 0) & (first_t + kt < in_t)
                if PAD_H > 0:
                    inside = inside & (first_h + kh >= 0) & (first_h + kh < in_h)
                if PAD_W > 0:
                    inside = inside & (first_w + kw >= 0) & (first_w + kw < in_w)
                offset = kt * x_t + kh * x_h + kw * x_w
                value = tl.load(x_at + offset, mask=inside, other=float("-inf")).to(tl.float32)
                wins = inside & ((value > best) | (value != value) | (code < 0))
                best = tl.where(wins, value, best)
                code = tl.where(wins, (kt * KERNEL_H + kh) * KERNEL_W + kw, code)
    y_at = n.to(tl.int64) * y_n + c.to(tl.int64) * y_c
    y_at += t.to(tl.int64) * y_t + h.to(tl.int64) * y_h + w.to(tl.int64) * y_w
    tl.store(y + y_at, best.to(y.dtype.element_ty), mask=exists)
    tl.store(codes + y_at, code.to(tl.uint8), mask=exists)


@triton.jit
def backward_kernel(
    grad,
    codes,
    grad_x,
    size_c,
    in_t,
    in_h,
    in_w,
    out_t,
    out_h,
    out_w,
    num_rows,
    g_n,
    g_c,
    g_t,
    g_h,
    g_w,
    k_n,
    k_c,
    k_t,
    k_h,
    k_w,
    x_n,
    x_c,
    x_t,
    x_h,
    x_w,
    KERNEL_T: tl.constexpr,
    KERNEL_H: tl.constexpr,
    KERNEL_W: tl.constexpr,
    STRIDE_T: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    PAD_T: tl.constexpr,
    PAD_H: tl.constexpr,
    PAD_W: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Gradient of each input element: the sum over the windows it won, in one fixed order.

    Along an axis the windows that cover place p begin at those of (p + padding) // stride,
    one less, …: at most ceil(kernel / stride) of them.
    """
    n, c, t, h, w, exists = places(size_c, in_t, in_h, in_w, num_rows, CHANNELS_LAST, ROWS, COLUMNS)
    g_base = n.to(tl.int64) * g_n + c.to(tl.int64) * g_c
    k_base = n.to(tl.int64) * k_n + c.to(tl.int64) * k_c
    total = tl.full((ROWS, COLUMNS), 0.0, tl.float32)
    for it in tl.static_range((KERNEL_T + STRIDE_T - 1) // STRIDE_T):
        window_t = (t + PAD_T) // STRIDE_T - it
        kt = t + PAD_T - window_t * STRIDE_T
        covers_t = exists & (window_t >= 0) & (window_t < out_t) & (kt < KERNEL_T)
        for ih in tl.static_range((KERNEL_H + STRIDE_H - 1) // STRIDE_H):
            window_h = (h + PAD_H) // STRIDE_H - ih
            kh = h + PAD_H - window_h * STRIDE_H
            covers_h = covers_t & (window_h >= 0) & (window_h < out_h) & (kh < KERNEL_H)
            for iw in tl.static_range((KERNEL_W + STRIDE_W - 1) // STRIDE_W):
                window_w = (w + PAD_W) // STRIDE_W - iw
                kw = w + PAD_W - window_w * STRIDE_W
                covers = covers_h & (window_w >= 0) & (window_w < out_w) & (kw < KERNEL_W)
                place_t = window_t.to(tl.int64)
                place_h = window_h.to(tl.int64)
                place_w = window_w.to(tl.int64)
                k_at = k_base + place_t * k_t + place_h * k_h + place_w * k_w
                g_at = g_base + place_t * g_t + place_h * g_h + place_w * g_w
                code = tl.load(codes + k_at, mask=covers, other=0).to(tl.int32)
                value = tl.load(grad + g_at, mask=covers, other=0.0).to(tl.float32)
                wins = covers & (code == (kt * KERNEL_H + kh) * KERNEL_W + kw)
                total += tl.where(wins, value, 0.0)
    x_at = n.to(tl.int64) * x_n + c.to(tl.int64) * x_c
    x_at += t.to(tl.int64) * x_t + h.to(tl.int64) * x_h + w.to(tl.int64) * x_w
    tl.store(grad_x + x_at, total.to(grad_x.dtype.element_ty), mask=exists)

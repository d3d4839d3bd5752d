"""Triton kernel that stacks time steps and places of a video as channels."""

# Triton has no types, and writes compile-time arguments in capitals.
# mypy: ignore-errors
# ruff: noqa: N803

import triton
import triton.language as tl


@triton.jit
def stack_kernel(
    video_ptr,
    images_ptr,
    frames,
    height,
    width,
    out_frames,
    out_height,
    out_width,
    stride_n,
    stride_t,
    stride_h,
    stride_w,
    stride_c,
    step,
    early,
    top,
    left,
    COLOURS: tl.constexpr,
    FOLD: tl.constexpr,
    STEPS: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Row ``y`` of an image (N T', H', W', CHANNELS), BLOCK_W places of it.

    Channel ((k FOLD + dy) FOLD + dx) COLOURS + c of place (t, y, x) is colour c of the video's
    frame t step + k - early at (y FOLD + dy - top, x FOLD + dx - left), and 0 outside of it.
    """
    row = tl.program_id(0).to(tl.int64)
    y = row % out_height
    t = row // out_height % out_frames
    n = row // out_height // out_frames
    x = tl.program_id(1) * BLOCK_W + tl.arange(0, BLOCK_W)
    channel = tl.arange(0, BLOCK_C)
    place = channel // COLOURS
    frame = t * step + place // (FOLD * FOLD) - early
    line = y * FOLD + place // FOLD % FOLD - top
    column = (x * FOLD - left)[:, None] + (place % FOLD)[None, :]
    inside = (frame >= 0) & (frame < frames) & (line >= 0) & (line < height)
    inside &= channel < STEPS * FOLD * FOLD * COLOURS
    inside = inside[None, :] & (column >= 0) & (column < width)
    of_channel = frame * stride_t + line * stride_h + channel % COLOURS * stride_c
    at = n * stride_n + of_channel[None, :] + column * stride_w
    values = tl.load(video_ptr + at, mask=inside, other=0.0)
    to = (row * out_width + x)[:, None] * CHANNELS + channel[None, :]
    tl.store(images_ptr + to, values, mask=(x < out_width)[:, None] & (channel < CHANNELS)[None, :])

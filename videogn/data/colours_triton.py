"""The kernel of :mod:`videogn.data.colours`. Importing this imports Triton."""

# Triton's decorators and arguments have no types that mypy would know.
# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call, import-untyped"

import triton
import triton.language as tl


@triton.jit
def _sampled(plane, rows, columns, y, x, step_y, step_x, mask):
    """A plane's value at (y, x) of its scaled image, bilinear with half-pixel centres, float32."""
    at_y = tl.maximum((y.to(tl.float32) + 0.5) * step_y - 0.5, 0.0)
    at_x = tl.maximum((x.to(tl.float32) + 0.5) * step_x - 0.5, 0.0)
    top = tl.minimum(at_y.to(tl.int32), rows - 1)
    left = tl.minimum(at_x.to(tl.int32), columns - 1)
    below = tl.minimum(top + 1, rows - 1)
    right = tl.minimum(left + 1, columns - 1)
    down, over = at_y - top.to(tl.float32), at_x - left.to(tl.float32)
    first = tl.load(plane + top * columns + left, mask=mask, other=0).to(tl.float32)
    second = tl.load(plane + top * columns + right, mask=mask, other=0).to(tl.float32)
    third = tl.load(plane + below * columns + left, mask=mask, other=0).to(tl.float32)
    fourth = tl.load(plane + below * columns + right, mask=mask, other=0).to(tl.float32)
    upper = first * (1.0 - over) + second * over
    lower = third * (1.0 - over) + fourth * over
    return upper * (1.0 - down) + lower * down


@triton.jit
def _level(value):
    """The nearest of 0 … 255, ties to even, uint8."""
    value = tl.minimum(tl.maximum(value, 0.0), 255.0)
    # Beside 1.5 x 2^23 a float32 has no room for a fraction.
    return ((value + 12582912.0) - 12582912.0).to(tl.uint8)


NUMBERS = [
    *("frame_bytes", "height", "width", "chroma_height", "chroma_width"),
    *("out_height", "out_width", "top", "left"),
]
"""Every clip has others: for single bytes nothing is gained by a kernel for each of their kinds."""


@triton.jit(do_not_specialize=NUMBERS)
def finish_kernel(
    samples,
    images,
    frame_bytes,
    height,
    width,
    chroma_height,
    chroma_width,
    out_height,
    out_width,
    top,
    left,
    luma_step_y,
    luma_step_x,
    chroma_step_y,
    chroma_step_x,
    luma_offset,
    luma_gain,
    red_gain,
    blue_gain,
    green_of_red,
    green_of_blue,
    chroma_rows: tl.constexpr,
    chroma_columns: tl.constexpr,
    mirror: tl.constexpr,
    block: tl.constexpr,
):
    """Planar frames, each (frame_bytes,) uint8, to images (U, out_height, out_width, 3) uint8.

    A program makes block pixels of one frame: axis 0 counts blocks, axis 1 frames.
    """
    frame = tl.program_id(1).to(tl.int64)
    place = tl.program_id(0) * block + tl.arange(0, block)
    mask = place < out_height * out_width
    row = place // out_width
    column = place - row * out_width
    y = row + top
    x = column + left
    if mirror:
        x = out_width - 1 - column + left
    luma_plane = samples + frame * frame_bytes
    blue_plane = luma_plane + height * width
    red_plane = blue_plane + chroma_height * chroma_width
    luma = _sampled(luma_plane, height, width, y, x, luma_step_y, luma_step_x, mask)
    # Every luma sample takes the chroma sample it shares.
    y, x = y // chroma_rows, x // chroma_columns
    blue = _sampled(
        blue_plane, chroma_height, chroma_width, y, x, chroma_step_y, chroma_step_x, mask
    )
    red = _sampled(red_plane, chroma_height, chroma_width, y, x, chroma_step_y, chroma_step_x, mask)
    luma = (luma - luma_offset) * luma_gain
    blue = (blue - 128.0) * blue_gain
    red = (red - 128.0) * red_gain
    green = blue * green_of_blue + red * green_of_red
    target = images + (frame * out_height * out_width + place) * 3
    tl.store(target, _level(luma + red), mask=mask)
    tl.store(target + 1, _level(luma + green), mask=mask)
    tl.store(target + 2, _level(luma + blue), mask=mask)


@triton.jit(do_not_specialize=["pixels"])
def normalize_kernel(
    clips,
    floats,
    pixels,
    from_colour,
    from_pixel,
    to_colour,
    to_pixel,
    red_scale,
    green_scale,
    blue_scale,
    red_shift,
    green_shift,
    blue_shift,
    block: tl.constexpr,
):
    """Clips uint8 of three colours and ``pixels`` samples of each, scaled and shifted by colour.

    The strides tell how colours and samples of a clip lie, before and after. A program makes
    ``block`` samples of one clip: axis 0 counts blocks, axis 1 clips.
    """
    first = tl.program_id(1).to(tl.int64) * pixels * 3
    place = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    mask = place < pixels
    source = clips + first + place * from_pixel
    target = floats + first + place * to_pixel
    kind = floats.dtype.element_ty
    red = tl.load(source, mask=mask, other=0).to(tl.float32)
    green = tl.load(source + from_colour, mask=mask, other=0).to(tl.float32)
    blue = tl.load(source + 2 * from_colour, mask=mask, other=0).to(tl.float32)
    tl.store(target, (red * red_scale + red_shift).to(kind), mask=mask)
    tl.store(target + to_colour, (green * green_scale + green_shift).to(kind), mask=mask)
    tl.store(target + 2 * to_colour, (blue * blue_scale + blue_shift).to(kind), mask=mask)

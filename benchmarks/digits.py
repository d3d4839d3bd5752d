"""Write scikit-learn's handwritten digits as class folders of PNG files, for small pre-trainings.

1,797 real images of 8 x 8 pixels and 16 shades (UCI, "Optical Recognition of Handwritten Digits").
They are in scikit-learn's package: pip install scikit-learn. The last 360 are for validation.
"""

import argparse
from pathlib import Path

import cv2
import numpy as np

NUM_VAL = 360
SIDE = 40


def main() -> None:
    """Write OUT/train and OUT/val."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, metavar="OUT")
    out = parser.parse_args().out
    from sklearn.datasets import load_digits

    digits = load_digits()
    first_val = len(digits.images) - NUM_VAL
    for number, (image, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        shades = np.rint(image * (255 / 16)).astype(np.uint8)
        large = cv2.resize(shades, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
        split = "train" if number < first_val else "val"
        path = out / split / str(label) / f"{number:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        if not cv2.imwrite(str(path), large):
            raise OSError(f"{path}: cannot be written")
    print(f"wrote {first_val} training and {NUM_VAL} validation images to {out}")


if __name__ == "__main__":
    main()

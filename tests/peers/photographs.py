# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""Folders of real photographs, cropped and encoded afresh from those that Python packages ship.

    python photographs.py FOLDER [--count N] [--size HxW] [--seed N]

writes a folder of JPEGs in two classes, for benchmarks.
"""

import argparse
from pathlib import Path

import numpy as np
import skimage.data
import sklearn.datasets
from PIL import Image


def photographs():
    """Whole photographs, (height, width, 3) of uint8."""
    own = ("astronaut", "chelsea", "coffee", "rocket", "retina", "hubble_deep_field")
    found = [getattr(skimage.data, name)() for name in own]
    return found + list(sklearn.datasets.load_sample_images().images)


def crop(random, pictures, height, width):
    """A random part of a random photograph; `random` is NumPy's."""
    picture = pictures[random.integers(len(pictures))]
    rows, columns = picture.shape[:2]
    part = min(rows / height, columns / width, random.uniform(0.7, 1.6))
    tall, wide = max(1, int(height * part)), max(1, int(width * part))
    top = random.integers(rows - tall + 1)
    left = random.integers(columns - wide + 1)
    image = Image.fromarray(np.ascontiguousarray(picture[top : top + tall, left : left + wide]))
    return image.resize((width, height), Image.Resampling.BICUBIC)


def grey16(image):
    """The same in 16 bits of grey, some of it below 256, where Keras does not clip."""
    values = np.asarray(image.convert("L"), np.uint16)
    values[: values.shape[0] // 2] *= 129
    return Image.fromarray(values)


# Name, and how to write it; what VGG16's users have in their folders.
ENCODINGS = {
    "444.jpg": lambda image, path: image.save(path, quality=92, subsampling=0),
    "422.jpg": lambda image, path: image.save(path, quality=85, subsampling=1),
    "420.jpg": lambda image, path: image.save(path, quality=75, subsampling=2),
    "progressive.JPEG": lambda image, path: image.save(path, "JPEG", progressive=True),
    "optimised.jpeg": lambda image, path: image.save(path, quality=60, optimize=True),
    "grey.jpg": lambda image, path: image.convert("L").save(path),
    "cmyk.jpg": lambda image, path: image.convert("CMYK").save(path),
    "rgb.png": lambda image, path: image.save(path),
    "rgba.png": lambda image, path: with_alpha(image).save(path),
    "palette.png": lambda image, path: image.quantize(64).save(path),
    "grey.PNG": lambda image, path: image.convert("L").save(path, "PNG"),
    "grey_alpha.png": lambda image, path: with_alpha(image).convert("LA").save(path),
    "bits.png": lambda image, path: image.convert("1").save(path),
    "grey16.png": lambda image, path: grey16(image).save(path),
    "rgb.bmp": lambda image, path: image.save(path),
    "palette.bmp": lambda image, path: image.quantize(200).save(path),
    "rgb.ppm": lambda image, path: image.save(path),
}


def with_alpha(image):
    result = image.convert("RGBA")
    result.putalpha(image.convert("L"))
    return result


def write_mixed(folder, random, classes, per_class, sizes):
    """Every encoding in turn, in random sizes from `sizes` (low, high)."""
    pictures = photographs()
    encodings = list(ENCODINGS.items())
    number = 0
    for name in classes:
        (folder / name).mkdir(parents=True)
        for _ in range(per_class):
            suffix, write = encodings[number % len(encodings)]
            height, width = random.integers(*sizes, 2)
            write(crop(random, pictures, height, width), folder / name / f"{number:05}_{suffix}")
            number += 1


def write_jpegs(folder, seed, count, height, width):
    """JPEGs of one size in two classes, 4:2:0, about a byte for three pixels."""
    random = np.random.default_rng(seed)
    pictures = photographs()
    for name in ("one", "two"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for number in range(count):
        path = folder / ("one", "two")[number % 2] / f"{number:05}.jpg"
        crop(random, pictures, height, width).save(path, quality=95, subsampling=2)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=400)
    parser.add_argument("--size", default="375x500")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    height, width = map(int, options.size.split("x"))
    write_jpegs(options.folder, options.seed, options.count, height, width)


if __name__ == "__main__":
    main()

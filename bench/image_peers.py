# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""Images per second: this library beside Keras' generator, torchvision and the bare decoder.

    python bench/image_peers.py BUILD_FOLDER IMAGE_FOLDER [ROUNDS]

All read the same folder in the same run, in turn, each a process of its own on one processor (two where the name
says so), batches of 32, 224 x 224, after an epoch to warm up. Prints medians, and the ratios that
docs/benchmarks.md has.
"""

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

SIZE = 224
BATCH = 32


def images_per_second(batches, count):
    """Of the second epoch; `batches` gives an epoch's batches."""
    for _ in batches():
        pass
    start = time.perf_counter()
    seen = sum(len(images) for images in batches())
    seconds = time.perf_counter() - start
    assert seen == count, (seen, count)
    return seen / seconds


def keras(folder, count):
    """The configuration of Keras' own tutorials."""
    from keras.src.legacy.preprocessing.image import ImageDataGenerator

    options = {"shear_range": 0.2, "zoom_range": 0.2, "horizontal_flip": True}
    generator = ImageDataGenerator(rescale=1.0 / 255, **options)
    flow = generator.flow_from_directory(folder, (SIZE, SIZE), batch_size=BATCH, seed=1)

    def epoch():
        for number in range(len(flow)):
            yield flow[number][0]
        flow.on_epoch_end()

    return images_per_second(epoch, count)


def torchvision(folder, count, workers):
    """The transforms that do the same work: an affine with shear and scale, flip, normalisation."""
    import torch
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import InterpolationMode, v2

    torch.set_num_threads(1)
    bilinear = InterpolationMode.BILINEAR
    transform = v2.Compose(
        [
            v2.Resize((SIZE, SIZE), bilinear),
            v2.RandomAffine(0, scale=(0.8, 1.2), shear=0.2, interpolation=bilinear),
            v2.RandomHorizontalFlip(),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
        ]
    )
    loader = DataLoader(
        ImageFolder(folder, transform),
        BATCH,
        shuffle=True,
        num_workers=workers,
        persistent_workers=workers > 0,
    )
    return images_per_second(lambda: (images for images, _ in loader), count)


def own(build, mode, folder, workers=0):
    line = [build / "bench" / "bench_batches", mode, folder, str(workers)]
    return float(subprocess.run(line, check=True, capture_output=True).stdout)


PEERS = {
    "Keras' ImageDataGenerator": keras,
    "torchvision v2, DataLoader": lambda folder, count: torchvision(folder, count, 0),
    "torchvision v2, DataLoader, two workers": lambda folder, count: torchvision(folder, count, 2),
}


def peer(name, folder, count):
    """In a process of its own, as ours are."""
    line = [sys.executable, __file__, "--peer", name, folder, str(count)]
    environment = {**os.environ, "KERAS_BACKEND": "torch"}
    done = subprocess.run(line, check=True, capture_output=True, env=environment)
    return float(done.stdout.split()[-1])


def main():
    if sys.argv[1] == "--peer":
        print(PEERS[sys.argv[2]](sys.argv[3], int(sys.argv[4])))
        return
    build, folder = Path(sys.argv[1]), sys.argv[2]
    rounds = int(sys.argv[3]) if len(sys.argv) > 3 else 5
    count = sum(1 for _ in Path(folder).rglob("*.jpg"))
    contestants = {
        "decoding alone": lambda: own(build, "decode", folder),
        "fast": lambda: own(build, "fast", folder),
        "fast, FP16": lambda: own(build, "fast-f16", folder),
        "exact": lambda: own(build, "exact", folder),
        "decoding alone, two processors": lambda: own(build, "decode", folder, 2),
        "fast, two processors": lambda: own(build, "fast", folder, 2),
        "exact, two processors": lambda: own(build, "exact", folder, 2),
    }
    for name in PEERS:
        contestants[name] = lambda name=name: peer(name, folder, count)
    speeds = {name: [] for name in contestants}
    processors = sorted(os.sched_getaffinity(0))
    for _ in range(rounds):
        for name, measure in contestants.items():
            number = 2 if "two" in name else 1
            os.sched_setaffinity(0, processors[-number:])
            speeds[name].append(measure())
    for name, values in speeds.items():
        print(f"{name:40} {statistics.median(values):8.1f} images/s")

    def ratio(above, below):
        return statistics.median(a / b for a, b in zip(speeds[above], speeds[below]))

    keras_name, torch_name, torch_two = PEERS
    print(f"exact / Keras        {ratio('exact', keras_name):.2f}  (bar 4)")
    print(f"exact / torchvision  {ratio('exact', torch_name):.2f}  (bar 1.5)")
    print(f"fast / decoding      {ratio('fast', 'decoding alone'):.3f}  (bar 0.75)")
    print(f"fast, two / one      {ratio('fast, two processors', 'fast'):.2f}  (bar 1.9)")
    print(f"decoding, two / one  {ratio('decoding alone, two processors', 'decoding alone'):.2f}")
    print(f"two: fast / decoding {ratio('fast, two processors', 'decoding alone, two processors'):.3f}")
    print(f"fast / Keras         {ratio('fast', keras_name):.2f}")
    print(f"fast / torchvision   {ratio('fast', torch_name):.2f}")
    print(f"two: fast / torchvision {ratio('fast, two processors', torch_two):.2f}")


if __name__ == "__main__":
    main()

"""Train long on much: does memory stay flat, and are files closed?

    python tools/endurance.py [--minutes 20] [--classes 1000] [--images 200000] [--source folder|tar]

Synthetic images lie in a folder (links to a few files) or a tar file, and are streamed, none resident. The memory of
`distill run` and its processes and their open files are read twice a second while it trains; after the first fifth of
the time, the slope of memory over time is printed.
"""

import argparse
import io
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

RECIPE = """\
data: {{source: {source}, root: {root}, resident_gb: 0, workers: 1, image_size: 16, validation: 0.01, test: 0.01}}
train: {{epochs: 1000, batch_size: 100, lr: 0.01, checkpoint_minutes: 1}}
analysis: {{examples: 0, num_attacked: 0, num_views: 0}}
check_teachers: false
students: {{long: {{model: mlp_32, loss: {{cross_entropy: {{smoothing: 0.1}}}}}}}}
"""


def make(folder: Path, source: str, classes: int, images: int) -> Path:
    """ImageDataset of all classes, as a folder of links or as a tar file."""
    generator, files = np.random.default_rng(0), []
    for _ in range(50):
        file = io.BytesIO()
        Image.fromarray(generator.integers(0, 256, (16, 16, 3), np.uint8)).save(file, "JPEG")
        files.append(file.getvalue())
    root = folder / ("images" if source == "folder" else "images.tar")
    if source == "tar":
        with tarfile.open(root, "w") as tar:
            for i in range(images):
                member = tarfile.TarInfo(f"c{i % classes:04d}/{i}.jpg")
                member.size = len(files[i % 50])
                tar.addfile(member, io.BytesIO(files[i % 50]))
        return root
    for number, content in enumerate(files):
        (folder / f"{number}.jpg").write_bytes(content)
    for k in range(classes):
        (root / f"c{k:04d}").mkdir(parents=True)
    for i in range(images):
        os.link(folder / f"{i % 50}.jpg", root / f"c{i % classes:04d}" / f"{i}.jpg")
    return root


def look(process: psutil.Process) -> tuple[float, int]:
    """MB that a process has, and that its children have for themselves, and the open files of all."""
    memory, files = process.memory_info().rss / 1e6, process.num_fds()
    for child in process.children(recursive=True):
        try:
            memory += child.memory_full_info().uss / 1e6
            files += child.num_fds()
        except psutil.NoSuchProcess:
            continue
    return memory, files


def main() -> None:
    """Train for so many minutes, and print how memory went."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--images", type=int, default=200_000)
    parser.add_argument("--source", choices=("folder", "tar"), default="folder")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="endurance") as name:
        folder = Path(name)
        root = make(folder, chosen.source, chosen.classes, chosen.images)
        (folder / "long.yaml").write_text(RECIPE.format(source=chosen.source, root=root))
        with (folder / "log").open("w") as log:
            child = subprocess.Popen(
                [sys.executable, "-m", "distill", "run", "long.yaml"], cwd=folder, stderr=log
            )
        process, seen = psutil.Process(child.pid), []
        while child.poll() is None and not list(
            folder.rglob("*.partial")
        ):  # the first checkpoint: it trains
            time.sleep(0.5)
        began = time.monotonic()
        while child.poll() is None and time.monotonic() - began < 60 * chosen.minutes:
            seen.append((time.monotonic() - began, *look(process)))
            time.sleep(0.5)
        status = child.poll()
        child.kill()
        told = (folder / "log").read_text()
    if status is not None:
        sys.exit(f"it ended by itself, with status {status}:\n{told[-2000:]}")
    times, memory, files = map(np.array, zip(*seen, strict=True))
    late = times > times[-1] / 5
    slope = np.polyfit(times[late], memory[late], 1)[0] * 3600
    rates = re.findall(r"([\d,]+) images/s", told)
    print(f"{chosen.source}, {chosen.images} images of {chosen.classes} classes, {times[-1] / 60:.1f} minutes, "
          f"{rates[-1] if rates else 'less than an epoch of'} images/s")  # fmt: skip
    print(f"memory {memory[late].min():.0f} to {memory[late].max():.0f} MB, slope {slope:+.1f} MB an hour; "
          f"open files {files.min()} to {files.max()}")  # fmt: skip


if __name__ == "__main__":
    main()

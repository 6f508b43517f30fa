"""Train for a long time on many images, and measure whether memory and open files stay constant.

    python tools/endurance.py [--minutes 20] [--classes 1000] [--images 200000]
        [--source folder|tar]

The images are random and small. They are in a folder (hard links to a few files) or in a tar file,
and `distill run` decodes them again in every epoch, since none may stay in memory. While it trains,
this tool reads the memory and the open files of all its processes twice a second. At the end it
prints the slope of memory over time. It leaves out the first fifth of the time, in which memory
still grows for libraries and caches.
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
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

RECIPE = """\
data:
  source: {source}
  root: {root}
  resident_gb: 0
  workers: 1
  image_size: 16
  validation: 0.01
  test: 0.01
train: {{epochs: 1000, batch_size: 100, lr: 0.01, checkpoint_minutes: 1}}
analysis: {{examples: 0, num_attacked: 0, num_views: 0}}
check_teachers: false
students:
  long: {{model: mlp_32, loss: {{cross_entropy: {{smoothing: 0.1}}}}}}
"""

NUM_FILES = 50
"""Different JPEG files; all other images are copies of them."""

INTERVAL = 0.5
"""Seconds between two measurements."""


@dataclass(frozen=True)
class Sample:
    """What all processes of the program use at one time.

    Attributes:
        seconds: since the first checkpoint.
        megabytes: resident memory of the main process, and memory that its child processes do not
            share with it.
        files: open files of all processes.
    """

    seconds: float
    megabytes: float
    files: int


def make_jpegs() -> list[bytes]:
    """Return the contents of `NUM_FILES` JPEG files of random pixels, 16 × 16."""
    generator = np.random.default_rng(0)
    contents = []
    for _ in range(NUM_FILES):
        pixels = generator.integers(0, 256, (16, 16, 3), np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG")
        contents.append(file.getvalue())
    return contents


def write_tar(path: Path, num_classes: int, num_images: int) -> None:
    """Write a tar file with a folder for each class."""
    jpegs = make_jpegs()
    with tarfile.open(path, "w") as tar:
        for i in range(num_images):
            content = jpegs[i % NUM_FILES]
            entry = tarfile.TarInfo(f"c{i % num_classes:04d}/{i}.jpg")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))


def write_folder(path: Path, num_classes: int, num_images: int) -> None:
    """Write a folder for each class, with hard links to the files beside `path`."""
    for number, content in enumerate(make_jpegs()):
        (path.parent / f"{number}.jpg").write_bytes(content)
    for label in range(num_classes):
        (path / f"c{label:04d}").mkdir(parents=True)
    for i in range(num_images):
        original = path.parent / f"{i % NUM_FILES}.jpg"
        os.link(original, path / f"c{i % num_classes:04d}" / f"{i}.jpg")


def write_study(folder: Path, source: str, num_classes: int, num_images: int) -> None:
    """Write the images and the recipe `long.yaml` into a folder."""
    if source == "tar":
        root = folder / "images.tar"
        write_tar(root, num_classes, num_images)
    else:
        root = folder / "images"
        write_folder(root, num_classes, num_images)
    (folder / "long.yaml").write_text(RECIPE.format(source=source, root=root))


def measure(process: psutil.Process) -> tuple[float, int]:
    """Return the megabytes and the number of open files of a process and its children."""
    megabytes = process.memory_info().rss / 1e6
    files = process.num_fds()
    for child in process.children(recursive=True):
        try:
            # Unique memory only: what a child shares with the main process is counted there.
            megabytes += child.memory_full_info().uss / 1e6
            files += child.num_fds()
        except psutil.NoSuchProcess:
            continue
    return megabytes, files


def watch(program: subprocess.Popen, folder: Path, minutes: float) -> list[Sample]:
    """Wait for the first checkpoint, then measure until the time is over or the program ends."""
    while program.poll() is None and not any(folder.rglob("*.partial")):
        time.sleep(INTERVAL)

    process = psutil.Process(program.pid)
    began = time.monotonic()
    samples = []
    while program.poll() is None and time.monotonic() - began < 60 * minutes:
        megabytes, files = measure(process)
        samples.append(Sample(time.monotonic() - began, megabytes, files))
        time.sleep(INTERVAL)
    return samples


def train(folder: Path, minutes: float) -> tuple[list[Sample], str]:
    """Run the study of a folder for some minutes, then kill it.

    Returns:
        The measurements, and what the program printed.

    Raises:
        SystemExit: if the program ends before the time is over.
    """
    command = [sys.executable, "-m", "distill", "run", "long.yaml"]
    with (folder / "log").open("w") as log:
        program = subprocess.Popen(command, cwd=folder, stderr=log)
    try:
        samples = watch(program, folder, minutes)
        status = program.poll()
    finally:
        program.kill()
        program.wait()
    printed = (folder / "log").read_text()
    if status is not None:
        sys.exit(f"distill ended too early, with status {status}:\n{printed[-2000:]}")
    return samples, printed


def slope_per_hour(samples: list[Sample]) -> float:
    """Return the slope of memory over time by least squares, in MB an hour."""
    hours = [sample.seconds / 3600 for sample in samples]
    megabytes = [sample.megabytes for sample in samples]
    return float(np.polyfit(hours, megabytes, 1)[0])


def print_summary(samples: list[Sample], printed: str) -> None:
    """Print the speed, the range and slope of memory, and the range of open files."""
    last = samples[-1].seconds
    late = [sample for sample in samples if sample.seconds > last / 5]
    megabytes = [sample.megabytes for sample in late]
    files = [sample.files for sample in samples]
    # The program prints its speed after each epoch.
    rates = re.findall(r"([\d,]+) images/s", printed)
    speed = f"{rates[-1]} images/s" if rates else "less than one epoch"
    print(f"{last / 60:.1f} minutes, {speed}")
    print(
        f"memory {min(megabytes):.0f} to {max(megabytes):.0f} MB, "
        f"slope {slope_per_hour(late):+.1f} MB an hour; "
        f"open files {min(files)} to {max(files)}"
    )


def main() -> None:
    """Write the images, train on them, and print the summary."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=20, help="time after the first checkpoint")
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--images", type=int, default=200_000)
    parser.add_argument("--source", choices=("folder", "tar"), default="folder")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="endurance") as name:
        folder = Path(name)
        write_study(folder, arguments.source, arguments.classes, arguments.images)
        samples, printed = train(folder, arguments.minutes)
    print(f"{arguments.source}, {arguments.images} images of {arguments.classes} classes")
    print_summary(samples, printed)


if __name__ == "__main__":
    main()

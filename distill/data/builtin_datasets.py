"""Data sets that need no files: scikit-learn's digits, and noise of any shape."""

import torch
from torchvision.datasets import FakeData

from distill.data.decoding import ImageFormat
from distill.data.image_dataset import ImageDataset, ImageReader, OpenedDataset
from distill.errors import UserError
from distill.recipe.schema import Data, Synthetic


def open_digits() -> OpenedDataset:
    """Open scikit-learn's 1,797 handwritten digits of 8×8 pixels; they have no test split."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    # Values are 0 to 16.
    pixels = (torch.from_numpy(bunch.images) * (255 / 16)).round().to(torch.uint8)
    labels = torch.from_numpy(bunch.target).long()
    digits = ImageDataset.from_pixels(pixels[:, None], labels, "digit")
    return OpenedDataset({"train": digits}, None, [])


def open_synthetic(data: Data) -> OpenedDataset:
    """Open torchvision's FakeData: noise with random labels, of the shape in ``data.synthetic``.

    Raises:
        UserError: if the shape is not that of grey or colour images.
    """
    settings = data.synthetic or Synthetic()
    channels, height, width = settings.shape
    if channels not in (1, 3) or min(height, width) < 1:
        raise UserError(
            "data.synthetic.shape: expected 1 or 3 channels and a positive size, "
            f"got {list(settings.shape)}"
        )
    train = _fake_images(settings, settings.train, offset=0)
    test = _fake_images(settings, settings.test, offset=settings.train)
    return OpenedDataset({"train": train, "test": test}, None, [])


def _fake_images(settings: Synthetic, count: int, offset: int) -> ImageDataset:
    """Return `count` images of noise; different offsets give different images."""
    fake = FakeData(count, settings.shape, settings.classes, random_offset=offset)
    labels = torch.tensor([int(fake[i][1]) for i in range(count)])
    channels, height, width = settings.shape
    return ImageDataset(
        labels,
        name=lambda i: f"synthetic {settings.shape} {settings.classes} {offset} {i}",
        reader=ImageReader(read=lambda i: fake[i][0]),
        format=ImageFormat(channels, (height, width)),
    )

"""Batches: each example once an epoch, in the same batches for any number of processes."""

import pytest
import torch

from distill.data.augment import augment_batch, epoch_order
from distill.data.loaders import evaluation_batches, read_batches, training_batches
from distill.data.splits import load_splits
from distill.recipe.schema import Augment, Data

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def digits():
    return load_splits(Data(source="digits"))


@pytest.mark.parametrize("augment", [Augment(shift=1), Augment(shift=1, mixup=0.5, cutmix=1.0)])
def test_two_processes_get_the_batches_of_one(digits, augment):
    one = list(training_batches(digits, augment, 64, 0, 3, CPU))
    two = [list(training_batches(digits, augment, 64, 0, 3, CPU, rank, 2)) for rank in range(2)]
    for whole, *parts in zip(one, *two, strict=True):
        for rank, part in enumerate(parts):
            assert torch.equal(whole.views[rank::2], part.views)
            assert torch.equal(whole.labels[rank::2], part.labels)


@pytest.mark.parametrize("augment", [Augment(shift=1), Augment(mixup=0.5)])
def test_a_resumed_epoch_goes_on_with_the_same_batches(digits, augment):
    whole = list(training_batches(digits, augment, 64, 0, 3, CPU))
    rest = list(training_batches(digits, augment, 64, 0, 3, CPU, first=5))
    for expected, got in zip(whole[5:], rest, strict=True):
        assert torch.equal(expected.views, got.views)
        assert torch.equal(expected.labels, got.labels)


def test_an_epoch_shows_each_example_once(digits):
    order = epoch_order(len(digits.train), 0, 0)
    assert torch.equal(order.sort().values, torch.arange(len(digits.train)))
    batches = list(training_batches(digits, Augment(), 50, 0, 0, CPU))
    assert [len(batch.labels) for batch in batches] == [50] * (len(digits.train) // 50)
    labels = torch.cat([batch.labels for batch in batches])
    assert torch.equal(labels, digits.train.labels[order[: len(labels)]])


def test_batches_are_the_augmented_images_of_the_epoch_order(digits):
    """However many batches are augmented together."""
    augment = Augment(shift=2, flip=True)
    order = epoch_order(len(digits.train), 7, 2)
    batches = list(training_batches(digits, augment, 32, 7, 2, CPU))
    for number, batch in enumerate(batches):
        index = order[32 * number : 32 * (number + 1)]
        images = digits.train.images.pixels[digits.train.positions[index]]
        assert torch.equal(batch.views, augment_batch(images, index, augment, 7, 2))


def test_evaluation_shows_all_examples_in_order(digits):
    batches = list(evaluation_batches(digits, digits.test, Augment(crop=6), 64, CPU))
    assert torch.equal(torch.cat([batch.labels for batch in batches]), digits.test.labels)
    pixels = digits.test.images.pixels[digits.test.positions]
    assert torch.equal(torch.cat([batch.views for batch in batches]), pixels[:, :, 1:7, 1:7])


def test_evaluation_of_some_examples(digits):
    positions = torch.tensor([5, 2])
    (batch,) = evaluation_batches(digits, digits.test, Augment(), 64, CPU, positions)
    assert torch.equal(batch.labels, digits.test.labels[positions])
    assert not list(evaluation_batches(digits, digits.test, Augment(), 64, CPU, positions[:0]))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_streams_to_a_gpu_arrive_complete():
    streamed = load_splits(Data(source="digits", resident_gb=0.0))
    parts = list(torch.arange(len(streamed.train)).split(16))
    for index, images in read_batches(streamed, streamed.train, parts, torch.device("cuda")):
        expected = streamed.train.images.pixels[streamed.train.positions[index.cpu()]]
        assert torch.equal(images.cpu(), expected)

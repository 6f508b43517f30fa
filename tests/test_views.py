"""Views: a function of (seed, epoch, index) and nothing else, with the distributions they claim."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from distill.data.augment import (
    augment_batch,
    epoch_order,
    evaluation_crop,
    key,
    mix,
    mixup_partners,
    normalise,
    uniforms,
)
from distill.data.loaders import evaluation_batches, training_batches
from distill.data.splits import load_splits
from distill.recipe.schema import Augment, Data

ALL = Augment(shift=2, flip=True, crop=6, scale=0.5)


def images(count=40, channels=3, side=8):
    return torch.randint(
        0, 256, (count, channels, side, side), generator=torch.Generator().manual_seed(1)
    ).to(torch.uint8)


@given(st.permutations(range(40)), st.integers(1, 40))
def test_a_view_does_not_depend_on_its_batch(order, size):
    pixels, index = images(), torch.tensor(order)
    whole = augment_batch(pixels, torch.arange(40), ALL, seed=3, epoch=5)
    parts = [augment_batch(pixels[part], part, ALL, seed=3, epoch=5) for part in index.split(size)]
    torch.testing.assert_close(torch.cat(parts), whole[index], rtol=0, atol=0)


def test_a_view_depends_on_seed_epoch_and_index():
    pixels = images(1).expand(40, -1, -1, -1)
    views = {}
    for seed, epoch in ((0, 0), (0, 1), (1, 0)):
        views[seed, epoch] = augment_batch(
            pixels, torch.arange(40), Augment(shift=3, flip=True), seed, epoch
        )
        assert len(views[seed, epoch].unique(dim=0)) > 20
    assert not torch.equal(views[0, 0], views[0, 1]) and not torch.equal(views[0, 0], views[1, 0])


def test_draws_leave_the_global_generator_alone():
    before = torch.get_rng_state()
    augment_batch(images(), torch.arange(40), ALL, 0, 0)
    epoch_order(100, 0, 0)
    assert torch.equal(before, torch.get_rng_state())


def test_uniforms_are_uniform_and_independent():
    draws = uniforms(key("view", 0, 0), torch.arange(50_000), 4).double().numpy()
    assert draws.min() >= 0 and draws.max() < 1
    for column in draws.T:
        assert stats.kstest(column, "uniform").pvalue > 1e-3
    grid = np.histogram2d(draws[:-1, 0], draws[1:, 0], bins=10)[0]  # neighbours in index
    assert stats.chisquare(grid.ravel()).pvalue > 1e-3
    again = uniforms(key("view", 0, 1), torch.arange(50_000), 4).double().numpy()
    correlations = np.corrcoef(np.concatenate([draws, again], 1).T) - np.eye(8)
    assert np.abs(correlations).max() < 4.5 / 50_000**0.5


def test_shifts_are_equiprobable_and_black_beyond_the_edge():
    """The paper's augmentation (A.5): ±2 pixels in x and y, "25 equiprobable centerings"."""
    count = 25_000
    pixels = torch.zeros(count, 1, 7, 7, dtype=torch.uint8)
    pixels[:, :, 3, 3] = 255
    views = augment_batch(pixels, torch.arange(count), Augment(shift=2), 0, 0)
    assert views.dtype == torch.uint8 and (views.flatten(1).sum(1) == 255).all()
    where = views.flatten(1).argmax(1)
    counts = torch.zeros(7, 7).index_put(
        (where // 7, where % 7), torch.ones(count), accumulate=True
    )[1:6, 1:6]
    assert counts.sum() == count
    assert stats.chisquare(counts.flatten().numpy()).pvalue > 1e-3
    full = torch.full((500, 1, 7, 7), 255, dtype=torch.uint8)
    moved = augment_batch(full, torch.arange(500), Augment(shift=2), 0, 0)
    shares = {int(v) for v in (moved > 0).sum((1, 2, 3)).tolist()}
    assert shares == {a * b for a in (5, 6, 7) for b in (5, 6, 7)}


def test_flips_are_mirrors_half_of_the_time():
    pixels = images(2000, 1)
    views = augment_batch(pixels, torch.arange(2000), Augment(flip=True), 0, 0)
    same, mirrored = ((views == other).flatten(1).all(1) for other in (pixels, pixels.flip(3)))
    assert (same ^ mirrored).all() and stats.binomtest(int(mirrored.sum()), 2000).pvalue > 1e-3


def test_crops_are_windows_and_the_centre_at_evaluation():
    pixels = images(300, 3, 8)
    views = augment_batch(pixels, torch.arange(300), Augment(crop=6), 0, 0)
    windows = {(y, x): pixels[:, :, y : y + 6, x : x + 6] for y in range(3) for x in range(3)}
    hits = torch.stack([(views == w).flatten(1).all(1) for w in windows.values()])
    assert (hits.sum(0) == 1).all() and stats.chisquare(hits.sum(1).numpy()).pvalue > 1e-3
    assert torch.equal(evaluation_crop(pixels, Augment(crop=6)), pixels[:, :, 1:7, 1:7])


def test_resized_crops_keep_constants_and_the_identity():
    flat = torch.full((50, 3, 9, 9), 77, dtype=torch.uint8)
    assert (augment_batch(flat, torch.arange(50), Augment(scale=0.3), 0, 0) - 77).abs().max() < 1e-3
    pixels = images(50)
    nearly_whole = augment_batch(pixels, torch.arange(50), Augment(scale=0.2), 0, 0)
    assert (
        nearly_whole.shape == pixels.shape and nearly_whole.min() >= 0 and nearly_whole.max() <= 255
    )
    # a linear ramp stays one: its slope is the cropped width over the full one
    ramp = torch.arange(32.0).expand(400, 1, 32, 32).to(torch.uint8)
    views = augment_batch(ramp, torch.arange(400), Augment(scale=0.25), 0, 0)
    slopes = (views[:, 0, 16, 24] - views[:, 0, 16, 8]) / 16
    assert slopes.min() >= (0.25 * 3 / 4) ** 0.5 - 0.02 and slopes.max() <= 1.01


def test_normalise_is_what_torchvision_does():
    from torchvision.transforms.functional import normalize

    pixels, mean, std = images(), (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
    expected = normalize(pixels.float() / 255, mean, std)
    for given_pixels in (pixels, pixels.float()):
        torch.testing.assert_close(normalise(given_pixels, mean, std), expected)


def mixed(augment, count=4000, classes=4):
    own, others = (
        torch.zeros(count, 1, 16, 16, dtype=torch.uint8),
        torch.full((count, 1, 16, 16), 200, dtype=torch.uint8),
    )
    labels, other_labels = torch.zeros(count).long(), torch.ones(count).long()
    return mix(own, others, labels, other_labels, torch.arange(count), classes, augment, 0, 0)


def test_mixup_shares_follow_beta_and_labels_follow_pixels():
    views, labels = mixed(Augment(mixup=0.4))
    share = labels[:, 0].numpy()
    assert stats.kstest(share, stats.beta(0.4, 0.4).cdf).pvalue > 1e-3
    torch.testing.assert_close(views.mean((1, 2, 3)) / 200, labels[:, 1])
    assert (views.flatten(1).std(1) < 1e-3).all() and labels.sum(1).sub(1).abs().max() < 1e-6


def test_cutmix_pastes_one_box_whose_share_is_in_the_label():
    views, labels = mixed(Augment(cutmix=1.0))
    assert set(views.unique().tolist()) == {0.0, 200.0}
    torch.testing.assert_close((views > 0).float().mean((1, 2, 3)), labels[:, 1])
    rows, columns = (views[:, 0] > 0).any(2), (views[:, 0] > 0).any(1)
    assert torch.equal((views[:, 0] > 0), rows[:, :, None] & columns[:, None, :])  # a rectangle


def test_with_both_either_is_drawn_evenly():
    views, _ = mixed(Augment(mixup=1.0, cutmix=1.0))
    cut = ((views == 0) | (views == 200)).flatten(1).all(1).sum()
    assert stats.binomtest(int(cut), 4000).pvalue > 1e-3


def test_partners_are_any_of_the_split():
    got = mixup_partners(torch.arange(20_000), 10, 0, 0)
    assert stats.chisquare(torch.bincount(got, minlength=10).numpy()).pvalue > 1e-3


@pytest.mark.parametrize("augment", [Augment(shift=1), Augment(shift=1, mixup=0.5, cutmix=1.0)])
def test_two_processes_see_what_one_would(augment):
    splits = load_splits(Data(source="digits"))
    assert splits.resident
    one = list(training_batches(splits, augment, 64, 0, 3, torch.device("cpu")))
    two = [
        list(training_batches(splits, augment, 64, 0, 3, torch.device("cpu"), rank, 2))
        for rank in range(2)
    ]
    for whole, *parts in zip(one, *two, strict=True):
        for rank, part in enumerate(parts):
            assert torch.equal(whole.views[rank::2], part.views) and torch.equal(
                whole.labels[rank::2], part.labels
            )


def test_an_epoch_shows_each_example_once_and_evaluation_all_in_order():
    splits = load_splits(Data(source="digits"))
    assert splits.resident
    order = epoch_order(len(splits.train), 0, 0)
    assert torch.equal(order.sort().values, torch.arange(len(splits.train)))
    batches = list(training_batches(splits, Augment(), 50, 0, 0, torch.device("cpu")))
    assert [len(b.labels) for b in batches] == [50] * (len(splits.train) // 50)
    assert torch.equal(
        torch.cat([b.labels for b in batches]), splits.train.labels[order[: len(batches) * 50]]
    )
    labels = torch.cat(
        [
            b.labels
            for b in evaluation_batches(splits, splits.test, Augment(), 64, torch.device("cpu"))
        ]
    )
    assert torch.equal(labels, splits.test.labels)

"""Views depend on (seed, epoch, image number) alone and have the documented distributions."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from distill.data.augment import (
    Batch,
    augment_batch,
    derive_seed,
    epoch_order,
    evaluation_crop,
    mix,
    mixup_partners,
    normalise,
    uniforms,
)
from distill.recipe.schema import Augment

GOLDEN_SEED = 1686780690
GOLDEN_DRAWS = [[256534, 1861740], [12339540, 9840250]]

EVERYTHING = Augment(shift=2, flip=True, crop=6, scale=0.5)


def random_images(count=40, channels=3, side=8):
    generator = torch.Generator().manual_seed(1)
    shape = (count, channels, side, side)
    return torch.randint(0, 256, shape, generator=generator).to(torch.uint8)


# -------------------------------------------------------------------------------- random numbers


def test_seeds_and_uniforms_are_the_same_in_every_version():
    """Stored runs depend on them."""
    assert derive_seed("view", 0, 1) == GOLDEN_SEED
    draws = uniforms(GOLDEN_SEED, torch.tensor([0, 59_999]), 2) * 2**24
    assert draws.long().tolist() == GOLDEN_DRAWS


def test_draws_leave_the_global_generator_alone():
    before = torch.get_rng_state()
    augment_batch(random_images(), torch.arange(40), EVERYTHING, 0, 0)
    epoch_order(100, 0, 0)
    assert torch.equal(before, torch.get_rng_state())


def test_uniforms_are_uniform_and_independent():
    index = torch.arange(50_000)
    draws = uniforms(derive_seed("view", 0, 0), index, 4).double().numpy()
    assert draws.min() >= 0
    assert draws.max() < 1
    for column in draws.T:
        assert stats.kstest(column, "uniform").pvalue > 1e-3
    neighbours = np.histogram2d(draws[:-1, 0], draws[1:, 0], bins=10)[0]
    assert stats.chisquare(neighbours.ravel()).pvalue > 1e-3
    next_epoch = uniforms(derive_seed("view", 0, 1), index, 4).double().numpy()
    correlations = np.corrcoef(np.concatenate([draws, next_epoch], 1).T) - np.eye(8)
    assert np.abs(correlations).max() < 4.5 / 50_000**0.5


# ----------------------------------------------------------------------------------------- views


@given(st.permutations(range(40)), st.integers(1, 40))
def test_a_view_does_not_depend_on_its_batch(order, size):
    pixels = random_images()
    index = torch.tensor(order)
    whole = augment_batch(pixels, torch.arange(40), EVERYTHING, seed=3, epoch=5)
    parts = [
        augment_batch(pixels[part], part, EVERYTHING, seed=3, epoch=5) for part in index.split(size)
    ]
    torch.testing.assert_close(torch.cat(parts), whole[index], rtol=0, atol=0)


def test_a_view_depends_on_seed_epoch_and_index():
    pixels = random_images(1).expand(40, -1, -1, -1)
    augment = Augment(shift=3, flip=True)
    views = {
        (seed, epoch): augment_batch(pixels, torch.arange(40), augment, seed, epoch)
        for seed, epoch in ((0, 0), (0, 1), (1, 0))
    }
    for view in views.values():
        assert len(view.unique(dim=0)) > 20
    assert not torch.equal(views[0, 0], views[0, 1])
    assert not torch.equal(views[0, 0], views[1, 0])


def test_shifts_are_equiprobable_and_black_beyond_the_edge():
    """Müller et al. 2019, A.5: ±2 pixels in x and y, "25 equiprobable centerings"."""
    count = 25_000
    pixels = torch.zeros(count, 1, 7, 7, dtype=torch.uint8)
    pixels[:, :, 3, 3] = 255
    views = augment_batch(pixels, torch.arange(count), Augment(shift=2), 0, 0)
    assert views.dtype == torch.uint8
    assert (views.flatten(1).sum(1) == 255).all()
    positions = views.flatten(1).argmax(1)
    counts = torch.bincount(positions, minlength=49).view(7, 7)[1:6, 1:6]
    assert counts.sum() == count
    assert stats.chisquare(counts.flatten().numpy()).pvalue > 1e-3

    full = torch.full((500, 1, 7, 7), 255, dtype=torch.uint8)
    shifted = augment_batch(full, torch.arange(500), Augment(shift=2), 0, 0)
    areas = set((shifted > 0).sum((1, 2, 3)).tolist())
    assert areas == {a * b for a in (5, 6, 7) for b in (5, 6, 7)}


def test_flips_are_mirrors_half_of_the_time():
    pixels = random_images(2000, 1)
    views = augment_batch(pixels, torch.arange(2000), Augment(flip=True), 0, 0)
    same = (views == pixels).flatten(1).all(1)
    mirrored = (views == pixels.flip(3)).flatten(1).all(1)
    assert (same ^ mirrored).all()
    assert stats.binomtest(int(mirrored.sum()), 2000).pvalue > 1e-3


def test_crops_are_windows_and_the_centre_at_evaluation():
    pixels = random_images(300, 3, 8)
    views = augment_batch(pixels, torch.arange(300), Augment(crop=6), 0, 0)
    windows = [pixels[:, :, y : y + 6, x : x + 6] for y in range(3) for x in range(3)]
    hits = torch.stack([(views == window).flatten(1).all(1) for window in windows])
    assert (hits.sum(0) == 1).all()
    assert stats.chisquare(hits.sum(1).numpy()).pvalue > 1e-3
    assert torch.equal(evaluation_crop(pixels, Augment(crop=6)), pixels[:, :, 1:7, 1:7])


def test_resized_crops_keep_constants_and_scale_ramps():
    flat = torch.full((50, 3, 9, 9), 77, dtype=torch.uint8)
    views = augment_batch(flat, torch.arange(50), Augment(scale=0.3), 0, 0)
    assert (views - 77).abs().max() < 1e-3

    pixels = random_images(50)
    views = augment_batch(pixels, torch.arange(50), Augment(scale=0.2), 0, 0)
    assert views.shape == pixels.shape
    assert views.min() >= 0
    assert views.max() <= 255

    # A linear ramp stays one: its slope is the cropped width over the full one.
    ramp = torch.arange(32.0).expand(400, 1, 32, 32).to(torch.uint8)
    views = augment_batch(ramp, torch.arange(400), Augment(scale=0.25), 0, 0)
    slopes = (views[:, 0, 16, 24] - views[:, 0, 16, 8]) / 16
    assert slopes.min() >= (0.25 * 3 / 4) ** 0.5 - 0.02
    assert slopes.max() <= 1.01


def test_normalise_is_that_of_torchvision():
    from torchvision.transforms.functional import normalize

    mean = (0.4, 0.5, 0.6)
    std = (0.2, 0.3, 0.25)
    pixels = random_images()
    expected = normalize(pixels.float() / 255, mean, std)
    for given_pixels in (pixels, pixels.float()):
        torch.testing.assert_close(normalise(given_pixels, mean, std), expected)


# ------------------------------------------------------------------------------ mixup and cutmix


def mix_black_with_grey(augment, count=4000):
    """Mix black images of class 0 with images of value 200 of class 1."""
    shape = (count, 1, 16, 16)
    black = Batch(torch.zeros(shape, dtype=torch.uint8), torch.zeros(count).long())
    grey = Batch(torch.full(shape, 200, dtype=torch.uint8), torch.ones(count).long())
    return mix(black, grey, torch.arange(count), 4, augment, 0, 0)


def test_mixup_shares_follow_beta_and_labels_follow_pixels():
    views, labels = mix_black_with_grey(Augment(mixup=0.4))
    shares = labels[:, 0].numpy()
    assert stats.kstest(shares, stats.beta(0.4, 0.4).cdf).pvalue > 1e-3
    torch.testing.assert_close(views.mean((1, 2, 3)) / 200, labels[:, 1])
    assert (views.flatten(1).std(1) < 1e-3).all()
    assert labels.sum(1).sub(1).abs().max() < 1e-6


def test_cutmix_pastes_one_box_whose_area_is_in_the_label():
    views, labels = mix_black_with_grey(Augment(cutmix=1.0))
    assert set(views.unique().tolist()) == {0.0, 200.0}
    is_pasted = views[:, 0] > 0
    torch.testing.assert_close(is_pasted.float().mean((1, 2)), labels[:, 1])
    rows = is_pasted.any(2)
    columns = is_pasted.any(1)
    assert torch.equal(is_pasted, rows[:, :, None] & columns[:, None, :])


def test_with_both_either_is_drawn_evenly():
    views, _ = mix_black_with_grey(Augment(mixup=1.0, cutmix=1.0))
    is_cutmix = ((views == 0) | (views == 200)).flatten(1).all(1)
    assert stats.binomtest(int(is_cutmix.sum()), 4000).pvalue > 1e-3


def test_partners_are_any_of_the_split():
    partners = mixup_partners(torch.arange(20_000), 10, 0, 0)
    assert stats.chisquare(torch.bincount(partners, minlength=10).numpy()).pvalue > 1e-3


@pytest.mark.parametrize(
    ("augment", "mixes"),
    [
        (Augment(shift=1), False),
        (Augment(mixup=0.1), True),
        (Augment(cutmix=0.1), True),
    ],
)
def test_mixing_is_on_if_a_parameter_is_set(augment, mixes):
    assert augment.mixes is mixes

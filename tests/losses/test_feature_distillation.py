"""Distillation from features against libraries, published code and the papers' identities."""

import pytest
import torch
import torch.nn.functional as F
from helpers.loss_cases import make_batch
from torch.testing import assert_close

from distill.losses import attention_transfer, hint, rkd


def test_a_hint_is_torchs_mse():
    batch = make_batch("hint", 5, 4)
    expected = F.mse_loss(batch.projector(batch.features), batch.teacher_features) / 2
    got = hint(batch.features, batch.teacher_features, projector=batch.projector)
    assert_close(got.mean(), expected)


def test_a_hint_trains_its_projector():
    batch = make_batch("hint", 5, 4)
    batch.call("hint").mean().backward()
    assert batch.projector.weight.grad.norm() > 0


def test_rkd_is_that_of_torchdistill():
    theirs = pytest.importorskip("torchdistill.losses.mid_level")
    batch = make_batch("rkd", 8, 10, 1)
    loss = theirs.RKDLoss("s", "t", dist_factor=1.0, angle_factor=2.0, reduction="mean")
    expected = loss({"s": {"output": batch.features}}, {"t": {"output": batch.teacher_features}})
    got = rkd(batch.features, batch.teacher_features).mean()
    assert_close(got, expected, atol=1e-6, rtol=1e-5)


def test_rkd_does_not_change_with_rotation_scale_and_shift():
    batch = make_batch("rkd", 6, 5)
    rotation = torch.linalg.qr(torch.randn(4, 4).double())[0]
    moved = batch.teacher_features @ rotation * 3 + 1
    assert rkd(moved, batch.teacher_features).abs().max() < 1e-9


def test_equal_features_have_small_gradients_in_rkd():
    """Dead units make equal features; a normalised zero must not multiply the gradient by 1e12."""
    batch = make_batch("rkd", 8, 5)
    features = batch.features.clone()
    features[:3] = 0
    features.requires_grad_()
    rkd(features, batch.teacher_features).mean().backward()
    assert features.grad.norm() < 10


def test_a_single_example_has_no_relations():
    assert rkd(torch.ones(1, 4), torch.zeros(1, 4)).item() == 0


def test_attention_transfer_is_the_published_code():
    """Zagoruyko and Komodakis: normalised means of squares, mean squared difference."""
    batch = make_batch("attention_transfer", 4, 5)
    ours, theirs = batch.feature_maps, batch.teacher_feature_maps

    def attention(feature_map):
        return F.normalize(feature_map.pow(2).mean(1).view(len(feature_map), -1))

    pairs = zip(ours, theirs, strict=True)
    expected = sum((attention(a) - attention(b)).pow(2).mean() for a, b in pairs)
    assert_close(attention_transfer(ours, theirs).mean(), expected)

    # A deeper teacher: its first stages are left out.
    deeper = [torch.randn(4, 1, 9, 9).double(), *theirs]
    assert_close(attention_transfer(ours, deeper).mean(), expected)

    # Larger maps are pooled to the size of the smaller ones.
    larger = [F.interpolate(feature_map, scale_factor=2) for feature_map in theirs]
    assert_close(attention_transfer(ours, larger).mean(), expected)


def test_attention_transfer_refuses_no_maps():
    maps = [torch.zeros(1, 1, 2, 2)]
    for sides in (([], maps), (maps, [])):
        with pytest.raises(ValueError, match="feature maps"):
            attention_transfer(*sides)


@pytest.mark.parametrize("name", ["rkd", "hint"])
def test_autocast_takes_no_digits(name):
    batch = make_batch(name, 6, 4, dtype=torch.float32)
    plain = batch.call(name)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(batch.call(name), plain)
    exact = make_batch(name, 6, 4).call(name)
    assert_close(plain.double(), exact, atol=1e-5, rtol=1e-5)

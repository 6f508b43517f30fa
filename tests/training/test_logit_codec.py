"""Logits come back exactly in their own precision; the top k keep values and mass."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distill.models.factory import ModelSpec, build_model
from distill.training.logit_codec import Codec, choose_codec
from distill.training.teacher import Teacher

NETWORK = ModelSpec(
    "cifar_resnet8", num_classes=10, view_shape=(3, 16, 16), mean=(0.5,) * 3, std=(0.5,) * 3
)
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def random_logits(count, classes, seed, scale=5.0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(count, classes, generator=generator, dtype=torch.float64)


@given(st.sampled_from(list(DTYPES)), st.integers(1, 5), st.integers(2, 300), st.integers(0, 9))
def test_logits_in_their_own_precision_come_back_to_the_bit(dtype, count, classes, seed):
    logits = random_logits(count, classes, seed, scale=20).to(DTYPES[dtype])
    codec = Codec(classes, dtype)
    rows = codec.encode(logits)
    assert rows.shape == (count, codec.width)
    assert rows.dtype == torch.uint8
    assert torch.equal(codec.decode(rows), logits.float())


@given(st.integers(1, 4), st.integers(2, 300), st.data())
def test_the_top_k_keep_their_values_and_the_others_their_mass(count, classes, data):
    top_k = data.draw(st.integers(1, classes - 1))
    logits = random_logits(count, classes, seed=data.draw(st.integers(0, 9)))
    codec = Codec(classes, "float16", top_k)
    rows = codec.encode(logits.float())
    assert rows.shape == (count, codec.width)
    for found, expected in zip(codec.decode(rows).double(), logits, strict=True):
        order = expected.argsort(descending=True)
        top = order[:top_k]
        others = order[top_k:]
        torch.testing.assert_close(found[top], expected[top], rtol=2**-10, atol=1e-3)
        assert (found[others] == found[others[0]]).all()
        torch.testing.assert_close(
            found[others].logsumexp(0), expected[others].logsumexp(0), rtol=2e-3, atol=2e-3
        )


def test_values_beyond_float16_become_its_largest():
    codec = Codec(3, "float16")
    found = codec.decode(codec.encode(torch.tensor([[1e6, -1e6, 1.0]])))
    assert found.tolist() == [[65504.0, -65504.0, 1.0]]


@pytest.mark.parametrize(
    ("logit_cache", "half", "expected"),
    [
        ("exact", None, Codec(10, "float32")),
        ("exact", torch.bfloat16, Codec(10, "bfloat16")),
        ("float16", torch.bfloat16, Codec(10, "float16")),
        (3, None, Codec(10, "float16", 3)),
        (50, None, Codec(10, "float16", 9)),
    ],
)
def test_the_codec_follows_the_recipe_and_the_precision_of_the_teacher(logit_cache, half, expected):
    teacher = Teacher(build_model(NETWORK, seed=0), half_precision=half)
    assert choose_codec(teacher, torch.zeros(1, 3, 16, 16), logit_cache) == expected


def test_a_half_precision_teacher_computes_as_under_autocast():
    views = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    model = build_model(NETWORK, seed=0).eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = model(views)
    teacher = Teacher(build_model(NETWORK, seed=0), half_precision=torch.bfloat16)
    found = teacher(views).logits
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, expected)

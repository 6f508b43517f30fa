"""Networks start from weights of any form; classes go by name, other heads start with zeros."""

import json

import pytest
import timm
import torch
from helpers.models import build
from timm.models import save_for_hf

from distill.errors import UserError

NAMES = ["ant", "bee", "cat"]
SHAPE = (3, 32, 32)


def network(**settings):
    """Build a small network for the classes of `NAMES`; return it with its notes."""
    options = {"num_classes": 3, "class_names": NAMES, "view_shape": SHAPE} | settings
    notes = []
    model = build("cifar_resnet8", notes=notes, **options)
    return model.eval(), notes


def stored(folder, names=NAMES, **settings):
    """Store a network in timm's folder; return its weights."""
    model, _ = network(seed=5, class_names=names, num_classes=len(names), **settings)
    with torch.no_grad():
        model.head.bias.copy_(torch.arange(len(names)))
    save_for_hf(model, str(folder), safe_serialization=True)
    return model.state_dict()


def same_body(model, weights):
    state = model.state_dict()
    return all(torch.equal(state[name], weights[name]) for name in weights if "head." not in name)


IMAGES = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("kind", ["checkpoint", "local-dir"])
def test_classes_in_another_order_are_put_in_that_of_the_images(tmp_path, frozen, kind):
    names = ["cat", "ant", "bee"]
    weights = stored(tmp_path, names)
    if kind == "checkpoint":
        model, notes = network(checkpoint=str(tmp_path), frozen=frozen)
    else:
        notes = []
        model = build(
            f"local-dir:{tmp_path}", notes=notes, num_classes=3, class_names=NAMES,
            view_shape=SHAPE, pretrained=True, frozen=frozen,
        ).eval()  # fmt: skip
    original = build("cifar_resnet8", num_classes=3, view_shape=SHAPE).eval()
    original.load_state_dict(weights)
    assert torch.equal(model(IMAGES), original(IMAGES)[:, [1, 2, 0]])
    assert model.pretrained_cfg["label_names"] == NAMES
    assert notes == []


def test_a_frozen_network_with_more_classes_gives_those_of_the_images(tmp_path):
    stored(tmp_path, ["x", "cat", "y", "ant", "bee"])
    model, (note,) = network(checkpoint=str(tmp_path), frozen=True)
    assert model.head.bias.tolist() == [3, 4, 1]
    assert "5" in note and "3" in note


def test_outputs_without_names_are_used_by_position_and_this_is_noted(tmp_path):
    weights = stored(tmp_path)
    (tmp_path / "config.json").unlink()
    model, (note,) = network(checkpoint=str(tmp_path / "model.safetensors"), frozen=True)
    assert torch.equal(model.head.weight, weights["head.weight"])
    assert "same order" in note


def test_a_frozen_network_without_the_classes_is_refused_with_both_lists(tmp_path):
    stored(tmp_path, ["ant", "bee", "dog"])
    with pytest.raises(UserError, match=r"(?s)'cat'.*ant, bee, dog.*ant, bee, cat"):
        network(checkpoint=str(tmp_path), frozen=True)
    stored(tmp_path, ["0", "1", "2", "3"])
    with pytest.raises(UserError, match=r" 4 classes.* 3.*Give|give"):
        network(checkpoint=str(tmp_path), frozen=True)


@pytest.mark.parametrize("names", [["ant", "bee"], ["p", "q", "r"], list("pqrst")])
def test_another_head_is_replaced_by_zeros_and_this_is_noted(tmp_path, names):
    weights = stored(tmp_path, names)
    model, notes = network(checkpoint=str(tmp_path))
    assert same_body(model, weights)
    assert not model.head.weight.any() and not model.head.bias.any()
    assert any("zeros" in note for note in notes)


def test_a_missing_head_is_replaced_but_not_that_of_a_frozen_network(tmp_path):
    weights = stored(tmp_path)
    body = {name: tensor for name, tensor in weights.items() if "head." not in name}
    torch.save(body, tmp_path / "body.pth")
    model, notes = network(checkpoint=str(tmp_path / "body.pth"))
    assert same_body(model, weights)
    assert not model.head.weight.any()
    assert any("zeros" in note for note in notes)
    with pytest.raises(UserError, match="no last layer"):
        network(checkpoint=str(tmp_path / "body.pth"), frozen=True)


def test_the_head_of_a_pretrained_network_of_other_classes_starts_with_zeros(tmp_path):
    weights = stored(tmp_path, list("pqrst"))
    notes = []
    name = f"local-dir:{tmp_path}"
    model = build(
        name, notes=notes, num_classes=3, class_names=NAMES, view_shape=SHAPE, pretrained=True
    )
    assert same_body(model, weights)
    assert not model.head.weight.any()
    assert any("5" in note and "3" in note for note in notes)
    again = timm.create_model(name, pretrained=True)
    assert again.head.weight.any()


def test_weights_of_another_network_are_refused_with_counts(tmp_path):
    weights = stored(tmp_path)
    with pytest.raises(UserError, match=r"does not fit.* 0 fit, \d+ are missing"):
        build("mlp_16", num_classes=3, checkpoint=str(tmp_path))
    without_first = dict(list(weights.items())[1:])
    torch.save(without_first, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r" fit, 1 are missing"):
        network(checkpoint=str(tmp_path / "w.pth"))


@pytest.mark.parametrize("head", ["classifier", "head.fc", "out.linear"])
def test_a_last_layer_under_another_name_is_found(tmp_path, head):
    """As in a module of one's own around a backbone, or in files of other libraries."""
    weights = stored(tmp_path)
    renamed = {
        name.replace("head.", f"{head}.") if name.startswith("head.") else f"backbone.{name}": value
        for name, value in weights.items()
    }
    torch.save({"state_dict": renamed}, tmp_path / "w.ckpt")
    model, notes = network(checkpoint=str(tmp_path / "w.ckpt"), frozen=True)
    assert torch.equal(model.head.weight, weights["head.weight"])
    assert any(f"{head}.weight" in note for note in notes)
    assert any("'backbone.'" in note for note in notes)


@pytest.mark.parametrize("key", ["label_names", "id2label"])
@pytest.mark.parametrize("as_mapping", [False, True])
def test_names_of_classes_are_found_where_libraries_write_them(tmp_path, key, as_mapping):
    """timm's `save_for_hf` writes them beside `pretrained_cfg`."""
    weights = stored(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["pretrained_cfg"]["label_names"]
    names = ["cat", "ant", "bee"]
    config[key] = {str(i): name for i, name in enumerate(names)} if as_mapping else names
    (tmp_path / "config.json").write_text(json.dumps(config))
    model, notes = network(checkpoint=str(tmp_path), frozen=True)
    assert torch.equal(model.head.weight, weights["head.weight"][[1, 2, 0]])
    assert notes == []


def test_more_names_than_outputs_are_refused(tmp_path):
    stored(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["pretrained_cfg"]["label_names"] = [*NAMES, "dog"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"3 outputs.* 4 classes"):
        network(checkpoint=str(tmp_path), frozen=True)


def test_a_configuration_of_another_network_is_noted(tmp_path):
    weights = stored(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["architecture"] = "resnet18"
    (tmp_path / "config.json").write_text(json.dumps(config))
    model, (note,) = network(checkpoint=str(tmp_path))
    assert same_body(model, weights)
    assert "resnet18" in note


def test_tensors_that_are_left_over_are_noted(tmp_path):
    weights = stored(tmp_path)
    torch.save(weights | {"loss.centers": torch.zeros(3)}, tmp_path / "w.pth")
    model, notes = network(checkpoint=str(tmp_path / "w.pth"))
    assert same_body(model, weights)
    assert any("loss.centers" in note for note in notes)


def test_names_that_contradict_each_other_are_refused(tmp_path):
    stored(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["label_names"] = ["cat", "ant", "bee"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="twice"):
        network(checkpoint=str(tmp_path), frozen=True)

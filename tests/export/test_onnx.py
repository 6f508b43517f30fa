"""ONNX files: the logits of the network, calibrated probabilities, batches of any size."""

import json

import numpy as np
import pytest
import torch

from distill.data.augment import normalise
from distill.errors import UserError
from distill.export import onnx as export
from distill.export.onnx import TOLERANCE, about_run, export_onnx
from distill.models.factory import ModelSpec, build_model

pytestmark = pytest.mark.slow
MEAN = (0.4, 0.45, 0.5)
STD = (0.2, 0.25, 0.3)


def build(name, **args):
    spec = ModelSpec(
        name, num_classes=5, view_shape=(3, 32, 32), mean=MEAN, std=STD, model_args=args
    )
    return build_model(spec, seed=0).eval()


@pytest.mark.parametrize("name", ["test_vit", "test_efficientnet", "cosine_head"])
def test_networks_of_every_kind_are_exported(tmp_path, name):
    pytest.importorskip("onnxscript")
    args = {"base": "cifar_resnet8"} if name == "cosine_head" else {}
    assert export_onnx(build(name, **args), tmp_path / "x.onnx", 1.3) <= TOLERANCE
    assert [path.name for path in tmp_path.iterdir()] == ["x.onnx"]


def test_a_file_has_the_outputs_and_the_metadata_of_its_network(tmp_path):
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    model = build("cifar_resnet8")
    export_onnx(model, tmp_path / "x.onnx", 1.3, about_run("0123", ["a", "b"], 1.3, 0.9))
    session = onnxruntime.InferenceSession(tmp_path / "x.onnx", providers=["CPUExecutionProvider"])
    pixels = torch.rand(7, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    logits, probabilities = session.run(None, {"pixels": pixels.numpy()})
    with torch.no_grad():
        expected = model(normalise(255 * pixels, MEAN, STD)).double()
    np.testing.assert_allclose(logits, expected.numpy(), atol=1e-4)
    scaled = torch.softmax(expected / 1.3, 1)
    np.testing.assert_allclose(probabilities, scaled.numpy(), atol=1e-4)
    about = session.get_modelmeta().custom_metadata_map
    assert about["distill_run"] == "0123"
    assert json.loads(about["classes"]) == ["a", "b"]
    assert float(about["calibration_temperature"]) == 1.3


def test_a_file_of_another_type_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"x\.pt"):
        export_onnx(build("cifar_resnet8"), tmp_path / "x.pt")


def test_a_network_that_cannot_be_exported_leaves_no_file(tmp_path):
    pytest.importorskip("onnxscript")
    model = build("cifar_resnet8")
    weights = model.get_classifier().weight
    model.register_forward_hook(lambda *_: torch.tensor(weights.detach().numpy().tolist()))
    with pytest.raises(UserError):
        export_onnx(model, tmp_path / "x.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_file_with_other_outputs_is_not_written(tmp_path, monkeypatch):
    pytest.importorskip("onnxscript")
    monkeypatch.setattr(export, "TOLERANCE", -1.0)
    with pytest.raises(UserError, match=r"network\.onnx"):
        export_onnx(build("cifar_resnet8"), tmp_path / "network.onnx")
    assert not list(tmp_path.iterdir())

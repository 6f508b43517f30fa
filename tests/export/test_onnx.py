"""Networks of every kind are written as ONNX, with the outputs that torch computes."""

import pytest
import timm
import torch

import distill.models  # noqa: F401  (registers its networks in timm)
from distill.errors import UserError
from distill.export import onnx as export
from distill.export.onnx import TOLERANCE, export_onnx

pytest.importorskip("onnxscript")

NETWORKS = {
    "test_vit": {"img_size": 32},
    "test_efficientnet": {},
    "cifar_resnet8": {},
    "cosine_head": {"base": "cifar_resnet8"},
}


def build(name):
    """Return a network of five classes for images ``[3, 32, 32]``."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=5, **NETWORKS[name])
    normalisation = {"mean": (0.4,) * 3, "std": (0.2,) * 3}
    model.pretrained_cfg = {**model.pretrained_cfg, **normalisation, "input_size": (3, 32, 32)}
    return model.eval()


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_has_the_outputs_of_torch_for_batches_of_any_size(tmp_path, name):
    onnxruntime = pytest.importorskip("onnxruntime")
    model = build(name)
    path = tmp_path / "folder" / "network.onnx"
    assert export_onnx(model, path, 1.3, {"key": "value"}) <= TOLERANCE
    assert [file.name for file in path.parent.iterdir()] == ["network.onnx"]

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert session.get_modelmeta().custom_metadata_map["key"] == "value"
    pixels = torch.rand(3, 3, 32, 32)
    logits, probabilities = session.run(None, {"pixels": pixels.numpy()})
    with torch.no_grad():
        expected = model((pixels - 0.4) / 0.2)
    torch.testing.assert_close(torch.from_numpy(logits), expected, atol=1e-4, rtol=1e-4)
    scaled = torch.softmax(expected / 1.3, 1)
    torch.testing.assert_close(torch.from_numpy(probabilities), scaled, atol=1e-4, rtol=1e-4)


def test_other_suffixes_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"network\.pt.*\.onnx"):
        export_onnx(build("cifar_resnet8"), tmp_path / "network.pt")


def test_a_file_with_other_outputs_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "TOLERANCE", -1.0)
    path = tmp_path / "network.onnx"
    with pytest.raises(UserError, match=r"network\.onnx"):
        export_onnx(build("cifar_resnet8"), path)
    assert not list(tmp_path.iterdir())

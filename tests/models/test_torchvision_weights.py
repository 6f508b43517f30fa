"""Weights of torchvision's networks are those of timm's, by equal outputs."""

import pytest
import torch
import torchvision
from helpers.models import build

from distill.errors import UserError

PAIRS = [
    ("resnet18", "resnet18"),
    ("mobilenet_v2", "mobilenetv2_100"),
    ("efficientnet_b0", "efficientnet_b0"),
    ("densenet121", "densenet121"),
    ("convnext_tiny", "convnext_tiny"),
    ("vit_b_32", "vit_base_patch32_224"),
]


# timm kept torchvision's names for these, or converts them itself.
SAME_NAMES = ("resnet18", "densenet121")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "timm_name"), PAIRS)
def test_outputs_are_those_of_torchvision(tmp_path, name, timm_name):
    torch.manual_seed(0)
    original = torchvision.models.get_model(name, num_classes=10).eval()
    for parameter in original.parameters():
        torch.nn.init.normal_(parameter, std=0.05)  # so that no two layers are equal
    torch.save(original.state_dict(), tmp_path / "w.pth")
    notes = []
    model = build(
        timm_name, view_shape=(3, 224, 224), checkpoint=str(tmp_path / "w.pth"), notes=notes
    ).eval()
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        expected = original(images)
        torch.testing.assert_close(model(images), expected, rtol=1e-3, atol=1e-4)
    assert any("torchvision" in note for note in notes) == (name not in SAME_NAMES)


@pytest.mark.slow
def test_weights_of_another_network_of_torchvision_are_refused(tmp_path):
    original = torchvision.models.get_model("mobilenet_v2", num_classes=10)
    torch.save(original.state_dict(), tmp_path / "w.pth")
    with pytest.raises(UserError, match="does not fit"):
        build("efficientnet_b0", view_shape=(3, 224, 224), checkpoint=str(tmp_path / "w.pth"))


@pytest.mark.slow
def test_a_network_that_computes_something_else_with_the_same_shapes_is_refused(tmp_path):
    """The tensors of a MobileNetV2 with another activation fit by order alone."""
    original = torchvision.models.get_model("mobilenet_v2", num_classes=10)
    torch.save(original.state_dict(), tmp_path / "w.pth")
    with pytest.raises(UserError, match="does not fit"):
        build(
            "mobilenetv2_100",
            view_shape=(3, 224, 224),
            checkpoint=str(tmp_path / "w.pth"),
            model_args={"act_layer": "sigmoid"},
        )

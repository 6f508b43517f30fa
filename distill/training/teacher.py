"""The teacher: a frozen network that is checked before any student learns from it."""

from collections.abc import Collection, Mapping

import torch
from scipy.stats import binomtest
from torch import Tensor, nn

from distill.errors import UserError
from distill.losses import Outputs
from distill.models.hooks import capture_outputs

# With fewer validation images than this, a teacher is refused only if its accuracy on them is not
# above chance.
FEW_IMAGES = 100


class Teacher(nn.Module):
    """A frozen network.

    It has no gradients, no dropout and no updates of batch-norm statistics, even after `.train()`.

    Attributes:
        model: the network.
        outputs: what students' losses need of it besides logits: "features", "feature_maps".
        half_precision: the 16-bit type that it computes in, None for float32.
    """

    def __init__(
        self,
        model: nn.Module,
        outputs: Collection[str] = (),
        half_precision: torch.dtype | None = None,
        *,
        compiled: bool = False,
    ) -> None:
        super().__init__()
        self.model = model.requires_grad_(requires_grad=False).eval()
        self.outputs = {"features", "feature_maps"} & set(outputs)
        self.half_precision = half_precision
        if half_precision is not None:
            self._store_weights_in_half_precision(half_precision)
        # Hooks that capture outputs do not work inside a compiled network.
        can_compile = compiled and not self.outputs
        self.forward_model = torch.compile(model.forward) if can_compile else model.forward

    def _store_weights_in_half_precision(self, dtype: torch.dtype) -> None:
        """Convert once the weights that autocast would otherwise convert in every step."""
        for layer in self.model.modules():
            if type(layer) in (nn.Linear, nn.Conv2d):
                layer.to(dtype)

    def train(self, mode: bool = True) -> "Teacher":  # noqa: FBT001, FBT002  (torch's own signature)
        """Stay in eval mode."""
        return super().train(mode=False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Outputs:
        """Return outputs for normalised images `[B, C, H, W]`, in the network's own precision."""
        with (
            self.autocast(images.device),
            capture_outputs(self.model, self.outputs) as captured,
        ):
            logits = self.forward_model(images)
        return Outputs(logits, **captured)

    def autocast(self, device: torch.device) -> torch.autocast:
        """Return a context in which the network computes in its precision."""
        enabled = self.half_precision is not None
        return torch.autocast(device.type, self.half_precision, enabled=enabled)


class NotNumbersError(UserError):
    """A network's outputs are NaN or infinite."""


def refuse_nan(name: str, predictions: Mapping[str, Tensor]) -> None:
    """Refuse a network whose outputs are not numbers.

    Args:
        name: the network's name, for the message.
        predictions: its logits ``[N, K]`` by split, as ``SPLIT.logits``.

    Raises:
        NotNumbersError: if a logit is NaN or infinite.
    """
    logits = [value for key, value in predictions.items() if key.endswith(".logits")]
    bad = sum(int((~torch.isfinite(one)).any(1).sum()) for one in logits)
    if bad:
        total = sum(len(one) for one in logits)
        raise NotNumbersError(
            f"{name}: its outputs are not numbers (NaN or infinite) for {bad} of {total} images; "
            "its weights are damaged, or training diverged in its last steps"
        )


def likelihood_note(name: str, logits: Tensor, labels: Tensor) -> str | None:
    """Return a sentence if a network's likelihood is worse than that of always guessing alike.

    Args:
        name: the network's name.
        logits: `[N, K]` on held-out images.
        labels: `[N]`.
    """
    nll = torch.nn.functional.cross_entropy(logits.double(), labels).item()
    frequencies = labels.bincount().double() / len(labels)
    chance = -torch.special.xlogy(frequencies, frequencies).sum().item()
    if nll <= chance:
        return None
    return (
        f"{name}: its likelihood is worse than chance: an NLL of {nll:.2f} nats on the validation "
        f"split, where the frequencies of the classes alone have {chance:.2f}. Its probabilities "
        "mislead students that learn from them"
    )


def check_teacher(name: str, logits: Tensor, labels: Tensor) -> None:
    """Refuse a teacher that is no better than chance, before any student starts.

    Args:
        name: the teacher's name, for the message.
        logits: `[N, K]` on the study's own validation split.
        labels: `[N]`.

    Raises:
        UserError: if its accuracy is not above chance. Common causes are a classifier head that the
            checkpoint lacks, wrong normalisation, and classes in another order.
    """
    if not at_chance(logits, labels):
        return
    accuracy = (logits.argmax(1) == labels).double().mean()
    chance = labels.bincount().max() / len(labels)
    raise UserError(
        f"teacher {name}: {accuracy:.1%} accuracy on {len(labels)} validation images, not above "
        f"chance ({chance:.1%}). Check the length of training, the classifier head, the input "
        "normalisation and the order of classes; check_teachers=false continues anyway"
    )


def at_chance(logits: Tensor, labels: Tensor) -> bool:
    """Return whether a network may be no better than always predicting the most frequent class.

    It may be if a one-sided binomial test gives p > 0.01. With fewer than `FEW_IMAGES` images, the
    threshold is p > 0.5: the network must also be no better on these very images. With so few
    images that even a perfect network could not reach p ≤ 0.01, the result is False.

    Args:
        logits: `[N, K]`.
        labels: `[N]`.
    """
    correct = int((logits.argmax(1) == labels).sum())
    chance = labels.bincount().max().item() / len(labels)
    is_decidable = chance ** len(labels) <= 0.01
    threshold = 0.01 if len(labels) >= FEW_IMAGES else 0.5
    p_value = float(binomtest(correct, len(labels), chance, alternative="greater").pvalue)
    return is_decidable and p_value > threshold

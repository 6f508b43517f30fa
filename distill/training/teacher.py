"""The teacher's contract: frozen, in eval mode whatever is asked, and shown to be worth learning from."""

from collections.abc import Collection

import torch
from scipy.stats import binomtest
from torch import Tensor, nn

from distill.errors import UserError
from distill.losses import Outputs
from distill.models.hooks import capture_outputs


class Teacher(nn.Module):
    """A network that answers and never changes: no gradients, no dropout, no updates of its buffers.

    Attributes:
        model: the network.
        needs: what its students' losses look at beside logits: "features", "feature_maps".
        half: the precision that it computes in, None for float32.
    """

    def __init__(
        self,
        model: nn.Module,
        needs: Collection[str] = (),
        half: torch.dtype | None = None,
        compiled: bool = False,
    ) -> None:
        super().__init__()
        self.model, self.needs, self.half = (
            model.requires_grad_(False).eval(),
            {"features", "feature_maps"} & set(needs),
            half,
        )
        for layer in self.model.modules() if half else ():
            if type(layer) in (
                nn.Linear,
                nn.Conv2d,
            ):  # autocast would cast these weights anew in every step
                layer.to(half)
        self.call = (
            torch.compile(self.model.forward) if compiled and not self.needs else self.model.forward
        )

    def train(self, mode: bool = True) -> "Teacher":
        """Stays in eval mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Outputs:
        """CachedTeacher for normalised images ``[B, C, H, W]``, in the precision that the network gives them."""
        with self.precision(images.device), capture_outputs(self.model, self.needs) as seen:
            logits = self.call(images)
        return Outputs(logits, **seen)

    def precision(self, device: torch.device) -> torch.autocast:
        """Within it the network computes in its precision."""
        return torch.autocast(device.type, self.half, enabled=self.half is not None)


def check_teacher(name: str, logits: Tensor, labels: Tensor) -> None:
    """Refuse a teacher that is no better than chance on held-out examples, before any student starts.

    Args:
        name: of the teacher, for the message.
        logits: ``[N, K]`` on the study's own validation split.
        labels: ``[N]``.

    Raises:
        UserError: if it is `at_chance`. A head that was not in the checkpoint, wrong normalisation and permuted
            classes all look like this.
    """
    if at_chance(logits, labels):
        accuracy, chance = (
            (logits.argmax(1) == labels).double().mean(),
            labels.bincount().max() / len(labels),
        )
        raise UserError(
            f"teacher {name} is right on {accuracy:.1%} of the {len(labels)} validation images, which is no better "
            f"than chance ({chance:.1%}): its students would learn nothing. Is it trained long enough, are its "
            "head, its normalisation and its order of classes those of these data? (check_teachers=false goes on)"
        )


FEW = 100  # examples, fewer of which tell little


def at_chance(logits: Tensor, labels: Tensor) -> bool:
    """Whether always answering the commonest class could be as good (binomial test, p > 0.01).

    Of fewer than `FEW` examples ``[N]``, only if it is no worse on these very ones; False where not even a perfect
    network could show more.
    """
    right, chance = (
        int((logits.argmax(1) == labels).sum()),
        labels.bincount().max().item() / len(labels),
    )
    decidable, most = chance ** len(labels) <= 0.01, 0.01 if len(labels) >= FEW else 0.5
    return decidable and binomtest(right, len(labels), chance, alternative="greater").pvalue > most

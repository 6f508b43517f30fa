"""A term as a module, for a loop of one's own."""

import inspect
from typing import Any, Literal

from torch import Tensor, nn

from distill.errors import suggest
from distill.losses.common import IGNORED, Outputs
from distill.losses.labels import warn_if_smoothed
from distill.losses.registry import LOSS_MODULES, LOSSES
from distill.recipe.loss_terms import loss_settings_model, needs_teacher
from distill.recipe.validation import check
from distill.recipe.yaml_reader import Problems


class Criterion(nn.Module):
    """``Criterion("cross_entropy", smoothing=0.1)``: any term, with a reduction, wherever its inputs are.

    In eval mode it is the same function, but a part that learns from what it sees (`OnlineTargets`) rests.

    Args:
        name: of a term.
        reduction: "mean" over the examples that are not ignored (0 if all are), "sum", or "none".
        ignore_index: label of examples that give no loss and no gradient.
        part: the module of the terms that have one: `nn.Linear(D_s, D_t)` for hint, `OnlineTargets(K)` for
            online_smoothing, whose `part.end_epoch()` is to be called after each epoch.
        hyperparameters: of the term, checked here.

    Raises:
        ValueError: for an unknown name or hyperparameter, or a value out of its range.
    """

    def __init__(
        self,
        name: str,
        reduction: Literal["mean", "sum", "none"] = "mean",
        *,
        ignore_index: int = IGNORED,
        part: nn.Module | None = None,
        **hyperparameters: Any,
    ) -> None:
        super().__init__()
        if name not in LOSSES:
            raise ValueError(f"unknown term '{name}'; {suggest(name, LOSSES)}")
        if reduction not in ("mean", "sum", "none"):
            raise ValueError(f"reduction must be mean, sum or none, got {reduction!r}")
        hyperparameters = {
            k: v.tolist() if isinstance(v, Tensor) else v for k, v in hyperparameters.items()
        }
        problems = Problems("")
        problems.lines[()] = f"Criterion('{name}')"
        model = loss_settings_model(LOSSES[name], weighted=False)
        check(model, hyperparameters, (), problems)
        if problems.found:
            raise ValueError("\n".join(problems.found))
        if (name in LOSS_MODULES) != (part is not None):
            wanted = {"hint": "nn.Linear(D_s, D_t)", "online_smoothing": "OnlineTargets(K)"}.get(
                name
            )
            raise ValueError(
                f"Criterion('{name}'): this term "
                + ("has no part" if part else f"needs part={wanted}")
            )
        self.name, self.reduction, self.ignore_index, self.part = (
            name,
            reduction,
            ignore_index,
            part,
        )
        self.hyperparameters = hyperparameters
        self._unseen = True

    def forward(
        self,
        student: Tensor | Outputs,
        labels: Tensor,
        teacher: Tensor | Outputs | None = None,
        progress: float | None = None,
    ) -> Tensor:
        """The reduced loss.

        Args:
            student: logits ``[B, K]`` or ``[B, K, d…]``, or `Outputs`.
            labels: ``[B]`` or ``[B, d…]``, or soft labels in the shape of the logits.
            teacher: as `student`, for terms on a teacher.
            progress: share of training that is done, in [0, 1], for terms that change with it.

        Raises:
            ValueError: if the term needs a teacher and there is none, or the labels have another shape.
        """
        if teacher is None and needs_teacher(LOSSES[self.name]):
            raise ValueError(
                f"Criterion('{self.name}') needs the teacher's logits as its third argument"
            )
        student, teacher = (Outputs(x) if isinstance(x, Tensor) else x for x in (student, teacher))
        hard, shape = not labels.is_floating_point(), student.logits.shape
        if labels.shape != (shape[:1] + shape[2:] if hard else shape):
            raise ValueError(
                f"Criterion('{self.name}'): labels of shape {list(labels.shape)} do not go with logits of "
                f"shape {list(shape)}: classes [B, d…] or distributions [B, K, d…] do"
            )
        labels = labels.long() if hard else labels
        if (
            self._unseen and not hard and labels.device.type != "cpu"
        ):  # once: looking waits for the device
            warn_if_smoothed(labels, self.hyperparameters.get("smoothing", 0.0))
            self._unseen = False
        if hard and self.ignore_index != IGNORED:
            labels = labels.masked_fill(labels == self.ignore_index, IGNORED)
        keywords = self.hyperparameters | ({"part": self.part} if self.part is not None else {})
        if progress is not None and "progress" in inspect.signature(LOSSES[self.name]).parameters:
            keywords["progress"] = progress
        loss = LOSSES[self.name](student, labels, teacher, **keywords)
        is_counted = (
            (labels != IGNORED).expand_as(loss) if hard else loss.new_ones(loss.shape, dtype=bool)
        )
        loss = loss.masked_fill(~is_counted, 0)  # also of terms that read no label
        if self.reduction == "none":
            return loss
        return (
            loss.sum() / is_counted.sum().clamp(min=1) if self.reduction == "mean" else loss.sum()
        )

    def extra_repr(self) -> str:
        """The term and its settings."""
        settings = [f"{key}={value}" for key, value in self.hyperparameters.items()]
        return ", ".join([self.name, f"reduction={self.reduction}", *settings])

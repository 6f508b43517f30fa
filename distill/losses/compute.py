"""Compute the weighted sum of loss terms, with the inputs and the weight of each term."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from distill.errors import suggest
from distill.losses.outputs import Outputs
from distill.losses.registry import LOSSES, module_parameter
from distill.losses.tensor_ops import mask_ignored
from distill.recipe.loss_terms import (
    TEACHER_PREFIX,
    LossFunction,
    Weighted,
    input_names,
    runtime_args,
)


def compute_loss(
    terms: Mapping[str, Mapping[str, Any]],
    student: Outputs,
    labels: Tensor,
    teacher: Outputs | None,
    *,
    batch_size: int,
    modules: Mapping[str, nn.Module] | None = None,
    progress: float = 0.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute the loss of a batch, ``Σ_terms weight Σ_examples term / batch_size``.

    Each term gets the outputs that its parameters name. Examples with the label `IGNORED` give no
    loss and no gradient, even in terms that read no labels. They do count in batch_size. A term
    that returns a scalar, such as a weight penalty, counts once for every example.

    Args:
        terms: Settings of each term, by its name, with the optional keys `weight` (1 by default)
            and `warmup` (share of training over which the weight grows from 0; 0 by default).
            Omitted settings have the defaults of the loss function.
        student: The student's outputs for these examples.
        labels: Classes ``[B, d…]``, or distributions ``[B, K, d…]``.
        teacher: The teacher's outputs for the same images, or None if no term needs them.
        batch_size: Number of examples of the whole batch. If a batch is processed in parts, the
            losses of the parts add up to its mean.
        modules: The modules that terms own, by the name of their term (`make_loss_modules`).
        progress: Share of training that is done, in [0, 1].

    Returns:
        The loss, a scalar; and the sum of each term over the examples, detached and without its
        weight, by the name of the term.

    Raises:
        ValueError: If a term lacks an input or rejects one; the message starts with its name.
    """
    total: Tensor | None = None
    sums: dict[str, Tensor] = {}
    for name, settings in terms.items():
        if name not in LOSSES:
            raise ValueError(f"unknown loss term '{name}'; {suggest(name, LOSSES)}")
        function = LOSSES[name]
        try:
            inputs = _inputs(function, student, labels, teacher)
            runtime = _runtime_args(name, student, modules, progress)
            loss = function(*inputs, **_own_settings(settings), **runtime)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None

        if "labels" not in input_names(function):
            loss = _mask_or_expand(loss, labels)
        term_sum = loss.sum()
        weighted = term_sum * (_weight(settings, progress) / batch_size)
        total = weighted if total is None else total + weighted
        sums[name] = term_sum.detach()

    if total is None:
        total = student.logits.new_zeros(())
    return total, sums


def _inputs(
    function: LossFunction, student: Outputs, labels: Tensor, teacher: Outputs | None
) -> list[Any]:
    """Return the positional arguments of a loss function."""
    inputs = []
    for name in input_names(function):
        if name == "labels":
            inputs.append(labels)
        elif name.startswith(TEACHER_PREFIX):
            if teacher is None:
                raise ValueError("needs a teacher's outputs, but there is no teacher")
            inputs.append(_field(teacher, name.removeprefix(TEACHER_PREFIX), "teacher"))
        else:
            inputs.append(_field(student, name, "student"))
    return inputs


def _field(outputs: Outputs, field: str, role: str) -> Any:
    value = getattr(outputs, field)
    if value is None:
        reason = " (an ensemble of teachers has only logits)" if role == "teacher" else ""
        raise ValueError(f"needs {field} of the {role}, but Outputs.{field} is None{reason}")
    return value


def _runtime_args(
    name: str, student: Outputs, modules: Mapping[str, nn.Module] | None, progress: float
) -> dict[str, Any]:
    """Return the keyword arguments of a term that training supplies, and not the recipe."""
    function = LOSSES[name]
    available: dict[str, Any] = {"progress": progress, "logit_scale": student.logit_scale}
    parameter = module_parameter(function)
    if parameter is not None:
        if modules is None or name not in modules:
            raise ValueError(f"needs a module for {parameter}; make it with make_loss_modules")
        available[parameter] = modules[name]
    return {key: available[key] for key in runtime_args(function)}


def _own_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings without the keys that every term has."""
    return {key: value for key, value in settings.items() if key not in Weighted.model_fields}


def _mask_or_expand(loss: Tensor, labels: Tensor) -> Tensor:
    """Apply the ignored label to a loss that reads no labels, and expand a scalar to all examples.

    Returns:
        The loss with 0 where a label is `IGNORED`; a scalar as one value per example.
    """
    if loss.ndim == 0:
        soft = labels.is_floating_point()
        return loss.expand(labels.shape[:1] + labels.shape[2:] if soft else labels.shape)
    # A loss on features, [B], has nothing to mask if the labels are dense, [B, d…].
    return mask_ignored(loss, labels) if loss.shape == labels.shape else loss


def _weight(settings: Mapping[str, Any], progress: float) -> float:
    """Return the weight of a term at this point of training."""
    weight = settings.get("weight", 1.0)
    warmup = settings.get("warmup", 0.0)
    if warmup == 0:
        return weight
    return min(1.0, progress / warmup) * weight

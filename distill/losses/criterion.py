"""A loss as a PyTorch module, with a reduction and an ignored label."""

from inspect import Parameter, Signature
from typing import Any, Literal

import pydantic
from torch import Tensor, nn

from distill.errors import suggest
from distill.losses.label_smoothing import warn_if_smoothed
from distill.losses.registry import LOSSES, module_parameter
from distill.losses.tensor_ops import IGNORED, mask_ignored
from distill.recipe.loss_terms import input_names, loss_settings_model, runtime_args


class Criterion(nn.Module):
    """A loss with fixed settings, for a training loop of your own.

    For example ``Criterion("cross_entropy", smoothing=0.1)(logits, labels)`` or
    ``Criterion("kd", temperature=2.0)(logits, teacher_logits)``. In eval mode, `OnlineTargets` does
    not collect predictions.

    Args:
        name: A loss in `LOSSES`.
        reduction: "mean" over the examples that are not ignored (0 if all are), "sum" or "none".
        ignore_index: Label of examples that give no loss and no gradient.
        settings: Keyword arguments of the loss function. Two losses need a module, which becomes a
            submodule of the same name: "hint" needs ``projector=nn.Linear(D_s, D_t)``, and
            "online_smoothing" needs ``targets=OnlineTargets(K)``. Losses on cosine logits need
            ``logit_scale=s``.

    Raises:
        ValueError: If the name or a setting is unknown, a setting is out of its range, or a module
            is missing.
    """

    def __init__(
        self,
        name: str,
        reduction: Literal["mean", "sum", "none"] = "mean",
        *,
        ignore_index: int = IGNORED,
        **settings: Any,
    ) -> None:
        super().__init__()
        if name not in LOSSES:
            raise ValueError(f"unknown loss '{name}'; {suggest(name, LOSSES)}")
        if reduction not in ("mean", "sum", "none"):
            raise ValueError(f"reduction must be mean, sum or none, got {reduction!r}")
        self.name = name
        self.function = LOSSES[name]
        self.reduction = reduction
        self.ignore_index = ignore_index

        self._module_name = module_parameter(self.function)
        if self._module_name is not None:
            module = settings.pop(self._module_name, None)
            if not isinstance(module, nn.Module):
                raise ValueError(
                    f"Criterion('{name}'): {self._module_name} must be an nn.Module, got {module!r}"
                )
            setattr(self, self._module_name, module)
        self.runtime: dict[str, Any] = {}
        if "logit_scale" in runtime_args(self.function):
            self.runtime["logit_scale"] = settings.pop("logit_scale", None)
        self.settings = _checked_settings(name, settings)
        self._signature = _forward_signature(name)
        self._may_warn = True

    def forward(self, *inputs: Any, progress: float | None = None, **named_inputs: Any) -> Tensor:
        """Compute the reduced loss.

        Args:
            inputs: The positional arguments of the loss function, also accepted by keyword.
            progress: Share of training that is done, in [0, 1]. Losses that do not change over
                training ignore it.
            named_inputs: Inputs by keyword. A loss that reads no labels accepts ``labels=`` as
                well, to find the ignored examples.

        Returns:
            A scalar; with ``reduction="none"`` one value per example. A weight penalty has no
            examples and is returned as it is.

        Raises:
            ValueError: If labels do not have the shape of the logits' examples, or the loss rejects
                its inputs.
        """
        try:
            arguments = self._signature.bind(*inputs, **named_inputs).arguments
        except TypeError as error:
            raise TypeError(f"Criterion('{self.name}') takes {self._signature}; {error}") from None
        labels = arguments.pop("labels", None)
        if labels is not None:
            labels = self._prepare_labels(labels, arguments.get("logits"))
        if "labels" in input_names(self.function):
            arguments["labels"] = labels

        runtime = dict(self.runtime)
        if self._module_name is not None:
            runtime[self._module_name] = getattr(self, self._module_name)
        if progress is not None and "progress" in runtime_args(self.function):
            runtime["progress"] = progress
        return self._reduce(self.function(**arguments, **self.settings, **runtime), labels)

    def _prepare_labels(self, labels: Tensor, logits: Tensor | None) -> Tensor:
        """Check the labels' shape, and replace this criterion's ignored label by `IGNORED`."""
        is_one_hot = logits is not None and labels.ndim > 1 and labels.shape == logits.shape
        if is_one_hot:
            labels = labels.to(logits.dtype)
        soft = labels.is_floating_point()
        if logits is not None:
            expected = logits.shape if soft else logits.shape[:1] + logits.shape[2:]
            if labels.shape != expected:
                raise ValueError(
                    f"Criterion('{self.name}'): labels of shape {list(labels.shape)} do not fit "
                    f"logits of shape {list(logits.shape)}; "
                    "pass classes [B, d…] or distributions [B, K, d…]"
                )
        if soft:
            # On an accelerator this check synchronises the device, so run it only once.
            if self._may_warn and labels.device.type != "cpu":
                warn_if_smoothed(labels, self.settings.get("smoothing", 0.0))
                self._may_warn = False
            return labels
        labels = labels.long()
        if self.ignore_index == IGNORED:
            return labels
        return labels.masked_fill(labels == self.ignore_index, IGNORED)

    def _reduce(self, loss: Tensor, labels: Tensor | None) -> Tensor:
        """Mask the ignored examples and reduce the loss of the others."""
        is_masked = labels is not None and not labels.is_floating_point() and loss.ndim > 0
        if is_masked:
            if labels.shape != loss.shape:
                raise ValueError(
                    f"Criterion('{self.name}'): labels have the shape {list(labels.shape)}, "
                    f"but the losses of the examples have the shape {list(loss.shape)}"
                )
            loss = mask_ignored(loss, labels)
        if self.reduction == "none":
            return loss
        if self.reduction == "sum":
            return loss.sum()
        if is_masked:
            return loss.sum() / (labels != IGNORED).sum().clamp(min=1)
        return loss.mean()

    def extra_repr(self) -> str:
        """Return the loss and its settings, for `repr`."""
        settings = [f"{key}={value}" for key, value in (self.settings | self.runtime).items()]
        return ", ".join([self.name, f"reduction={self.reduction}", *settings])


def _checked_settings(name: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a loss after a check of names, types and ranges.

    Raises:
        ValueError: With one line for each problem.
    """
    settings = {
        # Tensors and numpy arrays, such as class weights.
        key: value.tolist() if hasattr(value, "tolist") else value
        for key, value in settings.items()
    }
    model = loss_settings_model(LOSSES[name], weighted=False)
    try:
        model.model_validate(settings)
    except pydantic.ValidationError as error:
        problems = [_problem(name, detail) for detail in error.errors()]
        raise ValueError("\n".join(problems)) from None
    return settings


def _problem(name: str, error: Any) -> str:
    """Describe one of pydantic's errors in a line."""
    key = str(error["loc"][0])
    if error["type"] == "extra_forbidden":
        known = loss_settings_model(LOSSES[name], weighted=False).model_fields
        return f"Criterion('{name}'): unknown setting '{key}'; {suggest(key, known)}"
    return f"Criterion('{name}'): {key}: {error['msg']}, got {error['input']!r}"


def _forward_signature(name: str) -> Signature:
    """Return the inputs of a criterion: those of its loss, and labels for all losses."""
    names = input_names(LOSSES[name])
    parameters = [Parameter(name, Parameter.POSITIONAL_OR_KEYWORD) for name in names]
    if "labels" not in names:
        parameters.append(Parameter("labels", Parameter.KEYWORD_ONLY, default=None))
    return Signature(parameters)

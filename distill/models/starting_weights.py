"""Start a network from given weights: fit their names, and its classes to those of the images."""

import inspect
import sys
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from distill.errors import UserError
from distill.models.class_names import ClassMatch, match_classes
from distill.models.cosine_head import CosineHead
from distill.models.heads import last_linear, last_linear_name, start_small
from distill.models.torchvision_weights import convert_from_torchvision
from distill.models.weight_files import mismatch_message, num_fitting, strip_prefix

State = dict[str, Tensor]


def fit_weights(
    model: nn.Module,
    state: State,
    origin: str,
    names: tuple[Sequence[str] | None, Sequence[str]],
    *,
    frozen: bool,
) -> list[str]:
    """Load weights of any origin into a network, in place.

    The rows of the last layer are taken by the names of the classes. If the classes are others, a
    network that is trained gets a new last layer, which starts with zeros.

    Args:
        model: the network, with a last layer for the classes of the images.
        state: tensors by name, as they are in the file.
        origin: the file or the name of the weights, for messages.
        names: of the classes in the file, None if unknown, and of the images' classes.
        frozen: whether the network is not trained, so that it needs the file's last layer.

    Returns:
        sentences on what was taken, left out and replaced.

    Raises:
        UserError: if the weights do not fit.
    """
    expected = model.state_dict()
    head = _head_tensors(model)
    body = {name: tensor for name, tensor in expected.items() if name not in head}
    notes: list[str] = []
    stripped, prefix = strip_prefix(state, body, origin)
    if prefix:
        notes.append(f"the weights are those of {origin} whose names begin with '{prefix}'")
    fitted = _rename(model, stripped, body, notes)
    _find_head(fitted, expected, head, notes)
    # Old files of PyTorch have no counters of batch-norm steps.
    for name, tensor in expected.items():
        if name.endswith("num_batches_tracked"):
            fitted.setdefault(name, tensor)

    is_new_head = False
    if head:
        try:
            is_new_head = _fit_head(fitted, expected, head, names, notes, frozen=frozen)
        except UserError as error:
            raise UserError(f"{origin}: {error}") from None
    elif names[0]:
        match = match_classes(names[0], len(names[0]), names[1])
        if not match.is_identity(len(names[0])):
            raise UserError(
                f"the classes of the weights {origin} are in another order than those of the "
                "images, and this network has no single last layer whose rows could be exchanged"
            )
    wanted = body if is_new_head else expected
    if num_fitting(fitted, wanted) < len(wanted):
        raise UserError(mismatch_message(origin, fitted, wanted))
    left_over = [name for name in fitted if name not in expected]
    if left_over:
        notes.append(f"left out {len(left_over)} tensors of {origin}, such as {left_over[0]}")
    model.load_state_dict({name: fitted[name] for name in wanted}, strict=not is_new_head)
    if is_new_head and not isinstance(last_linear(model), CosineHead):
        start_small(model)
    return notes


def _find_head(fitted: State, expected: State, head: list[str], notes: list[str]) -> None:
    """Give the last layer its name if the file has it under another one, in place.

    It is the only layer among the tensors that are left over whose weight has the same number of
    features, and which has a bias as the network's last layer has.
    """
    if not head or all(name in fitted for name in head):
        return
    endings = [f".{name.rpartition('.')[2]}" for name in head]
    features = expected[head[0]].flatten(1).shape[1]
    left_over = [name for name in fitted if name not in expected]
    layers = []
    for name in left_over:
        layer = name.removesuffix(endings[0])
        parts = [layer + ending for ending in endings]
        is_linear = name.endswith(endings[0]) and fitted[name].ndim >= 2
        has_features = is_linear and fitted[name].flatten(1).shape[1] == features
        if has_features and all(part in fitted for part in parts):
            layers.append(parts)
    if len(layers) == 1:
        for name, found in zip(head, layers[0], strict=True):
            tensor = fitted.pop(found)
            fitted[name] = tensor.reshape(len(tensor), *expected[name].shape[1:])
        notes.append(f"the last layer is taken from {layers[0][0]}")


def _head_tensors(model: nn.Module) -> list[str]:
    """Return the names of the last layer's tensors; nothing without a single last layer."""
    layer = last_linear_name(model)
    if layer is None:
        return []
    prefix = f"{layer}." if layer else ""
    return [f"{prefix}{name}" for name, _ in last_linear(model).named_parameters(recurse=False)]


def _rename(model: nn.Module, state: State, body: State, notes: list[str]) -> State:
    """Return the weights under the network's names, by the converters of timm and torchvision."""
    if num_fitting(state, body) == len(body):
        return dict(state)
    converted = _convert_by_timm(model, state)
    if num_fitting(converted, body) > num_fitting(state, body):
        state = converted
    if num_fitting(state, body) < len(body):
        from_torchvision, origin = convert_from_torchvision(state, model)
        if from_torchvision:
            notes.append(origin)
            state = from_torchvision
    return dict(state)


def _convert_by_timm(model: nn.Module, state: State) -> State:
    """Return the weights as timm converts those of a network's first authors."""
    module = sys.modules.get(type(model).__module__)
    convert = getattr(module, "checkpoint_filter_fn", None)
    if convert is None:
        return state
    # Converters expect the names of one publication, and fail with others in any way.
    try:
        wants_model = len(inspect.signature(convert).parameters) > 1
        return convert(dict(state), model) if wants_model else convert(dict(state))
    except Exception:
        return state


def _fit_head(
    fitted: State,
    expected: State,
    head: list[str],
    names: tuple[Sequence[str] | None, Sequence[str]],
    notes: list[str],
    *,
    frozen: bool,
) -> bool:
    """Choose the rows of the last layer by the names of the classes, in place.

    Returns:
        whether the network needs a new last layer.

    Raises:
        UserError: if a frozen network does not have the classes.
    """
    network_names, image_names = names
    has_head = all(name in fitted for name in head)
    is_same_shape = has_head and fitted[head[0]].shape[1:] == expected[head[0]].shape[1:]
    if not is_same_shape:
        if frozen:
            raise UserError(
                f"the weights have no last layer ({head[0]}) that fits; a frozen network needs one "
                "for the classes of the data. Give it a loss to train a new one"
            )
        notes.append("the weights have no last layer that fits; it starts with zeros")
        _drop(fitted, head)
        return True

    rows = len(fitted[head[0]])
    try:
        match = match_classes(network_names, rows, image_names)
    except UserError as error:
        if frozen:
            raise UserError(
                f"{error}. A frozen teacher needs a head for the classes of the data; give it a "
                "loss to fine-tune it with a new head"
            ) from None
        _drop(fitted, head)
        notes.append(
            f"its last layer is for {rows} other classes; it gets a new one for the "
            f"{len(image_names)} classes of these data, which starts with zeros, and the whole "
            "network is fine-tuned"
        )
        return True
    _select_rows(fitted, head, match)
    if match.note:
        notes.append(match.note)
    return False


def _drop(state: State, names: list[str]) -> None:
    for name in names:
        state.pop(name, None)


def _select_rows(state: State, head: list[str], match: ClassMatch) -> None:
    rows = torch.tensor(match.outputs)
    for name in head:
        state[name] = state[name][rows].clone()

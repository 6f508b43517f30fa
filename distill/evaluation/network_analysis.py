"""Analyses of one network: geometry of its features, information about images, robustness."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from distill.data.augment import augment_batch
from distill.data.loaders import read_batches
from distill.data.splits import Split, Splits
from distill.evaluation import geometry, robustness
from distill.evaluation.examples import chunks, evaluation_images, evenly_spaced, first_per_class
from distill.evaluation.information import mutual_information
from distill.evaluation.predict import features_and_logits, forward_logits
from distill.evaluation.snapshots import models_over_training
from distill.evaluation.weight_norms import template_spread
from distill.models.factory import load_run_model
from distill.models.hooks import last_layer, templates
from distill.recipe.schema import Analysis, Augment
from distill.storage.run_fingerprint import Run
from distill.storage.run_store import RunStore

MAX_EXAMPLES = 10_000  # of a split whose features are analysed
INFORMATION_EXAMPLES = 300  # of each of the two classes, as in Müller et al. 2019, section 4


@dataclass(frozen=True)
class AnalysisContext:
    """What the analyses of a study's runs have in common.

    Attributes:
        splits: the study's data.
        store: where its runs are, and where their analyses are kept.
        settings: of the analysis, with the counts that its budget allows.
        device: where networks run.
        seeds: the study's.
    """

    splits: Splits
    store: RunStore
    settings: Analysis
    device: torch.device
    seeds: list[int]

    def load(self, run: Run) -> nn.Module:
        """Load a stored run's network on the device, in eval mode and without weight gradients."""
        model = load_run_model(self.store.folder(run.id))
        return model.to(self.device).requires_grad_(requires_grad=False)


# ------------------------------------------------------------------------ geometry


def analyse_geometry(ctx: AnalysisContext, model: nn.Module, augment: Augment) -> dict[str, Any]:
    """Compute how the classes cluster in the penultimate layer, on some examples of each class.

    Args:
        ctx: with `settings.examples` per class, at most 10,000 in all.
        model: a network with a single last layer.
        augment: the arm's augmentation, whose crop decides how images are cropped.

    Returns:
        ``geometry``: by split, the metrics by name, without splits that have too few examples;
        ``class_means``: mean training features ``[K, D]``, NaN for a class without examples, None
        without metrics of the training split;
        ``template_spread``: see `weight_norms.template_spread`.
    """
    layer = _describe_last_layer(model)
    found: dict[str, Any] = {
        "geometry": {},
        "class_means": None,
        "template_spread": layer.template_spread,
    }
    classes = len(ctx.splits.class_names)
    per_class = examples_per_class(ctx.settings.examples, classes)
    for name in ("train", "validation", "test"):
        split: Split = getattr(ctx.splits, name)
        positions = first_per_class(split.labels, list(range(classes)), per_class)
        labels = split.labels[positions]
        features, _ = features_and_logits(model, ctx.splits, split, augment, ctx.device, positions)
        occurring = len(labels.unique())
        if occurring < 2 or len(labels) < 2 * occurring:
            continue  # single examples have no variance within their class
        found["geometry"][name] = _geometry_metrics(features, labels, layer)
        if name == "train":
            found["class_means"] = _class_means(features, labels, classes)
    return found


def examples_per_class(wanted: int, classes: int) -> int:
    """Return how many images of each class are analysed, if the recipe wants that many."""
    return min(wanted, max(2, MAX_EXAMPLES // classes))


@dataclass(frozen=True)
class _LastLayer:
    """What the geometry of features needs of the last layer.

    Attributes:
        template_spread: see `weight_norms.template_spread`.
        template_space: an orthonormal basis ``[D, r]`` of the differences of templates.
        templates_and_bias: ``[K, D + 1]``, each template followed by its bias (0 without biases).
    """

    template_spread: float
    template_space: NDArray
    templates_and_bias: NDArray


def _describe_last_layer(model: nn.Module) -> _LastLayer:
    """Return what the geometry of features needs of a network's last layer."""
    rows = templates(model).detach().cpu()
    bias = getattr(last_layer(model), "bias", None)
    bias = torch.zeros(len(rows)) if bias is None else bias.detach().cpu()
    return _LastLayer(
        template_spread(rows),
        geometry.template_space(rows.double().numpy()),
        torch.cat([rows, bias[:, None]], 1).numpy(),
    )


def _geometry_metrics(features: Tensor, labels: Tensor, layer: _LastLayer) -> dict[str, float]:
    """Compute the geometry of features ``[N, D]`` with labels ``[N]``."""
    x = features.double().numpy()
    y = labels.numpy()
    metrics = {
        "examples": len(labels) / len(labels.unique()),
        "within_between": geometry.within_between(x, y),
        "within_between_templates": geometry.within_between(x @ layer.template_space, y),
        "class_separation": geometry.class_separation(x, y),
        "nc1": geometry.nc1(x, y),
    }
    if len(layer.templates_and_bias) > 2:
        # As in Müller et al. 2019, features end in a 1 where templates end in their bias.
        with_one = torch.cat([features, torch.ones(len(features), 1)], 1).numpy()
        metrics["wrong_template_spread"] = geometry.wrong_template_spread(
            with_one, layer.templates_and_bias, y
        )
    return metrics


def _class_means(features: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Return the mean features of each class ``[K, D]``, NaN for a class without examples."""
    sums = torch.zeros(classes, features.shape[1], dtype=torch.float64)
    sums.index_add_(0, labels, features.double())
    return (sums / labels.bincount(minlength=classes)[:, None]).float()


# ------------------------------------------------------------------------ information


def analyse_information(
    ctx: AnalysisContext, run: Run, pair: Sequence[int]
) -> list[dict[str, float]]:
    """Estimate the information about single training images of two classes, over a run's training.

    The network's output is the difference of the two classes' logits, on views that are augmented
    as in training. They are not mixed: a mixed image is two.

    Args:
        ctx: with `settings.num_views` views per image for its mean output.
        run: a stored run.
        pair: the two classes.

    Returns:
        for each snapshot and the finished network: ``epoch``, ``nats`` and the number of
        ``examples``.
    """
    positions = first_per_class(ctx.splits.train.labels, list(pair), INFORMATION_EXAMPLES)
    ((indices, images),) = read_batches(ctx.splits, ctx.splits.train, [positions], ctx.device)
    found = []
    for epoch, model in models_over_training(ctx.store, run.id, ctx.device):
        differences = []
        for draw in range(ctx.settings.num_views + 1):
            # Negative epochs, so that these are none of the views that the network was trained on.
            views = augment_batch(images, indices, run.arm.augment, run.seed or 0, -1 - draw)
            logits = torch.cat([forward_logits(model, chunk) for (chunk,) in chunks(views)])
            differences.append((logits[:, pair[0]] - logits[:, pair[1]]).double().cpu())
        *draws, values = differences
        nats = mutual_information(torch.stack(draws, 1).numpy(), values.numpy())
        found.append({"epoch": epoch, "nats": nats, "examples": len(values)})
    return found


# ------------------------------------------------------------------------ robustness


def analyse_robustness(
    ctx: AnalysisContext, model: nn.Module, augment: Augment, transferred: Tensor | None
) -> dict[str, float]:
    """Compute a network's accuracy on attacked test images.

    Args:
        ctx: with `settings.num_attacked` images, evenly spaced over the test split.
        model: the network.
        augment: the arm's augmentation, whose crop decides how images are cropped.
        transferred: the same images ``[N, C, H, W]`` in [0, 1], attacked with another network's
            gradient, as `transfer_attack` returns them; None for no such attack.

    Returns:
        ``num_attacked``; the accuracy, in [0, 1], under each attack by its name, ``unattacked``,
        and ``worst_linf`` (images that no L∞ attack changes count as correct); and
        ``zero_gradient``, the share of images on which the gradient of cross-entropy is 0.
    """
    images, labels = _attacked_images(ctx, augment)
    classify = partial(_classify, model)
    attacks = _attacks(ctx.settings)
    linf_attacks = ["unattacked", "fgsm", "pgd_linf", "margin_linf"]
    if transferred is not None:
        linf_attacks.append("transfer")

    correct: dict[str, list[Tensor]] = {name: [] for name in ("unattacked", *attacks)}
    if transferred is not None:
        correct["transfer"] = []
    has_zero_gradient = []
    for x, y, moved in chunks(images, labels, images if transferred is None else transferred):
        correct["unattacked"].append(classify(x).argmax(1) == y)
        for name, attack in attacks.items():
            correct[name].append(classify(attack(classify, x, y)).argmax(1) == y)
        if transferred is not None:
            correct["transfer"].append(classify(moved).argmax(1) == y)
        has_zero_gradient.append(robustness.zero_gradient(classify, x, y))

    joined = {name: torch.cat(parts) for name, parts in correct.items()}
    joined["zero_gradient"] = torch.cat(has_zero_gradient)
    joined["worst_linf"] = torch.stack([joined[name] for name in linf_attacks]).all(0)
    shares = {name: values.double().mean().item() for name, values in joined.items()}
    return {"num_attacked": len(labels), **shares}


def transfer_attack(ctx: AnalysisContext, source: Run) -> Tensor:
    """Return test images ``[N, C, H, W]`` in [0, 1], attacked with the gradient of a stored run."""
    images, labels = _attacked_images(ctx, source.arm.augment)
    classify = partial(_classify, ctx.load(source))
    attack = _attacks(ctx.settings)["pgd_linf"]
    return torch.cat([attack(classify, x, y) for x, y in chunks(images, labels)])


def _attacks(settings: Analysis) -> dict[str, Callable[..., Tensor]]:
    """Return attacks by name, each a function of the classifier, images and labels."""
    linf = robustness.Ball(settings.eps_linf)
    pgd = partial(robustness.pgd, steps=settings.steps)
    return {
        "fgsm": partial(robustness.fgsm, radius=settings.eps_linf),
        "pgd_linf": partial(pgd, ball=linf),
        "margin_linf": partial(pgd, ball=linf, loss=robustness.margin),
        "pgd_l2": partial(pgd, ball=robustness.Ball(settings.eps_l2, "l2")),
    }


def _attacked_images(ctx: AnalysisContext, augment: Augment) -> tuple[Tensor, Tensor]:
    """Return the test images that are attacked, ``[N, C, H, W]`` in [0, 1], and their labels."""
    test = ctx.splits.test
    positions = evenly_spaced(len(test), ctx.settings.num_attacked)
    images = evaluation_images(ctx.splits, test, augment, ctx.device, positions)
    return images.float() / 255, test.labels[positions].to(ctx.device)


def _classify(model: nn.Module, images: Tensor) -> Tensor:
    """Return the logits of images in [0, 1]."""
    return forward_logits(model, 255 * images)

"""Numbers from within one run: how its classes stand, what it knows of single images, what attacks do to it."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from distill.data.augment import augment_batch
from distill.data.loaders import read_batches
from distill.data.splits import Splits
from distill.evaluation import geometry as geometry_metrics
from distill.evaluation import information, robustness
from distill.evaluation.class_selection import (
    SelectedClasses,
    answers,
    features_and_logits,
    first_per_class,
    images_of,
    in_parts,
    select_classes,
    spread,
)
from distill.evaluation.weight_norms import template_spread
from distill.models.cosine_head import last_linear
from distill.models.factory import load_run_model
from distill.models.hooks import last_layer, templates
from distill.recipe.schema import Analysis, Augment
from distill.storage.files import read_tree, write_tree
from distill.storage.run import Run
from distill.storage.run_store import RunStore

VERSION = 2  # raised when the same settings would give other numbers
MOST = 10_000  # examples of a split whose features are looked at
INFORMED = 300  # examples of each of the two classes, as in the paper


def analyse_runs(
    runs: Sequence[Run],
    splits: Splits,
    store: RunStore,
    settings: Analysis,
    device: torch.device,
    seeds: list[int],
    share: slice = slice(None),
    watch: Callable[[list[Run]], Iterable[Run]] = list,
    log: Callable[[str], None] = print,
) -> dict[str, dict[str, Any]]:
    """What is found within each run, by its id; what an earlier study found is taken from its file.

    Args:
        runs: of one study, all of them stored.
        splits: the study's data.
        store: where the runs are, and what is found is kept.
        settings: the recipe's.
        device: on which the networks run.
        seeds: the study's, for the attacks that another network makes.
        share: of the runs, those that this process looks into.
        watch: gives the runs that are new one by one, and may tell a person how far it is.
        log: where a damaged file is told, which is made again.

    Returns:
        only of runs that have a file by then: another process may have the others.
    """
    chosen = select_classes(settings, splits.class_names, store.predictions(runs[0].id))
    files = {
        run.id: store.analysis_path(_identity(run, runs, store, settings, chosen, seeds))
        for run in runs
    }
    unique = {run.id: run for run in runs}
    transferred: dict[
        str, Tensor
    ] = {}  # attacked images, by the id of the network whose gradient moved them
    own = list(unique.values())[
        share
    ]  # shared out before asking what is new, which other processes change
    for run in watch([run for run in own if _kept(files[run.id], log) is None]):
        source = source_of(run, runs, seeds)
        if source and settings.num_attacked and source.id not in transferred:
            transferred[source.id] = _transferred(source, splits, store, settings, device)
        write_tree(
            files[run.id],
            _look(
                run,
                splits,
                store,
                settings,
                chosen,
                device,
                transferred[source.id] if source and settings.num_attacked else None,
            ),
        )
    found = {run_id: _kept(file, log) for run_id, file in files.items()}
    return {run_id: tree for run_id, tree in found.items() if tree is not None}


def _kept(file: Path, log: Callable[[str], None]) -> dict[str, Any] | None:
    try:
        return read_tree(file)
    except ValueError as error:
        log(f"{error}: made again")
        return None


def source_of(run: Run, runs: Sequence[Run], seeds: list[int]) -> Run | None:
    """The network whose gradient attacks a run beside its own: the first teacher trained here (else student), of the
    next seed, so that nobody attacks himself; None where there is no other that sees images of one size with it.
    """
    trained = [r for r in runs if not r.arm.frozen and r.arm.augment.crop == run.arm.augment.crop]
    same = [r for r in trained if r.arm.name == trained[0].arm.name]  # teachers stand first
    if not same:
        return None
    after = (seeds.index(run.seed) + 1) % len(seeds) if run.seed in seeds else 0
    found = next((r for r in same if r.seed == seeds[after]), same[0])
    return found if found.id != run.id else None


def _identity(
    run: Run,
    runs: Sequence[Run],
    store: RunStore,
    settings: Analysis,
    chosen: SelectedClasses,
    seeds: list[int],
) -> dict[str, Any]:
    """All that the numbers depend on; a run's id tells its data."""
    source = source_of(run, runs, seeds)
    weights = [store.record(r.id)["sha256"]["model.safetensors"] for r in (run, source) if r]
    return {
        "run": run.id,
        "version": VERSION,
        **settings.model_dump(exclude={"classes", "pair"}),
        "pair": chosen.pair,
        "source": source.id if source else None,
        "weights": weights,
        "states": list(store.snapshots(run.id)),
    }


@torch.no_grad()
def _look(
    run: Run,
    splits: Splits,
    store: RunStore,
    settings: Analysis,
    chosen: SelectedClasses,
    device: torch.device,
    transferred: Tensor | None,
) -> dict[str, Any]:
    """The numbers of one run, as they are stored."""
    model = load_run_model(store.folder(run.id)).to(device).requires_grad_(False)
    augment = run.arm.augment
    found: dict[str, Any] = {
        "geometry": {},
        "robustness": {},
        "information": [],
        "class_means": None,
        "template_spread": None,
    }
    if settings.examples and last_linear(model) is not None:
        found |= geometry(model, splits, augment, device, settings.examples)
    if settings.num_views and chosen.pair and augment.moves:
        found["information"] = along_training(
            model, run, splits, store, chosen.pair, settings.num_views, device
        )
    if settings.num_attacked:
        images, labels = _attacked(splits, augment, settings, device)
        found["robustness"] = attacks(model, images, labels, settings, transferred)
    return found


def _attacked(
    splits: Splits, augment: Augment, settings: Analysis, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Test images ``[N, C, H, W]`` in [0, 1] as networks see them, and their labels."""
    positions = spread(len(splits.test), settings.num_attacked)
    images = images_of(splits, splits.test, augment, device, positions).float() / 255
    return images, splits.test.labels[positions].to(device)


def geometry(
    model: nn.Module, splits: Splits, augment: Augment, device: torch.device, examples: int
) -> dict[str, Any]:
    """How the classes stand in the penultimate layer, on some examples of each class of each split."""
    classes = len(splits.class_names)
    examples = min(examples, max(2, MOST // classes))
    layer, rows = last_layer(model), templates(model).detach().cpu()
    bias = (
        torch.zeros(len(rows))
        if getattr(layer, "bias", None) is None
        else layer.bias.detach().cpu()
    )
    space = geometry_metrics.template_space(rows.double().numpy())
    found: dict[str, Any] = {"geometry": {}, "template_spread": template_spread(rows)}
    for name, split in (
        ("train", splits.train),
        ("validation", splits.validation),
        ("test", splits.test),
    ):
        positions = first_per_class(split.labels, list(range(classes)), examples)
        features, _ = features_and_logits(model, splits, split, augment, device, positions)
        labels = split.labels[positions]
        x, y = features.double().numpy(), labels.numpy()
        occurring = len(labels.unique())
        if occurring < 2 or len(labels) < 2 * occurring:  # single examples have no spread
            continue
        found["geometry"][name] = {
            "examples": len(labels) / occurring,
            "within_between": geometry_metrics.within_between(x, y),
            "within_between_templates": geometry_metrics.within_between(x @ space, y),
            "class_separation": geometry_metrics.class_separation(x, y),
            "nc1": geometry_metrics.nc1(x, y),
        }
        if classes > 2:
            with_one = torch.cat(
                [features, torch.ones(len(features), 1)], 1
            )  # the paper's x ends in a 1
            found["geometry"][name]["wrong_template_spread"] = (
                geometry_metrics.wrong_template_spread(
                    with_one.numpy(), torch.cat([rows, bias[:, None]], 1).numpy(), y
                )
            )
        if name == "train":
            sums = torch.zeros(classes, features.shape[1], dtype=torch.float64).index_add_(
                0, labels, features.double()
            )
            found["class_means"] = (
                sums / labels.bincount(minlength=classes)[:, None]
            ).float()  # NaN without examples
    return found


def along_training(
    model: nn.Module,
    run: Run,
    splits: Splits,
    store: RunStore,
    pair: list[int],
    draws: int,
    device: torch.device,
) -> list[dict[str, float]]:
    """The information about single training images of two classes, at every stored state of a run.

    What is asked of the network is the difference of the two classes' logits, of views that are moved as in training
    (mixing is left out: a mixed image is two).
    """
    split, augment = splits.train, run.arm.augment
    positions = first_per_class(split.labels, pair, INFORMED)
    ((numbers, images),) = read_batches(splits, split, [positions], device)
    last = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    states = [
        *store.snapshots(run.id).items(),
        (run.arm.train.epochs if not run.arm.frozen else 0, None),
    ]
    found = []
    for epoch, file in states:
        model.load_state_dict(load_file(file) if file else last)
        values = []
        for draw in range(draws + 1):  # the last is the one that is judged
            views = augment_batch(
                images, numbers, augment, run.seed or 0, -1 - draw
            )  # of no epoch of training
            logits = torch.cat([answers(model, part) for (part,) in in_parts(views)])
            values.append((logits[:, pair[0]] - logits[:, pair[1]]).double().cpu())
        table = torch.stack(values, 1).numpy()
        found.append(
            {
                "epoch": epoch,
                "nats": information.mutual_information(table[:, :-1], table[:, -1]),
                "examples": len(table),
            }
        )
    return found


def attacks(
    model: nn.Module, images: Tensor, labels: Tensor, settings: Analysis, transferred: Tensor | None
) -> dict[str, Any]:
    """Shares of images ``[N, C, H, W]`` in [0, 1] that are still answered rightly, by the attack made on them."""
    classify = partial(_classify, model)
    pgd = partial(robustness.pgd, steps=settings.steps)
    made = {
        "fgsm": partial(robustness.fgsm, radius=settings.eps_linf),
        "pgd_linf": partial(pgd, radius=settings.eps_linf),
        "margin_linf": partial(pgd, radius=settings.eps_linf, loss=robustness.margin),
        "pgd_l2": partial(pgd, radius=settings.eps_l2, norm="l2"),
    }
    right: dict[str, list[Tensor]] = {
        name: [] for name in ("unattacked", *made, "transfer", "zero_gradient")
    }
    others = images if transferred is None else transferred
    for own, other, label in in_parts(images, others, labels):
        right["unattacked"].append(classify(own).argmax(1) == label)
        for name, attack in made.items():
            right[name].append(classify(attack(classify, own, label)).argmax(1) == label)
        right["transfer"].append(classify(other).argmax(1) == label)
        right["zero_gradient"].append(robustness.zero_gradient(classify, own, label))
    joined = {name: torch.cat(parts) for name, parts in right.items()}
    names = ["unattacked", "fgsm", "pgd_linf", "margin_linf"]
    if transferred is None:
        joined.pop("transfer")
    else:
        names.append("transfer")
    joined["worst_linf"] = torch.stack([joined[name] for name in names]).all(0)
    shares = {name: value.double().mean().item() for name, value in joined.items()}
    return {"num_attacked": len(labels), **shares}


def _classify(model: nn.Module, images: Tensor) -> Tensor:
    """Logits of images in [0, 1]."""
    return answers(model, 255 * images)


def _transferred(
    source: Run, splits: Splits, store: RunStore, settings: Analysis, device: torch.device
) -> Tensor:
    """The attacked test images as the gradient of one network moves them."""
    model = load_run_model(store.folder(source.id)).to(device).requires_grad_(False)
    images, labels = _attacked(splits, source.arm.augment, settings, device)
    attack = partial(
        robustness.pgd, partial(_classify, model), radius=settings.eps_linf, steps=settings.steps
    )
    return torch.cat([attack(own, label) for own, label in in_parts(images, labels)])

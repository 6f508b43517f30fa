"""Evaluate a network on images: metrics, a table of classes, or predictions without labels."""

from typing import Any

import torch
from torch import Tensor

from distill.evaluation.evaluation_images import EvaluationImages
from distill.evaluation.evaluation_networks import EvalTarget
from distill.evaluation.metrics import own_metrics
from distill.evaluation.predict import predict
from distill.models.class_names import ClassMatch, match_classes

MOST_CLASSES = 3  # classes that are listed for an image without a label


def evaluate_network(
    network: EvalTarget, images: EvaluationImages, device: torch.device
) -> dict[str, Any]:
    """Compute what is known of a network from some images.

    Args:
        network: the network.
        images: the images, with or without labels.
        device: where the network runs.

    Returns:
        With labels: the metrics by name, see `metrics.own_metrics`, and under ``classes`` the
        counts of each class. Without labels: under ``predictions`` the likeliest classes of each
        image.
        Under ``note``, a sentence if classes are not matched by name.

    Raises:
        UserError: if the classes of network and images differ.
    """
    splits, split, _ = images
    model = network.model.to(device)
    logits = predict(model, splits, split, network.augment, device)
    if not images.have_labels:
        return {"predictions": _predictions(network, images, logits)}
    match = match_classes(network.class_names, model.num_classes, splits.class_names)
    labels = torch.tensor(match.outputs)[split.labels]
    found = own_metrics(logits.numpy(), labels.numpy(), network.temperature)
    names = output_names(network, match, splits.class_names)
    found["classes"] = class_counts(logits.argmax(1), labels, names)
    return found | ({"note": match.note} if match.note else {})


def output_names(network: EvalTarget, match: ClassMatch, image_classes: list[str]) -> list[str]:
    """Return the names of a network's outputs: its own, or those of the images' classes."""
    if network.class_names:
        return network.class_names
    names = [str(i) for i in range(network.model.num_classes)]
    for output, name in zip(match.outputs, image_classes, strict=True):
        names[output] = name
    return names


def class_counts(predicted: Tensor, labels: Tensor, names: list[str]) -> dict[str, dict[str, Any]]:
    """Return for each class how many images are of it, and how many of them are recognised.

    Args:
        predicted: the predicted class of each image ``[N]``.
        labels: its class ``[N]``.
        names: of all classes.

    Returns:
        by the class's name: ``images``, ``correct``, ``recall`` (None without images),
        ``precision`` (None if the class is never predicted), and ``confused_with``, the class that
        its images are most often taken for (None without errors).
    """
    count = len(names)
    table = torch.bincount(labels * count + predicted, minlength=count * count)
    table = table.reshape(count, count)
    counts = {}
    for number, name in enumerate(names):
        images, guesses = int(table[number].sum()), int(table[:, number].sum())
        if not images and not guesses:
            continue
        correct = int(table[number, number])
        wrong = table[number].clone()
        wrong[number] = 0
        counts[name] = {
            "images": images,
            "correct": correct,
            "recall": correct / images if images else None,
            "precision": correct / guesses if guesses else None,
            "confused_with": names[int(wrong.argmax())] if wrong.any() else None,
        }
    return counts


def _predictions(
    network: EvalTarget, images: EvaluationImages, logits: Tensor
) -> list[dict[str, Any]]:
    """Return the likeliest classes of each image, with their calibrated probabilities."""
    names = images.splits.class_names
    probabilities = torch.softmax(logits.double() / (network.temperature or 1.0), 1)
    best = probabilities.topk(min(MOST_CLASSES, len(names)))
    rows = []
    for i, (values, classes) in enumerate(zip(*map(Tensor.tolist, best), strict=True)):
        likeliest = [[names[k], value] for k, value in zip(classes, values, strict=True)]
        rows.append({"image": images.split.images.name(i), "classes": likeliest})
    return rows

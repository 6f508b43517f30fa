"""Choose how much a study's analysis computes, so that it takes a small share of the training.

Costs are counted in forward passes of single images, which do not depend on the machine: the same
recipe has the same analysis everywhere, and a repeated study finds the same numbers.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from distill.data.splits import Splits
from distill.evaluation.network_analysis import INFORMATION_EXAMPLES, examples_per_class
from distill.recipe.schema import Analysis
from distill.storage.run_fingerprint import Run

# A training step costs about three forward passes: one forward, and two for the gradients.
TRAINING_PASSES = 3
# A gradient for the pixels alone costs about two: one forward, and one back.
ATTACK_STEP_PASSES = 2
ITERATED_ATTACKS = 3  # PGD in L∞, PGD in L2, and PGD on the margin
# Per attacked image: no attack, the transferred attack and the results of four attacks (a forward
# pass each); FGSM, and whether the gradient is zero (a gradient each).
OTHER_ATTACK_PASSES = 6 + 2 * ATTACK_STEP_PASSES

# Counts that the budget may choose, from the default down; below the last one the analysis would
# show little, so it is left out. Few, coarse values: another arm seldom changes them.
CHOICES = {
    "examples": (100, 50, 20, 10),
    "num_views": (40, 20, 10),
    "num_attacked": (500, 200, 100, 50),
}
# Of what is left of the budget, an analysis may take this share.
SHARES = {"examples": 1.0, "num_views": 0.5, "num_attacked": 1.0}


@dataclass(frozen=True)
class AnalysisPlan:
    """What a study's analysis computes.

    Attributes:
        settings: the recipe's, with the counts that the budget allows.
        reduced: names of the keys whose count is below the default.
        passes: forward passes of the analysis of each run, by run id.
    """

    settings: Analysis
    reduced: tuple[str, ...]
    passes: dict[str, float]


def plan_analysis(settings: Analysis, splits: Splits, runs: Sequence[Run]) -> AnalysisPlan:
    """Choose the counts of an analysis.

    A count that the recipe states is kept, whatever it costs, and takes nothing from the budget.
    The others are the largest of `CHOICES` that fit into `settings.budget` together, features first
    and attacks last.

    Args:
        settings: the recipe's.
        splits: the study's data.
        runs: all runs of the study, stored or not.
    """
    unique = list({run.id: run for run in runs}.values())
    training_passes = sum(_training_passes(run, len(splits.train)) for run in unique)
    cost = _Cost(settings, splits)
    counts = {key: getattr(settings, key) for key in CHOICES}
    # Without training, as for frozen networks alone, there is nothing to take a share of.
    left = settings.budget * training_passes if training_passes else math.inf
    reduced = []
    for key, choices in CHOICES.items():
        if key in settings.model_fields_set:
            continue
        allowed = left * SHARES[key]
        fitting = (count for count in choices if cost.total({key: count}, unique) <= allowed)
        counts[key] = next(fitting, 0)
        left -= cost.total({key: counts[key]}, unique)
        if counts[key] < choices[0]:
            reduced.append(key)
    return AnalysisPlan(
        settings=settings.model_copy(update=counts),
        reduced=tuple(reduced),
        passes={run.id: cost.total(counts, [run]) for run in unique},
    )


def _training_passes(run: Run, images: int) -> float:
    """Return the forward passes that a run's training costs, those of its teachers included."""
    if run.arm.frozen:
        return 0.0
    return images * run.arm.train.epochs * (TRAINING_PASSES + len(run.teachers))


class _Cost:
    """Counts the forward passes of analyses, from the sizes of the splits."""

    def __init__(self, settings: Analysis, splits: Splits) -> None:
        self.steps = settings.steps
        classes = len(splits.class_names)
        self.class_sizes = [
            split.labels.bincount(minlength=classes)
            for split in (splits.train, splits.validation, splits.test)
        ]
        self.num_test = len(splits.test)

    def total(self, counts: Mapping[str, int], runs: Sequence[Run]) -> float:
        """Return the forward passes of the analyses with these counts, over some runs."""
        costs = {
            "examples": self._features,
            "num_views": self._information,
            "num_attacked": self._attacks,
        }
        return float(sum(costs[key](count, run) for key, count in counts.items() for run in runs))

    def _features(self, examples: int, _: Run) -> int:
        per_class = examples_per_class(examples, len(self.class_sizes[0]))
        return sum(int(sizes.clamp(max=per_class).sum()) for sizes in self.class_sizes)

    def _information(self, views: int, run: Run) -> int:
        if not views or not run.arm.augment.moves:
            return 0
        # The two classes are chosen later, by what the networks confuse; take the two largest.
        largest = self.class_sizes[0].clamp(max=INFORMATION_EXAMPLES).sort(descending=True).values
        snapshots = 0 if run.arm.frozen else len(run.arm.train.snapshot_epochs)
        return (views + 1) * int(largest[:2].sum()) * (snapshots + 1)

    def _attacks(self, attacked: int, _: Run) -> int:
        # The attack whose images are transferred, once for each seed, is not counted.
        images = min(attacked, self.num_test)
        steps = ITERATED_ATTACKS * ATTACK_STEP_PASSES * self.steps
        return images * (steps + OTHER_ATTACK_PASSES)

"""Choose how much a study's analysis computes, so that it takes a small share of the training.

Costs are counted in forward passes of single images, which do not depend on the machine: the same
recipe has the same analysis everywhere, and a repeated study finds the same numbers.
"""

import math
from collections.abc import Iterable, Sequence
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
    stated = [key for key in CHOICES if key in settings.model_fields_set]
    # Without training, as for frozen networks alone, there is nothing to take a share of.
    left = settings.budget * training_passes if training_passes else math.inf
    reduced = []
    for key, choices in CHOICES.items():
        if key in stated:
            continue
        allowed = max(0.0, left) * SHARES[key]
        chosen = 0
        for count in choices:
            cost.counts[key] = count
            if cost.total([key], unique) <= allowed:
                chosen = count
                break
        cost.counts[key] = chosen
        left -= cost.total([key], unique)
        if chosen < choices[0]:
            reduced.append(key)
    return AnalysisPlan(
        settings=settings.model_copy(update=cost.counts),
        reduced=tuple(reduced),
        passes={run.id: cost.total(CHOICES, [run]) for run in unique},
    )


def _training_passes(run: Run, images: int) -> float:
    """Return the forward passes that a run's training costs, those of its teachers included."""
    if run.arm.frozen:
        return 0.0
    return images * run.arm.train.epochs * (TRAINING_PASSES + len(run.teachers))


class _Cost:
    """Counts the forward passes of analyses.

    Attributes:
        counts: the counts by key, which may be changed.
    """

    def __init__(self, settings: Analysis, splits: Splits) -> None:
        self.counts = {key: getattr(settings, key) for key in CHOICES}
        self.steps = settings.steps
        classes = len(splits.class_names)
        self.class_sizes = [
            split.labels.bincount(minlength=classes)
            for split in (splits.train, splits.validation, splits.test)
        ]
        self.num_test = len(splits.test)

    def total(self, keys: Iterable[str], runs: Sequence[Run]) -> float:
        """Return the forward passes of some analyses, over some runs."""
        costs = {
            "examples": self._features,
            "num_views": self._information,
            "num_attacked": self._attacks,
        }
        return float(sum(costs[key](run) for key in keys for run in runs))

    def _features(self, _: Run) -> int:
        per_class = examples_per_class(self.counts["examples"], len(self.class_sizes[0]))
        return sum(int(sizes.clamp(max=per_class).sum()) for sizes in self.class_sizes)

    def _information(self, run: Run) -> int:
        views = self.counts["num_views"]
        if not views or not run.arm.augment.moves:
            return 0
        # The two classes are chosen later, by what the networks confuse; take the two largest.
        largest = self.class_sizes[0].clamp(max=INFORMATION_EXAMPLES).sort(descending=True).values
        snapshots = 0 if run.arm.frozen else len(run.arm.train.snapshot_epochs)
        return (views + 1) * int(largest[:2].sum()) * (snapshots + 1)

    def _attacks(self, _: Run) -> int:
        images = min(self.counts["num_attacked"], self.num_test)
        steps = ITERATED_ATTACKS * ATTACK_STEP_PASSES * self.steps
        return images * (steps + OTHER_ATTACK_PASSES)

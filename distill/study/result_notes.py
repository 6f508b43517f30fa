"""What a reader should know beside the numbers of a study, as sentences."""

from torch import Tensor

from distill.errors import pluralize
from distill.evaluation.analysis_budget import AnalysisPlan
from distill.storage.run_fingerprint import Run
from distill.storage.study_results import RunResult
from distill.storage.versions import versions
from distill.study.context import StudyContext
from distill.study.lint import describe_data, lint_recipe
from distill.study.schedule_lint import average_notes
from distill.training.state import steps_per_epoch
from distill.training.teacher import likelihood_note

# What the budget of the analysis lowers: with a count, and where nothing is left.
LOWERED = {
    "examples": ("{} of {} images per class in the features", "no features"),
    "num_views": ("{} of {} views per image in the information", "no information about images"),
    "num_attacked": ("{} of {} attacked images", "no attacks"),
}

# Libraries whose versions can change what the same settings lead to.
SHAPING_LIBRARIES = ("distill", "timm", "torch")

Predictions = dict[str, Tensor]  # ``SPLIT.logits [N, K]`` and ``SPLIT.labels [N]``


def study_notes(ctx: StudyContext) -> list[str]:
    """Return what a reader of the study should know about its data and its recipe."""
    return describe_data(ctx.splits) + lint_recipe(ctx.recipe, ctx.splits)


def weight_notes(ctx: StudyContext, runs: list[Run]) -> list[str]:
    """Return what was noted about the weights that networks started from, each sentence once."""
    notes = [note for run in runs for note in ctx.store.record(run.id).get("notes", [])]
    return list(dict.fromkeys(notes))


def version_notes(ctx: StudyContext, runs: list[Run]) -> list[str]:
    """Return a note if runs were made with other versions of the libraries that shape weights."""
    current = versions()
    others: dict[str, int] = {}
    for run_id in dict.fromkeys(run.id for run in runs):
        stored = ctx.store.record(run_id)["versions"]
        changed = [
            f"{name} {stored[name]}"
            for name in SHAPING_LIBRARIES
            if name in stored and stored[name] != current[name]
        ]
        if changed:
            text = ", ".join(changed)
            others[text] = others.get(text, 0) + 1
    now = ", ".join(f"{name} {current[name]}" for name in SHAPING_LIBRARIES)
    return [
        f"{pluralize(count, 'run')} of this study {'was' if count == 1 else 'were'} made with "
        f"{text}, and not with those of today ({now}); delete their folders to train them again"
        for text, count in others.items()
    ]


def untrained_notes(ctx: StudyContext, untrained: dict[str, int]) -> list[str]:
    """Return a note for each arm with runs at chance, with the likely cause."""
    notes = []
    for name, count in untrained.items():
        verb = "is" if count == 1 else "are"
        train = ctx.recipe.arm(name).train
        remedy = "Lower train.lr or the weight of the loss, or clip gradients with train.clip_grad"
        if any(average_notes(train, steps_per_epoch(ctx.splits, train))):
            remedy = (
                "The average of weights that is stored consists of initial weights: see train.ema"
            )
        notes.append(
            f"{name}: {pluralize(count, 'run')} of this arm {verb} no better than chance on the "
            f"validation split, so training failed. {remedy}"
        )
    return notes


def likelihood_notes(runs: list[Run], predictions: dict[str, Predictions]) -> list[str]:
    """Return a note for each teacher whose likelihood is worse than chance."""
    notes = []
    for run in runs:
        if run.arm.role == "teacher":
            own = predictions[run.id]
            logits, labels = own["validation.logits"], own["validation.labels"]
            notes.append(likelihood_note(run.display_name, logits, labels))
    return [note for note in notes if note]


def calibration_notes(results: list[RunResult]) -> list[str]:
    """Return a note on networks whose probabilities are used as they are."""
    unchanged = [result for result in results if result.metrics["test"].fitted_temperature == 1]
    if not unchanged:
        return []
    verb = "keeps" if len(unchanged) == 1 else "keep"
    return [
        f"calibration: {len(unchanged)} of {pluralize(len(results), 'network')} {verb} T = 1, "
        "because no other temperature is better by more than its error on the validation split"
    ]


def analysis_notes(ctx: StudyContext, plan: AnalysisPlan) -> list[str]:
    """Say what the analysis leaves out to fit its budget, and how to have it all."""
    if not plan.reduced:
        return []
    parts = []
    defaults = []
    for key in plan.reduced:
        default = getattr(ctx.recipe.analysis, key)
        chosen = getattr(plan.settings, key)
        some, none = LOWERED[key]
        parts.append(some.format(chosen, default) if chosen else none)
        defaults.append(f"{key}: {default}")
    budget = f"{100 * plan.settings.budget:.2g}%"
    return [
        f"To cost at most about {budget} of the training, the analysis has {', '.join(parts)}. "
        f"`analysis: {{{', '.join(defaults)}}}` in the recipe asks for all of it"
    ]

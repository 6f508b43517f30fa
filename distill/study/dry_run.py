"""The plan of a study without training: its runs, its cohorts, and what they will cost."""

import time
from pathlib import Path
from typing import Any

import torch

from distill.data.splits import load_splits
from distill.devices.accelerator import make_accelerator
from distill.evaluation.analyse import AnalysisContext, stored_analyses
from distill.evaluation.analysis_budget import TRAINING_PASSES, plan_analysis
from distill.models.factory import blank_images, is_known_here, largest_pretrained_side
from distill.recipe.schema import Arm, Recipe
from distill.storage.run_fingerprint import Run, plan_runs
from distill.storage.run_store import RunStore
from distill.study.cohorts import available_memory, make_cohorts
from distill.study.context import StudyContext, study_precision
from distill.study.lint import describe_data, lint_recipe
from distill.study.logit_cache_plan import plan_logit_cache
from distill.study.plan import damaged_runs, missing_runs
from distill.study.preflight import preflight
from distill.study.progress import Progress

TIMED_IMAGES = 64
FEWEST_TIMED_PASSES = 4
FEWEST_TIMED_SECONDS = 0.25


def dry_run(recipe: Recipe, out: str | Path = "runs") -> dict[str, Any]:
    """Return the plan of a study: stored runs, cohorts to train, and their cost on this machine.

    Returns:
        `notes`: warnings about data and recipe;
        `runs`: each with `id`, `name` and `stored`;
        `cohorts`: each with its `runs`, `epochs` and `seconds`, with `teacher_logits` (for each
            teacher the epochs `stored` in the cache and the `bytes` that will be written), and with
            the seconds that the cache has `saved`;
        `seconds`: of training in all. A step is taken as three forward passes of each student and
            one of each teacher, from passes that are timed now;
        `analysis_seconds`: of the analysis of the networks, from the same passes.
    """
    with Progress(enabled=True) as reading:
        native = largest_pretrained_side(recipe.arms)
        splits = load_splits(recipe.data, native, reading.track)
    with Progress(enabled=False) as progress:
        ctx = StudyContext(
            recipe=recipe,
            splits=splits,
            store=RunStore(Path(out)),
            accelerator=make_accelerator(study_precision(recipe)),
            progress=progress,
            has_weights=False,
        )
    runs = plan_runs(recipe, ctx.splits.identity, ctx.accelerator.mixed_precision)
    damaged = damaged_runs(ctx.store, runs)
    to_train_ids = {run.id for run in missing_runs(ctx, runs)} | damaged.keys()
    to_train = list({run.id: run for run in runs if run.id in to_train_ids}.values())
    timer = ForwardTimer(ctx)
    cohorts = _plan_cohorts(ctx, to_train, timer)
    unknown = _unknown_arms(recipe)
    return {
        "notes": [
            *(
                f"{name}: its network is not on this machine, so its cost is unknown and left out"
                for name in unknown
            ),
            *describe_data(ctx.splits),
            *lint_recipe(recipe, ctx.splits),
            *(f"{damage}: the run will be trained again" for damage in damaged.values()),
        ],
        "runs": [
            {"id": run.id, "name": run.display_name, "stored": run.id not in to_train_ids}
            for run in runs
        ],
        "cohorts": cohorts,
        "seconds": sum(cohort["seconds"] for cohort in cohorts),
        "analysis_seconds": _analysis_seconds(ctx, runs, timer),
    }


def _analysis_seconds(ctx: StudyContext, runs: list[Run], timer: "ForwardTimer") -> float:
    """Estimate the seconds of the analysis of the networks that were not analysed before."""
    plan = plan_analysis(ctx.recipe.analysis, ctx.splits, runs)
    analysis = AnalysisContext(
        ctx.splits, ctx.store, plan.settings, ctx.accelerator.device, ctx.recipe.seeds
    )
    found = stored_analyses(analysis, runs)
    to_analyse = {run.id: run for run in runs if run.id not in found}
    return sum(
        plan.passes[run_id] * timer.seconds_per_image(run.arm)
        for run_id, run in to_analyse.items()
        if plan.passes[run_id]
    )


def _plan_cohorts(
    ctx: StudyContext, to_train: list[Run], timer: "ForwardTimer"
) -> list[dict[str, Any]]:
    """Return the cohorts in the order in which they train, with their cost."""
    unknown = _unknown_arms(ctx.recipe)
    known = [run for run in to_train if not unknown & {run.arm.name, *run.arm.teachers}]
    sizes = dict.fromkeys((run.arm.name for run in to_train), 0) | preflight(ctx, known)
    memory = available_memory(ctx)
    cohorts = []
    for generation in sorted({run.generation for run in to_train}):
        runs = [run for run in to_train if run.generation == generation and not run.arm.frozen]
        cohorts += [
            _describe_cohort(ctx, cohort, timer) for cohort in make_cohorts(runs, sizes, memory)
        ]
    return cohorts


def _describe_cohort(ctx: StudyContext, cohort: list[Run], timer: "ForwardTimer") -> dict[str, Any]:
    epochs = cohort[0].arm.train.epochs
    images = len(ctx.splits.train)
    teachers = {teacher.id: teacher.arm for run in cohort for teacher in run.teachers}
    seconds_per_image = sum(timer.seconds_per_image(arm) for arm in teachers.values())
    seconds_per_image += TRAINING_PASSES * sum(timer.seconds_per_image(run.arm) for run in cohort)
    cache_plans = plan_logit_cache(ctx, [cohort])
    saved = images * sum(
        plan.stored * timer.seconds_per_image(plan.teacher.arm) for plan in cache_plans
    )
    return {
        "runs": [run.display_name for run in cohort],
        "epochs": epochs,
        "seconds": epochs * images * seconds_per_image - saved,
        "saved": saved,
        "teacher_logits": [
            {
                "teacher": plan.teacher.display_name,
                "stored": plan.stored,
                "bytes": plan.new_bytes,
            }
            for plan in cache_plans
        ],
    }


def _unknown_arms(recipe: Recipe) -> set[str]:
    """Return the names of arms whose network cannot be built without a download."""
    return {arm.name for arm in recipe.arms if not is_known_here(arm.model)}


class ForwardTimer:
    """Times forward passes, once for each kind of network."""

    def __init__(self, ctx: StudyContext) -> None:
        self.ctx = ctx
        self.known: dict[str, float] = {}

    def seconds_per_image(self, arm: Arm) -> float:
        """Return the seconds that a forward pass of the arm's network takes for one image."""
        if not is_known_here(arm.model):
            return 0.0
        input_size = arm.input_size or self.ctx.view_shape(arm)
        key = str((arm.model, arm.model_args, input_size))
        if key not in self.known:
            self.known[key] = self._measure(arm)
        return self.known[key]

    @torch.no_grad()
    def _measure(self, arm: Arm) -> float:
        """Time forward passes and return the seconds per image of the fastest.

        On a CPU, one thread alone is timed as well as all of them.

        Other programs may use this machine: threads that wait for each other while one of them has
        no core can take a hundred times as long, and then one thread alone is nearer the truth.
        """
        model = self.ctx.build(arm, 0).to(self.ctx.accelerator.device).eval()
        images = blank_images(model, TIMED_IMAGES)
        threads = torch.get_num_threads()
        counts = {threads, 1} if images.device.type == "cpu" else {threads}
        fastest = []
        for count in counts:
            torch.set_num_threads(count)
            fastest.append(_fastest_pass(model, images))
        torch.set_num_threads(threads)
        return min(fastest) / len(images)


def _fastest_pass(model: torch.nn.Module, images: torch.Tensor) -> float:
    """Return the seconds of the fastest pass, of at least four that take ≥ 0.25 s together."""
    seconds: list[float] = []
    while len(seconds) < FEWEST_TIMED_PASSES or sum(seconds) < FEWEST_TIMED_SECONDS:
        started = time.monotonic()
        model(images).sum().item()
        seconds.append(time.monotonic() - started)
    return min(seconds)

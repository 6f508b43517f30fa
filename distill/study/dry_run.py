"""What is to be trained, whether it can be, side by side with what, and at what cost; nothing is trained here."""

import time
from pathlib import Path
from typing import Any

import torch

from distill.data.splits import load_splits
from distill.models.factory import blank_images, largest_pretrained_side
from distill.recipe.schema import Arm, Recipe
from distill.storage.run import plan_runs
from distill.storage.run_store import RunStore
from distill.study.cache_plan import plan_logit_cache
from distill.study.context import StudyContext, make_accelerator, study_precision
from distill.study.lint import describe_data, lint_recipe
from distill.study.plan import available_memory, damaged_runs, make_cohorts, missing_runs
from distill.study.preflight import preflight
from distill.study.progress import Progress

# ------------------------------------------------------------------------------------------------ the dry run


def dry_run(recipe: Recipe, out: str | Path = "runs") -> dict[str, Any]:
    """The plan without training: which runs are stored, the cohorts of the others, and their cost.

    Returns:
        ``notes``, ``runs`` (each with `id`, `name`, `stored`), ``cohorts`` (each with `runs`, `epochs`, `seconds`;
        `answers` of its teachers: the epochs `stored` and the `bytes` to be written; the seconds that these have
        `saved`) and ``seconds`` in all: on this machine, a student's step taken as three of its passes and a
        teacher's pass once a cohort, from passes timed now.
    """
    with Progress(enabled=False) as progress:
        accelerator = make_accelerator(study_precision(recipe))
        splits = load_splits(recipe.data, largest_pretrained_side(recipe.arms))
        ctx = StudyContext(recipe, splits, RunStore(Path(out)), accelerator, progress)
    runs = plan_runs(recipe, ctx.splits.identity, accelerator.mixed_precision)
    damaged = damaged_runs(ctx.store, runs)
    absent = {run.id for run in missing_runs(ctx, runs)} | damaged.keys()
    missing = list({run.id: run for run in runs if run.id in absent}.values())
    sizes, memory = preflight(ctx, missing), available_memory(accelerator)
    seconds: dict[str, float] = {}

    def cost(arm: Arm) -> float:
        network = str((arm.model, arm.model_args, arm.input_size or ctx.view_shape(arm)))
        if network not in seconds:
            seconds[network] = _seconds_per_image(ctx, arm)
        return seconds[network]

    cohorts = []
    for depth in sorted({run.depth for run in missing}):
        trained = [run for run in missing if run.depth == depth and not run.arm.frozen]
        for cohort in make_cohorts(trained, sizes, memory):
            epochs, images = cohort[0].arm.train.epochs, len(ctx.splits.train)
            teachers = {teacher.id: teacher.arm for run in cohort for teacher in run.teachers}
            kept = plan_logit_cache(ctx, [cohort])
            saved = sum(cost(k.teacher.arm) * k.stored for k in kept) * images
            per_image = sum(map(cost, teachers.values())) + 3 * sum(cost(run.arm) for run in cohort)
            cohorts.append(
                {
                    "runs": [run.display_name for run in cohort],
                    "epochs": epochs,
                    "seconds": per_image * epochs * images - saved,
                    "saved": saved,
                    "answers": [
                        {"teacher": k.teacher.display_name, "stored": k.stored, "bytes": k.size}
                        for k in kept
                    ],
                }
            )
    notes = [
        *describe_data(ctx.splits),
        *lint_recipe(recipe, len(ctx.splits.class_names)),
        *(f"{damage}: the run will be trained again" for damage in damaged.values()),
    ]
    return {
        "notes": notes,
        "runs": [
            {"id": run.id, "name": run.display_name, "stored": run.id not in absent} for run in runs
        ],
        "cohorts": cohorts,
        "seconds": sum(cohort["seconds"] for cohort in cohorts),
    }


@torch.no_grad()
def _seconds_per_image(ctx: StudyContext, arm: Arm) -> float:
    """Of a forward pass, the fastest on 64 images of at least four and a quarter of a second.

    Others may be at work on this machine: threads that wait for each other while these hold a core can take a hundred
    times as long, so that one thread, alone, may be nearer the truth.
    """
    model = ctx.build(arm, 0).to(ctx.accelerator.device).eval()
    images, threads, taken = blank_images(model, 64), torch.get_num_threads(), []
    for count in {threads, 1} if images.device.type == "cpu" else {threads}:
        torch.set_num_threads(count)
        own: list[float] = []
        while len(own) < 4 or sum(own) < 0.25:
            began = time.monotonic()
            model(images).sum().item()
            own.append(time.monotonic() - began)
        taken.append(min(own))
    torch.set_num_threads(threads)
    return min(taken) / len(images)

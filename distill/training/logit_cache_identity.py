"""The identity of cached teacher logits: everything that can change a bit of them.

If a setting that changes a teacher's logits were missing here, a study would read logits that were
cached with another value of that setting.
"""

from typing import Any

from distill.storage.run_fingerprint import Run
from distill.storage.run_store import RunStore


def logit_cache_identity(
    run: Run,
    teacher_id: str,
    store: RunStore,
    *,
    processes: int,
    precision: str,
    rounding: str | int,
) -> dict[str, Any]:
    """Return everything that a teacher's logits for the views of a run depend on.

    These are the teacher's weights, the sequence of views, and how the views pass through the
    network.

    Args:
        run: a student's run; all students of its cohort have the same views.
        teacher_id: run id of the teacher.
        store: where the runs are.
        processes: number of processes that share each batch; each passes its own part through the
            network.
        precision: what networks compute in: "no" (float32), "bf16" or "fp16".
        rounding: how logits are stored: `data.logit_cache` of a recipe.

    Returns:
        JSON values; `weights` is None until the teacher is trained.
    """
    weights_digest = None
    if store.is_complete(teacher_id):
        weights_digest = store.record(teacher_id)["sha256"]["model.safetensors"]
    train = run.arm.train
    return {
        "teacher": teacher_id,
        "weights": weights_digest,
        "seed": run.seed,
        "augment": run.arm.augment.model_dump(exclude_defaults=True),
        "batch_size": train.batch_size,
        "accumulate": train.accumulate,
        "channels_last": train.channels_last,
        "compile": train.compile,
        "processes": processes,
        "precision": precision,
        "logit_cache": rounding,
    }

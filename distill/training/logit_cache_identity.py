"""The identity of cached teacher logits: everything that they depend on, to the last bit.

Whatever changes a teacher's logits for a stream of views must be in the identity, or a study would
read the logits of another one.
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

    That is the teacher's weights, the stream of views, and how they go through the network.

    Args:
        run: a student; those of its cohort have the same views.
        teacher_id: run id of the teacher.
        store: of the runs.
        processes: that share each batch, each of which passes its own part through the network.
        precision: that networks compute in: "no", "bf16" or "fp16".
        rounding: how logits are stored, as `data.logit_cache` in a recipe.

    Returns:
        JSON values; `weights` is None as long as the teacher is not trained.
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

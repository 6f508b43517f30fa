"""Sums over an epoch: of micro-batches, of hard and soft labels, and of several processes."""

import pytest
import torch
from helpers.fake_distributed import FakeDistributed

from distill.devices.distributed import ONE_PROCESS
from distill.training.meters import Meters, MicroBatchRecord

LOGITS = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 2.0], [0.0, 3.0, 1.0], [1.0, 0.0, 0.0]])
LABELS = torch.tensor([0, 2, 0, 1])  # two of four are right


def record(step: int, loss: float, **terms: float) -> MicroBatchRecord:
    tensors = {name: torch.tensor(value) for name, value in terms.items()}
    return MicroBatchRecord(step, torch.tensor(loss), tensors)


def test_means_are_sums_over_micro_batches_divided_by_the_images():
    meters = Meters()
    meters.update(record(0, 6.0, kd=4.0, cross_entropy=2.0), LOGITS, LABELS)
    meters.update(record(1, 1.0, kd=1.0, cross_entropy=0.5), LOGITS[:2], LABELS[:2])
    means = meters.means(6, ONE_PROCESS)
    assert means.loss == pytest.approx(7 / 6)
    assert means.top1 == pytest.approx(4 / 6)
    assert means.terms == pytest.approx({"kd": 5 / 6, "cross_entropy": 2.5 / 6})


def test_a_soft_label_counts_as_its_largest_class():
    meters = Meters()
    soft = torch.tensor([[0.6, 0.4, 0.0], [0.6, 0.0, 0.4], [0.0, 1.0, 0.0], [0.3, 0.3, 0.4]])
    meters.update(record(0, 1.0), LOGITS, soft)
    assert meters.means(4, ONE_PROCESS).top1 == 0.5


def test_sums_of_half_precision_are_float32():
    """4096 + 1 is 4096 in bf16 and in float16."""
    for dtype in (torch.bfloat16, torch.float16):
        meters = Meters()
        for _ in range(3):
            value = torch.tensor(4096.0, dtype=dtype)
            meters.update(MicroBatchRecord(0, value, {"kd": value / 4096}), LOGITS, LABELS)
        assert meters.means(1, ONE_PROCESS).loss == 3 * 4096
        assert meters.sums["terms.kd"].dtype == torch.float32


def test_a_reset_drops_the_sums():
    meters = Meters()
    meters.update(record(0, 5.0, kd=5.0), LOGITS, LABELS)
    meters.reset()
    meters.update(record(0, 1.0, dkd=2.0), LOGITS, LABELS)
    means = meters.means(1, ONE_PROCESS)
    assert (means.loss, means.terms) == (1.0, {"dkd": 2.0})


def test_updates_do_not_keep_a_graph():
    meters = Meters()
    loss = torch.tensor(1.0, requires_grad=True) * 2
    meters.update(MicroBatchRecord(0, loss, {}), LOGITS, LABELS)
    assert not meters.sums["loss"].requires_grad


def test_means_add_the_sums_of_all_processes():
    meters = Meters()
    meters.update(record(0, 6.0, kd=4.0), LOGITS, LABELS)
    means = meters.means(8, FakeDistributed())
    assert (means.loss, means.top1, means.terms) == (1.5, 0.5, {"kd": 1.0})


def test_a_checkpoint_holds_the_sums_of_all_processes_once():
    """Process 0 carries them on, before and after the checkpoint is restored."""
    for rank, factor in ((0, 2), (1, 0)):
        meters = Meters()
        meters.update(record(0, 6.0), LOGITS, LABELS)
        meters.move_to_main(FakeDistributed(rank=rank))
        assert meters.sums["loss"] == 6 * factor

        restored = Meters()
        restored.load({"loss": torch.tensor(12.0)}, torch.device("cpu"), FakeDistributed(rank=rank))
        assert restored.sums["loss"] == 6 * factor


def test_one_process_keeps_its_sums_at_a_checkpoint():
    meters = Meters()
    meters.update(record(0, 6.0), LOGITS, LABELS)
    meters.move_to_main(ONE_PROCESS)
    assert meters.sums["loss"] == 6

"""Which examples are analysed, and the chunks in which they are."""

import torch

from distill.evaluation import examples


def test_positions_are_evenly_spaced_and_never_more_than_there_are():
    assert examples.evenly_spaced(10, 4).tolist() == [0, 2, 5, 7]
    assert examples.evenly_spaced(3, 100).tolist() == [0, 1, 2]
    assert examples.evenly_spaced(0, 5).tolist() == []


def test_the_first_examples_of_each_class_are_in_the_splits_order():
    labels = torch.tensor([2, 0, 1, 0, 0, 2, 2])
    assert examples.first_per_class(labels, [0, 2], 2).tolist() == [0, 1, 3, 5]
    assert examples.first_per_class(labels, [7], 2).tolist() == []
    assert examples.first_per_class(labels, [], 2).tolist() == []


def test_chunks_cut_all_tensors_alike(monkeypatch):
    images = torch.arange(7 * 4).view(7, 1, 2, 2)
    labels = torch.arange(7)
    monkeypatch.setattr(examples, "CHUNK_PIXELS", 3 * 4)
    parts = examples.chunks(images, labels)
    assert [len(x) for x, _ in parts] == [len(y) for _, y in parts] == [3, 3, 1]
    assert torch.equal(torch.cat([x for x, _ in parts]), images)
    assert torch.equal(torch.cat([y for _, y in parts]), labels)
    assert len(examples.chunks(images[:0], labels[:0])) == 1

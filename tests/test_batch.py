"""A packed batch: documents end to end, and the numbers that say where each begins."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modernbert.batch import IGNORE, PackedBatch

sequences = st.lists(st.lists(st.integers(0, 2**40), min_size=1, max_size=30), min_size=1, max_size=20)


@settings(deadline=None)
@given(sequences)
def test_a_batch_holds_each_document_and_says_where_it_lies(documents):
    batch = PackedBatch.from_sequences(documents)
    lengths = [len(ids) for ids in documents]
    assert batch.lengths() == lengths
    assert batch.num_tokens == sum(lengths) == len(batch.positions_T)
    assert batch.num_documents == len(documents)
    assert batch.max_seqlen == max(lengths)
    assert batch.labels_T is None
    bounds = batch.cu_seqlens.tolist()
    assert bounds[0] == 0 and bounds[-1] == batch.num_tokens
    for first, last, ids in zip(bounds, bounds[1:], documents, strict=False):
        assert batch.input_ids_T[first:last].tolist() == ids
        assert batch.positions_T[first:last].tolist() == list(range(last - first))


@settings(deadline=None)
@given(sequences)
def test_lists_and_tensors_make_the_same_batch(documents):
    from_lists = PackedBatch.from_sequences(documents, documents)
    tensors = [torch.tensor(ids) for ids in documents]
    from_tensors = PackedBatch.from_sequences(tensors, tensors)
    for name in ("input_ids_T", "positions_T", "cu_seqlens", "labels_T"):
        ours, theirs = getattr(from_lists, name), getattr(from_tensors, name)
        assert torch.equal(ours, theirs) and ours.dtype == theirs.dtype


def test_the_example_in_its_docstring_holds():
    batch = PackedBatch.from_sequences([[5, 6, 7], [8, 9]], [[IGNORE, 6, IGNORE], [0, IGNORE]])
    assert batch.positions_T.tolist() == [0, 1, 2, 0, 1]
    assert batch.cu_seqlens.tolist() == [0, 3, 5] and batch.cu_seqlens.dtype == torch.int32
    assert batch.max_seqlen == 3
    assert batch.labels_T.tolist() == [IGNORE, 6, IGNORE, 0, IGNORE]


def test_moving_a_batch_keeps_all_of_it():
    batch = PackedBatch.from_sequences([[5, 6, 7], [8, 9]], [[1, 2, 3], [4, 5]])
    moved = batch.to("meta")
    assert moved.max_seqlen == 3 and moved.num_documents == 2
    assert {moved.input_ids_T.device.type, moved.positions_T.device.type} == {"meta"}
    assert {moved.cu_seqlens.device.type, moved.labels_T.device.type} == {"meta"}
    assert PackedBatch.from_sequences([[1]]).to("meta").labels_T is None


@pytest.mark.parametrize(
    "documents,labels,message",
    [
        ([], None, "at least one document"),
        ([[1, 2], []], None, "no empty ones"),
        ([torch.ones(2, 2)], None, "one-dimensional"),
        ([torch.tensor(3)], None, "one-dimensional"),
        ([[1, 2]], [[1]], r"\[1\] labels for documents of \[2\] tokens"),
        ([[1, 2]], [[1, 2], [3]], r"\[2, 1\] labels for documents of \[2\] tokens"),
    ],
)
def test_what_is_no_batch_is_refused(documents, labels, message):
    with pytest.raises(ValueError, match=message):
        PackedBatch.from_sequences(documents, labels)


def test_labels_that_fit_in_all_but_not_document_by_document_are_refused():
    with pytest.raises(ValueError, match="labels for documents"):
        PackedBatch.from_sequences([[1, 2, 3], [4, 5]], [[1, 2], [3, 4, 5]])


@settings(deadline=None)
@given(sequences, st.integers(1, 60))
def test_the_parts_hold_every_document_once_with_its_neighbours_of_like_length(documents, max_tokens):
    labels = [[token + 1 for token in ids] for ids in documents]
    batch = PackedBatch.from_sequences(documents, labels)
    rebuilt, rebuilt_labels = torch.full((2, batch.num_tokens), -1).unbind()
    seen_lengths = []
    for index, part in batch.in_parts(max_tokens):
        assert (rebuilt[index] == -1).all()  # no token twice
        rebuilt[index], rebuilt_labels[index] = part.input_ids_T, part.labels_T
        assert torch.equal(part.positions_T, batch.positions_T[index])
        assert part.num_tokens <= max_tokens or part.num_documents == 1
        assert part.max_seqlen == max(part.lengths()) and part.cu_seqlens.dtype == torch.int32
        seen_lengths += part.lengths()
    assert torch.equal(rebuilt, batch.input_ids_T) and torch.equal(rebuilt_labels, batch.labels_T)
    assert seen_lengths == sorted(batch.lengths())

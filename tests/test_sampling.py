"""The sampler: every utterance once an epoch, the same batches whatever runs them, alike in length or in classes."""

from collections import Counter

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lascl.data import UtteranceBatchSampler


def names(count):
    return [f"utterance-{number:04d}" for number in range(count)]


def read_by_all(ids, num_processes, accumulation_steps=1, epoch=0, **options):
    """What each process reads: for each optimiser step, a list over processes of a list over accumulation steps."""
    read = []
    for process_index in range(num_processes):
        sampler = UtteranceBatchSampler(
            ids,
            num_processes=num_processes,
            process_index=process_index,
            accumulation_steps=accumulation_steps,
            **options,
        )
        sampler.set_epoch(epoch)
        batches = list(sampler)
        assert len(batches) == len(sampler)
        read.append([batches[i : i + accumulation_steps] for i in range(0, len(batches), accumulation_steps)])
    return list(zip(*read, strict=True))


@settings(deadline=None, max_examples=150)
@given(
    count=st.integers(12, 90),
    global_batch_size=st.integers(1, 40),
    accumulation_steps=st.integers(1, 3),
    epoch=st.integers(0, 5),
    by_length=st.booleans(),
)
def test_each_epoch_is_read_exactly_once_in_the_same_batches_by_one_to_four_processes(
    count, global_batch_size, accumulation_steps, epoch, by_length
):
    ids = names(count)
    durations_s = [(7 * number) % 13 / 4 for number in range(count)] if by_length else None
    batches_of = {}
    for num_processes in (1, 2, 3, 4):
        steps = read_by_all(
            ids,
            num_processes,
            accumulation_steps,
            epoch,
            global_batch_size=global_batch_size,
            seed=3,
            durations_s=durations_s,
        )
        parts = [part for step in steps for process in step for part in process]
        assert sorted(row for part in parts for row in part) == list(range(count))
        for step in steps:
            sizes = [len(part) for process in step for part in process]
            assert min(sizes) >= 1 and max(sizes) - min(sizes) <= 1
        sizes = [sum(len(part) for process in step for part in process) for step in steps]
        assert max(sizes) - min(sizes) <= 1
        if count // -(-count // global_batch_size) >= num_processes * accumulation_steps:
            assert max(sizes) <= global_batch_size and len(steps) == -(-count // global_batch_size)
            batches_of[num_processes] = [
                sorted(row for process in step for part in process for row in part) for step in steps
            ]
    assert all(batches == next(iter(batches_of.values())) for batches in batches_of.values())


@settings(deadline=None, max_examples=50)
@given(order=st.permutations(range(20)), balanced=st.booleans(), by_length=st.booleans())
def test_batches_do_not_depend_on_the_order_of_the_rows(order, balanced, by_length):
    def batches(rows):
        sampler = UtteranceBatchSampler(
            [f"u{row:02d}" for row in rows],
            global_batch_size=6,
            seed=1,
            labels=[row % 3 for row in rows] if balanced else None,
            utterances_per_class=2 if balanced else None,
            durations_s=[row // 2 for row in rows] if by_length else None,
        )
        return [[rows[index] for index in batch] for batch in sampler.global_batches()]

    assert batches(list(order)) == batches(list(range(20)))


def test_epochs_and_seeds_differ_and_come_again():
    def batches(seed, epoch):
        sampler = UtteranceBatchSampler(names(40), global_batch_size=8, seed=seed)
        sampler.set_epoch(epoch)
        return sampler.global_batches()

    assert batches(0, 0) == batches(0, 0)
    assert len({str(batches(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9


@settings(deadline=None, max_examples=60)
@given(
    counts=st.lists(st.integers(1, 30), min_size=2, max_size=5),
    per_class=st.integers(1, 4),
    classes_per_batch=st.integers(1, 5),
    by_length=st.booleans(),
)
@example(counts=[1, 1], per_class=2, classes_per_batch=1, by_length=False)  # one batch, and one class without a place
def test_a_balanced_batch_holds_as_many_of_each_of_its_classes(counts, per_class, classes_per_batch, by_length):
    classes_per_batch = min(classes_per_batch, len(counts))
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    sampler = UtteranceBatchSampler(
        names(len(labels)),
        global_batch_size=per_class * classes_per_batch,
        seed=0,
        labels=labels,
        utterances_per_class=per_class,
        durations_s=[number % 7 for number in range(len(labels))] if by_length else None,
    )
    batches = sampler.global_batches()
    assert len(batches) == len(sampler) == -(-len(labels) // (per_class * classes_per_batch))
    turns = Counter()
    for batch in batches:
        held = Counter(labels[row] for row in batch)
        assert len(held) == classes_per_batch and set(held.values()) == {per_class}
        turns.update(held.keys())
    assert max(turns.values()) - min(turns[label] for label in range(len(counts))) <= 1
    read = Counter(row for batch in batches for row in batch)
    for label in range(len(counts)):
        times = [read[row] for row in range(len(labels)) if labels[row] == label]
        assert max(times) - min(times) <= 1  # the utterances of a class take turns


def test_balanced_batches_are_shared_evenly_by_processes_and_accumulation_steps():
    labels = [0] * 20 + [1] * 20
    options = {"global_batch_size": 8, "seed": 0, "labels": labels, "utterances_per_class": 4}
    for step in read_by_all(names(40), 2, 2, **options):
        for process in step:
            assert [Counter(labels[row] for row in part) for part in process] == [Counter({0: 1, 1: 1})] * 2


def test_utterances_of_like_length_share_a_batch():
    durations_s = [1 + (37 * number) % 101 / 10 for number in range(320)]
    share = {}
    for by_length in (False, True):
        sampler = UtteranceBatchSampler(
            names(320), global_batch_size=16, seed=0, durations_s=durations_s if by_length else None
        )
        batches = [[durations_s[row] for row in batch] for batch in sampler.global_batches()]
        share[by_length] = 1 - sum(map(sum, batches)) / sum(max(batch) * len(batch) for batch in batches)
        longest = [max(batch) for batch in batches]
        assert longest != sorted(longest)  # short and long batches come mixed
    # Drawn as they come, the longest of 16 is near 11 s and the mean 6 s. Of 128 sorted ones, 16 span an eighth.
    assert share[False] > 0.4 and share[True] < 0.15


@pytest.mark.parametrize(
    "options, message",
    [
        ({"num_processes": 3, "accumulation_steps": 2}, "5 utterances cannot be shared by 3 processes x 2"),
        ({"labels": [0, 0, 1, 1, 1], "utterances_per_class": 3}, r"utterances_per_class \(3\) times 1 to 2.*found 4"),
        ({"labels": [0, 0, 1, 1, 1], "utterances_per_class": 1}, r"utterances_per_class \(1\) times 1 to 2.*found 4"),
    ],
)
def test_what_cannot_be_shared_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        UtteranceBatchSampler(names(5), global_batch_size=4, seed=0, **options)


@pytest.mark.parametrize("options", [{}, {"durations_s": [number % 7 for number in range(45)]}])
@pytest.mark.parametrize("accumulation_steps", [1, 2, 3])
def test_each_process_knows_what_the_others_have_of_a_batch(accumulation_steps, options):
    """Counted by reading with all samplers."""
    assert hasattr(UtteranceBatchSampler, "shares"), "they have to ask each other"
    options = {"global_batch_size": 11, "seed": 3, **options}
    steps = read_by_all(names(45), 3, accumulation_steps, epoch=2, **options)
    expected = [[len(process[turn]) for process in step] for step in steps for turn in range(accumulation_steps)]
    sampler = UtteranceBatchSampler(
        names(45), num_processes=3, process_index=1, accumulation_steps=accumulation_steps, **options
    )
    sampler.set_epoch(2)
    assert sampler.shares() == expected and len(expected) == len(sampler)

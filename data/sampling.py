"""Which utterances each process reads, batch by batch.

Letters: N utterances, G utterances of a global batch, W processes, A accumulation steps, K classes, M of a class, C
corpora, n_c utterances of one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import torch


# Utterances are sorted by length within so many batches: enough to save padding, few enough that an utterance meets
# others in every epoch.
BATCHES_A_BUCKET = 8


def check_batches(
    num_utterances: int,
    num_classes: int,
    *,
    global_batch_size: int,
    utterances_per_class: int | None,
    num_processes: int,
    accumulation_steps: int,
    corpora: Sequence[int] = (),
    corpus_exponent: float = 0.5,
    bucket_by_length: bool = False,
) -> int:
    """How many classes a batch of `UtteranceBatchSampler` holds (1 where they are not balanced); of so many utterances,
    classes and `corpora`, each of so many utterances, before any is read.

    Raises:
        ValueError: as `UtteranceBatchSampler`.
    """
    places = num_processes * accumulation_steps
    if num_utterances < places:
        raise ValueError(
            f"{num_utterances} utterances cannot be shared by {num_processes} processes x {accumulation_steps} "
            "accumulation steps. Use fewer."
        )
    if len(corpora) > 1:
        _check_corpora(corpora, corpus_exponent, num_batches(num_utterances, global_batch_size, places))
        other = "bucket_by_length" if bucket_by_length else "utterances_per_class"
        if bucket_by_length or utterances_per_class is not None:
            raise ValueError(
                f"Batches of several corpora are drawn by corpus_exponent, and not by {other} too: unset it."
            )
    if utterances_per_class is None:
        return 1
    classes_per_batch, rest = divmod(global_batch_size, utterances_per_class)
    if rest or not 1 <= classes_per_batch <= num_classes:
        raise ValueError(
            f"global_batch_size must be utterances_per_class ({utterances_per_class}) times 1 to {num_classes}, the "
            f"number of classes; found {global_batch_size}."
        )
    return classes_per_batch


def num_batches(num_utterances: int, global_batch_size: int, places: int) -> int:
    """Global batches of an epoch: ceil(N / G), or fewer and larger ones where a place would go without."""
    return min(-(-num_utterances // global_batch_size), num_utterances // places)


def places_of_corpora(sizes: Sequence[int], exponent: float) -> list[int]:
    """Of the N = sum n_c places of an epoch, those of each corpus: N n_c^a / sum n^a, rounded so that they sum to N
    (the largest remainders are rounded up, the first of equals)."""
    weights = np.asarray(sizes, dtype=float) ** exponent
    shares = sum(sizes) * weights / weights.sum()
    places = np.floor(shares).astype(int)
    most_lost = np.argsort(places - shares, kind="stable")[: sum(sizes) - places.sum()]
    places[most_lost] += 1
    return places.tolist()


def _check_corpora(sizes: Sequence[int], exponent: float, batches: int):
    """Raises ValueError if some of so many batches could not hold two corpora."""
    if not 0 <= exponent <= 1:
        raise ValueError(f"corpus_exponent must lie between 0 and 1; found {exponent}.")
    places = places_of_corpora(sizes, exponent)
    others = sum(places) - max(places)
    if others < batches or sum(places) < 2 * batches:
        raise ValueError(
            f"Each of {batches} batches must hold utterances of two corpora, but all corpora except the largest have "
            f"{others} places of an epoch's {sum(places)}. Set a lower corpus_exponent, or a larger global_batch_size."
        )


class UtteranceBatchSampler(torch.utils.data.Sampler[list[int]]):
    """Global batches that are a pure function of (seed, epoch), and this process's share of them.

    An epoch has ceil(N / G) global batches whose sizes differ by one at most, and every utterance is in exactly one of
    them: nothing is dropped, nothing repeated to fill the last. (Where that would leave a process without any
    utterance, there are fewer and larger batches.) What is in a batch depends on the utterances' names and neither on
    their order nor on W.

    With `utterances_per_class`, a batch holds M utterances of each of G / M classes instead. Classes take turns, and
    so do the utterances of a class: rare ones come several times an epoch, and of a frequent class some wait for
    another epoch.

    With several `corpora`, corpus c gets N n_c^a / sum n^a of the epoch's N places, and its utterances take turns over
    the epochs: between any two, the numbers of times that they have come differ by one at most. Each corpus is spread
    evenly over the batches, and each batch holds at least two. With a = 1 every utterance is in exactly one batch.

    Each iteration yields A batches for every global batch, dealt like cards to W x A places, so that a class or a
    length is spread evenly. `set_epoch` chooses the epoch.

    Args:
        ids: names of the utterances, all different.
        global_batch_size: G, over all processes and accumulation steps.
        seed: of the order.
        durations_s: in seconds; given, utterances of like length come into the same batch (less padding).
        labels: class of each utterance; needed with `utterances_per_class`.
        utterances_per_class: M.
        corpora: of each utterance its corpus; `None`, or all the same, is one corpus.
        corpus_exponent: a, from 0 (all corpora alike) to 1 (by size).
        num_processes, process_index, accumulation_steps: W, this one of them, A.

    Raises:
        ValueError: fewer utterances than places, a G that is not a multiple of M, or more classes a batch than exist;
            of several corpora, a beyond its range, `durations_s` or `utterances_per_class`, or so few utterances
            outside the largest that some batch could not hold two.
    """

    def __init__(
        self,
        ids: Sequence,
        *,
        global_batch_size: int,
        seed: int,
        durations_s: Sequence[float] | None = None,
        labels: Sequence[int] | None = None,
        utterances_per_class: int | None = None,
        corpora: Sequence[str] | None = None,
        corpus_exponent: float = 0.5,
        num_processes: int = 1,
        process_index: int = 0,
        accumulation_steps: int = 1,
    ):
        places = num_processes * accumulation_steps
        present = [] if utterances_per_class is None else sorted(set(labels))
        sizes = Counter(corpora or ())
        names = sorted(sizes, key=lambda name: (-sizes[name], name))  # the largest is dealt first
        self.classes_per_batch = check_batches(
            len(ids),
            len(present),
            global_batch_size=global_batch_size,
            utterances_per_class=utterances_per_class,
            num_processes=num_processes,
            accumulation_steps=accumulation_steps,
            corpora=[sizes[name] for name in names],
            corpus_exponent=corpus_exponent,
            bucket_by_length=durations_s is not None,
        )
        self.num_batches = num_batches(len(ids), global_batch_size, places)
        by_name = sorted(range(len(ids)), key=ids.__getitem__)
        self.utterances_per_class = utterances_per_class
        self.classes = [np.array(by_name)]  # without classes to balance, all are of one
        if utterances_per_class is not None:
            self.classes = [np.array([row for row in by_name if labels[row] == label]) for label in present]
        self.corpora = []
        if len(names) > 1:
            self.corpora = [np.array([row for row in by_name if corpora[row] == name]) for name in names]
        self.places_a_corpus = places_of_corpora([len(members) for members in self.corpora], corpus_exponent)
        self.seed, self.epoch = seed, 0
        self.durations_s = None if durations_s is None else np.asarray(durations_s)
        self.places, self.first_place, self.num_processes = places, process_index, num_processes

    def set_epoch(self, epoch: int):
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_batches * (self.places // self.num_processes)

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self.global_batches():
            for place in range(self.first_place, self.places, self.num_processes):
                yield batch[place :: self.places]

    def shares(self) -> list[list[int]]:
        """Of each batch that an iteration yields, how many utterances each of the W processes has of it."""
        rounds = range(0, self.places, self.num_processes)
        return [
            [len(batch[place :: self.places]) for place in range(first, first + self.num_processes)]
            for batch in self.global_batches()
            for first in rounds
        ]

    def global_batches(self) -> list[list[int]]:
        """All batches of the epoch, whole, as indices into `ids`."""
        rng = np.random.default_rng([self.seed, self.epoch])
        if self.corpora:
            return self._batches_of_corpora(rng)
        batches: list[list[int]] = [[] for _ in range(self.num_batches)]
        for members, turns in zip(self.classes, self._turns(rng)):
            if not turns:  # more classes than the epoch has places: its turn comes in another epoch
                continue
            if self.utterances_per_class is None:
                sizes = [len(part) for part in np.array_split(members, self.num_batches)]
            else:
                sizes = [self.utterances_per_class] * len(turns)
            rounds = -(-sum(sizes) // len(members))
            drawn = np.concatenate([rng.permutation(members) for _ in range(rounds)])[: sum(sizes)]
            for batch, share in zip(turns, self._deal(drawn.tolist(), sizes)):
                batches[batch] += share
        if self.durations_s is None:
            return batches
        return [batches[number] for number in rng.permutation(self.num_batches)]  # else short ones come first

    def _batches_of_corpora(self, rng: np.random.Generator) -> list[list[int]]:
        """Dealt like cards, corpus by corpus, the largest first: so a batch has of each its share, rounded down or up.
        What comes twice is dealt to neighbours: the same utterance twice in a batch would be its own positive."""
        cards = []
        for number, places in enumerate(self.places_a_corpus):
            for row, times in Counter(self._turn_of_corpus(number, places)).items():
                cards += [row] * times
        return [cards[batch :: self.num_batches] for batch in rng.permutation(self.num_batches).tolist()]

    def _turn_of_corpus(self, number: int, places: int) -> list[int]:
        """What a corpus gives this epoch, which goes on where the last one stopped in an endless row of rounds. Each is
        in an order of its own; only, what an epoch has had comes last in a round that begins within it."""
        members, turn = self.corpora[number], 0
        waiting = np.zeros(0, dtype=np.int64)  # the rest of a round, as numbers of members
        for _ in range(self.epoch + 1):
            times, drawn = np.zeros(len(members), dtype=np.int64), []
            while (wanted := places - int(times.sum())) > 0:
                if not len(waiting):
                    order = np.random.default_rng([self.seed, number, turn]).permutation(len(members))
                    waiting, turn = order[np.argsort(times[order], kind="stable")], turn + 1
                now, waiting = waiting[:wanted], waiting[wanted:]
                times[now] += 1
                drawn.append(now)
        return members[np.concatenate(drawn)].tolist()

    def _turns(self, rng: np.random.Generator) -> list[list[int]]:
        """For each class, the batches that it is in: the classes that were in fewest come next."""
        turns: list[list[int]] = [[] for _ in self.classes]
        for batch in range(self.num_batches):
            drawn = rng.permutation(len(self.classes)).tolist()
            for number in sorted(drawn, key=lambda number: len(turns[number]))[: self.classes_per_batch]:
                turns[number].append(batch)
        return turns

    def _deal(self, drawn: list[int], sizes: list[int]) -> list[list[int]]:
        """`drawn`, cut into shares of these sizes; alike in length where lengths are given."""
        shares: list[list[int]] = []
        for start in range(0, len(sizes), BATCHES_A_BUCKET):
            wanted = sizes[start : start + BATCHES_A_BUCKET]
            bucket, drawn = drawn[: sum(wanted)], drawn[sum(wanted) :]
            if self.durations_s is not None:
                bucket.sort(key=self.durations_s.__getitem__)
            new: list[list[int]] = [[] for _ in wanted]
            for row in bucket:
                room = [share for share, size in zip(new, wanted) if len(share) < size]
                # The same utterance twice in a batch would be its own positive: avoided where another has room.
                next((share for share in room if row not in share), room[0]).append(row)
            shares += new
        return shares

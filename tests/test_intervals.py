"""Intervals cover the true score as often as they say, where those over utterances do not."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lascl.evaluation import score, speaker_counts, speaker_interval, speaker_standard_error
from lascl.evaluation.metrics import SCORES, scores_from_counts


K = 4


def simulated_speakers(generator, num_speakers):
    """(S, K, K) counts: each speaker's accuracy is normal on the logit, around one that depends on the class."""
    logit = np.array([1.5, 1.0, 0.5, 0.0]) + 0.8 * generator.standard_normal((num_speakers, 1))
    utterances = generator.integers(20, 80, size=(num_speakers, K))
    right = generator.binomial(utterances, 1 / (1 + np.exp(-logit)))
    counts = np.zeros((num_speakers, K, K), dtype=int)
    for k in range(K):
        others = [other for other in range(K) if other != k]
        counts[:, k, others] = generator.multinomial(utterances[:, k] - right[:, k], [1 / (K - 1)] * (K - 1))
        counts[:, k, k] = right[:, k]
    return counts


def unweighted_accuracy(counts):
    return np.mean(np.diagonal(counts, axis1=-2, axis2=-1) / counts.sum(axis=-1), axis=-1)


@pytest.fixture(scope="module")
def true_ua():
    return unweighted_accuracy(simulated_speakers(np.random.default_rng(1), 100_000).sum(axis=0))


@pytest.mark.parametrize("num_speakers", [10, 30])
def test_the_interval_covers_the_truth_where_that_over_utterances_does_not(num_speakers, true_ua):
    generator, num_corpora = np.random.default_rng(2), 600
    covered = covered_by_utterances = 0
    for _ in range(num_corpora):
        counts = simulated_speakers(generator, num_speakers)
        low, high = speaker_interval(counts, num_resamples=500, generator=generator)[SCORES.index("ua")]
        covered += low <= true_ua <= high
        # The bootstrap that papers use when they forget who speaks: every utterance a trial of its own.
        pooled = counts.sum(axis=0)
        resampled = generator.multinomial(pooled.sum(), (pooled / pooled.sum()).ravel(), size=500)
        low, high = np.percentile(unweighted_accuracy(resampled.reshape(-1, K, K)), [2.5, 97.5])
        covered_by_utterances += low <= true_ua <= high
    assert 0.92 <= covered / num_corpora <= 0.98
    assert covered_by_utterances / num_corpora < 0.5


def test_the_standard_error_of_a_mean_is_the_textbook_s():
    values = np.random.default_rng(3).normal(size=(6, 1))

    def mean(sums):
        return sums / 6

    error = speaker_standard_error(values, mean, num_resamples=20_000)
    assert error == pytest.approx(values.std(ddof=1) / np.sqrt(6), rel=0.03)
    shifted = 0.5 + 0.01 * values
    low, high = speaker_interval(shifted, mean, num_resamples=20_000)[0]
    assert (low + high) / 2 == pytest.approx(shifted.mean())
    assert high - low == pytest.approx(2 * 2.5706 * shifted.std(ddof=1) / np.sqrt(6), rel=0.03)  # t, 5 degrees


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.integers(1, 5))
def test_the_speakers_counts_hold_all_that_scores_need(seed, num_speakers):
    generator, labels = np.random.default_rng(seed), list("abc")
    predictions, references = generator.choice(labels, size=(2, 30)).tolist()
    speakers = generator.integers(num_speakers, size=30).astype(str).tolist()
    counts = speaker_counts(predictions, references, speakers, labels)
    for index, speaker in enumerate(sorted(set(speakers))):
        rows = [i for i in range(30) if speakers[i] == speaker]
        expected = score([predictions[i] for i in rows], [references[i] for i in rows], labels=labels)
        assert counts[index].tolist() == expected["confusion"]
        assert scores_from_counts(counts[index]).tolist() == [expected[name] for name in SCORES]
    intervals = speaker_interval(counts, num_resamples=50)
    assert (intervals is None) == (len(counts) == 1)
    if intervals is not None:
        estimate = scores_from_counts(counts.sum(axis=0))
        there = np.isfinite(intervals).all(axis=1)  # not where the few speakers of a draw score alike
        assert np.all((intervals[there] >= 0) & (intervals[there] <= 1))
        assert np.all((intervals[there, 0] <= estimate[there]) & (estimate[there] <= intervals[there, 1]))
        assert np.all(intervals[there, 0] < intervals[there, 1])


def test_a_resample_without_a_class_is_scored_over_the_others():
    # One speaker has all of class b: two of three draws of three lack nothing, the others score on a alone.
    counts = np.array([[[4, 0], [0, 0]], [[3, 1], [0, 0]], [[4, 0], [2, 2]]])
    assert np.all(np.isfinite(speaker_interval(counts)))
    assert scores_from_counts(counts[1]).tolist() == pytest.approx([3 / 4, 3 / 4, 2 * 3 / (4 + 3)])


def test_equal_seeds_give_equal_intervals_and_little_speaks_of_nothing():
    counts = simulated_speakers(np.random.default_rng(4), 5)
    assert np.array_equal(speaker_interval(counts), speaker_interval(counts))
    other = speaker_interval(counts, generator=np.random.default_rng(5))
    assert not np.array_equal(speaker_interval(counts), other)
    assert speaker_interval(counts) == pytest.approx(other, abs=0.02)
    assert speaker_interval(counts[:1]) is None
    with pytest.raises(ValueError, match="at least two of them; found 1"):
        speaker_standard_error(counts[:1], scores_from_counts)
    perfect = np.tile(np.eye(K, dtype=int), (5, 1, 1))
    assert np.isnan(speaker_interval(perfect)).all()  # a width of 0 would be a claim
    with pytest.raises(ValueError, match="'c' is not one of the labels"):
        speaker_counts(["c"], ["a"], ["s"], ["a", "b"])

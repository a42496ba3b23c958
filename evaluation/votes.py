"""What listeners said of an utterance, and how an answer is scored by it.

Letters: n utterances, K words.
"""

from __future__ import annotations

import numpy as np


def most_voted(votes: np.ndarray) -> np.ndarray:
    """(n,) the word with most votes of (n, K) votes or shares, as a number; -1 where two or more share that, or none
    has any."""
    largest = votes.max(axis=1, keepdims=True)
    is_alone = (np.isclose(votes, largest, rtol=1e-6, atol=0).sum(axis=1) == 1) & (largest[:, 0] > 0)
    return np.where(is_alone, votes.argmax(axis=1), -1)

"""Sentences of README and docs that a new user did not understand at once are said anew."""

from pathlib import Path

import pytest


ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXT = " ".join(" ".join(page.read_text(encoding="utf-8").split()) for page in PAGES)
SAID_ANEW = {
    "A Whisper checkpoint hears at most": "Whisper has a window: the longest clip that it was trained on, saved in the "
    "checkpoint. `--window` may not be longer.",
    "each micro-batch is compared with itself alone": "makes the contrastive batch smaller: an utterance is compared "
    "with those of its own micro-batch, not with those of the whole step.",
    "**An augmented view** is ahead of none": "**An augmented view** beside the clean one scored higher than the clean "
    "one alone; the difference is no larger than chance among ten speakers explains.",
    "its label head was not above its own classifier": "Its label head answered no better than its own classifier, "
    "which uses no label words at all.",
    "the cheapest that keeps the full method": "The paper's ablations with the full method and a frozen encoder: the "
    "scores are above those of the fine-tuned one, and a run takes minutes instead of hours",
}
ORDER = ["## Train on your own recordings", "take `small-corpus`", "## Many corpora", "(docs/protocols.md)"]


@pytest.mark.parametrize("before", SAID_ANEW)
def test_what_was_not_understood_is_said_anew(before):
    assert before not in TEXT
    assert SAID_ANEW[before] in TEXT


def test_the_readme_trains_then_takes_a_small_corpus_then_several_then_protocols():
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    places = [readme.find(told) for told in ORDER]
    assert -1 < places[0] and places == sorted(places) and -1 not in places

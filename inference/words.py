"""Will my words work? `lascl-words MODEL "joyful, furious, weary" [--check labelled.csv [--store]]`.

Without audio: where each word lies among the words that the model was trained on. With labelled recordings: how many of
each word's are told by it, and the temperature by which the probabilities fit them.

Letters: W words, K trained words, n recordings, D width of the joint space.
"""

from __future__ import annotations

import csv
import json
import math
import os
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lascl.configuration_lascl import words_key
from lascl.console import unless_pipe_closes
from lascl.data.segments import Segment, time_columns, times_of
from lascl.inference.checkpoints import checkpoint_of
from lascl.inference.outputs import one_line, whole_file
from lascl.options import words_options


if TYPE_CHECKING:
    import argparse

    from lascl.inference.recogniser import Recogniser

TEMPERATURES = (0.01, 10.0)  # the least and the largest that is fitted
FEW = 30  # recordings, with fewer of which a fitted temperature is mere chance
# Words of no language that we know: where a text encoder puts what means nothing.
MADE_UP = ("blicket", "dax", "fendle", "glorp", "koba", "modi", "nass", "pizer", "slithy", "toma", "wug", "zorch")


# ------------------------------------------------------------------------------------------------------------- places


@dataclass
class Place:
    """Where a word lies.

    Args:
        word: of the user.
        nearest: the trained word whose embedding is the nearest; itself, of a trained one.
        cosine: of both embeddings, in [-1, 1].
    """

    word: str
    nearest: str
    cosine: float


def places_of(words: Sequence[str], embeds: np.ndarray, trained: Sequence[str], trained_embeds: np.ndarray):
    """A `Place` for each word: the trained word with the highest cosine, the first of equals.

    Args:
        embeds, trained_embeds: (W, D) and (K, D), of unit length.
    """
    cosines = embeds.astype(np.float64) @ trained_embeds.astype(np.float64).T  # (W, K)
    nearest = cosines.argmax(axis=1)
    return [Place(word, trained[k], float(row[k])) for word, row, k in zip(words, cosines, nearest)]


def told_apart_below(temperature: float) -> float:
    """The cosine of two words above which a recording that lies exactly where one of them does is less than twice as
    likely to be answered by it as by the other: exp((1 - cosine) / temperature) < 2."""
    return 1 - temperature * math.log(2)


def not_told_apart(words: Sequence[str], embeds: np.ndarray, temperature: float) -> list[tuple[str, str, float]]:
    """Pairs of words, and their cosine, that lie closer than `told_apart_below`; the closest first."""
    cosines = embeds.astype(np.float64) @ embeds.astype(np.float64).T  # (W, W)
    limit, pairs = told_apart_below(temperature), []
    for i, word in enumerate(words):
        pairs += [(word, words[j], float(cosines[i, j])) for j in range(i + 1, len(words)) if cosines[i, j] > limit]
    return sorted(pairs, key=lambda pair: -pair[2])


def hardly_placed(places: Sequence[Place], made_up: Sequence[Place]) -> list[str]:
    """The words, trained ones aside, that are no nearer to a trained word than the nearest of what means nothing: where
    they lie is told by no meaning."""
    nearest = max(place.cosine for place in made_up)
    return [place.word for place in places if place.word != place.nearest and place.cosine <= nearest]


def landed_together(places: Sequence[Place]) -> dict[str, list[str]]:
    """By trained word, the words that have it for their nearest, where they are several: what was learned of that one
    is all that the model knows of each."""
    landed = {}
    for place in places:
        landed.setdefault(place.nearest, []).append(place.word)
    return {nearest: together for nearest, together in landed.items() if len(together) > 1}


# -------------------------------------------------------------------------------------------------------- recordings


def negative_log_likelihood(cosines: np.ndarray, references: np.ndarray, temperature: float) -> float:
    """Mean of -log softmax(cosines / temperature) of the right word; (n, W) and (n,) indices."""
    logits = cosines.astype(np.float64) / temperature
    highest = logits.max(axis=1)
    total = np.log(np.exp(logits - highest[:, None]).sum(axis=1)) + highest
    return float((total - logits[np.arange(len(logits)), references]).mean())


def fit_temperature(cosines: np.ndarray, references: np.ndarray) -> float:
    """The temperature of the least `negative_log_likelihood`, within TEMPERATURES (Guo et al., 2017,
    arXiv:1706.04599).

    With s = 1 / temperature the likelihood is concave in s, and its slope is the mean cosine of the right words less
    that which the probabilities expect; it falls as s rises, so one bisection finds where it is 0. At the ends: the
    least where every recording is nearest to its word, the largest where the words say nothing.

    Args:
        cosines: (n, W) of recordings and words, n and W at least 1.
        references: (n,) indices of the right words.
    """
    cosines = cosines.astype(np.float64)
    right = cosines[np.arange(len(cosines)), references].mean()

    def slope(s: float) -> float:
        odds = np.exp(s * (cosines - cosines.max(axis=1, keepdims=True)))  # (n, W)
        return float(right - ((odds * cosines).sum(axis=1) / odds.sum(axis=1)).mean())

    low, high = (1 / t for t in reversed(TEMPERATURES))
    if slope(low) <= 0:
        return TEMPERATURES[1]
    if slope(high) >= 0:
        return TEMPERATURES[0]
    for _ in range(100):  # in the logarithm: exact to the last digits
        middle = math.sqrt(low * high)
        low, high = (middle, high) if slope(middle) > 0 else (low, middle)
    return 1 / low


def read_labelled(file: str | Path, words: Sequence[str]) -> tuple[list[tuple[str | Segment, str]], Counter]:
    """The recordings of a CSV with columns `path` (relative to it) and `label`, and `start` and `end` if they are
    segments, whose label is one of the words, and how many have another label, by label.

    Raises:
        ValueError: no such file or columns, an empty cell, or no recording of these words.
    """
    rows, others = [], Counter()
    try:
        with open(file, encoding="utf-8-sig", newline="") as opened:
            reader = csv.DictReader(opened)
            lacking = [name for name in ("path", "label") if name not in (reader.fieldnames or [])]
            if lacking:
                columns = ", ".join(reader.fieldnames or []) or "none"
                raise ValueError(f"{file} needs the columns path and label; found {columns}.")
            timed = time_columns(file, reader.fieldnames)
            for row in reader:
                path, label = ((row[name] or "").strip() for name in ("path", "label"))
                if not path or not label:
                    raise ValueError(f"{file}, line {reader.line_num}: needs a path and a label.")
                try:
                    times = times_of(row, timed) if timed else None
                except ValueError as error:
                    raise ValueError(f"{file}, line {reader.line_num}: {error}.") from None
                if label in words:
                    path = os.path.join(os.path.dirname(file), path)
                    rows.append((path if times is None else Segment(path, *times), label))
                else:
                    others[label] += 1
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{file}: cannot be read as a labelled list ({error}).") from None
    if not rows:
        found = f"its labels are {', '.join(sorted(others))}" if others else "it has no rows"
        raise ValueError(f"{file} has no recording of {', '.join(words)}: {found}.")
    return rows, others


def store_temperature(checkpoint: str | Path, words: Sequence[str], temperature: float):
    """Writes it into the `config.json` of a checkpoint's folder, as `label_temperatures` of these words; all else there
    stays as it is."""
    file = Path(checkpoint) / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    config["label_temperatures"] = {**(config.get("label_temperatures") or {}), words_key(words): temperature}
    with whole_file(file) as opened:
        opened.write((json.dumps(config, indent=2, sort_keys=True) + "\n").encode())


# ------------------------------------------------------------------------------------------------------------ command


@unless_pipe_closes
def main(argv: list[str] | None = None):
    """Prints where the words lie, and with labelled recordings how well they tell these; warnings go to stderr.

    Exits with code 1 when recordings could not be answered, and with 2 and a sentence when nothing can be done.
    """
    options = words_options(argv)
    try:
        words = checked_words(options.words)
        options.model = checkpoint_of(options.model)
        if options.store and not os.path.isdir(options.model):
            raise ValueError(f"--store writes into a checkpoint's folder, and {options.model} is none: fetch it first.")
        labelled = read_labelled(options.check, words) if options.check else None
        if labelled and len(words) < 2:
            raise ValueError("With a single word every recording is answered by it: give two at least to --check.")
        model, trained, embeds = with_words(options, words)
        if labelled and options.standardise == "recordings":
            from lascl.inference.own_statistics import check_own_statistics  # imports PyTorch, as the model did

            check_own_statistics(model, len(labelled[0]))
    except (ValueError, OSError) as error:
        say(" ".join(str(error).split("\n")))
        sys.exit(2)
    tell_places(model, words, trained, embeds)
    if labelled and tell_check(model, words, *labelled, options):
        sys.exit(1)


def checked_words(told: str) -> list[str]:
    """The words between commas.

    Raises:
        ValueError: none, or one twice.
    """
    words = [word for word in (part.strip() for part in told.split(",")) if word]
    if not words or len(set(words)) < len(words):
        raise ValueError(f"Give at least one word, each once, separated by commas; found {told!r}.")
    return words


def with_words(options: argparse.Namespace, words: list[str]) -> tuple[Recogniser, list[str], dict[str, np.ndarray]]:
    """The model, asked these words; those that it was trained on; and the embedding (D,) of each word of both, and of
    what means nothing."""
    from transformers.utils import logging

    from lascl.inference.recogniser import Recogniser

    logging.disable_progress_bar()
    recogniser = Recogniser.load(options.model, revision=options.revision, device=options.device)
    model, config = recogniser.model, recogniser.model.config
    if config.prediction_head == "classifier":
        raise ValueError("This model predicts with its classifier, whose labels cannot change: no other words work.")
    trained, embeds = list(config.classifier_labels or config.labels), {}
    # Each in turn, since a checkpoint may have been saved with other words than it was trained on.
    for asked in (list(MADE_UP), trained, words):
        if asked != config.labels:
            model.set_labels(asked)
        embeds |= dict(zip(asked, model.get_label_embeddings().detach().cpu().numpy()))
    return recogniser, trained, embeds


def tell_places(model: Recogniser, words: list[str], trained: list[str], embeds: dict[str, np.ndarray]):
    """Prints a row a word, and warns of what lies together, and of what lies where words without a meaning do."""
    own, learned = (np.stack([embeds[word] for word in some]) for some in (words, trained))
    places = places_of(words, own, trained, learned)
    width = max(len(one_line(word)) for word in ("word", *words))
    other = max(len(one_line(word)) for word in ("nearest trained word", *trained))
    print(f"{'word':{width}}  {'nearest trained word':{other}}  cosine")
    for place in places:
        print(f"{one_line(place.word):{width}}  {one_line(place.nearest):{other}}  {place.cosine:6.3f}")
    made_up = places_of(MADE_UP, np.stack([embeds[word] for word in MADE_UP]), trained, learned)
    farthest, nearest = (limit(place.cosine for place in made_up) for limit in (min, max))
    print(f"Made-up words, such as {MADE_UP[0]} and {MADE_UP[1]}: {farthest:.3f} to {nearest:.3f}.")
    if lost := hardly_placed(places, made_up):
        say(f"{' and '.join(lost)}: no nearer to a trained word than a made-up word may be.")
    if model.model.config.label_phrasings and set(words) - set(model.model.config.label_phrasings):
        say("this model was trained on phrasings of its words; from Python, set_labels takes phrasings of yours, too.")
    for nearest, together in landed_together(places).items():
        others = [word for word in together if word != nearest]
        if nearest in together:
            say(f"{' and '.join(others)}: on the place of {nearest}, which is another of these words.")
        else:
            say(f"{' and '.join(others)}: all on the place of {nearest}, which is all that was learned of them.")
    temperature = model.model.config.contrastive_temperature
    for one, another, cosine in not_told_apart(words, own, temperature):
        say(
            f"{one} and {another} cannot be told apart: their cosine is {cosine:.3f}, above "
            f"{told_apart_below(temperature):.3f}."
        )


def tell_check(model: Recogniser, words: list[str], rows: list[tuple[str, str]], others: Counter, options) -> bool:
    """Prints recall by word and the fitted temperature, and stores that if asked to. Whether recordings failed."""
    from lascl.inference.files import predict_files
    from lascl.inference.own_statistics import of_another_kind

    if others:
        listed = ", ".join(f"{label} ({count})" for label, count in sorted(others.items()))
        say(f"{sum(others.values())} of {sum(others.values()) + len(rows)} rows have other labels: {listed}.")
    answers = list(predict_files(model, [path for path, _ in rows], standardise=options.standardise))
    failures = [answer.failure for answer in answers if answer.failure]
    heard = [(answer, label) for answer, (_, label) in zip(answers, rows) if not answer.failure]
    if heard:
        tell_recall(words, [(answer.label, label) for answer, label in heard])
        embeds = np.stack([answer.audio_embeds for answer, _ in heard])  # (n, D)
        labels = model.model.get_label_embeddings().detach().cpu().numpy()  # (W, D)
        references = np.array([words.index(label) for _, label in heard])
        tell_temperature(model, words, embeds @ labels.T, references, options)
    if options.standardise == "training" and (text := of_another_kind(model, len(rows))):
        say(text)
    if failures:
        say(f"no answer for {len(failures)}:")
        for reason in failures:
            print(f"  {one_line(reason)}", file=sys.stderr)
    return bool(failures)


def tell_recall(words: list[str], told: list[tuple[str, str]]):
    """Prints how many recordings of each word are told by it, from answers and labels, and the mean of these shares."""
    count, right = Counter(label for _, label in told), Counter(label for answer, label in told if answer == label)
    width = max(len(one_line(word)) for word in ("word", *words))
    print(f"\n{'word':{width}}  recordings  recall")
    for word in words:
        share = f"{100 * right[word] / count[word]:4.0f} %" if count[word] else "     -"
        print(f"{one_line(word):{width}}  {count[word]:10d}  {share}")
    mean = np.mean([right[word] / count[word] for word in words if count[word]])
    print(f"Mean recall {100 * mean:.1f} %; by chance {100 / len(words):.1f} %.")


def tell_temperature(model: Recogniser, words: list[str], cosines: np.ndarray, references: np.ndarray, options):
    """Prints the temperature that fits, and stores it if asked to, unless the words say nothing of the recordings."""
    temperature, today = fit_temperature(cosines, references), model.model.label_temperature
    fits = [negative_log_likelihood(cosines, references, t) for t in (temperature, today)]
    print(
        f"Temperature {temperature:.4g} fits these {len(references)} recordings best: negative log likelihood "
        f"{fits[0]:.3f}, by {today:.4g} as it is {fits[1]:.3f}, by chance {math.log(len(words)):.3f}."
    )
    if len(references) < FEW:
        say(f"{len(references)} recordings are few: with fewer than {FEW} the temperature is mere chance.")
    if temperature == TEMPERATURES[1]:
        say("these words say nothing of these recordings" + (": no temperature is stored." if options.store else "."))
    elif options.store:
        store_temperature(options.model, words, temperature)
        print(f"Stored in {Path(options.model) / 'config.json'}: it is used when these words are asked.")


def say(text: str):
    """Tells something on stderr."""
    print(f"lascl-words: {one_line(text)}", file=sys.stderr)


if __name__ == "__main__":
    main()

"""What a reader of the scores must know: `protocol.json`."""

from __future__ import annotations

import json
from pathlib import Path

from lascl.data import Fold
from lascl.data.folds import Column, shared_speakers, train_hashes
from lascl.training.recipe import Recipe
from lascl.training.run_directory import write_json
from lascl.training.start import is_run


# Bytes of ids that are hashed before training, over the training sides of all folds: a second of work. With more,
# a fold's are hashed when it is begun.
HASHED_AT_ONCE = 2**27


def describe(recipe: Recipe, corpus, folds: list[Fold], num_skipped: int) -> dict:
    """The content of `protocol.json`: the folds, what of the test is known from training, and notes in words."""
    columns = {name: corpus[name][:] for name in corpus.column_names if name != "label"}
    labels, names = Column(corpus["label"][:]), corpus.features["label"].names
    notes = _notes(recipe, shared_speakers(folds, Column(columns["speaker"])), num_skipped)
    notes += [sentence for fold in folds for sentence in gaps(labels, names, fold)]
    description = {
        "corpus": recipe.corpus,
        "num_folds": len(folds),
        "split_seed": recipe.split_seed,
        "folds": _sides(columns, folds),
    }
    if known := _known_texts(columns, folds):
        description["share_of_test_texts_in_training"] = sum(known) / len(known)
        scripted = "scripted test utterances" if "improvised" in columns else "test utterances"
        notes.append(f"The text of {sum(known) / len(known):.0%} of the {scripted} is also spoken in training.")
    if "improvised" in columns:
        description["improvised_ids"] = sorted(
            columns["id"][row] for fold in folds for row in fold.test if columns["improvised"][row]
        )
    return {**description, "notes": notes}


def _notes(recipe: Recipe, shared: bool, num_skipped: int) -> list[str]:
    """Corpus, choice and start in words. `shared`: whether somebody is heard in training and in a test."""
    caveat = " (speech by eSpeak NG: says nothing about human emotion)" if recipe.corpus == "synthetic" else ""
    selection = "the last epoch is tested" if recipe.selection == "last" else "the epoch best in validation is tested"
    validation = "no validation" if recipe.validation == "none" else f"validation by {recipe.validation}"
    sides = (
        "The official folds have speakers in training AND in test: these are no scores of unseen voices"
        if shared
        else "No speaker is on two sides of a fold"
    )
    notes = [
        f"Corpus: {recipe.corpus}{caveat}. {sides}; {selection}; {validation}. Scores are of the "
        f"{recipe.prediction_head} head unless marked."
    ]
    if recipe.init_from and is_run(recipe.init_from):
        notes.append(
            f"Each fold starts from the checkpoint of the same fold, of the same training side, in {recipe.init_from}."
        )
    elif recipe.init_from:
        notes.append(
            "Training started from another LaSCL checkpoint: if that one heard speakers of this corpus, these scores "
            "are too good."
        )
    if num_skipped:
        notes.append(f"{num_skipped} utterances whose audio cannot be used are left out, see skipped.csv.")
    return notes


def _sides(columns: dict[str, list], folds: list[Fold]) -> list[dict]:
    """Of each fold how many utterances and which held-out speakers, and a hash of the ids of its training side."""
    speakers = Column(columns["speaker"])
    num_hashed = len(folds) * sum(len(id) + 1 for id in columns["id"])
    hashes = train_hashes(columns["id"], folds) if num_hashed <= HASHED_AT_ONCE else [None] * len(folds)
    return [
        {
            "fold": fold.number,
            **{side: len(getattr(fold, side)) for side in ("train", "validation", "test")},
            "test_speakers": sorted(speakers.occurring(fold.test)),
            "validation_speakers": sorted(speakers.occurring(fold.validation)),
            **({"train_ids_hash": train_ids_hash} if train_ids_hash else {}),
        }
        for fold, train_ids_hash in zip(folds, hashes)
    ]


def _known_texts(columns: dict[str, list], folds: list[Fold]) -> list[bool]:
    """Of every test utterance whose text the corpus tells: whether its fold trains on the same text."""
    if "text_id" not in columns:
        return []
    texts, has_text = Column(columns["text_id"]), [text is not None for text in columns["text_id"]]
    known = []
    for fold in folds:
        codes = texts.codes[[row for row in fold.test if has_text[row]]]
        known += texts.occurs(fold.train)[codes].tolist()
    return known


def gaps(labels: Column, names: list[str], fold: Fold) -> list[str]:
    """A sentence for each side of a fold on which labels do not occur: they cannot be learned there, or not scored."""
    sentences = []
    sides = {"to train on": fold.train, "to test": fold.test, "to validate on": fold.validation}
    for side, rows in ((side, rows) for side, rows in sides.items() if rows):
        occurring = labels.occurring(rows)
        absent = [label for index, label in enumerate(names) if index not in occurring]
        if absent:
            sentences.append(f"Fold {fold.number} has no {', '.join(absent)} {side}.")
    return sentences


def announcement(corpus, fold: Fold, num_folds: int) -> str:
    """What is said when a fold begins."""
    labels, names = Column(corpus["label"][:]), corpus.features["label"].names
    speakers = ", ".join(sorted(set(corpus.select(fold.test)["speaker"][:])))
    sizes = f"{len(fold.train)} utterances to train on, {len(fold.test)} to test, of the speakers {speakers}."
    return " ".join([f"Fold {fold.number} of {num_folds}: {sizes}", *gaps(labels, names, fold)])


def write_protocol(run_dir: Path, description: dict):
    """Writes `protocol.json`. Where the folds are so many that `describe` did not hash their training sides, it keeps
    the hashes of those that were begun."""
    path = run_dir / "protocol.json"
    told = json.loads(path.read_text(encoding="utf-8"))["folds"] if path.is_file() else []
    known = {
        fold["fold"]: fold["train_ids_hash"]
        for fold in told
        if "train_ids_hash" in fold
        and (run_dir / f"fold-{fold['fold']}").is_dir()  # else of a run that came to nothing
    }
    for fold in description["folds"]:
        if "train_ids_hash" not in fold and fold["fold"] in known:
            fold["train_ids_hash"] = known[fold["fold"]]
    write_json(path, description)


def note_begun(run_dir: Path, corpus, fold: Fold):
    """Adds to `protocol.json` the hash of the training side of a fold that is begun, if `describe` left it out."""
    path = run_dir / "protocol.json"
    protocol = json.loads(path.read_text(encoding="utf-8"))
    (told,) = (told for told in protocol["folds"] if told["fold"] == fold.number)
    if "train_ids_hash" not in told:
        (told["train_ids_hash"],) = train_hashes(corpus["id"][:], [fold])
        write_json(path, protocol)

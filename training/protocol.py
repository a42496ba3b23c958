"""What a reader of the scores must know: `protocol.json`."""

from __future__ import annotations

import json
from pathlib import Path

from lascl.data import Fold
from lascl.data.corpora import equal_recordings, said_of_equal_recordings
from lascl.data.folds import Column, shared_speakers, train_hashes
from lascl.data.words import corpus_of_rows, own_words
from lascl.evaluation.predictions import HEAD_NAMES
from lascl.training.pooled import FEWEST_OF_A_SPEAKER
from lascl.training.recipe import Recipe
from lascl.training.run_directory import write_json
from lascl.training.start import is_run


# Bytes of ids that are hashed before training, over the training sides of all folds: a second of work. With more,
# a fold's are hashed when it is begun.
HASHED_AT_ONCE = 2**27


def describe(recipe: Recipe, corpus, folds: list[Fold], num_skipped: int) -> dict:
    """The content of `protocol.json`: the folds, what of the test is known from training, and notes in words."""
    columns = {name: corpus[name][:] for name in corpus.column_names if name != "label"}
    words = Words(corpus)
    notes = _notes(recipe, folds, shared_speakers(folds, Column(columns["speaker"])), num_skipped)
    notes += [corpus.info.description] if corpus.info.description else []
    transductive = is_transductive(recipe, columns, folds)
    if recipe.standardise_audio in ("corpus", "speaker"):
        notes.append(_standardising_in_words(recipe, transductive))
    notes += [sentence for fold in folds for sentence in words.gaps(fold)]
    if sentence := said_of_equal_recordings(equal_recordings(corpus)):
        notes.append(sentence)
    description = {
        "corpus": recipe.corpus_title,
        "num_folds": len(folds),
        "split_seed": recipe.split_seed,
        **({"transductive": True} if transductive else {}),
        **({"own_words": own} if (own := own_words(corpus)) else {}),
        "folds": [{**sides, **words.of(fold)} for sides, fold in zip(_sides(columns, folds), folds)],
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


def _notes(recipe: Recipe, folds: list[Fold], shared: bool, num_skipped: int) -> list[str]:
    """Corpus, choice and start in words. `shared`: whether somebody is heard in training and in a test."""
    is_synthetic = any(entry["corpus"] == "synthetic" for entry in recipe.entries)
    caveat = " (speech by eSpeak NG: says nothing about human emotion)" if is_synthetic else ""
    selection = "the last epoch is tested" if recipe.selection == "last" else "the epoch best in validation is tested"
    validation = "no validation" if recipe.validation == "none" else f"validation by {recipe.validation}"
    sides = (
        "The official folds have speakers in training AND in test: these are no scores of unseen voices"
        if shared
        else "No speaker is on two sides of a fold"
    )
    if any(fold.name for fold in folds):
        sides = "Each corpus is tested by a model that no utterance, word or score of it made or chose"
    named = f"Corp{'us' if recipe.corpora is None else 'ora'}: {recipe.corpus_title}"
    notes = [
        f"{named}{caveat}. {sides}; {selection}; {validation}. Scores are of {HEAD_NAMES[recipe.prediction_head]} "
        "unless marked."
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


def is_transductive(recipe: Recipe, columns: dict[str, list], folds: list[Fold]) -> bool:
    """Whether unlabelled audio of the tested side goes into its own scores: that of each speaker, or of a corpus that
    is tested without being trained on."""
    if recipe.standardise_audio != "corpus" or "corpus" not in columns:
        return recipe.standardise_audio == "speaker"
    corpora = Column(columns["corpus"])
    return any((corpora.occurs(fold.test) & ~corpora.occurs(fold.train)).any() for fold in folds)


def _standardising_in_words(recipe: Recipe, transductive: bool) -> str:
    if recipe.standardise_audio == "speaker":
        whose = f"each speaker's own recordings (with fewer than {FEWEST_OF_A_SPEAKER}, the corpus's)"
    elif transductive:
        whose = "each corpus's own recordings, of a tested corpus by those that are tested"
    else:
        whose = "each corpus's recordings on the training side"
    sentence = f"Audio is standardised by {whose}"
    if not transductive:
        return f"{sentence}."
    return (
        f"{sentence}: these scores are transductive, they use unlabelled audio of the tested side, which a recording "
        "that comes alone does not have."
    )


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


class Words:
    """What of a table's words and corpora is on which side of a fold; its columns are read once for all folds."""

    def __init__(self, corpus):
        self.names, self.labels = corpus.features["label"].names, Column(corpus["label"][:])
        of_rows = corpus_of_rows(corpus)
        self.corpora = None if of_rows is None else Column(of_rows)
        self.own = {name: set(words) for name, words in (own_words(corpus) or {}).items()}

    def of(self, fold: Fold) -> dict:
        """Of several corpora, which are on which side of a fold, and the words that its model learns."""
        if self.corpora is None:
            return {}
        sides = {"train": fold.train, "validation": fold.validation, "test": fold.test}
        found = {f"{side}_corpora": sorted(self.corpora.occurring(rows)) for side, rows in sides.items()}
        return {**found, "words": sorted(set().union(*(self.own[name] for name in found["train_corpora"])))}

    def gaps(self, fold: Fold) -> list[str]:
        """A sentence for each side of a fold on which words do not occur: they cannot be learned there, or not scored.
        Of several corpora, words that the side's own annotate; and one for words that are tested and not learned."""
        sentences = []
        sides = {"to train on": fold.train, "to test": fold.test, "to validate on": fold.validation}
        for side, rows in ((side, rows) for side, rows in sides.items() if rows):
            occurring = self.labels.occurring(rows)
            expected = self._words_of(rows)
            absent = [word for index, word in enumerate(self.names) if word in expected and index not in occurring]
            if absent:
                sentences.append(f"Fold {fold.number} has no {', '.join(absent)} {side}.")
        unseen = sorted(self._words_of(fold.test) - self._words_of(fold.train)) if fold.test else []
        if unseen:
            sentences.append(f"Fold {fold.number} tests {', '.join(unseen)}, which nothing in its training has.")
        return sentences

    def _words_of(self, rows) -> set[str]:
        """What the corpora of these rows annotate; of one corpus, all its words."""
        if self.corpora is None:
            return set(self.names)
        return set().union(*(self.own[name] for name in self.corpora.occurring(rows)))


def announcement(corpus, fold: Fold, num_folds: int) -> str:
    """What is said when a fold begins."""
    words, tested = Words(corpus), f"{len(fold.test)} to test"
    if fold.name is None:
        speakers = ", ".join(sorted(set(corpus.select(fold.test)["speaker"][:])))
        sizes = f"{len(fold.train)} utterances to train on, {tested}, of the speakers {speakers}."
    else:
        others = ", ".join(words.of(fold)["train_corpora"])
        sizes = f"{len(fold.train)} utterances of {others} to train on, {tested}, of {fold.name}."
    return " ".join([f"Fold {fold.number} of {num_folds}: {sizes}", *words.gaps(fold)])


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

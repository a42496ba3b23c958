"""Do a published model's numbers hold? `lascl-verify org/name --revision fold-3 --corpus emodb --data_dir FOLDER`."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import datasets
import numpy as np
from huggingface_hub import EvalResult, ModelCard, snapshot_download
from transformers.utils import logging

from lascl.configuration_lascl import LaSCLConfig
from lascl.console import unless_pipe_closes
from lascl.data import Fold, load_corpora
from lascl.data.votes import vote_columns
from lascl.data.words import corpus_names, own_words
from lascl.evaluation.predictions import PROBABILITY, labels_of, read_predictions, score_rows
from lascl.hub.card import DECIMALS, METRICS
from lascl.options import verify_options
from lascl.training.prediction import predict_fold
from lascl.training.recipe import Recipe


# Of a probability: what another machine, another batch and another version of torch may change.
TOLERANCE = 1e-4
MAX_LISTED = 10


@unless_pipe_closes
def main(argv: list[str] | None = None):
    """Prints `holds`, or each number that does not with both its values.

    Exits with code 0 if all numbers hold, 1 if one does not, 2 with one sentence if they cannot be compared.
    """
    args = verify_options(argv)
    logging.disable_progress_bar()  # of loading weights; predicting keeps its own
    try:
        told = ("corpus", "corpora", "data_dir", "labels", "corpus_options", "targets", "ties")
        recipe = Recipe(**{name: getattr(args, name) for name in told})
        # Of several corpora, words of the tested one alone are embedded again.
        folder = find_files(args.model, args.revision, with_text_encoder=recipe.corpora is not None)
        corpus = load_corpora(
            recipe.entries,
            allow_partial=True,  # as long as it has the held-out utterances
            skipped=[],  # as training may have done; a held-out one is missed by its id
            targets=recipe.targets,
            ties=recipe.ties,
        )
        faults = verify(folder, corpus, batch_size=args.batch_size)
    except (ValueError, OSError, ImportError) as error:
        print(f"lascl-verify: {error}", file=sys.stderr)
        sys.exit(2)
    for fault in faults[:MAX_LISTED]:
        print(fault)
    if len(faults) > MAX_LISTED:
        print(f"... and {len(faults) - MAX_LISTED} more.")
    print(f"{args.model}{f' at {args.revision}' if args.revision else ''}: {'does not hold' if faults else 'holds'}")
    sys.exit(1 if faults else 0)


def find_files(name_or_folder: str, revision: str | None = None, *, with_text_encoder: bool = False) -> Path:
    """The folder of a published model; from the Hub, all of it but the text encoder is fetched, and that if asked for.

    Raises:
        OSError: it cannot be fetched.
        ValueError: no such folder or repository name, or a revision of a folder.
    """
    folder = Path(name_or_folder)
    if not folder.is_dir():
        ignored = ["figures/*"] if with_text_encoder else ["text_encoder/*", "figures/*"]
        return Path(snapshot_download(name_or_folder, revision=revision, ignore_patterns=ignored))
    if revision is not None:
        raise ValueError(f"{folder} is a folder and has no revisions; leave out --revision.")
    return folder


def verify(folder: str | Path, corpus: datasets.Dataset, *, batch_size: int = 8) -> list[str]:
    """Predicts the utterances of `predictions.csv` with the model beside it, and compares.

    Compared are every reference with the corpus, every probability of both heads (within 1e-4), every prediction, and
    WA, UA, macro-F1 and the number of utterances in the card's metadata with the predictions.

    Args:
        folder: a published fold: weights, `config.json`, `preprocessor_config.json`, `predictions.csv`, `README.md`.
        corpus: from `lascl.data.load_corpus`, with these utterances at least.
        batch_size: utterances predicted at once.

    Returns:
        A sentence for each number that does not hold, with what is published and what was found; empty: all hold.

    Raises:
        ValueError: a file is missing or not what LaSCL publishes, the card has no held-out score of its own, the corpus
            lacks an utterance or has other labels.
        OSError: the model cannot be loaded.
    """
    folder = Path(folder)
    for name in ("README.md", "config.json"):
        if not (folder / name).is_file():
            raise ValueError(f"{folder} has no {name}. Give a published fold, such as org/name --revision fold-1.")
    number, claims = held_out_claims(ModelCard.load(folder / "README.md"))
    if not (folder / "predictions.csv").is_file():
        raise ValueError(f"{folder} has no predictions.csv. Give a published fold, such as org/name --revision fold-1.")
    config = LaSCLConfig.from_pretrained(folder)
    if config.standardise_audio in ("corpus", "speaker"):
        raise ValueError(
            f"These scores were made with statistics by {config.standardise_audio}, of recordings beside each other; "
            "the checkpoint has those of its training alone. Train the run again by its recipe to repeat them."
        )
    labels = corpus.features["label"].names
    has_others = set(config.labels) <= set(labels) and bool(corpus_names(corpus))  # words that were not trained
    if labels != config.labels and not has_others:
        raise ValueError(
            f"The model's labels are {', '.join(config.labels)}, the corpus's {', '.join(labels)}. "
            "Give the corpus, or the corpora, and --labels of its training."
        )
    published = {row["id"]: row for row in read_predictions(folder / "predictions.csv")}
    if not published:
        raise ValueError(f"{folder}/predictions.csv has no utterance.")
    row_of = {id: row for row, id in enumerate(corpus["id"][:])}
    missing = sorted(published.keys() - row_of.keys())
    if missing:
        raise ValueError(
            f"The corpus has no utterance {missing[0]!r}, which predictions.csv has ({len(missing)} such in all). Give "
            "the corpus of its training."
        )
    fold = Fold(number, train=[], test=sorted(row_of[id] for id in published))
    told = claims["accuracy"].dataset_args
    rows, _ = predict_fold(folder, corpus, fold, max_duration_s=told["max_duration_s"], batch_size=batch_size)
    said = [column for column in rows[0] if not vote_columns([column])]  # what listeners said is not the model's
    lacking = sorted(set(said) - next(iter(published.values())).keys())
    if lacking:
        raise ValueError(f"{folder}/predictions.csv has no column {lacking[0]!r}.")
    faults = [fault for row in rows for fault in _differences(published[row["id"]], row, config.prediction_head)]
    answers, own = list(published.values()), own_words(corpus)
    try:
        scores = score_rows(answers, labels_of(answers, labels, own), own=own)
    except ValueError as error:  # probabilities that are none: no score follows from them
        return [*faults, f"predictions.csv: {error}"]
    for score, (metric, name, _) in METRICS.items():
        claimed = float(claims[metric].metric_value)
        if not abs(claimed - scores[score]) <= 0.501 * 10**-DECIMALS:  # half a unit of the last decimal
            faults.append(f"{name}: {claimed} in the card, {scores[score]:.6f} by predictions.csv.")
    if told["utterances"] != len(published):
        faults.append(f"Utterances: {told['utterances']} in the card, {len(published)} in predictions.csv.")
    return faults


def held_out_claims(card: ModelCard) -> tuple[int, dict[str, EvalResult]]:
    """The number of the fold that a card has scores of, and these by the Hub's id of the metric.

    Raises:
        ValueError: the card has no held-out score, or not what `lascl.hub.card` writes.
    """
    claims = {}
    for result in card.data.eval_results or ():
        fold = re.fullmatch(r"fold-(\d+)", result.dataset_split or "")
        if fold:
            claims.setdefault(int(fold[1]), {})[result.metric_type] = result
    if len(claims) != 1:
        whose = (
            f"the scores of {len(claims)} held-out folds; one is needed" if claims else "no held-out score of its own"
        )
        raise ValueError(f"The card has {whose}. Give the branch of a fold: --revision fold-1.")
    ((number, by_metric),) = claims.items()
    told = by_metric.get("accuracy") and by_metric["accuracy"].dataset_args
    wanted = {metric for metric, *_ in METRICS.values()}
    if not wanted <= by_metric.keys() or not {"max_duration_s", "utterances"} <= (told or {}).keys():
        raise ValueError("The card's metadata lack scores, utterances or max_duration_s: LaSCL did not write it.")
    return number, by_metric


def _differences(published: dict[str, str], found: dict, prediction_head: str) -> list[str]:
    """A sentence for each cell of a published row that is not what was found."""
    said = [column for column in ("speaker", "corpus", "reference") if column in found]
    wrong = [column for column in said if published[column] != found[column]]
    for column in (column for column in found if column.startswith("probability_")):
        if "" in (published[column], found[column]):  # a word that the head does not have
            wrong += [column] if published[column] != found[column] else []
        elif not np.isclose(_number(published, column), found[column], rtol=0, atol=TOLERANCE, equal_nan=True):
            wrong.append(column)
    for column, head in (("prediction", prediction_head), ("prediction_classifier", "classifier")):
        likeliest, claimed = (found.get(f"{PROBABILITY[head]}{row[column]}") or -1.0 for row in (found, published))
        # Two labels as likely as each other may change places on another machine.
        if published[column] != found[column] and not likeliest - claimed <= 2 * TOLERANCE:
            wrong.append(column)
    return [f"{found['id']}, {column}: {published[column]} published, {_short(found[column])} now." for column in wrong]


def _number(row: dict[str, str], column: str) -> float:
    try:
        return float(row[column])
    except ValueError:
        raise ValueError(f"predictions.csv: {column} of {row['id']!r} is no number: {row[column]!r}.") from None


def _short(value: float | str) -> str:
    return f"{value:.6g}" if isinstance(value, float) else value


if __name__ == "__main__":
    main()

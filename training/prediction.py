"""Predicting a fold from its saved checkpoint: the evidence that every score is computed from.

Letters: B utterances of a batch, n of the test, K words, D width of the joint space.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import datasets
import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object, send_to_device
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm
from transformers import AutoFeatureExtractor

from lascl.data import Fold, SpeechCollator, SpeechDataset
from lascl.data.decoded import DecodedAudio
from lascl.data.votes import told_votes
from lascl.data.words import corpus_of_rows, own_words
from lascl.evaluation.predictions import NO_REFERENCE, PROBABILITY, head_probabilities
from lascl.modeling_lascl import LaSCLForAudioClassification
from lascl.training.pooled import collate_pooled


def predict_fold(
    checkpoint: str | Path,
    corpus: datasets.Dataset,
    fold: Fold,
    *,
    max_duration_s: float,
    batch_size: int,
    decoded: DecodedAudio | None = None,
    known: Callable[..., Dataset | None] | None = None,
) -> tuple[list[dict], dict[str, np.ndarray]]:
    """Predicts the test utterances of a fold with a saved checkpoint, loaded again, in float32.

    With several processes each predicts its share; every utterance is predicted exactly once, and every process
    returns all rows, in the order of the corpus.

    Of a table of several corpora the label head answers all their words, also those that this checkpoint was not
    trained on, which its text encoder embeds now; the checkpoint itself is left as it is. What an utterance is taken
    for is the likeliest of the words that its own corpus annotates.

    Args:
        decoded: of `SpeechDataset`.
        known: of model, feature extractor and rows, the pooled audio of these, a data set for `collate_pooled`, or
            `None` where the model has to hear them.

    Returns:
        The evidence and the geometry. One row an utterance: `id`, `speaker`, of several corpora `corpus`, `reference`,
        `prediction` (the model's head, or `both`), `prediction_classifier`, `probability_<label>` (label head) and
        `probability_classifier_<label>`; of a model that answers other words than its classifier's, without the
        classifier's columns. Of several corpora there is a column for each of their words, and what the classifier was
        not trained on has an empty cell there; so has its prediction where it knows none of a corpus's words. And the
        arrays `ids`, `speakers` (n,), `audio_embeds` (n, D), `labels` (K,), `label_embeds` (K, D), embeddings in
        float32 and of unit length. Where listeners voted, `votes_<word>` as the table has them; an utterance without a
        label has an empty `reference`, and is none of the arrays.

    Raises:
        ValueError: a label of these utterances is none of the model's words (of one corpus).
        OSError: words of several corpora need the text encoder, which could not be loaded.
    """
    state = PartialState()
    model = LaSCLForAudioClassification.from_pretrained(checkpoint, dtype=torch.float32).eval().to(state.device)
    model.lascl.takes_odd_audio = True  # as training does: every file was looked at
    extractor = AutoFeatureExtractor.from_pretrained(checkpoint)
    rows = fold.test[state.process_index :: state.num_processes]
    audio = {"sampling_rate": extractor.sampling_rate, "max_duration_s": max_duration_s, "decoded": decoded}
    dataset = SpeechDataset(corpus, rows, **audio)
    loader = _loader(dataset, known(model, extractor, rows) if known else None, extractor, batch_size)
    classified = model.config.labels if model.config.classifier_labels is None else []
    names, owned, head = dataset.label_names, own_words(corpus), model.config.prediction_head
    if owned is None:
        _check_words(names, corpus.select(fold.test)["label"][:], model.config.labels)
    elif names != model.config.labels:
        model.lascl.set_labels(names)  # whatever the head that predicts: the classifier's words are kept above
    words, label_embeds = model.config.labels, model.get_label_embeddings().detach()
    head_words, corpora = {"label": words, "classifier": classified}, corpus_of_rows(corpus)
    votes = told_votes(corpus)
    predicted, embeds = [], []
    for batch in tqdm(loader, desc=f"Fold {fold.number}: predicting", disable=None if state.is_main_process else True):
        for unheard in ("labels", "label_mask"):
            batch.pop(unheard, None)
        with torch.inference_mode():
            outputs = model.lascl(**send_to_device(batch, state.device))
            similarity = outputs.audio_embeds @ label_embeds.T  # (B, K)
            heads = {"label": (similarity / model.config.contrastive_temperature).softmax(dim=-1)}
            if classified:
                heads["classifier"] = model.classifier(outputs.pooled_audio).softmax(dim=-1)
        embeds.extend(outputs.audio_embeds.cpu().numpy())
        for number in range(len(similarity)):
            reference = dataset.labels[len(predicted)]
            corpus_name = corpora[rows[len(predicted)]] if corpora else None
            of_heads = {name: (head_words[name], head[number]) for name, head in heads.items()}
            cells = _answers(of_heads, words, head, owned and owned[corpus_name])
            told = {"corpus": corpus_name} if corpora else {}
            told["reference"] = names[reference] if reference >= 0 else NO_REFERENCE
            predicted.append({**told, **cells, **votes[rows[len(predicted)]]})
    if head == "both" and predicted:
        for row, both in zip(predicted, head_probabilities(predicted, words, head, owned)):
            row["prediction"] = words[int(both.argmax())]
    speakers = corpus["speaker"][:]
    keyed = [
        (row, {"id": id, "speaker": speakers[row], **values}, embedding)
        for row, id, values, embedding in zip(rows, dataset.ids, predicted, embeds, strict=True)
    ]
    everyone = gather_object(keyed) if state.num_processes > 1 else keyed
    _, table, audio_embeds = zip(*sorted(everyone, key=lambda entry: entry[0]))
    return list(table), _geometry(table, audio_embeds, words, label_embeds)


def _geometry(table: Sequence[dict], audio_embeds: Sequence[np.ndarray], words: list[str], label_embeds: torch.Tensor):
    """The arrays of `predict_fold`, of the rows that have a reference."""
    decided = [number for number, row in enumerate(table) if row["reference"] != NO_REFERENCE]
    return {
        "ids": np.array([table[number]["id"] for number in decided]),
        "speakers": np.array([table[number]["speaker"] for number in decided]),
        "audio_embeds": np.stack(audio_embeds)[decided],
        "labels": np.array(words),
        "label_embeds": label_embeds.cpu().numpy(),
    }


def _loader(dataset: SpeechDataset, pooled: Dataset | None, extractor, batch_size: int) -> DataLoader:
    """Batches of audio; of pooled audio, where that is known."""
    if pooled is None:
        return DataLoader(dataset, batch_size=batch_size, collate_fn=SpeechCollator(extractor))
    return DataLoader(pooled, batch_size=batch_size, collate_fn=collate_pooled)


def _check_words(names: list[str], tested: Sequence[int], words: list[str]):
    foreign = sorted({names[number] for number in tested if number is not None} - set(words))
    if foreign:
        raise ValueError(
            f"{foreign[0]!r}, a label of the corpus, is none of the words that the model answers: {', '.join(words)}. "
            "Load the corpus with labels={corpus label: word}, or call set_labels with words of the corpus."
        )


def _answers(
    heads: dict[str, tuple[list[str], torch.Tensor]], words: list[str], prediction_head: str, own: list[str] | None
) -> dict[str, str | float]:
    """The cells of one utterance.

    Args:
        heads: of each head its words and their probabilities (K,).
        words: those that have a column.
        prediction_head: whose answer is the model's; that of `both` is not known here.
        own: the words among which an answer is chosen; `None`: all.
    """
    chosen = {name: _likeliest(known, probabilities, own) for name, (known, probabilities) in heads.items()}
    cells = {"prediction": chosen.get(prediction_head, "")}
    if "classifier" in heads:
        cells["prediction_classifier"] = chosen["classifier"]
    for name, (known, probabilities) in heads.items():
        found = dict(zip(known, map(float, probabilities)))
        cells |= {f"{PROBABILITY[name]}{word}": found.get(word, "") for word in words}
    return cells


def _likeliest(words: list[str], probabilities: torch.Tensor, own: list[str] | None) -> str:
    """The likeliest word among `own`, the first of equals; empty if the head knows none of them."""
    allowed = [number for number, word in enumerate(words) if own is None or word in own]
    return words[allowed[int(probabilities[allowed].argmax())]] if allowed else ""

"""Predicting a fold from its saved checkpoint: the evidence that every score is computed from."""

from __future__ import annotations

from collections.abc import Callable
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
from lascl.evaluation.results import PROBABILITY
from lascl.modeling_lascl import LaSCLForAudioClassification
from lascl.training.pooled import collate_pooled


def predict_fold(
    checkpoint: str | Path,
    corpus: datasets.Dataset,
    fold: Fold,
    *,
    max_duration_s: float,
    batch_size: int,
    known: Callable[..., Dataset | None] | None = None,
) -> tuple[list[dict], dict[str, np.ndarray]]:
    """Predicts the test utterances of a fold with a saved checkpoint, loaded again, in float32.

    With several processes each predicts its share; every utterance is predicted exactly once, and every process
    returns all rows, in the order of the corpus.

    Args:
        known: of model, feature extractor and rows, the pooled audio of these, a data set for `collate_pooled`, or
            `None` where the model has to hear them.

    Returns:
        The evidence and the geometry. One row an utterance: `id`, `speaker`, `reference`, `prediction` (the model's
        head), `prediction_classifier`, `probability_<label>` (label head) and `probability_classifier_<label>`; of a
        model that answers other words than its classifier's, without the classifier's columns. And the arrays `ids`,
        `speakers` (n,), `audio_embeds` (n, D), `labels` (K,), `label_embeds` (K, D), embeddings in float32 and of unit
        length.

    Raises:
        ValueError: a label of these utterances is none of the model's words.
    """
    state = PartialState()
    model = LaSCLForAudioClassification.from_pretrained(checkpoint, dtype=torch.float32).eval().to(state.device)
    model.lascl.takes_odd_audio = True  # as training does: every file was looked at
    extractor = AutoFeatureExtractor.from_pretrained(checkpoint)
    rows = fold.test[state.process_index :: state.num_processes]
    dataset = SpeechDataset(corpus, rows, sampling_rate=extractor.sampling_rate, max_duration_s=max_duration_s)
    pooled = known(model, extractor, rows) if known else None
    collate = SpeechCollator(extractor) if pooled is None else collate_pooled
    loader = DataLoader(dataset if pooled is None else pooled, batch_size=batch_size, collate_fn=collate)
    labels, predicted, embeds = model.config.labels, [], []
    names, tested = dataset.label_names, corpus.select(fold.test)["label"][:]
    foreign = sorted({names[number] for number in tested} - set(labels))
    if foreign:
        raise ValueError(
            f"{foreign[0]!r}, a label of the corpus, is none of the words that the model answers: {', '.join(labels)}. "
            "Load the corpus with labels={corpus label: word}, or call set_labels with words of the corpus."
        )
    for batch in tqdm(loader, desc=f"Fold {fold.number}: predicting", disable=not state.is_main_process):
        references = batch.pop("labels").tolist()
        with torch.inference_mode():
            outputs = model(**send_to_device(batch, state.device))
            similarity = outputs.audio_embeds @ model.get_label_embeddings().T  # (B, K)
            by_label = (similarity / model.config.contrastive_temperature).softmax(dim=-1)
            heads = {"label": by_label}
            if outputs.class_logits is not None:
                heads["classifier"] = outputs.class_logits.softmax(dim=-1)
        embeds.extend(outputs.audio_embeds.cpu().numpy())
        for row, reference in enumerate(references):
            answers = {name: labels[int(head[row].argmax())] for name, head in heads.items()}
            values = {"reference": names[reference], "prediction": answers[model.config.prediction_head]}
            if "classifier" in heads:
                values["prediction_classifier"] = answers["classifier"]
            for head_name, head in heads.items():
                prefix = PROBABILITY[head_name]
                values |= {f"{prefix}{label}": float(p) for label, p in zip(labels, head[row])}
            predicted.append(values)
    speakers = corpus["speaker"][:]
    keyed = [
        (row, {"id": id, "speaker": speakers[row], **values}, embedding)
        for row, id, values, embedding in zip(rows, dataset.ids, predicted, embeds, strict=True)
    ]
    everyone = gather_object(keyed) if state.num_processes > 1 else keyed
    _, table, audio_embeds = zip(*sorted(everyone, key=lambda entry: entry[0]))
    geometry = {
        "ids": np.array([row["id"] for row in table]),
        "speakers": np.array([row["speaker"] for row in table]),
        "audio_embeds": np.stack(audio_embeds),
        "labels": np.array(labels),
        "label_embeds": model.get_label_embeddings().detach().cpu().numpy(),
    }
    return list(table), geometry

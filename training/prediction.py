"""Predicting a fold from its saved checkpoint: the evidence that every score is computed from."""

from __future__ import annotations

from pathlib import Path

import datasets
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import AutoFeatureExtractor

from lascl.data import Fold, SpeechCollator, SpeechDataset
from lascl.modeling_lascl import LaSCLForAudioClassification


def predict_fold(
    checkpoint: str | Path, corpus: datasets.Dataset, fold: Fold, *, max_duration_s: float, batch_size: int
) -> list[dict]:
    """Predicts the test utterances of a fold with a saved checkpoint, loaded again, in float32.

    With several processes each predicts its share; every utterance is predicted exactly once, and every process
    returns all rows, in the order of the corpus.

    Returns:
        One row an utterance: `id`, `speaker`, `reference`, `prediction` (the model's head), `prediction_classifier`,
        `probability_<label>` (label head) and `probability_classifier_<label>`.
    """
    state = PartialState()
    model = LaSCLForAudioClassification.from_pretrained(checkpoint, dtype=torch.float32).eval().to(state.device)
    extractor = AutoFeatureExtractor.from_pretrained(checkpoint)
    rows = fold.test[state.process_index :: state.num_processes]
    dataset = SpeechDataset(corpus, rows, sampling_rate=extractor.sampling_rate, max_duration_s=max_duration_s)
    loader = DataLoader(dataset, batch_size=batch_size, collate_fn=SpeechCollator(extractor))
    labels, predicted = model.config.labels, []
    for batch in tqdm(loader, desc=f"Fold {fold.number}: predicting", disable=not state.is_main_process):
        references = batch.pop("labels").tolist()
        with torch.inference_mode():
            outputs = model(**{name: tensor.to(state.device) for name, tensor in batch.items()})
            similarity = outputs.audio_embeds @ outputs.label_embeds.T  # (B, K)
            by_label = (similarity / model.config.contrastive_temperature).softmax(dim=-1)
            by_classifier = outputs.class_logits.softmax(dim=-1)
        head = by_label if model.config.prediction_head == "label" else by_classifier
        for row in range(len(references)):
            predicted.append(
                {
                    "reference": labels[references[row]],
                    "prediction": labels[int(head[row].argmax())],
                    "prediction_classifier": labels[int(by_classifier[row].argmax())],
                    **{f"probability_{name}": float(p) for name, p in zip(labels, by_label[row])},
                    **{f"probability_classifier_{name}": float(p) for name, p in zip(labels, by_classifier[row])},
                }
            )
    speakers = corpus["speaker"][:]
    keyed = [
        (row, {"id": id, "speaker": speakers[row], **values})
        for row, id, values in zip(rows, dataset.ids, predicted, strict=True)
    ]
    everyone = gather_object(keyed) if state.num_processes > 1 else keyed
    return [values for _, values in sorted(everyone, key=lambda pair: pair[0])]

"""Words that the classifier never learned are scored by the label head alone, in Trainer and from a checkpoint; labels
that are no class are said before anything is computed."""

import datasets
import numpy as np
import pytest
import torch
from tiny import LABELS, RATE, recording
from transformers import AutoFeatureExtractor, set_seed

from lascl import LaSCLForAudioClassification, LaSCLTrainer, LaSCLTrainingArguments, load_corpus
from lascl.data import Fold, SpeechCollator, SpeechDataset
from lascl.evaluation import score
from lascl.evaluation.results import score_rows
from lascl.training.prediction import predict_fold


WORDS = ["rage", "boredom", "disgust", "fear", "joy", "neutral", "sadness"]  # EmoDB's, two of them otherwise
RENAMED = {"anger": "rage", "boredom": "boredom", "disgust": "disgust", "fear": "fear", "happiness": "joy"}
RENAMED |= {"neutral": "neutral", "sadness": "sadness"}


@pytest.fixture(scope="module")
def corpora(emodb_like):
    """EmoDB-like speech under its own labels and, in the same order, under the other words."""
    own = load_corpus("emodb", emodb_like, allow_partial=True)
    words = load_corpus("emodb", emodb_like, allow_partial=True, labels=RENAMED)
    return own, words


@pytest.fixture(scope="module")
def build(audio_encoders, text_encoder, corpora):
    def build():
        set_seed(3)
        names = corpora[0].features["label"].names
        folder = audio_encoders["wav2vec2-layer"]
        model = LaSCLForAudioClassification.from_encoders(folder, text_encoder, names, projection_dim=8)
        return model, AutoFeatureExtractor.from_pretrained(folder, return_attention_mask=True)

    return build


def trainer_of(model, extractor, folder, collator=SpeechCollator, **sets):
    args = LaSCLTrainingArguments(str(folder), global_batch_size=4, num_train_epochs=1, use_cpu=True, disable_tqdm=True)
    return LaSCLTrainer(model, args, data_collator=collator(extractor), **sets)


def said(action) -> str:
    """What an action fails with, or that it did not."""
    try:
        action()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing was said"


def test_trainer_scores_other_words_by_the_label_head_alone(build, corpora, tmp_path):
    model, extractor = build()
    words = corpora[1].features["label"].names
    rows = list(range(0, 70, 3))
    heard = SpeechDataset(corpora[1], rows, sampling_rate=RATE, max_duration_s=0.5)
    trainer = trainer_of(model, extractor, tmp_path, eval_dataset={"test": heard})
    before = said(trainer.evaluate)
    model.set_labels(words)
    assert said(trainer.evaluate) == before == "nothing was said"
    metrics = trainer.evaluate()
    with torch.no_grad():
        batch = SpeechCollator(extractor)([heard[row] for row in range(len(rows))])
        references = batch.pop("labels")
        embeds = model.get_audio_embeddings(**batch)
        nearest = (embeds @ model.get_label_embeddings().T).argmax(-1)
    expected = score(nearest.tolist(), references.tolist())
    assert {name: metrics[f"eval_test_{name}"] for name in ("wa", "ua", "macro_f1")} == {
        name: pytest.approx(expected[name]) for name in ("wa", "ua", "macro_f1")
    }
    assert np.isfinite(metrics["eval_test_loss"]) and not any("classifier" in name for name in metrics)
    predicted = trainer.predict(heard)
    assert predicted.predictions.shape == (len(rows), len(words)) and "test_ua" in predicted.metrics


@pytest.mark.parametrize("words", [WORDS, [*reversed(WORDS), "awe", "envy"]])
def test_a_checkpoint_predicts_a_fold_in_other_words(build, corpora, tmp_path, words):
    """References are words, not numbers: the corpus has them in another order than the model, and fewer."""
    model, extractor = build()
    model.set_labels(words)
    model.save_pretrained(tmp_path)
    extractor.save_pretrained(tmp_path)
    fold, found = Fold(1, [], list(range(20))), {}

    def predict():
        found["rows"], found["geometry"] = predict_fold(tmp_path, corpora[1], fold, max_duration_s=0.5, batch_size=8)

    assert said(predict) == "nothing was said"
    rows, names = found["rows"], corpora[1].features["label"].names
    assert [row["reference"] for row in rows] == [names[number] for number in corpora[1]["label"][:20]]
    columns = {"id", "speaker", "reference", "prediction", *(f"probability_{word}" for word in words)}
    assert all(row.keys() == columns for row in rows)
    for row in rows:
        assert row["prediction"] == max(words, key=lambda word: row[f"probability_{word}"])
        assert sum(row[f"probability_{word}"] for word in words) == pytest.approx(1)
    scores = score_rows(rows, words, "label")
    hits = [row["prediction"] == row["reference"] for row in rows]
    assert scores["wa"] == pytest.approx(np.mean(hits)) and "classifier" not in scores and "ece" in scores
    assert found["geometry"]["labels"].tolist() == words


def test_a_reference_that_is_none_of_the_words_is_said(build, corpora, tmp_path):
    model, extractor = build()
    model.set_labels(WORDS)
    model.save_pretrained(tmp_path)
    extractor.save_pretrained(tmp_path)
    fold = Fold(1, [], list(range(7)))
    message = said(lambda: predict_fold(tmp_path, corpora[0], fold, max_duration_s=0.5, batch_size=8))
    assert "'anger', a label of the corpus, is none of the words that the model answers: rage, boredom," in message
    heard = SpeechDataset(corpora[0], range(7), sampling_rate=RATE, max_duration_s=0.5)
    message = said(trainer_of(model, extractor, tmp_path, eval_dataset=heard).evaluate)
    assert "Label 0 of the data is 'anger', but the words that the model answers are rage, boredom," in message


def test_a_model_with_other_words_than_its_classifier_s_does_not_train(build, corpora, tmp_path):
    model, extractor = build()
    model.set_labels(WORDS)
    heard = SpeechDataset(corpora[1], range(8), sampling_rate=RATE, max_duration_s=0.5)
    message = said(trainer_of(model, extractor, tmp_path, train_dataset=heard).train)
    assert "The classifier was trained on anger, boredom," in message and "give train.py --init_from" in message


# ------------------------------------------------------------------------------------------------- labels of no class


class Clips(torch.utils.data.Dataset):
    """Eight clips with these labels; `labels` are told beforehand only on demand."""

    def __init__(self, labels, *, tells=False):
        self.items = [{"label": label, "views": [recording(number, 0.1)]} for number, label in enumerate(labels)]
        if tells:
            self.labels = labels

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        yield from Clips([0, 1, 2, 3] * 2).items


class Plain:
    """A collator of somebody else's."""

    def __init__(self, extractor):
        self.collate = SpeechCollator(extractor)

    def __call__(self, items):
        batch = self.collate([{**item, "label": 0} for item in items])
        return {**batch, "labels": torch.tensor([item["label"] for item in items])}


WRONG = {
    "votes against": ([[0.75, -0.25, 0, 0, 0, 0, 0]] * 8, "Votes must be finite and at least 0; found [0.75, -0.25"),
    "votes of nobody knows how many": ([[float("nan")] * 7] * 8, "Votes must be finite and at least 0; found [nan"),
    "fractions": ([0.2] * 8, "or a row of votes, (n, K); found the shape ("),
    "boxes": ([[[0.2, 0.8]]] * 8, "or a row of votes, (n, K); found the shape ("),
    "ignored": ([0, 1, 2, -100, 3, 4, 5, 6], "found -100. Nothing is ignored in the joint loss: leave such"),
}


@pytest.mark.parametrize("collator", [SpeechCollator, pytest.param(Plain, marks=pytest.mark.slow)])
@pytest.mark.parametrize("tells", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", WRONG)
def test_labels_of_no_class_are_said_before_anything_is_computed(build, tmp_path, kind, tells, collator):
    model, extractor = build()
    labels, message = WRONG[kind]
    model.register_forward_pre_hook(lambda *args: pytest.fail("it was computed"))
    sets = {"train_dataset": Clips(labels, tells=tells), "eval_dataset": Clips(labels)}
    trainer = trainer_of(model, extractor, tmp_path, collator=collator, **sets)
    if kind == "ignored" and not tells:  # whatever the draw, it is in the one batch
        trainer.args.global_batch_size = trainer.args.per_device_train_batch_size = 8
    for action in (trainer.train, trainer.evaluate):
        found = said(action)
        assert found.startswith("ValueError: ") and message in found and "\n" not in found, found


def test_an_iterable_data_set_is_said_before_anything_is_computed(build, tmp_path):
    model, _ = build()
    streams = Stream(), datasets.Dataset.from_dict({"label": [0]}).to_iterable_dataset()
    for stream in streams:
        for steps in ({}, {"max_steps": 2}):
            args = LaSCLTrainingArguments(str(tmp_path), global_batch_size=4, use_cpu=True, **steps)
            found = said(lambda args=args, stream=stream: LaSCLTrainer(model, args, None, stream).train())
            assert found.startswith("ValueError: train_dataset is a") and "can only be gone through" in found, found


def test_a_label_that_a_model_of_four_has_not_is_still_said(build, tmp_path):
    model, extractor = build()
    trainer = trainer_of(model, extractor, tmp_path, train_dataset=Clips([0, 1, 2, 3, 4, 5, 6, len(LABELS) + 5]))
    trainer.args.global_batch_size = trainer.args.per_device_train_batch_size = 8
    assert "labels must lie in [0, 7); found 0 to 9" in said(trainer.train)

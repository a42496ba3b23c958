"""Predictions of a fold over several corpora: all their words, each utterance answered among its corpus's own."""

import pytest
import torch
from tiny import read_csv
from transformers import AutoFeatureExtractor

from lascl import LaSCLForAudioClassification
from lascl.data import Fold, SpeechCollator, SpeechDataset
from lascl.training.prediction import predict_fold
from lascl.training.run_directory import write_csv


OPTIONS = {"max_duration_s": 1.0, "batch_size": 4}
OWN = {"left": ["calm", "fear", "joy"], "right": ["fear", "joy", "rage"]}
WORDS = ["calm", "fear", "joy", "rage"]


def checkpoint_of(folder, audio_encoders, text_encoder, words, seed=3, **config):
    torch.manual_seed(seed)
    audio = audio_encoders["wav2vec2-layer"]
    model = LaSCLForAudioClassification.from_encoders(audio, text_encoder, words, projection_dim=8, **config)
    model.save_pretrained(folder)
    AutoFeatureExtractor.from_pretrained(audio).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=["label", "classifier", "both"])
def trained_on_left(request, audio_encoders, text_encoder, two_corpora, tmp_path_factory):
    """One that would answer an utterance of `right` by a word of `left`: which does, depends on transformers' draws."""
    root, right = tmp_path_factory.mktemp("left"), len(two_corpora) - 1
    for seed in range(3, 30):
        folder = root / str(seed)
        checkpoint_of(folder, audio_encoders, text_encoder, OWN["left"], seed, prediction_head=request.param)
        _, by_label, _ = probabilities_of(folder, two_corpora, right)
        if max(by_label, key=by_label.get) not in OWN["right"]:
            return folder
    pytest.fail("no seed gives such a model")


def predict(checkpoint, table, fold):
    """Fails by an assertion where words of several corpora are not known."""
    refusal = None
    try:
        return predict_fold(checkpoint, table, fold, **OPTIONS)
    except (IndexError, ValueError) as error:
        refusal = str(error)
    assert refusal is None


def probabilities_of(checkpoint, table, row):
    """Of both heads, by word, for one utterance alone."""
    model = LaSCLForAudioClassification.from_pretrained(checkpoint).eval()
    extractor = AutoFeatureExtractor.from_pretrained(checkpoint)
    speech = SpeechDataset(table, [row], sampling_rate=16_000, max_duration_s=1.0)
    batch = SpeechCollator(extractor)([{"label": 0, "views": [speech.view(0, 0, 0)]}])
    del batch["labels"]
    head, classified = model.config.prediction_head, model.config.labels
    with torch.no_grad():
        by_classifier = model(**batch).class_logits[0].softmax(-1)
        model.config.prediction_head = "label"
        model.set_labels(WORDS)
        by_label = model(**batch).logits[0].softmax(-1)
    return head, dict(zip(WORDS, by_label.tolist())), dict(zip(classified, by_classifier.tolist()))


def both_heads(by_label, by_classifier, own):
    """Of a row's own words, word by word: half of each head where the classifier knows the word."""
    of_labels, known = sum(by_label[word] for word in own), [word for word in own if word in by_classifier]
    of_classes, share = sum(by_classifier[word] for word in known), sum(by_label[word] for word in known)
    return {
        word: (by_label[word] + share * by_classifier[word] / of_classes) / 2 / of_labels
        if word in known
        else by_label[word] / of_labels
        for word in own
    }


def test_every_word_has_a_column_and_answers_are_among_the_corpus_s_own(trained_on_left, two_corpora, tmp_path):
    before = {path.name: path.read_bytes() for path in trained_on_left.iterdir() if path.is_file()}
    fold = Fold(1, list(range(0, 15)), list(range(13, len(two_corpora))))  # of both corpora
    rows, geometry = predict(trained_on_left, two_corpora, fold)
    write_csv(tmp_path / "predictions.csv", rows)
    read = read_csv(tmp_path / "predictions.csv")
    prefixes = ("probability_", "probability_classifier_")
    columns = ["id", "speaker", "corpus", "reference", "prediction", "prediction_classifier"]
    assert list(read[0]) == [*columns, *(f"{prefix}{word}" for prefix in prefixes for word in WORDS)]
    foreign = 0
    for row, place in zip(read, fold.test):
        of_table = two_corpora[place]
        head, by_label, by_classifier = probabilities_of(trained_on_left, two_corpora, place)
        assert (row["id"], row["speaker"], row["corpus"]) == (of_table["id"], of_table["speaker"], of_table["corpus"])
        assert row["reference"] == WORDS[of_table["label"]]
        for word in WORDS:
            assert float(row[f"probability_{word}"]) == pytest.approx(by_label[word], abs=1e-5)
            cell = row[f"probability_classifier_{word}"]
            assert cell == "" if word == "rage" else float(cell) == pytest.approx(by_classifier[word], abs=1e-5)
        own = OWN[row["corpus"]]
        chosen = {"label": max(own, key=by_label.get), "classifier": max(set(own) - {"rage"}, key=by_classifier.get)}
        both = both_heads(by_label, by_classifier, own)
        chosen["both"] = max(own, key=both.get)
        assert row["prediction"] == chosen[head] and row["prediction_classifier"] == chosen["classifier"]
        foreign += max(by_label, key=by_label.get) not in own
    assert foreign, "no utterance is answered otherwise among its own words: this test shows nothing"
    assert geometry["labels"].tolist() == WORDS and geometry["label_embeds"].shape == (4, 8)
    similarity = torch.tensor(geometry["audio_embeds"] @ geometry["label_embeds"].T) / 0.07
    expected = torch.tensor([[float(row[f"probability_{word}"]) for word in WORDS] for row in read])
    torch.testing.assert_close(similarity.softmax(-1), expected, rtol=0, atol=1e-5)
    # The checkpoint keeps the words that it was trained on.
    assert before == {path.name: path.read_bytes() for path in trained_on_left.iterdir() if path.is_file()}


def test_a_classifier_that_knows_none_of_a_corpus_s_words_has_no_answer(
    audio_encoders, text_encoder, two_corpora, tmp_path
):
    checkpoint_of(tmp_path, audio_encoders, text_encoder, ["bliss", "calm"])
    rows, _ = predict(tmp_path, two_corpora, Fold(1, [], [0, 20]))
    assert [row.get("corpus") for row in rows] == ["left", "right"]
    assert [row["prediction_classifier"] for row in rows] == ["calm", ""]
    assert rows[1]["prediction"] in OWN["right"] and "probability_bliss" not in rows[0]


def test_one_corpus_has_the_columns_it_had(trained_on_left, two_corpora):
    left = two_corpora.select(range(15)).remove_columns("corpus")
    rows, _ = predict_fold(trained_on_left, left, Fold(1, [], [0, 1]), **OPTIONS)
    words = OWN["left"]
    expected = ["id", "speaker", "reference", "prediction", "prediction_classifier"]
    expected += [f"{prefix}{word}" for prefix in ("probability_", "probability_classifier_") for word in words]
    assert list(rows[0]) == expected
    with pytest.raises(ValueError, match="'rage', a label of the corpus, is none of the words"):
        right = two_corpora.select(range(15, 24)).remove_columns("corpus")
        predict_fold(trained_on_left, right, Fold(1, [], [2]), **OPTIONS)

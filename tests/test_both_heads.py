"""`prediction_head: both`: the mean of both heads where the classifier knows a word, else the label head's answer."""

import numpy as np
import pytest
import torch
from tiny import LABELS, RATE, recording
from transformers import AutoFeatureExtractor

from lascl import LaSCLConfig, LaSCLForAudioClassification
from lascl.evaluation.predictions import head_probabilities, score_rows
from lascl.inference.recogniser import Recogniser
from lascl.modeling_lascl import mean_of_heads


OTHER = ["weary", LABELS[2], "furious", LABELS[0]]  # two that the classifier knows, in another order


def slowly(of_labels: list[float], of_classes: list[float | None]) -> list[float]:
    """Of one row; `of_classes` are not yet probabilities among the known words."""
    known = [k for k, share in enumerate(of_classes) if share is not None]
    mass, total = sum(of_labels[k] for k in known), sum(of_classes[k] for k in known)
    return [(share + mass * of_classes[k] / total) / 2 if k in known else share for k, share in enumerate(of_labels)]


@pytest.mark.parametrize("classes", [[0, 1, 2], [2, None, 0, None, 1], [None, 1], [1, 2, 0, None]])
def test_the_mean_of_heads_is_that_of_loops_and_knows_no_order(classes):
    generator = torch.Generator().manual_seed(len(classes))
    of_labels = torch.randn(5, len(classes), generator=generator, dtype=torch.float64).softmax(-1)
    logits = 3 * torch.randn(5, 3, generator=generator, dtype=torch.float64)
    found = mean_of_heads(of_labels, logits, classes)
    for row, labels, odds in zip(found, of_labels.tolist(), logits.exp().tolist()):
        expected = slowly(labels, [None if place is None else odds[place] for place in classes])
        assert row.tolist() == pytest.approx(expected, abs=1e-12)
    torch.testing.assert_close(found.sum(-1), torch.ones(5, dtype=torch.float64))
    order = torch.randperm(len(classes), generator=generator).tolist()
    moved = mean_of_heads(of_labels[:, order], logits, [classes[k] for k in order])
    assert torch.equal(moved, found[:, order])


def test_what_the_classifier_does_not_know_is_the_label_heads():
    of_labels = torch.tensor([[0.1, 0.6, 0.3], [0.5, 0.25, 0.25]])
    logits = torch.tensor([[5.0, -5.0], [0.0, 9.0]])
    assert mean_of_heads(of_labels, logits, [None, None, None]) is of_labels
    # Of a single known word the classifier has nothing to say.
    torch.testing.assert_close(mean_of_heads(of_labels, logits, [None, 1, None]), of_labels)
    # A class that is all but impossible is known nevertheless.
    torch.testing.assert_close(
        mean_of_heads(of_labels, torch.tensor([[0.0, -1e4], [0.0, -1e4]]), [0, None, 1]),
        torch.tensor([[0.25, 0.6, 0.15], [0.625, 0.25, 0.125]]),
    )


@pytest.fixture(scope="module")
def checkpoint(audio_encoders, text_encoder, tmp_path_factory):
    torch.manual_seed(5)
    folder, audio = tmp_path_factory.mktemp("both"), audio_encoders["wav2vec2-layer"]
    model = LaSCLForAudioClassification.from_encoders(
        audio, text_encoder, LABELS, projection_dim=8, prediction_head="both"
    )
    model.save_pretrained(folder)
    AutoFeatureExtractor.from_pretrained(audio).save_pretrained(folder)
    return folder


def by_head(checkpoint, samples, words=None):
    """Probabilities of both and of each head alone: label head (K,), classifier (C,), as a model of that head gives
    them."""
    inputs, answers = {"input_values": torch.as_tensor(samples)[None]}, []
    for head in ("both", "label", "classifier"):
        model = LaSCLForAudioClassification.from_pretrained(checkpoint, prediction_head=head).eval()
        if words and head != "classifier":
            model.set_labels(words)
        with torch.no_grad():
            answers.append(model(**inputs).logits[0].double().softmax(-1).tolist())
    return answers


@pytest.mark.parametrize("words", [None, OTHER, ["weary", "furious"]])
def test_a_model_answers_with_both_heads_whatever_its_words(checkpoint, words):
    samples = recording(seed=4, duration_s=0.3)
    both, of_labels, of_classes = by_head(checkpoint, samples, words)
    known = dict(zip(LABELS, of_classes))
    assert both == pytest.approx(slowly(of_labels, [known.get(word) for word in words or LABELS]), abs=1e-6)
    if words != ["weary", "furious"]:
        assert max(abs(b - a) for a, b in zip(of_labels, both)) > 1e-3, "both heads say the same: nothing is shown"


@pytest.mark.parametrize("words", [None, OTHER])
def test_a_recogniser_answers_as_the_model_in_any_order_of_the_words(checkpoint, words):
    extractor = AutoFeatureExtractor.from_pretrained(checkpoint)
    samples = recording(seed=4, duration_s=0.3)
    heard = extractor(samples, sampling_rate=RATE).input_values[0]
    recogniser = Recogniser.load(str(checkpoint), labels=words)
    probabilities, _ = recogniser([samples])
    assert probabilities[0].tolist() == pytest.approx(by_head(checkpoint, heard, words)[0], abs=1e-5)
    backwards = list(reversed(words or LABELS))
    assert np.array_equal(Recogniser.load(str(checkpoint), labels=backwards)([samples])[0], probabilities[:, ::-1])


def test_probabilities_of_both_are_made_of_the_columns_of_each():
    cells = {"calm": (0.2, ""), "fear": (0.5, 0.0), "joy": (0.1, 0.6), "rage": (0.2, 0.4)}
    own = {"left": ["calm", "fear", "joy"], "right": ["rage", "calm"], "odd": ["calm"]}
    row = {}
    for word, (label, classifier) in cells.items():
        row |= {f"probability_{word}": label, f"probability_classifier_{word}": classifier}
    rows = [{"corpus": corpus, **row} for corpus in own]
    words = list(cells)
    everything = slowly([0.2, 0.5, 0.1, 0.2], [None, 0.0, 0.6, 0.4])
    assert head_probabilities(rows, words, "both").tolist() == [pytest.approx(everything)] * 3
    left, right, odd = head_probabilities(rows, words, "both", own).tolist()
    of_left = slowly([0.25, 0.625, 0.125], [None, 0.0, 0.6])  # fear is known, and said to be impossible
    assert left == pytest.approx([*of_left, 0])
    assert right == pytest.approx([0.5, 0, 0, 0.5]) and odd == pytest.approx([1, 0, 0, 0])
    for row, answer in zip(rows, ("joy", "calm", "calm")):
        row |= {"reference": answer, "prediction": answer, "prediction_classifier": answer, "speaker": "s"}
    assert score_rows(rows, words, "both", own)["ece"] == pytest.approx(((1 - max(of_left)) + 0.5 + 0) / 3)


def test_both_need_both_heads_trained():
    for weight, message in ((0.0, "the label head would answer at random"), (1.0, "there is no cross entropy")):
        with pytest.raises(ValueError, match=message):
            LaSCLConfig(prediction_head="both", contrastive_weight=weight)

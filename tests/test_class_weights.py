"""What a class weighs in the losses: given, or balanced by what is trained on.

Expected values come from the loops of `test_votes_loss.py`, from torch's own weighted cross entropy, and from rows that
stand twice in a batch.
"""

import inspect
import json
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from test_losses import joint as plain_joint
from test_votes_loss import CORPORA, batch, close, gradients, joint_by_loops

from lascl import load_corpus, train
from lascl.modeling_lascl import joint_loss


REDUCTIONS = ["mean", "bracket", "sum"]
BOTH = [True, False]
WEIGHTS = [0.5, 1.0, 3.0, 0.1, 2.0]


def joint(b, weights, *, mask=None, reduction="mean", **options):
    assert "class_weights" in inspect.signature(joint_loss).parameters, "classes have no weights"
    c = None if weights is None else torch.tensor(weights, dtype=b.audio.dtype)
    masks = {} if mask is None else {"label_mask": mask}
    return plain_joint(b, contrastive_reduction=reduction, class_weights=c, **masks, **options)


def of_labels(b, seed=0):
    """The batch with one of K labels a row in place of votes."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(b.labels.shape[1], (len(b.labels),), generator=draw)
    return SimpleNamespace(**{**vars(b), "labels": labels})


@pytest.mark.parametrize("label_anchors", BOTH)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("corpora", [None, CORPORA["two that share some words"]])
def test_eq_9_by_weight_one_pair_after_the_other(corpora, reduction, label_anchors):
    for seed, s in enumerate([0.0, 0.2]):
        b, mask = batch(words=5, seed=seed, silent=[1], corpora=corpora)
        options = {"reduction": reduction, "label_anchors": label_anchors}
        loss, terms = joint(b, WEIGHTS, mask=mask, target_smoothing=s, **options)
        expected, expected_terms = joint_by_loops(b, mask, s=s, c=WEIGHTS, **options)
        assert loss.item() == close(expected)
        assert {name: term.item() for name, term in terms.items()} == {n: close(expected_terms[n]) for n in terms}


@pytest.mark.parametrize("label_anchors", BOTH)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_labels_by_weight_are_one_vote_a_row_by_weight(reduction, label_anchors):
    b = of_labels(batch(words=5)[0])
    votes = SimpleNamespace(**{**vars(b), "labels": F.one_hot(b.labels, 5).double()})
    options = {"reduction": reduction, "label_anchors": label_anchors}
    assert joint(b, WEIGHTS, **options)[0].item() == close(joint_by_loops(votes, c=WEIGHTS, **options)[0])


def test_the_cross_entropy_by_weight_is_torchs():
    b = of_labels(batch(words=5)[0])
    found = joint(b, WEIGHTS, lambda_1=0.0)
    expected = F.cross_entropy(b.logits, b.labels, weight=torch.tensor(WEIGHTS, dtype=torch.float64))
    torch.testing.assert_close(found[0], expected)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("kind", ["labels", "votes"])
def test_only_proportions_count(kind, reduction):
    b = batch(words=5)[0]
    b = of_labels(b) if kind == "labels" else b
    options = {"reduction": reduction, "lambda_2": 1.0}
    one, other = (joint(b, [f * w for w in WEIGHTS], **options)[0].item() for f in (1, 1e-3))
    alike, none = (joint(b, weights, **options)[0].item() for weights in ([0.3] * 5, None))
    assert one == close(other) and alike == close(none) and one != pytest.approx(none, rel=1e-4)


def test_without_weights_nothing_changes_to_the_bit():
    b = of_labels(batch(words=5)[0])
    assert torch.equal(joint(b, None)[0], plain_joint(b)[0])


@pytest.mark.parametrize("label_anchors", BOTH)
def test_the_gradient_by_weight_is_the_derivative(label_anchors):
    b, mask = batch(4, 2, 5, dim=3, silent=[2], corpora=CORPORA["two that share some words"])

    def loss(audio, label, logits):
        inputs = SimpleNamespace(audio=audio, label=label, logits=logits, labels=b.labels)
        return joint(inputs, WEIGHTS, mask=mask, tau=0.3, label_anchors=label_anchors)[0]

    assert torch.autograd.gradcheck(loss, [x.requires_grad_() for x in (b.audio, b.label, b.logits)])


def test_a_batch_without_any_votes_is_still_zero_in_the_graph():
    b, mask = batch(words=5, silent=range(5), corpora=[{0, 1, 2, 3, 4}])

    def loss(audio, label, logits):
        inputs = SimpleNamespace(audio=audio, label=label, logits=logits, labels=b.labels)
        return joint(inputs, WEIGHTS, mask=mask)[0]

    value, found = gradients(loss, b.audio, b.label, b.logits)
    assert value == 0 and not any(gradient.any() for gradient in found)


def test_weights_of_another_number_of_labels_are_refused():
    b = of_labels(batch(words=5)[0])
    with pytest.raises(ValueError, match=r"Expected class_weights \(K,\) = \(5,\); found \(4,\)"):
        plain_joint(b, class_weights=torch.ones(4))


# --------------------------------------------------------------------------------------------- from a recipe to a model


@pytest.fixture
def command(emodb_like, audio_encoders, text_encoder, tmp_path):
    """Of a run over speakers who say each of EmoDB's words once, but for `anger`, which is left out of two."""
    for path in emodb_like.glob("*.wav"):
        if path.name[:2] not in ("08", "09") or path.name[5] != "W":
            (tmp_path / "audio").mkdir(exist_ok=True)
            (tmp_path / "audio" / path.name).symlink_to(path)
    return [
        *("emodb", "--data_dir", str(tmp_path / "audio"), "--allow_partial", "true", "--folds", "1"),
        *("--audio_encoder", audio_encoders["whisper"], "--text_encoder", text_encoder, "--max_steps", "1"),
        *("--augmentation", "none", "--freeze_audio_encoder", "true", "--augmentation_period", "1"),
        *("--audio_layers", "last", "--disable_tqdm", "true", "--output_dir", str(tmp_path / "run")),
    ]


class Begun(Exception):
    """Carries what the loss was given first out of `train.py`, which need not train for that."""


@pytest.mark.parametrize("weights", ["balanced", '{"anger": 3, "fear": 0.5}'])
def test_a_recipe_s_weights_reach_the_loss_in_the_order_of_the_words(weights, command, monkeypatch, capsys):
    def begin(*args, class_weights=None, **settings):
        raise Begun(class_weights)

    monkeypatch.setattr("lascl.modeling_lascl.joint_loss", begin)
    found = None
    try:
        train.main([*command, "--class_weights", weights])
    except Begun as begun:
        (found,) = begun.args
    except SystemExit:
        pass
    assert found is not None, capsys.readouterr().err
    # Fold 1 tests the speakers 03 and 08: seven train, of whom one did not say anger.
    words = ["anger", "boredom", "disgust", "fear", "happiness", "neutral", "sadness"]
    counts = dict.fromkeys(words, 8) | {"anger": 7}
    balanced = [sum(counts.values()) / (7 * counts[word]) for word in words]
    given = [3.0, 1.0, 1.0, 0.5, 1.0, 1.0, 1.0]
    assert found.tolist() == pytest.approx(balanced if weights == "balanced" else given)


def test_weights_that_mean_nothing_are_said_before_anything_is_computed(command, capsys):
    for weights, message in (
        ("even", "class_weights must be balanced or word -> weight; found 'even'."),
        ('{"angr": 2}', "class_weights names 'angr', which is none of the words: anger, boredom,"),
        ('{"anger": -2}', "class_weights must map words to numbers above 0; found -2 for 'anger'"),
    ):
        with pytest.raises(SystemExit) as stopped:
            train.main([*command, "--class_weights", weights])
        assert stopped.value.code == 2 and message in capsys.readouterr().err


def test_balanced_weights_are_of_what_is_trained_on(emodb_like):
    from lascl.data import votes

    assert hasattr(votes, "balanced_weights")
    corpus = load_corpus("emodb", emodb_like, allow_partial=True)
    words = corpus.features["label"].names
    rows = [row for row in range(len(corpus)) if corpus["label"][row] != 0 or row < 14]  # of anger two of ten
    found = votes.balanced_weights(corpus, rows, words)
    assert found == {word: pytest.approx(62 / (7 * (2 if word == "anger" else 10))) for word in words}
    assert votes.balanced_weights(corpus, rows, [*words[:2], words[3]])[words[0]] == pytest.approx(22 / (3 * 2))
    nobody = votes.balanced_weights(corpus, [row for row in rows if corpus["label"][row]], words)
    assert nobody["anger"] == 1.0


def test_a_checkpoint_says_its_weights_and_trains_on_without(tmp_path, audio_encoders, text_encoder):
    from lascl import LaSCLConfig, LaSCLForAudioClassification

    assert "class_weights" in inspect.signature(LaSCLConfig.__init__).parameters
    model = LaSCLForAudioClassification.from_encoders(
        audio_encoders["wav2vec2-layer"], text_encoder, ["calm", "tense"], class_weights={"tense": 2}
    )
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["class_weights"] == {"tense": 2.0}
    audio = torch.randn(4, 4000)
    again = LaSCLForAudioClassification.from_pretrained(tmp_path)
    labels = torch.tensor([0, 1, 1, 0])
    losses = [m.eval()(input_values=audio, labels=labels).loss.item() for m in (model, again)]
    again.config.class_weights = None
    assert losses[0] == pytest.approx(losses[1])
    assert losses[0] != pytest.approx(again(input_values=audio, labels=labels).loss.item(), rel=1e-4)

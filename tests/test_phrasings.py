"""Phrasings: the mean of several phrases' embeddings stands for a label word, in training, in `set_labels`, and for
words that come later."""

import json

import pytest
import torch
import yaml
from test_init_from import start
from test_modeling import build, outputs, stock_text_states
from test_predict_corpora import checkpoint_of, predict
from tiny import LABELS, read_csv
from transformers import AutoModelForAudioClassification

from lascl import LaSCLConfig, LaSCLForAudioClassification
from lascl.data import Fold
from lascl.training.recipe import Recipe, parse_recipe


PHRASINGS = {"angry": ["furious", "full of rage", "mad"], "sad": ["sad", "in tears"], "bored": ["weary", "yawning"]}
TEMPLATE = "a {label} voice"


def expected_features(text_encoder, words, phrasings, template="{label}"):
    """(K, d_t) by a slow loop: of each phrase alone the mean over its tokens, of these the mean."""
    rows = []
    for word in words:
        total, phrases = 0.0, phrasings.get(word, [word])
        for phrase in phrases:
            (states,) = stock_text_states(text_encoder, [template.replace("{label}", phrase)])  # (tokens, d_t)
            total = total + sum(states.double()) / len(states)
        rows.append(total / len(phrases))
    return torch.stack(rows).float()


def check(model, text_encoder, words, phrasings, template="{label}"):
    assert model is not None, "there is no label_phrasings"
    assert model.config.labels == list(words)
    expected = expected_features(text_encoder, words, phrasings, template)
    torch.testing.assert_close(model.lascl.label_features, expected, rtol=0, atol=1e-5)


@pytest.fixture
def bare(audio_encoders, text_encoder):
    return build(audio_encoders["wav2vec2-layer"], text_encoder)


@pytest.fixture
def phrased(audio_encoders, text_encoder):
    if not hasattr(LaSCLConfig(), "label_phrasings"):
        return None
    return build(audio_encoders["wav2vec2-layer"], text_encoder, label_template=TEMPLATE, label_phrasings=PHRASINGS)


def said(action, *args, **kwargs) -> str:
    """What it raises; empty if nothing."""
    try:
        action(*args, **kwargs)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def test_the_mean_of_its_phrases_stands_for_a_word_and_other_words_for_themselves(phrased, bare, text_encoder):
    check(phrased, text_encoder, LABELS, PHRASINGS, TEMPLATE)
    alone = bare.lascl.label_features.clone()
    bare.set_labels(LABELS, phrasings={"angry": PHRASINGS["angry"]})
    check(bare, text_encoder, LABELS, {"angry": PHRASINGS["angry"]})
    assert torch.equal(bare.lascl.label_features[1:], alone[1:])  # as they were without any phrasings
    assert (bare.lascl.label_features[0] - alone[0]).abs().max() > 1e-3


def test_phrasings_are_given_to_set_labels_and_those_of_the_configuration_stay(phrased, text_encoder):
    check(phrased, text_encoder, LABELS, PHRASINGS, TEMPLATE)
    assert said(phrased.set_labels, ["bored", "happy", "angry"], phrasings={"angry": ("irate", "cross")}) == ""
    both = {**PHRASINGS, "angry": ["irate", "cross"]}
    check(phrased, text_encoder, ["bored", "happy", "angry"], both, TEMPLATE)
    assert phrased.config.label_phrasings == both
    phrased.set_labels(["angry", "sad"], "{label}", {"angry": ["angry"], "sad": ["sad"]})  # bare words again
    check(phrased, text_encoder, ["angry", "sad"], {})
    phrased.lascl.set_labels(["bored"], phrasings={"bored": ["dull"]})  # of the backbone alone
    check(phrased, text_encoder, ["bored"], {"bored": ["dull"]})


def test_a_checkpoint_keeps_them_also_for_words_that_are_no_labels_yet(phrased, bare, text_encoder, tmp_path):
    check(phrased, text_encoder, LABELS, PHRASINGS, TEMPLATE)
    phrased.save_pretrained(tmp_path / "phrased")
    written = json.loads((tmp_path / "phrased" / "config.json").read_text())
    assert written["label_phrasings"] == PHRASINGS
    again = AutoModelForAudioClassification.from_pretrained(tmp_path / "phrased", trust_remote_code=True)
    assert torch.equal(again.base_model.label_features, phrased.lascl.label_features)
    assert torch.equal(outputs(again).logits, outputs(phrased).logits)
    again.set_labels(["bored", "calm"])
    expected = expected_features(text_encoder, ["bored", "calm"], PHRASINGS, TEMPLATE)
    torch.testing.assert_close(again.base_model.label_features, expected, rtol=0, atol=1e-5)
    bare.save_pretrained(tmp_path / "bare", save_text_encoder=False)
    assert "label_phrasings" not in json.loads((tmp_path / "bare" / "config.json").read_text())
    bare.set_labels(LABELS, phrasings={})
    assert bare.config.label_phrasings is None and LaSCLConfig(label_phrasings={}).label_phrasings is None


@pytest.mark.parametrize(
    ("phrasings", "message"),
    [
        ({"sad": "in tears"}, "phrasings of 'sad' must be a list of at least one phrase; found 'in tears'."),
        ({"sad": []}, "phrasings of 'sad' must be a list of at least one phrase; found []."),
        ({"sad": ["low", "low"]}, "phrasings of 'sad' must differ from each other; found 'low' more than once."),
        ({"sad": ["low", None]}, "phrasings of 'sad' must be a list of phrases; found None in it."),
        ("sad", "phrasings must map words to lists of phrases, as {'anger': ['angry', 'furious']}; found 'sad'."),
    ],
)
def test_phrasings_that_cannot_be_are_refused_in_one_sentence_and_change_nothing(phrasings, message, bare, tmp_path):
    before = outputs(bare).logits
    assert said(bare.set_labels, LABELS, phrasings=phrasings) == f"ValueError: {message}"
    assert bare.config.labels == LABELS and torch.equal(outputs(bare).logits, before)
    (tmp_path / "r.yaml").write_text(yaml.safe_dump({"phrasings": phrasings}))
    assert said(parse_recipe, [str(tmp_path / "r.yaml")]) == f"ValueError: {message}"


def test_a_recipe_has_them_as_a_mapping_and_the_command_line_as_json(tmp_path):
    (tmp_path / "r.yaml").write_text(yaml.safe_dump({"phrasings": PHRASINGS}))
    for argv in ([str(tmp_path / "r.yaml")], ["--phrasings", json.dumps(PHRASINGS)]):
        assert said(parse_recipe, argv) == ""
        recipe, _ = parse_recipe(argv)
        assert recipe.phrasings == recipe.to_dict()["phrasings"] == PHRASINGS
        assert recipe.model_config()["label_phrasings"] == PHRASINGS
    assert Recipe().phrasings is None and "label_phrasings" not in Recipe().model_config()
    wrong = said(parse_recipe, ["--phrasings", '{"angry": ["mad"'])
    assert wrong.startswith("ValueError: phrasings is no valid JSON (") and wrong.count("\n") == 0


def test_json_that_cannot_be_read_is_a_sentence_of_any_field():
    for name in ("labels", "corpora", "corpus_options", "audio_encoder", "text_encoder"):
        wrong = said(parse_recipe, [f"--{name}", '{"angry": ["mad"'])
        assert wrong.startswith(f"ValueError: {name} is no valid JSON ("), wrong


def test_a_fold_s_unheard_words_are_read_by_their_phrasings(audio_encoders, text_encoder, two_corpora, tmp_path):
    """Trained without `rage`, which the other corpus has."""
    assert hasattr(LaSCLConfig(), "label_phrasings")
    phrasings = {"rage": ["furious", "full of anger"], "calm": ["at ease"]}
    words, trained = ["calm", "fear", "joy", "rage"], ["calm", "fear", "joy"]
    checkpoint_of(tmp_path, audio_encoders, text_encoder, trained, label_phrasings=phrasings)
    _, geometry = predict(tmp_path, two_corpora, Fold(1, [], [0, 20]))
    model = LaSCLForAudioClassification.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        expected = model.lascl.text_projection(expected_features(text_encoder, words, phrasings))
    expected = expected / expected.square().sum(dim=-1, keepdim=True).sqrt()
    assert geometry["labels"].tolist() == words
    torch.testing.assert_close(torch.tensor(geometry["label_embeds"]), expected, rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def phrased_run(emodb_like, audio_encoders, text_encoder, tmp_path_factory):
    """A run with phrasings, of two emotions, and the command of another; or what training said."""
    from lascl.train import main

    command = [
        *("emodb", "--data_dir", str(emodb_like), "--allow_partial", "true", "--disable_tqdm", "true", "--folds", "1"),
        *(
            "--num_train_epochs",
            "1",
            "--global_batch_size",
            "16",
            "--augmentation",
            "gain",
            "--labels",
            "anger,sadness",
        ),
    ]
    run_dir = tmp_path_factory.mktemp("runs") / "phrased"
    encoders = ("--audio_encoder", audio_encoders["wav2vec2-layer"], "--text_encoder", text_encoder)
    told = ("--phrasings", '{"anger": ["mad", "furious"], "fear": ["afraid", "scared"]}', "--projection_dim", "8")
    try:
        main([*command, *encoders, *told, "--output_dir", str(run_dir)])
    except SystemExit as error:
        return run_dir, command, error.code
    return run_dir, command, 0


def test_a_run_learns_from_phrasings_and_another_starts_from_it(phrased_run, text_encoder, tmp_path):
    run_dir, command, code = phrased_run
    assert code == 0
    given = {"anger": ["mad", "furious"], "fear": ["afraid", "scared"]}
    checkpoint = run_dir / "fold-1" / "checkpoint"
    first = LaSCLForAudioClassification.from_pretrained(checkpoint)
    check(first, text_encoder, ["anger", "sadness"], given)
    assert "`phrasings`" in (checkpoint / "README.md").read_text()
    more = ("--phrasings", '{"sadness": ["in tears"], "anger": ["cross"]}', "--labels", "anger,fear,sadness")
    after = start(command, checkpoint, tmp_path / "more", *more)
    both = {**given, "sadness": ["in tears"], "anger": ["cross"]}
    check(after, text_encoder, ["anger", "fear", "sadness"], both)
    same = start(command, checkpoint, tmp_path / "same")
    assert torch.equal(same.lascl.label_features, first.lascl.label_features)
    assert same.config.label_phrasings == given


def test_lascl_predict_asks_words_by_the_phrasings_of_the_model(phrased_run, text_encoder, emodb_like, tmp_path):
    run_dir, _, code = phrased_run
    assert code == 0
    from lascl.predict import Recogniser, main

    checkpoint, output = run_dir / "fold-1" / "checkpoint", tmp_path / "rows.csv"
    file = str(sorted(emodb_like.glob("*.wav"))[0])
    main([str(checkpoint), file, "--labels", "fear, sadness, joy", "--output", str(output)])
    model = Recogniser.load(checkpoint, labels=["fear", "sadness", "joy"], device="cpu")
    check(model.model, text_encoder, ["fear", "sadness", "joy"], {"fear": ["afraid", "scared"]})
    assert model.untrained_labels == ["fear", "joy"]
    (row,) = read_csv(output)
    assert {"probability_fear", "probability_sadness", "probability_joy"} <= set(row)

"""The card: its numbers are those of the predictions, its code runs, and it tells nothing of the author's computer."""

import hashlib
import inspect
import itertools
import json
import random
import re
import shutil

import numpy as np
import pytest
import soundfile
import yaml
from huggingface_hub import ModelCard
from loopback_hub import LoopbackHub
from sklearn.metrics import accuracy_score, f1_score, recall_score
from tiny import read_csv, recording

from lascl.evaluation import summarise_run
from lascl.hub.card import fold_card, public_config
from lascl.train import main
from lascl.training.run_directory import write_csv, write_json


EMOTIONS = ["anger", "boredom", "disgust", "fear", "happiness", "neutral", "sadness"]


@pytest.fixture(scope="module")
def trained(emodb_like, audio_encoders, text_encoder, figures, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("runs") / "run"
    main(
        [
            *("emodb", "--data_dir", str(emodb_like), "--allow_partial", "true", "--disable_tqdm", "true"),
            *("--audio_encoder", audio_encoders["whisper"], "--text_encoder", text_encoder),
            *("--num_train_epochs", "2", "--global_batch_size", "16", "--augmentation", "gain"),
            *("--folds", "1,3", "--output_dir", str(run_dir)),
        ]
    )
    return run_dir


@pytest.fixture
def run(trained, tmp_path):
    """The run with other predictions and histories, so that no two scores are equal."""
    run_dir = shutil.copytree(trained, tmp_path / "run")
    for number, right in ((1, 9), (3, 4)):
        rows = read_csv(run_dir / f"fold-{number}" / "predictions.csv")
        chance = random.Random(number)
        for row in rows[:number]:
            row["reference"] = rows[number]["reference"]  # else WA and UA were equal
        order = chance.sample(range(len(rows)), len(rows))
        for position, row in enumerate(order):
            wrong = EMOTIONS[(EMOTIONS.index(rows[row]["reference"]) + chance.randint(1, 6)) % 7]
            rows[row]["prediction"] = rows[row]["reference"] if position < right else wrong
        write_csv(run_dir / f"fold-{number}" / "predictions.csv", rows)
    for number, epochs in ((1, [(0.25, 0.5), (0.75, 0.625)]), (3, [(0.375, 0.25), (0.125, 0.875)])):
        entries = [{"epoch": e, "step": 4 * e, "test_ua": ua, "test_wa": wa} for e, (ua, wa) in enumerate(epochs, 1)]
        write_json(run_dir / f"fold-{number}" / "log_history.json", entries)
    write_json(run_dir / "results.json", summarise_run(run_dir, EMOTIONS))
    return run_dir


def rescored(rows):
    """WA, UA and macro-F1 by scikit-learn."""
    references, predictions = [row["reference"] for row in rows], [row["prediction"] for row in rows]
    return [
        accuracy_score(references, predictions),
        recall_score(references, predictions, average="macro"),
        f1_score(references, predictions, average="macro", labels=EMOTIONS),
    ]


def edit(path, **fields):
    """Changes fields of a YAML or JSON file."""
    content = {**yaml.safe_load(path.read_text(encoding="utf-8")), **fields}
    path.write_text(json.dumps(content), encoding="utf-8")


def test_the_scores_in_the_metadata_are_those_of_the_predictions(run):
    rows = read_csv(run / "fold-3" / "predictions.csv")
    card = ModelCard(str(fold_card(run, 3, "org/lascl-tiny")))  # as it is read from a repository
    # Its own fold's alone: the Hub shows what is here as these weights' scores.
    assert {result.dataset_split for result in card.data.eval_results} == {"fold-3"}
    found = {result.metric_type: result for result in card.data.eval_results}
    assert card.data.model_name == "lascl-tiny" and len(found) == len(card.data.eval_results) == 3
    for metric, expected in zip(("accuracy", "recall", "f1"), rescored(rows)):
        assert found[metric].metric_value == pytest.approx(expected, abs=0.5e-4)
        arguments = found[metric].dataset_args
        assert arguments["utterances"] == len(rows) and arguments["max_duration_s"] == 1
        assert "5 in all" in arguments["protocol"] and "No speaker is on two sides" in arguments["protocol"]
    assert found["accuracy"].metric_value != found["recall"].metric_value
    assert found["recall"].metric_args == {"average": "macro"}


def test_metadata_survive_being_read_again(run):
    card = fold_card(run, 1, "org/lascl-tiny")
    again = ModelCard(str(card))
    assert again.data.to_dict() == card.data.to_dict() and again.text == card.text
    assert again.data.eval_results == card.data.eval_results


def test_the_table_has_the_two_columns_of_the_report(run):
    text = fold_card(run, 1).text
    wa, ua, _ = (f"{100 * value:.1f}" for value in rescored(read_csv(run / "fold-1" / "predictions.csv")))
    assert f"| fold 1 | 14 | {wa} | {ua} | 62.5 | 75.0 |" in text  # its second epoch has the highest UA
    # Fold 3's first epoch: UA 0.375, WA 0.25. Means 0.5625 and 0.4375, each 0.1875 * sqrt(2) around it.
    assert re.search(r"\| mean over 2 folds \|  \| .* \| .* \| 43\.8 ± 26\.5 \| 56\.2 ± 26\.5 \|", text)
    assert "2 of 5 folds were run" in text and "95 % interval over the 4 speakers" in text


def test_the_card_of_the_whole_corpus_has_no_score_of_its_own(run):
    card = fold_card(run, None, "org/lascl-tiny")
    again = ModelCard(str(card))  # as the Hub reads it
    assert again.data.eval_results is None and "model-index" not in again.data.to_dict()
    assert "these weights have no held-out score of their own" in card.text and "| fold" not in card.text
    assert 'revision="main"' in card.text and "lascl-verify" not in card.text
    # The cross-validation's scores may stand in the text, which says whose they are.
    results = card.text.split("## Results")[1].split("## Training")[0]
    assert "| pooled | 28 |" in results
    said = "None of these scores is of these weights**, which heard the whole corpus. They are of the 2 models"
    assert said in results and results.index(said) < results.index("| pooled")
    assert "Of these weights is the row of fold 3. The rows below it are of the 2 models" in fold_card(run, 3).text


def test_while_other_folds_are_trained_only_the_fold_is_scored(run):
    (run / "results.json").unlink()
    shutil.rmtree(run / "figures")
    card = fold_card(run, 3)
    assert {result.dataset_split for result in card.data.eval_results} == {"fold-3"}
    assert "The other folds were not finished" in card.text and "figures/" not in card.text
    with pytest.raises(ValueError, match=r"has no results\.json"):
        fold_card(run, None)


def test_both_heads_take_other_words_and_standardising_is_said(run):
    assert "--standardise" not in str(fold_card(run, 3, "org/name"))
    edit(run / "recipe.yaml", prediction_head="both", standardise_audio="training")
    card = str(fold_card(run, 3, "org/name"))
    assert "by the mean of two heads" in card and 'set_labels(["joyful", "furious", "weary"])' in card
    assert "`top_k`, `labels` and `window_s`" in card
    assert "lascl-predict org/name recordings/ --standardise recordings" in card
    edit(run / "recipe.yaml", prediction_head="classifier")
    card = str(fold_card(run, 3, "org/name"))
    assert "finds likeliest" in card and "set_labels" not in card


def test_images_are_relative_and_only_those_that_are_there(run):
    text = fold_card(run, 3).text
    assert re.findall(r"!\[[^]]+\]\(([^)]*)\)", text) == ["figures/confusion.png", "figures/tsne.png"]
    (run / "figures" / "tsne.png").unlink()
    assert re.findall(r"!\[[^]]+\]\(([^)]*)\)", fold_card(run, 3).text) == ["figures/confusion.png"]


def test_the_readme_of_a_plain_checkpoint_is_the_same_card_without_scores(trained):
    card = ModelCard.load(trained / "fold-1" / "checkpoint" / "README.md")
    assert card.data.eval_results is None and "before the fold was scored" in card.text
    assert card.data.pipeline_tag == "audio-classification" and card.data.library_name == "transformers"
    scored = fold_card(trained, 1).text
    before, after = (text.split("## Results")[0] for text in (card.text, scored))
    assert before == after


def test_the_cards_code_runs_on_the_checkpoint(trained, tmp_path, monkeypatch, capsys):
    text = fold_card(trained, 1, "org/lascl-tiny").text
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 2 and 'model="org/lascl-tiny", revision="fold-1"' in blocks[0]
    soundfile.write(tmp_path / "speech.wav", recording(seed=1), 16_000)
    monkeypatch.chdir(tmp_path)
    code = "".join(blocks).replace('"org/lascl-tiny"', repr(str(trained / "fold-1" / "checkpoint")))
    exec(code.replace(', revision="fold-1"', ""), {})
    words = re.findall(r"'label': '(\w+)'", capsys.readouterr().out)
    assert set(words[:7]) == set(EMOTIONS) and sorted(words[7:]) == ["furious", "joyful", "weary"]


@pytest.mark.parametrize("number", [1, 3, None])
def test_no_path_of_the_computer_is_in_the_card(trained, number, emodb_like, audio_encoders, text_encoder):
    plain = (trained / "fold-1" / "checkpoint" / "README.md").read_text(encoding="utf-8")
    for text in (str(fold_card(trained, number, "org/name")), str(fold_card(trained, number)), plain):
        for path in (trained, emodb_like, audio_encoders["whisper"], text_encoder):
            assert str(path) not in text and str(path.parent if hasattr(path, "parent") else path) not in text
        assert not re.search(r"(?<![\w/.:])/(?:home|tmp|root|work|usr|var|Users|private)\b", text)
        assert "whisper (a local copy)" in text


def test_synthetic_speech_and_random_weights_are_said_at_the_top(run):
    encoder = {"model_type": "whisper"}
    edit(run / "recipe.yaml", corpus="synthetic", audio_encoder=encoder, text_encoder={"model_type": "bert"})
    card = fold_card(run, 1)
    top = card.text.split("## Use")[0]
    assert "The speech is synthetic" in top and "Both encoders started from random weights" in top
    assert "synthetic-speech" in card.data.tags and card.data.language == "en" and card.data.base_model is None
    edit(run / "recipe.yaml", text_encoder="FacebookAI/roberta-base")
    assert "The audio encoder started from random weights" in fold_card(run, 1).text


def test_hub_names_become_links_of_the_metadata_and_folders_do_not(run):
    assert "base_model" not in fold_card(run, 1).data.to_dict()
    config = run / "fold-1" / "checkpoint" / "config.json"
    audio_config = json.loads(config.read_text(encoding="utf-8"))["audio_config"]
    edit(config, audio_config={**audio_config, "_name_or_path": "openai/whisper-tiny"}, text_encoder="org/text")
    edit(run / "recipe.yaml", corpus="hf", corpus_options={"dataset_name": "org/emotions"})
    card = fold_card(run, 1)
    assert (card.data.base_model, card.data.base_model_relation) == ("openai/whisper-tiny", "finetune")
    assert card.data.datasets == ["org/emotions"] and card.data.eval_results[0].dataset_type == "org/emotions"
    assert "Audio encoder: openai/whisper-tiny." in card.text and "frozen: org/text." in card.text
    edit(run / "recipe.yaml", corpus_options={"dataset_name": "../emotions"})
    assert fold_card(run, 1).data.datasets is None


def test_a_published_config_names_no_folder_and_is_the_same_otherwise(trained, text_encoder, tmp_path):
    checkpoint = shutil.copytree(trained / "fold-1" / "checkpoint", tmp_path / "checkpoint")
    edit(checkpoint / "config.json", text_encoder=text_encoder)  # as an older LaSCL saved it
    before = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    assert json.loads(public_config(checkpoint)) == {**before, "text_encoder": None}
    # As an earlier version saved it; Hub names stay.
    for found, expected in (("../encoders/whisper", ""), ("/encoders/whisper", ""), ("org/whisper", "org/whisper")):
        edit(checkpoint / "config.json", audio_config={**before["audio_config"], "_name_or_path": found})
        edit(checkpoint / "config.json", text_encoder="FacebookAI/roberta-large")
        config = json.loads(public_config(checkpoint))
        assert config["audio_config"]["_name_or_path"] == expected
        assert config["text_encoder"] == "FacebookAI/roberta-large"


def test_what_a_corpus_is_comes_from_its_table(run):
    card = fold_card(run, 1)
    assert card.data.language == "de" and card.data.license == "other"
    assert "Berlin Database of Emotional Speech" in card.text and "10.21437/Interspeech.2005-446" in card.text
    assert "Article 5(1)(f) of Regulation (EU) 2024/1689" in card.text
    edit(run / "recipe.yaml", corpus="iemocap", selection="best_validation", validation="session")
    card = fold_card(run, 1)
    assert card.data.language == "en" and "Ten actors in dialogues" in card.text
    assert "the one with the highest UA in validation (session)" in card.text


def test_training_ids_are_hashed_whatever_their_order(run, emodb_like):
    tested = {row["id"] for row in read_csv(run / "fold-3" / "predictions.csv")}
    ids = sorted(path.stem for path in emodb_like.iterdir() if path.stem not in tested)
    assert len(ids) == 56
    assert hashlib.blake2b("\n".join(ids).encode(), digest_size=16).hexdigest() in fold_card(run, 3).text
    assert fold_card(run, 1).text.count(hashlib.blake2b("\n".join(ids).encode(), digest_size=16).hexdigest()) == 0


def test_labels_of_a_corpus_cannot_break_the_markdown(run):
    rows = read_csv(run / "fold-1" / "predictions.csv")
    renamed = [{k: v.replace("anger", "an|ger*") for k, v in row.items()} for row in rows]
    write_csv(run / "fold-1" / "predictions.csv", renamed)
    config = run / "fold-1" / "checkpoint" / "config.json"
    edit(config, id2label={str(k): "an|ger*" if k == 0 else label for k, label in enumerate(EMOTIONS)})
    assert r"Labels: an\|ger\*, boredom" in fold_card(run, 1).text


def test_what_is_missing_is_named(run):
    with pytest.raises(ValueError, match=r"has no fold 9; its folds are 1 to 5"):
        fold_card(run, 9)
    (run / "protocol.json").write_text("{")
    with pytest.raises(ValueError, match=r"protocol\.json cannot be read"):
        fold_card(run, 1)
    (run / "protocol.json").unlink()
    with pytest.raises(ValueError, match=r"protocol\.json is missing"):
        fold_card(run, 1)


@pytest.mark.parametrize("labels", [None, ["anger", "fear"], {"anger": "rage"}])
def test_every_heading_table_and_list_stands_apart(run, labels):
    edit(run / "recipe.yaml", labels=labels)
    lines = fold_card(run, 3, "org/name").text.splitlines()
    for before, line in itertools.pairwise(lines):
        if line.startswith(("#", "![", "```python", "    lascl-verify")):
            assert before == "", (before, line)
        if line.startswith(("|", "*")):
            assert before == "" or before[0] == line[0], (before, line)
    (command,) = [line for line in lines if line.startswith("    lascl-verify")]
    if labels:
        assert json.loads(re.search(r"--labels '(.*)'", command)[1]) == labels
    else:
        assert command == "    lascl-verify org/name --revision fold-3 --corpus emodb --data_dir FOLDER"


def test_the_same_files_give_the_same_card(run):
    assert str(fold_card(run, 1, "org/name")) == str(fold_card(run, 1, "org/name"))
    assert np.unique([str(fold_card(run, number)) for number in (1, 3, None)]).size == 3


@pytest.mark.skipif(
    "ENDPOINT" not in inspect.getsource(ModelCard.validate), reason="this huggingface_hub asks no Hub but one"
)
def test_the_hub_accepts_the_card(run, tmp_path, monkeypatch):
    with LoopbackHub(tmp_path / "hub") as hub:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
        for number in (1, None):
            fold_card(run, number, "org/lascl-tiny").validate()
        assert [path for _, path, _ in hub.requests] == ["/api/validate-yaml"] * 2
        with pytest.raises(ValueError, match="bad metadata"):
            ModelCard("---\nemotion_of_the_day: joy\n---\n").validate()

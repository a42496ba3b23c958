"""`train.py` on several corpora, as a user runs it: one corpus as before, many that are left out in turn, a run that
was cut off, the model of everything."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from tiny import cut_off, read_csv
from transformers import AutoConfig

import lascl.data
from lascl.hub.card import fold_card
from lascl.hub.verify import main as lascl_verify
from lascl.report import main as report
from lascl.train import main
from lascl.training.recipe import parse_recipe
from lascl.training.run_directory import write_csv


SHARED_WORDS = ["anger", "neutral"]


def run(*argv):
    """`train.py`; what it refuses fails the test."""
    try:
        main([str(part) for part in argv])
    except SystemExit as exit:
        raise AssertionError(f"train.py ended with {exit.code}") from None


@pytest.fixture(scope="module")
def options(audio_encoders, text_encoder):
    return [
        *("--allow_partial", "true", "--audio_encoder", audio_encoders["whisper"], "--text_encoder", text_encoder),
        *("--num_train_epochs", "2", "--global_batch_size", "16", "--augmentation", "gain", "--disable_tqdm", "true"),
    ]


@pytest.fixture(scope="module")
def command(three_corpora, options):
    """Of the three corpora two words that all have, so that every head answers all that is tested."""
    corpora = [{**entry, "labels": SHARED_WORDS} for entry in three_corpora]
    return ["emodb", "--corpora", json.dumps(corpora), *options]


@pytest.fixture(scope="module")
def finished(command, tmp_path_factory):
    """The folds that test `acted` and `calls`, and a model of everything."""
    run_dir = tmp_path_factory.mktemp("runs") / "run"
    run(*command, "--folds", "acted,calls", "--final_model", "true", "--output_dir", run_dir)
    return run_dir


def assert_same_fold(found: Path, expected: Path):
    """Weights, predictions and log, byte for byte."""
    for name in ("checkpoint/model.safetensors", "checkpoint/config.json", "predictions.csv", "log_history.json"):
        assert (found / name).read_bytes() == (expected / name).read_bytes(), name


def test_one_corpus_by_corpora_is_today_s_run(emodb_like, options, tmp_path):
    """Byte for byte, its recipe included; and a run that was begun by one goes on by the other."""
    run("emodb", "--data_dir", emodb_like, *options, "--folds", "3", "--output_dir", tmp_path / "corpus")
    one = json.dumps([{"name": "mine", "corpus": "emodb", "data_dir": str(emodb_like)}])
    run("emodb", "--corpora", one, *options, "--folds", "3", "--output_dir", tmp_path / "corpora")
    assert_same_fold(tmp_path / "corpora" / "fold-3", tmp_path / "corpus" / "fold-3")
    for name in ("recipe.yaml", "protocol.json", "results.json", "fold-3/checkpoint/README.md"):
        found, expected = ((tmp_path / run / name).read_text() for run in ("corpora", "corpus"))
        if name != "results.json":
            assert found == expected, name
    run("emodb", "--corpora", one, *options, "--folds", "3", "--output_dir", tmp_path / "corpus")


def test_a_corpus_is_tested_by_a_model_that_knows_nothing_of_it(finished):
    rows = read_csv(finished / "fold-1" / "predictions.csv")
    assert len(rows) == 12 and {row["id"].partition("/")[0] for row in rows} == {"acted"}
    history = json.loads((finished / "fold-1" / "log_history.json").read_text())
    assert history and not any(name.startswith("test") for entry in history for name in entry)
    protocol = json.loads((finished / "protocol.json").read_text())
    assert protocol["corpus"] == "acted, calls, emodb" and protocol["num_folds"] == 3
    (told,) = [fold for fold in protocol["folds"] if fold["fold"] == 1]
    assert told["test_corpora"] == ["acted"] and told["train_corpora"] == ["calls", "emodb"]
    assert told["words"] == SHARED_WORDS and told["test_speakers"] == ["acted/1", "acted/2", "acted/3"]
    assert "Corpora: acted, calls, emodb. Each corpus is tested by a model that" in protocol["notes"][0]
    recipe = yaml.safe_load((finished / "recipe.yaml").read_text())
    assert recipe["corpus"] is None and [entry["name"] for entry in recipe["corpora"]] == ["acted", "calls", "emodb"]


def test_what_begins_is_said_of_each_corpus_and_fold(command, tmp_path, capsys):
    run(*command, "--folds", "calls", "--max_steps", "1", "--output_dir", tmp_path)
    printed = capsys.readouterr().out
    assert "acted: 12 utterances, 3 speakers; anger 6, neutral 6." in printed
    assert "Fold 2 of 3: 32 utterances of acted, emodb to train on, 12 to test, of calls." in printed


def test_words_that_nobody_trains_are_said_and_not_watched(three_corpora, command):
    assert hasattr(lascl.data, "load_corpora"), "several corpora cannot be loaded"
    from lascl.training.fold import watched_rows
    from lascl.training.prepare import divide, read_corpus
    from lascl.training.protocol import describe

    recipe = parse_recipe(["emodb", "--corpora", json.dumps(three_corpora), *command[3:], "--validation", "corpus"])[0]
    table, _ = read_corpus(recipe)
    acted, calls, emodb = folds = divide(recipe, table)
    names = table.features["label"].names
    # `acted` is tested and `calls` validates what EmoDB trained: anger and neutral, not annoyed.
    watched = watched_rows(table, acted)
    assert list(watched) == ["validation"]
    assert {names[table["label"][row]] for row in watched["validation"]} == set(SHARED_WORDS)
    assert len(watched["validation"]) == 12 and len(acted.validation) == 18

    told = describe(recipe, table, folds, num_skipped=0)
    assert "Fold 1 tests calm, which nothing in its training has." in told["notes"]
    assert (
        "Fold 3 tests boredom, disgust, fear, happiness, sadness, which nothing in its training has." in told["notes"]
    )
    assert not any("has no" in note for note in told["notes"])  # each corpus has all its words on its side
    assert told["folds"][0]["validation_corpora"] == ["calls"] and told["folds"][2]["words"] == [
        "anger",
        "annoyed",
        "neutral",
    ]
    assert (calls.name, emodb.name) == ("calls", "emodb")


def test_within_each_logs_the_test_and_trains_all(command, tmp_path):
    run(*command, "--protocol", "within_each", "--num_folds", "2", "--folds", "1", "--output_dir", tmp_path)
    rows = read_csv(tmp_path / "fold-1" / "predictions.csv")
    assert {row["id"].partition("/")[0] for row in rows} == {"acted", "calls", "emodb"}
    history = json.loads((tmp_path / "fold-1" / "log_history.json").read_text())
    assert [entry["epoch"] for entry in history if "test_ua" in entry] == [1, 2]
    notes = json.loads((tmp_path / "protocol.json").read_text())["notes"]
    assert "No speaker is on two sides of a fold" in notes[0]


def test_a_run_that_was_cut_off_ends_with_the_same_bytes(finished, command, tmp_path, monkeypatch):
    """In its second epoch, in which the utterances of each corpus go on taking turns."""
    assert finished
    options = ["--folds", "acted", "--output_dir", str(tmp_path), "--save_strategy", "steps", "--save_steps", "2"]
    cut_off(monkeypatch, [*command, *options], after_steps=3)
    run(*command, *options)
    assert_same_fold(tmp_path / "fold-1", finished / "fold-1")


def test_corpora_may_move_and_change_places_but_not_words(finished, command, three_corpora, capsys):
    corpora = [{**entry, "labels": SHARED_WORDS} for entry in reversed(three_corpora)]
    again = ["emodb", "--corpora", json.dumps(corpora), *command[3:]]
    run(*again, "--folds", "acted", "--output_dir", finished)
    assert "Fold 1: complete, kept." in capsys.readouterr().out
    other = ["emodb", "--corpora", json.dumps(three_corpora), *command[3:]]
    with pytest.raises(SystemExit):
        main([*other, "--output_dir", str(finished)])
    assert "different are: corpora (" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------------- full data


def test_a_final_model_follows_the_folds_without_any_hub(finished, command, capsys):
    checkpoint = finished / "full-data" / "checkpoint"
    assert AutoConfig.from_pretrained(checkpoint).labels == SHARED_WORDS
    assert {"README.md", "model.safetensors", "text_encoder"} <= {path.name for path in checkpoint.iterdir()}
    card = (checkpoint / "README.md").read_text()
    assert "no held-out score of their own" in card and "| mean over corpora |" in card
    # No part of what the run is: it goes on with and without, and says where the model is.
    run(*command, "--folds", "acted,calls", "--output_dir", finished)
    capsys.readouterr()
    run(*command, "--folds", "acted,calls", "--final_model", "true", "--output_dir", finished)
    printed = capsys.readouterr().out
    assert "Training on everything: complete, kept." in printed
    assert f"The model of everything: {checkpoint}" in printed


def test_the_final_model_alone(emodb_like, options, tmp_path, capsys):
    command = ["emodb", "--data_dir", emodb_like, *options, "--folds", "none", "--final_model", "true"]
    run(*command, "--output_dir", tmp_path / "run")
    checkpoint = tmp_path / "run" / "full-data" / "checkpoint"
    assert f"The model of everything: {checkpoint}" in capsys.readouterr().out
    assert len(AutoConfig.from_pretrained(checkpoint).labels) == 7
    assert not list((tmp_path / "run").glob("fold-*")) and not (tmp_path / "run" / "results.json").exists()
    card = (checkpoint / "README.md").read_text()
    assert "None: the run has tested no fold." in card and "scores below" not in card
    assert str(fold_card(tmp_path / "run", None)) == card
    with pytest.raises(SystemExit):
        report([str(tmp_path / "run")])
    assert "has no tested fold, only the model of all its data" in capsys.readouterr().err
    # It is a run that has begun: another recipe is refused there, and the same one keeps what is complete.
    with pytest.raises(SystemExit):
        main([*map(str, command), "--learning_rate", "1", "--output_dir", str(tmp_path / "run")])
    assert "learning_rate" in capsys.readouterr().err
    run(*command, "--output_dir", tmp_path / "run")
    assert "complete, kept" in capsys.readouterr().out


# --------------------------------------------------------------------------------------------------------------- card


def test_the_card_names_every_corpus_with_its_licence(finished, tmp_path):
    card = str(fold_card(finished, 1, "org/many"))
    emodb = "Berlin Database of Emotional Speech"
    for told in (emodb, "a corpus of the author's own (\\`acted\\`)", "a corpus of the author's own (\\`calls\\`)"):
        assert card.count(told) >= 3, told  # what it is trained on, of whose voices, under which licence
    assert f"{emodb} (not stated)" in card or "(not stated)" in card
    command = next(line for line in card.splitlines() if "lascl-verify" in line)
    told = json.loads(command.split("--corpora '")[1].split("'")[0])
    assert [entry["name"] for entry in told] == ["acted", "calls", "emodb"] and "data_dir" not in told[0]
    assert told[0]["labels"] == SHARED_WORDS and command.endswith("--data_dir FOLDER")


@pytest.fixture(scope="module")
def unheard(three_corpora, options, tmp_path_factory):
    """A fold that tests `acted`, whose calm nothing in its training has."""
    run_dir = tmp_path_factory.mktemp("runs") / "unheard"
    command = ["emodb", "--corpora", json.dumps(three_corpora), *options, "--folds", "acted"]
    run(*command, "--output_dir", run_dir)
    return run_dir


def test_words_that_nobody_trained_are_answered_and_belong_to_no_checkpoint(unheard):
    learned = ["anger", "annoyed", "boredom", "disgust", "fear", "happiness", "neutral", "sadness"]
    assert AutoConfig.from_pretrained(unheard / "fold-1" / "checkpoint").labels == learned
    rows = read_csv(unheard / "fold-1" / "predictions.csv")
    assert {row["reference"] for row in rows} == {"anger", "calm", "neutral"} and len(rows) == 18
    assert all(float(row["probability_calm"]) > 0 and row["probability_classifier_calm"] == "" for row in rows)
    assert {row["prediction"] for row in rows} <= {"anger", "calm", "neutral"}


def test_verify_knows_several_corpora(unheard, three_corpora, tmp_path, capsys):
    """A word that the checkpoint does not have is embedded again; what was changed is named."""

    def verify(folder, corpora):
        with pytest.raises(SystemExit) as exit:
            lascl_verify([str(folder), "--corpora", json.dumps(corpora)])
        output = capsys.readouterr()
        return exit.value.code, output.out + output.err

    folder = shutil.copytree(unheard / "fold-1" / "checkpoint", tmp_path / "published")
    shutil.copy(unheard / "fold-1" / "predictions.csv", folder)
    card = fold_card(unheard, 1, "org/many")
    card.save(folder / "README.md")
    code, printed = verify(folder, three_corpora)
    assert code == 0 and "holds" in printed, printed
    # By hand: the share of 18 right.
    rows = read_csv(folder / "predictions.csv")
    right = sum(row["prediction"] == row["reference"] for row in rows)
    assert {r.metric_type: r.metric_value for r in card.data.eval_results}["accuracy"] == round(right / 18, 4)
    rows[3]["probability_calm"] = str(float(rows[3]["probability_calm"]) + 0.01)
    rows[4]["probability_classifier_calm"] = "0.5"
    write_csv(folder / "predictions.csv", rows)
    code, printed = verify(folder, three_corpora)
    assert code == 1 and f"{rows[3]['id']}, probability_calm" in printed, printed
    assert f"{rows[4]['id']}, probability_classifier_calm" in printed
    code, printed = verify(folder, three_corpora[:1])
    assert code == 2 and "Give the corpus, or the corpora" in printed

"""`lascl-verify`: says that a published fold holds, or names the number that does not."""

import re
import shutil

import pytest
from huggingface_hub import constants
from loopback_hub import LoopbackHub, Repository
from test_publish import connected
from tiny import read_csv

from lascl.hub.card import fold_card
from lascl.hub.verify import main
from lascl.train import main as train
from lascl.training.run_directory import write_csv


@pytest.fixture(scope="module")
def trained(emodb_like, audio_encoders, text_encoder, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("runs") / "run"
    train(
        [
            *("emodb", "--data_dir", str(emodb_like), "--allow_partial", "true", "--disable_tqdm", "true"),
            *("--audio_encoder", audio_encoders["whisper"], "--text_encoder", text_encoder),
            *("--num_train_epochs", "2", "--global_batch_size", "16", "--augmentation", "gain"),
            *("--folds", "3", "--output_dir", str(run_dir)),
        ]
    )
    return run_dir


@pytest.fixture
def published(trained, tmp_path):
    """The files of a repository, as they are staged."""
    folder = shutil.copytree(trained / "fold-3" / "checkpoint", tmp_path / "published")
    shutil.copy(trained / "fold-3" / "predictions.csv", folder)
    fold_card(trained, 3, "org/name").save(folder / "README.md")
    return folder


@pytest.fixture
def verify(emodb_like, capsys):
    """Runs the command; returns its exit code and what it printed."""

    def run(folder, *options):
        with pytest.raises(SystemExit) as exit:
            main([str(folder), "--corpus", "emodb", "--data_dir", str(emodb_like), *options])
        output = capsys.readouterr()
        return exit.value.code, output.out + output.err

    return run


def edit_row(folder, index, **cells):
    rows = read_csv(folder / "predictions.csv")
    rows[index] |= cells
    write_csv(folder / "predictions.csv", rows)
    return rows[index]


def test_what_was_trained_holds(published, verify):
    code, output = verify(published)
    assert code == 0 and f"{published}: holds\n" in output
    code, output = verify(published, "--batch_size", "3")
    assert code == 0 and "holds" in output


@pytest.mark.parametrize("column", ["probability_fear", "probability_classifier_sadness"])
def test_one_digit_of_a_probability_is_found(published, verify, column):
    before = read_csv(published / "predictions.csv")[5]
    value = float(before[column])
    edit_row(published, 5, **{column: f"{value + 0.00005:.9g}"})  # as another machine may say
    assert verify(published)[0] == 0
    row = edit_row(published, 5, **{column: f"{value + 0.0005:.9g}"})
    code, output = verify(published)
    (line,) = [line for line in output.splitlines() if " published, " in line]
    assert code == 1 and f"{published}: does not hold\n" in output
    assert line == f"{row['id']}, {column}: {row[column]} published, {value:.6g} now."


def test_probabilities_that_are_none_are_found_with_their_row(published, verify):
    """Beyond what may be called probabilities, from which no calibration follows."""
    row = edit_row(published, 5, probability_classifier_sadness="0.95")
    code, output = verify(published)
    assert code == 1 and f"{published}: does not hold\n" in output
    assert f"{row['id']}, probability_classifier_sadness: 0.95 published, " in output
    assert "Row 5 holds no probabilities" in output


@pytest.mark.parametrize("column", ["prediction", "prediction_classifier", "reference", "speaker"])
def test_another_word_is_found(published, verify, column):
    row = read_csv(published / "predictions.csv")[2]
    other = next(word for word in ("anger", "fear", "sadness") if word not in (row["reference"], row[column]))
    edit_row(published, 2, **{column: other})
    code, output = verify(published)
    assert code == 1 and f"{row['id']}, {column}: {other} published, {row[column]} now." in output


def test_labels_that_are_equally_likely_may_change_places(published, verify, monkeypatch):
    import lascl.hub.verify as module

    predict = module.predict_fold

    def with_a_tie(*args, **kwargs):
        rows, geometry = predict(*args, **kwargs)
        rows[0]["probability_anger"], rows[0]["probability_fear"] = 0.45, 0.45 - 1e-4
        rows[0]["prediction"] = "anger"
        return rows, geometry

    monkeypatch.setattr(module, "predict_fold", with_a_tie)
    cells = {"probability_anger": "0.44995", "probability_fear": "0.44996", "prediction": "fear"}
    edit_row(published, 0, **cells)
    assert " prediction:" not in verify(published)[1]
    edit_row(published, 0, **{**cells, "prediction": "sadness"})
    assert ", prediction: sadness published, anger now." in verify(published)[1]


@pytest.mark.parametrize("metric, name", [("accuracy", "WA"), ("recall", "UA"), ("f1", "macro-F1")])
def test_one_digit_of_the_card_is_found(published, verify, metric, name):
    card = (published / "README.md").read_text(encoding="utf-8")
    own = card.index("split: fold-3")
    value = re.search(rf"- type: {metric}\n +value: ([\d.]+)", card[own:])
    changed = f"{float(value[1]) + 0.0001:.4f}"
    card = card[: own + value.start(1)] + changed + card[own + value.end(1) :]
    (published / "README.md").write_text(card, encoding="utf-8")
    code, output = verify(published)
    (line,) = [line for line in output.splitlines() if " in the card, " in line]
    assert code == 1 and line.startswith(name) and f": {float(changed)} in the card, " in line
    found = re.search(r"([\d.]+) by predictions\.csv", line)
    assert float(found[1]) == pytest.approx(float(value[1]), abs=0.5e-4)


def test_an_utterance_left_out_is_found(published, verify):
    write_csv(published / "predictions.csv", read_csv(published / "predictions.csv")[:-1])
    code, output = verify(published)
    assert code == 1 and "Utterances: 14 in the card, 13 in predictions.csv." in output


def test_many_differences_are_counted(published, verify):
    rows = [{**row, "speaker": "99"} for row in read_csv(published / "predictions.csv")]
    write_csv(published / "predictions.csv", rows)
    code, output = verify(published)
    assert code == 1 and output.count("99 published") == 10 and "... and 4 more." in output


def drop_predictions(folder):
    (folder / "predictions.csv").unlink()


def take_the_plain_card(folder):
    text = (folder / "README.md").read_text(encoding="utf-8")
    (folder / "README.md").write_text(re.sub(r"model-index:.*?\n---", "---", text, count=1, flags=re.DOTALL))


def rename_an_utterance(folder):
    edit_row(folder, 1, id="17a01Xa")


def garble_a_probability(folder):
    edit_row(folder, 1, probability_fear="0,3")


def keep_no_row(folder):
    header = (folder / "predictions.csv").read_text().splitlines()[0]
    (folder / "predictions.csv").write_text(f"{header}\n")


def drop_a_column(folder):
    rows = [{k: v for k, v in row.items() if k != "probability_fear"} for row in read_csv(folder / "predictions.csv")]
    write_csv(folder / "predictions.csv", rows)


@pytest.mark.parametrize(
    "spoil, options, message",
    [
        (drop_predictions, (), "has no predictions.csv. Give a published fold"),
        (take_the_plain_card, (), "The card has no held-out score of its own. Give the branch of a fold"),
        (rename_an_utterance, (), "The corpus has no utterance '17a01Xa'"),
        (garble_a_probability, (), "probability_fear of '11a01Ea' is no number: '0,3'"),
        (drop_a_column, (), "predictions.csv has no column 'probability_fear'"),
        (keep_no_row, (), "predictions.csv has no utterance"),
        (None, ("--revision", "fold-3"), "is a folder and has no revisions"),
        (None, ("--labels", "anger,fear"), "The model's labels are anger, boredom"),
        (None, ("--corpus", "emodbb"), "Unknown corpus 'emodbb'"),
    ],
)
def test_what_cannot_be_compared_is_said_in_one_sentence(published, verify, spoil, options, message):
    if spoil:
        spoil(published)
    code, output = verify(published, *options)
    assert code == 2 and "Traceback" not in output
    (line,) = [line for line in output.splitlines() if line.startswith("lascl-verify: ")]
    assert message in line


def test_a_branch_of_the_hub_holds(published, verify, tmp_path, monkeypatch):
    with LoopbackHub(tmp_path / "hub") as hub:
        files = {path.name: hub.store(path.read_bytes()) for path in published.iterdir() if path.is_file()}
        repository = hub.repositories["org/name"] = Repository()
        repository.add("main", {"README.md": hub.store(b"nothing here")}, "first")
        repository.add("fold-3", {**files, "text_encoder/model.bin": hub.store(b"large")}, "a fold")
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
        with connected(hub):
            code, output = verify("org/name", "--revision", "fold-3")
        fetched = {path.rpartition("/")[2] for method, path, _ in hub.requests if method == "GET" and "resolve" in path}
    assert code == 0 and "org/name at fold-3: holds" in output
    assert "model.safetensors" in fetched and "model.bin" not in fetched

"""Answers against what listeners said: scores, what listeners reach themselves, and how a run and its report show it.

Expected values come from loops over single rows, listeners and bins, or from numbers worked out by hand.
"""

import contextlib
import csv
import inspect
import io
import json
import math
import shutil
from collections import defaultdict
from importlib import import_module

import numpy as np
import pytest
import soundfile
from tiny import RATE, read_csv, recording

from lascl import train
from lascl.evaluation import results_table, summarise_run
from lascl.hub.card import fold_card
from lascl.hub.verify import main as verify
from lascl.training.run_directory import write_csv


LABELS = ["anger", "fear", "joy"]


def votes_module():
    """`lascl.evaluation.votes`, of which the tests ask."""
    try:
        return import_module("lascl.evaluation.votes")
    except ImportError as error:
        raise AssertionError("nothing is scored against votes") from error


def rows_of(n=60, seed=0, speakers=6, listeners=5):
    """Rows of a `predictions.csv`: votes of so many listeners, and a head that is near them."""
    rng, rows = np.random.default_rng(seed), []
    for number in range(n):
        p = rng.dirichlet([1.0] * 3)
        counts = rng.multinomial(listeners, p)
        q = rng.dirichlet(4 * p + 0.3)
        best = np.flatnonzero(counts == counts.max())
        row = {
            "id": f"u{number:03d}",
            "speaker": f"s{number % speakers}",
            "reference": LABELS[best[0]] if len(best) == 1 else "",
            "prediction": LABELS[q.argmax()],
            "prediction_classifier": LABELS[rng.integers(3)],
        }
        row |= {f"probability_{label}": str(value) for label, value in zip(LABELS, q)}
        row |= {f"probability_classifier_{label}": str(1 / 3) for label in LABELS}
        rows.append({**row, **{f"votes_{label}": str(count) for label, count in zip(LABELS, counts)}})
    return rows


def shares_by_loops(row):
    counts = [float(row[f"votes_{label}"] or 0) for label in LABELS]
    return {label: count / sum(counts) for label, count in zip(LABELS, counts)}


def bits(p):
    return -sum(x * math.log2(x) for x in p if x)


def jsd_by_loops(row):
    p = list(shares_by_loops(row).values())
    q = [float(row[f"probability_{label}"]) for label in LABELS]
    return bits([(x + y) / 2 for x, y in zip(p, q)]) - (bits(p) + bits(q)) / 2


def test_the_divergence_by_hand():
    # Half and half against certainty: m = (3/4, 1/4): H(m) = 0.811278, less (1 + 0) / 2.
    votes = votes_module()
    p, q = np.array([[0.5, 0.5], [1, 0], [1, 0], [0.2, 0.8]]), np.array([[1, 0], [0, 1], [1, 0], [0.2, 0.8]])
    assert votes.jensen_shannon(p, q).tolist() == pytest.approx([0.311278124, 1, 0, 0], abs=1e-9)


def test_scores_against_votes_row_by_row():
    votes, rows = votes_module(), rows_of()
    found = votes.scores_against_votes(rows, LABELS, "label")
    assert found["n"] == 60 and found["num_speakers"] == 6
    assert found["jsd"] == pytest.approx(sum(map(jsd_by_loops, rows)) / 60)
    assert found["soft_accuracy"] == pytest.approx(sum(shares_by_loops(row)[row["prediction"]] for row in rows) / 60)
    bins = defaultdict(lambda: [0.0, 0.0])
    for row in rows:
        confidence = max(float(row[f"probability_{label}"]) for label in LABELS)
        here = bins[math.ceil(confidence * 15)]
        here[0] += confidence
        here[1] += shares_by_loops(row)[row["prediction"]]
    assert found["calibration_error"] == pytest.approx(sum(abs(a - b) for a, b in bins.values()) / 60)
    of_classifier = sum(shares_by_loops(row)[row["prediction_classifier"]] for row in rows) / 60
    assert found["classifier"]["soft_accuracy"] == pytest.approx(of_classifier)
    # Rows without a reference are scored too, those without votes are not.
    assert any(not row["reference"] for row in rows)
    silent = {**rows[0], **{f"votes_{label}": "" for label in LABELS}}
    assert votes.scores_against_votes([*rows, silent], LABELS, "label") == found
    assert votes.scores_against_votes([silent], LABELS, "label") is None
    without = [{name: cell for name, cell in row.items() if not name.startswith("votes_")} for row in rows]
    assert votes.scores_against_votes(without, LABELS, "label") is None


def test_intervals_are_over_speakers():
    """Of speakers with as many rows each, the error of a mean is that of the speakers' means over sqrt(S)."""
    votes, rows = votes_module(), rows_of(n=400, speakers=8)
    found = votes.scores_against_votes(rows, LABELS, "label")
    for name, of_row in (
        ("soft_accuracy", lambda row: shares_by_loops(row)[row["prediction"]]),
        ("jsd", jsd_by_loops),
    ):
        means = [np.mean([of_row(row) for row in rows if row["speaker"] == f"s{s}"]) for s in range(8)]
        half = 2.364624 * np.std(means, ddof=1) / math.sqrt(8)  # t of 7 degrees at 97.5 %
        low, high = found["intervals"][name]
        assert (high - low) / 2 == pytest.approx(half, rel=0.06) and (high + low) / 2 == pytest.approx(found[name])
    assert found["intervals"]["calibration_error"] is not None
    alone = votes.scores_against_votes([{**row, "speaker": "s"} for row in rows], LABELS, "label")
    assert alone["intervals"] is None


def test_a_head_that_diverged_has_a_soft_accuracy_alone():
    votes, rows = votes_module(), rows_of()
    rows[3]["probability_anger"] = "nan"
    found = votes.scores_against_votes(rows, LABELS, "label")
    assert "jsd" not in found and "calibration_error" not in found and 0 <= found["soft_accuracy"] <= 1
    assert "jsd" in found["classifier"]


def ceiling_by_loops(rows):
    """One listener after the other is left out."""
    soft, right, by_word = [], [], defaultdict(lambda: [0.0, 0.0])
    for row in rows:
        said = [label for label in LABELS for _ in range(int(row[f"votes_{label}"]))]
        agree, hits = [], []
        for number, mine in enumerate(said):
            others = said[:number] + said[number + 1 :]
            agree.append(others.count(mine) / len(others))
            best = [label for label in LABELS if others.count(label) == max(others.count(other) for other in LABELS)]
            hits.append((mine in best) / len(best))
            for label in best:
                by_word[label][0] += (mine == label) / len(best) / len(said)
                by_word[label][1] += 1 / len(best) / len(said)
        soft.append(sum(agree) / len(agree))
        right.append(sum(hits) / len(hits))
    recalls = [hit / total for hit, total in by_word.values()]
    return sum(soft) / len(soft), sum(right) / len(right), sum(recalls) / len(recalls)


@pytest.mark.parametrize("listeners", [2, 3, 10])
def test_what_listeners_reach_is_each_against_the_others(listeners):
    votes, rows = votes_module(), rows_of(n=30, listeners=listeners)
    found = votes.scores_against_votes(rows, LABELS, "label")["ceiling"]
    assert (found["n"], found["votes"]) == (30, listeners)
    assert (found["soft_accuracy"], found["wa"], found["ua"]) == pytest.approx(ceiling_by_loops(rows))


def test_listeners_by_hand():
    # Three anger: each agrees with both others. Two anger, one fear: an anger meets a tie (1/2 of WA, 1/2 of the
    # others), the fear nobody: soft (1/2 + 1/2 + 0) / 3 = 1/3, WA the same.
    votes = votes_module()
    found = votes.listeners_ceiling(np.array([[3, 0, 0], [2, 1, 0]]), LABELS)
    assert found["soft_accuracy"] == pytest.approx((1 + 1 / 3) / 2) and found["wa"] == pytest.approx((1 + 1 / 3) / 2)
    assert votes.listeners_ceiling(np.array([[0.5, 0.5, 0]]), LABELS) is None  # shares: nobody knows of how many
    assert votes.listeners_ceiling(np.array([[1, 0, 0]]), LABELS) is None


def test_what_was_disputed_most_comes_first():
    votes, rows = votes_module(), rows_of(n=5)
    for row, counts in zip(rows, ([5, 0, 0], [2, 2, 1], [4, 1, 0], [3, 2, 0], [2, 1, 2])):
        row |= {f"votes_{label}": str(count) for label, count in zip(LABELS, counts)}
    shown = votes.most_disputed(rows, LABELS, count=3)
    assert [row["id"] for row in shown] == ["u001", "u004", "u003"]
    assert shown[0]["shares"] == "anger 40 %, fear 40 %, joy 20 %"
    assert shown[2]["agreeing"] == shares_by_loops(rows[3])[rows[3]["prediction"]]
    assert votes.most_disputed(rows[:1], LABELS) == []


# ------------------------------------------------------------------------------------------------------- a whole run


@pytest.fixture(scope="module")
def run(audio_encoders, text_encoder, tmp_path_factory):
    """(folder, what was printed) of a run that learned from votes, over four speakers, two folds, ties shared."""
    folder = tmp_path_factory.mktemp("voted")
    counts = [(3, 0, 0), (0, 3, 0), (0, 0, 3), (2, 2, 0), (1, 1, 1), (1, 2, 0), (0, 1, 4)]
    with open(folder / "manifest.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "speaker", *(f"votes_{label}" for label in LABELS)])
        for speaker in "abcd":
            for number, votes in enumerate(counts):
                name = f"{speaker}{number}.wav"
                soundfile.write(folder / name, recording(10 * ord(speaker) + number, 0.3), RATE)
                writer.writerow([name, speaker, *votes])
    command = [
        *("csv", "--data_dir", str(folder), "--targets", "votes", "--ties", "share", "--num_folds", "2"),
        *("--audio_encoder", audio_encoders["whisper"], "--text_encoder", text_encoder, "--num_train_epochs", "1"),
        *("--augmentation", "none", "--augmentation_period", "1", "--freeze_audio_encoder", "true"),
        *("--class_weights", "balanced", "--target_smoothing", "0.1", "--global_batch_size", "7"),
        *("--audio_layers", "last", "--disable_tqdm", "true", "--output_dir", str(folder / "run")),
    ]
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out), contextlib.suppress(SystemExit):
        train.main(command)
    return folder / "run", out.getvalue(), command


def test_a_run_of_votes_says_what_it_read_and_is_scored_against_them(run):
    folder, said, _ = run
    assert (folder / "results.json").is_file(), said
    sentence = "csv, by votes: 20 with a word that most listeners chose; 8 with a tie, learned as votes (ties: share)."
    assert sentence in said and sentence in json.loads((folder / "protocol.json").read_text())["notes"]
    rows = [row for number in (1, 2) for row in read_csv(folder / f"fold-{number}" / "predictions.csv")]
    assert len(rows) == 28 and sum(row["reference"] == "" for row in rows) == 8
    assert {row["votes_joy"] for row in rows} == {"0", "1", "3", "4"}
    found = json.loads((folder / "results.json").read_text())
    assert found["pooled"]["n"] == 20 and found["votes"]["n"] == 28
    expected = sum(shares_by_loops(row)[row["prediction"]] for row in rows) / 28
    assert found["votes"]["soft_accuracy"] == pytest.approx(expected)
    assert found["votes"]["ceiling"]["soft_accuracy"] == pytest.approx(ceiling_by_loops(rows)[0])
    assert found["votes"]["jsd"] == pytest.approx(sum(map(jsd_by_loops, rows)) / 28, abs=1e-6)
    assert summarise_run(folder, LABELS) == found
    arrays = np.load(folder / "fold-1" / "embeddings.npz")
    decided = [row["id"] for row in read_csv(folder / "fold-1" / "predictions.csv") if row["reference"]]
    assert arrays["ids"].tolist() == decided and len(arrays["audio_embeds"]) == len(decided)


def test_a_published_fold_of_votes_is_verified_as_it_was_trained(run, tmp_path, capsys):
    folder, _, _ = run
    published = shutil.copytree(folder / "fold-1" / "checkpoint", tmp_path / "published")
    shutil.copy(folder / "fold-1" / "predictions.csv", published)
    fold_card(folder, 1, "org/name").save(published / "README.md")

    def verified(*options):
        with pytest.raises(SystemExit) as exit:
            verify([str(published), "--corpus", "csv", "--data_dir", str(folder.parent), *options])
        output = capsys.readouterr()
        return exit.value.code, output.out + output.err

    code, said = verified("--targets", "votes", "--ties", "share")
    assert code == 0 and f"{published}: holds\n" in said
    code, said = verified()  # the manifest has no label but the votes
    assert code == 2 and said.count("\n") == 1 and "targets: majority or votes" in said
    rows = read_csv(published / "predictions.csv")
    tie = next(row for row in rows if not row["reference"])
    tie["reference"] = "joy"
    write_csv(published / "predictions.csv", rows)
    code, said = verified("--targets", "votes", "--ties", "share")
    assert code == 1 and f"{tie['id']}, reference: joy published, " in said


def test_its_report_shows_shares_beside_answers(run):
    folder, said, _ = run
    assert (folder / "report.html").is_file(), said
    for text in ((folder / name).read_text(encoding="utf-8") for name in ("report.html", "report.md")):
        assert "What listeners disagreed on most" in text and "anger 33 %" in text
        assert "Soft accuracy: the share of listeners who said what is answered." in text
        assert "What listeners reach, one left out against the rest, over 28 utterances" in text
    assert "| a listener, against the others |" in results_table(json.loads((folder / "results.json").read_text()))


def test_a_run_of_votes_is_itself_and_no_other(run, capsys):
    _, said, command = run
    assert "by votes" in said, said
    train.main(command)
    assert "Fold 1: complete, kept." in capsys.readouterr().out
    for changed in (["--ties", "drop"], ["--targets", "majority"], ["--target_smoothing", "0"]):
        with pytest.raises(SystemExit):
            train.main([*command, *changed])
        assert "holds a run of another recipe" in capsys.readouterr().err
    assert "ties" in inspect.signature(train.read_corpus.__globals__["load_corpora"]).parameters


def test_its_checkpoint_holds_its_numbers(run, capsys):
    from lascl.hub import verify

    folder, said, command = run
    assert "by votes" in said, said
    corpus = train.read_corpus(train.parse_recipe(command)[0])[0]
    fold = folder / "fold-1"
    for name in ("predictions.csv",):
        (fold / "checkpoint" / name).write_bytes((fold / name).read_bytes())
    assert corpus.info.description in said
    published = {row["id"]: row for row in read_csv(fold / "predictions.csv") if row["reference"]}
    rows = [row for row in range(len(corpus)) if corpus["id"][row] in published]
    from lascl.data import Fold
    from lascl.training.prediction import predict_fold

    found, _ = predict_fold(fold / "checkpoint", corpus, Fold(1, [], rows), max_duration_s=10, batch_size=4)
    for row in found:
        assert verify._differences(published[row["id"]], row, "label") == []

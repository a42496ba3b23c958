"""Scores equal hand counts and scikit-learn; a run's numbers follow from its predictions alone."""

import json
import os
import shutil
import subprocess
import sys
import time
from importlib.resources import files
from itertools import pairwise

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, recall_score

from lascl.evaluation import expected_calibration_error, results_table, score, speaker_interval, summarise_run
from lascl.studies.readme import render


def test_scores_by_hand():
    #   references a a a a b b, predictions a a a b b a: recall of a 3/4, of b 1/2
    scores = score(list("aaabba"), list("aaaabb"))
    assert scores["n"] == 6 and scores["labels"] == ["a", "b"] and scores["absent"] == []
    assert scores["wa"] == pytest.approx(4 / 6)
    assert scores["ua"] == pytest.approx((3 / 4 + 1 / 2) / 2)
    assert scores["recall"] == pytest.approx({"a": 3 / 4, "b": 1 / 2})
    assert scores["confusion"] == [[3, 1], [1, 1]]
    #   F1 of a: precision 3/4, recall 3/4; of b: precision 1/2, recall 1/2
    assert scores["macro_f1"] == pytest.approx((3 / 4 + 1 / 2) / 2)


def test_a_class_without_references_is_left_out_of_ua_and_named():
    scores = score(list("abc"), list("abb"), labels=list("abcd"))
    assert scores["absent"] == ["c", "d"]
    assert scores["ua"] == pytest.approx((1 + 1 / 2) / 2) and set(scores["recall"]) == {"a", "b"}
    assert np.array(scores["confusion"]).shape == (4, 4) and scores["confusion"][1] == [0, 1, 1, 0]


@settings(max_examples=80, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=60))
def test_scores_equal_scikit_learn_s(pairs):
    predictions, references = [p for p, _ in pairs], [r for _, r in pairs]
    scores = score(predictions, references, labels=range(5))
    present = sorted(set(references))
    recall = recall_score(references, predictions, labels=present, average=None, zero_division=0)
    f1 = f1_score(references, predictions, labels=present, average="macro", zero_division=0)
    assert scores["wa"] == pytest.approx(accuracy_score(references, predictions))
    assert scores["ua"] == pytest.approx(recall.mean())
    assert scores["macro_f1"] == pytest.approx(f1)
    assert scores["recall"] == pytest.approx(dict(zip(present, recall)))
    assert scores["confusion"] == confusion_matrix(references, predictions, labels=range(5)).tolist()
    assert scores["absent"] == [label for label in range(5) if label not in present]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.integers(1, 40), st.integers(1, 6), st.integers(1, 20))
def test_calibration_error_equals_a_slow_loop(seed, num_utterances, num_classes, num_bins):
    generator = np.random.default_rng(seed)
    probabilities = generator.dirichlet(np.full(num_classes, 0.3), size=num_utterances)
    probabilities[0] = np.eye(num_classes)[0]  # a confidence on the last edge
    references = generator.integers(num_classes, size=num_utterances)
    expected = 0.0
    edges = np.linspace(0, 1, num_bins + 1)
    for low, high in pairwise(edges):
        members = [i for i, row in enumerate(probabilities) if low < min(max(row), 1) <= high]
        if members:
            accuracy = sum(probabilities[i].argmax() == references[i] for i in members) / len(members)
            confidence = sum(max(probabilities[i]) for i in members) / len(members)
            expected += len(members) / num_utterances * abs(accuracy - confidence)
    found = expected_calibration_error(probabilities, references, num_bins=num_bins)
    assert found == pytest.approx(expected, abs=1e-12)


def test_calibration_error_by_hand():
    # Two bins, the edge 0.5 in the lower: there both are right, 0.5 too modest; above, 1 of 2 at 0.85 on average.
    probabilities = [[0.5, 0.5], [0.5, 0.5], [0.9, 0.1], [0.8, 0.2]]
    assert expected_calibration_error(probabilities, [0, 0, 0, 1], num_bins=2) == pytest.approx((0.5 + 0.35) / 2)
    assert expected_calibration_error([[1, 0]], [0]) == 0 and expected_calibration_error([[1, 0]], [1]) == 1
    for wrong in ([[2.0, -1.0]], [[float("nan"), 1.0]], [[70.0, 30.0]], [[0.3, 0.3]]):
        with pytest.raises(ValueError, match="Row 0 holds no probabilities"):
            expected_calibration_error(wrong, [0])
    with pytest.raises(ValueError, match=r"the shape \(1, 2\) and 2 references"):
        expected_calibration_error([[1, 0]], [0, 1])
    with pytest.raises(ValueError, match="from 0 to 1, one for each column; found 2 to 2"):
        expected_calibration_error([[1, 0]], [2])


@pytest.mark.slow
def test_the_evaluate_module_loads_without_a_network(tmp_path):
    """In a process of its own, because the switches are read when the libraries are imported."""
    program = """
import json, socket, sys
sys.modules['transformers'] = None  # else evaluate imports it for its evaluators, which takes seconds
def refuse(*args, **kwargs):
    raise AssertionError("a connection was opened")
socket.socket.connect = refuse
import evaluate
del sys.modules['transformers']
metric = evaluate.load(sys.argv[1])
names = metric.compute(predictions=["b", "a", "b"], references=["a", "a", "b"])
metric.add_batch(predictions=[1, 0], references=[0, 0])
indices = metric.compute(labels=[0, 1], probabilities=[[0.25, 0.75], [1, 0]])
print(json.dumps([names, indices]))
"""
    offline = {"HF_HUB_OFFLINE": "1", "HF_EVALUATE_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    module = str(files("lascl.evaluation") / "speech_emotion_scores.py")
    command = [sys.executable, "-c", program, module]
    done = subprocess.run(command, env={**os.environ, **offline}, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    names, indices = json.loads(done.stdout.splitlines()[-1])
    assert names["ua"] == pytest.approx((1 / 2 + 1) / 2) and names["confusion"] == [[1, 1], [0, 1]]
    assert indices["wa"] == 0.5 and indices["ece"] == pytest.approx(0.75 / 2) and indices["absent"] == [1]


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="found 2 and 1"):
        score(["a", "b"], ["a"])
    with pytest.raises(ValueError, match="found 0 and 0"):
        score([], [])
    with pytest.raises(ValueError, match=r"'c' is not one of the labels \['a', 'b'\]"):
        score(["c"], ["a"], labels=["a", "b"])


HEADER = "id,speaker,reference,prediction,prediction_classifier"


@pytest.fixture
def run_dir(tmp_path):
    for number, rows in ((1, ["u1,s1,a,a,b", "u2,s1,b,b,b"]), (2, ["u3,s2,a,b,a"]), (10, ["u4,s3,a,a,a"])):
        folder = tmp_path / f"fold-{number}"
        folder.mkdir()
        (folder / "predictions.csv").write_text("\n".join([HEADER, *rows]) + "\n")
    return tmp_path


def test_a_run_is_summarised_from_its_predictions(run_dir):
    results = summarise_run(run_dir, ["a", "b"])
    assert [fold["fold"] for fold in results["folds"]] == [1, 2, 10]
    assert [fold["wa"] for fold in results["folds"]] == [1, 0, 1]
    assert [fold["classifier"]["wa"] for fold in results["folds"]] == [0.5, 1, 1]
    assert results["folds"][1]["absent"] == ["b"]
    assert results["pooled"]["n"] == 4 and results["pooled"]["wa"] == 0.75
    assert results["pooled"]["ua"] == pytest.approx((2 / 3 + 1) / 2)
    assert results["mean"]["wa"] == pytest.approx(2 / 3) and results["std"]["wa"] == pytest.approx(np.sqrt(1 / 3))
    table = results_table(results)
    assert "| mean over folds | | 66.7 ± 57.7 |" in table
    assert "Fold 2 has no true b: left out of its UA and macro-F1." in table


def test_improvised_utterances_are_scored_beside_all(run_dir):
    (run_dir / "protocol.json").write_text(json.dumps({"improvised_ids": ["u2", "u3", "not tested"]}))
    results = summarise_run(run_dir, ["a", "b"])
    assert results["improvised"]["n"] == 2 and results["improvised"]["wa"] == 0.5  # u2 right, u3 wrong
    assert results["improvised"]["classifier"]["wa"] == 1 and results["pooled"]["wa"] == 0.75
    assert "| improvised only, pooled | 2 | 50.0 [0.0, 100.0] |" in results_table(results)


def test_the_pooled_scores_carry_intervals_over_speakers(run_dir):
    pooled = summarise_run(run_dir, ["a", "b"])["pooled"]
    assert pooled["num_speakers"] == 3
    for scores in (pooled, pooled["classifier"]):
        for name in ("wa", "ua", "macro_f1"):
            low, high = scores["intervals"][name]
            assert 0 <= low <= scores[name] <= high <= 1
    by_classifier = [[[0, 1], [0, 1]], [[1, 0], [0, 0]], [[1, 0], [0, 0]]]  # s1, s2, s3
    expected = speaker_interval(np.array(by_classifier)).round(6).tolist()
    assert list(pooled["classifier"]["intervals"].values()) == expected
    assert pooled["intervals"]["wa"] == [0, 1]  # three speakers with 2/2, 0/1, 1/1: they say next to nothing
    table = results_table(summarise_run(run_dir, ["a", "b"]))
    assert "| pooled | 4 | 75.0 [0.0, 100.0] |" in table and "95 % interval over the 3 speakers" in table

    for number in (1, 10):
        shutil.rmtree(run_dir / f"fold-{number}")
    results = summarise_run(run_dir, ["a", "b"])
    assert results["pooled"]["num_speakers"] == 1
    assert results["pooled"]["intervals"] is results["pooled"]["classifier"]["intervals"] is None
    assert "| pooled | 1 | 0.0 |" in results_table(results)
    assert "No interval: one speaker says nothing about others." in results_table(results)


def test_speakers_who_score_alike_have_no_interval_and_the_table_says_why(tmp_path):
    (tmp_path / "fold-1").mkdir()
    # Each speaker has an a and a b; the classifier misses one b.
    rows = "id,speaker,reference,prediction,prediction_classifier\nu0,s0,a,a,a\nu1,s1,a,a,a\nu2,s0,b,b,b\nu3,s1,b,b,a\n"
    (tmp_path / "fold-1" / "predictions.csv").write_text(rows)
    results = summarise_run(tmp_path, ["a", "b"])
    assert results["pooled"]["ua"] == 1
    assert results["pooled"]["intervals"] == {"wa": None, "ua": None, "macro_f1": None}
    assert results["pooled"]["classifier"]["intervals"]["wa"] is not None
    table = results_table(results)
    assert "| pooled | 4 | 100.0 | 100.0 | 100.0 | 75.0 [0.0, 100.0] |" in table
    assert "No interval where the score is the same whichever of the 2 speakers are drawn." in table
    assert "[100.0, 100.0]" not in table
    json.dumps(results, allow_nan=False)


def test_calibration_is_that_of_the_head_that_predicted(tmp_path):
    columns = ["probability_a", "probability_b", "probability_classifier_a", "probability_classifier_b"]
    for number, reference in ((1, "a"), (2, "b")):  # both heads predict a; sure to 0.9 and to 0.6
        folder = tmp_path / f"fold-{number}"
        folder.mkdir()
        lines = [f"{HEADER},{','.join(columns)}", f"u{number},s{number},{reference},a,a,0.9,0.1,0.6,0.4"]
        (folder / "predictions.csv").write_text("\n".join(lines) + "\n")
    for head, expected in (("label", 0.9 - 0.5), ("classifier", 0.6 - 0.5)):
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"prediction_head": head}))
        results = summarise_run(tmp_path, ["a", "b"])
        assert results["pooled"]["ece"] == pytest.approx(expected)
        assert results["pooled"]["classifier"]["ece"] == pytest.approx(0.6 - 0.5)
        assert results["folds"][0]["classifier"]["ece"] == pytest.approx(1 - 0.6)
        assert results["mean"]["classifier"]["ece"] == pytest.approx((0.4 + 0.6) / 2)
    (tmp_path / "recipe.yaml").unlink()
    results = summarise_run(tmp_path, ["a", "b"])  # which head it was cannot be known
    assert "ece" not in results["pooled"] and "ece" in results["pooled"]["classifier"]
    path = tmp_path / "fold-1" / "predictions.csv"
    path.write_text(path.read_text().replace("0.6,0.4", "nan,nan"))
    results = summarise_run(tmp_path, ["a", "b"])  # diverged: scores, and no calibration
    assert results["pooled"]["wa"] == 0.5 and "ece" not in results["pooled"]["classifier"]
    assert "ece" not in results["mean"]["classifier"] and "ece" in results["folds"][1]["classifier"]


def test_a_run_of_iemocap_s_size_is_summarised_at_once_and_always_alike(tmp_path):
    labels, generator = list("abcd"), np.random.default_rng(0)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"prediction_head": "label"}))
    probabilities = [f"probability_{head}{label}" for head in ("", "classifier_") for label in labels]
    for session in range(5):
        lines = [f"{HEADER},{','.join(probabilities)}"]
        for row in range(1106):
            by_label, by_classifier = generator.dirichlet(np.ones(4), size=2)
            chosen = [labels[by_label.argmax()], labels[by_classifier.argmax()]]
            cells = [f"{session}-{row}", f"{session}{'FM'[row % 2]}", labels[generator.integers(4)], *chosen]
            lines.append(",".join([*cells, *(f"{p:.9g}" for p in (*by_label, *by_classifier))]))
        (tmp_path / f"fold-{session}").mkdir()
        (tmp_path / f"fold-{session}" / "predictions.csv").write_text("\n".join(lines) + "\n")
    begun_s = time.process_time()
    results = summarise_run(tmp_path, labels)
    assert time.process_time() - begun_s < 2
    assert json.dumps(results) == json.dumps(summarise_run(tmp_path, labels))
    assert results["pooled"]["n"] == 5530 and results["pooled"]["num_speakers"] == 10


def test_a_file_that_is_cut_off_is_named(run_dir):
    path = run_dir / "fold-1" / "predictions.csv"
    path.write_text(path.read_text()[: -len(",b,b\n")])
    with pytest.raises(ValueError, match=r"fold-1.predictions\.csv: row 2 has not one cell for each column"):
        summarise_run(run_dir, ["a", "b"])


def test_an_utterance_tested_twice_is_an_error(run_dir):
    shutil.copytree(run_dir / "fold-2", run_dir / "fold-3")
    with pytest.raises(ValueError, match="'u3' was tested twice"):
        summarise_run(run_dir, ["a", "b"])


def test_a_file_that_is_no_predictions_is_named(run_dir):
    (run_dir / "fold-2" / "predictions.csv").write_text("id,label\nu3,a\n")
    with pytest.raises(ValueError, match=r"fold-2.predictions\.csv: the column 'speaker' is missing"):
        summarise_run(run_dir, ["a", "b"])


def test_the_readme_shows_clean_runs_only_and_what_follows_from_predictions(run_dir, tmp_path):
    results = tmp_path / "results" / "demo"
    shutil.copytree(run_dir, results, ignore=shutil.ignore_patterns("results"))
    (results / "results.json").write_text(json.dumps(summarise_run(run_dir, ["a", "b"])))
    (results / "recipe.yaml").write_text(yaml.safe_dump({"corpus": "c", "num_train_epochs": 2.0, "seed": 1}))
    environment = {"commit": "0123456789abcdef", "device": "a machine"}
    (results / "environment.json").write_text(json.dumps(environment))
    text = "before\n<!-- results: demo -->\nstale\n<!-- end of results -->\nafter\n"
    rendered = render(text, tmp_path / "results")
    assert rendered.startswith("before\n") and rendered.endswith("after\n") and "stale" not in rendered
    assert "| pooled | 4 | 75.0 [0.0, 100.0] |" in rendered and "commit `0123456789`" in rendered
    assert render(rendered, tmp_path / "results") == rendered

    (results / "environment.json").write_text(json.dumps({**environment, "commit": "0123-dirty"}))
    with pytest.raises(ValueError, match="uncommitted code"):
        render(text, tmp_path / "results")
    (results / "environment.json").write_text(json.dumps(environment))
    wrong = (results / "results.json").read_text().replace("0.75", "0.76")
    (results / "results.json").write_text(wrong)
    with pytest.raises(ValueError, match="does not follow from the predictions"):
        render(text, tmp_path / "results")

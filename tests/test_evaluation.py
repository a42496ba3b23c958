"""Scores equal hand counts and scikit-learn; a run's numbers follow from its predictions alone."""

import json
import shutil

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score

from lascl.evaluation import results_table, score, summarise_run
from lascl.evaluation.readme import render


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


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=60))
def test_wa_and_ua_equal_plain_counts(pairs):
    predictions, references = [p for p, _ in pairs], [r for _, r in pairs]
    scores = score(predictions, references, labels=range(5))
    recalls = []
    for label in sorted(set(references)):
        hits = [p == r for p, r in pairs if r == label]
        recalls.append(sum(hits) / len(hits))
    assert scores["wa"] == pytest.approx(sum(p == r for p, r in pairs) / len(pairs))
    assert scores["ua"] == pytest.approx(sum(recalls) / len(recalls))
    if set(predictions) <= set(references):  # scikit-learn warns otherwise
        assert scores["ua"] == pytest.approx(balanced_accuracy_score(references, predictions))
    assert sum(map(sum, scores["confusion"])) == len(pairs)


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
    assert "| pooled | 4 | 75.0 |" in rendered and "commit `0123456789`" in rendered
    assert render(rendered, tmp_path / "results") == rendered

    (results / "environment.json").write_text(json.dumps({**environment, "commit": "0123-dirty"}))
    with pytest.raises(ValueError, match="uncommitted code"):
        render(text, tmp_path / "results")
    (results / "environment.json").write_text(json.dumps(environment))
    wrong = (results / "results.json").read_text().replace("0.75", "0.76")
    (results / "results.json").write_text(wrong)
    with pytest.raises(ValueError, match="does not follow from the predictions"):
        render(text, tmp_path / "results")

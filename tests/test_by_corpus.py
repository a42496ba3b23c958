"""Scores by corpus: over its own words and over all, seen and unseen words apart, with errors over its own speakers."""

import json
import math

import numpy as np
import pytest
import yaml

from lascl.evaluation import results as results_module
from lascl.evaluation import results_table, summarise_run
from lascl.evaluation.compare import compare_runs
from lascl.evaluation.metrics import expected_calibration_error
from lascl.training.run_directory import write_csv


OWN = {"emo": ["anger", "boredom", "joy"], "rav": ["anger", "calm", "joy"], "one": ["joy", "sad"]}
WORDS = ["anger", "boredom", "calm", "joy", "sad"]
SPEAKERS = {"emo": "abcd", "rav": "efg", "one": "h"}


def rows_of(corpus, rng, trained, count=24):
    rows, own = [], OWN[corpus]
    for number in range(count):
        reference, speaker = own[number % len(own)], SPEAKERS[corpus][number // 3 % len(SPEAKERS[corpus])]
        logits = {word: rng.normal() + 1.2 * (word == reference) for word in WORDS}
        heads = {}
        for prefix, known in (("probability_", WORDS), ("probability_classifier_", trained)):
            total = sum(math.exp(logits[word]) for word in known)
            for word in WORDS:
                heads[f"{prefix}{word}"] = math.exp(logits[word]) / total if word in known else ""
            logits = {word: value + rng.normal() for word, value in logits.items()}
        known = [word for word in own if word in trained]
        rows.append(
            {
                "id": f"{corpus}/{number}",
                "speaker": f"{corpus}/{speaker}",
                "corpus": corpus,
                "reference": reference,
                "prediction": max(own, key=lambda word: heads[f"probability_{word}"]),
                "prediction_classifier": max(
                    known, key=lambda word: heads[f"probability_classifier_{word}"], default=""
                ),
                **heads,
            }
        )
    return rows


def write_run(folder, folds, head="label", protocol=None):
    for number, rows in folds.items():
        (folder / f"fold-{number}").mkdir(parents=True)
        write_csv(folder / f"fold-{number}" / "predictions.csv", rows)
    (folder / "recipe.yaml").write_text(yaml.safe_dump({"prediction_head": head}))
    (folder / "protocol.json").write_text(json.dumps({"own_words": OWN, "notes": [], **(protocol or {})}))
    return folder


@pytest.fixture(scope="module")
def left_out(tmp_path_factory):
    """Each corpus tested by a model of the two others."""
    rng, folds = np.random.default_rng(0), {}
    for number, corpus in enumerate(sorted(OWN), start=1):
        trained = sorted(set().union(*(words for name, words in OWN.items() if name != corpus)))
        folds[number] = rows_of(corpus, rng, trained)
    return folds


@pytest.fixture(scope="module")
def results(left_out, tmp_path_factory):
    folder = write_run(tmp_path_factory.mktemp("run") / "left-out", left_out)
    return json.loads(json.dumps(summarise_run(folder, WORDS)))


def slow_scores(rows, column):
    """WA, UA and macro-F1 in plain loops."""
    words = sorted({row["reference"] for row in rows})
    right = sum(row[column] == row["reference"] for row in rows)
    recalls, f1s = [], []
    for word in words:
        true = [row for row in rows if row["reference"] == word]
        hits = sum(row[column] == word for row in true)
        predicted = sum(row[column] == word for row in rows)
        recalls.append(hits / len(true))
        f1s.append(2 * hits / (len(true) + predicted))
    return right / len(rows), sum(recalls) / len(words), sum(f1s) / len(words)


def slow_errors(rows, column, names=3):
    """The deviation of each score over resamples of the speakers, one resample after another."""
    speakers = sorted({row["speaker"] for row in rows})
    if len(speakers) == 1:
        return [None] * names
    times = np.random.default_rng(0).multinomial(len(speakers), np.full(len(speakers), 1 / len(speakers)), size=2000)
    spoken = {speaker: [row for row in rows if row["speaker"] == speaker] for speaker in speakers}
    values = []
    for drawn in times:
        sample = [row for speaker, count in zip(speakers, drawn) for row in spoken[speaker] * count]
        values.append(slow_scores(sample, column))
    errors = np.std(values, axis=0, ddof=1) * math.sqrt(len(speakers) / (len(speakers) - 1))
    return [error if error > 1e-12 else None for error in errors[:names].tolist()]  # which chance cannot move


def with_answers_among_all_words(rows, head="label"):
    prefixes = {"prediction": {"label": "probability_"}.get(head, "probability_classifier_")}
    prefixes["prediction_classifier"] = "probability_classifier_"
    return [
        row
        | {
            column: max((word for word in WORDS if row[f"{prefix}{word}"] != ""), key=lambda w: row[f"{prefix}{w}"])
            for column, prefix in prefixes.items()
        }
        for row in rows
    ]


def assert_scores(found, rows, names=("wa", "ua", "macro_f1"), errors=True):
    for head, column in ((found, "prediction"), (found["classifier"], "prediction_classifier")):
        expected = dict(zip(("wa", "ua", "macro_f1"), slow_scores(rows, column)))
        assert {name: head[name] for name in names} == pytest.approx({name: expected[name] for name in names})
        if errors:
            wanted = dict(zip(("wa", "ua", "macro_f1"), slow_errors(rows, column)))
            for name in names:
                assert head["se"][name] == (wanted[name] and pytest.approx(wanted[name], abs=2e-6))


def test_each_corpus_is_scored_over_its_own_words_and_over_all(results, left_out):
    assert set(results.get("corpora", {})) == set(OWN), "no scores by corpus"
    for rows in left_out.values():
        corpus = rows[0]["corpus"]
        found = results["corpora"][corpus]
        assert found["labels"] == OWN[corpus] + ([""] if "" in found["labels"] else [])
        assert found["n"] == 24 and found["num_speakers"] == len(SPEAKERS[corpus])
        assert_scores(found, rows, errors=corpus != "rav")
        assert_scores(found["all_words"], with_answers_among_all_words(rows), errors=corpus == "rav")
        assert found["all_words"]["ua"] <= found["ua"] and found["all_words"]["wa"] <= found["wa"]


def test_words_that_nobody_trained_are_scored_apart(results, left_out):
    unseen = {"emo": ["boredom"], "rav": ["calm"], "one": ["sad"]}
    for rows in left_out.values():
        found = results["corpora"][rows[0]["corpus"]]
        for part, are_unseen in (("seen_words", False), ("unseen_words", True)):
            some = [row for row in rows if (row["reference"] in unseen[row["corpus"]]) == are_unseen]
            assert found[part]["n"] == len(some)
            assert found[part]["words"] == sorted({row["reference"] for row in some})
            assert_scores(found[part], some, ("wa", "ua"), errors=rows[0]["corpus"] == "emo")
        assert found["unseen_words"]["classifier"]["ua"] == 0  # which cannot answer them
        assert sum(found[part]["n"] for part in ("seen_words", "unseen_words")) == found["n"]


def test_intervals_and_calibration_are_of_the_corpus_s_own(results, left_out):
    for rows in left_out.values():
        corpus = rows[0]["corpus"]
        found, own = results["corpora"][corpus], OWN[corpus]
        assert (found["intervals"] is None) == (corpus == "one")
        if corpus != "one":
            low, high = found["intervals"]["ua"]
            assert low < found["ua"] < high
            assert (low + high) / 2 == pytest.approx(found["ua"], abs=1e-5) or low == 0 or high == 1
        shares = [[row[f"probability_{word}"] for word in own] for row in rows]
        shares = [[value / sum(row) for value in row] for row in shares]
        references = [own.index(row["reference"]) for row in rows]
        assert found["ece"] == pytest.approx(expected_calibration_error(np.array(shares), references))


def test_the_mean_over_corpora_has_the_error_of_a_mean_of_independent_numbers(results):
    mean, corpora = results["mean_over_corpora"], results["corpora"]
    for path in ((), ("classifier",), ("all_words",), ("unseen_words",), ("seen_words", "classifier")):
        parts, found = list(corpora.values()), mean
        for name in path:
            parts, found = [part[name] for part in parts], found[name]
        assert found["num_corpora"] == 3
        assert found["ua"] == pytest.approx(sum(part["ua"] for part in parts) / 3)
        assert found["se"]["ua"] is None  # one corpus has one speaker
    assert "macro_f1" not in mean["seen_words"] and "macro_f1" in mean["all_words"]


def test_the_error_of_the_mean(left_out, tmp_path):
    two = {number: rows for number, rows in left_out.items() if rows[0]["corpus"] != "one"}
    found = summarise_run(write_run(tmp_path / "run", two), WORDS)
    errors = [slow_errors(rows, "prediction")[1] for rows in two.values()]
    assert "mean_over_corpora" in found
    expected = math.sqrt(errors[0] ** 2 + errors[1] ** 2) / 2
    assert found["mean_over_corpora"]["se"]["ua"] == pytest.approx(expected, abs=2e-6)


def test_folds_score_the_words_of_what_they_test(results, left_out):
    for fold, rows in zip(results["folds"], left_out.values()):
        assert [label for label in fold["labels"] if label] == OWN[rows[0]["corpus"]]
        assert fold["corpora"] == [rows[0]["corpus"]]
        assert_scores(fold, rows, errors=False)
    assert [label for label in results["pooled"]["labels"] if label] == WORDS


def test_corpora_that_share_folds_are_scored_apart_and_have_no_unseen_words(tmp_path):
    rng = np.random.default_rng(1)
    folds = {1: rows_of("emo", rng, WORDS, 12) + rows_of("rav", rng, WORDS, 12), 2: rows_of("one", rng, WORDS, 8)}
    found = summarise_run(write_run(tmp_path / "run", folds), WORDS)
    assert list(found.get("corpora", ())) == ["emo", "one", "rav"]
    for corpus in OWN:
        rows = [row for fold in folds.values() for row in fold if row["corpus"] == corpus]
        assert_scores(found["corpora"][corpus], rows, errors=False)
        assert not {"seen_words", "unseen_words"} & found["corpora"][corpus].keys()
    assert found["folds"][0]["labels"] == ["anger", "boredom", "calm", "joy"]


def test_a_head_that_knows_none_of_a_corpus_s_words_is_never_right(tmp_path):
    rows = rows_of("emo", np.random.default_rng(2), ["calm", "sad"])
    for row in rows:
        row["prediction"] = row["prediction_classifier"]  # a run whose classifier answers
    assert {row["prediction"] for row in rows} == {""}
    message = ""
    try:
        found = summarise_run(write_run(tmp_path / "run", {1: rows}, head="classifier"), WORDS)
    except ValueError as error:
        message = str(error)
    assert message == ""
    emo = found["corpora"]["emo"]
    assert emo["wa"] == emo["ua"] == emo["classifier"]["ua"] == 0 and emo["labels"] == [*OWN["emo"], ""]
    assert np.array(emo["confusion"])[:, -1].tolist() == [8, 8, 8, 0] and "ece" not in emo
    again = summarise_run(tmp_path / "run", found["pooled"]["labels"])
    assert again == found


def test_without_a_protocol_a_corpus_s_words_are_those_that_occur(left_out, tmp_path):
    folder = write_run(tmp_path / "run", left_out)
    told = summarise_run(folder, WORDS)
    (folder / "protocol.json").unlink()
    assert summarise_run(folder, WORDS) == told and "corpora" in told


def test_the_table_has_a_row_a_corpus_and_marks_what_is_transductive(left_out, results, tmp_path):
    table = results_table(results)
    assert hasattr(results_module, "corpora_cells")
    head, rows, _ = results_module.corpora_cells(results)
    assert [row[0] for row in rows] == ["emo", "one", "rav", "mean over corpora"]
    assert all(len(row) == len(head) for row in rows)
    emo = dict(zip(head, rows[0]))
    assert emo["its words"] == "anger, boredom*, joy"
    for column, value in (
        ("UA", results["corpora"]["emo"]["ua"]),
        ("UA, all words", results["corpora"]["emo"]["all_words"]["ua"]),
    ):
        assert emo[column].startswith(f"{100 * value:.1f} [") and emo[column] in table
    assert "| 1 (emo) | 24 |" in table and "pooled" not in table  # a mean over classes of several corpora
    assert "not of other corpora" in table and "Transductive" not in table
    told = summarise_run(write_run(tmp_path / "run", left_out, protocol={"transductive": True}), WORDS)
    assert told["transductive"] is True and "Transductive: unlabelled audio of the tested side" in results_table(told)


def test_one_corpus_has_no_scores_by_corpus(tmp_path):
    rows = [
        {name: value for name, value in row.items() if name != "corpus"}
        for row in rows_of("emo", np.random.default_rng(3), WORDS)
    ]
    found = summarise_run(write_run(tmp_path / "run", {1: rows}), WORDS)
    assert not {"corpora", "mean_over_corpora", "transductive"} & found.keys()
    assert results_module.corpora_cells(found) is None


def test_runs_over_several_corpora_are_compared_over_own_words(left_out, tmp_path):
    """The label head's answers are in the run whose classifier predicts only as probabilities."""
    a = write_run(tmp_path / "a", left_out)
    swapped = {
        number: [row | {"prediction": row["prediction_classifier"]} for row in rows]
        for number, rows in left_out.items()
    }
    b = write_run(tmp_path / "b", swapped, head="classifier")
    assert compare_runs(a, b, head="label")["wa"]["difference"] == 0
    rows = [row for fold in left_out.values() for row in fold]
    found = compare_runs(a, b)
    assert found["wa"]["a"] == pytest.approx(slow_scores(rows, "prediction")[0])
    assert compare_runs(a, b, head="label")["wa"]["a"] == found["wa"]["a"]

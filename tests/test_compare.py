"""Comparing runs: right under no difference, able to find one, and plain in words and in what it refuses."""

import csv
import json

import numpy as np
import pytest

from lascl.evaluation import speaker_interval
from lascl.evaluation.compare import compare_runs, main, paired_difference
from lascl.evaluation.metrics import SCORES


def simulated_pair(generator, num_speakers, advantage=0.0, utterances=60):
    """(S, 2, 2, 2) counts of two runs: voices are hard for both, and each run has voices that it likes better."""
    common = generator.standard_normal((num_speakers, 1, 1))
    own = 0.4 * generator.standard_normal((num_speakers, 2, 1))
    logit = 0.8 + common + own + np.array([0, advantage])[:, None] + np.array([0.3, -0.3])
    right = generator.binomial(utterances, 1 / (1 + np.exp(-logit)))  # (S, run, class)
    wrong = utterances - right
    return np.stack([[right[..., 0], wrong[..., 0]], [wrong[..., 1], right[..., 1]]]).transpose(2, 3, 0, 1)


@pytest.mark.parametrize("num_speakers", [6, 12])
def test_p_is_small_as_often_as_it_says_when_nothing_differs(num_speakers):
    generator, num_pairs = np.random.default_rng(0), 500
    false_alarms = np.zeros(len(SCORES))
    for _ in range(num_pairs):
        difference, intervals, p = paired_difference(simulated_pair(generator, num_speakers))
        false_alarms += np.array(p) < 0.05
        for value, (low, high), one_p in zip(difference, intervals, p):
            assert low <= value <= high and (low <= 0 <= high) == (one_p >= 0.05)
    assert np.all((0.02 <= false_alarms / num_pairs) & (false_alarms / num_pairs <= 0.08))


def test_a_real_difference_is_found_though_speakers_differ_more_than_runs():
    generator, num_pairs = np.random.default_rng(1), 100
    found = found_unpaired = 0
    for _ in range(num_pairs):
        counts = simulated_pair(generator, 12, advantage=0.8)  # speakers: standard deviation 1
        difference, intervals, p = (values[SCORES.index("ua")] for values in paired_difference(counts))
        found += difference > 0 and intervals[0] > 0 and p < 0.05
        (_, high_a), (low_b, _) = (speaker_interval(counts[:, run])[SCORES.index("ua")] for run in (0, 1))
        found_unpaired += high_a < low_b
    assert found / num_pairs > 0.9 and found_unpaired / num_pairs < 0.5


def test_speakers_who_all_differ_alike_give_a_difference_and_no_p():
    one = np.array([[[8, 2], [2, 8]], [[9, 1], [1, 9]]])
    for counts in (np.tile(one, (4, 1, 1, 1)), one[None]):
        difference, intervals, p = paired_difference(counts)
        assert difference == pytest.approx([0.1] * 3) and intervals == p == [None] * 3
    same = np.tile(one[:1], (4, 2, 1, 1))
    difference, intervals, p = paired_difference(same)
    assert difference.tolist() == [0] * 3 and intervals == [[0, 0]] * 3 and p == [1] * 3


LABELS = ("calm", "joy")


def write_run(folder, rows):
    """A run of two folds; rows are (id, speaker, reference, probability of joy of the label head, of the other)."""
    for fold, part in ((1, rows[::2]), (2, rows[1::2])):
        path = folder / f"fold-{fold}" / "predictions.csv"
        path.parent.mkdir(parents=True)
        with open(path, "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            heads = ("probability_", "probability_classifier_")
            columns = ["id", "speaker", "reference", "prediction", "prediction_classifier"]
            writer.writerow([*columns, *(head + label for head in heads for label in LABELS)])
            for id, speaker, reference, *joy in part:
                chosen = [LABELS[p > 0.5] for p in joy]
                writer.writerow([id, speaker, reference, *chosen, *(q for p in joy for q in (1 - p, p))])
    return folder


def simulated_rows(generator, right_a, right_b):
    """Rows of two runs on the same 480 utterances, right with these probabilities; the classifier is always right."""
    runs = [], []
    for number in range(480):
        speaker, reference = f"s{number % 8}", LABELS[number // 8 % 2]
        sure = 0.9 if reference == "joy" else 0.1
        for rows, accuracy in zip(runs, (right_a, right_b)):
            joy = sure if generator.random() < accuracy else 1 - sure
            rows.append((f"u{number}", speaker, reference, joy, sure))
    return runs


@pytest.fixture
def runs(tmp_path):
    rows_a, rows_b = simulated_rows(np.random.default_rng(2), 0.6, 0.9)
    return write_run(tmp_path / "a", rows_a), write_run(tmp_path / "b", rows_b[::-1])


def test_the_answer_in_words(runs, capsys):
    a, b = map(str, runs)
    result = compare_runs(a, b)
    assert result["num_utterances"] == 480 and result["num_speakers"] == 8
    difference = result["ua"]["b"] - result["ua"]["a"]
    assert result["ua"]["difference"] == pytest.approx(difference) and difference == pytest.approx(0.3, abs=0.06)
    low, high = result["ua"]["interval"]
    assert 0 < low < difference < high and result["ua"]["p"] < 0.001
    main([a, b])
    printed = capsys.readouterr().out
    assert f"UA: B is better than A by {100 * difference:.1f} points" in printed and "p < 0.001" in printed
    main([b, a])
    assert f"UA: B is worse than A by {100 * difference:.1f} points" in capsys.readouterr().out
    main([a, a])
    assert "WA: A and B score the same" in capsys.readouterr().out
    main([a, b, "--head", "classifier", "--json"])
    exact = json.loads(capsys.readouterr().out)
    assert exact["head"] == "classifier" and exact["wa"]["a"] == exact["wa"]["b"] == 1 and exact["wa"]["p"] == 1
    by_label = compare_runs(a, b, head="label")
    assert by_label["ua"] == result["ua"]  # here the model's own head


def test_a_difference_that_may_be_chance_is_called_so(tmp_path, capsys):
    rows_a, rows_b = simulated_rows(np.random.default_rng(3), 0.7, 0.7)
    a, b = write_run(tmp_path / "a", rows_a), write_run(tmp_path / "b", rows_b)
    assert compare_runs(a, b)["ua"]["p"] > 0.05
    main([str(a), str(b)])
    assert "UA: no difference is shown, nor that there is none: B - A is" in capsys.readouterr().out


def refusal(argv, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in argv])
    captured = capsys.readouterr()
    assert stopped.value.code == 2 and captured.out == "" and captured.err.count("\n") == 1
    return captured.err


def test_what_cannot_be_compared_is_refused_in_a_sentence(runs, tmp_path, capsys):
    a, b = runs
    assert "is not a run directory" in refusal([a, tmp_path / "nowhere"], capsys)
    rows, _ = simulated_rows(np.random.default_rng(2), 0.6, 0.9)
    part = write_run(tmp_path / "part", rows[:400])
    assert "400 are in both, of 480 in" in refusal([a, part], capsys)
    assert "Give --common" in refusal([part, a], capsys)
    assert compare_runs(a, part, common=True)["num_utterances"] == 400
    others = write_run(tmp_path / "others", [(f"x{row[0]}", *row[1:]) for row in rows])
    assert "0 are in both" in refusal([a, others, "--common"], capsys)
    swapped = write_run(tmp_path / "swapped", [(*row[:2], "joy", *row[3:]) for row in rows])
    assert "240 of 480 utterances have another reference" in refusal([a, swapped], capsys)
    renamed = write_run(tmp_path / "speakers", [(row[0], "s0", *row[2:]) for row in rows])
    assert "420 of 480 utterances have another speaker" in refusal([a, renamed], capsys)
    for path in b.glob("fold-*/predictions.csv"):
        header, _, rest = path.read_text().partition("\n")
        path.write_text(header.replace("_calm", "_grief") + "\n" + rest)
    assert "different labels: calm, joy in" in refusal([a, b], capsys)
    for path in a.glob("fold-*/predictions.csv"):
        path.write_text("".join(",".join(line.split(",")[:5]) + "\n" for line in path.read_text().splitlines()))
    assert "has no probabilities of the label head" in refusal([a, a, "--head", "label"], capsys)
    assert compare_runs(a, a)["ua"]["p"] == 1
    with pytest.raises(ValueError, match="Choose one of model, label, classifier"):
        compare_runs(a, a, head="both")


def outcome(arguments, capsys):
    """Exit code, output and errors of the command."""
    code = 0
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as exit:
        code = exit.code
    return (code, *capsys.readouterr())


def rows_of_six():
    return [(f"u{n}", f"s{n % 3}", LABELS[n % 2], 0.9 if n % 2 else 0.2, 0.5) for n in range(6)]


@pytest.mark.parametrize(
    "columns", ["id,speaker,reference,prediction", "id,prediction", "id,probability_calm,probability_joy"]
)
def test_a_file_that_any_system_wrote_is_compared_with_a_run(tmp_path, capsys, columns):
    write_run(tmp_path / "run", rows_of_six())
    own = tmp_path / "mine.csv"
    with open(own, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns.split(","), extrasaction="ignore")
        writer.writeheader()
        for id, speaker, reference, *_ in reversed(rows_of_six()):
            said = "calm" if id == "u1" else reference  # one wrong, of s1
            chances = {f"probability_{label}": float(label == said) for label in LABELS}
            writer.writerow({"id": id, "speaker": speaker, "reference": reference, "prediction": said, **chances})
    code, out, err = outcome([tmp_path / "run", own, "--json"], capsys)
    assert code == 0, err
    found = json.loads(out)
    assert found["wa"]["a"] == 1 and found["wa"]["b"] == pytest.approx(5 / 6)
    assert found["num_utterances"] == 6 and found["num_speakers"] == 3
    code, out, _ = outcome([own, tmp_path / "run"], capsys)
    assert code == 0 and "| WA | 83.3 | 100.0 | +16.7 |" in out


@pytest.mark.parametrize(
    "text, words",
    [
        ("id,prediction\nu0,calm\nx9,joy\n", "'x9' is in {own} alone"),
        ("id,prediction\nu0,calm\nx9,joy\n", "'u2' is in {run} alone"),
        ("name,prediction\nu0,calm\n", "must have the columns id and prediction"),
        ("id,prediction\nu0,calm\nu0,joy\n", "'u0' stands in two rows"),
        ("id,prediction\nu0\n", "row 1 has not one cell for each column"),
        ("id,probability_calm\nu0,much\n", "row 1 has a probability that is no number"),
        ("id,prediction\n", "holds no row"),
        ("", "found nothing"),
    ],
)
def test_a_file_of_ones_own_that_does_not_fit_costs_one_sentence(tmp_path, capsys, text, words):
    write_run(tmp_path / "run", rows_of_six())
    own = tmp_path / "mine.csv"
    own.write_text(text)
    code, _, err = outcome([tmp_path / "run", own], capsys)
    assert code == 2 and words.format(own=own, run=tmp_path / "run") in err and err.count("\n") == 1, err


def test_a_file_without_what_neither_side_knows_is_refused(tmp_path, capsys):
    for name in ("a.csv", "b.csv"):
        (tmp_path / name).write_text("id,reference,prediction\nu0,calm,joy\n")
    code, _, err = outcome([tmp_path / "a.csv", tmp_path / "b.csv"], capsys)
    assert code == 2 and "the column speaker" in err
    code, _, err = outcome([tmp_path / "a.csv", tmp_path / "b.csv", "--head", "classifier"], capsys)
    assert code == 2

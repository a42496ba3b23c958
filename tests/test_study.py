"""Studies: variants as runs of their own, one table, a paired test, shares of the work, and what may go wrong."""

import csv
import errno
import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import recall_score
from tiny import read_csv

from lascl import train
from lascl.console import in_words
from lascl.evaluation.compare import compare_runs
from lascl.studies.figures import geometry
from lascl.studies.plan import Study, as_options, plan_runs, read_corpora, read_variants, shard_of
from lascl.studies.tables import compare_seeds, folder_name, study_table, summarise_study
from lascl.study import main


@pytest.fixture(scope="module")
def recipe(emodb_like, audio_encoders, text_encoder):
    return [
        "emodb",
        *("--data_dir", str(emodb_like), "--allow_partial", "true", "--folds", "1", "--disable_tqdm", "true"),
        *("--audio_encoder", audio_encoders["wav2vec2-layer"], "--text_encoder", text_encoder),
        *("--num_train_epochs", "1", "--global_batch_size", "14", "--augmentation", "none"),
    ]


@pytest.fixture
def without_reports(monkeypatch):
    """The report of a run is drawn elsewhere, and takes seconds."""
    monkeypatch.setattr(train, "write_report", lambda run_dir, _: (run_dir / "report.md").write_text(""))


@pytest.mark.slow
def test_baselines_are_set_side_by_side(recipe, tmp_path, capsys, monkeypatch, without_reports):
    monkeypatch.setattr("lascl.studies.run.write_pairs", lambda *where: "(pairs)")  # drawn in test_a_study_s_file
    study = [*recipe, "--vary", "objective=ce,lascl", "--output_dir", str(tmp_path / "study")]
    main(study)
    names = ["objective=ce", "objective=lascl"]
    results = json.loads((tmp_path / "study" / "study.json").read_text())
    assert [variant["name"] for variant in results["variants"]] == names
    for name, variant in zip(names, results["variants"], strict=True):
        rows = read_csv(tmp_path / "study" / name / "seed-42" / "fold-1" / "predictions.csv")
        ua = recall_score([r["reference"] for r in rows], [r["prediction"] for r in rows], average="macro")
        assert variant["ua"]["by_seed"] == pytest.approx([ua]) and variant["ua"]["std"] == 0
        column = "prediction" if name == "objective=lascl" else "prediction_classifier"
        assert [row["prediction"] for row in rows] == [row[column] for row in rows]
    first, second = results["variants"]
    assert first["comparison"] is None
    assert second["comparison"]["num_utterances"] == 14 and second["comparison"]["num_speakers"] == 2
    difference = second["ua"]["mean"] - first["ua"]["mean"]
    assert second["comparison"]["ua"]["difference"] == pytest.approx(difference)
    table = (tmp_path / "study" / "table.md").read_text()
    assert all(f"| {name} | " in table for name in names)
    assert "* objective=lascl (B), objective=ce (A): UA: " in table and "Corpus: emodb. No speaker is on two" in table
    printed = capsys.readouterr().out
    shown = "\n".join(line for line in table.splitlines() if line)  # a log in a file has no blank lines
    assert shown in printed and "(pairs)" in table
    assert "## 0 of 2 folds done: objective=ce, seed 42, fold 1" in printed
    assert "## 1 of 2 folds done, about " in printed

    main([*study, "--seeds", "42,43", "--max_hours", "0"])
    assert "0 hours are over, 2 of 2 folds are left." in capsys.readouterr().out
    table = tmp_path / "study" / "table.md"
    assert "* objective=lascl, seed 43: 0 of 1 folds" not in table.read_text()  # no variant has both: the old one stays
    main([*study, "--seeds", "42,43"])
    assert capsys.readouterr().out.count("seed 43, fold 1\n") == 2
    results = json.loads((tmp_path / "study" / "study.json").read_text())
    assert all(len(variant["wa"]["by_seed"]) == 2 for variant in results["variants"])
    assert "Mean ± standard deviation over the seeds 42, 43" in table.read_text()

    with pytest.raises(SystemExit):
        main([*study, "--num_train_epochs", "2"])
    error = capsys.readouterr().err
    refusal = "holds a run of another recipe; different are: num_train_epochs (1.0 there, 2.0 here)"
    assert error.count(refusal) == 2 == error.count("\n")


@pytest.mark.parametrize("validation", ["none", "speaker"])
def test_the_seeds_of_a_study_test_the_same_utterances(recipe, own_corpus, tmp_path, validation):
    """Or a mean over seeds would be one over test sets. `split_seed` draws others."""

    def folds(**fields):
        study = Study("mine", "csv", fields | {"validation": validation}, {"a": {}}, [42, 43, 44], "a")
        typed = ["--data_dir", str(own_corpus), "--num_folds", "3", *recipe[7:]]
        runs = plan_runs(study, typed, tmp_path)
        read_corpora(runs)
        assert [run.failure for run in runs] == [None] * 3
        return [run.folds for run in runs]

    assert folds()[0] == folds()[1] == folds()[2]
    assert folds()[0] != folds(split_seed=7)[0]


def test_a_variant_that_fails_loses_no_other(recipe, tmp_path, capsys, monkeypatch, without_reports):
    real = train.train_fold

    def breaks(recipe, *rest):
        if recipe.label_template == "bad {label}":
            raise RuntimeError("the dog ate it")
        return real(recipe, *rest)

    monkeypatch.setattr(train, "train_fold", breaks)
    study = [*recipe, "--output_dir", str(tmp_path / "study")]
    with pytest.raises(SystemExit) as stopped:
        main([*study, "--vary", "label_template=bad {label},{label}"])
    captured = capsys.readouterr()
    assert stopped.value.code == 2
    assert "lascl-study: label_template=bad {label}, seed 42: the dog ate it\n" in captured.err
    table = (tmp_path / "study" / "table.md").read_text()
    assert "| label_template={label} | " in table and "* label_template=bad {label}, seed 42: 0 of 1 folds" in table
    assert "give the same command again for what is left" in captured.out


def test_a_full_disk_ends_a_study_in_train_py_s_sentence(recipe, tmp_path, capsys, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(train, "train_fold", full)
    folder = tmp_path / "study"
    with pytest.raises(SystemExit) as stopped:
        main([*recipe, "--vary", "objective=ce,lascl", "--output_dir", str(folder)])
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.count("\n") == 1
    assert error.startswith(f"lascl-study: a file in {folder} could not be written: the disk is full (")


def test_a_corpus_that_cannot_be_read_is_said_once(recipe, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(
            [*recipe, "--data_dir", str(tmp_path / "x"), "--vary", "objective=ce,lascl", "--output_dir", str(tmp_path)]
        )
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.count("\n") == 1
    assert error.startswith("lascl-study: 2 runs, objective=ce, seed 42 the first: ") and str(tmp_path / "x") in error


def test_a_dry_run_of_a_plain_recipe_is_of_one_training(recipe, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    try:
        main([*recipe, "--dry_run"])
    except SystemExit as exit:
        pytest.fail(f"exit {exit.code}: {capsys.readouterr().err}")
    assert "* as it is, seed 42: 0 of 1 folds done, about " in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_measures_and_writes_nothing(recipe, tmp_path, capsys):
    main([*recipe, "--vary", "objective=ce,lascl", "--output_dir", str(tmp_path / "study"), "--dry_run"])
    printed = capsys.readouterr().out
    assert not (tmp_path / "study").exists()
    assert "* objective=ce, seed 42: 0 of 1 folds done, about " in printed and "2 of 2 folds to run." in printed
    assert "from one step of 2 utterances" in printed and "On other machines: not measured." in printed
    assert "Disk: 0.0 GB kept" in printed and "Encoders, in a folder: " in printed
    options = ["--vary", "audio_encoder=org/not-here", "--output_dir", str(tmp_path / "study"), "--dry_run"]
    without_encoder = [part for part in recipe if part != "--audio_encoder" and "wav2vec2-layer" not in part]
    main([*without_encoder, *options])
    printed = capsys.readouterr().out
    assert "time not measured: org/not-here is not cached" in printed and "Encoders, not cached" in printed


@pytest.mark.slow
def test_a_study_s_file(tmp_path, recipe, capsys, without_reports):
    """Names that no folder takes, fields for all, a paper's numbers, rows that only the paper has."""
    path = tmp_path / "mine.yaml"
    content = {"variants": {"CE": {"objective": "ce"}, "w/o L: {λ}": {"divergence_weight": 0}, "Full": {}}}
    content |= {"recipe": "emodb", "seeds": [7], "against": "Full", "paper": {"Full": [77.79, 78.42], "A": [None, 70]}}
    path.write_text(yaml.safe_dump({"projection_dim": 8, "study": content}, sort_keys=False))
    main([str(path), *recipe[1:], "--output_dir", str(tmp_path / "study")])
    folders = {"CE", "w_o_L_λ", "Full"}
    assert {p.parent.parent.parent.name for p in (tmp_path / "study").glob("*/seed-7/fold-1/metrics.json")} == folders
    used = yaml.safe_load((tmp_path / "study" / "CE" / "seed-7" / "recipe.yaml").read_text())
    assert (used["projection_dim"], used["objective"], used["seed"]) == (8, "ce", 7)
    table = (tmp_path / "study" / "table.md").read_text()
    header = [cell.strip() for cell in table.splitlines()[0].strip("|").split("|")]
    assert header[4:6] == ["paper, IEMOCAP: WA / UA", "UA against Full, points"]
    assert "| A |  |  |  | - / 70.00 |  |  |" in table and "77.79 / 78.42 |  |  |" in table
    assert "* w/o L: {λ} (B), Full (A): " in table
    figures = tmp_path / "study" / "figures"
    assert sorted(path.name for path in figures.iterdir()) == ["confusion_pair.png", "tsne_pair.png"]
    assert "(a) CE: Confusion matrix" in table and "| Full, the fold of the map | " in table

    for typed, message in (
        (["--divergence_weight", "1"], "mine varies divergence_weight: leave --divergence_weight out"),
        (["--seed", "1"], "give --seeds"),
        (["--vary", "objective=ce"], "--vary belongs to a plain recipe"),
        (["--shard", "3/2"], "--shard wants I/N"),
        (["--push_to_hub", "true", "--hub_model_id", "o/n"], "lascl-publish"),
    ):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main([str(path), *recipe[1:], "--output_dir", str(tmp_path / "study"), *typed])
        error = capsys.readouterr().err
        assert stopped.value.code == 2 and message in error and error.count("\n") == 1, error


@pytest.mark.parametrize(
    "told, message",
    [
        ({}, "study must say its variants"),
        ({"variants": {"a": {}}, "sedes": [1]}, "study has no key 'sedes'"),
        ({"variants": {"a": {}}, "against": "b"}, "against must be one of the variants a; found 'b'"),
        ({"variants": {"a": {}}, "choose": "test"}, "never the test"),
        ({"variants": {"a": {}}, "choose": "validation"}, "validation cannot be none"),
        ({"variants": {"a/b": {}, "A b": {}}}, "'a/b' and 'A b' would share a folder"),
        ({"variants": {"a": {}}, "seeds": "42"}, "seeds must be a list of numbers"),
        ({"variants": {"a": {"objektive": "ce"}}}, "a: There is no field 'objektive'; did you mean 'objective'?"),
    ],
)
def test_a_wrong_file_is_said_in_a_sentence(told, message, tmp_path, capsys):
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"study": told}, sort_keys=False))
    with pytest.raises(SystemExit) as stopped:
        main([str(tmp_path / "mine.yaml"), "--output_dir", str(tmp_path / "study")])
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and message in error and error.count("\n") == 1, error


@pytest.mark.parametrize(
    "options, message",
    [
        (["--vary", "objective"], "--vary wants FIELD=A,B,C; found 'objective'"),
        (["--vary", "objective=ce,ce"], "The variant objective=ce is given twice"),
        (["--vary", "objective=ce,tripletloss"], "objective must be one of lascl, supcon, ce; found 'tripletloss'"),
        (["--vary", "objektive=ce"], "did you mean 'objective'?"),
        (["--vary", "objective=ce", "--seeds", "many"], "many"),
        ([], "emodb is a plain recipe: say what differs"),
    ],
)
def test_a_wrong_variant_is_said_before_anything_is_trained(recipe, tmp_path, capsys, options, message):
    with pytest.raises(SystemExit) as exit:
        main([*recipe, *options, "--output_dir", str(tmp_path / "study")])
    error = capsys.readouterr().err
    assert exit.value.code == 2 and message in error and error.count("\n") == 1
    assert not list((tmp_path / "study").glob("*/*/fold-*"))


def test_variants_are_all_pairs_with_names_that_are_folders():
    variants = read_variants(["audio_encoder=org/a,org/b", "objective=ce,lascl"])
    assert [folder_name(name) for name in variants] == [
        f"audio_encoder=org_{encoder},objective={objective}" for encoder in "ab" for objective in ("ce", "lascl")
    ]
    assert variants["audio_encoder=org/b,objective=ce"] == {"audio_encoder": "org/b", "objective": "ce"}
    assert as_options({"label_anchors": False, "divergence_weight": 0, "audio_encoder": {"a": 1}}) == [
        *("--label_anchors", "false", "--divergence_weight", "0", "--audio_encoder", '{"a": 1}')
    ]


@given(st.text(max_size=40))
def test_a_variant_s_folder_is_one_folder_below_the_study(name):
    path = Path("study") / folder_name(name)
    assert path.parent == Path("study") and path.name not in ("", ".", "..") and not path.name.startswith(".")
    assert not set(path.name) & set('/\\:*?"<>| \n\0')


@given(st.integers(1, 9), st.integers(1, 12), st.integers(1, 10))
def test_shards_share_all_folds_and_evenly_so(num_runs, num_folds, parts):
    shares = [
        {fold for fold in product(range(num_runs), range(1, num_folds + 1)) if shard_of(*fold, parts) == part}
        for part in range(1, parts + 1)
    ]
    assert sum(map(len, shares)) == num_runs * num_folds == len(set().union(*shares))
    for index in range(num_runs):  # of each run, whatever the others are
        of_run = [sum(run == index for run, _ in share) for share in shares]
        assert max(of_run) - min(of_run) <= 1


LABELS = ("calm", "joy")


def write_variant(study, name, right, seeds=(1, 2, 3), num_speakers=8):
    """Runs whose predictions are right with this probability, drawn anew for each seed; the same utterances."""
    for seed in seeds:
        rng = np.random.default_rng([seed, int(1000 * right)])
        fold = study / name / f"seed-{seed}" / "fold-1"
        fold.mkdir(parents=True)
        rows = []
        for number in range(40 * num_speakers):
            reference = LABELS[number // num_speakers % 4 == 0]  # one in four is joy
            other = LABELS[reference == "calm"]
            prediction = reference if rng.random() < right else other
            rows.append((f"u{number:03d}", f"s{number % num_speakers}", reference, prediction, prediction))
        with open(fold / "predictions.csv", "w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("id", "speaker", "reference", "prediction", "prediction_classifier"), *rows])
        results = train.summarise_run(fold.parent, list(LABELS))
        (fold.parent / "results.json").write_text(json.dumps(results))
        (fold.parent / "recipe.yaml").write_text("corpus: emodb\n")
    return [study / name / f"seed-{seed}" for seed in seeds]


def scores_by_seed(runs):
    tables = [read_csv(run / "fold-1" / "predictions.csv") for run in runs]
    columns = [([r["reference"] for r in rows], [r["prediction"] for r in rows]) for rows in tables]
    return [recall_score(*pair, average="macro") for pair in columns], [np.mean(np.equal(*pair)) for pair in columns]


def test_seeds_are_averaged_before_speakers_are_resampled(tmp_path):
    a, b = write_variant(tmp_path, "a", 0.7), write_variant(tmp_path, "b", 0.8)
    result = compare_seeds(a, b)
    (ua_a, wa_a), (ua_b, wa_b) = scores_by_seed(a), scores_by_seed(b)
    assert result["ua"]["difference"] == pytest.approx(np.mean(ua_b) - np.mean(ua_a))
    assert result["wa"]["difference"] == pytest.approx(np.mean(wa_b) - np.mean(wa_a))
    assert result["ua"]["a"] == pytest.approx(np.mean(ua_a))
    # Seeds that agree are no evidence beyond one of them: neither the interval nor p may shrink.
    one, thrice = compare_runs(a[0], b[0]), compare_seeds([a[0]] * 3, [b[0]] * 3)
    for score in ("wa", "ua", "macro_f1"):
        assert thrice[score]["difference"] == pytest.approx(one[score]["difference"])
        assert thrice[score]["interval"] == pytest.approx(one[score]["interval"])
        assert thrice[score]["p"] == pytest.approx(one[score]["p"])

    results = summarise_study(tmp_path, ["a", "b"], [1, 2, 3], against="b", paper={"b": [80, None]})
    first, second = results["variants"]
    assert first["ua"]["mean"] == pytest.approx(np.mean(ua_a)) and second["comparison"] is None
    assert first["ua"]["std"] == pytest.approx(np.std(ua_a, ddof=1))
    assert first["comparison"]["ua"]["difference"] == pytest.approx(-result["ua"]["difference"])
    low, high = first["intervals"]["ua"]
    assert low < np.mean(ua_a) < high
    table = study_table(results)
    assert (
        f"| a | {100 * np.mean(wa_a):.1f} ± {100 * np.std(wa_a, ddof=1):.1f} [" in table
        and "80.00 / - |  |  |" in table
    )
    same = summarise_study(tmp_path, ["a"], [1])["variants"][0]["intervals"]
    assert same == json.loads((a[0] / "results.json").read_text())["pooled"]["intervals"]


def test_variants_that_tested_other_utterances_are_not_compared(tmp_path):
    write_variant(tmp_path, "a", 0.7, seeds=(1,))
    write_variant(tmp_path, "b", 0.8, seeds=(1,), num_speakers=4)
    results = summarise_study(tmp_path, ["a", "b"], [1])
    assert "tested different utterances" in results["variants"][1]["comparison"]["refused"]
    assert "| - | - |" in study_table(results)


def test_geometry_of_points_whose_answer_is_known():
    class Run:
        """Two clusters, at right angles, each at its own label but for one utterance in four."""

        has_label_space = True
        embeddings = {
            1: {
                "ids": np.array(list("abcdefgh")),
                "audio_embeds": np.array([[1.0, 0.0]] * 4 + [[0.0, 1.0]] * 4),
                "labels": np.array(LABELS),
                "label_embeds": np.eye(2),
            }
        }
        predictions = {1: [{"id": id, "reference": LABELS[id in "efgh"]} for id in "abcdefgh"]}

    found = geometry(Run, 1)
    assert found == pytest.approx({"silhouette": 1, "own_label": 1, "other_label": 0, "nearest_is_own": 1})
    Run.predictions = {1: [{"id": id, "reference": LABELS[id in "defg"]} for id in "abcdefgh"]}  # two are swapped
    found = geometry(Run, 1)
    # Right ones (3 a side): 1/3 to their own, 3/4 to the others; swapped ones: 1 to their own, 1/4 to the others.
    right, swapped = (3 / 4 - 1 / 3) / (3 / 4), (1 / 4 - 1) / 1
    assert found["silhouette"] == pytest.approx((6 * right + 2 * swapped) / 8)
    assert found["nearest_is_own"] == found["own_label"] == pytest.approx(6 / 8)
    Run.has_label_space = False
    assert geometry(Run, 1)["nearest_is_own"] is None


def test_durations_in_words():
    assert [in_words(s) for s in (12.4, 300, 5400, 9300)] == ["12 s", "5 min", "1 h 30 min", "2 h 35 min"]

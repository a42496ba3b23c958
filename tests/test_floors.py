"""Floors of a study: logistic regression on the folds, states and statistics that its runs have, corpus by corpus."""

import json

import numpy as np
import pytest
import torch
import yaml
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import confusion_matrix, recall_score
from tiny import read_csv
from transformers import AutoFeatureExtractor

from lascl import LaSCLForAudioClassification, load_corpus, train
from lascl.data import read_audio
from lascl.evaluation.results import read_run, summarise_run
from lascl.studies.corpora import corpora_table, difference_over_corpora, summarise_corpora
from lascl.studies.floors import floor_runs
from lascl.studies.plan import PlannedRun, Study
from lascl.study import main
from lascl.training.recipe import Recipe


@pytest.fixture(scope="module")
def study(three_corpora, audio_encoders, text_encoder, tmp_path_factory):
    """Two variants of one seed over three corpora of a few utterances, whose words differ; the encoder is frozen."""
    folder = tmp_path_factory.mktemp("floors")
    content = {
        "study": {
            "recipe": "emodb",
            "seeds": [42, 43],
            "against": "training",
            "floors": ["logistic_regression"],
            "variants": {"training": {"standardise_audio": "training"}, "corpus": {"standardise_audio": "corpus"}},
        }
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "write_report", lambda run_dir, _: (run_dir / "report.md").write_text(""))
        main(
            [
                *(str(folder / "tiny.yaml"), "--corpora", json.dumps(three_corpora), "--allow_partial", "true"),
                *("--audio_encoder", audio_encoders["wav2vec2-layer"], "--text_encoder", text_encoder),
                *("--num_train_epochs", "1", "--global_batch_size", "16", "--augmentation", "none"),
                *("--freeze_audio_encoder", "true", "--views_dir", str(folder / "views"), "--disable_tqdm", "true"),
                *("--output_dir", str(folder / "study")),
            ]
        )
    return folder / "study"


def heard_alone(checkpoint, paths) -> np.ndarray:
    """(n, d_a) of each clip by itself, as the checkpoint's encoder pools it, before anything is standardised."""
    model = LaSCLForAudioClassification.from_pretrained(checkpoint, standardise_audio="none").eval()
    model.lascl.takes_odd_audio = True
    extractor = AutoFeatureExtractor.from_pretrained(checkpoint)
    rows = []
    for path in paths:
        samples = read_audio(path, sampling_rate=16_000, max_duration_s=10.0)
        with torch.no_grad():
            inputs = extractor(samples, sampling_rate=16_000, return_tensors="pt")
            rows.append(model.lascl(**inputs).pooled_audio[0].numpy())
    return np.stack(rows)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["training", "corpus"])
def test_it_learns_the_words_of_the_tested_corpus_from_the_others(study, three_corpora, mode):
    """Against scikit-learn on what the encoder makes of each clip alone, standardised here."""
    tables = {
        entry.get("name", "emodb"): load_corpus(entry["corpus"], entry["data_dir"], allow_partial=True)
        for entry in three_corpora
    }
    run = study / "training" / "seed-42"
    x, label, owner, ids = [], [], [], []
    for name, table in tables.items():
        x.append(heard_alone(run / "fold-1" / "checkpoint", table["audio"][:]))
        label += [table.features["label"].names[number] for number in table["label"][:]]
        owner += [name] * len(table)
        ids += [f"{name}/{id}" for id in table["id"][:]]
    x, label, owner = np.concatenate(x), np.array(label), np.array(owner)
    for number, tested in enumerate(sorted(tables), start=1):
        train_rows, test = owner != tested, owner == tested
        z = x.copy()
        for rows, source in (
            [(owner == name, owner == name) for name in tables] if mode == "corpus" else [(owner != "", train_rows)]
        ):
            std = x[source].std(axis=0)
            z[rows] = (x[rows] - x[source].mean(axis=0)) / np.where(std > 0, std, 1)
        learned = train_rows & np.isin(label, label[test])
        model = LogisticRegression(C=0.01, max_iter=5000, class_weight="balanced").fit(z[learned], label[learned])
        expected = dict(zip([id for id, is_test in zip(ids, test) if is_test], model.predict(z[test])))
        floor = study / f"logistic_regression,_standardise_audio={mode}" / "seed-42"
        rows = read_csv(floor / f"fold-{number}" / "predictions.csv")
        assert {row["corpus"] for row in rows} == {tested}
        agreed = [row["prediction"] == expected[row["id"]] for row in rows]
        assert len(rows) == test.sum() and np.mean(agreed) > 0.97  # rounding may turn a tie
        assert {row["prediction"] for row in rows} <= set(label[test]) & set(label[train_rows])


@pytest.mark.slow
def test_the_table_shows_variants_and_floors_corpus_by_corpus(study):
    results = json.loads((study / "study.json").read_text())
    names = ["training", "corpus"]
    floors = [f"logistic regression, standardise_audio={name}" for name in names]
    assert results["floors"] == dict(zip(floors, [["training"], ["corpus"]]))
    assert [row["name"] for row in results["by_corpus"]] == [*names, *floors]
    assert [row["transductive"] for row in results["by_corpus"]] == [False, True, False, True]
    row = results["by_corpus"][0]
    by_seed = []
    for seed in (42, 43):
        uas = {}
        for number, corpus in enumerate(sorted(row["corpora"]), start=1):
            rows = read_csv(study / "training" / f"seed-{seed}" / f"fold-{number}" / "predictions.csv")
            references, answers = [r["reference"] for r in rows], [r["prediction"] for r in rows]
            uas[corpus] = recall_score(references, answers, average="macro", labels=sorted(set(references)))
        by_seed.append(uas)
    for corpus, told in row["corpora"].items():
        values = [uas[corpus] for uas in by_seed]
        assert told["mean"] == pytest.approx(np.mean(values)) and told["std"] == pytest.approx(np.std(values, ddof=1))
    means = [np.mean(list(uas.values())) for uas in by_seed]
    assert row["mean"]["mean"] == pytest.approx(np.mean(means))
    table = (study / "table.md").read_text()
    assert "| corpus † |" in table and "Transductive: unlabelled audio" in table
    assert "of logistic regression on the same folds, states and statistics" in table
    over = row["over_floor"]
    ours = [row["corpora"][corpus]["mean"] for corpus in sorted(row["corpora"])]
    theirs = [results["by_corpus"][2]["corpora"][corpus]["mean"] for corpus in sorted(row["corpora"])]
    assert list(over["by_corpus"].values()) == pytest.approx(np.subtract(ours, theirs).tolist())
    assert over["difference"] == pytest.approx(np.mean(ours) - np.mean(theirs))
    assert results["by_corpus"][2]["over_floor"] is None
    heads, cells = (
        [cell.strip() for cell in line.split("|")] for line in (table.splitlines()[0], table.splitlines()[2])
    )
    assert len(heads) == len(cells) and cells[heads.index("over its floor")].split(" ± ")[0] == (
        f"{100 * over['difference']:+.1f}"
    )


@pytest.mark.slow
def test_words_that_no_other_corpus_has_are_told_apart(study):
    results = json.loads((study / "study.json").read_text())
    rows = read_csv(study / "training" / "seed-42" / "fold-1" / "predictions.csv")
    again = read_csv(study / "training" / "seed-43" / "fold-1" / "predictions.csv")
    word = "calm"  # of `acted` alone
    expected = []
    for seed in (rows, again):
        references, answers = [row["reference"] for row in seed], [row["prediction"] for row in seed]
        labels = sorted({*references, *answers})
        counts, k = confusion_matrix(references, answers, labels=labels), labels.index(word)
        expected.append([counts[k, k] / counts[k].sum(), counts[k, k] / max(counts[:, k].sum(), 1)])
    told = results["by_corpus"][0]["words"]["acted: calm"]
    assert [told["recall"], told["precision"]] == pytest.approx(np.mean(expected, axis=0))
    assert told["share"] == pytest.approx(sum(row["reference"] == word for row in rows) / len(rows))
    floor = results["by_corpus"][2]["words"]
    assert floor.get("acted: calm", {"recall": 0})["recall"] == 0


def test_runs_that_start_from_other_encoders_have_floors_of_their_own(tmp_path):
    recipes = [Recipe(corpus="synthetic", init_from=name) for name in ("org/one", "org/two", "org/one")]
    runs = [PlannedRun(name, 42, tmp_path, recipe) for name, recipe in zip("abc", recipes)]
    study = Study("s", "quickstart", {}, {name: {} for name in "abc"}, [42], "a", floors=["logistic_regression"])
    found = {name: [run.variant for run in those] for name, those in floor_runs(study, runs).items()}
    assert found == {
        "logistic regression, init_from=org/one": ["a", "c"],
        "logistic regression, init_from=org/two": ["b"],
    }
    runs = [PlannedRun(name, 42, tmp_path, Recipe(corpus="csv", data_dir=f"data/{name}")) for name in "abc"]
    assert list(floor_runs(study, runs)) == [f"logistic regression, {name}" for name in "abc"]


def test_unknown_floors_are_refused(tmp_path, capsys):
    (tmp_path / "study.yaml").write_text(yaml.safe_dump({"study": {"floors": ["forest"], "variants": {"a": {}}}}))
    with pytest.raises(SystemExit) as exit:
        main([str(tmp_path / "study.yaml")])
    assert exit.value.code == 2
    assert "floors must be a list of logistic_regression; found ['forest']" in capsys.readouterr().err


def test_a_model_of_one_corpus_stands_beside_that_of_several(tmp_path):
    mean = {"ua": 0.5, "se": {"ua": 0.02}}
    several = {"corpora": {"calls": {"ua": 0.4}, "emodb": {"ua": 0.6}}, "mean_over_corpora": mean}
    runs = {"all": several, "calls alone": {"pooled": {"ua": 0.3}}, "EmoDB alone": {"pooled": {"ua": 0.7}}}
    where = {"calls alone": {"data_dir": "data/calls", "corpus": "csv"}, "EmoDB alone": {"corpus": "emodb"}}
    for name, results in runs.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(json.dumps(results))
        (tmp_path / name / "recipe.yaml").write_text(yaml.safe_dump(where.get(name, {})))
    rows = summarise_corpora({name: [tmp_path / name] for name in runs})
    assert [{corpus: told["mean"] for corpus, told in row["corpora"].items()} for row in rows] == [
        {"calls": 0.4, "emodb": 0.6},
        {"calls": 0.3},
        {"emodb": 0.7},
    ]
    table = corpora_table(rows, [42]).splitlines()
    assert table[:1] + table[2:5] == [
        "| UA by corpus | calls | emodb | mean |",
        "| all | 40.0 | 60.0 | **50.0** ± 2.0 |",
        "| calls alone | 30.0 | - | - |",
        "| EmoDB alone | - | 70.0 | - |",
    ]
    assert [row["name"] for row in summarise_corpora({name: [tmp_path / name] for name in where})] == list(where)
    assert summarise_corpora({"EmoDB alone": [tmp_path / "EmoDB alone"]}) is None


def test_a_model_of_one_corpus_stands_beside_its_floor(tmp_path):
    """Two speakers of two utterances: one answer of speaker a is right by the model alone, so UA is 3/4 for 2/4."""
    for name, right in {"ours": 3, "floor": 2}.items():
        (tmp_path / name / "fold-1").mkdir(parents=True)
        lines = ["id,speaker,reference,prediction,prediction_classifier"]
        for number in range(4):
            word = ("joy", "rage")[number % 2]
            told = word if number >= 4 - right else ("rage", "joy")[number % 2]
            lines.append(f"{number},{'ab'[number // 2]},{word},{told},{told}")
        (tmp_path / name / "fold-1" / "predictions.csv").write_text("\n".join(lines) + "\n")
        (tmp_path / name / "recipe.yaml").write_text("corpus: emodb\n")
        (tmp_path / name / "protocol.json").write_text("{}")
        results = summarise_run(tmp_path / name, ["joy", "rage"])
        (tmp_path / name / "results.json").write_text(json.dumps(results))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "results.json").write_text(json.dumps({"pooled": {"ua": 0.3}}))
    (tmp_path / "other" / "recipe.yaml").write_text("corpus: emovo\n")
    rows = summarise_corpora({name: [tmp_path / name] for name in ("ours", "other", "floor")}, {"floor": ["ours"]})
    assert rows[0]["over_floor"]["difference"] == 0.25 and rows[0]["corpora"] == {"emodb": {"mean": 0.75, "std": 0.0}}
    assert rows[1]["over_floor"] is None and rows[2]["over_floor"] is None
    # Speaker a gains 1 of 2, b nothing: of a mean of two draws from {1/2, 0} the deviation is 1/4, widened by sqrt(2).
    assert rows[0]["over_floor"]["se"] == pytest.approx(0.25, rel=0.05)


def test_what_answers_with_both_heads_is_told_by_its_label_head_too(tmp_path):
    """Two corpora of two utterances; of the second the classifier knows no word but joy, and turns one answer."""
    header = "id,speaker,corpus,reference,prediction,prediction_classifier,"
    words = ("calm", "joy", "rage")
    header += ",".join(f"{head}{word}" for head in ("probability_", "probability_classifier_") for word in words)
    lines = [
        "x/1,x/s,x,joy,joy,joy,0.3,0.6,0.1,,0.7,0.3",
        "x/2,x/t,x,rage,rage,rage,0.1,0.5,0.4,,0.1,0.9",
        "y/1,y/s,y,calm,calm,joy,0.6,0.3,0.1,,0.9,0.1",
        "y/2,y/t,y,joy,joy,joy,0.3,0.6,0.1,,0.9,0.1",
    ]
    (tmp_path / "fold-1").mkdir()
    (tmp_path / "fold-1" / "predictions.csv").write_text("\n".join([header, *lines]) + "\n")
    (tmp_path / "recipe.yaml").write_text("prediction_head: both\n")
    (tmp_path / "protocol.json").write_text(json.dumps({"own_words": {"x": ["joy", "rage"], "y": ["calm", "joy"]}}))
    (tmp_path / "results.json").write_text(json.dumps(summarise_run(tmp_path, list(words))))
    floor = tmp_path / "floor"  # which is of the same recipe, and has no probabilities
    (floor / "fold-1").mkdir(parents=True)
    (floor / "fold-1" / "predictions.csv").write_text(
        "\n".join(",".join(line.split(",")[:6]) for line in (header, *lines)) + "\n"
    )
    for file in ("recipe.yaml", "protocol.json"):
        (floor / file).write_bytes((tmp_path / file).read_bytes())
    (floor / "results.json").write_text(json.dumps(summarise_run(floor, list(words))))
    rows = summarise_corpora({"ours": [tmp_path], "floor": [floor]}, {"floor": ["ours"]})
    assert [row["name"] for row in rows] == ["ours", "ours, label head", "floor"]
    assert [row["over_floor"] and row["over_floor"]["difference"] for row in rows] == [0.0, -0.25, None]
    by_corpus = [{corpus: told["mean"] for corpus, told in row["corpora"].items()} for row in rows]
    assert by_corpus[:2] == [{"x": 1.0, "y": 1.0}, {"x": 0.5, "y": 1.0}]  # alone, the label head takes x/2 for joy
    assert [row["mean"]["mean"] for row in rows] == [1.0, 0.75, 1.0]


def test_the_error_of_a_difference_is_over_speakers_of_each_corpus(tmp_path):
    """Against every resample of two speakers, written out: with S = 2 a speaker is drawn twice, once or never, and the
    bootstrap's deviation is widened by sqrt(S / (S - 1))."""
    rows = "id,speaker,corpus,reference,prediction,prediction_classifier\n"
    for name, answers in {"A": [0, 0, 0, 1, 0, 1, 1, 0], "B": [1, 1, 0, 1, 1, 1, 1, 0]}.items():
        (tmp_path / name / "fold-1").mkdir(parents=True)
        lines = [
            f"{number},{'st'[number // 2 % 2]}{number // 4},{'xy'[number // 4]},joy,{'joy' if right else 'fear'},joy"
            for number, right in enumerate(answers)
        ]
        (tmp_path / name / "fold-1" / "predictions.csv").write_text(rows + "\n".join(lines) + "\n")
    found = difference_over_corpora([read_run(tmp_path / "A")], [read_run(tmp_path / "B")])
    # Corpus x: speaker s gains 2 of 2, t 0 of 2; corpus y: s gains 1 of 2, t 0 of 2.
    assert found["by_corpus"] == {"x": 0.5, "y": 0.25}
    assert found["difference"] == 0.375
    # Of a mean of two draws from {1, 0}: deviation 1/2 / sqrt(2), widened by sqrt(2): 1/2; of {1/2, 0}: 1/4.
    assert found["se"] == pytest.approx(np.sqrt(0.5**2 + 0.25**2) / 2, rel=0.05)

"""The paper's tables as recipes: what they override, and that each starts, trains, goes on and ends in its table."""

import json
from argparse import Namespace

import pytest
import soundfile
import yaml
from tiny import AUDIO_ENCODERS, RATE, TEXT_ENCODER, recording

from lascl import study, train
from lascl.data.augmentation import AUGMENTATIONS
from lascl.studies.plan import KEYS, plan_runs, read_study
from lascl.training.recipe import RECIPES, parse_recipe


# What the checkpoints of Table 3 are, by their configurations on the Hub: group norm in the base models, layer norm
# (before attention, too) in the large ones.
ARCHITECTURES = {
    "facebook/wav2vec2-base": "wav2vec2-group",
    "facebook/wav2vec2-large-lv60": "wav2vec2-layer",
    "facebook/hubert-base-ls960": "hubert-group",
    "facebook/hubert-large-ll60k": "hubert-layer",
    "microsoft/wavlm-base": "wavlm-group",
    "microsoft/wavlm-large": "wavlm-layer",
}
STUDIES = ("table-1", "table-2", "table-3", "table-4", "grid")
OUR_NUMBERS = "77.79 / 78.42"  # the paper's best model, in every table


def read(name: str) -> dict:
    return yaml.safe_load((RECIPES / f"{name}.yaml").read_text(encoding="utf-8"))


def variants_of(name: str, tmp_path, recipe: str | None = None) -> dict:
    """The recipe of each variant."""
    options = Namespace(recipe=recipe, vary=None, seeds=None, output_dir=None)
    return {run.variant: run.recipe for run in plan_runs(*read_study([name], options), tmp_path)}


def test_the_paper_s_recipe_is_section_3_2(tmp_path):
    recipe, _ = parse_recipe(["paper"])
    args = recipe.training_arguments(tmp_path)
    assert (recipe.corpus, recipe.max_duration_s, recipe.freeze_feature_encoder) == ("iemocap", 10, True)
    assert (recipe.audio_encoder, recipe.text_encoder) == ("microsoft/wavlm-large", "FacebookAI/roberta-large")
    assert (args.global_batch_size, args.num_train_epochs, args.num_views) == (32, 50, 2)
    assert (args.encoder_learning_rate, args.learning_rate) == (1e-4, 1e-3)
    assert args.optim.startswith("adamw") and args.lr_scheduler_type == "cosine" and args.warmup_steps > 0
    assert recipe.contrastive_temperature in read("grid")["study"]["vary"]["contrastive_temperature"]
    assert recipe.contrastive_weight in read("grid")["study"]["vary"]["contrastive_weight"]
    assert recipe.divergence_weight in read("grid")["study"]["vary"]["divergence_weight"]


@pytest.mark.slow
def test_the_variants_are_those_of_the_tables(tmp_path):
    assert [recipe.objective for recipe in variants_of("table-1", tmp_path).values()] == ["ce", "lascl"]

    augmented = variants_of("table-2", tmp_path)
    assert sorted(r.training["augmentation"] for r in augmented.values()) == sorted(AUGMENTATIONS)
    assert {r.training.get("num_views", 2) for n, r in augmented.items() if n != "None"} == {2}
    assert augmented["None"].training["num_views"] == 1

    assert [r.audio_encoder for r in variants_of("table-3", tmp_path).values()] == list(ARCHITECTURES)

    loss = {
        name: (r.contrastive_weight, r.divergence_weight, r.label_anchors, r.prediction_head)
        for name, r in variants_of("table-4", tmp_path).items()
    }
    assert loss == {
        "LaSCL": (0.5, 0.1, True, "label"),
        "w/o Data Augmentation": (0.5, 0.1, True, "label"),
        "w/o Label Embedding": (0.5, 0, False, "classifier"),
        "w/o Label Divergence": (0.5, 0, True, "label"),
        "w/o Classification Objective": (1, 0.1, True, "label"),
        "CE": (0, 0, False, "classifier"),
    }
    on_emodb = variants_of("table-4", tmp_path, recipe="emodb")
    assert {(r.corpus, r.audio_encoder) for r in on_emodb.values()} == {("emodb", "openai/whisper-tiny.en")}

    small = variants_of("table-4", tmp_path, recipe="small-corpus")
    assert {getattr(r, "contrastive_reduction", None) for r in small.values()} == {"mean"}  # as in the README

    grid = variants_of("grid", tmp_path)
    assert {getattr(r, "contrastive_reduction", None) for r in grid.values()} == {"bracket"}  # lambda_2 as in eq. 9
    points = {(r.contrastive_temperature, r.contrastive_weight, r.divergence_weight) for r in grid.values()}
    assert len(points) == len(grid) == 5 * 5 * 4 + 1
    assert {r.selection for r in grid.values()} == {"best_validation"}
    assert {r.prediction_head for r in grid.values() if r.contrastive_weight == 0} == {"classifier"}


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_s_recipe_holds_overrides_only_and_trains_by_lascl_study_alone(name, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        train.main([name])
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.count("\n") == 1 and f"Run it with: lascl-study {name}." in error
    content = read(name)["study"]
    assert content["recipe"] == "paper" and set(content) <= set(KEYS)
    if name != "grid":
        assert content["paper"][content["against"]] == [77.79, 78.42]
        assert set(content["variants"]) - set(content["paper"]) <= {"CE", "None"}


@pytest.fixture(scope="module")
def iemocap(tmp_path_factory):
    """Five sessions of two speakers, one improvised dialogue each, one utterance a speaker and emotion."""
    root = tmp_path_factory.mktemp("IEMOCAP")
    for session in range(1, 6):
        dialog, lines = f"Ses0{session}F_impro01", []
        folder = root / f"Session{session}"
        (folder / "sentences" / "wav" / dialog).mkdir(parents=True)
        (folder / "dialog" / "EmoEvaluation").mkdir(parents=True)
        for turn in range(8):
            id, label = f"{dialog}_{'FM'[turn % 2]}{turn // 2:03d}", ("ang", "hap", "sad", "neu")[turn // 2]
            lines.append(f"[{turn}.0000 - {turn}.5000]\t{id}\t{label}\t[3.0000, 3.0000, 3.0000]\n\n")
            samples = recording(seed=10 * session + turn, duration_s=0.1)
            soundfile.write(folder / "sentences" / "wav" / dialog / f"{id}.wav", samples, RATE)
        (folder / "dialog" / "EmoEvaluation" / f"{dialog}.txt").write_text("".join(lines))
    return root


def tiny(name: str, tmp_path, keep: int | None = None) -> str:
    """The study's recipe with the encoders of Table 3 replaced by tiny ones of the same architecture, and no more than
    `keep` variants."""
    content = read(name)
    told = content["study"]
    for fields in (told.get("variants") or {}).values():
        if "audio_encoder" in fields:
            fields["audio_encoder"] = AUDIO_ENCODERS[ARCHITECTURES[fields["audio_encoder"]]]
    if keep:
        told["vary"] = {field: values[:1] for field, values in told["vary"].items()}
    path = tmp_path / f"{name}.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return str(path)


def runs_and_resumes(name, iemocap, tmp_path, monkeypatch, *, keep=None):
    """One fold, then two: what is done is kept, and the table has all rows. Two optimiser steps a fold."""
    # The report of a run is drawn elsewhere, and takes seconds.
    monkeypatch.setattr(train, "write_report", lambda run_dir, _: (run_dir / "report.md").write_text(""))
    typed = ["--data_dir", str(iemocap), "--allow_partial", "true", "--max_steps", "2", "--global_batch_size", "16"]
    typed += ["--use_cpu", "true", "--disable_tqdm", "true", "--output_dir", str(tmp_path / "study")]
    typed += [
        "--text_encoder",
        json.dumps({**TEXT_ENCODER, "model_type": "roberta"}),
        "--freeze_feature_encoder",
        "true",
    ]
    if name == "small-corpus-objectives":
        typed += ["--corpus", "iemocap", "--audio_layers", "1,2"]
    if name != "table-3":
        typed += ["--audio_encoder", json.dumps(AUDIO_ENCODERS["wavlm-layer"])]
    argv = [tiny(name, tmp_path, keep), *typed]
    with monkeypatch.context() as quick:
        quick.setattr("lascl.studies.run.write_pairs", lambda *where: "")
        study.main([*argv, "--folds", "1"])
    first = {path: path.stat().st_mtime_ns for path in (tmp_path / "study").glob("*/seed-42/fold-1/metrics.json")}
    study.main([*argv, "--folds", "1,2"])
    assert first == {path: path.stat().st_mtime_ns for path in first}
    assert len(list((tmp_path / "study").glob("*/seed-42/fold-2/metrics.json"))) == len(first)
    for path in first:
        history = json.loads((path.parent / "log_history.json").read_text())
        assert history[-1]["step"] == 2
    table = (tmp_path / "study" / "table.md").read_text()
    assert "Not finished" not in table and "2 of 5 folds, 16 utterances tested" in table
    return table, len(first)


@pytest.mark.slow
def test_table_1_starts_trains_two_folds_and_goes_on(iemocap, tmp_path, monkeypatch):
    table, num_variants = runs_and_resumes("table-1", iemocap, tmp_path, monkeypatch)
    assert num_variants == 2 and table.count(OUR_NUMBERS) == 1
    assert "| Chen et al. (2023) |  |  |  | - / 74.30 |  |  |" in table
    assert (tmp_path / "study" / "figures" / "confusion_pair.png").is_file() and "silhouette" in table


@pytest.mark.proof
@pytest.mark.parametrize("name", ["table-2", "table-3", "table-4", "grid", "small-corpus-objectives"])
def test_a_large_recipe_starts_trains_two_folds_and_goes_on(name, iemocap, tmp_path, monkeypatch):
    table, num_variants = runs_and_resumes(name, iemocap, tmp_path, monkeypatch)
    known = {"table-2": 9, "table-3": 6, "table-4": 6, "grid": 101, "small-corpus-objectives": 3}
    assert num_variants == known[name]
    if name == "grid":
        assert "Nothing was chosen by a test." in table
    else:
        assert table.count(OUR_NUMBERS) == name.startswith("table")


@pytest.mark.slow
def test_a_grid_chooses_in_validation(iemocap, tmp_path, monkeypatch):
    table, num_variants = runs_and_resumes("grid", iemocap, tmp_path, monkeypatch, keep=1)
    results = json.loads((tmp_path / "study" / "study.json").read_text())
    assert num_variants == 2 and set(results["chosen"]["42"]) == {"1", "2"}
    tested = []
    for fold, name in results["chosen"]["42"].items():
        best = {}
        for variant in results["validation_ua"]:
            fold_dir = tmp_path / "study" / variant / "seed-42" / f"fold-{fold}"
            history = json.loads((fold_dir / "log_history.json").read_text())
            best[variant] = max(entry["validation_ua"] for entry in history if "validation_ua" in entry)
        assert best[name] == max(best.values())
        metrics = json.loads((tmp_path / "study" / name / "seed-42" / f"fold-{fold}" / "metrics.json").read_text())
        tested.append(metrics["wa"])
    assert results["wa"]["mean"] == pytest.approx(sum(tested) / 2)  # folds of equal size
    assert "Nothing was chosen by a test." in table

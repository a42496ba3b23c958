"""Variants of a recipe side by side: runs of their own, one table, a paired test, the same command again."""

import json

import pytest
from conftest import read_csv
from sklearn.metrics import recall_score

from lascl.study import main, read_variants


@pytest.fixture(scope="module")
def recipe(emodb_like, audio_encoders, text_encoder):
    return [
        "emodb",
        *("--data_dir", str(emodb_like), "--allow_partial", "true", "--folds", "1", "--disable_tqdm", "true"),
        *("--audio_encoder", audio_encoders["wav2vec2-layer"], "--text_encoder", text_encoder),
        *("--num_train_epochs", "1", "--global_batch_size", "14", "--augmentation", "none"),
    ]


def test_baselines_are_set_side_by_side(recipe, tmp_path, capsys):
    study = [*recipe, "--vary", "objective=ce,supcon,lascl", "--output_dir", str(tmp_path / "study")]
    main(study)
    names = ["objective=ce", "objective=supcon", "objective=lascl"]
    results = json.loads((tmp_path / "study" / "study.json").read_text())
    assert [variant["name"] for variant in results["variants"]] == names
    for name, variant in zip(names, results["variants"], strict=True):
        rows = read_csv(tmp_path / "study" / name / "seed-42" / "fold-1" / "predictions.csv")
        ua = recall_score([r["reference"] for r in rows], [r["prediction"] for r in rows], average="macro")
        assert variant["ua"]["by_seed"] == pytest.approx([ua]) and variant["ua"]["std"] == 0
        column = "prediction" if name == "objective=lascl" else "prediction_classifier"
        assert [row["prediction"] for row in rows] == [row[column] for row in rows]
    first, *others = results["variants"]
    assert first["against_first"] is None
    for variant in others:
        against = variant["against_first"]
        assert against["num_utterances"] == 14 and against["num_speakers"] == 2
        assert against["ua"]["difference"] == pytest.approx(variant["ua"]["mean"] - first["ua"]["mean"])
    table = (tmp_path / "study" / "table.md").read_text()
    assert all(f"| {name} | " in table for name in names)
    assert "* objective=lascl (B), objective=ce (A): UA: " in table
    assert table in capsys.readouterr().out

    main([*study, "--seeds", "42,43"])
    assert capsys.readouterr().out.count("Fold 1: complete, kept.") == 3
    results = json.loads((tmp_path / "study" / "study.json").read_text())
    assert all(len(variant["wa"]["by_seed"]) == 2 for variant in results["variants"])
    assert "Mean ± standard deviation over the seeds 42, 43" in (tmp_path / "study" / "table.md").read_text()


def test_variants_are_all_pairs_with_names_that_are_folders():
    variants = read_variants(["audio_encoder=org/a,org/b", "objective=ce,lascl"])
    assert list(variants) == [
        f"audio_encoder=org_{encoder},objective={objective}" for encoder in "ab" for objective in ("ce", "lascl")
    ]
    assert variants["audio_encoder=org_b,objective=ce"] == ["--audio_encoder", "org/b", "--objective", "ce"]


@pytest.mark.parametrize(
    "options, message",
    [
        (["--vary", "objective"], "--vary wants FIELD=A,B,C; found 'objective'"),
        (["--vary", "objective=ce,ce"], "The variant objective=ce is given twice"),
        (["--vary", "objective=ce,tripletloss"], "objective must be one of lascl, supcon, ce; found 'tripletloss'"),
        (["--vary", "objektive=ce"], "did you mean 'objective'?"),
        (["--vary", "objective=ce", "--seeds", "many"], "many"),
    ],
)
def test_a_wrong_variant_is_said_before_anything_is_trained(recipe, tmp_path, capsys, options, message):
    with pytest.raises(SystemExit) as exit:
        main([*recipe, *options, "--output_dir", str(tmp_path / "study")])
    error = capsys.readouterr().err
    assert exit.value.code == 2 and message in error and error.count("\n") == 1
    assert not list((tmp_path / "study").glob("*/*/fold-*"))

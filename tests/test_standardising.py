"""By whose statistics pooled audio is standardised: nobody's, the training side's, each corpus's, each speaker's."""

import json
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml

from lascl import LaSCLConfig, LaSCLForAudioClassification, train
from lascl.data import Fold
from lascl.training import pooled
from lascl.training.prediction import predict_fold
from lascl.training.recipe import Recipe, parse_recipe
from lascl.training.run_directory import open_run


OLD_VALUES = [(True, "training"), (False, "none"), ("true", "training"), ("False", "none"), ("speaker", "speaker")]


def told(function, *args, **kwargs) -> str:
    """What an exception says; empty without one."""
    try:
        function(*args, **kwargs)
    except (ValueError, SystemExit) as error:
        return str(error)
    return ""


# ------------------------------------------------------------------------------------------------- old booleans


@pytest.mark.parametrize("value, mode", OLD_VALUES)
def test_a_configuration_reads_what_old_code_wrote(value, mode, tmp_path):
    LaSCLConfig(standardise_audio=value).save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())["standardise_audio"]
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "lascl", "standardise_audio": value}))
    set_later = LaSCLConfig.from_pretrained(tmp_path, standardise_audio=value)
    read = [config.standardise_audio for config in (LaSCLConfig.from_pretrained(tmp_path), set_later)]
    assert read == [mode, mode]
    # Old code takes the field for a boolean: of a string it would standardise, so nothing else than false says none.
    assert written == {"none": False, "training": True}.get(mode, mode)
    assert set_later.standardises is (mode != "none")


@pytest.mark.parametrize("value, mode", OLD_VALUES)
def test_a_recipe_reads_what_old_code_wrote(value, mode, tmp_path):
    (tmp_path / "r.yaml").write_text(yaml.safe_dump({"standardise_audio": value}))
    of_file = parse_recipe([str(tmp_path / "r.yaml")])[0]
    typed = []
    assert told(lambda: typed.append(parse_recipe(["--standardise_audio", str(value)])[0])) == ""
    assert [recipe.standardise_audio for recipe in (of_file, *typed)] == [mode, mode]


def test_the_bare_flag_still_says_training():
    assert parse_recipe(["--standardise_audio", "--num_views", "1"])[0].standardise_audio == "training"
    assert "must be one of none, training, corpus, speaker; found 'sex'" in told(
        parse_recipe, ["--standardise_audio", "sex"]
    )


def test_an_old_run_goes_on_under_the_word_for_its_boolean(table, tmp_path):
    open_run(tmp_path, Recipe(standardise_audio="training"), table)
    recorded = yaml.safe_load((tmp_path / "recipe.yaml").read_text())
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({**recorded, "standardise_audio": True}))
    (tmp_path / "fold-1").mkdir()
    assert told(open_run, tmp_path, Recipe(standardise_audio="training"), table) == ""
    other = told(open_run, tmp_path, Recipe(), table)
    assert "standardise_audio ('training' there, 'none' here)" in other


# ------------------------------------------------------------------------------------------------------- statistics


@pytest.fixture(scope="module")
def table(two_corpora):
    return two_corpora


def rows_of(table, *speakers):
    return [row for row, speaker in enumerate(table["speaker"][:]) if speaker in speakers]


FOLDS = {
    "a corpus left out": (["left/a", "left/b", "left/c"], [], ["right/d", "right/e"]),
    "speakers of both": (["left/a", "right/e"], ["left/c"], ["left/b", "right/d"]),
    "a corpus validates": (["left/a", "left/c"], ["right/d", "right/e"], ["left/b"]),
}


def fold_of(table, name) -> Fold:
    train, validation, test = (rows_of(table, *speakers) for speakers in FOLDS[name])
    return Fold(1, train, test, validation)


def expected_statistics(block, table, fold, mode, row):
    """Mean and deviation for one row, by going through all rows: float64."""
    corpora, speakers = table["corpus"][:], table["speaker"][:]
    side = next(rows for rows in (fold.train, fold.validation, fold.test) if row in rows)
    mine = [other for other in fold.train if corpora[other] == corpora[row]]
    mine = mine or [other for other in side if corpora[other] == corpora[row]]
    if mode == "speaker":
        own = [other for other in side if speakers[other] == speakers[row]]
        mine = own if len(own) >= 5 else mine
    means, stds = [], []
    for column in block.double().T.tolist():
        values = [column[other] for other in mine]
        mean = sum(values) / len(values)
        variance = sum((value - mean) ** 2 for value in values) / len(values)
        means.append(mean)
        stds.append(variance**0.5 if variance > 0 else 1.0)
    return torch.tensor(means), torch.tensor(stds)


@pytest.mark.parametrize("mode", ["corpus", "speaker"])
@pytest.mark.parametrize("name", FOLDS)
def test_each_utterance_is_standardised_by_its_own(table, name, mode):
    assert hasattr(pooled, "statistics_of")
    from lascl.training.fold import groups_of

    fold, generator = fold_of(table, name), torch.Generator().manual_seed(0)
    block = 30 + torch.randn(len(table), 4, generator=generator) * torch.arange(1, len(table) + 1).unsqueeze(1)
    block[:, 2] = 7.0  # never varies
    model = SimpleNamespace(config=LaSCLConfig(standardise_audio=mode))
    found = pooled.statistics_of(model, block, fold, **groups_of(table))
    for row in range(len(table)):
        mean, std = expected_statistics(block, table, fold, mode, row)
        wanted = (block[row].double() - mean) / std
        torch.testing.assert_close(found.standardised(block[row], row).double(), wanted, rtol=1e-5, atol=1e-5)


def test_what_is_on_no_side_has_no_statistics(table):
    found = pooled.group_statistics(torch.randn(len(table), 3), Fold(1, [0, 1], [2]), table["corpus"][:], None)
    assert found.groups[:3] == [0, 0, 0] and set(found.groups[3:]) == {-1}
    with pytest.raises(IndexError, match="Row 3 is on no side of the fold"):
        found.standardised(torch.randn(2, 3), 3)


# ------------------------------------------------------------------------------------------------------------- a fold


@pytest.fixture(scope="module")
def recipe_of(audio_encoders, text_encoder, tmp_path_factory):
    def recipe_of(mode, **fields):
        fields = {"freeze_audio_encoder": True, "projection_dim": 8, "max_duration_s": 0.15, **fields}
        encoders = {"audio_encoder": audio_encoders["wav2vec2-layer"], "text_encoder": text_encoder}
        recipe = Recipe(corpus="csv", standardise_audio=mode, views_gb=0.0, **encoders, **fields)
        recipe.training = {"augmentation": "noise", "augmentation_period": 2, "global_batch_size": 4, "use_cpu": True}
        recipe.training |= {"num_train_epochs": 1, "disable_tqdm": True}
        return recipe

    return recipe_of


@pytest.fixture(scope="module")
def begun(recipe_of, table, tmp_path_factory):
    """Of a mode and the fold that leaves `right` out: the model before its first step, and what it trains on."""
    from lascl.training.fold import fold_data
    from lascl.training.start import Weights, start_model

    views = {}

    def begun(mode):
        recipe, fold = recipe_of(mode), fold_of(table, "a corpus left out")
        args = recipe.training_arguments(tmp_path_factory.mktemp("args"))
        start = start_model(recipe, table, fold, Weights(recipe.audio_encoder, recipe.text_encoder), seed=1)
        return start, fold_data(recipe, table, fold, args, start, views), len(views)

    return begun


def test_every_mode_has_the_same_views_and_leaves_the_training_side_s_statistics(begun, table):
    plain = begun("none")[1]
    fold, num_views = fold_of(table, "a corpus left out"), {"train": 2, "test": 1}
    block = plain.train.blocks[0, 0][list(range(len(table)))]  # not standardised
    mean, std = block[fold.train].mean(0), block[fold.train].std(0, correction=0)
    for mode in ("training", "corpus", "speaker"):
        (model, *_), data, num_encoded = begun(mode)
        assert num_encoded == 2 * 3  # of each corpus the clean view, and an augmented one in either epoch
        torch.testing.assert_close(model.lascl.pooled_mean, mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(model.lascl.pooled_std, std, rtol=1e-4, atol=1e-5)
        for side, items, raw in (
            ("train", data.train, plain.train),
            ("test", data.watched["test"], plain.watched["test"]),
        ):
            assert len(items) == {"train": 15, "test": 6}[side]  # three of the test have a word that is not learned
            for index, row in enumerate(items.rows):
                by = (mean, std) if mode == "training" else expected_statistics(block, table, fold, mode, row)
                assert items[index]["pooled_audio"].shape == (num_views[side], block.shape[1])
                wanted = (raw[index]["pooled_audio"].double() - by[0]) / by[1]
                torch.testing.assert_close(items[index]["pooled_audio"].double(), wanted, rtol=1e-3, atol=1e-3)


def test_predictions_use_the_statistics_that_training_used_known_or_not(begun, recipe_of, table, tmp_path):
    from lascl.training.fold import known_views

    (model, extractor, _), data, _ = begun("speaker")
    model.save_pretrained(tmp_path)
    extractor.save_pretrained(tmp_path)
    recipe, fold = recipe_of("speaker"), fold_of(table, "a corpus left out")
    args = recipe.training_arguments(tmp_path)
    options = {"max_duration_s": 0.15, "batch_size": 4}
    known = partial(known_views, recipe, table, fold, args, {})
    _, geometry = predict_fold(tmp_path, table, fold, known=known, **options)
    block, statistics = data.train.blocks[0, 0], data.train.statistics
    pooled_audio = torch.stack([statistics.standardised(block[row], row) for row in fold.test])
    with torch.no_grad():
        expected = model.eval().lascl(pooled_audio=pooled_audio).audio_embeds
    torch.testing.assert_close(torch.tensor(geometry["audio_embeds"]), expected, rtol=1e-4, atol=1e-4)
    # A recording that comes alone gets the training side's.
    _, alone = predict_fold(tmp_path, table, fold, **options)
    assert np.abs(alone["audio_embeds"] - geometry["audio_embeds"]).max() > 1e-2
    assert LaSCLForAudioClassification.from_pretrained(tmp_path).config.standardise_audio == "speaker"


@pytest.mark.parametrize(
    "changes, training, named",
    [
        ({"freeze_audio_encoder": False}, {}, "freeze_audio_encoder to true (found false)"),
        ({"audio_layers": "weighted"}, {}, "audio_layers to last or to numbers (found weighted)"),
        ({}, {"augmentation_period": None}, "augmentation_period to a number (found none), or augmentation to none"),
    ],
)
def test_statistics_by_group_of_audio_that_changes_are_refused(recipe_of, table, tmp_path, changes, training, named):
    from lascl.training.fold import is_encoded_once, training_data

    for mode in ("none", "training", "corpus", "speaker"):
        recipe = recipe_of(mode, **changes)
        recipe.training |= training
        refusal = told(recipe.training_arguments, tmp_path)
        if mode in ("none", "training"):
            assert refusal == ""
            args = recipe.training_arguments(tmp_path)
            assert not is_encoded_once(recipe, training_data(recipe, table, Fold(1, [0], []), args))
        else:
            assert refusal.startswith(f"standardise_audio {mode} is for a frozen encoder") and named in refusal
    recipe = recipe_of("corpus")
    recipe.training |= {"augmentation": "none", "augmentation_period": None}
    assert told(recipe.training_arguments, tmp_path) == ""


# --------------------------------------------------------------------------------------------------------------- runs


@pytest.fixture
def command(own_corpus, audio_encoders, text_encoder):
    fields = {"data_dir": own_corpus, "audio_encoder": audio_encoders["wav2vec2-layer"], "text_encoder": text_encoder}
    fields |= {"num_folds": 2, "folds": "1", "projection_dim": 8, "num_train_epochs": 1, "global_batch_size": 35}
    fields |= {"freeze_audio_encoder": "true", "augmentation": "none", "disable_tqdm": "true", "max_duration_s": 0.3}
    return ["csv", *(part for name, value in fields.items() for part in (f"--{name}", str(value)))]


def test_with_one_corpus_its_statistics_are_the_training_side_s_to_the_byte(command, tmp_path, monkeypatch):
    monkeypatch.setattr("lascl.train.write_report", lambda *_: None)
    options = ("--views_dir", str(tmp_path / "views"))
    for mode in ("true", "corpus"):
        run = [*command, *options, "--standardise_audio", mode, "--output_dir", str(tmp_path / mode)]
        assert told(train.main, run) == ""
    for name in ("fold-1/predictions.csv", "fold-1/checkpoint/model.safetensors"):
        assert (tmp_path / "true" / name).read_bytes() == (tmp_path / "corpus" / name).read_bytes(), name
    notes = " ".join(json.loads((tmp_path / "corpus" / "protocol.json").read_text())["notes"])
    assert "by each corpus's recordings on the training side." in notes and "transductive" not in notes


def test_a_refusal_costs_nothing(command, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("lascl.train.read_corpus", lambda *_: pytest.fail("the corpus was read"))
    options = ("--standardise_audio", "speaker", "--freeze_audio_encoder", "false", "--output_dir", str(tmp_path / "r"))
    with pytest.raises(SystemExit) as exit:
        train.main([*command, *options])
    assert exit.value.code == 2 and "freeze_audio_encoder to true" in capsys.readouterr().err
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("mode", ["none", "training", "corpus", "speaker"])
@pytest.mark.parametrize("name", FOLDS)
def test_what_uses_audio_of_the_tested_side_is_called_transductive(recipe_of, table, mode, name):
    from lascl.training.protocol import describe

    described = describe(recipe_of(mode), table, [fold_of(table, name)], num_skipped=0)
    uses_it = mode == "speaker" or (mode == "corpus" and name == "a corpus left out")
    assert described.get("transductive", False) is uses_it
    notes = " ".join(described["notes"])
    assert ("these scores are transductive" in notes) is uses_it
    assert ("Audio is standardised by" in notes) is (mode in ("corpus", "speaker"))

"""Recipes: the file, the command line over it, and one clear sentence for whatever is wrong."""

import ast
import dataclasses
from pathlib import Path
from typing import get_args, get_origin, get_type_hints

import pytest
import yaml
from datasets import ClassLabel, Dataset, Features, Value

from lascl.configuration_lascl import LaSCLConfig
from lascl.data import Fold
from lascl.training.recipe import NOT_IDENTITY, RECIPES, RECORDED, Recipe, parse_recipe
from lascl.training.run_directory import open_run


FEATURES = Features(
    {"id": Value("string"), "audio": Value("string"), "label": ClassLabel(names=["a", "b"]), "speaker": Value("string")}
)
CORPUS = Dataset.from_dict(
    {"id": ["u1", "u2"], "audio": ["u1.wav", "u2.wav"], "label": [0, 1], "speaker": ["s1", "s2"]}, features=FEATURES
)
ROOT = Path(__file__).resolve().parents[1]


def write(path, **fields):
    path.write_text(yaml.safe_dump(fields))
    return str(path)


def test_the_command_line_wins_over_the_file_over_the_defaults(tmp_path):
    path = write(tmp_path / "mine.yaml", corpus="emodb", num_folds=3, num_train_epochs=7, audio_layers="weighted")
    recipe, run_dir = parse_recipe([path, "--num_train_epochs", "2", "--num_folds=4", "--label_anchors", "true"])
    assert (recipe.corpus, recipe.num_folds, recipe.audio_layers) == ("emodb", 4, "weighted")
    assert recipe.training == {"num_train_epochs": 2.0}
    assert recipe.max_duration_s == 10 and run_dir == Path("runs/mine")
    args = recipe.training_arguments(tmp_path)
    assert (args.num_train_epochs, args.learning_rate, args.encoder_learning_rate) == (2, 1e-3, 1e-4)
    assert (args.global_batch_size, args.num_views, args.augmentation) == (32, 2, "mixed")


def test_no_recipe_means_quickstart_and_shipped_recipes_go_by_name():
    assert parse_recipe([])[1] == Path("runs/quickstart")
    assert parse_recipe(["emodb", "--output_dir", "x/y"])[1] == Path("x/y")


PLAIN = [path for path in sorted(RECIPES.glob("*.yaml")) if "study" not in yaml.safe_load(path.read_text())]


# Said even where it is the default: results in the README were made with it, and a default may change.
PINNED = ("contrastive_reduction", "augmentation_seed")


@pytest.mark.parametrize("path", PLAIN, ids=lambda path: path.stem)
def test_shipped_recipes_hold_overrides_only(path):
    recipe, _ = parse_recipe([str(path)])
    defaults = Recipe().to_dict()
    for name, value in yaml.safe_load(path.read_text()).items():
        assert name in recipe.to_dict()
        assert name in ("corpus", *PINNED) or value != defaults.get(name), name


def test_defaults_of_model_fields_are_the_configurations():
    config = LaSCLConfig.field_defaults()
    shared = [f for f in dataclasses.fields(Recipe) if f.name in config and f.name != "text_encoder"]
    assert len(shared) == 21
    for field in shared:
        expected = None if field.name in ("freeze_feature_encoder", "label_template") else config[field.name]
        assert field.default == expected, field.name


def test_a_template_is_the_bare_word_unless_given_or_brought():
    assert Recipe().label_template == Recipe().model_config()["label_template"] == "{label}"
    started = Recipe(init_from="org/lascl")
    assert started.label_template is None and "label_template" not in started.model_config()
    assert Recipe(init_from="org/lascl", label_template="a {label} voice").label_template == "a {label} voice"


def test_a_random_encoder_is_not_frozen_unless_asked(tmp_path):
    random = {"audio_encoder": {"model_type": "wav2vec2"}}
    assert parse_recipe([write(tmp_path / "a.yaml", audio_encoder="org/name")])[0].freeze_feature_encoder is True
    assert parse_recipe([write(tmp_path / "b.yaml", **random)])[0].freeze_feature_encoder is False
    asked = write(tmp_path / "c.yaml", **random, freeze_feature_encoder=True)
    assert parse_recipe([asked])[0].freeze_feature_encoder is True


def test_yaml_numbers_without_a_dot_are_numbers(tmp_path):
    (tmp_path / "a.yaml").write_text("encoder_learning_rate: 1e-5\n")
    assert parse_recipe([str(tmp_path / "a.yaml")])[0].training == {"encoder_learning_rate": 1e-5}


def test_mappings_may_stand_on_the_command_line():
    recipe, _ = parse_recipe(["--audio_encoder", '{"model_type": "wavlm"}', "--corpus_options", '{"seed": 3}'])
    assert recipe.audio_encoder == {"model_type": "wavlm"} and recipe.corpus_options == {"seed": 3}


@pytest.mark.parametrize(
    "fields, argv, message",
    [
        ({}, ["--num_train_epoch", "3"], "no field 'num_train_epoch'; did you mean 'num_train_epochs'?"),
        ({"contrastive_temprature": 1}, [], "did you mean 'contrastive_temperature'?"),
        ({"seed": "many"}, [], "seed must be a number; found 'many'"),
        ({}, ["--seed", "many"], "invalid int value: 'many'"),
        ({}, ["--contrastive_temperature", "0"], "contrastive_temperature must be above 0; found 0.0"),
        ({"contrastive_weight": 0}, [], "prediction_head='classifier'"),
        ({}, ["--per_device_train_batch_size", "4"], "set global_batch_size"),
        ({}, ["--hub_token", "secret"], "hub_token would be written to files"),
    ],
)
def test_one_clear_sentence(tmp_path, fields, argv, message):
    with pytest.raises(ValueError) as error:
        parse_recipe([write(tmp_path / "r.yaml", **fields), *argv])
    assert message in str(error.value) and "secret" not in str(error.value)


def test_recipes_that_cannot_be_read(tmp_path):
    with pytest.raises(ValueError, match="no recipe 'tabel-1': neither a file nor one of csv, emodb, .*table-1"):
        parse_recipe(["tabel-1"])
    (tmp_path / "list.yaml").write_text("- a\n- b\n")
    with pytest.raises(ValueError, match="found a list"):
        parse_recipe([str(tmp_path / "list.yaml")])
    (tmp_path / "broken.yaml").write_text("a: [1\n")
    with pytest.raises(ValueError, match="not valid YAML"):
        parse_recipe([str(tmp_path / "broken.yaml")])


def test_fold_numbers():
    three, five = ([Fold(number, [0], [1]) for number in range(1, count + 1)] for count in (3, 5))
    assert Recipe().fold_numbers(three) == [1, 2, 3]
    assert Recipe(folds="3, 1,3").fold_numbers(five) == [1, 3]
    assert Recipe(folds=[2]).fold_numbers(five) == Recipe(folds=2).fold_numbers(five) == [2]
    with pytest.raises(ValueError, match="There is no fold 6: this corpus has the folds 1 to 5"):
        Recipe(folds="1,6").fold_numbers(five)
    with pytest.raises(ValueError, match="numbers such as 1,3; found 'one'"):
        Recipe(folds="one").fold_numbers(five)


def test_a_run_directory_reproduces_its_recipe(tmp_path):
    recipe, _ = parse_recipe(["emodb", "--seed", "7", "--audio_layers", "weighted"])
    open_run(tmp_path / "run", recipe, CORPUS)
    again, _ = parse_recipe([str(tmp_path / "run" / "recipe.yaml")])
    assert again.to_dict() == recipe.to_dict()
    for name in RECORDED:
        assert name in again.training, name


def test_another_recipe_in_the_same_directory_is_refused_by_field(tmp_path):
    open_run(tmp_path, parse_recipe(["emodb", "--seed", "1"])[0], CORPUS)
    open_run(tmp_path, parse_recipe(["emodb", "--seed", "1", "--folds", "2", "--data_dir", "elsewhere"])[0], CORPUS)
    seeds = r"augmentation_seed \(1 there, 2 here\); num_folds \(None there, 4 here\); seed \(1 there, 2 here\)"
    with pytest.raises(ValueError, match=f"different are: {seeds}"):
        open_run(tmp_path, parse_recipe(["emodb", "--seed", "2", "--num_folds", "4"])[0], CORPUS)


def test_an_output_directory_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be written"):
        open_run(tmp_path / "file" / "run", Recipe(), CORPUS)


def test_a_run_is_not_continued_with_another_corpus_under_the_same_name(tmp_path):
    recipe = parse_recipe(["emodb"])[0]
    open_run(tmp_path, recipe, CORPUS)
    moved = CORPUS.map(lambda row: {"audio": f"/elsewhere/{row['id']}.wav"})
    open_run(tmp_path, recipe, moved)  # the same recordings in another place
    for column, value in (("label", 0), ("speaker", "s9"), ("id", "u9")):
        changed = CORPUS.map(lambda row, i, c=column, v=value: {c: v if i == 1 else row[c]}, with_indices=True)
        with pytest.raises(ValueError, match="The corpus has changed since"):
            open_run(tmp_path, recipe, changed)


def test_identity_ignores_only_fields_that_exist():
    known = set(parse_recipe([])[0].to_dict()) | {f.name for f in dataclasses.fields(Recipe)}
    from lascl.training import LaSCLTrainingArguments

    known |= {f.name for f in dataclasses.fields(LaSCLTrainingArguments)}
    assert known | {"activation_checkpointing"} >= NOT_IDENTITY  # a field of newer versions of transformers


def test_every_recipe_field_is_read():
    """By what trains or publishes or by the recipe itself, or handed on as a field of the configuration."""
    read = set()
    for path in (ROOT / "train.py", ROOT / "hub" / "publish.py", *(ROOT / "training").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Attribute)
                and isinstance(node.value, ast.Name)
                and node.value.id in ("recipe", "self")
            ):
                read.add(node.attr)
    config = set(LaSCLConfig.field_defaults())
    fields = {f.name for f in dataclasses.fields(Recipe)}
    assert fields - config - read == set()


def test_the_types_of_a_recipe_say_what_its_fields_hold():
    """Of every shipped recipe, with mappings, lists, words and numbers in it."""
    hints = get_type_hints(Recipe)
    more = ["--labels", '{"joy": "happiness"}', "--corpus_options", '{"a": 1}', "--init_from", "org/name"]
    for argv in [[path.stem] for path in PLAIN] + [["quickstart", *more], ["quickstart", "--labels", "joy,fear"]]:
        recipe, _ = parse_recipe(argv)
        for name, value in vars(recipe).items():
            kinds = {get_origin(kind) or kind for kind in get_args(hints[name]) or [hints[name]]}
            assert type(value) in kinds or (float in kinds and type(value) is int), f"{name}: {value!r}, {kinds}"


def test_every_recipe_field_has_a_line_of_help(capsys):
    with pytest.raises(SystemExit):
        parse_recipe(["--help-all"])
    printed = " ".join(capsys.readouterr().out.split())
    for field in dataclasses.fields(Recipe):
        if field.init:
            assert field.metadata["help"] in printed, field.name
    assert "--num_train_epochs" in printed

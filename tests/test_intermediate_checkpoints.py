"""What an interrupted fold goes on from: of a frozen encoder, no weights of it."""

import shutil

import pytest
import tiny
from safetensors import safe_open

from lascl import LaSCLForAudioClassification
from lascl.train import main
from lascl.training.random_encoders import save_random_audio_encoder


@pytest.fixture(scope="module")
def recipe(audio_encoders, text_encoder, emodb_like):
    fields = {"corpus": "emodb", "data_dir": emodb_like, "allow_partial": "true", "folds": "1", "disable_tqdm": "true"}
    fields |= {"audio_encoder": audio_encoders["wav2vec2-layer"], "text_encoder": text_encoder}
    fields |= {"projection_dim": "8", "standardise_audio": "true", "num_train_epochs": "2", "global_batch_size": "16"}
    fields |= {"augmentation": "gain", "augmentation_period": "1", "max_duration_s": "0.3"}
    return [part for name, value in fields.items() for part in (f"--{name}", str(value))]


@pytest.mark.parametrize(
    "way", [("--freeze_audio_encoder", "true"), pytest.param(("--lora_rank", "2"), marks=pytest.mark.slow)]
)
def test_intermediate_checkpoints_hold_what_is_trained_and_end_in_the_same_bytes(recipe, tmp_path, monkeypatch, way):
    if way[0] == "--lora_rank":
        pytest.importorskip("peft")
    command, straight = [*recipe, *way], tmp_path / "straight"
    main([*command, "--output_dir", str(straight)])
    tiny.cut_off(monkeypatch, [*command, "--output_dir", str(tmp_path / "run")], after_steps=5)
    *_, folder = (tmp_path / "run" / "fold-1" / "trainer").glob("checkpoint-*")
    with safe_open(folder / "model.safetensors", "pt") as file:
        kept = set(file.keys())
    of_encoder = {name for name in kept if "audio_encoder." in name}
    assert {name for name in of_encoder if "lora_" not in name} == set()
    assert bool(of_encoder) == (way[0] == "--lora_rank")
    assert {name.split(".")[0 if name.startswith("class") else 1] for name in kept - of_encoder} == {
        *("audio_projection", "text_projection", "classifier", "label_features", "pooled_mean", "pooled_std")
    }
    assert {"optimizer.pt", "scheduler.pt", "trainer_state.json"} <= {path.name for path in folder.iterdir()}
    if way[0] != "--lora_rank":
        with pytest.raises(ValueError, match="holds no weights of the audio encoder, as an intermediate checkpoint"):
            LaSCLForAudioClassification.from_pretrained(folder)
    main([*command, "--output_dir", str(tmp_path / "run")])
    for name in ("checkpoint/model.safetensors", "predictions.csv", "log_history.json"):
        found, expected = ((run / "fold-1" / name).read_bytes() for run in (tmp_path / "run", straight))
        assert found == expected, name


def test_an_encoder_that_has_changed_meanwhile_is_not_gone_on_with(recipe, tmp_path, monkeypatch, capsys):
    where = recipe.index("--audio_encoder") + 1
    encoder = shutil.copytree(recipe[where], tmp_path / "encoder")
    command = [*recipe[:where], str(encoder), *recipe[where + 1 :], "--freeze_audio_encoder", "true"]
    command += ["--output_dir", str(tmp_path / "run")]
    tiny.cut_off(monkeypatch, command, after_steps=5)
    save_random_audio_encoder(tiny.AUDIO_ENCODERS["wav2vec2-layer"], encoder, seed=9)
    with pytest.raises(SystemExit) as exit:
        main(command)
    assert exit.value.code == 2
    assert "was trained on top of another audio encoder than is loaded now" in capsys.readouterr().err

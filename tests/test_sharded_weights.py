"""FSDP and ZeRO-3 trained, and failed when a fold was saved: they are refused, whichever way they are asked for."""

import json

import pytest

from lascl import LaSCLTrainingArguments
from lascl.train import main


ZERO_3 = {"zero_optimization": {"stage": 3}, "train_micro_batch_size_per_gpu": "auto"}
WAYS = {
    "fsdp, a word": ("FSDP", {"fsdp": "full_shard"}, {}),
    "fsdp, true": ("FSDP", {"fsdp": True}, {}),
    "fsdp_config": ("FSDP", {"fsdp_config": {"version": 2}}, {}),
    "accelerate launch with FSDP": ("FSDP", {}, {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}),
    "deepspeed, a mapping": ("ZeRO-3", {"deepspeed": ZERO_3}, {}),
    "deepspeed, a file": ("ZeRO-3", {"deepspeed": "{file}"}, {}),
    "deepspeed, its text": ("ZeRO-3", {"deepspeed": json.dumps(ZERO_3)}, {}),
    "accelerate launch with ZeRO-3": (
        "ZeRO-3",
        {},
        {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"},
    ),
    "accelerate launch with a file": (
        "ZeRO-3",
        {},
        {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_CONFIG_FILE": "{file}"},
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_weights_in_pieces_are_refused_with_what_to_do_instead(tmp_path, monkeypatch, way):
    name, fields, variables = WAYS[way]
    file = tmp_path / "zero3.json"
    file.write_text(json.dumps(ZERO_3))
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value.replace("{file}", str(file)))
    fields = {field: str(file) if value == "{file}" else value for field, value in fields.items()}
    message = "it was accepted"
    try:
        LaSCLTrainingArguments(str(tmp_path / "run"), use_cpu=True, **fields)
    except Exception as error:
        message = f"{type(error).__name__}: {error}"
    assert message.startswith("ValueError: ") and f"{name} is not supported" in message, message
    assert "DDP" in message and "contrastive_chunk_size" in message and "ZeRO-2" in message and "\n" not in message


def test_train_py_says_so_in_one_sentence(audio_encoders, text_encoder, emodb_like, tmp_path, capsys):
    command = ["emodb", "--data_dir", str(emodb_like), "--allow_partial", "true", "--text_encoder", text_encoder]
    command += ["--audio_encoder", audio_encoders["wav2vec2-layer"], "--output_dir", str(tmp_path / "run")]
    code = None
    try:
        main([*command, "--use_cpu", "true", "--num_train_epochs", "1", "--fsdp", "full_shard"])
    except SystemExit as exit:
        code = exit.code
    except Exception as error:
        code = type(error).__name__
    assert code == 2
    error = capsys.readouterr().err
    assert error.startswith("train.py: FSDP is not supported") and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_zero_2_is_not_refused():
    from lascl.training import arguments

    assert hasattr(arguments, "refuse_sharded_weights")
    arguments.refuse_sharded_weights(None, None, {"zero_optimization": {"stage": 2}})
    arguments.refuse_sharded_weights("", {}, None)

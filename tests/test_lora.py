"""LoRA: adapters that start as nothing, train alone in the encoder, and end as stock weights."""

import json
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny import LABELS, cut_off, read_csv, recording
from transformers import AutoFeatureExtractor, AutoModel, AutoModelForAudioClassification, set_seed

from lascl import LaSCLForAudioClassification, LaSCLTrainer, LaSCLTrainingArguments
from lascl.data import SpeechCollator, read_audio
from lascl.train import main
from lascl.training.lora import add_lora


FAMILIES = ["wavlm-group", "wavlm-layer", "wav2vec2-layer", "hubert-group", "whisper", "data2vec-audio"]


@pytest.fixture(scope="module")
def build(audio_encoders, text_encoder):
    """A tiny model with the same weights at every call, and a batch of eight clips of different lengths."""

    def build(family, **config):
        set_seed(7)
        model = LaSCLForAudioClassification.from_encoders(
            audio_encoders[family], text_encoder, LABELS, window_s=1, projection_dim=8, **config
        )
        seconds = {"chunk_length": 1} if family == "whisper" else {}
        return model, SpeechCollator(AutoFeatureExtractor.from_pretrained(audio_encoders[family], **seconds))

    return build


def clips() -> list[dict]:
    return [
        {"id": f"clip-{index}", "label": index % 4, "views": [recording(index, 0.05 + 0.01 * index)]}
        for index in range(8)
    ]


def answers(model, batch) -> dict[str, torch.Tensor]:
    model.eval()
    with torch.no_grad():
        outputs = model(**batch)
    return {name: outputs[name] for name in ("audio_embeds", "class_logits", "logits")}


def copies(model) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def stock_name(name: str) -> str:
    return name.replace(".base_layer", "")


def fill_adapters(model):
    """Values as large as the weights themselves, in the adapters alone."""
    generator = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_start_as_nothing_take_part_in_the_answer_and_merge_to_stock(build, family):
    model, collate = build(family)
    batch, names = collate(clips()), list(model.state_dict())
    plain = answers(model, batch)
    adapters = add_lora(model, 2)
    torch.testing.assert_close(answers(model, batch), plain, rtol=0, atol=0)

    fill_adapters(model)
    unmerged = answers(model, batch)
    assert (unmerged["audio_embeds"] - plain["audio_embeds"]).abs().max() > 0.01
    found = {name: tensor.double().numpy() for name, tensor in copies(model).items()}
    adapted = sorted(name.removesuffix(".base_layer.weight") for name in found if name.endswith("base_layer.weight"))
    assert len(adapted) == 2 * 4  # layers, projections
    # By hand: alpha = 2 r, so that the scale alpha / r is 2 for every rank.
    expected = {
        f"{name}.weight": found[f"{name}.base_layer.weight"]
        + 2 * found[f"{name}.lora_B.default.weight"] @ found[f"{name}.lora_A.default.weight"]
        for name in adapted
    }

    assert adapters.merge_and_unload() is model.lascl.audio_encoder
    assert list(model.state_dict()) == names
    torch.testing.assert_close(answers(model, batch), unmerged, rtol=0, atol=1e-5)
    merged = copies(model)
    for name, tensor in merged.items():
        if name in expected:
            np.testing.assert_allclose(tensor.numpy(), expected[name], rtol=0, atol=1e-6)
            assert np.abs(expected[name] - found[name.replace(".weight", ".base_layer.weight")]).max() > 0.1
        else:
            before = {stock_name(other): value for other, value in found.items()}[name]
            np.testing.assert_array_equal(tensor.double().numpy(), before)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("recompute", [False, True], ids=["", "activation checkpointing"])
def test_training_moves_adapters_projections_and_classifier_alone(build, tmp_path, family, recompute):
    model, collate = build(family, audio_layers="weighted")
    add_lora(model, 2)
    before = copies(model)
    args = LaSCLTrainingArguments(
        str(tmp_path),
        global_batch_size=8,
        num_views=1,
        max_steps=3,
        warmup_steps=0,
        gradient_checkpointing=recompute,
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
    )
    LaSCLTrainer(model, args, train_dataset=clips(), data_collator=collate).train()
    moved = {name for name, tensor in copies(model).items() if not torch.equal(tensor, before[name])}
    adapters = {name for name in before if ".lora_" in name}
    assert len(adapters) == 2 * 4 * 2 and adapters <= moved
    assert not [name for name in moved - adapters if "audio_encoder" in name]
    others = {name.removeprefix("lascl.").split(".")[0] for name in moved - adapters}
    assert others == {"layer_weights", "audio_projection", "text_projection", "classifier"}


def test_adapters_have_the_encoder_s_learning_rate_and_frozen_weights_none(build, tmp_path):
    model, _ = build("wavlm-layer")
    add_lora(model, 2)
    args = LaSCLTrainingArguments(
        str(tmp_path), encoder_learning_rate=2e-4, learning_rate=3e-3, weight_decay=0.07, use_cpu=True
    )
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = LaSCLTrainer(model, args, train_dataset=clips()).create_optimizer().param_groups
    found = {names[id(p)]: (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    in_encoder = {name: rates for name, rates in found.items() if "audio_encoder" in name}
    assert len(in_encoder) == 2 * 4 * 2 and all(".lora_" in name for name in in_encoder)
    assert set(in_encoder.values()) == {(2e-4, 0.07)}
    assert {rate for name, (rate, _) in found.items() if name not in in_encoder} == {3e-3}


# ------------------------------------------------------------------------------------------------------- train.py


@pytest.fixture(scope="module")
def command(emodb_like, audio_encoders, text_encoder):
    return [
        *("emodb", "--data_dir", str(emodb_like), "--allow_partial", "true", "--folds", "1"),
        *("--audio_encoder", audio_encoders["wavlm-layer"], "--text_encoder", text_encoder, "--max_duration_s", "0.15"),
        *("--num_train_epochs", "2", "--global_batch_size", "16", "--augmentation", "gain", "--disable_tqdm", "true"),
        *("--lora_rank", "2", "--encoder_learning_rate", "1e-2", "--save_strategy", "steps", "--save_steps", "2"),
    ]


@pytest.fixture(scope="module")
def finished(command, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("lora") / "run"
    main([*command, "--output_dir", str(run_dir)])
    return run_dir


def test_a_run_with_adapters_leaves_a_checkpoint_that_needs_no_peft(finished, audio_encoders, emodb_like, monkeypatch):
    checkpoint = finished / "fold-1" / "checkpoint"
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError):
        import peft  # noqa: F401
    model, loading = AutoModelForAudioClassification.from_pretrained(checkpoint, output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"] and not loading["mismatched_keys"]
    assert not list(checkpoint.glob("adapter*")) and "lora" not in (checkpoint / "config.json").read_text().lower()
    AutoModel.from_pretrained(checkpoint)
    # It learned: attention's projections alone differ from the encoder that training started from.
    stock = AutoModel.from_pretrained(audio_encoders["wavlm-layer"]).state_dict()
    trained = dict(model.lascl.audio_encoder.state_dict().items())
    assert trained.keys() == stock.keys()
    changed = {name for name in stock if not torch.equal(trained[name], stock[name])}
    projections = ("q_proj", "k_proj", "v_proj", "out_proj")
    assert changed == {f"encoder.layers.{n}.attention.{p}.weight" for n in range(2) for p in projections}

    extractor, row = AutoFeatureExtractor.from_pretrained(checkpoint), read_csv(finished / "fold-1/predictions.csv")[5]
    samples = read_audio(emodb_like / f"{row['id']}.wav", max_duration_s=0.15)
    probabilities = answers(model, extractor(samples, sampling_rate=16_000, return_tensors="pt"))["logits"].softmax(-1)
    for index, label in model.config.id2label.items():
        assert float(probabilities[0, index]) == pytest.approx(float(row[f"probability_{label}"]), abs=1e-5)


@pytest.mark.slow
def test_a_cut_off_run_with_adapters_ends_as_if_it_had_not_been(finished, command, tmp_path, monkeypatch):
    cut_off(
        monkeypatch, [*command, "--output_dir", str(tmp_path)], after_steps=7
    )  # of 8: after the checkpoint of step 6
    saved = load_file(tmp_path / "fold-1" / "trainer" / "checkpoint-6" / "model.safetensors")
    assert max(tensor.abs().max() for name, tensor in saved.items() if ".lora_B." in name) > 0
    main([*command, "--output_dir", str(tmp_path)])
    for name in ("checkpoint/model.safetensors", "predictions.csv", "log_history.json"):
        assert (tmp_path / "fold-1" / name).read_bytes() == (finished / "fold-1" / name).read_bytes(), name
    assert json.loads((tmp_path / "fold-1" / "log_history.json").read_text())[-1]["step"] == 8


@pytest.mark.parametrize(
    "options, installed, message",
    [
        (("--lora_rank", "2"), False, "lora_rank needs PEFT: pip install 'lascl[lora]'."),
        (("--lora_rank", "-1"), True, "lora_rank must be at least 0; found -1."),
    ],
    ids=["no peft", "negative"],
)
def test_what_cannot_be_adapted_is_said_in_one_sentence(
    command, tmp_path, monkeypatch, capsys, options, installed, message
):
    monkeypatch.setattr("lascl.training.recipe.is_peft_available", lambda: installed)
    with pytest.raises(SystemExit) as exit:
        main([*command, "--output_dir", str(tmp_path / "run"), *options])
    assert exit.value.code == 2 and capsys.readouterr().err == f"train.py: {message}\n"
    assert not (tmp_path / "run").exists()

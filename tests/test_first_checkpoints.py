"""Checkpoints that the first version of LaSCL saved (commit e9d9ffa) still load, and answer as they did then.

`first_checkpoints.json` holds what that commit wrote and answered. Weights are not stored: `fill_from_seed` makes them
from their names and shapes alone. The file was made at that commit by `python tests/test_first_checkpoints.py`.
"""

import copy
import json
import os
import sys
import zlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny import AUDIO_ENCODERS, LABELS, TEXT_ENCODER

from lascl import LaSCLConfig, LaSCLForAudioClassification, LaSCLModel


STORED = Path(__file__).with_name("first_checkpoints.json")
# One of every way in which answers come about: kinds of encoder, layers, pooling, standardising, heads.
FIELDS = {
    "wavlm-group": {"audio_layers": "weighted"},
    "wavlm-layer": {"audio_pooling": "max", "text_encoder": "org/text", "text_encoder_revision": "v2"},
    "hubert-layer": {"prediction_head": "classifier", "contrastive_weight": 0.0},
    "wav2vec2-group": {"standardise_audio": True, "audio_layers": "0,2"},
    "whisper": {"contrastive_temperature": 0.2, "label_template": "{label} speech"},
}


def fill_from_seed(shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """A tensor for each name, that depends on the name and the shape alone."""
    tensors = {}
    for name, shape in shapes.items():
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        tensors[name] = torch.randn(shape, generator=generator) * 0.3
        if name.endswith("pooled_std"):
            tensors[name] = tensors[name].abs() + 0.5
    return tensors


def inputs_of(family: str) -> dict[str, torch.Tensor]:
    """Three utterances of different lengths, padded."""
    generator = torch.Generator().manual_seed(1)
    if family == "whisper":
        return {"input_features": torch.randn(3, 16, 200, generator=generator) * 0.5}
    mask = torch.ones(3, 900, dtype=torch.long)
    mask[1, 500:] = mask[2, 210:] = 0
    return {"input_values": torch.randn(3, 900, generator=generator) * mask, "attention_mask": mask}


def answers_of(model, family) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        output = model.eval()(**inputs_of(family))
    return {name: output[name] for name in ("logits", "class_logits", "audio_embeds", "pooled_audio")}


@pytest.fixture(scope="module")
def stored():
    return json.loads(STORED.read_text(encoding="utf-8"))


def write_checkpoint(entry, folder, without=()):
    """The files of a stored checkpoint, less some tensors."""
    (folder / "config.json").write_text(json.dumps(entry["config"]), encoding="utf-8")
    weights = fill_from_seed({name: shape for name, shape in entry["shapes"].items() if name not in without})
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return weights


@pytest.mark.parametrize("family", FIELDS)
def test_a_first_checkpoint_answers_as_it_did(family, stored, tmp_path):
    entry = stored[family]
    write_checkpoint(entry, tmp_path)
    model = LaSCLForAudioClassification.from_pretrained(tmp_path)
    answers = answers_of(model, family)
    assert set(answers) == set(entry["answers"])
    for name, expected in entry["answers"].items():
        expected = torch.tensor(expected)
        scale = float(expected.abs().max().clamp(min=1))
        torch.testing.assert_close(answers[name], expected, rtol=0, atol=1e-5 * scale, msg=f"{family} {name}")
    assert float(torch.tensor(entry["answers"]["logits"]).std()) > 1e-2


@pytest.mark.parametrize("family", FIELDS)
def test_a_first_checkpoint_is_written_again_with_the_fields_it_had(family, stored, tmp_path):
    """So that it also loads under the code it was saved with; no new field at its default."""
    config = stored[family]["config"]
    LaSCLConfig.from_dict(copy.deepcopy(config)).save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert set(written) - {"architectures", "dtype"} == set(config) - {"architectures", "dtype"}
    for name in set(config) - {"architectures", "dtype", "transformers_version", "audio_config", "text_config"}:
        assert written[name] == config[name], name
    for encoder in ("audio_config", "text_config"):
        # The type implies the default of every version; others of them write it nonetheless.
        assert {name: written[encoder].get(name, value) for name, value in config[encoder].items()} == config[encoder]
    assert LaSCLConfig.from_dict(written) == LaSCLConfig.from_dict(copy.deepcopy(config))


def test_a_later_field_is_written_only_where_it_is_not_the_default(monkeypatch):
    monkeypatch.setattr(LaSCLConfig, "_later_fields", ("audio_pooling",), raising=False)
    assert "audio_pooling" not in json.loads(LaSCLConfig().to_json_string())
    assert json.loads(LaSCLConfig(audio_pooling="max").to_json_string())["audio_pooling"] == "max"


@pytest.mark.parametrize("loaded", [LaSCLModel, LaSCLForAudioClassification])
@pytest.mark.parametrize("absent", ["label_features", "pooled_mean", "pooled_std", "text_projection.output.bias"])
def test_a_tensor_that_a_checkpoint_lacks_gets_its_start_and_no_other_changes(loaded, absent, stored, tmp_path):
    entry = stored["wav2vec2-group"]
    weights = write_checkpoint(entry, tmp_path, without={f"lascl.{absent}"})
    poison = [torch.full((1 << 12,), 7.0) for _ in range(64)]  # memory that is handed out again must not look clean
    del poison
    base = loaded.from_pretrained(tmp_path).base_model
    start = {"label_features": float("nan"), "pooled_std": 1.0}.get(absent, 0.0)
    tensors = base.state_dict()
    torch.testing.assert_close(
        tensors.pop(absent), torch.full(entry["shapes"][f"lascl.{absent}"], start), rtol=0, atol=0, equal_nan=True
    )
    for name, tensor in tensors.items():
        assert torch.equal(tensor, weights[f"lascl.{name}"]), name


if __name__ == "__main__":
    from lascl.training.random_encoders import save_random_audio_encoder, save_random_text_encoder

    made, root = {}, Path(sys.argv[1])
    text = str(save_random_text_encoder(TEXT_ENCODER, root / "text"))
    for family, fields in FIELDS.items():
        audio = str(save_random_audio_encoder(AUDIO_ENCODERS[family], root / family))
        named = {"text_encoder": None, "text_encoder_revision": None, **fields}
        others = {name: value for name, value in fields.items() if not name.startswith("text_encoder")}
        model = LaSCLForAudioClassification.from_encoders(audio, text, LABELS, projection_dim=8, **others)
        model.config.text_encoder = named["text_encoder"]
        model.config.text_encoder_revision = named["text_encoder_revision"]
        shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        model.load_state_dict(fill_from_seed(shapes))
        model.save_pretrained(root / f"{family}-saved")
        config = json.loads((root / f"{family}-saved" / "config.json").read_text(encoding="utf-8"))
        model = LaSCLForAudioClassification.from_pretrained(root / f"{family}-saved")
        answers = {name: value.tolist() for name, value in answers_of(model, family).items()}
        made[family] = {"config": config, "shapes": shapes, "answers": answers}
        assert os.fspath(root) not in json.dumps(config)
    STORED.write_text(json.dumps(made, sort_keys=True) + "\n", encoding="utf-8")

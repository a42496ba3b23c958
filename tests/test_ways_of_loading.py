"""The ways in which people load, convert and compile models: each answers as the plain one, or nearly."""

import copy
import importlib.util
import inspect
import logging

import pytest
import torch
from test_modeling import speech
from tiny import AUDIO_ENCODERS, FINE, LABELS
from transformers import AutoModel, TorchAoConfig

from lascl import LaSCLForAudioClassification, LaSCLModel
from lascl.encoders_lascl import encode_audio
from lascl.training.random_encoders import save_random_audio_encoder


FAMILIES = ["wavlm-layer", "wav2vec2-group", "data2vec-audio", "whisper"]
# The two that differ most; the others in `make slow`.
USUALLY = [
    pytest.param(name, marks=() if name in ("whisper", "wavlm-layer") else pytest.mark.slow) for name in FAMILIES
]


@pytest.fixture(scope="module")
def checkpoints(text_encoder, tmp_path_factory):
    """By family: a saved checkpoint, and its model as it was built. A mean over few frames would show the rounding of
    each, so they are fine."""
    root, saved = tmp_path_factory.mktemp("checkpoints"), {}
    for family in FAMILIES:
        spec = AUDIO_ENCODERS[family] | (FINE if family != "whisper" else {})
        encoder = str(save_random_audio_encoder(spec, root / f"{family}-encoder"))
        torch.manual_seed(0)
        model = LaSCLForAudioClassification.from_encoders(encoder, text_encoder, LABELS, projection_dim=8).eval()
        model.save_pretrained(root / family)
        saved[family] = root / family, model
    return saved


def load(folder, **options):
    return LaSCLForAudioClassification.from_pretrained(folder, **options).eval()


@torch.no_grad()
def probabilities(model, family, dtype=torch.float32):
    """(3, K) of a padded batch; what is no error here, but for its type, is one of the test."""
    inputs = {name: value.to(dtype) if value.is_floating_point() else value for name, value in speech(family).items()}
    try:
        return model(**inputs).logits.float().softmax(dim=-1)
    except Exception as error:
        pytest.fail(f"{type(error).__name__}: {error}")


def assert_near(found, expected, tolerance):
    assert (found - expected).abs().max() <= tolerance
    assert (expected - 1 / len(LABELS)).abs().max() > 3 * tolerance  # one that knew nothing would not pass


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", FAMILIES)
def test_in_half_precision(family, dtype, checkpoints):
    folder, plain = checkpoints[family]
    expected = probabilities(plain, family)
    tolerance = 0.03 if dtype == torch.bfloat16 else 0.004
    assert_near(probabilities(load(folder, dtype=dtype), family, dtype), expected, tolerance)
    assert_near(probabilities(load(folder).to(dtype), family, dtype), expected, tolerance)
    if dtype == torch.float16:
        assert_near(probabilities(load(folder).half(), family, dtype), expected, tolerance)


@pytest.mark.parametrize("family", FAMILIES)
def test_placed_by_accelerate_and_from_an_empty_shell(family, checkpoints, tmp_path):
    folder, plain = checkpoints[family]
    expected = probabilities(plain, family)
    assert_near(probabilities(load(folder, device_map="auto"), family), expected, 1e-6)
    parts = {"lascl.audio_encoder": "cpu", "lascl.audio_projection": "cpu", "lascl.text_projection": "disk"}
    parts |= {"lascl.label_features": "cpu", "classifier": "disk"}
    offloaded = load(folder, device_map=parts, offload_folder=str(tmp_path / "disk"))
    assert_near(probabilities(offloaded, family), expected, 1e-6)
    with torch.device("meta"):
        shell = LaSCLForAudioClassification(plain.config)
    shell.load_state_dict(plain.state_dict(), assign=True)
    assert_near(probabilities(shell.eval(), family), expected, 1e-6)
    # What stays frozen in training is frozen here too.
    frozen = {name for name, parameter in plain.named_parameters() if not parameter.requires_grad}
    assert frozen == {name for name, parameter in shell.named_parameters() if not parameter.requires_grad}


@pytest.mark.parametrize("family", USUALLY)
def test_compiled_in_one_piece(family, checkpoints):
    folder, plain = checkpoints[family]
    compiled = torch.compile(load(folder), backend="eager", fullgraph=True)
    # Some versions of transformers log while they run, which torch traces only if it is told to leave it out.
    with torch._dynamo.config.patch(ignore_logging_functions={logging.Logger.debug}):
        assert_near(probabilities(compiled, family), probabilities(plain, family), 1e-6)


@pytest.mark.parametrize("family", USUALLY)
def test_exported(family, checkpoints):
    folder, plain = checkpoints[family]
    model, inputs = load(folder), speech(family)
    try:
        program = torch.export.export(model, (), kwargs=inputs)
    except Exception as error:
        pytest.fail(f"{type(error).__name__}: {str(error)[:500]}")
    assert_near(probabilities(program.module(), family), probabilities(plain, family), 1e-6)
    assert_near(probabilities(model, family), probabilities(plain, family), 1e-6)  # and it goes on as it was


@pytest.mark.parametrize("family", FAMILIES)
def test_quantised_by_torch(family, checkpoints):
    folder, plain = checkpoints[family]
    quantised = torch.ao.quantization.quantize_dynamic(load(folder), {torch.nn.Linear})
    assert type(quantised.lascl.text_projection.hidden) is not torch.nn.Linear
    assert_near(probabilities(quantised, family), probabilities(plain, family), 0.05)


@pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="needs torchao: pip install torchao")
@pytest.mark.parametrize("name", ["Int8WeightOnlyConfig", "Int8DynamicActivationInt8WeightConfig"])
@pytest.mark.parametrize("family", FAMILIES)
def test_quantised_by_torchao(family, name, checkpoints):
    from torchao import quantization

    folder, plain = checkpoints[family]
    config, expected = getattr(quantization, name)(), probabilities(plain, family)
    in_place = copy.deepcopy(plain)
    quantization.quantize_(in_place, config)
    assert_near(probabilities(in_place, family), expected, 0.05)
    try:
        loaded = load(folder, quantization_config=TorchAoConfig(config))
    except NotImplementedError as error:
        if "aten.uniform_" not in str(error):
            raise
        pytest.skip("this version of transformers draws the weights of its own layers anew, which this torchao refuses")
    assert type(loaded.lascl.text_projection.hidden.weight.data) is not torch.Tensor
    assert_near(probabilities(loaded, family), expected, 0.05)


class IntegerWeight(torch.nn.Module):
    """A linear layer as bitsandbytes has them: integers for a weight, a bias in the type that is computed in."""

    def __init__(self, linear: torch.nn.Linear):
        super().__init__()
        self.scale = float(linear.weight.abs().max() / 127)
        weight = (linear.weight.detach() / self.scale).round().to(torch.int8)
        self.weight, self.bias = torch.nn.Parameter(weight, requires_grad=False), linear.bias

    def forward(self, x):
        return torch.nn.functional.linear(x, self.weight.to(x.dtype) * self.scale, self.bias)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_label_features_are_cast_to_what_is_computed_in_not_to_the_type_of_an_integer_weight(dtype, checkpoints):
    folder, plain = checkpoints["wavlm-layer"]
    model = load(folder, dtype=dtype)
    for name in ("hidden", "output"):
        setattr(model.lascl.text_projection, name, IntegerWeight(getattr(model.lascl.text_projection, name)))
    assert_near(probabilities(model, "wavlm-layer", dtype), probabilities(plain, "wavlm-layer"), 0.05)


# -------------------------------------------------------------------------------------------------- what is returned


@pytest.mark.parametrize("layers", ["last", "weighted", "2,0"])
@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_states_are_those_of_the_audio_encoder(family, layers, audio_encoders, text_encoder):
    torch.manual_seed(0)
    model = LaSCLForAudioClassification.from_encoders(
        audio_encoders[family], text_encoder, LABELS, projection_dim=8, audio_layers=layers
    ).eval()
    assert "output_hidden_states" in inspect.signature(model.forward).parameters
    inputs = speech(family)
    with torch.no_grad():
        plain, full = model(**inputs), model(**inputs, output_hidden_states=True)
        expected, _ = encode_audio(
            model.lascl.audio_encoder, inputs[model.main_input_name], inputs["attention_mask"], all_layers=True
        )
    assert "hidden_states" not in plain and len(full.hidden_states) == 3
    for found, state in zip(full.hidden_states, expected, strict=True):
        assert torch.equal(found, state)
    assert torch.allclose(full.logits, plain.logits, atol=1e-6)
    model.config.output_hidden_states = True
    with torch.no_grad():
        assert len(model(**inputs).hidden_states) == len(model.lascl(**inputs).hidden_states) == 3


@pytest.mark.parametrize("cls", [LaSCLModel, LaSCLForAudioClassification])
def test_without_a_dict_the_same_comes_as_a_tuple(cls, checkpoints):
    folder, _ = checkpoints["wavlm-layer"]
    model = cls.from_pretrained(folder).eval()
    assert "return_dict" in inspect.signature(model.forward).parameters
    with torch.no_grad():
        outputs, found = model(**speech()), model(**speech(), return_dict=False)
        model.config.return_dict = False
        by_configuration = model(**speech())
    assert type(found) is type(by_configuration) is tuple
    for one, two, value in zip(found, by_configuration, outputs.values(), strict=True):
        assert torch.equal(one, value) and torch.equal(two, value)


@pytest.mark.parametrize("family", FAMILIES)
def test_input_embeddings_are_the_convolution_that_audio_enters_by(family, checkpoints):
    folder, _ = checkpoints[family]
    for model in (load(folder), AutoModel.from_pretrained(folder)):
        try:
            entrance = model.get_input_embeddings()
        except NotImplementedError as error:
            pytest.fail(str(error))
        assert isinstance(entrance, torch.nn.Conv1d)
        before, other = model(**speech(family)).audio_embeds, copy.deepcopy(entrance)
        model.set_input_embeddings(other)
        assert model.get_input_embeddings() is other and entrance.in_channels == (16 if family == "whisper" else 1)
        torch.nn.init.normal_(other.weight)
        assert (model(**speech(family)).audio_embeds - before).abs().max() > 1e-3  # audio goes through it

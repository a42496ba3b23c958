"""WavLM's attention: stock's answers and gradients without its memory. Other encoders use stock's fused attention."""

import copy

import pytest
import tiny
import torch
from transformers import AutoModel, WavLMConfig, WavLMModel

import lascl.encoders_lascl
from lascl import LaSCLForAudioClassification
from lascl.encoders_lascl import MASK_ALIGNMENT, RecomputedWavLMAttention, load_audio_encoder


FAMILIES = {"group norm": {}, "layer norm": tiny.LAYER_NORM}
DROPOUTS = ("attention_dropout", "hidden_dropout", "activation_dropout", "feat_proj_dropout")
# Largest error allowed, of outputs and of gradients relative to the largest gradient.
TOLERANCE = {torch.float32: 3e-5, torch.float64: 1e-12}


def stock_and_ours(dropout=0.0, dtype=torch.float32, **changes) -> tuple[WavLMModel, WavLMModel]:
    torch.manual_seed(0)
    spec = {**tiny.CONVOLUTIONAL, **tiny.FINE}
    spec |= {"num_hidden_layers": 3, "hidden_size": 32, "num_attention_heads": 4}
    stock = WavLMModel(WavLMConfig(**{**spec, **tiny.LAYER_NORM, **changes, **dict.fromkeys(DROPOUTS, dropout)}))
    with torch.no_grad():
        for name, parameter in stock.named_parameters():
            if ".attention." in name:
                parameter.normal_(std=0.2)  # far from their start, where all frames and distances count alike
    ours = lascl.encoders_lascl._adapt(copy.deepcopy(stock))
    return stock.to(dtype).train(), ours.to(dtype).train()


def waveforms(padded: bool, dtype=torch.float32):
    """Three rows of 1100 samples, 109 frames; with padding the last two are shorter."""
    waveform = torch.randn(3, 1100, dtype=dtype, generator=torch.Generator().manual_seed(1))
    if not padded:
        return {"input_values": waveform}
    mask = (torch.arange(1100) < torch.tensor([[1100], [700], [333]])).long()
    return {"input_values": waveform * mask, "attention_mask": mask}


def run(encoder, inputs, seed=3, autocast=None):
    """Outputs on valid frames, gradients by parameter, and the next random number."""
    encoder.zero_grad()
    torch.manual_seed(seed)
    with torch.autocast("cpu", dtype=autocast, enabled=autocast is not None):
        output = encoder(**inputs).last_hidden_state.to(inputs["input_values"].dtype)
    if "attention_mask" in inputs:
        valid = encoder._get_feature_vector_attention_mask(output.shape[1], inputs["attention_mask"])
        output = output * valid[..., None]
    weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)
    (output * weights).sum().backward()
    gradients = {name: p.grad for name, p in encoder.named_parameters() if p.grad is not None}
    return output.detach(), gradients, torch.rand(1).item()


def assert_same(found, expected, tolerance):
    (output, gradients, drawn), (wanted, wanted_gradients, wanted_drawn) = found, expected
    assert (output - wanted).abs().max() <= tolerance * wanted.abs().max()
    assert gradients.keys() == wanted_gradients.keys()
    # In float32, sums that nearly cancel (the gates') are no more exact than what they are made of.
    least = 0.01 * max(gradient.abs().max() for gradient in wanted_gradients.values())
    for name, gradient in wanted_gradients.items():
        assert (gradients[name] - gradient).abs().max() <= tolerance * max(gradient.abs().max(), least), name
    assert drawn == wanted_drawn


@pytest.mark.parametrize("alignment", [1, 16])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("family", FAMILIES)
def test_outputs_gradients_and_the_dropout_stream_are_stocks(family, dtype, padded, dropout, alignment, monkeypatch):
    monkeypatch.setitem(MASK_ALIGNMENT, "cpu", alignment)
    norm = {"feat_extract_norm": "group", "do_stable_layer_norm": False} if family == "group norm" else {}
    stock, ours = stock_and_ours(dropout, dtype, **norm)
    if family == "group norm":  # its masked norm is another test's: here both see stock's
        for convolution in ours.feature_extractor.conv_layers[:1]:
            convolution.layer_norm = copy.deepcopy(stock.feature_extractor.conv_layers[0].layer_norm)
    inputs = waveforms(padded, dtype)
    expected = run(stock, inputs)
    assert_same(run(ours, inputs), expected, TOLERANCE[dtype])
    if dropout:
        other, _, _ = run(ours, inputs, seed=4)
        assert (other - expected[0]).abs().max() > 0.1


@pytest.mark.parametrize("autocast", [torch.bfloat16, torch.float16])
def test_mixed_precision_draws_as_stock_does(autocast):
    """Other draws would be another computation: a tenth of the outputs' size, not a hundredth."""
    stock, ours = stock_and_ours(dropout=0.1)
    inputs = waveforms(padded=True)
    (wanted, gradients, wanted_drawn), (found, found_gradients, drawn) = (
        run(encoder, inputs, autocast=autocast) for encoder in (stock, ours)
    )
    assert drawn == wanted_drawn and found_gradients.keys() == gradients.keys()
    assert (found - wanted).abs().max() < 0.02 * wanted.abs().max()
    other, _, _ = run(ours, inputs, seed=4, autocast=autocast)
    assert (other - wanted).abs().max() > 0.1 * wanted.abs().max()


@pytest.mark.parametrize("padded", [False, True])
def test_inference_gives_stocks_answer(padded):
    stock, ours = stock_and_ours(dropout=0.1)
    inputs = waveforms(padded)
    with torch.no_grad():
        expected, found = (encoder.eval()(**inputs).last_hidden_state for encoder in (stock, ours))
    mask = slice(None) if not padded else stock._get_feature_vector_attention_mask(109, inputs["attention_mask"]).bool()
    torch.testing.assert_close(found[mask], expected[mask], rtol=0, atol=1e-5)


def test_backward_keeps_no_tensor_of_frames_by_frames_but_the_distances_once():
    _, ours = stock_and_ours(dropout=0.1)
    frames, heads, rows, kept = 109, 4, 3, {}

    def keep(tensor):
        if tensor.numel() >= heads * frames * frames:
            kept[tensor.untyped_storage().data_ptr()] = tensor.shape
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = ours(**waveforms(padded=True)).last_hidden_state
    assert output.shape == (rows, frames, 32)
    assert list(kept.values()) == [(heads, frames, frames)]


def test_a_layer_of_large_shape_keeps_at_most_45_per_cent_of_stocks_bytes():
    """1024 wide, 16 heads, 10 s (499 frames), attention dropout 0.1, one more layer beside another."""
    kept = {}
    for num_layers in (1, 2):
        torch.manual_seed(0)
        config = WavLMConfig(
            hidden_size=1024,
            num_attention_heads=16,
            intermediate_size=4096,
            num_hidden_layers=num_layers,
            conv_dim=[8],
            conv_kernel=[4],
            conv_stride=[2],
            attention_dropout=0.1,
            hidden_dropout=0.0,
            activation_dropout=0.0,
            **tiny.LAYER_NORM,
        )
        stock = WavLMModel(config).train()
        for name, model in (("stock", stock), ("ours", lascl.encoders_lascl._adapt(copy.deepcopy(stock)))):
            parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
            storages = {}

            def keep(tensor, storages=storages, parameters=parameters):
                storage = tensor.untyped_storage()
                if storage.data_ptr() not in parameters:
                    storages[storage.data_ptr()] = storage.nbytes()
                return tensor

            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                output = model.encoder(torch.randn(1, 499, 1024)).last_hidden_state
            kept[name, num_layers] = sum(storages.values())
            del output
    assert kept["ours", 2] - kept["ours", 1] <= 0.45 * (kept["stock", 2] - kept["stock", 1])


def test_half_precision_is_no_less_exact_than_stocks():
    stock, ours = stock_and_ours()
    inputs = waveforms(padded=True)
    with torch.no_grad():
        exact = copy.deepcopy(stock).double()(inputs["input_values"].double(), inputs["attention_mask"])
    valid = stock._get_feature_vector_attention_mask(109, inputs["attention_mask"]).bool()
    errors = []
    for encoder in (stock, ours):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = encoder(**inputs).last_hidden_state
        errors.append((output - exact.last_hidden_state)[valid].abs().mean().item())
        output[valid].float().sum().backward()
    assert 0 < errors[1] <= 1.25 * errors[0]
    assert all(p.grad.isfinite().all() for p in ours.parameters() if p.grad is not None)


def test_checkpointed_layers_around_it_change_nothing():
    _, ours = stock_and_ours(dropout=0.1, dtype=torch.float64)
    inputs = waveforms(padded=True, dtype=torch.float64)
    expected = run(ours, inputs)
    ours.gradient_checkpointing_enable()
    assert_same(run(ours, inputs), expected, 1e-12)


@pytest.mark.slow
def test_a_compiled_encoder_gives_stocks_answer_and_gradients():
    stock, ours = stock_and_ours(dtype=torch.float64)
    inputs = waveforms(padded=True, dtype=torch.float64)
    expected = run(stock, inputs)
    ours.encoder.compile(backend="aot_eager")
    assert_same(run(ours, inputs), expected, 1e-12)


def test_asked_for_attention_weights_it_gives_stocks():
    stock, ours = stock_and_ours()
    expected, found = (
        encoder.eval()(**waveforms(padded=True), output_attentions=True).attentions for encoder in (stock, ours)
    )
    assert len(found) == 3
    for weights, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(weights, wanted, rtol=0, atol=1e-6)


def test_the_weights_bear_stocks_names_and_load_in_a_stock_encoder(audio_encoders, tmp_path):
    encoder = load_audio_encoder(audio_encoders["wavlm-layer"])
    layers = [module for module in encoder.modules() if isinstance(module, RecomputedWavLMAttention)]
    assert len(layers) == 2
    encoder.save_pretrained(tmp_path)
    stock, report = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert type(stock.encoder.layers[0].attention).__name__ == "WavLMAttention"
    assert not (report["missing_keys"] or report["unexpected_keys"] or report["mismatched_keys"])
    inputs = waveforms(padded=True)
    with torch.no_grad():
        expected, found = (model.eval()(**inputs).last_hidden_state for model in (stock, encoder))
    torch.testing.assert_close(found[0], expected[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", sorted({*tiny.AUDIO_ENCODERS} - {"wavlm-group", "wavlm-layer"}))
def test_other_encoders_use_fused_attention_also_when_loaded_again(family, audio_encoders, text_encoder, tmp_path):
    model = LaSCLForAudioClassification.from_encoders(
        audio_encoders[family], text_encoder, tiny.LABELS, projection_dim=8
    )
    model.save_pretrained(tmp_path)
    for found in (model, LaSCLForAudioClassification.from_pretrained(tmp_path)):
        assert found.lascl.audio_encoder.config._attn_implementation == "sdpa"

"""Adapted encoders: a batch changes no utterance, and without padding they are the stock encoders."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny import AUDIO_ENCODERS, CONVOLUTIONAL, recording
from transformers import AutoConfig, AutoModel, WhisperFeatureExtractor, WhisperModel

from lascl import LaSCLForAudioClassification
from lascl.encoders_lascl import (
    ChannelsLastConv1d,
    MaskedGroupNorm,
    build_audio_encoder,
    encode_audio,
    load_audio_encoder,
)
from lascl.training.random_encoders import save_random_audio_encoder


FAMILIES = list(AUDIO_ENCODERS)
WAVEFORM_FAMILIES = [name for name in FAMILIES if name != "whisper"]
GROUP_NORM_FAMILIES = ["wav2vec2-group", "hubert-group", "wavlm-group", "unispeech", "unispeech-sat"]
RECEPTIVE_FIELD, STRIDE = 80, 40  # samples, of the tiny encoders with convolutions; see tiny.py
WHISPER_WINDOW_S = 2  # 100 positions at 50 a second
# Named as choices when an encoder is refused, but not among the families of tiny.py.
FURTHER_TYPES = {
    "wav2vec2-conformer": {"conv_depthwise_kernel_size": 3},
    "sew": {"squeeze_factor": 2},
}


def padded(rows):
    """Waveforms as a right-padded batch (B, L) and its mask."""
    inputs = torch.zeros(len(rows), max(len(row) for row in rows))
    mask = torch.zeros(inputs.shape, dtype=torch.long)
    for index, row in enumerate(rows):
        inputs[index, : len(row)] = torch.as_tensor(row)
        mask[index, : len(row)] = 1
    return inputs, mask


def wave(seed, num_samples):
    """(num_samples,), mean 0 and variance 1, as the feature extractors normalise."""
    samples = recording(seed, num_samples / 16_000 + 1e-3)[:num_samples]
    return (samples - samples.mean()) / samples.std()


def whisper_features(rows, *, mel_rate):
    extractor = WhisperFeatureExtractor(feature_size=16, chunk_length=WHISPER_WINDOW_S, return_attention_mask=True)
    # Asked for in the call the mask comes at the rate of mel frames, by the extractor's own setting at that of samples.
    asked = {"return_attention_mask": True} if mel_rate else {}
    features = extractor(rows, sampling_rate=16_000, return_tensors="pt", **asked)
    return features["input_features"], features["attention_mask"]


@torch.no_grad()
def hidden_states(encoder, inputs, mask=None):
    """Every hidden state (T, C) of the first row, over its valid frames."""
    layers, valid = encode_audio(encoder.eval(), inputs, mask, all_layers=True)
    return [layer[0][valid[0]] for layer in layers]


def largest_difference(ours, theirs):
    assert [layer.shape for layer in ours] == [layer.shape for layer in theirs]
    return max((a - b).abs().max().item() for a, b in zip(ours, theirs))


# --------------------------------------------------------------------------------- a batch changes no utterance


@pytest.mark.parametrize("pooling", ["mean", "max"])
@pytest.mark.parametrize("family", WAVEFORM_FAMILIES)
def test_an_utterance_has_the_same_embedding_alone_and_beside_one_five_times_longer(
    family, pooling, audio_encoders, text_encoder
):
    model = LaSCLForAudioClassification.from_encoders(
        audio_encoders[family], text_encoder, ["angry", "sad"], audio_pooling=pooling
    ).eval()
    for seed, length in enumerate((1607, 801, 99)):  # ends within, at and before a step of the front end
        short, long = wave(seed, length), wave(9, 5 * 1607)
        with torch.no_grad():
            alone = model.get_audio_embeddings(torch.as_tensor(short)[None])[0]
            beside = model.get_audio_embeddings(*padded([short, long])[:1], attention_mask=padded([short, long])[1])
        assert (alone - beside[0]).abs().max() < 1e-5, length
        assert (beside[0] - beside[1]).abs().max() > 1e-3  # the embeddings do tell utterances apart


@pytest.mark.parametrize("family", [*GROUP_NORM_FAMILIES, "data2vec-audio"])
def test_padding_changes_every_layer_of_the_stock_encoder_and_none_of_ours(family, audio_encoders):
    short, long = wave(0, 1607), wave(9, 5 * 1607)
    inputs, mask = padded([short, long])
    alone = torch.as_tensor(short)[None]
    ours = load_audio_encoder(audio_encoders[family])
    assert largest_difference(hidden_states(ours, alone), hidden_states(ours, inputs, mask)) < 2e-5

    stock = AutoModel.from_pretrained(audio_encoders[family]).eval()
    with torch.no_grad():
        stock_alone = stock(alone, output_hidden_states=True).hidden_states
        stock_beside = stock(inputs, attention_mask=mask, output_hidden_states=True).hidden_states
    frames = stock_alone[0].shape[1]
    for layer_alone, layer_beside in zip(stock_alone, stock_beside):
        assert (layer_alone[0] - layer_beside[0, :frames]).abs().max() > 1e-3


@pytest.mark.parametrize("model_type", FURTHER_TYPES)
def test_an_encoder_type_is_either_refused_or_free_of_what_padding_does(model_type, tmp_path):
    spec = {"model_type": model_type, **CONVOLUTIONAL, **FURTHER_TYPES[model_type]}
    folder = save_random_audio_encoder(spec, tmp_path)
    try:
        encoder = load_audio_encoder(str(folder))
    except ValueError as error:
        assert repr(model_type) in str(error)
        return
    short, long = wave(0, 1607), wave(9, 5 * 1607)
    alone, beside = hidden_states(encoder, torch.as_tensor(short)[None]), hidden_states(encoder, *padded([short, long]))
    assert largest_difference(alone, beside) < 2e-5


def test_a_mask_of_only_ones_is_no_mask(audio_encoders):
    inputs = torch.as_tensor(wave(0, 1607))[None]
    for family in WAVEFORM_FAMILIES:
        encoder = load_audio_encoder(audio_encoders[family])
        with_mask = hidden_states(encoder, inputs, torch.ones(inputs.shape, dtype=torch.long))
        assert largest_difference(hidden_states(encoder, inputs), with_mask) < 2e-5, family


def test_the_mask_of_one_batch_is_forgotten_before_the_next(audio_encoders):
    inputs, mask = padded([wave(0, 801), wave(1, 1607)])
    for family in ("wav2vec2-group", "data2vec-audio"):
        encoder = load_audio_encoder(audio_encoders[family])
        before = hidden_states(encoder, inputs)
        hidden_states(encoder, inputs, mask)
        assert largest_difference(before, hidden_states(encoder, inputs)) == 0, family


@pytest.mark.parametrize("mel_rate", [True, False], ids=["mask at mel rate", "mask at sample rate"])
@pytest.mark.parametrize("num_samples", [3200, 8000, 8100, 32_000, 320])
def test_whisper_pools_the_frames_of_the_utterance_alone(mel_rate, num_samples, audio_encoders):
    inputs, mask = whisper_features([wave(0, num_samples), wave(9, 32_000)], mel_rate=mel_rate)
    assert mask.shape[1] == (200 if mel_rate else 32_000)
    encoder = load_audio_encoder(audio_encoders["whisper"]).eval()
    with torch.no_grad():
        last, valid = encode_audio(encoder, inputs, mask, all_layers=False)
        stock = WhisperModel.from_pretrained(audio_encoders["whisper"]).get_encoder().eval()(inputs).last_hidden_state
    frames = -(-num_samples // 320)  # 320 samples a frame, the last one begun
    assert valid.tolist() == [[True] * frames + [False] * (100 - frames), [True] * 100]
    assert (last - stock).abs().max() < 1e-6


@pytest.mark.parametrize("mel_rate", [True, False], ids=["mask at mel rate", "mask at sample rate"])
def test_a_whisper_utterance_has_the_same_embedding_alone_and_in_a_batch(mel_rate, audio_encoders, text_encoder):
    model = LaSCLForAudioClassification.from_encoders(audio_encoders["whisper"], text_encoder, ["angry", "sad"]).eval()
    rows = [wave(0, 6400), wave(9, 32_000)]
    with torch.no_grad():
        embeds = []
        for batch in (rows[:1], rows):
            features, mask = whisper_features(batch, mel_rate=mel_rate)
            embeds.append(model.get_audio_embeddings(input_features=features, attention_mask=mask)[0])
        features, _ = whisper_features(rows[:1], mel_rate=mel_rate)
        unmasked = model.get_audio_embeddings(input_features=features)[0]
    assert (embeds[0] - embeds[1]).abs().max() < 1e-5
    assert (embeds[0] - unmasked).abs().max() > 1e-3  # the silence behind the utterance would have counted


# ------------------------------------------------------------------------------------------- masked group norm


def group_norm(channels, dtype=torch.float32):
    """A stock group norm, one group a channel, with weights that are not ones, and ours made of it."""
    generator = torch.Generator().manual_seed(channels)
    stock = torch.nn.GroupNorm(channels, channels, eps=1e-5).to(dtype)
    with torch.no_grad():
        stock.weight.copy_(torch.rand(channels, generator=generator) + 0.5)
        stock.bias.copy_(torch.randn(channels, generator=generator))
    return stock, MaskedGroupNorm.adopt(stock)


def loop_over_rows(x, valid_frames, stock):
    """Each utterance without its padding, one at a time; padded frames are scaled and shifted like the others."""
    rows = []
    for row, count in zip(x, valid_frames.tolist()):
        channels = []
        for channel, weight, bias in zip(row, stock.weight, stock.bias):
            signal = channel[:count]
            mean = signal.sum() / count
            variance = ((signal - mean) ** 2).sum() / count
            channels.append((channel - mean) / torch.sqrt(variance + stock.eps) * weight + bias)
        rows.append(torch.stack(channels))
    return torch.stack(rows)


def test_masked_group_norm_without_a_mask_is_stock_group_norm():
    stock, ours = group_norm(6)
    x = torch.randn(3, 6, 50, generator=torch.Generator().manual_seed(0)) * 3 + 1
    assert torch.equal(ours(x), F.group_norm(x, 6, stock.weight, stock.bias, 1e-5))
    assert ours.weight is stock.weight and ours.bias is stock.bias


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.float64, 1e-12)])
def test_masked_group_norm_is_a_loop_over_unpadded_rows_in_value_and_gradient(dtype, tolerance):
    stock, ours = group_norm(5, dtype)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(4, 5, 40, generator=generator, dtype=dtype) * 2 + 0.5
    ours.valid_frames = torch.tensor([40, 23, 7, 2])
    kept = (torch.arange(40) < ours.valid_frames[:, None])[:, None].to(dtype)  # nothing reads padded frames later
    towards = torch.randn(x.shape, generator=generator, dtype=dtype) * kept
    results = []
    for normalise in (ours, lambda x: loop_over_rows(x, ours.valid_frames, stock)):
        leaf = x.clone().requires_grad_()
        y = normalise(leaf)
        gradients = torch.autograd.grad((y * towards).sum(), [leaf, stock.weight, stock.bias])
        results.append([y * kept, *gradients])
    for mine, expected in zip(*results):
        scale = expected.abs().max().clamp(min=1)
        assert mine.dtype == dtype
        assert (mine - expected).abs().max() / scale < tolerance
    # What lies in the padding reaches neither value nor gradient of a valid frame.
    ours_again = ours(torch.where(kept.bool(), x, torch.full_like(x, 1e3)))
    assert ((ours_again - ours(x)) * kept).abs().max() == 0


def test_masked_group_norm_has_the_right_derivative():
    _, ours = group_norm(3, torch.float64)
    ours.valid_frames = torch.tensor([9, 4])
    x = torch.randn(2, 3, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(2), requires_grad=True)

    def function(x, weight, bias):
        return torch.func.functional_call(ours, {"weight": weight, "bias": bias}, (x,))

    parameters = [parameter.detach().clone().requires_grad_() for parameter in (ours.weight, ours.bias)]
    assert torch.autograd.gradcheck(function, (x, *parameters))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_masked_group_norm_of_low_precision_input_keeps_its_statistics_in_float32(dtype):
    stock, ours = group_norm(4)
    # 3000 values near 100: a sum in half precision would overflow or stop growing.
    x = (torch.randn(1, 4, 3000, generator=torch.Generator().manual_seed(3)) + 100).to(dtype)
    ours.valid_frames = torch.tensor([3000])
    expected = F.group_norm(x.float(), 4, stock.weight, stock.bias, 1e-5)
    with torch.autocast("cpu", dtype=dtype):
        assert ours(x).dtype == dtype
        difference = (ours(x).float() - expected).abs()
    assert difference.max() <= torch.finfo(dtype).eps * expected.abs().max()


def test_group_norm_with_several_channels_a_group_is_refused_with_both_numbers():
    with pytest.raises(ValueError, match="2 groups for 6 channels"):
        MaskedGroupNorm.adopt(torch.nn.GroupNorm(2, 6))


# ------------------------------------------------------------------------------------------ very short utterances


@pytest.mark.parametrize("family", WAVEFORM_FAMILIES)
@pytest.mark.parametrize("num_samples", [1, RECEPTIVE_FIELD - 1, RECEPTIVE_FIELD, RECEPTIVE_FIELD + STRIDE - 1])
def test_an_utterance_of_at_most_one_frame_is_one_finite_frame_alone_and_in_a_batch(
    family, num_samples, audio_encoders
):
    encoder = load_audio_encoder(audio_encoders[family])
    row = wave(0, 2000)[:num_samples]
    alone = hidden_states(encoder, torch.as_tensor(row)[None])
    alone_masked = hidden_states(encoder, *padded([row]))
    beside = hidden_states(encoder, *padded([row, wave(9, 1000)]))
    assert alone[-1].shape == (1, 16)
    for states in (alone, alone_masked, beside):
        assert all(layer.isfinite().all() for layer in states)
    assert largest_difference(alone, alone_masked) < 2e-5
    assert largest_difference(alone, beside) < 2e-5


def test_a_row_of_only_padding_is_one_finite_frame(audio_encoders):
    inputs, mask = padded([wave(0, 1000), wave(1, 1000)])
    inputs[0], mask[0] = 0, 0
    for family in WAVEFORM_FAMILIES:
        states = hidden_states(load_audio_encoder(audio_encoders[family]), inputs, mask)
        assert states[-1].shape == (1, 16) and states[-1].isfinite().all(), family


# -------------------------------------------------------------------------------------------- Whisper's window


# ------------------------------------------------------------------------------------------------------ SpecAugment

MASKED = {"apply_spec_augment": True, "mask_time_prob": 0.3, "mask_time_length": 10, "mask_time_min_masks": 2}


def in_training(model_type, **changes):
    """An adapted encoder in training whose last hidden state shows hidden frames, and stock with the same weights."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(**{**AUDIO_ENCODERS[model_type], **MASKED, **changes})
    ours = build_audio_encoder(config).train()
    stock = AutoModel.from_config(config).train()
    stock.load_state_dict(ours.state_dict())
    return ours, stock


@pytest.mark.parametrize("family", WAVEFORM_FAMILIES)
def test_a_batch_shorter_than_a_masked_span_trains_unmasked_where_stock_raises(family):
    ours, stock = in_training(family)
    inputs, mask = padded([wave(0, 360), wave(1, 240)])  # 8 and 5 frames, spans of 10
    with pytest.raises(ValueError, match="mask_length"):
        stock(inputs, attention_mask=mask)
    hidden = encode_audio(ours, inputs, mask, all_layers=False)[0]
    ours.config.apply_spec_augment = False
    assert torch.equal(hidden, encode_audio(ours, inputs, mask, all_layers=False)[0])
    hidden.sum().backward()


@pytest.mark.parametrize("family", ["wav2vec2-layer", "hubert-layer", "wavlm-layer", "unispeech-sat"])
def test_long_utterances_are_masked_where_stock_masks_them(family):
    ours, stock = in_training(family)
    inputs, mask = padded([wave(0, 6420), wave(1, 5200)])
    for given in (None, mask):
        np.random.seed(3)
        found = encode_audio(ours, inputs, given, all_layers=True)[0]
        np.random.seed(3)
        expected = stock(inputs, attention_mask=given, output_hidden_states=True).hidden_states
        # Stock's group norm sees the padding; stock's HuBERT forgets the mask here, and draws spans in the padding.
        if given is None or family in ("wav2vec2-layer", "wavlm-layer"):
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        ours.config.apply_spec_augment = False
        unmasked = encode_audio(ours, inputs, given, all_layers=True)[0]
        ours.config.apply_spec_augment = True
        assert (found[-1] - unmasked[-1]).abs().max() > 0.1


def test_masking_never_hides_more_than_half_of_an_utterance(monkeypatch):
    ours, _ = in_training("wav2vec2-layer", mask_time_prob=0.05)
    given, forward = [], ours.forward
    monkeypatch.setattr(ours, "forward", lambda *a, **kw: given.append(kw["mask_time_indices"]) or forward(*a, **kw))
    # 12 valid frames: two spans of ten, as stock draws them at least, hide 11 or 12. 159 frames: some are hidden.
    inputs, mask = padded([wave(0, 520), wave(1, 6420)])
    for seed in range(20):
        np.random.seed(seed)
        encode_audio(ours, inputs, mask, all_layers=False)
    hidden = torch.stack(given)  # (20, 2, T)
    assert not hidden[:, 0, :12].any() and hidden[:, 1].any(-1).all()
    assert (hidden[:, 1].sum(-1) <= 159 / 2).all()


def test_a_cut_whisper_keeps_the_first_rows_of_the_position_table(audio_encoders):
    stock = WhisperModel.from_pretrained(audio_encoders["whisper"]).get_encoder()
    cut = load_audio_encoder(audio_encoders["whisper"], window_s=1)
    assert stock.embed_positions.weight.shape == (100, 16)
    assert torch.equal(cut.embed_positions.weight, stock.embed_positions.weight[:50])
    assert cut.config.max_source_positions == cut.max_source_positions == 50
    assert not cut.embed_positions.weight.requires_grad
    whole = load_audio_encoder(audio_encoders["whisper"])
    assert not whole.embed_positions.weight.requires_grad
    assert torch.equal(whole.embed_positions.weight, stock.embed_positions.weight)


def test_a_cut_whisper_has_the_position_table_that_stock_makes_for_its_window(audio_encoders):
    cut = load_audio_encoder(audio_encoders["whisper"], window_s=1)
    fresh = build_audio_encoder(cut.config)
    assert torch.allclose(cut.embed_positions.weight, fresh.embed_positions.weight, atol=1e-7)
    assert fresh.embed_positions.weight.shape == (50, 16)
    assert cut.embed_positions.weight.std() > 0.1


@pytest.mark.parametrize("frames", [99, 101, 200])
def test_mel_frames_of_another_number_than_the_window_are_refused_with_both_numbers(frames, audio_encoders):
    encoder = load_audio_encoder(audio_encoders["whisper"], window_s=1)
    encode_audio(encoder, torch.zeros(1, 16, 100), None, all_layers=False)
    with pytest.raises(ValueError, match=rf"exactly 100 mel frames \(1 s\); found {frames}\b") as refused:
        encode_audio(encoder, torch.zeros(1, 16, frames), None, all_layers=False)
    assert "chunk_length=1)" in str(refused.value) and f"window_s={frames / 100:g} in" in str(refused.value)


def test_a_window_longer_than_whispers_own_is_refused_with_both(audio_encoders):
    with pytest.raises(ValueError, match="at most 2 s; found a window of 3 s"):
        load_audio_encoder(audio_encoders["whisper"], window_s=3)


def test_encoders_that_take_any_length_ignore_the_window(audio_encoders):
    encoder = load_audio_encoder(audio_encoders["wavlm-layer"], window_s=1)
    assert hidden_states(encoder, torch.as_tensor(wave(0, 20_000))[None])[0].shape == (499, 16)


# ------------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    "spec",
    [
        {
            "model_type": "audio-spectrogram-transformer",
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 16,
            "max_length": 32,
            "num_mel_bins": 16,
        },
        {"model_type": "bert", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 9},
        {
            "model_type": "wav2vec2-bert",  # takes frames of filter banks, not samples
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 16,
            "feature_projection_input_dim": 8,
        },
    ],
    ids=lambda spec: spec["model_type"],
)
def test_an_encoder_that_cannot_take_padded_waveforms_is_refused_by_type(spec, tmp_path):
    config = AutoConfig.for_model(**spec)
    with pytest.raises(ValueError, match=repr(spec["model_type"])):
        build_audio_encoder(config)
    AutoModel.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=repr(spec["model_type"])):
        load_audio_encoder(str(tmp_path))


# ---------------------------------------------------------------------------------------- stock weights, both ways


@pytest.mark.parametrize("family", FAMILIES)
def test_adapted_weights_load_into_the_stock_encoder_and_answer_alike(family, audio_encoders):
    ours = load_audio_encoder(audio_encoders[family]).eval()
    if family == "whisper":
        stock = WhisperModel(AutoConfig.from_pretrained(audio_encoders[family])).get_encoder()
        inputs, _ = whisper_features([wave(0, 8000)], mel_rate=True)
    else:
        stock = AutoModel.from_config(AutoConfig.from_pretrained(audio_encoders[family]))
        inputs = torch.as_tensor(wave(0, 1607))[None]
    assert any(not torch.equal(ours.state_dict()[name], value) for name, value in stock.state_dict().items())
    stock.load_state_dict(ours.state_dict(), strict=True)
    with torch.no_grad():
        expected = stock.eval()(inputs, output_hidden_states=True)
        layers, mask = encode_audio(ours, inputs, None, all_layers=True)
        last, _ = encode_audio(ours, inputs, None, all_layers=False)
    assert mask.all()
    assert (last - expected.last_hidden_state).abs().max() < 3e-6
    assert len(layers) == len(expected.hidden_states) == 3  # the embedding and two layers
    for layer, stock_layer in zip(layers, expected.hidden_states):
        assert (layer - stock_layer).abs().max() < 3e-6


@pytest.mark.parametrize("family", FAMILIES)
def test_stock_checkpoints_load_with_every_weight(family, audio_encoders):
    ours = load_audio_encoder(audio_encoders[family])
    stock = AutoModel.from_pretrained(audio_encoders[family])
    stock = stock.get_encoder() if family == "whisper" else stock
    expected = stock.state_dict()
    assert ours.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in ours.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_checkpoints_load_as_float32(dtype, audio_encoders, tmp_path):
    AutoModel.from_pretrained(audio_encoders["hubert-group"]).to(dtype).save_pretrained(tmp_path)
    encoder = load_audio_encoder(str(tmp_path))
    assert {value.dtype for value in encoder.state_dict().values()} == {torch.float32}
    before = load_audio_encoder(audio_encoders["hubert-group"]).state_dict()
    for name, value in encoder.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), before[name].to(dtype).float().numpy())


@pytest.mark.parametrize("family", WAVEFORM_FAMILIES)
def test_convolutions_in_another_order_of_memory_have_stocks_values_and_gradients(family):
    """Where the front end normalises over channels; group norm would be slower so."""
    encoder = build_audio_encoder(AutoConfig.for_model(**AUDIO_ENCODERS[family])).double()
    found = [module for module in encoder.modules() if isinstance(module, ChannelsLastConv1d)]
    normalises_channels = AUDIO_ENCODERS[family].get("feat_extract_norm") == "layer" or family == "data2vec-audio"
    assert len(found) == (len(CONVOLUTIONAL["conv_dim"]) if normalises_channels else 0)
    for convolution in found:
        x = torch.randn(2, convolution.in_channels, 57, dtype=torch.float64, requires_grad=True)
        weight = torch.randn_like(convolution(x))
        outputs = [convolution(x), F.conv1d(x, convolution.weight, convolution.bias, convolution.stride)]
        parameters = [x, *convolution.parameters()]
        gradients = [torch.autograd.grad((output * weight).sum(), parameters) for output in outputs]
        torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-12, atol=1e-12)

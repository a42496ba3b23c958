"""The gradient cache: loss, gradients and random numbers of the whole batch, in the memory of a chunk."""

import weakref
from itertools import pairwise

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lascl import LaSCLForAudioClassification, LaSCLTrainer, LaSCLTrainingArguments
from lascl.modeling_lascl import LaSCLOutput, joint_loss
from lascl.training.gradient_cache import cached_forward, cut_into_chunks
from lascl.training.random_encoders import save_random_audio_encoder


ROWS = 7
CHANCE = {
    "hidden_dropout": 0.1,
    "attention_dropout": 0.1,
    "activation_dropout": 0.1,
    "feat_proj_dropout": 0.1,
    "layerdrop": 0.3,
    "apply_spec_augment": True,
    "mask_time_prob": 0.2,
    "mask_time_length": 3,
}
OBJECTIVES = {
    "joint": {},
    "cross entropy alone": {"contrastive_weight": 0.0, "prediction_head": "classifier"},
    "contrastive alone": {"contrastive_weight": 1.0},
}


def build(audio_encoder, text_encoder, dtype=torch.float64, **config) -> LaSCLForAudioClassification:
    torch.manual_seed(0)
    model = LaSCLForAudioClassification.from_encoders(
        audio_encoder, text_encoder, tiny.LABELS, projection_dim=8, freeze_feature_encoder=False, **config
    )
    return model.to(dtype).train()


def batch(model, dtype=torch.float64) -> dict[str, torch.Tensor]:
    """Seven utterances of 90 to 30 ms, neither sorted nor all different in length."""
    generator = torch.Generator().manual_seed(1)
    if model.main_input_name == "input_features":
        return {"input_features": torch.randn(ROWS, 16, 200, dtype=dtype, generator=generator)}
    lengths = torch.tensor([700, 1400, 480, 1400, 900, 481, 1100])
    mask = (torch.arange(1400) < lengths[:, None]).long()
    return {
        "input_values": torch.randn(ROWS, 1400, dtype=dtype, generator=generator) * mask,
        "attention_mask": mask,
    }


LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 0])


def gradients(model, outputs) -> tuple[torch.Tensor, dict[str, torch.Tensor | None]]:
    config = model.config
    loss, _ = joint_loss(
        outputs.audio_embeds,
        outputs.label_embeds,
        outputs.class_logits,
        LABELS,
        contrastive_temperature=config.contrastive_temperature,
        contrastive_weight=config.contrastive_weight,
        divergence_weight=config.divergence_weight,
        label_anchors=config.label_anchors and config.contrastive_weight > 0,
    )
    loss.backward()
    return loss.detach(), {name: parameter.grad for name, parameter in model.named_parameters()}


def assert_same_gradients(found, expected, tolerance):
    assert found.keys() == expected.keys()
    largest = max(gradient.abs().max() for gradient in expected.values() if gradient is not None)
    for name, gradient in expected.items():
        assert (found[name] is None) == (gradient is None), name
        if gradient is not None:
            assert (found[name] - gradient).abs().max() <= tolerance * largest, name


@pytest.mark.parametrize("rows_per_chunk", [1, 3, 6])
@pytest.mark.parametrize("family", tiny.AUDIO_ENCODERS)
def test_chunks_give_the_loss_and_the_gradients_of_the_whole_batch(
    family, rows_per_chunk, audio_encoders, text_encoder
):
    plain, cached = (build(audio_encoders[family], text_encoder) for _ in range(2))
    inputs = batch(plain)
    outputs = plain(**inputs)
    loss, expected = gradients(plain, outputs)
    found = cached_forward(cached, inputs, rows_per_chunk)
    torch.testing.assert_close(found.audio_embeds, outputs.audio_embeds, rtol=0, atol=1e-10)  # rows in their order
    torch.testing.assert_close(found.class_logits, outputs.class_logits, rtol=0, atol=1e-10)
    cached_loss, gradient = gradients(cached, found)
    assert float(cached_loss) == pytest.approx(float(loss), rel=1e-10)
    assert_same_gradients(gradient, expected, 1e-9)
    assert expected["lascl.text_projection.output.weight"].abs().max() > 1e-3


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_what_an_objective_does_not_train_gets_no_gradient_not_zeros(objective, audio_encoders, text_encoder):
    """Zeros would let weight decay act on it."""
    plain, cached = (build(audio_encoders["wav2vec2-layer"], text_encoder, **OBJECTIVES[objective]) for _ in range(2))
    inputs = batch(plain)
    _, expected = gradients(plain, plain(**inputs))
    _, found = gradients(cached, cached_forward(cached, inputs, 2))
    assert_same_gradients(found, expected, 1e-9)
    absent = {name.split(".")[-3] for name, gradient in expected.items() if gradient is None and "projection" in name}
    assert ("text_projection" in absent) == (objective == "cross entropy alone")


def forward_with_all_graphs_kept(model, inputs, rows_per_chunk) -> LaSCLOutput:
    """The same chunks in their order, put together by hand: what the cache must be equal to."""
    chunks = cut_into_chunks(inputs, rows_per_chunk)
    assert len(chunks) == -(-ROWS // rows_per_chunk)
    parts = [model(**{name: tensor[rows, :length] for name, tensor in inputs.items()}) for rows, length in chunks]
    back = torch.tensor([row for rows, _ in chunks for row in rows]).argsort()
    return LaSCLOutput(
        audio_embeds=torch.cat([part.audio_embeds for part in parts])[back],
        class_logits=torch.cat([part.class_logits for part in parts])[back],
        label_embeds=parts[0].label_embeds,
    )


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", ["wavlm-layer", "wav2vec2-group", "hubert-layer"])
def test_with_chance_it_equals_the_same_chunks_with_all_graphs_kept(family, checkpointing, tmp_path, text_encoder):
    """Dropout, layer-drop and SpecAugment draw from torch and from numpy; the second pass must draw alike."""
    encoder = str(save_random_audio_encoder({**tiny.AUDIO_ENCODERS[family], **CHANCE}, tmp_path))
    plain, cached = (build(encoder, text_encoder, torch.float32) for _ in range(2))
    inputs = batch(plain, torch.float32)
    if checkpointing:
        cached.gradient_checkpointing_enable()

    def seeded(seed=5):
        torch.manual_seed(seed)
        np.random.seed(seed)

    seeded()
    loss, expected = gradients(plain, forward_with_all_graphs_kept(plain, inputs, 3))
    drawn = (torch.rand(1).item(), np.random.rand())
    seeded()
    outputs = cached_forward(cached, inputs, 3)
    cached_loss, found = gradients(cached, outputs)
    assert (torch.rand(1).item(), np.random.rand()) == drawn  # the second pass gave the generators back
    assert float(cached_loss) == pytest.approx(float(loss), rel=1e-6)
    assert_same_gradients(found, expected, 1e-6)
    seeded(6)
    assert (cached(**inputs).audio_embeds - outputs.audio_embeds).abs().max() > 1e-3  # chance did something


def test_under_autocast_too(audio_encoders, text_encoder):
    plain, cached = (build(audio_encoders["wavlm-layer"], text_encoder, torch.float32) for _ in range(2))
    inputs = batch(plain, torch.float32)
    for model in (plain, cached):
        model.forward = torch.autocast("cpu", dtype=torch.bfloat16)(model.forward)  # as accelerate wraps it
    loss, expected = gradients(plain, forward_with_all_graphs_kept(plain, inputs, 3))
    cached_loss, found = gradients(cached, cached_forward(cached, inputs, 3))
    # Passes with and without a graph take different kernels, whose bfloat16 results differ in their last digit.
    assert float(cached_loss) == pytest.approx(float(loss), rel=1e-3)
    assert_same_gradients(found, expected, 1e-2)


def test_one_chunk_at_a_time_is_in_memory(audio_encoders, text_encoder):
    model = build(audio_encoders["wavlm-layer"], text_encoder)
    alive, seen = [], []

    def watch(module, inputs, outputs):
        alive.append(weakref.ref(outputs.last_hidden_state))
        seen.append(sum(reference() is not None for reference in alive))

    model.lascl.audio_encoder.register_forward_hook(watch)
    gradients(model, cached_forward(model, batch(model), 1))
    assert seen == [1] * (2 * ROWS)


@settings(deadline=None, max_examples=100)
@given(lengths=st.lists(st.integers(20, 400), min_size=1, max_size=40), rows_per_chunk=st.integers(1, 12))
def test_every_row_is_in_one_chunk_that_is_as_long_as_its_longest(lengths, rows_per_chunk):
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    chunks = cut_into_chunks({"input_values": mask.float(), "attention_mask": mask}, rows_per_chunk)
    assert sorted(row for rows, _ in chunks for row in rows) == list(range(len(lengths)))
    sizes = [len(rows) for rows, _ in chunks]
    assert max(sizes) <= rows_per_chunk and max(sizes) - min(sizes) <= 1
    assert all(length == max(lengths[row] for row in rows) for rows, length in chunks)
    # No arrangement into chunks of these sizes has less padding than the sorted one.
    assert [length for _, length in chunks] == sorted(length for _, length in chunks)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=12), st.integers(1, 200))
def test_a_chunk_of_so_much_audio_holds_no_more_but_a_single_longer_row(lengths, size):
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    chunks = cut_into_chunks({"input_values": mask.float(), "attention_mask": mask}, size_per_chunk=size)
    assert sorted(row for rows, _ in chunks for row in rows) == list(range(len(lengths)))
    for rows, length in chunks:
        assert length == max(lengths[row] for row in rows)
        assert len(rows) == 1 or len(rows) * length <= size
    # Cut from the longest on, no chunk has room for the longest row of the chunk before it.
    for (rows, longest_before), (following, length) in pairwise(chunks):
        assert (len(following) + 1) * length > size and longest_before <= length, rows


@pytest.mark.parametrize("family", ["wavlm-layer", "whisper"])
def test_chunks_of_seconds_train_as_the_whole_batch(family, audio_encoders, text_encoder, tmp_path):
    """Through the Trainer: 0.1 s of waveforms at 16 kHz are 1600 samples, of Whisper one window of 2 s at a time."""
    plain, cached = (build(audio_encoders[family], text_encoder) for _ in range(2))
    inputs, calls = {**batch(plain), "labels": LABELS}, []
    losses = []
    for model, fields in ((plain, {}), (cached, {"contrastive_chunk_s": 0.1})):
        args = LaSCLTrainingArguments(str(tmp_path), use_cpu=True, **fields)
        hook = model.register_forward_pre_hook(
            lambda _, args, kwargs: calls.append(kwargs[plain.main_input_name].shape), with_kwargs=True
        )
        loss = LaSCLTrainer(model, args).compute_loss(model, inputs)
        hook.remove()
        loss.backward()
        losses.append(float(loss.detach()))
    assert losses[1] == pytest.approx(losses[0], rel=1e-7)  # Trainer's loss is float32
    found, expected = ({name: p.grad for name, p in model.named_parameters()} for model in (cached, plain))
    assert_same_gradients(found, expected, 1e-6)
    chunks = calls[1:-1]
    assert len(calls[0]) and all(len(shape) for shape in chunks) and len(chunks) > 2
    assert all(shape[0] == 1 or shape[0] * shape[-1] <= 1600 for shape in chunks)


def test_inputs_without_padding_stay_whole_and_in_order():
    chunks = cut_into_chunks({"input_features": torch.zeros(5, 3, 8)}, 2)
    assert chunks == [([0, 1], None), ([2, 3], None), ([4], None)]


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"contrastive_chunk_size": 0}, "contrastive_chunk_size must be at least 1; found 0"),
        ({"contrastive_chunk_s": 0.0}, "contrastive_chunk_s must be above 0 seconds; found 0.0"),
        ({"contrastive_chunk_s": 9.0, "contrastive_chunk_size": 4}, "counted in one way"),
        ({"contrastive_chunk_size": 4, "fsdp": "full_shard"}, "FSDP is not supported"),
    ],
)
def test_a_chunk_size_that_cannot_work_is_refused(fields, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        LaSCLTrainingArguments(str(tmp_path), use_cpu=True, **fields)

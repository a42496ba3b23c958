"""Rows encoded in groups of like length: the answers, losses and gradients of the whole batch, without its padding."""

import itertools
import types

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lascl import LaSCLForAudioClassification, encoders_lascl
from lascl.encoders_lascl import groups_to_encode, length_groups
from lascl.training.gradient_cache import cached_forward


FAMILIES = [family for family in tiny.AUDIO_ENCODERS if family != "whisper"]
WHOLE = 10**15


def build(audio_encoder, text_encoder, dtype=torch.float64, **config) -> LaSCLForAudioClassification:
    torch.manual_seed(0)
    model = LaSCLForAudioClassification.from_encoders(
        audio_encoder, text_encoder, tiny.LABELS, projection_dim=8, freeze_feature_encoder=False, **config
    )
    return model.to(dtype).train()


def batch(lengths, dtype=torch.float64) -> dict:
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    noise = torch.randn(mask.shape, dtype=dtype, generator=torch.Generator().manual_seed(1))
    return {
        "input_values": noise * mask,
        "attention_mask": mask,
        "labels": torch.arange(len(lengths)) % len(tiny.LABELS),
    }


def loss_and_gradients(model, inputs, price, monkeypatch, rows_per_chunk=None):
    """At a price of a call, with the random numbers of one seed."""
    monkeypatch.setitem(encoders_lascl.CALL_PRICE, "cpu", price)
    torch.manual_seed(3)
    np.random.seed(3)
    model.zero_grad(set_to_none=True)
    if rows_per_chunk is None:
        loss = model(**inputs).loss
    else:
        given = {name: tensor for name, tensor in inputs.items() if name != "labels"}
        outputs = cached_forward(model, given, rows_per_chunk)
        loss, _ = model.joint_loss(outputs.audio_embeds, outputs.label_embeds, outputs.class_logits, inputs["labels"])
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return loss.detach(), gradients


def assert_alike(found, expected, loss_tolerance, tolerance):
    (loss, gradients), (expected_loss, expected_gradients) = found, expected
    assert abs(float(loss / expected_loss) - 1) <= loss_tolerance
    assert gradients.keys() == expected_gradients.keys()
    largest = max(float(gradient.abs().max()) for gradient in expected_gradients.values())
    assert largest > 1e-3
    for name, gradient in expected_gradients.items():
        assert float((gradients[name] - gradient).abs().max()) <= tolerance * largest, name


# ------------------------------------------------------------------------------------------------------ the grouping


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 50), min_size=1, max_size=5), st.integers(0, 120))
def test_groups_are_the_cheapest_of_all_ways_to_part_the_rows(lengths, price):
    def cost(groups):
        return sum(len(group) * max(lengths[row] for row in group) + price for group in groups)

    rows = range(len(lengths))
    # Every row gets the number of its group; all ways, sorted rows or not.
    ways = ([[r for r in rows if way[r] == g] for g in set(way)] for way in itertools.product(rows, repeat=len(rows)))
    found = length_groups(lengths, price)
    assert sorted(row for group in found for row in group) == list(rows)
    assert cost(found) == min(map(cost, ways))
    in_order = [lengths[row] for group in found for row in group]
    assert in_order == sorted(in_order)


def test_no_rows_are_no_groups_and_a_dear_call_leaves_the_batch_whole():
    assert length_groups([], 7) == []
    assert length_groups([3, 1, 2], WHOLE) == [[1, 2, 0]]
    assert length_groups([3, 1, 3], 0) == [[1], [0, 2]]  # equal lengths share a call that costs nothing


class Untouchable:
    """A tensor on an accelerator: it has a shape, and whoever looks at its values waits."""

    def __init__(self, num_rows):
        self.num_rows, self.device = num_rows, types.SimpleNamespace(type="cuda")

    def __len__(self):
        return self.num_rows


def test_an_accelerator_is_never_asked_for_lengths(audio_encoders, text_encoder, monkeypatch):
    monkeypatch.setitem(encoders_lascl.CALL_PRICE, "cuda", 0)
    encoder = build(audio_encoders["wavlm-layer"], text_encoder).lascl.audio_encoder
    there = Untouchable(3)
    assert groups_to_encode(encoder, there, there, None) == []
    assert groups_to_encode(encoder, there, there, [40, 90, 60]) == [([0], 40), ([2], 60), ([1], 90)]
    assert groups_to_encode(encoder, there, None, [40, 90, 60]) == []  # without a mask nothing is padding
    with pytest.raises(ValueError, match="one number a row; found 2 for 3"):
        groups_to_encode(encoder, there, there, [40, 90])


def test_a_batch_stays_whole_for_a_fixed_window_and_where_stock_masks_features(
    audio_encoders, text_encoder, monkeypatch
):
    monkeypatch.setitem(encoders_lascl.CALL_PRICE, "cpu", 0)
    inputs, mask = torch.randn(2, 100), torch.tensor([[1] * 100, [1] * 50 + [0] * 50])
    model = build(audio_encoders["wavlm-layer"], text_encoder)
    encoder, whisper = model.lascl.audio_encoder, build(audio_encoders["whisper"], text_encoder).lascl.audio_encoder
    assert len(groups_to_encode(encoder, inputs, mask, None)) == 2
    assert groups_to_encode(whisper, inputs, mask, None) == []
    encoder.config.apply_spec_augment, encoder.config.mask_feature_prob = True, 0.1
    assert groups_to_encode(encoder, inputs, mask, None) == []
    model.eval()
    assert len(groups_to_encode(encoder, inputs, mask, None)) == 2


# ------------------------------------------------------------------------------------------ answers, loss, gradients


@pytest.mark.parametrize("family", FAMILIES)
def test_groups_give_loss_and_gradients_of_the_whole_batch(family, audio_encoders, text_encoder, monkeypatch):
    """Also rows shorter than one frame (80 samples), and one that is empty."""
    double, single = (build(audio_encoders[family], text_encoder, dtype) for dtype in (torch.float64, torch.float32))

    @settings(max_examples=8, deadline=None)
    @given(st.lists(st.integers(0, 1600), min_size=2, max_size=6).filter(any))
    def check(lengths):
        inputs = batch(lengths)
        whole, apart = (loss_and_gradients(double, inputs, price, monkeypatch) for price in (WHOLE, 0))
        assert_alike(apart, whole, 1e-12, 1e-12)
        inputs["input_values"] = inputs["input_values"].float()
        whole, apart = (loss_and_gradients(single, inputs, price, monkeypatch) for price in (WHOLE, 0))
        assert_alike(apart, whole, 1e-6, 1e-5)

    check()


@pytest.mark.parametrize("rows_per_chunk", [None, 2])
@pytest.mark.parametrize("family", ["wavlm-layer", "wav2vec2-group", "data2vec-audio", "hubert-batch"])
def test_so_they_do_with_recomputed_layers_and_in_chunks(
    family, rows_per_chunk, audio_encoders, text_encoder, monkeypatch
):
    model, checkpointed = (build(audio_encoders[family], text_encoder) for _ in range(2))
    checkpointed.gradient_checkpointing_enable({"use_reentrant": False})
    inputs = batch([1200, 360, 1200, 164, 680])
    whole = loss_and_gradients(model, inputs, WHOLE, monkeypatch)
    assert_alike(loss_and_gradients(checkpointed, inputs, 0, monkeypatch, rows_per_chunk), whole, 1e-12, 1e-12)


@pytest.mark.parametrize("pooling", ["last", "weighted", "max"])
def test_so_they_do_from_every_layer(pooling, audio_encoders, text_encoder, monkeypatch):
    config = {"audio_pooling": "max"} if pooling == "max" else {"audio_layers": pooling}
    model = build(audio_encoders["wavlm-layer"], text_encoder, **config)
    inputs = batch([1200, 360, 1200, 164, 680])
    whole, apart = (loss_and_gradients(model, inputs, price, monkeypatch) for price in (WHOLE, 0))
    assert_alike(apart, whole, 1e-12, 1e-12)


@pytest.mark.parametrize("layers", ["last", "weighted"])
@pytest.mark.parametrize("family", ["wavlm-layer", "wav2vec2-group", "hubert-layer"])
def test_layer_drop_and_hidden_frames_are_drawn_once_for_the_batch(
    family, layers, audio_encoders, text_encoder, monkeypatch
):
    """Without dropout, whose draws follow the shape, groups of one seed then train as the whole batch does."""
    model = build(audio_encoders[family], text_encoder, audio_layers=layers)
    config = model.lascl.audio_encoder.config
    config.layerdrop = 0.5
    config.apply_spec_augment, config.mask_time_prob, config.mask_time_length = True, 0.3, 3
    inputs, losses = batch([1200, 360, 1200, 164, 680]), set()
    for seed in range(4):
        monkeypatch.setattr(torch, "manual_seed", lambda _, seed=seed, seeding=torch.random.manual_seed: seeding(seed))
        whole, apart = (loss_and_gradients(model, inputs, price, monkeypatch) for price in (WHOLE, 0))
        assert_alike(apart, whole, 1e-12, 1e-12)
        losses.add(float(whole[0]))
    assert len(losses) > 1  # layers were passed over
    assert config.layerdrop == 0.5 and list(model.lascl.audio_encoder.encoder.layers)  # and are there again


def test_a_dropped_layer_s_state_is_the_one_before_it(audio_encoders, text_encoder):
    """Of transformers 5.23 on, a layer that is passed over leaves no state, and later ones would move up."""
    model = build(audio_encoders["wavlm-layer"], text_encoder)
    encoder, drawn = model.lascl.audio_encoder, encoders_lascl.Drawn(skipped_layers=frozenset({1}))
    states, _ = encoders_lascl.encoder_outputs(
        encoder, batch([300])["input_values"], None, all_layers=True, drawn=drawn
    )
    states = states.hidden_states
    assert len(states) == 3
    torch.testing.assert_close(states[2], states[1])


def test_answers_keep_their_rows(audio_encoders, text_encoder, monkeypatch):
    model = build(audio_encoders["wavlm-layer"], text_encoder).eval()
    inputs = batch([1200, 360, 840, 164])
    del inputs["labels"]
    monkeypatch.setitem(encoders_lascl.CALL_PRICE, "cpu", 0)
    found = model(**inputs)
    for row, length in enumerate([1200, 360, 840, 164]):
        alone = model(input_values=inputs["input_values"][row : row + 1, :length])
        torch.testing.assert_close(found.logits[row : row + 1], alone.logits, rtol=1e-10, atol=1e-12)
    states = model(**inputs, output_hidden_states=True)  # of the whole batch, since they are asked for as one tensor
    assert states.hidden_states[0].shape[0] == 4
    torch.testing.assert_close(states.logits, found.logits, rtol=1e-10, atol=1e-12)

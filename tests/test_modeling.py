"""The two models: their outputs, heads, label words, and what saving and loading keep."""

import contextlib
import inspect
import logging
import math

import pytest
import torch
from tiny import AUDIO_ENCODERS, LABELS, recording
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForAudioClassification,
    AutoTokenizer,
    WhisperFeatureExtractor,
    WhisperModel,
)

from lascl import LaSCLConfig, LaSCLForAudioClassification, LaSCLModel, joint_loss, modeling_lascl
from lascl.modeling_lascl import masked_max, masked_mean, unit_length


FAMILIES = list(AUDIO_ENCODERS)


def build(audio, text, labels=LABELS, *, seed=0, **config):
    torch.manual_seed(seed)
    return LaSCLForAudioClassification.from_encoders(audio, text, labels, projection_dim=8, **config).eval()


@pytest.fixture
def model(audio_encoders, text_encoder):
    return build(audio_encoders["wav2vec2-layer"], text_encoder)


def speech(family="wav2vec2-layer", lengths=(1607, 801, 1210)):
    """Model inputs of a padded batch of three."""
    rows = [recording(seed, length / 16_000 + 1e-3)[:length] for seed, length in enumerate(lengths)]
    if family == "whisper":
        extractor = WhisperFeatureExtractor(feature_size=16, chunk_length=2)
        return dict(extractor(rows, sampling_rate=16_000, return_tensors="pt", return_attention_mask=True))
    inputs, mask = torch.zeros(len(rows), max(lengths)), torch.zeros(len(rows), max(lengths), dtype=torch.long)
    for index, row in enumerate(rows):
        inputs[index, : len(row)] = torch.as_tensor(row) * 5
        mask[index, : len(row)] = 1
    return {"input_values": inputs, "attention_mask": mask}


@torch.no_grad()
def outputs(model, **inputs):
    return model.eval()(**(inputs or speech()))


def stock_states(folder, inputs):
    """Of each row alone and without padding, by the stock encoder: its last hidden state and all of them, (T, C)."""
    stock = AutoModel.from_pretrained(folder).eval()
    rows = []
    for row, mask in zip(inputs["input_values"], inputs["attention_mask"]):
        with torch.no_grad():
            out = stock(row[None, : int(mask.sum())], output_hidden_states=True)
        rows.append((out.last_hidden_state[0], [layer[0] for layer in out.hidden_states]))
    return rows


def stock_text_states(folder, texts):
    """The stock text encoder's states of each text alone: lists of (tokens, C)."""
    tokenizer, stock = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).float().eval()
    with torch.no_grad():
        return [stock(**tokenizer(text, return_tensors="pt")).last_hidden_state[0] for text in texts]


def two_layers(projection, x):
    """Eq. 3 spelled out: GELU between two linear layers, then unit length."""
    hidden = x @ projection.hidden.weight.T + projection.hidden.bias
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
    projected = hidden @ projection.output.weight.T + projection.output.bias
    return projected / projected.square().sum(dim=-1, keepdim=True).sqrt()


# ------------------------------------------------------------------------------------------------------- outputs


@pytest.mark.parametrize("family", FAMILIES)
def test_outputs_have_their_shapes_and_embeddings_unit_length(family, audio_encoders, text_encoder):
    out = outputs(build(audio_encoders[family], text_encoder), **speech(family))
    shapes = {name: tuple(value.shape) for name, value in out.items()}
    # One row for each utterance: transformers' pipeline takes a batch apart so.
    assert shapes == {
        "logits": (3, 4),
        "class_logits": (3, 4),
        "audio_embeds": (3, 8),
        "pooled_audio": (3, 16),
    }
    label_embeds = outputs(build(audio_encoders[family], text_encoder).lascl, **speech(family)).label_embeds
    assert label_embeds.shape == (4, 8)
    for embeds in (out.audio_embeds, label_embeds):
        assert torch.allclose(embeds.square().sum(dim=-1), torch.ones(len(embeds)), atol=1e-6)
    assert all(value.isfinite().all() and value.dtype == torch.float32 for value in out.values())


def test_label_logits_are_cosines_over_the_temperature_and_the_best_is_the_nearest_label(audio_encoders, text_encoder):
    model = build(audio_encoders["wav2vec2-layer"], text_encoder, contrastive_temperature=0.2)
    out = outputs(model)
    audio, labels = out.audio_embeds.double().tolist(), model.get_label_embeddings().double().tolist()
    for row, z in enumerate(audio):
        distances = []
        for column, e in enumerate(labels):
            cosine = sum(a * b for a, b in zip(z, e)) / math.hypot(*z) / math.hypot(*e)
            assert out.logits[row, column].item() == pytest.approx(cosine / 0.2, abs=1e-5)
            distances.append(math.dist(z, e))
        assert out.logits[row].argmax() == distances.index(min(distances))


def test_class_logits_are_the_linear_head_on_the_pooled_states_and_answer_where_asked_to(audio_encoders, text_encoder):
    model = build(audio_encoders["wav2vec2-layer"], text_encoder, prediction_head="classifier")
    out = outputs(model)
    expected = out.pooled_audio @ model.classifier.weight.T + model.classifier.bias
    assert torch.allclose(out.class_logits, expected, atol=1e-6)
    assert torch.equal(out.logits, out.class_logits)
    assert (out.logits - outputs(build(audio_encoders["wav2vec2-layer"], text_encoder)).logits).abs().max() > 1e-3


def test_embeddings_are_the_projections_of_equation_3(model):
    out = outputs(model)
    with torch.no_grad():
        assert torch.allclose(out.audio_embeds, two_layers(model.lascl.audio_projection, out.pooled_audio), atol=1e-6)
        by_hand = two_layers(model.lascl.text_projection, model.lascl.label_features)
    assert torch.allclose(outputs(model.lascl).label_embeds, by_hand, atol=1e-6)


def test_both_models_and_both_getters_agree(model, tmp_path):
    out, label_embeds = outputs(model), outputs(model.lascl).label_embeds
    model.save_pretrained(tmp_path)
    for other in (model, LaSCLModel.from_pretrained(tmp_path).eval()):
        with torch.no_grad():
            assert torch.allclose(other.get_audio_embeddings(**speech()), out.audio_embeds, atol=1e-6)
            assert torch.allclose(other.get_label_embeddings(), label_embeds, atol=1e-6)
    base = outputs(LaSCLModel.from_pretrained(tmp_path))
    assert set(base) == {"audio_embeds", "label_embeds", "pooled_audio"}


def test_none_and_several_kinds_of_input_are_refused(model):
    values = torch.zeros(1, 400)
    pooled = torch.zeros(1, 8)
    both = [{"input_values": values, "input_features": values}, {"input_values": values, "pooled_audio": pooled}]
    for inputs in ({}, *both):
        with pytest.raises(ValueError, match="exactly one of input_values, input_features and pooled_audio"):
            model(**inputs)


# ------------------------------------------------------------------------------------------------- pooling by hand


@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_audio_pooling_is_over_the_frames_of_each_utterance_alone(pooling, audio_encoders, text_encoder):
    folder = audio_encoders["hubert-layer"]
    pooled = outputs(build(folder, text_encoder, audio_pooling=pooling)).pooled_audio
    for row, (frames, _) in zip(pooled, stock_states(folder, speech())):
        by_hand = sum(frames) / len(frames) if pooling == "mean" else frames.amax(dim=0)
        assert (row - by_hand).abs().max() < 1e-5


@pytest.mark.parametrize("family", ["wav2vec2-layer", "wavlm-group", "data2vec-audio"])
def test_weighted_layers_start_as_the_mean_of_all_hidden_states(family, audio_encoders, text_encoder):
    model = build(audio_encoders[family], text_encoder, audio_layers="weighted")
    assert model.lascl.layer_weights.shape == (3,)  # the embedding and two layers
    pooled = outputs(model).pooled_audio
    for row, (_, states) in zip(pooled, stock_states(audio_encoders[family], speech())):
        assert len(states) == 3
        mean = sum(states) / 3
        assert (row - mean.mean(dim=0)).abs().max() < 1e-5


def test_weighted_layers_are_a_softmax_of_what_is_learned(audio_encoders, text_encoder):
    model = build(audio_encoders["wav2vec2-layer"], text_encoder, audio_layers="weighted")
    with torch.no_grad():
        model.lascl.layer_weights.copy_(torch.log(torch.tensor([1.0, 2.0, 5.0])))
    pooled = outputs(model).pooled_audio
    for row, (_, states) in zip(pooled, stock_states(audio_encoders["wav2vec2-layer"], speech())):
        by_hand = (1 * states[0] + 2 * states[1] + 5 * states[2]) / 8
        assert (row - by_hand.mean(dim=0)).abs().max() < 1e-5


def test_weighted_layers_of_whisper_include_its_embedding(audio_encoders, text_encoder):
    model = build(audio_encoders["whisper"], text_encoder, audio_layers="weighted")
    inputs = speech("whisper")
    with torch.no_grad():
        stock = WhisperModel.from_pretrained(audio_encoders["whisper"]).get_encoder().eval()
        states = stock(inputs["input_features"], output_hidden_states=True).hidden_states
    for row, length in enumerate((1607, 801, 1210)):
        frames = sum(state[row] for state in states)[: -(-length // 320)] / 3
        assert (outputs(model, **inputs).pooled_audio[row] - frames.mean(dim=0)).abs().max() < 1e-5


def test_gradient_reaches_the_layer_weights_and_sums_to_zero(audio_encoders, text_encoder):
    model = build(audio_encoders["wav2vec2-layer"], text_encoder, audio_layers="weighted").train()
    model(**speech(), labels=torch.tensor([0, 1, 0])).loss.backward()
    gradient = model.lascl.layer_weights.grad
    assert (gradient.abs() > 1e-7).all()
    assert gradient.sum().abs() < 1e-5  # a softmax does not change when all its inputs grow alike


@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_numbered_layers_are_pooled_each_and_concatenated(pooling, audio_encoders, text_encoder):
    folder = audio_encoders["wavlm-group"]
    model = build(folder, text_encoder, audio_layers="2,0", audio_pooling=pooling)
    pooled = outputs(model).pooled_audio
    assert pooled.shape == (3, 32) and model.classifier.in_features == 32
    for row, (_, states) in zip(pooled, stock_states(folder, speech())):
        pool = (lambda x: x.mean(dim=0)) if pooling == "mean" else (lambda x: x.amax(dim=0))
        assert (row - torch.cat([pool(states[2]), pool(states[0])])).abs().max() < 1e-5


def test_a_layer_that_the_encoder_lacks_is_refused(audio_encoders, text_encoder):
    with pytest.raises(ValueError, match="audio_layers asks for layer 3, but this audio encoder has 2"):
        build(audio_encoders["wavlm-group"], text_encoder, audio_layers="1,3")


def test_standardised_audio_has_mean_0_and_deviation_1_over_what_it_was_fitted_on(
    audio_encoders, text_encoder, tmp_path
):
    plain = build(audio_encoders["wavlm-layer"], text_encoder)
    model = build(audio_encoders["wavlm-layer"], text_encoder, standardise_audio=True)
    before = outputs(plain).pooled_audio
    torch.testing.assert_close(outputs(model).pooled_audio, before, rtol=0, atol=0)  # nothing fitted yet
    before[:, 3] = 7.0  # a feature that never varies
    model.lascl.set_pooled_statistics(before)
    after = outputs(model).pooled_audio
    expected = (before - before.mean(0)) / before.std(0, correction=0)
    torch.testing.assert_close(after[:, 4:], expected[:, 4:], rtol=1e-4, atol=1e-4)
    assert after[:, 4:].mean(0).abs().max() < 1e-4 and (after[:, 4:].square().mean(0) - 1).abs().max() < 1e-3
    assert model.lascl.pooled_std[3] == 1 and after.isfinite().all()
    model.save_pretrained(tmp_path)
    again = LaSCLForAudioClassification.from_pretrained(tmp_path)
    torch.testing.assert_close(outputs(again).pooled_audio, after)
    with pytest.raises(ValueError, match="standardise_audio='none'; build it with standardise_audio='training'"):
        plain.lascl.set_pooled_statistics(before)


def test_a_frozen_audio_encoder_has_neither_gradient_nor_chance(audio_encoders, text_encoder, tmp_path):
    model = build(audio_encoders["wavlm-layer"], text_encoder, freeze_audio_encoder=True)
    for module in model.lascl.audio_encoder.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    model.train()
    assert model.training and model.lascl.audio_projection.training and not model.lascl.audio_encoder.training
    first, second = (model(**speech(), labels=torch.tensor([0, 1, 0])) for _ in range(2))
    assert torch.equal(first.pooled_audio, second.pooled_audio)
    first.loss.backward()
    trained = {name.split(".")[1] for name, p in model.named_parameters() if p.grad is not None and "lascl" in name}
    assert trained == {"audio_projection", "text_projection"} and model.classifier.weight.grad is not None
    model.save_pretrained(tmp_path)
    again = LaSCLForAudioClassification.from_pretrained(tmp_path)
    assert not any(parameter.requires_grad for parameter in again.lascl.audio_encoder.parameters())


@pytest.mark.parametrize("pooling", ["mean", "first"])
def test_label_features_are_the_pooled_states_of_the_stock_text_encoder(pooling, audio_encoders, text_encoder):
    model = build(
        audio_encoders["wav2vec2-layer"], text_encoder, text_pooling=pooling, label_template="a {label} voice"
    )
    texts = ["a angry voice", "a happy voice", "a neutral voice", "a sad voice"]  # of different numbers of tokens
    for feature, states in zip(model.lascl.label_features, stock_text_states(text_encoder, texts)):
        by_hand = states[0] if pooling == "first" else sum(states) / len(states)
        assert (feature - by_hand).abs().max() < 1e-5


def test_the_text_encoder_is_neither_a_parameter_nor_in_the_checkpoint(model):
    names = list(model.state_dict())
    assert "lascl.label_features" in names and "lascl.label_features" not in dict(model.named_parameters())
    parts = {".".join(name.split(".")[:2]) for name in names}
    assert parts == {
        "lascl.audio_encoder",
        "lascl.audio_projection",
        "lascl.text_projection",
        "lascl.label_features",
        "classifier.weight",
        "classifier.bias",
    }


# ---------------------------------------------------------------------------------------------------- what is frozen


@pytest.mark.parametrize("family", FAMILIES)
def test_the_front_end_alone_is_frozen_by_default(family, audio_encoders, text_encoder, tmp_path):
    model = build(audio_encoders[family], text_encoder)
    model.save_pretrained(tmp_path)
    kept = ("audio_encoder.conv", "audio_encoder.embed_positions") if family == "whisper" else ("feature_extractor.",)
    for each in (model, LaSCLForAudioClassification.from_pretrained(tmp_path), LaSCLModel.from_pretrained(tmp_path)):
        expected = {name for name, _ in each.named_parameters() if any(part in name for part in kept)}
        assert {name for name, value in each.named_parameters() if not value.requires_grad} == expected
        assert len(expected) >= 3


@pytest.mark.parametrize("family", FAMILIES)
def test_no_weight_is_frozen_when_asked(family, audio_encoders, text_encoder, tmp_path):
    model = build(audio_encoders[family], text_encoder, freeze_feature_encoder=False)
    model.save_pretrained(tmp_path)
    constant = {"lascl.audio_encoder.embed_positions.weight"} if family == "whisper" else set()  # its sinusoids
    for each in (model, LaSCLForAudioClassification.from_pretrained(tmp_path)):
        assert {name for name, value in each.named_parameters() if not value.requires_grad} == constant


def test_a_frozen_front_end_gets_no_gradient_and_every_other_parameter_does(model):
    model.train()(**speech(), labels=torch.tensor([0, 1, 0])).loss.backward()
    without = {name for name, value in model.named_parameters() if value.grad is None}
    unused = {"lascl.audio_encoder.masked_spec_embed"}  # SpecAugment's, which the tiny encoders have off
    assert without - unused == {n for n, _ in model.named_parameters() if "feature_extractor" in n}


# ------------------------------------------------------------------------------------------------------ from_encoders


def test_from_encoders_keeps_what_it_was_given(audio_encoders, text_encoder):
    model = build(audio_encoders["wavlm-group"], text_encoder, contrastive_weight=0.25, label_template="{label} speech")
    assert model.config.labels == LABELS
    assert (model.config.contrastive_weight, model.config.label_template) == (0.25, "{label} speech")
    assert model.config.text_encoder == text_encoder
    assert (model.config.audio_config.model_type, model.config.text_config.model_type) == ("wavlm", "bert")
    stock = AutoModel.from_pretrained(audio_encoders["wavlm-group"]).state_dict()
    ours = model.lascl.audio_encoder.state_dict()
    assert ours.keys() == stock.keys() and all(torch.equal(value, stock[name]) for name, value in ours.items())


@pytest.mark.parametrize("field", ["temperature", "projection_dimension", "lambda_1"])
def test_from_encoders_refuses_a_field_that_the_config_lacks(field, audio_encoders, text_encoder):
    with pytest.raises(ValueError, match=f"LaSCLConfig has no field {field}"):
        LaSCLForAudioClassification.from_encoders(audio_encoders["wav2vec2-layer"], text_encoder, LABELS, **{field: 1})


@pytest.mark.parametrize("labels", [[], ["sad", "sad"], ["angry", "sad", "angry"]])
def test_from_encoders_refuses_labels_that_are_none_or_repeat(labels, audio_encoders, text_encoder):
    with pytest.raises(ValueError, match="at least one and differ"):
        LaSCLForAudioClassification.from_encoders(audio_encoders["wav2vec2-layer"], text_encoder, labels)


def test_from_encoders_accepts_relative_paths(audio_encoders, text_encoder, tmp_path, monkeypatch):
    (tmp_path / "audio").symlink_to(audio_encoders["wav2vec2-layer"])
    (tmp_path / "text").symlink_to(text_encoder)
    monkeypatch.chdir(tmp_path)
    here, absolute = build("audio", "text"), build(audio_encoders["wav2vec2-layer"], text_encoder)
    torch.testing.assert_close(outputs(here).logits, outputs(absolute).logits)
    here.set_labels(["calm", "tense"])
    assert outputs(here).logits.shape == (3, 2)


def test_half_precision_encoders_become_float32_models(audio_encoders, text_encoder, tmp_path):
    AutoModel.from_pretrained(audio_encoders["wav2vec2-group"]).half().save_pretrained(tmp_path / "audio")
    AutoModel.from_pretrained(text_encoder).half().save_pretrained(tmp_path / "text")
    AutoTokenizer.from_pretrained(text_encoder).save_pretrained(tmp_path / "text")
    assert AutoConfig.from_pretrained(tmp_path / "audio").dtype == torch.float16
    model = build(str(tmp_path / "audio"), str(tmp_path / "text"))
    assert {value.dtype for value in model.state_dict().values()} == {torch.float32}
    for feature, states in zip(model.lascl.label_features, stock_text_states(str(tmp_path / "text"), LABELS)):
        assert (feature - sum(states) / len(states)).abs().max() < 1e-5  # the text encoder too computed in float32
    model.save_pretrained(tmp_path / "model")
    again = LaSCLForAudioClassification.from_pretrained(tmp_path / "model")
    assert {value.dtype for value in again.state_dict().values()} == {torch.float32}
    assert torch.allclose(outputs(again).logits, outputs(model).logits, atol=1e-6)


def test_a_whisper_model_keeps_the_window_it_was_built_for(audio_encoders, text_encoder, tmp_path):
    model = build(audio_encoders["whisper"], text_encoder, window_s=1)
    model.save_pretrained(tmp_path)
    again = LaSCLForAudioClassification.from_pretrained(tmp_path)
    features = torch.randn(2, 16, 100, generator=torch.Generator().manual_seed(0))
    assert again.config.audio_config.max_source_positions == 50
    expected = outputs(model, input_features=features).logits
    assert torch.allclose(outputs(again, input_features=features).logits, expected, atol=1e-6)


# --------------------------------------------------------------------------------------------------------- new labels


def bare(audio_encoders, text_encoder, cls=LaSCLForAudioClassification, **config):
    return cls(
        LaSCLConfig(
            audio_config=AutoConfig.from_pretrained(audio_encoders["wav2vec2-layer"]),
            text_config=AutoConfig.from_pretrained(text_encoder),
            id2label=dict(enumerate(LABELS)),
            **config,
        )
    ).eval()


@pytest.mark.parametrize("cls", [LaSCLModel, LaSCLForAudioClassification])
def test_a_model_of_a_bare_config_embeds_audio_but_asks_for_labels_to_predict(cls, audio_encoders, text_encoder):
    model = bare(audio_encoders, text_encoder, cls)
    with torch.no_grad():
        assert model.get_audio_embeddings(**speech()).isfinite().all()
    for predict in (lambda: model(**speech()), model.get_label_embeddings):
        with pytest.raises(ValueError, match="set_labels"):
            predict()
    with pytest.raises(ValueError, match=r"config\.text_encoder"):
        model.set_labels(LABELS)
    model.config.text_encoder = text_encoder
    model.set_labels(LABELS)
    assert outputs(model.base_model).label_embeds.shape == (4, 256)


def test_a_bare_model_still_asks_for_labels_after_saving_and_loading(audio_encoders, text_encoder, tmp_path):
    bare(audio_encoders, text_encoder).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="set_labels"):
        LaSCLForAudioClassification.from_pretrained(tmp_path)(**speech())


def test_any_words_can_be_labels_and_their_embeddings_are_those_of_a_model_built_with_them(
    model, audio_encoders, text_encoder
):
    words = ["bored stiff", "Überrascht!", "{curly}", "fear", "x"]
    trained = outputs(model)
    model.set_labels(words)
    out = outputs(model)
    assert model.config.labels == words and model.config.num_labels == 5
    assert model.config.label2id == {word: index for index, word in enumerate(words)}
    assert (out.logits.shape, out.class_logits) == ((3, 5), None)
    assert torch.allclose(out.audio_embeds, trained.audio_embeds, atol=1e-6)
    for feature, states in zip(model.lascl.label_features, stock_text_states(text_encoder, words)):
        assert (feature - sum(states) / len(states)).abs().max() < 1e-5


def test_permuting_the_labels_permutes_the_logits(model):
    before = outputs(model)
    order = [2, 0, 3, 1]
    model.set_labels([LABELS[index] for index in order])
    after = outputs(model)
    assert torch.allclose(after.logits, before.logits[:, order], atol=1e-6)
    assert (before.logits - before.logits[:, order]).abs().max() > 1e-3
    assert after.class_logits is None  # its columns are in the trained order


def test_a_label_is_embedded_alone_whatever_the_others_and_their_order(model, monkeypatch):
    """Bit by bit, on every machine: it is the same computation of the same shapes again."""
    loaded, texts, rows = modeling_lascl.load_text_encoder, [], []

    def load_watched(*where):
        encoder, tokenizer = loaded(*where)
        encoder.register_forward_pre_hook(
            lambda module, args, inputs: texts.append(tuple(inputs["input_ids"].shape)), with_kwargs=True
        )
        return encoder, tokenizer

    monkeypatch.setattr(modeling_lascl, "load_text_encoder", load_watched)
    model.lascl.text_projection.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    words, found = ["sad", "so very bored and tired", "joy", "in two minds", "anger"], {}
    for order in ([0, 1, 2, 3, 4], [4, 2, 3, 1, 0], [3, 0], [1]):
        del texts[:], rows[:]
        model.set_labels([words[index] for index in order])
        embeddings = model.get_label_embeddings()
        assert [shape[0] for shape in texts] == rows == [1] * len(order)
        assert len(set(texts)) == min(len(order), 4)  # no text is padded to another's length
        for index, embedding in zip(order, embeddings):
            assert torch.equal(embedding, found.setdefault(words[index], embedding))


def test_labels_projected_at_once_in_training_have_the_embeddings_and_gradients_of_each_alone(model):
    direction, found = torch.randn(4, 8), {}
    for training in (True, False):
        model.train(training).zero_grad()
        embeddings = model.get_label_embeddings()
        (embeddings * direction).sum().backward()
        found[training] = [embeddings, *(p.grad for p in model.lascl.text_projection.parameters())]
    for at_once, alone in zip(found[True], found[False], strict=True):
        assert at_once.abs().max() > 1e-3
        torch.testing.assert_close(alone, at_once, rtol=1e-5, atol=1e-6)


def test_the_trained_labels_bring_the_classifier_back(model):
    trained = outputs(model)
    model.set_labels(["calm", "tense"])
    assert outputs(model).class_logits is None and model.config.classifier_labels == LABELS
    model.set_labels(["fear"])
    assert outputs(model).class_logits is None and model.config.classifier_labels == LABELS
    model.set_labels(LABELS)
    out = outputs(model)
    assert model.config.classifier_labels is None
    for name in ("logits", "class_logits"):
        assert torch.allclose(out[name], trained[name], atol=1e-6)


def test_the_trained_labels_set_again_keep_the_classifier(model):
    trained = outputs(model)
    model.set_labels(LABELS)
    assert torch.allclose(outputs(model).class_logits, trained.class_logits, atol=1e-6)
    assert model.config.classifier_labels is None


def test_a_template_replaces_the_one_of_the_config_and_stays(model, text_encoder):
    model.set_labels(LABELS, template="so {label}")
    model.set_labels(["calm", "tense"])
    assert model.config.label_template == "so {label}"
    for feature, states in zip(model.lascl.label_features, stock_text_states(text_encoder, ["so calm", "so tense"])):
        assert (feature - sum(states) / len(states)).abs().max() < 1e-5


def test_other_braces_in_a_template_are_text(model, text_encoder):
    model.set_labels(["calm"], template='{"emotion": "{label}"} {}')
    states = stock_text_states(text_encoder, ['{"emotion": "calm"} {}'])[0]
    assert (model.lascl.label_features[0] - sum(states) / len(states)).abs().max() < 1e-5


def test_a_model_saved_with_other_labels_still_answers_them_and_remembers_its_classifiers(model, tmp_path):
    trained = outputs(model)
    model.set_labels(["calm", "tense", "bored", "fear", "joy"])
    out = outputs(model)
    model.save_pretrained(tmp_path)
    again = LaSCLForAudioClassification.from_pretrained(tmp_path)
    assert again.config.classifier_labels == LABELS
    assert again.config.labels == ["calm", "tense", "bored", "fear", "joy"]
    assert torch.allclose(outputs(again).logits, out.logits, atol=1e-6)
    assert outputs(again).class_logits is None
    again.set_labels(LABELS)
    assert torch.allclose(outputs(again).class_logits, trained.class_logits, atol=1e-6)


def test_other_labels_and_the_loss_of_the_classifier_are_refused_together(model):
    model.set_labels(["calm", "tense"])
    with pytest.raises(ValueError, match=r"trained on \['angry', .*\], but the labels are now \['calm', 'tense'\]"):
        model(**speech(), labels=torch.tensor([0, 1, 0]))
    model.config.prediction_head = "classifier"
    with pytest.raises(ValueError, match="only the label head answers"):
        model(**speech())


def test_a_model_that_predicts_with_its_classifier_refuses_new_labels(audio_encoders, text_encoder):
    model = build(audio_encoders["wav2vec2-layer"], text_encoder, prediction_head="classifier")
    before = outputs(model).logits
    with pytest.raises(ValueError, match="whose labels cannot change"):
        model.set_labels(["calm", "tense"])
    assert model.config.labels == LABELS and torch.equal(outputs(model).logits, before)


@pytest.mark.parametrize(
    ("labels", "template", "message"),
    [
        ([], None, r"at least one and differ from each other; found \[\]"),
        (["sad", "sad"], None, r"differ from each other; found \['sad', 'sad'\]"),
        (["sad"], "an emotion", r"template must contain \{label\}; found 'an emotion'"),
        ("sad", None, "sad"),  # a string is a list of letters, which nobody means
    ],
    ids=["none", "repeated", "template", "a string"],
)
def test_labels_that_cannot_be_are_refused_and_change_nothing(labels, template, message, model):
    before = outputs(model).logits
    with pytest.raises(ValueError, match=message):
        model.set_labels(labels, template)
    assert (model.config.labels, model.config.label_template) == (LABELS, "{label}")
    assert torch.equal(outputs(model).logits, before)


def test_the_text_encoder_beside_the_checkpoint_comes_before_the_one_that_the_config_names(
    model, text_encoder, tmp_path
):
    model.set_labels(["calm", "tense"])
    expected = outputs(model).logits
    model.config.text_encoder = str(tmp_path / "nowhere")
    model.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model" / "text_encoder").exists()
    (tmp_path / "model" / "text_encoder").symlink_to(text_encoder)
    again = LaSCLForAudioClassification.from_pretrained(tmp_path / "model")
    again.set_labels(["tense", "calm"])
    assert torch.allclose(outputs(again).logits, expected[:, [1, 0]], atol=1e-6)


def test_a_folder_called_text_encoder_where_python_was_started_is_not_the_checkpoints(model, tmp_path, monkeypatch):
    (tmp_path / "text_encoder").mkdir()
    monkeypatch.chdir(tmp_path)
    model.set_labels(["calm", "tense"])
    assert outputs(model).logits.shape == (3, 2)


def test_a_text_encoder_that_is_nowhere_is_named(model, tmp_path):
    model.config.text_encoder = str(tmp_path / "nowhere")
    with pytest.raises((OSError, ValueError), match="nowhere"):
        model.set_labels(["calm", "tense"])
    assert model.config.labels == LABELS


# --------------------------------------------------------------------------------------------------------------- loss


@pytest.mark.parametrize("label_anchors", [True, False])
def test_the_loss_of_forward_is_the_joint_loss_of_its_outputs(label_anchors, audio_encoders, text_encoder):
    model = build(
        audio_encoders["wav2vec2-layer"],
        text_encoder,
        contrastive_temperature=0.11,
        contrastive_weight=0.3,
        divergence_weight=0.4,
        label_anchors=label_anchors,
        prediction_head="classifier",
    )
    labels = torch.tensor([1, 3, 1])
    out = outputs(model, **speech(), labels=labels)
    loss, terms = joint_loss(
        out.audio_embeds,
        out.label_embeds,
        out.pooled_audio @ model.classifier.weight.T + model.classifier.bias,
        labels,
        contrastive_temperature=0.11,
        contrastive_weight=0.3,
        divergence_weight=0.4,
        label_anchors=label_anchors,
    )
    assert out.loss.item() == pytest.approx(loss.item(), rel=1e-5)
    assert {n: t.item() for n, t in out.terms.items()} == pytest.approx(
        {n: t.item() for n, t in terms.items()}, rel=1e-5
    )
    assert set(terms) == {"contrastive", "divergence", "cross_entropy"}
    assert outputs(model).loss is None and outputs(model).terms is None


@pytest.mark.parametrize("cls", [LaSCLModel, LaSCLForAudioClassification])
def test_trainer_is_told_that_the_loss_is_a_mean_over_the_local_batch(cls):
    assert cls.accepts_loss_kwargs is False
    kinds = [parameter.kind for parameter in inspect.signature(cls.forward).parameters.values()]
    assert inspect.Parameter.VAR_KEYWORD not in kinds and len(kinds) >= 4


def test_forward_refuses_what_it_does_not_know(model):
    with pytest.raises(TypeError, match="num_items_in_batch"):
        model(**speech(), labels=torch.tensor([0, 1, 0]), num_items_in_batch=3)


@pytest.mark.parametrize("family", ["wav2vec2-layer", "whisper"])
def test_gradient_checkpointing_changes_no_gradient(family, audio_encoders, text_encoder):
    model = build(audio_encoders[family], text_encoder, audio_layers="weighted").train()
    labels = torch.tensor([0, 1, 0])

    def gradients():
        model.zero_grad()
        model(**speech(family), labels=labels).loss.backward()
        return {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}

    plain = gradients()
    model.gradient_checkpointing_enable()
    calls = []
    layers = model.lascl.audio_encoder.layers if family == "whisper" else model.lascl.audio_encoder.encoder.layers
    inner = layers[0].self_attn if family == "whisper" else layers[0].attention
    inner.register_forward_hook(lambda *_: calls.append(1))
    checkpointed = gradients()
    assert len(calls) == 2  # forward, and again in backward
    assert checkpointed.keys() == plain.keys() and len(plain) > 20
    for name, gradient in plain.items():
        assert (checkpointed[name] - gradient).abs().max() <= 1e-6 * max(1, gradient.abs().max()), name


def test_gradient_checkpointing_of_a_trained_group_norm_survives_a_second_forward(audio_encoders, text_encoder):
    model = build(audio_encoders["wav2vec2-group"], text_encoder, freeze_feature_encoder=False).train()
    towards = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))

    def gradients():
        model.zero_grad()
        embeds = [model.get_audio_embeddings(**speech(lengths=lengths)) for lengths in ((1607, 801), (400,))]
        (torch.cat(embeds) * towards).sum().backward()
        return {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}

    plain = gradients()
    assert "lascl.audio_encoder.feature_extractor.conv_layers.0.layer_norm.weight" in plain
    model.gradient_checkpointing_enable()
    checkpointed = gradients()
    for name, gradient in plain.items():
        assert (checkpointed[name] - gradient).abs().max() <= 1e-5 * max(1, gradient.abs().max()), name


@pytest.mark.parametrize("family", ["wav2vec2-group", "wav2vec2-layer", "wavlm-layer", "data2vec-audio", "whisper"])
def test_under_bfloat16_autocast_the_loss_is_float32_and_near_that_without(family, audio_encoders, text_encoder):
    model = build(audio_encoders[family], text_encoder).train()
    inputs = {**speech(family), "labels": torch.tensor([0, 1, 0])}
    expected = model(**inputs).loss.item()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(**inputs)
    assert out.loss.dtype == torch.float32
    assert out.loss.item() != expected  # autocast is on
    assert out.loss.item() == pytest.approx(expected, rel=0.05)
    out.loss.backward()
    gradients = [value.grad for value in model.parameters() if value.grad is not None]
    assert len(gradients) > 20 and all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_frames_in_half_precision_are_pooled_in_float32(dtype):
    """In float16 their sum is beyond the largest number, in bfloat16 their count is 500."""
    frames, mask = torch.full((2, 499, 3), 200.0, dtype=dtype), torch.ones(2, 499, dtype=torch.bool)
    mask[1, 300:] = False
    for pool in (masked_mean, masked_max):
        assert pool(frames, mask).tolist() == [[200.0] * 3] * 2
        assert pool(frames, mask).dtype == torch.float32
    frames = torch.randn(2, 499, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
    expected = torch.stack([row[told].double().mean(dim=0) for row, told in zip(frames, mask)])
    torch.testing.assert_close(masked_mean(frames, mask).double(), expected, rtol=0, atol=1e-6)


def test_pooling_and_projection_of_float32_are_as_they_were_to_the_bit():
    x, mask = torch.randn(3, 77, 5, generator=torch.Generator().manual_seed(0)), torch.arange(77) < 70
    weights = mask.expand(3, 77).float()[..., None]
    assert torch.equal(masked_mean(x, mask.expand(3, 77)), (x * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1))
    assert torch.equal(masked_max(x, mask.expand(3, 77)), x[:, :70].amax(dim=1))
    assert torch.equal(unit_length(x), x / torch.linalg.vector_norm(x, dim=-1, keepdim=True))
    assert {pool(x.double(), mask.expand(3, 77)).dtype for pool in (masked_mean, masked_max)} == {torch.float64}


@pytest.fixture(params=["bfloat16 weights", "float16 weights", "bfloat16 autocast"])
def in_half_precision(request, audio_encoders, text_encoder):
    """A model in half precision, and a function that asks it about some pooled audio; and those, (64, 16)."""
    model = build(audio_encoders["wav2vec2-layer"], text_encoder, labels=["calm", "cold", "cool", "tense", "tired"])
    pooled = torch.randn(64, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        model.classifier.weight.mul_(30)  # as sharp as after training
    if "autocast" in request.param:
        context = torch.autocast("cpu", dtype=torch.bfloat16)
    else:
        model, context = model.to(getattr(torch, request.param.split()[0])), contextlib.nullcontext()

    def ask():
        with torch.no_grad(), context:
            return model(pooled_audio=pooled.to(model.dtype)), model.get_label_embeddings()

    return model, ask, pooled.to(model.dtype)


def test_half_precision_scores_in_float32(in_half_precision):
    """bfloat16 has steps of 0.06 near 14 = 1 / tau, float16 of 0.008: that would decide between close labels."""
    model, ask, pooled = in_half_precision
    out, label_embeds = ask()
    assert {value.dtype for value in (*out.values(), label_embeds)} == {torch.float32}
    for embeds in (out.audio_embeds, label_embeds):
        torch.testing.assert_close(embeds.double().norm(dim=-1), torch.ones(len(embeds)).double(), rtol=0, atol=1e-6)
    similarity = out.audio_embeds.double() @ label_embeds.double().T / model.config.contrastive_temperature
    torch.testing.assert_close(out.logits.double(), similarity, rtol=0, atol=1e-4)
    assert torch.equal(out.logits.argmax(dim=-1), similarity.argmax(dim=-1))
    by_classifier = pooled.double() @ model.classifier.weight.double().T + model.classifier.bias.double()
    assert by_classifier.abs().max() > 30
    torch.testing.assert_close(out.class_logits.double(), by_classifier, rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", ["wav2vec2-layer", "whisper"])
@pytest.mark.parametrize("fields", [{}, {"audio_layers": "1,2", "standardise_audio": True}, {"audio_pooling": "max"}])
def test_a_model_in_bfloat16_answers_in_float32_near_what_it_does_in_float32(
    family, fields, audio_encoders, text_encoder
):
    model = build(audio_encoders[family], text_encoder, **fields)
    inputs = speech(family)
    expected = outputs(model, **inputs)
    halved = {name: value.bfloat16() if value.is_floating_point() else value for name, value in inputs.items()}
    found = outputs(model.bfloat16(), **halved)
    assert {value.dtype for value in found.values()} == {torch.float32}
    assert model.get_audio_embeddings(**halved).dtype == torch.float32
    for name in ("audio_embeds", "pooled_audio"):
        torch.testing.assert_close(found[name], expected[name], rtol=0.1, atol=0.1)


def test_a_classifier_s_logits_in_half_precision_train_it(audio_encoders, text_encoder):
    model = build(audio_encoders["wav2vec2-layer"], text_encoder).bfloat16().train()
    model(pooled_audio=torch.randn(6, 16).bfloat16(), labels=torch.tensor([0, 1, 2, 3, 0, 1])).loss.backward()
    for parameter in (*model.classifier.parameters(), *model.lascl.text_projection.parameters()):
        assert parameter.grad.dtype == torch.bfloat16 and parameter.grad.isfinite().all() and parameter.grad.any()


# --------------------------------------------------------------------------------------------------- save and load


@pytest.mark.parametrize("layers", ["last", "weighted"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_model_answers_alike_through_every_class(
    family, layers, audio_encoders, text_encoder, tmp_path, caplog
):
    model = build(audio_encoders[family], text_encoder, audio_layers=layers)
    with torch.no_grad():  # no weight stays at its value at the start
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.02)
    expected = {**outputs(model, **speech(family)), **outputs(model.lascl, **speech(family))}
    model.save_pretrained(tmp_path)
    logging.getLogger("transformers").addHandler(caplog.handler)
    loaded = {
        cls: cls.from_pretrained(tmp_path)
        for cls in (LaSCLForAudioClassification, AutoModelForAudioClassification, LaSCLModel, AutoModel)
    }
    logging.getLogger("transformers").removeHandler(caplog.handler)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    for cls, again in loaded.items():
        base = cls in (LaSCLModel, AutoModel)
        assert type(again) is (LaSCLModel if base else LaSCLForAudioClassification)
        out = outputs(again, **speech(family))
        assert set(out) == set(expected) - ({"logits", "class_logits"} if base else {"label_embeds"})
        for name, value in out.items():
            assert (value - expected[name]).abs().max() < 1e-6 * max(1, expected[name].abs().max()), name


def test_a_saved_base_model_becomes_a_classifier_with_a_new_head(model, tmp_path):
    expected = outputs(model)
    model.lascl.save_pretrained(tmp_path)
    again = LaSCLForAudioClassification.from_pretrained(tmp_path)
    out = outputs(again)
    assert torch.allclose(out.logits, expected.logits, atol=1e-6)
    assert out.class_logits.isfinite().all()
    assert (out.class_logits - expected.class_logits).abs().max() > 1e-3


def test_saving_twice_writes_the_same_bytes(model, tmp_path):
    for folder in ("once", "twice"):
        model.save_pretrained(tmp_path / folder)
    files, again = (
        sorted(path.relative_to(tmp_path / folder) for path in (tmp_path / folder).rglob("*") if path.is_file())
        for folder in ("once", "twice")
    )
    assert files == again and {"model.safetensors", "text_encoder/model.safetensors"} <= set(map(str, files))
    for name in files:
        assert (tmp_path / "once" / name).read_bytes() == (tmp_path / "twice" / name).read_bytes()

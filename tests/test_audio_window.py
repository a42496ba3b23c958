"""`audio_window: utterance`: Whisper hears no more than an utterance lasts, whatever else is in the batch."""

import copy
import json
import threading

import numpy as np
import pytest
import tiny
import torch
from tiny import LABELS, RATE, recording
from transformers import WhisperFeatureExtractor, pipeline

from lascl import LaSCLConfig, LaSCLForAudioClassification, load_corpus, make_folds
from lascl.inference.recogniser import Recogniser
from lascl.modeling_lascl import masked_mean
from lascl.training.gradient_cache import cached_forward
from lascl.training.recipe import Recipe


WINDOW_S = 3
EXTRACTOR = WhisperFeatureExtractor(feature_size=16, chunk_length=WINDOW_S, return_attention_mask=True)
# Shorter than a second, of one, of a little more than one, of two, of more, and what fills the window.
LENGTHS = (4_000, 16_000, 16_001, 32_000, 33_000, 48_000)
UTTERANCES = [recording(seed, samples / RATE)[:samples] for seed, samples in enumerate(LENGTHS)]
HEARD_S = (1, 1, 2, 2, 3, 3)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, text_encoder) -> str:
    """A model with the window of 3 s that hears no more than lasts, and its extractor."""
    root = tmp_path_factory.mktemp("utterance")
    encoder = {**tiny.AUDIO_ENCODERS["whisper"], "max_source_positions": 50 * WINDOW_S}
    audio = tiny.save_random_audio_encoder(encoder, root / "audio")
    torch.manual_seed(0)
    model = LaSCLForAudioClassification.from_encoders(str(audio), text_encoder, LABELS, projection_dim=8)
    model.config.audio_window = "utterance"  # what older code takes for nothing, and saves
    with torch.no_grad():  # so that what is heard tells
        for projection in (model.lascl.audio_projection, model.lascl.text_projection):
            projection.hidden.weight.mul_(5)
    model.save_pretrained(root / "checkpoint")
    EXTRACTOR.save_pretrained(root / "checkpoint")
    return str(root / "checkpoint")


@pytest.fixture
def model(checkpoint):
    return LaSCLForAudioClassification.from_pretrained(checkpoint).eval()


def features(utterances, dtype=torch.float32, *, mel_rate=True) -> dict:
    options = {"sampling_rate": RATE, "padding": "max_length", "return_attention_mask": True, "return_tensors": "pt"}
    inputs = EXTRACTOR(utterances, **options)
    given = {"input_features": inputs["input_features"].to(dtype), "attention_mask": inputs["attention_mask"]}
    if not mel_rate:
        lengths = torch.tensor([len(samples) for samples in utterances])
        given["attention_mask"] = (torch.arange(WINDOW_S * RATE) < lengths[:, None]).long()
    return given


def heard_alone(model, samples, window_s) -> torch.Tensor:
    """(d_a,): what an encoder whose whole window is `window_s` makes of the first part of the features."""
    encoder = copy.deepcopy(model.lascl.audio_encoder)
    positions = 50 * window_s
    encoder.embed_positions = torch.nn.Embedding.from_pretrained(encoder.embed_positions.weight[:positions].clone())
    encoder.config.max_source_positions = positions
    mel = features([samples])["input_features"][..., : 2 * positions]
    with torch.no_grad():
        hidden = encoder(mel).last_hidden_state
    num_frames = -(-len(samples) // 320)  # 20 ms each
    return masked_mean(hidden, torch.arange(positions)[None] < num_frames)[0]


# ------------------------------------------------------------------------------------------------------------- answers


@pytest.mark.parametrize("mel_rate", [True, False])
def test_an_utterance_is_heard_to_the_end_of_its_last_second_alone_and_in_any_batch(model, mel_rate):
    with torch.no_grad():
        together = model(**features(UTTERANCES, mel_rate=mel_rate))
        for row, (samples, window_s) in enumerate(zip(UTTERANCES, HEARD_S)):
            expected = heard_alone(model, samples, window_s)
            torch.testing.assert_close(together.pooled_audio[row], expected, rtol=0, atol=1e-5)
            alone = model(**features([samples], mel_rate=mel_rate))
            torch.testing.assert_close(together.logits[row], alone.logits[0], rtol=0, atol=1e-5)
        model.config.audio_window = "fixed"
        whole = model(**features(UTTERANCES)).pooled_audio
    moved = (whole - together.pooled_audio).abs().amax(-1)
    assert (moved[:4] > 1e-3).all() and (moved[4:] == 0).all()  # the silence behind an utterance is not nothing


@pytest.mark.parametrize("batch_size", [2, 6])
def test_so_it_is_by_recogniser_and_pipeline(checkpoint, model, batch_size):
    recogniser = Recogniser.load(checkpoint, device="cpu")
    expected = torch.stack([heard_alone(model, *given) for given in zip(UTTERANCES, HEARD_S)])
    with torch.no_grad():
        expected = model(pooled_audio=expected).logits.softmax(-1).numpy()
    classify = pipeline("audio-classification", model=model, feature_extractor=EXTRACTOR, top_k=None)
    order = np.random.default_rng(batch_size).permutation(len(UTTERANCES))
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        probabilities, _ = recogniser([UTTERANCES[row] for row in rows])
        np.testing.assert_allclose(probabilities, expected[rows], rtol=0, atol=1e-5)
        answers = classify([UTTERANCES[row] for row in rows], batch_size=batch_size)
        for answer, row in zip(answers, rows):
            scores = {score["label"]: score["score"] for score in answer}
            assert [scores[label] for label in LABELS] == pytest.approx(expected[row], abs=1e-5)


def test_a_recogniser_knows_what_it_computes(checkpoint):
    recogniser = Recogniser.load(checkpoint, device="cpu")
    assert [recogniser.heard_s(len(samples) / RATE) for samples in UTTERANCES] == list(HEARD_S)
    recogniser.model.config.audio_window = "fixed"
    assert {recogniser.heard_s(len(samples) / RATE) for samples in UTTERANCES} == {WINDOW_S}


def test_without_a_mask_and_in_a_graph_of_fixed_shapes_the_whole_window_is_heard(model):
    given = features(UTTERANCES[:2])
    fixed = copy.deepcopy(model)
    fixed.config.audio_window = "fixed"
    with torch.no_grad():
        unmasked = {"input_features": given["input_features"]}
        torch.testing.assert_close(model(**unmasked).logits, fixed(**unmasked).logits, rtol=0, atol=0)
        graph = torch.export.export(model, (), given, strict=False).module()
        torch.testing.assert_close(graph(**given).logits, fixed(**given).logits, rtol=0, atol=1e-5)
        own = model(**given).logits
    assert (own - fixed(**given).logits).abs().max() > 1e-3


def test_hidden_states_are_those_of_what_is_heard_and_zero_behind_it(model):
    with torch.no_grad():
        output = model(**features(UTTERANCES[::-1]), output_hidden_states=True)
        plain = model(**features(UTTERANCES[::-1]))
    torch.testing.assert_close(output.logits, plain.logits, rtol=0, atol=1e-5)
    assert len(output.hidden_states) == 3
    for state in output.hidden_states:
        assert state.shape == (6, 50 * WINDOW_S, 16)
        for row, window_s in enumerate(HEARD_S[::-1]):
            assert (state[row, 50 * window_s :] == 0).all() and (state[row, : 50 * window_s] != 0).any(-1).all()


def test_threads_that_share_a_model_do_not_hear_each_other_s_window(model):
    given = [features([samples]) for samples in UTTERANCES]
    with torch.no_grad():
        expected = [model(**inputs).logits for inputs in given]
    found, failed = {}, []

    def ask(row):
        try:
            with torch.no_grad():
                found[row] = [model(**given[row]).logits for _ in range(10)]
        except ValueError as error:
            failed.append(error)

    threads = [threading.Thread(target=ask, args=(row,)) for row in range(len(given))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    for row, answers in found.items():
        for answer in answers:
            torch.testing.assert_close(answer, expected[row], rtol=0, atol=1e-5)


def test_for_other_encoders_it_says_nothing(audio_encoders, text_encoder):
    torch.manual_seed(0)
    model = LaSCLForAudioClassification.from_encoders(audio_encoders["wavlm-layer"], text_encoder, LABELS).eval()
    mask = (torch.arange(400) < torch.tensor([400, 90, 210])[:, None]).long()
    given = {"input_values": torch.randn(3, 400) * mask, "attention_mask": mask}
    expected = model(**given).logits
    model.config.audio_window = "utterance"
    assert torch.equal(model(**given).logits, expected)


# ------------------------------------------------------------------------------------------------------------ training


@pytest.mark.parametrize("recomputed", [False, True])
def test_loss_and_gradients_are_those_of_the_rows_one_by_one(model, recomputed):
    """Also in chunks of the gradient cache."""
    model = model.double().train()
    given, labels = features(UTTERANCES, torch.float64), torch.arange(len(UTTERANCES)) % len(LABELS)
    if recomputed:
        model.gradient_checkpointing_enable({"use_reentrant": False})

    def gradients(embed):
        model.zero_grad(set_to_none=True)
        embeds, logits = embed()
        loss = (embeds @ torch.linspace(-1, 1, 8, dtype=torch.float64)).square().sum()
        (loss + torch.nn.functional.cross_entropy(logits, labels)).backward()
        found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        assert max(float(gradient.abs().max()) for gradient in found.values()) > 1e-3
        return {"loss": loss.detach(), **found}

    def one_by_one():
        rows = [model(**{name: value[[row]] for name, value in given.items()}) for row in range(len(UTTERANCES))]
        return torch.cat([row.audio_embeds for row in rows]), torch.cat([row.class_logits for row in rows])

    def together():
        output = model(**given)
        return output.audio_embeds, output.class_logits

    def in_chunks():
        output = cached_forward(model, {**given, "lengths": given["attention_mask"].sum(-1).tolist()}, 4)
        return output.audio_embeds, output.class_logits

    expected = gradients(one_by_one)
    assert {tuple(mel.shape) for mel in mels_of(model, together)} == {(2, 16, 100), (2, 16, 200), (2, 16, 300)}
    for embed in (together, in_chunks):
        found = gradients(embed)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-11, msg=name)


def mels_of(model, run) -> list[torch.Tensor]:
    seen = []
    hook = model.lascl.audio_encoder.conv1.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    run()
    hook.remove()
    return seen


def test_the_window_is_the_recipe_s_limit_whatever_was_trained_on(tmp_path, text_encoder, checkpoint):
    """Of a corpus whose longest recording is the tested speaker's; with a fixed window it is cut, as before."""
    from lascl.training.start import Weights, start_model

    encoder = checkpoint.replace("checkpoint", "audio")
    lines = ["path,label,speaker"]
    for number, duration_s in enumerate((0.5, 0.6, 0.7, 2.4)):
        tiny.soundfile.write(tmp_path / f"{number}.wav", recording(number, duration_s), RATE)
        lines.append(f"{number}.wav,{('joy', 'fear')[number % 2]},{'ab'[number // 2]}")
    (tmp_path / "manifest.csv").write_text("\n".join(lines), encoding="utf-8")
    corpus = load_corpus("csv", tmp_path)
    (fold,) = [f for f in make_folds(corpus, protocol="leave_one_speaker_out") if 3 in f.test]
    heard = {}
    for window, limit_s in (("fixed", 10.0), ("utterance", 10.0), ("utterance", 1.5)):
        recipe = Recipe(corpus="csv", data_dir=str(tmp_path), audio_encoder=encoder, text_encoder=text_encoder)
        recipe.audio_window, recipe.max_duration_s = window, limit_s
        start = start_model(recipe, corpus, fold, Weights(encoder, text_encoder), seed=1)
        assert start.model.config.audio_config.max_source_positions == 50 * start.extractor.chunk_length
        heard[window, limit_s] = start.extractor.chunk_length
    # All that this encoder has; a recipe's limit of less is rounded up.
    assert heard == {("fixed", 10.0): 1, ("utterance", 10.0): WINDOW_S, ("utterance", 1.5): 2}


# ------------------------------------------------------------------------------------------------- what a checkpoint is


def test_a_checkpoint_says_so_and_one_of_a_fixed_window_says_nothing(model, tmp_path):
    model.save_pretrained(tmp_path)
    told = json.loads((tmp_path / "config.json").read_text())
    assert told["audio_window"] == "utterance"
    model.config.audio_window = "fixed"
    model.save_pretrained(tmp_path)
    assert "audio_window" not in json.loads((tmp_path / "config.json").read_text())
    with pytest.raises(ValueError, match="audio_window must be one of fixed, utterance; found 'whole'"):
        LaSCLConfig(audio_window="whole")


def test_an_export_hears_whole_windows_and_says_what_that_changes(checkpoint, tmp_path, monkeypatch):
    """What the graph computes is computed by PyTorch here: exporting takes long, and is tested elsewhere."""
    onnxruntime = pytest.importorskip("onnxruntime")
    from lascl.inference import export

    graph = Recogniser.load(checkpoint, device="cpu")
    graph.model.config.audio_window = "fixed"

    class Session:
        def __init__(self, path, providers):
            self.compute = export._FromSamples(graph)

        def run(self, names, inputs):
            with torch.no_grad():
                return [found.numpy() for found in self.compute(**{k: torch.as_tensor(v) for k, v in inputs.items()})]

    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    monkeypatch.setattr(export, "_save_graph", lambda recogniser, path: path.write_bytes(b""))
    about = export.export(checkpoint, tmp_path / "out")
    assert about["check"]["max_probability_difference"] < 1e-4
    assert about["check"]["whole_window_max_probability_change"] > 3e-4
    assert "always hears its whole window" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")

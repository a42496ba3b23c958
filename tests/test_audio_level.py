"""What Whisper hears and pools: utterances that are all equally loud, and the frames with a voice."""

import json
import math

import numpy as np
import pytest
import torch
from tiny import LABELS, RATE, recording
from transformers import WhisperFeatureExtractor

from lascl import LaSCLConfig, LaSCLForAudioClassification, load_corpus
from lascl.data import SpeechDataset
from lascl.data.dataset import is_heard
from lascl.encoders_lascl import active_frames, at_equal_level
from lascl.inference.recogniser import Recogniser
from lascl.training import pooled


EXTRACTOR = WhisperFeatureExtractor(feature_size=16, chunk_length=2, return_attention_mask=True)
GAINS = (0.05, 0.4, 1.0, 3.0)


def features(utterances) -> dict:
    options = {"sampling_rate": RATE, "padding": "max_length", "return_attention_mask": True, "return_tensors": "pt"}
    return dict(EXTRACTOR(utterances, **options))


def slow_level_db(row: torch.Tensor, valid: list[bool]) -> float:
    """Of (mel bins, mel frames), in loops over float64."""
    over, under = 0.0, 0.0
    for frame, is_valid in enumerate(valid):
        if is_valid:
            power = sum(10 ** (4 * float(value) - 4) for value in row[:, frame]) / len(row)
            over, under = over + power**2, under + power
    return 10 * math.log10(over / under)


def test_every_row_gets_the_level_of_loops_by_the_same_shift_everywhere():
    inputs = features([gain * recording(seed, 0.3 + 0.4 * seed) for seed, gain in enumerate((0.2, 1.0, 4.0))])
    rows, mask = inputs["input_features"], inputs["attention_mask"]
    found = at_equal_level(rows, mask)
    for row, levelled, valid in zip(rows, found, mask.bool().tolist()):
        gain_db = -20 - slow_level_db(row, valid)
        torch.testing.assert_close(levelled - row, torch.full_like(row, gain_db / 40), rtol=0, atol=2e-5)
        assert slow_level_db(levelled, valid) == pytest.approx(-20, abs=1e-3)
    samples = torch.arange(2 * RATE) < torch.tensor([[0.3], [0.7], [1.1]]) * RATE  # a mask of samples is read likewise
    torch.testing.assert_close(at_equal_level(rows, samples.long()), found, rtol=0, atol=1e-3)
    alone = at_equal_level(rows[2:, :, :110], mask[2:, :110])
    torch.testing.assert_close(alone, found[2:, :, :110], rtol=0, atol=1e-6)
    torch.testing.assert_close(at_equal_level(rows[2:, :, :100], None), found[2:, :, :100], rtol=0, atol=0.02)


def test_rows_without_a_voice_stay_finite():
    silent = features([np.zeros(RATE, np.float32), 1e-4 * recording(1, 1.0)])
    rows = silent["input_features"]
    levelled = at_equal_level(rows, silent["attention_mask"])
    # Silence is raised by 40 dB, as what is at -60 dB; and not to the level of speech.
    torch.testing.assert_close(levelled[0], rows[0] + 1.0)
    assert torch.isfinite(levelled).all()
    nothing = torch.zeros_like(silent["attention_mask"])
    torch.testing.assert_close(at_equal_level(rows, nothing), rows, rtol=0, atol=0)
    half = at_equal_level(rows.half(), silent["attention_mask"])
    assert half.dtype == torch.float16 and torch.isfinite(half).all()


@pytest.fixture(scope="module")
def checkpoints(audio_encoders, text_encoder, tmp_path_factory):
    folders = {}
    for level in ("recorded", "equal"):
        torch.manual_seed(0)
        model = LaSCLForAudioClassification.from_encoders(
            audio_encoders["whisper"], text_encoder, LABELS, projection_dim=8, window_s=2
        )
        model.config.audio_level = level
        with torch.no_grad():  # so that what is heard tells
            model.lascl.audio_encoder.conv1.weight.mul_(40)
            for projection in (model.lascl.audio_projection, model.lascl.text_projection):
                projection.hidden.weight.mul_(40)
        folders[level] = tmp_path_factory.mktemp(level)
        model.save_pretrained(folders[level])
        EXTRACTOR.save_pretrained(folders[level])
    return folders


def test_the_gain_of_a_recording_changes_no_answer(checkpoints):
    spread = {}
    for level, folder in checkpoints.items():
        recogniser = Recogniser.load(str(folder))
        probabilities, _ = recogniser([gain * recording(2, 0.9) for gain in GAINS])
        spread[level] = float(np.ptp(probabilities, axis=0).max())
    assert spread["equal"] < 1e-4 < 1e-3 < spread["recorded"], spread


@pytest.mark.parametrize("field, value", [("audio_level", "equal"), ("pooled_frames", "active")])
def test_other_encoders_refuse_both(field, value, audio_encoders, text_encoder):
    with pytest.raises(ValueError, match=f"^{field} {value} is for Whisper; this audio encoder is of the type 'wavlm'"):
        LaSCLForAudioClassification.from_encoders(audio_encoders["wavlm-layer"], text_encoder, LABELS, **{field: value})


def test_what_is_beside_a_row_changes_nothing_and_is_refused_alone(checkpoints):
    model = LaSCLForAudioClassification.from_pretrained(checkpoints["equal"]).eval()
    utterances = [0.1 * recording(2, 0.9), 3 * recording(3, 1.7)]
    with torch.no_grad():
        together = model(**features(utterances)).logits
        apart = torch.cat([model(**features([samples])).logits for samples in utterances])
    torch.testing.assert_close(together, apart, rtol=0, atol=1e-4)
    odd = features(utterances)
    odd["input_features"][1, 3, 5] = float("nan")
    with pytest.raises(ValueError, match="^The audio in row 1 of the batch holds NaN"):
        model(**odd)


def test_the_field_is_written_where_it_says_something(checkpoints, audio_encoders):
    told = {level: json.loads((folder / "config.json").read_text()) for level, folder in checkpoints.items()}
    assert "audio_level" not in told["recorded"] and told["equal"]["audio_level"] == "equal"
    assert LaSCLConfig.from_pretrained(checkpoints["recorded"]).audio_level == "recorded"


def test_another_level_makes_other_views(checkpoints, emodb_like):
    corpus = load_corpus("emodb", emodb_like, allow_partial=True)
    speech = SpeechDataset(corpus, [0, 1], sampling_rate=RATE, max_duration_s=1.0)
    models = [LaSCLForAudioClassification.from_pretrained(folder).lascl for folder in checkpoints.values()]
    models.append(LaSCLForAudioClassification.from_pretrained(checkpoints["equal"], pooled_frames="active").lascl)
    assert len({pooled.view_keys(model, speech, EXTRACTOR)[0, 0] for model in models}) == 3


def test_gain_is_then_an_augmentation_that_nobody_hears():
    assert is_heard("gain", EXTRACTOR)
    assert not is_heard("gain", EXTRACTOR, and_then=lambda features: at_equal_level(features, None))
    assert is_heard("noise", EXTRACTOR, and_then=lambda features: at_equal_level(features, None))


def slow_activity(row: torch.Tensor, valid: list[bool]) -> list[bool]:
    """Of each encoder frame, in loops over float64."""
    levels = [10 * math.log10(sum(10 ** (4 * float(v) - 4) for v in frame) / len(frame)) for frame in row.T]
    known = sorted((level for level, is_valid in zip(levels, valid) if is_valid), reverse=True)
    least = known[len(known) // 20] - 30
    heard = [is_valid and level >= least for level, is_valid in zip(levels, valid)]
    return [heard[t] or heard[t + 1] for t in range(0, len(heard), 2)]


def voice_between_silences() -> np.ndarray:
    """0.4 s of faint noise, 0.5 s of a voice, 0.6 s of noise again."""
    noise = 1e-4 * np.random.default_rng(0).standard_normal(int(1.5 * RATE)).astype(np.float32)
    noise[int(0.4 * RATE) : int(0.9 * RATE)] += recording(5, 0.5)[: int(0.5 * RATE)]
    return noise


def test_active_frames_are_those_of_loops_whatever_the_gain():
    utterances = [voice_between_silences(), recording(1, 0.8), 0.02 * voice_between_silences()]
    inputs = features(utterances)
    rows, mask = inputs["input_features"], inputs["attention_mask"]
    found = active_frames(rows, mask)
    assert found.tolist() == [slow_activity(row, valid) for row, valid in zip(rows, mask.bool().tolist())]
    assert torch.equal(found[0], found[2])
    at_s = torch.arange(100) / 50
    assert not found[0, (at_s < 0.35) | (at_s > 0.95)].any() and found[0].sum() > 10
    assert torch.equal(active_frames(at_equal_level(rows, mask), mask), found)
    assert not active_frames(rows, torch.zeros_like(mask)).any()


def test_pooled_are_the_active_frames_alone_and_of_silence_all_that_are_valid(checkpoints):
    model = LaSCLForAudioClassification.from_pretrained(checkpoints["recorded"], pooled_frames="active").eval()
    inputs = features([voice_between_silences(), np.zeros(RATE, np.float32)])
    with torch.no_grad():
        output = model.lascl(**inputs, output_hidden_states=True)
        grouped = model.lascl(**inputs)
    states, valid = output.hidden_states[-1], inputs["attention_mask"].bool().tolist()
    for row, state, pooled_row in zip(inputs["input_features"], states, output.pooled_audio):
        frames = [t for t, active in enumerate(slow_activity(row, valid.pop(0))) if active]
        expected = state.double()[frames].mean(dim=0).float()
        torch.testing.assert_close(pooled_row, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(grouped.pooled_audio, output.pooled_audio, rtol=1e-4, atol=1e-5)
    usual = LaSCLForAudioClassification.from_pretrained(checkpoints["recorded"]).eval()
    with torch.no_grad():
        assert not torch.allclose(usual.lascl(**inputs).pooled_audio[0], output.pooled_audio[0], atol=1e-3)
    odd = features([voice_between_silences()])
    odd["input_features"][0, 3, 5] = float("nan")
    with pytest.raises(ValueError, match="holds NaN"):
        model(**odd)

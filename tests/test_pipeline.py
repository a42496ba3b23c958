"""transformers' own pipeline over a checkpoint: what cannot be answered is refused, the rest works as in stock."""

import numpy as np
import pytest
import torch
from tiny import LABELS, RATE, recording
from transformers import AutoFeatureExtractor, WhisperFeatureExtractor, pipeline

from lascl import LaSCLForAudioClassification


FAMILIES = ["wavlm-layer", "wav2vec2-group", "whisper"]
GOOD = recording(seed=3, duration_s=0.3)


@pytest.fixture(scope="module")
def classifiers(audio_encoders, text_encoder):
    """A pipeline of each family, all scores asked for."""
    built = {}
    for family in FAMILIES:
        torch.manual_seed(0)
        model = LaSCLForAudioClassification.from_encoders(
            audio_encoders[family], text_encoder, LABELS, projection_dim=8
        ).eval()
        if family == "whisper":
            extractor = WhisperFeatureExtractor(feature_size=16, chunk_length=2, return_attention_mask=True)
        else:
            extractor = AutoFeatureExtractor.from_pretrained(audio_encoders[family])
        built[family] = pipeline("audio-classification", model=model, feature_extractor=extractor)
    return built


def spoiled(value: float) -> np.ndarray:
    samples = GOOD.copy()
    samples[len(samples) // 2] = value
    return samples


ODD = {
    "empty": (np.zeros(0, np.float32), "is empty: it has no samples"),
    "nan": (spoiled(np.nan), "holds NaN or infinite values"),
    "inf": (spoiled(np.inf), "holds NaN or infinite values"),
    "all nan": (np.full(4000, np.nan, np.float32), "holds NaN or infinite values"),
    "79 samples": (GOOD[:79], "is too short: it has 79 samples, and one frame of this encoder needs 80"),
}


# One sample begins a mel frame of Whisper, and its mask counts frames: there only an empty recording is too short.
@pytest.mark.parametrize("family, kind", [(f, k) for f in FAMILIES for k in ODD if (f, k) != ("whisper", "79 samples")])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, of the mean of nothing
def test_audio_that_could_only_be_guessed_is_refused_alone_and_in_a_batch(family, kind, classifiers):
    samples, message = ODD[kind]
    with pytest.raises(ValueError, match=f"^The audio {message}"):
        classifiers[family](samples)
    with pytest.raises(ValueError, match=f"^The audio in row 1 of the batch {message}"):
        classifiers[family]([GOOD, samples, GOOD], batch_size=3)
    assert len(classifiers[family](GOOD)) == 4  # the next one is answered


@pytest.mark.parametrize("family", FAMILIES)
def test_what_stock_takes_is_taken(family, classifiers):
    classify = classifiers[family]
    once = classify(GOOD)
    assert [score["label"] for score in once] == sorted(LABELS, key=lambda label: -scores(once)[label])
    assert sum(scores(once).values()) == pytest.approx(1)
    given = {"raw": GOOD, "sampling_rate": RATE}
    assert scores(classify(given)) == scores(classify(given)) == pytest.approx(scores(once))  # the same dict twice
    many = [recording(seed, 0.2 + 0.02 * seed) for seed in range(6)]
    alone = [scores(classify(samples)) for samples in many]
    for together in (
        classify(many),
        classify(many, batch_size=6),
        list(classify((samples for samples in many), batch_size=4)),
    ):
        assert [scores(answer) for answer in together] == [pytest.approx(expected, abs=1e-5) for expected in alone]
    assert max(alone[0][label] - alone[1][label] for label in LABELS) > 1e-4  # the batch tells them apart
    assert len(classify(GOOD, top_k=2)) == 2 and len(classify(GOOD, top_k=99)) == len(classify(GOOD, top_k=None)) == 4
    logits = scores(classify(GOOD, function_to_apply="none"))
    squashed = scores(classify(GOOD, function_to_apply="sigmoid"))
    assert squashed == pytest.approx({label: 1 / (1 + np.exp(-logit)) for label, logit in logits.items()}, abs=1e-5)
    with pytest.raises(ValueError, match="function_to_apply"):
        classify(GOOD, function_to_apply="tanh")


def scores(answer: list[dict]) -> dict[str, float]:
    return {score["label"]: score["score"] for score in answer}


def test_states_that_overflow_are_not_called_the_audios_fault(audio_encoders, text_encoder):
    model = LaSCLForAudioClassification.from_encoders(audio_encoders["wavlm-layer"], text_encoder, LABELS).eval()
    with torch.no_grad():
        model.lascl.audio_encoder.encoder.layer_norm.weight.fill_(3e38).mul_(10)
        with pytest.raises(ValueError, match=r"states are not finite in torch\.float32, although the audio is"):
            model(input_values=torch.as_tensor(GOOD)[None])


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_training_and_whoever_has_looked_before_are_not_stopped(classifiers):
    model = classifiers["wavlm-layer"].model
    odd = {"input_values": torch.zeros(2, 200), "attention_mask": torch.zeros(2, 200, dtype=torch.long)}
    model.lascl.takes_odd_audio = True
    assert model(**odd).logits.isfinite().all()
    model.lascl.takes_odd_audio = False
    assert model.train()(**odd).logits.isfinite().all()
    with pytest.raises(ValueError, match="row 0 of the batch is empty"):
        model.eval()(**odd)

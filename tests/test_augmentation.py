"""The augmentations do what their names and settings say, and depend on nothing but the utterance's key."""

import hashlib
import inspect
import math
import os
import pickle
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.signal import butter, sosfilt, sosfilt_zi
from torch.utils.data import DataLoader, Dataset

from lascl.data import SpeechDataset, load_corpus
from lascl.data.augmentation import AUGMENTATIONS, augment, build_augmentation, delay, reverberate


RATE = 16000
SINGLE = [name for name in AUGMENTATIONS if name not in ("none", "mixed")]


def noise(seconds=1.0, seed=0):
    return (0.1 * np.random.default_rng(seed).standard_normal(int(seconds * RATE))).astype(np.float32)


def views(samples, name, count):
    return [augment(samples, RATE, name=name, seed=1, epoch=0, utterance_id=f"u{i}") for i in range(count)]


def rms(samples):
    return np.sqrt(np.mean(np.square(samples, dtype=np.float64)))


def test_names_are_fixed():
    assert AUGMENTATIONS == (
        *("none", "polarity_inversion", "noise", "gain", "high_low_pass"),
        *("delay", "pitch_shift", "reverberation", "mixed"),
    )


# What each effect does


def test_none_copies():
    samples = noise()
    view = augment(samples, RATE, name="none", seed=0, epoch=0, utterance_id="u")
    np.testing.assert_array_equal(view, samples)
    assert not np.shares_memory(view, samples)


def test_polarity_inversion_negates():
    samples = noise()
    for view in views(samples, "polarity_inversion", 5):
        np.testing.assert_array_equal(view, -samples)


def test_gain_is_one_factor_between_minus_20_and_minus_1_db():
    samples = noise()
    factors = []
    for view in views(samples, "gain", 60):
        factors.append(rms(view) / rms(samples))
        np.testing.assert_allclose(view, samples * factors[-1], rtol=1e-5)
    decibels = 20 * np.log10(factors)
    assert decibels.min() >= -20.001 and decibels.max() <= -0.999
    assert decibels.min() < -17 and decibels.max() > -4


def test_noise_has_a_std_of_1_to_5_thousandths_of_the_signals():
    samples = noise()
    residuals = [view.astype(np.float64) - samples for view in views(samples, "noise", 60)]
    ratios = np.array([residual.std() / samples.std() for residual in residuals])
    assert ratios.min() > 0.97e-3 and ratios.max() < 5.15e-3  # the estimate's own error is 0.6 % of the std
    assert ratios.min() < 1.5e-3 and ratios.max() > 4e-3
    standardised = np.concatenate([residual / residual.std() for residual in residuals])
    assert abs(np.mean(np.abs(standardised) < 1) - 0.6827) < 0.005  # Gaussian


def test_high_low_pass_removes_one_end_of_the_spectrum_and_keeps_the_other():
    samples = noise(4.0)
    frequencies = np.fft.rfftfreq(len(samples), 1 / RATE)

    def level(view, low, high):
        band = (frequencies >= low) & (frequencies < high)
        power = [np.sum(np.abs(np.fft.rfft(x)[band]) ** 2) for x in (view, samples)]
        return 10 * np.log10(power[0] / power[1])

    kinds = []
    for view in views(samples, "high_low_pass", 24):
        bottom, middle, top = level(view, 0, 80), level(view, 1900, 2000), level(view, 7000, 8000)
        assert middle > -1.7  # 10 log10(1 + (2000 / 2200)^8), the lowest of the low-passes at 2000 Hz
        high_pass, low_pass = bottom < -20 and abs(top) < 0.1, top < -30 and abs(bottom) < 0.1
        assert high_pass != low_pass
        kinds.append(high_pass)
    assert 3 < sum(kinds) < 21


def test_delay_is_the_formula_at_a_known_delay():
    samples, offset = noise(), 4000  # 250 ms
    expected = [(x + (0.5 * samples[i - offset] if i >= offset else 0)) / 2 for i, x in enumerate(samples)]
    np.testing.assert_allclose(delay(samples, RATE, 250), expected, rtol=1e-6)


def test_delay_draws_from_200_to_500_ms_in_steps_of_50():
    impulse = np.zeros(RATE, dtype=np.float32)
    impulse[0] = 1
    positions = set()
    for view in views(impulse, "delay", 60):
        first, echo = np.flatnonzero(view)
        assert (first, view[first], view[echo]) == (0, 0.5, 0.25)
        positions.add(int(echo))
    assert positions == {3200, 4000, 4800, 5600, 6400, 7200, 8000}


def test_delay_leaves_a_clip_alone_that_ends_before_the_echo():
    for length in (1, 160, 3200):
        for view in views(noise()[:length], "delay", 5):
            np.testing.assert_array_equal(view, noise()[:length])
    assert not np.array_equal(delay(noise()[:3201], RATE, 200), noise()[:3201])


def test_pitch_shift_moves_a_tone_by_up_to_7_semitones():
    tone = (0.5 * np.sin(2 * np.pi * 1000 * np.arange(2 * RATE) / RATE)).astype(np.float32)
    window = np.hanning(len(tone))
    peaks = [np.argmax(np.abs(np.fft.rfft(view * window))) / 2.0 for view in views(tone, "pitch_shift", 20)]
    semitones = 12 * np.log2(np.array(peaks) / 1000)
    assert np.abs(semitones).max() < 7.05
    assert semitones.min() < -3 and semitones.max() > 3


def stretched_by_hand(samples, rate, ratio):
    """WSOLA, one offset after the other."""
    segment, search, overlap = (int(ms * rate / 1000 + 0.5) for ms in (82, 14.68, 12))
    hop, length = segment - overlap, round(ratio * len(samples))
    at = lambda i: float(samples[i]) if 0 <= i < len(samples) else 0.0  # noqa: E731
    laid = [at(i) for i in range(segment)]
    for number in range(1, math.ceil((length - overlap) / hop)):
        end, place = laid[-overlap:], round(number * hop / ratio) - search // 2
        misfits = [sum((at(place + o + i) - end[i]) ** 2 for i in range(overlap)) for o in range(search)]
        best = place + misfits.index(min(misfits))
        for i in range(overlap):
            share = (i + 0.5) / overlap
            laid[i - overlap] = share * at(best + i) + (1 - share) * end[i]
        laid += [at(best + i) for i in range(overlap, segment)]
    return laid[:length]


@pytest.mark.parametrize("ratio", [2 ** (-7 / 12), 0.9, 2 ** (7 / 12)])
def test_a_clip_is_stretched_by_segments_whose_waves_fit(ratio):
    from lascl.data.effects import stretched

    samples = noise(0.1) + np.sin(np.arange(1600) / 7).astype(np.float32)
    found = stretched(samples, 4000, ratio)  # 0.4 s
    assert found.dtype == np.float32 and len(found) == round(ratio * 1600)
    np.testing.assert_allclose(found, stretched_by_hand(samples, 4000, ratio), atol=1e-6)


def test_pitch_shift_keeps_the_tempo_and_moves_every_harmonic():
    from lascl.data.effects import shift_pitch

    times = np.arange(2 * RATE) / RATE
    voice = sum(np.sin(2 * np.pi * 140 * k * times + k * k) / k for k in range(1, 8))
    bursts = (voice * (np.sin(2 * np.pi * 2 * times) > 0)).astype(np.float32)  # 250 ms of sound, 250 ms of silence
    for semitones in (-7, -2.5, 4, 7):
        shifted = shift_pitch(bursts, RATE, semitones)
        assert shifted.dtype == np.float32 and len(shifted) == len(bursts)
        for number in range(8):  # 50 ms from each border
            loudness = rms(shifted[number * 4000 + 800 : number * 4000 + 3200])
            assert loudness == pytest.approx(rms(bursts[800:3200]), rel=0.1) if number % 2 == 0 else loudness < 1e-3
        spectrum = np.abs(np.fft.rfft(shift_pitch(voice.astype(np.float32), RATE, semitones) * np.hanning(2 * RATE)))
        for harmonic in (1, 3, 5):
            middle = round(2 * 140 * harmonic * 2 ** (semitones / 12))  # in bins of 0.5 Hz
            near = spectrum[middle - 60 : middle + 60]
            assert abs(np.argmax(near) - 60) <= 3


@pytest.mark.parametrize("kind", ["lowpass", "highpass"])
@pytest.mark.parametrize("cutoff_hz", [200.0, 1200.0, 3999.0])
def test_filters_are_scipys_butterworth_of_order_4(kind, cutoff_hz):
    from lascl.data.effects import pass_filter

    samples = noise(0.1) + 0.3  # which goes on from before
    sections = butter(4, cutoff_hz, btype=kind, fs=RATE, output="sos")
    expected, _ = sosfilt(sections, samples, zi=sosfilt_zi(sections) * samples[0])
    np.testing.assert_allclose(pass_filter(samples, RATE, cutoff_hz, kind), expected, atol=1e-7)


def freeverb(samples, reverberance, damping, room_size):
    """The same reverberation, one sample after the other, as Freeverb is usually written."""
    feedback, store_weight = 1 - 0.7 * (0.02 / 0.7) ** (reverberance / 100), 0.2 + 0.3 * damping / 100
    scale = (0.1 + 0.9 * room_size / 100) * RATE / 44100
    wet = np.zeros(len(samples))
    for length in (1116, 1188, 1277, 1356, 1422, 1491, 1557, 1617):
        line, store = [0.0] * int(scale * length + 0.5), 0.0
        for i, sample in enumerate(samples):
            output = line.pop(0)
            store = output + (store - output) * store_weight
            line.append(sample + store * feedback)
            wet[i] += output
    for length in (225, 341, 441, 556):
        line = [0.0] * int(RATE / 44100 * length + 0.5)
        for i, sample in enumerate(wet):
            output = line.pop(0)
            line.append(sample + 0.5 * output)
            wet[i] = output - sample
    return samples + 0.015 * wet


@pytest.mark.parametrize("parameters", [(0, 0, 0), (50, 50, 100), (100, 0, 30), (100, 100, 0)])
def test_reverberation_is_freeverb(parameters):
    samples = noise(0.25)
    np.testing.assert_allclose(reverberate(samples, RATE, *parameters), freeverb(samples, *parameters), atol=1e-6)


def test_reverberation_adds_a_decaying_tail_that_its_parameters_shape():
    impulse = np.zeros(2 * RATE, dtype=np.float32)
    impulse[0] = 1
    for view in views(impulse, "reverberation", 5):
        assert view[0] == pytest.approx(1, abs=1e-5) and np.all(np.abs(view[1:30]) < 1e-5)
        early, late = rms(view[100 : RATE // 2]), rms(view[RATE:])
        assert early > 10 * late and early > 1e-4

    def tail(*parameters):
        return reverberate(impulse, RATE, *parameters)[RATE // 2 :]

    assert rms(tail(90, 50, 50)) > 10 * rms(tail(40, 50, 50))
    assert rms(tail(70, 50, 100)) > 10 * rms(tail(70, 50, 20))
    assert rms(np.diff(tail(90, 0, 50))) > 1.5 * rms(np.diff(tail(90, 100, 50)))


def test_reverberation_leaves_a_clip_alone_that_ends_before_the_first_reflection():
    samples = noise()[:40]  # 0.1 x 1116 samples at 44.1 kHz
    for view in views(samples, "reverberation", 5):
        np.testing.assert_allclose(view, samples, atol=1e-7)


def test_mixed_chains_the_effects_in_order_with_the_readmes_probabilities():
    mixed = build_augmentation("mixed")
    kinds = ["PolarityInversion", "AddGaussianSNR", "Gain", "OneOf", "Lambda", "PitchShift", "Lambda"]
    assert [type(transform).__name__ for transform in mixed.transforms] == kinds
    functions = [mixed.transforms[i].transform.__name__ for i in (4, 6)]
    assert "delay" in functions[0] and "reverberate" in functions[1]
    expected = [0.8, 0.3, 0.2, 1.0, 0.5, 0.4, 0.3]
    assert [transform.p for transform in mixed.transforms] == expected
    applied = np.zeros(7)
    for i in range(400):
        augment(noise(0.05), RATE, name=mixed, seed=0, epoch=0, utterance_id=f"u{i}")
        applied += [vars(t).get("parameters", vars(t))["should_apply"] for t in mixed.transforms]
    np.testing.assert_allclose(applied / 400, expected, atol=0.08)  # over three standard errors


@pytest.mark.parametrize("name", SINGLE)
def test_a_single_effect_is_always_applied(name):
    samples = noise()
    assert not any(np.array_equal(view, samples) for view in views(samples, name, 12))


# What a view depends on


@pytest.mark.parametrize("name", SINGLE)
def test_editions_make_the_same_of_the_same_draws(name):
    """To the bit, but for filters, which round otherwise, and for the way in which the pitch is shifted."""
    assert "edition" in inspect.signature(augment).parameters
    tone = np.sin(2 * np.pi * 1000 * np.arange(RATE) / RATE).astype(np.float32)
    for number in range(4):
        key = {"name": name, "seed": 1, "epoch": number, "utterance_id": "u"}
        old, new = (augment(tone, RATE, **key, edition=edition) for edition in (1, 2))
        assert np.array_equal(new, augment(tone, RATE, **key))
        if name == "pitch_shift":
            peaks = [np.argmax(np.abs(np.fft.rfft(view * np.hanning(RATE)))) for view in (old, new)]
            assert abs(12 * math.log2(peaks[0] / peaks[1])) < 0.1
        elif name in ("high_low_pass", "reverberation"):
            np.testing.assert_allclose(new, old, atol=1e-6)
        else:
            assert np.array_equal(new, old)


def test_the_first_edition_is_audiomentations_own(monkeypatch):
    """What old runs drew, they draw."""
    assert "edition" in inspect.signature(build_augmentation).parameters
    samples, mixed = noise(0.3), build_augmentation("mixed", RATE, 1)
    pitch, (low, high) = mixed.transforms[5], mixed.transforms[3].transforms
    for transform in (pitch, low, high):
        assert "apply" not in vars(transform)
    monkeypatch.setattr("lascl.data.augmentation.shift_pitch", None)
    monkeypatch.setattr("lascl.data.augmentation.pass_filter", None)
    for number in range(8):
        augment(samples, RATE, name="mixed", seed=0, epoch=number, utterance_id="u", edition=1)
    with pytest.raises(ValueError, match="augmentation_edition must be 1 or 2; found 3"):
        build_augmentation("mixed", RATE, 3)


@pytest.mark.parametrize("name", ["noise", "gain", "high_low_pass", "delay", "pitch_shift", "reverberation", "mixed"])
def test_a_view_follows_from_its_key(name):
    samples = noise()

    def view(seed, epoch, utterance_id):
        return augment(samples, RATE, name=name, seed=seed, epoch=epoch, utterance_id=utterance_id)

    first = view(0, 1, "a")
    for i in range(3):  # other draws before it, and a generator in another state, do not matter
        view(i, 7, "z"), random.random(), np.random.random()
        np.testing.assert_array_equal(view(0, 1, "a"), first)
    np.testing.assert_array_equal(view(np.int64(0), np.int32(1), "a"), first)
    changed = [[view(k, 1, "a"), view(0, k, "a"), view(0, 1, f"b{k}")] for k in range(2, 5)]
    for what in zip(*changed, strict=True):  # one other key may by chance draw the same delay; three do not
        assert not all(np.array_equal(other, first) for other in what)


def test_a_transform_keeps_nothing_from_one_utterance_to_the_next():
    mixed, samples, keys = build_augmentation("mixed"), noise(), [f"u{i}" for i in range(12)]
    arguments = {"seed": 0, "epoch": 0}
    forth = {k: augment(samples, RATE, name=mixed, utterance_id=k, **arguments) for k in keys}
    back = {k: augment(samples, RATE, name=mixed, utterance_id=k, **arguments) for k in reversed(keys)}
    for k in keys:
        np.testing.assert_array_equal(forth[k], back[k])
        np.testing.assert_array_equal(forth[k], augment(samples, RATE, name="mixed", utterance_id=k, **arguments))


def test_noise_does_not_follow_the_drawn_parameters():
    """Python's and numpy's generators, seeded alike, would yield the same numbers."""
    pairs = []

    def draw(samples, sample_rate):
        pairs.append((random.random(), np.random.random()))
        return samples

    views(noise(0.01), draw, 200)
    assert abs(np.corrcoef(np.transpose(pairs))[0, 1]) < 0.25


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_global_generators_are_given_back(name):
    random.seed(3), np.random.seed(3)
    np.random.standard_normal()  # leaves a second Gaussian number in the state
    expected = random.getstate(), str(np.random.get_state())
    augment(noise(), RATE, name=name, seed=0, epoch=0, utterance_id="u")
    assert (random.getstate(), str(np.random.get_state())) == expected


def test_global_generators_are_given_back_after_an_exception():
    def fails(samples, sample_rate):
        random.random(), np.random.random()
        raise RuntimeError("on purpose")

    expected = random.getstate(), str(np.random.get_state())
    with pytest.raises(RuntimeError, match="on purpose"):
        augment(noise(), RATE, name=fails, seed=0, epoch=0, utterance_id="u")
    assert (random.getstate(), str(np.random.get_state())) == expected


FINGERPRINT = """
import sys
from lascl.data.augmentation import AUGMENTATIONS, augment
assert "audiomentations" not in sys.modules, "it takes over a second to import"
import hashlib
import numpy as np
samples = (0.1 * np.random.default_rng(0).standard_normal(16000)).astype(np.float32)
for name in reversed(AUGMENTATIONS):
    view = augment(samples, 16000, name=name, seed=5, epoch=2, utterance_id="Ses01F_impro01_F000")
    print(name, hashlib.sha256(view.tobytes()).hexdigest())
"""


def test_another_process_makes_the_same_audio():
    hashes = os.environ | {"PYTHONHASHSEED": "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"}
    printed = subprocess.check_output([sys.executable, "-c", FINGERPRINT], text=True, env=hashes)
    theirs = dict(line.split() for line in printed.splitlines())
    key = {"seed": 5, "epoch": 2, "utterance_id": "Ses01F_impro01_F000"}
    ours = {name: augment(noise(), RATE, name=name, **key).tobytes() for name in AUGMENTATIONS}
    assert theirs == {name: hashlib.sha256(view).hexdigest() for name, view in ours.items()}


class Augmented(Dataset):
    def __len__(self):
        return 10

    def __getitem__(self, i):
        return augment(noise(0.5, seed=i), RATE, name="mixed", seed=0, epoch=3, utterance_id=f"u{i}")


def test_data_loader_workers_make_the_same_audio():
    alone, shared = (list(DataLoader(Augmented(), batch_size=2, num_workers=n)) for n in (0, 2))
    assert len(alone) == len(shared) == 5
    for a, b in zip(alone, shared, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())


# Degenerate audio


@pytest.mark.parametrize("name", AUGMENTATIONS)
@pytest.mark.parametrize("length", [1, 2, 160, 10 * RATE], ids=["1 sample", "2 samples", "10 ms", "10 s"])
def test_any_length_and_silence(name, length):
    samples = np.resize(noise(), length)
    before = samples.copy()
    samples.flags.writeable = False
    for audio in (samples, np.zeros(length, dtype=np.float32)):
        for view in views(audio, name, 2):
            assert view.shape == (length,) and view.dtype == np.float32 and np.isfinite(view).all()
            assert audio.any() or not view.any(), "silence stays silent"
    np.testing.assert_array_equal(samples, before)


@settings(max_examples=60, deadline=None)
@given(
    arrays(np.float32, st.integers(1, 5000), elements=st.floats(-32768, 32767, width=32), fill=st.just(0.25)),
    st.sampled_from(AUGMENTATIONS),
    st.integers(0, 2**40),
    st.text(max_size=8),
)
def test_any_finite_samples_give_finite_float32_samples_of_the_same_length(samples, name, seed, utterance_id):
    before = samples.copy()
    view = augment(samples, RATE, name=name, seed=seed, epoch=0, utterance_id=utterance_id)
    assert view.shape == samples.shape and view.dtype == np.float32 and np.isfinite(view).all()
    np.testing.assert_array_equal(samples, before)


@pytest.mark.parametrize("change", [-7, 7])
def test_a_result_of_another_length_is_cut_or_padded(change):
    samples = noise(0.01)

    def stretch(samples, sample_rate):
        return np.ones(len(samples) + change, dtype=np.float64)

    view = augment(samples, RATE, name=stretch, seed=0, epoch=0, utterance_id="u")
    assert view.shape == samples.shape and view.dtype == np.float32
    assert view.sum() == len(samples) + min(change, 0)


def test_float64_samples_become_float32():
    view = augment(noise().astype(np.float64), RATE, name="mixed", seed=0, epoch=0, utterance_id="u")
    np.testing.assert_array_equal(view, augment(noise(), RATE, name="mixed", seed=0, epoch=0, utterance_id="u"))


# What is refused


def test_unknown_name_is_told_the_nearest():
    with pytest.raises(ValueError, match="polarity_inversion, noise.*Did you mean 'pitch_shift'"):
        build_augmentation("pitchshift")
    with pytest.raises(ValueError, match="Unknown augmentation 'xyz'"):
        augment(noise(), RATE, name="xyz", seed=0, epoch=0, utterance_id="u")


def test_sampling_rate_must_hold_the_low_pass():
    with pytest.raises(ValueError, match="above 8000 Hz.*not 8000 Hz: resample"):
        build_augmentation("mixed", 8000)
    build_augmentation("gain", 8000)


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (np.zeros((2, 100), dtype=np.float32), r"shape \(2, 100\).*average its channels"),
        (np.zeros(0, dtype=np.float32), r"shape \(0,\).*drop it if it is empty"),
        (np.zeros(100, dtype=np.int16), "int16.*convert integers"),
        (np.array([0, np.nan], dtype=np.float32), "float32.*not all finite.*repair or drop"),
        (np.array([0, np.inf], dtype=np.float32), "float32.*not all finite.*repair or drop"),
    ],
)
def test_samples_that_cannot_be_augmented(samples, message):
    with pytest.raises(ValueError, match=f"'u7' has {message}"):
        augment(samples, RATE, name="gain", seed=0, epoch=0, utterance_id="u7")


def test_a_result_that_is_not_finite_is_refused():
    with pytest.raises(FloatingPointError, match="'noise'.*'u7', whose largest sample is 3e\\+38"):
        augment(np.full(100, 3e38, np.float32), RATE, name="noise", seed=0, epoch=0, utterance_id="u7")


def test_epoch_must_be_an_integer():
    # transformers counts epochs in floats: 1.0 and 1 would be two keys for one epoch.
    with pytest.raises(TypeError, match="integer"):
        augment(noise(), RATE, name="gain", seed=0, epoch=1.0, utterance_id="u")


def of_ones_own(samples, sampling_rate):
    """Draws from each of the three generators."""
    torch_part = float(torch.rand(()))
    return samples * (random.random() + np.random.random() + torch_part)


def test_a_function_of_ones_own_has_a_draw_of_its_own_for_each_view(emodb_like):
    corpus = load_corpus("emodb", emodb_like, allow_partial=True)
    options = {"sampling_rate": 16_000, "max_duration_s": 0.1, "num_views": 3, "seed": 1}
    try:
        data = SpeechDataset(corpus, [0, 1], augmentation=of_ones_own, **options)
    except ValueError as error:
        data = str(error)
    assert isinstance(data, SpeechDataset), data
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()

    def factors():
        for index in (0, 1):
            clean, *others = data[index]["views"]
            loudest = np.abs(clean).argmax()
            yield from (float(view[loudest] / clean[loudest]) for view in others)

    first = list(factors())
    assert len({round(factor, 6) for factor in first}) == 4 and all(0 < factor < 3 for factor in first)
    assert list(factors()) == first
    data.set_epoch(1)
    assert not set(factors()) & set(first)
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == states
    assert pickle.loads(pickle.dumps(data.augmentation)) is of_ones_own


def test_a_function_of_ones_own_that_gives_two_channels_is_told():
    with pytest.raises(ValueError, match=r"gave the shape \(2, 8\) for utterance 'u1' of the shape \(8,\)"):
        augment(np.ones(8), 16_000, name=lambda x, _: np.stack([x, x]), seed=0, epoch=0, utterance_id="u1")

"""The augmentations of the paper's Table 2, with audiomentations, reproducible for each utterance.

Section 2.1 trains on 2N instances, "both original and augmented waveforms": the second N are made here.

Paper unclear: Table 2 names eight augmentations and gives no value for any. The names are those of
torchaudio-augmentations (Spijkervet, doi:10.5281/zenodo.4748582; used by CLMR), so the ranges are that
library's defaults, and the noise level and the chain of "mixed" are those of its README's example.
Deviations, all small:

* noise: its README draws std uniformly in [1e-3, 5e-3] x the signal's std; `AddGaussianSNR` draws from that
  range uniformly in dB (46 to 60 dB SNR) and takes the RMS, which is the std where the mean is zero.
* high_low_pass: cut-offs are drawn uniformly in mel, not in hertz; a Butterworth of 24 dB/octave, -3 dB at
  the cut-off, stands for the original's linear-phase windowed sinc, -6 dB there.
* gain, pitch_shift, reverberation: real numbers; the original draws whole dB, cents and percents.
* pitch_shift: SoX's `pitch` as the original has it, written anew (`lascl.data.effects`), without its quick search.
* delay: 500 ms is included; the original's `arange(200, 500, 50)` stops at 450.
* reverberation: SoX's `reverb` in one channel; the original averages its left and right.

Effects have editions, so that what was drawn yesterday can be made again. They draw the same numbers. Of the first,
pitch_shift is audiomentations' own (Signalsmith Stretch), and its filters are designed by scipy; the second is faster.
"""

import difflib
import hashlib
import operator
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import numpy as np

from lascl.data.effects import pass_filter, shift_pitch


# In the order of the chain. CLMR filters with 0.8 or less, and its other values differ too, also between its
# versions: the whole chain is the README's rather than a mixture of sources, hence 1.0 for the filter.
MIXED_PROBABILITIES = {
    "polarity_inversion": 0.8,
    "noise": 0.3,
    "gain": 0.2,
    "high_low_pass": 1.0,
    "delay": 0.5,
    "pitch_shift": 0.4,
    "reverberation": 0.3,
}
AUGMENTATIONS = ("none", *MIXED_PROBABILITIES, "mixed")
EDITIONS = (1, 2)
DELAYS_MS = range(200, 501, 50)
LOW_PASS_HZ = (2200.0, 4000.0)
HIGH_PASS_HZ = (200.0, 1200.0)

# Freeverb's delay lines (Jezar, public domain), in samples at 44.1 kHz; SoX's `reverb` has the same.
COMB_DELAYS = (1116, 1188, 1277, 1356, 1422, 1491, 1557, 1617)
ALLPASS_DELAYS = (225, 341, 441, 556)


def delay(samples: np.ndarray, sampling_rate: int, delay_ms: float) -> np.ndarray:
    """One echo at half volume, `y[n] = (x[n] + 0.5 x[n - d]) / 2`, d being `delay_ms` in samples.

    The formula is torchaudio-augmentations' `Delay`. `samples` has shape (n,), and so has the result. A clip
    that is not longer than the delay holds no echo and is returned as it is, not halved.
    """
    offset = int(delay_ms * sampling_rate / 1000)
    if offset >= len(samples):
        return samples
    echoed = 0.5 * samples
    echoed[offset:] += 0.25 * samples[: len(samples) - offset]
    return echoed


def _roots_by_exponentials(n: int) -> np.ndarray:
    return np.exp(-2j * np.pi * np.arange(n) / n)


def _roots_by_sines(n: int) -> np.ndarray:
    """(n,): the powers of `exp(-2 pi i / n)`, the upper half of the circle being the mirrored lower one."""
    roots, angles = np.empty(n, dtype=complex), 2 * np.pi / n * np.arange(n // 2 + 1)
    half = roots[: n // 2 + 1]
    half.real, half.imag = np.cos(angles), -np.sin(angles)
    roots[n // 2 + 1 :] = half[1 : (n + 1) // 2][::-1].conj()
    return roots


def reverberate(
    samples: np.ndarray,
    sampling_rate: int,
    reverberance: float,
    damping: float,
    room_size: float,
    *,
    roots_of_unity: Callable[[int], np.ndarray] = _roots_by_sines,
) -> np.ndarray:
    """Freeverb with the three parameters of SoX's `reverb`, each 0 to 100: `y = x + 0.015 A(C(x))`.

    C sums eight comb filters `z^-d / (1 - f L z^-d)`, each with a low-pass `L = (1 - h) / (1 - h z^-1)` in
    its loop; A chains four all-pass filters `(1.5 z^-a - 1) / (1 - 0.5 z^-a)`. The feedback f rises from 0.30
    to 0.98 with `reverberance` (geometrically in 1 - f), h from 0.2 to 0.5 with `damping`, and the delays d
    from a tenth of Freeverb's to all of it with `room_size`; -60 dB is reached after about 0.2 s at (0, 0, 0)
    and 10 s at (100, 0, 100). `samples` has shape (n,), and so has the float32 result: the tail is cut off at
    the clip's end. A clip shorter than the first reflection (3 to 25 ms) comes back unchanged. `roots_of_unity` that
    are found otherwise differ in their last digits.

    It is written here because no library will do: pyroomacoustics' ray tracing draws from a generator that no
    seed reaches (and takes 180 ms for 5 s of audio; its image sources 140 ms), pedalboard's Freeverb is under
    the GPL, SoX is a program. The recursions are slow in Python; their spectra take about 10 ms.
    """
    feedback = 1 - 0.7 * (0.02 / 0.7) ** (reverberance / 100)
    pole = 0.2 + 0.3 * damping / 100
    scale = 0.1 + 0.9 * room_size / 100

    from scipy import fft  # here, because it would double the time that importing this module takes

    # A product of spectra convolves circularly: what rings on after the end comes back at the start. On a
    # circle of radius 1e6 ** (1 / n) instead of 1 it comes back 120 dB quieter, so no padding is needed.
    n = fft.next_fast_len(len(samples), real=True)
    decay = 1e6 ** (-np.arange(n) / n)
    roots = roots_of_unity(n)
    bins = np.arange(n // 2 + 1)

    def lag(delay_at_44k1: float) -> np.ndarray:  # z ** -d, looked up: n sines instead of twelve times that
        d = int(delay_at_44k1 * sampling_rate / 44100 + 0.5)
        return 1e6 ** (-d / n) * roots[bins * d % n]

    loop = feedback * (1 - pole) / (1 - pole * 1e6 ** (-1 / n) * roots[bins])
    response = np.zeros(len(bins), dtype=complex)
    for comb in COMB_DELAYS:
        z = lag(scale * comb)
        response += z / (1 - loop * z)
    for allpass in ALLPASS_DELAYS:
        z = lag(allpass)
        response *= (1.5 * z - 1) / (1 - 0.5 * z)
    length = len(samples)
    wet = fft.irfft(fft.rfft(samples * decay[:length], n) * response, n)[:length] / decay[:length]
    return (samples + 0.015 * wet).astype(np.float32)


def _delay_at_random(samples, sampling_rate):
    return delay(samples, sampling_rate, random.choice(DELAYS_MS))


def _reverberate_at_random(samples, sampling_rate):
    parameters = [random.uniform(0, 100) for _ in range(3)]
    return reverberate(samples, sampling_rate, *parameters, roots_of_unity=_roots_by_exponentials)


# Of the second edition, some with the parameters that an effect of audiomentations drew. A view's key has these
# functions by name: one that is to give other samples needs another name.
def _reverberate_by_sines(samples, sampling_rate):
    return reverberate(samples, sampling_rate, *(random.uniform(0, 100) for _ in range(3)))


def _shift_by_overlap(shift, samples, sampling_rate):
    return shift_pitch(samples, sampling_rate, shift.parameters["num_semitones"])


def _pass_by_two_sections(one_sided, samples, sampling_rate):
    return pass_filter(samples, sampling_rate, one_sided.parameters["cutoff_freq"], one_sided.filter_type)


def build_augmentation(
    name: str | Callable[[np.ndarray, int], np.ndarray], sampling_rate: int = 16000, edition: int = EDITIONS[-1]
) -> Callable[[np.ndarray, int], np.ndarray]:
    """The `audiomentations.Compose` of one of `AUGMENTATIONS`, to be called with `(samples, sample_rate)`; a callable
    of one's own as it is.

    A single effect is always applied (p = 1); "mixed" chains all seven with `MIXED_PROBABILITIES`; "none" is
    empty. It draws from Python's and numpy's global generators, which `augment` seeds. `edition` is one of `EDITIONS`;
    only pitch_shift, high_low_pass and what has them differ.

    Delay and reverberation are functions in `audiomentations.Lambda`: `BaseWaveformTransform` subclasses
    would import audiomentations (over a second) with this module or, defined in here, not pickle for workers
    that are spawned.

    Raises ValueError for an unknown name or edition, or for a sampling rate (Hz) too low for the low-pass range.
    """
    if edition not in EDITIONS:
        raise ValueError(f"augmentation_edition must be {' or '.join(map(str, EDITIONS))}; found {edition!r}.")
    if callable(name):
        return name
    if name not in AUGMENTATIONS:
        close = difflib.get_close_matches(str(name), AUGMENTATIONS, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"Unknown augmentation {name!r}; choose one of {', '.join(AUGMENTATIONS)}.{hint}")
    if name in ("high_low_pass", "mixed") and sampling_rate <= 2 * LOW_PASS_HZ[1]:
        raise ValueError(
            f"Augmentation {name!r} needs a sampling rate above {2 * LOW_PASS_HZ[1]:.0f} Hz, twice its "
            f"highest cut-off, not {sampling_rate} Hz: resample the audio to 16000 Hz first."
        )
    import audiomentations as am

    low = am.LowPassFilter(*LOW_PASS_HZ, min_rolloff=24, max_rolloff=24, p=1.0)
    high = am.HighPassFilter(*HIGH_PASS_HZ, min_rolloff=24, max_rolloff=24, p=1.0)
    loudest_db, faintest_db = -20 * np.log10([5e-3, 1e-3])
    effects = {
        "polarity_inversion": am.PolarityInversion,
        "noise": partial(am.AddGaussianSNR, min_snr_db=loudest_db, max_snr_db=faintest_db),
        "gain": partial(am.Gain, min_gain_db=-20.0, max_gain_db=-1.0),
        "high_low_pass": partial(am.OneOf, [low, high]),
        "delay": partial(am.Lambda, _delay_at_random),
        "pitch_shift": partial(am.PitchShift, min_semitones=-7.0, max_semitones=7.0),
        "reverberation": partial(am.Lambda, _reverberate_at_random if edition == 1 else _reverberate_by_sines),
    }
    chain = {"none": {}, "mixed": MIXED_PROBABILITIES}.get(name, {name: 1.0})
    links = [effects[link](p=p) for link, p in chain.items()]
    if edition > 1:
        for one_sided in (low, high):
            one_sided.apply = partial(_pass_by_two_sections, one_sided)
        for shift in (link for link in links if isinstance(link, am.PitchShift)):
            shift.apply = partial(_shift_by_overlap, shift)
    return am.Compose(links)


@contextmanager
def _global_generators_seeded(key: str, *, with_torch: bool = False) -> Iterator[None]:
    """Seeds Python's and numpy's global generators, and torch's of the CPU if asked, from `key` and gives all back as
    they were.

    audiomentations draws from Python's and numpy's alone. Unlike `hash`, the digest is the same in every process.
    """
    digest = hashlib.blake2b(key.encode(), digest_size=64).digest()
    python_state, numpy_state = random.getstate(), np.random.get_state()
    if with_torch:
        import torch  # here, because it would take seconds of those who only read audio

        torch_state = torch.get_rng_state()
        torch.default_generator.manual_seed(int.from_bytes(digest[16:24], "little"))  # no GPU's, unlike manual_seed
    try:
        # Both are Mersenne twisters with one way of seeding: from equal seeds they would yield equal numbers,
        # and the noise would follow the drawn parameters. So each has its own half of the digest.
        random.seed(int.from_bytes(digest[:32], "little"))
        np.random.seed(np.frombuffer(digest[32:], dtype="<u4"))
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        if with_torch:
            torch.set_rng_state(torch_state)


def augment(
    samples: np.ndarray,
    sampling_rate: int,
    *,
    name: str | Callable[[np.ndarray, int], np.ndarray],
    seed: int,
    epoch: int,
    utterance_id: str,
    edition: int = EDITIONS[-1],
) -> np.ndarray:
    """One augmented view of an utterance, a pure function of the arguments.

    All draws follow from a hash of (seed, epoch, utterance_id), so the audio does not depend on the number of
    workers or processes, on the order of the utterances, or on a resume; a third view needs an id of its
    own. Python's and numpy's global generators, and to a callable torch's of the CPU, are lent for the call and
    given back untouched, so threads that draw from them meanwhile break the promise; processes do not.

    `samples` has shape (n,), n >= 1, in about [-1, 1], and is not modified; `sampling_rate` is in Hz; `name`
    is one of `AUGMENTATIONS`, or a callable `(samples, sample_rate) -> samples` that draws from those
    generators only, such as an audiomentations transform or a function of one's own; `edition` is of
    `build_augmentation`, and means nothing to a callable. Returns a new float32
    array of shape (n,): a longer result is cut, a shorter one padded with zeros. Silence stays silent; delay and
    reverberation leave a clip alone that is too short for them. Nothing is clipped at 1, which reverberation may
    exceed.

    Raises ValueError for an unknown name and for samples that are not one channel of finite floating-point
    numbers, or a callable whose result has another number of channels, FloatingPointError where the result is not
    finite, TypeError where `seed` or `epoch` is not an
    integer.
    """
    found = np.asarray(samples)
    if found.ndim != 1 or found.size == 0:
        raise ValueError(
            f"Utterance {utterance_id!r} has shape {found.shape}, not (n,) with n >= 1: average its channels "
            "or select one; drop it if it is empty."
        )
    if not (np.issubdtype(found.dtype, np.floating) and np.isfinite(found).all()):
        raise ValueError(
            f"Utterance {utterance_id!r} has {found.dtype} samples, which are not all finite floating-point "
            "numbers: convert integers to float32 in [-1, 1]; repair or drop a file with NaN or infinity."
        )

    # A transform keeps the parameters it drew last; built anew (in 20 microseconds) it has none to keep.
    transform = name if callable(name) else build_augmentation(name, sampling_rate, edition)
    key = f"{operator.index(seed)}/{operator.index(epoch)}/{utterance_id}"
    with _global_generators_seeded(key, with_torch=callable(name)):
        augmented = np.asarray(transform(found.astype(np.float32), sampling_rate), dtype=np.float32)
    if augmented.ndim != 1:
        raise ValueError(
            f"Augmentation {name!r} gave the shape {augmented.shape} for utterance {utterance_id!r} of the shape "
            f"{found.shape}: it must return as many channels as it gets, which is one."
        )
    if not np.isfinite(augmented).all():
        raise FloatingPointError(
            f"Augmentation {name!r} gave NaN or infinity for utterance {utterance_id!r}, whose largest "
            f"sample is {np.abs(found).max():.3g}: scale the audio to [-1, 1]."
        )
    augmented = augmented[: len(found)]
    return np.pad(augmented, (0, len(found) - len(augmented)))

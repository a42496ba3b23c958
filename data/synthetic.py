"""A small emotional-speech corpus spoken by eSpeak NG, for the quickstart and the tests.

No dataset licence and no download: the clips are made on the spot by the speech synthesiser that the
`espeakng-loader` package ships. An "emotion" here is a setting of rate, pitch, pitch range, pauses, level and
timbre, drawn at random around the values of `_OFFSETS` below; the words say nothing about it. Results on this
corpus are *synthetic*: they show that a training run works, and mean nothing about human emotion.
"""

import csv
import ctypes
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import soundfile
import soxr


SYNTHETIC_LABELS = ("angry", "happy", "neutral", "sad")

# One prosody is seven numbers. The emotions' spreads overlap on each of them, so that no single cue gives an
# utterance away, and a model that normalises loudness keeps six of the seven.
#             rate   pitch  range  gap    level  tilt   drive
#             (wpm)  (0-99) (0-99) (10ms) (dBFS) (both see _shape)
_BASELINE = (185.0, 48.0, 22.0, 1.0, -25.0, 0.00, 0.7)  # a neutral utterance of an average speaker
_SPEAKER_SD = (6.0, 3.0, 4.0, 0.3, 1.5, 0.05, 0.05)  # how speakers differ from each other
_UTTERANCE_SD = (11.0, 5.0, 8.0, 0.8, 2.0, 0.12, 0.2)  # how one speaker's utterances of one emotion differ
_OFFSETS = {
    "angry": (34.0, 6.0, 25.0, -0.5, 6.0, 0.75, 1.2),
    "happy": (22.0, 40.0, 70.0, 0.0, 2.0, 0.45, -0.2),
    "neutral": (0.0, 0.0, 0.0, 0.0, 0.0, 0.00, 0.1),
    "sad": (-38.0, -8.0, -10.0, 2.5, -6.0, -0.65, -0.4),
}
_LOWEST = (110.0, 0.0, 0.0, 0.0, -45.0, -0.9, 0.1)
_HIGHEST = (260.0, 99.0, 99.0, 8.0, -12.0, 0.9, 4.0)

# A speaker is a variant, an accent and a baseline prosody. The variants are eSpeak's plain male and female
# ones in turn: its named ones (david, belinda) differ so much in timbre that ten speakers are too few to
# learn from, and croak and whisper have no pitch. The accents rotate against the variants, which makes 48
# different pairs.
_VARIANTS = ("m1", "f1", "m3", "f2", "m4", "f3", "m5", "f4", "m6", "f5", "m7", "m8")
_ACCENTS = ("en-us", "en", "en-gb-scotland", "en-029")  # American, British, Scottish, Caribbean
_MAX_SPEAKERS = len(_VARIANTS) * len(_ACCENTS)

_SENTENCES = re.findall(
    r"[A-Z][^.]*\.",
    """
    The keys are on the kitchen table. My sister lives near the station. We will meet again on Thursday.
    The bus stops behind the library. He put the letters in a drawer. There are four chairs in the hall.
    The shop on the corner is open. She reads the paper after lunch. I left my coat in the office.
    The window looks onto the garden. They painted the door last week. Your glasses are beside the lamp.
    The train leaves from platform two. He is going to call at seven. We keep the plates in that box.
    The meeting moved to room nine. I will send you the address. She takes the stairs every day.
    The blue folder is on my desk. They walked along the river. The water is still on the stove.
    He asked for a glass of milk. Her bicycle is in the garage. The road turns left at the farm.
    I have the number written down. The lights come on at six. We bought bread and two apples.
    The answer is on the next page. He parked the car by the fence. They are talking about the plan.
    The clock in the hall is slow. I saw your brother at school. She folded the map in half.
    The parcel came in the morning. There is a note under the door. We turned the radio on at noon.
    The cat is sleeping upstairs. You can leave the bag with me. He wrote his name on the list.
    The soup needs ten more minutes.
    """,
)

_RATE = 16_000  # samples per second of the files
_MARKER = "synthetic-corpus.json"
_OWN_FILES = re.compile(rf"{_MARKER}|manifest\.csv|speaker-\d+/speaker-\d+-\d+-({'|'.join(SYNTHETIC_LABELS)})\.flac")
_FORMAT = 1  # raise it whenever the same arguments would give other clips


def generate_synthetic_corpus(output_dir, *, num_speakers=10, utterances_per_speaker=48, seed=0):
    """Speak the synthetic corpus into `output_dir`, or return at once if it is there already.

    Args:
        output_dir: folder to create, for `manifest.csv` and one folder of 16 kHz mono 16-bit FLAC
            files a speaker (`speaker-01`, ...). The manifest's columns are `path` (relative to `output_dir`),
            `label`, `speaker`, `text` and `duration_s` (seconds). A corpus that is there already is kept if
            it is whole and was made with the same arguments, else replaced.
        num_speakers: 1 to 48. Speaker k is the same whatever their number.
        utterances_per_speaker: a positive multiple of 4: each speaker speaks each emotion equally often.
        seed: a non-negative integer. The same arguments give the same manifest and the same samples.

    Returns:
        `output_dir` as a `Path`.

    Raises:
        ImportError: `espeakng-loader` is not installed.
        ValueError: an argument is out of range.
        FileExistsError: `output_dir` holds something that is not a synthetic corpus; nothing is touched then.
        RuntimeError: eSpeak NG failed; the message carries its error.

    Clips last 1 to 3 seconds, on average 1.7. Several processes may call this at the same moment with the
    same arguments: each builds its own copy beside `output_dir`, the first to finish moves it into place, and
    the others use that one.
    """
    try:
        import espeakng_loader
    except ImportError as error:
        raise ImportError(
            'The synthetic corpus is spoken by the package "espeakng-loader", which is not installed: '
            'pip install "lascl[demo]"'
        ) from error
    arguments = {
        "num_speakers": _checked("num_speakers", num_speakers, 1, _MAX_SPEAKERS),
        "utterances_per_speaker": _checked("utterances_per_speaker", utterances_per_speaker, 1),
        "seed": _checked("seed", seed, 0),
    }
    if utterances_per_speaker % len(SYNTHETIC_LABELS):
        raise ValueError(
            f"utterances_per_speaker must be a multiple of {len(SYNTHETIC_LABELS)}, so that each emotion is "
            f"spoken equally often; got {utterances_per_speaker}."
        )
    final = Path(output_dir).resolve()
    if _is_complete(final, arguments):
        return Path(output_dir)

    final.parent.mkdir(parents=True, exist_ok=True)
    building = final.with_name(f".{final.name}.{os.getpid()}-{secrets.token_hex(4)}")
    # What is in the way goes before the seconds of building, not after: a folder that is there at the end is
    # then one that another process has just finished.
    _remove_corpus(final, aside=building.with_name(building.name + ".old"))
    building.mkdir()
    try:
        job = {
            "directory": str(building),
            "library": espeakng_loader.get_library_path(),
            "data": espeakng_loader.get_data_path(),
            **arguments,
        }
        _speak_in_new_process(job)
        # The marker comes last and the whole folder appears at once, so that there is no half-written corpus
        # to find.
        (building / _MARKER).write_text(json.dumps({"format": _FORMAT, **arguments}) + "\n")
        try:
            building.rename(final)
        except OSError:
            if not _is_complete(final, arguments):
                raise
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return Path(output_dir)


def _checked(name, value, lowest, highest=None):
    is_integer = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if is_integer and lowest <= value and (highest is None or value <= highest):
        return int(value)
    allowed = f"at least {lowest}" if highest is None else f"from {lowest} to {highest}"
    raise ValueError(f"{name} must be an integer, {allowed}; got {value!r}.")


def _is_complete(directory, arguments):
    try:
        marker = json.loads((directory / _MARKER).read_text())
    except (OSError, ValueError):
        return False
    # The clips are counted too: the marker of a corpus that was copied or cleaned up halfway says nothing.
    num_clips = arguments["num_speakers"] * arguments["utterances_per_speaker"]
    return (
        marker == {"format": _FORMAT, **arguments}
        and (directory / "manifest.csv").is_file()
        and sum(1 for _ in directory.glob("speaker-*/*.flac")) == num_clips
    )


def _remove_corpus(directory, aside):
    if directory.is_file():
        raise FileExistsError(f"{directory} is a file; name a folder for the synthetic corpus.")
    try:
        files = [p.relative_to(directory).as_posix() for p in directory.rglob("*") if not p.is_dir()]
        foreign = [name for name in files if not _OWN_FILES.fullmatch(name)]
        if foreign:
            raise FileExistsError(f"{directory} holds {min(foreign)!r}, not of a synthetic corpus; name a new folder.")
        directory.rename(aside)
        shutil.rmtree(aside)
    except FileNotFoundError:
        pass  # there is none, or another process is removing it


def _speak_in_new_process(job):
    # eSpeak is one global state per process, and its pitch flutter and noise run on from one utterance to the
    # next, even across espeak_Terminate. Only a new process always starts the same; it also leaves the
    # caller's own eSpeak alone. It runs this file by its path, because importing lascl.data costs seconds.
    code = "import json, runpy, sys; runpy.run_path(sys.argv[1])['_speak_corpus'](**json.loads(sys.argv[2]))"
    command = [sys.executable, "-c", code, __file__, json.dumps(job)]
    child = subprocess.run(command, capture_output=True, text=True, check=False)
    if child.returncode:
        raise RuntimeError(f"eSpeak NG could not speak the corpus (exit {child.returncode}):\n{child.stderr.strip()}")


def _voice(number):
    index = number - 1
    accent = _ACCENTS[(index + index // len(_VARIANTS)) % len(_ACCENTS)]
    return f"{accent}+{_VARIANTS[index % len(_VARIANTS)]}"


def _speak_corpus(directory, library, data, num_speakers, utterances_per_speaker, seed):
    directory = Path(directory)
    with (
        tempfile.TemporaryDirectory(prefix="lascl-", ignore_cleanup_errors=True) as short,
        open(directory / "manifest.csv", "w", newline="") as file,
    ):
        speak = _load_espeak(library, _short_path(data, short))
        manifest = csv.writer(file, lineterminator="\n")
        manifest.writerow(["path", "label", "speaker", "text", "duration_s"])
        for number in range(1, num_speakers + 1):
            speaker = f"speaker-{number:02d}"
            (directory / speaker).mkdir()
            # Utterances count from 1, because numpy takes the seeds [a, b] and [a, b, 0] for the same.
            baseline = np.random.default_rng([seed, number]).normal(_BASELINE, _SPEAKER_SD)
            for utterance in range(1, utterances_per_speaker + 1):
                rng = np.random.default_rng([seed, number, utterance])
                label = SYNTHETIC_LABELS[(utterance - 1) % len(SYNTHETIC_LABELS)]
                text = _SENTENCES[rng.integers(len(_SENTENCES))]
                prosody = rng.normal(baseline + _OFFSETS[label], _UTTERANCE_SD).clip(_LOWEST, _HIGHEST)
                rate, pitch, pitch_range, gap, *shape = prosody
                samples, native_rate = speak(text, _voice(number), rate, pitch, pitch_range, gap)
                samples = _shape(soxr.resample(samples, native_rate, _RATE), *shape)
                path = f"{speaker}/{speaker}-{utterance:03d}-{label}.flac"
                soundfile.write(directory / path, samples, _RATE, subtype="PCM_16")
                manifest.writerow([path, label, speaker, text, f"{len(samples) / _RATE:.4f}"])


def _short_path(data, short_directory):
    # eSpeak keeps the path of its data in 160 bytes and looks elsewhere if it is longer, as in a deep virtual
    # environment.
    short = os.path.join(short_directory, "data")
    try:
        os.symlink(data, short, target_is_directory=True)
    except OSError:  # Windows allows links only to some users
        shutil.copytree(data, short)
    return short


def _load_espeak(library, data):
    """Return `speak(text, voice, rate, pitch, pitch_range, gap) -> (float32 samples, sample rate)`."""
    espeak = ctypes.CDLL(library)
    # Without a declared size_t, ctypes would pass the length of the text as 32 bits.
    unsigned, pointer = ctypes.c_uint, ctypes.c_void_p
    position = (unsigned, ctypes.c_int, unsigned)
    espeak.espeak_Synth.argtypes = (ctypes.c_char_p, ctypes.c_size_t, *position, unsigned, pointer, pointer)
    # AUDIO_OUTPUT_SYNCHRONOUS (..._RETRIEVAL was measured ten times slower), espeakINITIALIZE_DONT_EXIT
    synchronous, no_exit = 2, 0x8000
    native_rate = espeak.espeak_Initialize(synchronous, 0, os.fsencode(data), no_exit)
    data_used = ctypes.c_char_p()
    espeak.espeak_Info(ctypes.byref(data_used))
    if native_rate <= 0 or data_used.value != os.fsencode(data):
        raise RuntimeError(
            f"eSpeak NG finds no data in {data}; reinstall espeakng-loader, or set TMPDIR to a short path."
        )
    chunks = []

    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
    def collect(samples, count, events):
        if samples and count > 0:
            chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    espeak.espeak_SetSynthCallback(collect)

    def call(name, *arguments):
        status = getattr(espeak, name)(*arguments)
        if status:
            raise RuntimeError(f"{name}{arguments} returned {status}.")

    def speak(text, voice, rate, pitch, pitch_range, gap):
        chunks.clear()
        call("espeak_SetVoiceByName", voice.encode())
        # The numbers are those of espeak_PARAMETER: rate, pitch, range, word gap.
        for parameter, value in ((1, rate), (3, pitch), (4, pitch_range), (7, gap)):
            call("espeak_SetParameter", parameter, round(value), 0)
        utf8 = 1
        call("espeak_Synth", text.encode(), len(text.encode()) + 1, 0, 0, 0, utf8, None, None)
        call("espeak_Synchronize")
        return np.concatenate(chunks).astype(np.float32) / 32768, native_rate

    speak.keep = collect  # ctypes does not keep a callback alive
    return speak


def _shape(samples, level, tilt, drive):
    """Trim the silence around the speech and apply what eSpeak has no parameter for.

    `drive` is how far the wave is pushed into a tanh, in units of its RMS: towards 2 the voice gets harsh.
    `tilt` is the t of y[n] = x[n] - t x[n-1]: bright and tense above 0, dull and slack below. `level` is the
    RMS in dBFS, less where the peak would clip.
    """
    loud = np.flatnonzero(np.abs(samples) > 0.01 * np.abs(samples).max())
    margin = _RATE // 50  # 20 ms
    samples = samples[max(loud[0] - margin, 0) : loud[-1] + margin]
    samples = np.tanh(drive * samples / np.sqrt(np.mean(samples**2)))
    samples = samples - tilt * np.concatenate([samples[:1], samples[:-1]])
    gain = 10 ** (level / 20) / np.sqrt(np.mean(samples**2))
    return samples * min(gain, 0.99 / np.abs(samples).max())

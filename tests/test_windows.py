"""Windows and segments against slow loops; recordings of every kind, block by block."""

import os
import shutil
import subprocess

import numpy as np
import pytest
import soundfile
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import RATE, recording

from lascl.data import audio as audio_module
from lascl.data.audio import read_blocks
from lascl.inference import Recogniser, Window, segments, stream
from lascl.inference.voice import speech_detector
from lascl.inference.windows import cut_windows


class Ear(Recogniser):
    """Hears ten samples a second, and answers a window with its mean: the more, the surer it is of `loud`."""

    labels, sampling_rate, min_duration_s, max_duration_s = ["quiet", "loud"], 10, 0.2, 5.0

    def __init__(self):
        self.batches = []

    def __call__(self, audio):
        self.batches.append(len(audio))
        loud = np.array([samples.mean() for samples in audio], dtype=np.float32)
        return np.stack([1 - loud, loud], axis=1), None


def slowly_cut(num_samples: int, size: int, hop: int) -> list[tuple[int, int]]:
    """First and last-but-one sample of each window."""
    if num_samples == 0:
        return []
    if num_samples <= size:
        return [(0, num_samples)]
    windows = [(start, start + size) for start in range(0, num_samples, hop) if start + size <= num_samples]
    return windows if windows[-1][1] == num_samples else [*windows, (num_samples - size, num_samples)]


def in_blocks(samples: np.ndarray, lengths: list[int]) -> list[np.ndarray]:
    return np.split(samples, np.cumsum(lengths)[np.cumsum(lengths) < len(samples)])


# --------------------------------------------------------------------------------------------------------- windows


@settings(max_examples=200, deadline=None)
@given(
    st.integers(0, 120), st.integers(1, 20), st.integers(1, 20), st.lists(st.integers(0, 30), min_size=1, max_size=20)
)
def test_blocks_of_any_length_give_the_same_windows_that_cover_everything(num_samples, size, hop, lengths):
    hop = min(hop, size)
    samples = np.arange(num_samples, dtype=np.float32)
    blocks = in_blocks(samples, lengths)
    found = list(cut_windows(blocks, size, hop))
    expected = slowly_cut(num_samples, size, hop)
    assert [(start, start + len(window)) for start, window in found] == expected
    for start, window in found:
        assert window.tolist() == samples[start : start + len(window)].tolist()
        kept = window if window.base is None else window.base
        assert len(kept) <= size + max(len(block) for block in blocks)
    assert {position for start, end in expected for position in range(start, end)} == set(range(num_samples))


@pytest.mark.parametrize("batch_size", [1, 2, 5, 100])
def test_windows_do_not_depend_on_how_many_are_answered_at_once(batch_size):
    samples = np.random.default_rng(0).uniform(size=47).astype(np.float32)
    ear = Ear()
    found = list(stream(ear, in_blocks(samples, [3, 20, 1, 7]), window_s=1.0, hop_s=0.3, batch_size=batch_size))
    starts = [0, 3, 6, 9, 12, 15, 18, 21, 24, 27, 30, 33, 36, 37]  # 36 + 10 is one short of 47
    assert [(w.start_s, w.end_s) for w in found] == [(start / 10, (start + 10) / 10) for start in starts]
    for start, window in zip(starts, found):
        loud = samples[start : start + 10].mean()
        assert window.probabilities == pytest.approx([1 - loud, loud])
        assert window.label == ("loud" if loud > 0.5 else "quiet")
    assert max(ear.batches) == min(batch_size, 14)


def test_windows_come_as_soon_as_they_are_heard():
    given_so_far = []

    def microphone():
        for second in range(5):
            given_so_far.append(second)
            yield np.full(10, 0.9, np.float32)

    windows = stream(Ear(), microphone(), window_s=2.0, hop_s=1.0)
    assert next(windows).start_s == 0.0 and given_so_far == [0, 1]
    assert next(windows).start_s == 1.0 and given_so_far == [0, 1, 2]


def test_windows_without_speech_are_left_out():
    samples = np.concatenate([np.full(20, 0.2), np.full(20, 0.8)]).astype(np.float32)
    found = list(stream(Ear(), samples, window_s=1.0, hop_s=1.0, is_speech=lambda window: window.mean() > 0.5))
    assert [(w.start_s, w.label) for w in found] == [(2.0, "loud"), (3.0, "loud")]


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"window_s": 0.1}, "window must be at least one frame of the encoder, 0.2 s, and at most the 5 s it hears"),
        ({"window_s": 5.1}, "found 5.1 s"),
        ({"window_s": 1.0, "hop_s": 1.5}, "hop must be above 0 s and at most the window, 1 s"),
        ({"window_s": 1.0, "hop_s": 0.0}, "hop must be above 0 s"),
        ({"window_s": 1.0, "hop_s": 0.01}, "at least one sample"),
    ],
)
def test_windows_out_of_range_are_refused(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        next(stream(Ear(), np.zeros(100, np.float32), **options))


@pytest.mark.parametrize(
    "block, sentence",
    [
        (np.zeros((10, 2), np.float32), r"mono, \(samples,\), of floats; found \(10, 2\)"),
        (np.zeros(10, np.int16), "of floats; found .*int16"),
        (np.full(10, np.nan, np.float32), "NaN or infinite"),
    ],
)
def test_other_samples_are_refused(block, sentence):
    with pytest.raises(ValueError, match=sentence):
        list(stream(Ear(), [block], window_s=1.0, hop_s=1.0))


def test_no_finite_answer_is_none():
    with pytest.raises(ValueError, match="no finite probabilities"), np.errstate(over="ignore"):
        list(stream(Ear(), np.full(10, 3e38, np.float32), window_s=1.0, hop_s=1.0))


# -------------------------------------------------------------------------------------------------------- segments

LABELS = ["a", "b", "c"]


def slow_segments(windows: list[Window], abstain_below: float) -> list[tuple[int, int, str, np.ndarray]]:
    """Moment by moment, where all bounds are whole numbers."""
    moments = []
    for moment in range(max((int(w.end_s) for w in windows), default=0)):
        covering = [w.probabilities for w in windows if w.start_s <= moment < w.end_s]
        if covering:
            mean = sum(covering) / len(covering)
            moments.append((moment, LABELS[int(np.argmax(mean))] if max(mean) >= abstain_below else "", mean))
    found = []
    for moment, label, mean in moments:
        if found and (found[-1][1], found[-1][2]) == (moment, label):
            start, _, _, means = found.pop()
            found.append((start, moment + 1, label, [*means, mean]))
        else:
            found.append((moment, moment + 1, label, [mean]))
    return [(start, end, label, np.mean(means, axis=0)) for start, end, label, means in found]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 25), st.integers(1, 8), st.integers(0, 9999)), max_size=12), st.booleans())
def test_segments_are_those_of_a_slow_loop(drawn, abstains):
    windows = []
    for start, length, seed in sorted(drawn):
        probabilities = np.random.default_rng(seed).dirichlet([0.3] * 3)
        windows.append(Window(float(start), float(start + length), LABELS[probabilities.argmax()], probabilities))
    abstain_below = 0.6 if abstains else 0.0
    found = list(segments(windows, LABELS, abstain_below=abstain_below))
    expected = slow_segments(windows, abstain_below)
    assert [(s.start_s, s.end_s, s.label) for s in found] == [row[:3] for row in expected]
    for segment, (*_, mean) in zip(found, expected):
        assert segment.probabilities == pytest.approx(mean, abs=1e-9)
        assert segment.probabilities.sum() == pytest.approx(1)


def test_a_mood_that_turns_is_found_where_it_turns():
    samples = np.concatenate([np.full(30, 0.1), np.full(30, 0.9), np.full(30, 0.2)]).astype(np.float32)
    found = list(segments(stream(Ear(), samples, window_s=1.0, hop_s=0.5), Ear.labels))
    assert [(s.start_s, s.end_s, s.label) for s in found] == [(0, 3, "quiet"), (3, 6, "loud"), (6, 9, "quiet")]


# ------------------------------------------------------------------------------------------------------ recordings


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(audio_module, "BLOCK_S", 0.1)


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg", ".mp3", ".aiff", ".au"])
def test_blocks_are_the_file(tmp_path, small_blocks, suffix):
    path = tmp_path / f"a{suffix}"
    soundfile.write(path, recording(0, 0.55), RATE)
    blocks = list(read_blocks(path))
    assert all(block.dtype == np.float32 and block.ndim == 1 and len(block) <= 1600 for block in blocks)
    assert len(blocks) > 4
    whole, _ = soundfile.read(path, dtype="float32")
    assert np.concatenate(blocks) == pytest.approx(whole, abs=1e-6)


@pytest.mark.parametrize("rate, channels", [(8_000, 1), (44_100, 2), (192_000, 8)])
def test_other_rates_and_channels(tmp_path, small_blocks, rate, channels):
    t = np.arange(int(0.5 * rate)) / rate
    samples = np.stack([0.1 * (c + 1) * np.sin(2 * np.pi * 300 * t) / channels for c in range(channels)], axis=1)
    soundfile.write(tmp_path / "a.wav", samples, rate, subtype="FLOAT")
    found = np.concatenate(list(read_blocks(tmp_path / "a.wav")))
    expected = soxr.resample(samples.mean(axis=1), rate, RATE)
    assert len(found) == pytest.approx(8000, abs=1)
    assert found[:7900] == pytest.approx(expected[:7900], abs=1e-4)


def truncated(path, share=0.5):
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])


def test_what_is_no_sound_recording_says_what_it_is(tmp_path, small_blocks, monkeypatch):
    soundfile.write(tmp_path / "cut.flac", recording(0, 1.0), RATE)
    soundfile.write(tmp_path / "cut.wav", recording(0, 1.0), RATE)
    truncated(tmp_path / "cut.flac")
    truncated(tmp_path / "cut.wav")
    soundfile.write(tmp_path / "nan.wav", np.array([0.1, np.nan, 0.1]), RATE, subtype="FLOAT")
    soundfile.write(tmp_path / "none.wav", np.zeros(0), RATE)
    (tmp_path / "empty.wav").write_bytes(b"")
    (tmp_path / "text.wav").write_text("not a recording " * 100)
    (tmp_path / "folder.wav").mkdir()
    (tmp_path / "locked.wav").write_bytes(b"RIFF")

    def locked(path, *args):
        raise PermissionError(13, "Permission denied")

    for name, sentence, error in (
        ("cut.flac", "is cut off|cannot be read as audio", ValueError),
        ("cut.wav", "is cut off: it holds less audio than its header says", ValueError),
        ("nan.wav", "holds NaN or infinite samples", ValueError),
        ("none.wav", "holds no audio samples", ValueError),
        ("empty.wav", "is an empty file, of 0 bytes", ValueError),
        ("text.wav", "cannot be read as audio", ValueError),
        ("folder.wav", "is a folder", ValueError),
        ("missing.wav", "no such audio file", FileNotFoundError),
        ("locked.wav", r"cannot be opened \(Permission denied\)", ValueError),
    ):
        if name == "locked.wav":  # to root, nothing is
            monkeypatch.setattr(audio_module, "open", locked, raising=False)
        with pytest.raises(error, match=sentence) as raised:
            list(read_blocks(tmp_path / name))
        assert str(raised.value).startswith(str(tmp_path / name))


def test_what_came_before_the_damage_is_sound(tmp_path, small_blocks):
    samples = recording(0, 1.0)
    soundfile.write(tmp_path / "a.wav", samples, RATE, subtype="FLOAT")
    truncated(tmp_path / "a.wav")
    heard = []
    with pytest.raises(ValueError, match="cut off"):
        for block in read_blocks(tmp_path / "a.wav"):
            heard.append(block)
    heard = np.concatenate(heard)
    assert 0.4 * RATE < len(heard) <= 0.5 * RATE and heard.tolist() == samples[: len(heard)].tolist()


@pytest.mark.parametrize("rate, channels", [(655_350, 8), (655_350, 1), (8000, 300)])
def test_a_block_is_bounded_in_samples_times_channels(tmp_path, monkeypatch, rate, channels):
    soundfile.write(tmp_path / "a.wav", np.full((rate // 100, channels), 0.5, np.float32), rate, subtype="FLOAT")
    read, asked = soundfile.SoundFile.read, []
    monkeypatch.setattr(
        soundfile.SoundFile, "read", lambda file, frames, **how: asked.append(frames) or read(file, frames, **how)
    )
    samples = np.concatenate(list(read_blocks(tmp_path / "a.wav")))
    assert asked and max(asked) * channels <= 4_000_000
    assert len(samples) == pytest.approx(RATE / 100, abs=1) and samples[len(samples) // 2] == pytest.approx(
        0.5, abs=1e-3
    )


def test_no_more_is_decoded_than_is_wanted(tmp_path, small_blocks):
    """Whatever a header says: of a FLAC that was streamed it says nothing."""
    soundfile.write(tmp_path / "a.flac", np.zeros((RATE, 2)), RATE)
    content = bytearray((tmp_path / "a.flac").read_bytes())
    content[21] &= 0xF0  # with the four bytes that follow, the number of samples: not known
    content[22:26] = bytes(4)
    (tmp_path / "a.flac").write_bytes(content)
    assert audio_module.stated_size(tmp_path / "a.flac") is None
    blocks = read_blocks(tmp_path / "a.flac", max_values=RATE)
    assert sum(map(len, (next(blocks) for _ in range(5)))) == RATE // 2
    with pytest.raises(ValueError, match="a.flac: holds more than 0 million samples in all its channels"):
        next(blocks)


def test_ffmpeg_is_told_to_open_this_file_alone_and_as_audio_or_video_alone(tmp_path, monkeypatch):
    (tmp_path / "ffmpeg").write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {tmp_path}/argv\nhead -c 4000 /dev/zero\n')
    (tmp_path / "ffmpeg").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    (tmp_path / "a.mp4").write_bytes(b"a video")
    assert sum(map(len, read_blocks(tmp_path / "a.mp4"))) == 1000
    told = (tmp_path / "argv").read_text().split("\n")
    before = told[: told.index("-i")]  # options of what is read stand before it
    assert "-protocol_whitelist" in before and before[before.index("-protocol_whitelist") + 1] == "file"
    assert "-format_whitelist" in before
    formats = before[before.index("-format_whitelist") + 1].split(",")
    assert {"mov", "matroska", "avi"} <= set(formats)
    assert not {"hls", "concat", "dash", "sdp", "rtsp", "lavfi", "image2", "tty", "applehttp"} & set(formats)


def test_a_playlist_that_calls_itself_a_video_opens_no_other_file(tmp_path):
    if shutil.which("ffmpeg") is None:
        pytest.skip("needs the ffmpeg program")
    soundfile.write(tmp_path / "another-visitors.wav", recording(0, 0.5), RATE)
    playlist = "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nanother-visitors.wav\n#EXT-X-ENDLIST\n"
    for text in ("ffconcat version 1.0\nfile another-visitors.wav\n", playlist):
        (tmp_path / "a.mp4").write_text(text)
        with pytest.raises(ValueError, match="a.mp4: ffmpeg cannot read it"):
            list(read_blocks(tmp_path / "a.mp4"))


def test_m4a_through_ffmpeg(tmp_path, small_blocks):
    if shutil.which("ffmpeg") is None:
        pytest.skip("needs the ffmpeg program")
    soundfile.write(tmp_path / "a.wav", recording(0, 1.0), RATE)
    subprocess.run(["ffmpeg", "-v", "error", "-i", tmp_path / "a.wav", tmp_path / "-a\n.m4a"], check=True)
    found = np.concatenate(list(read_blocks(tmp_path / "-a\n.m4a")))
    assert len(found) == pytest.approx(RATE, abs=2100)  # AAC has frames of 1024
    assert found[4000:12000].std() == pytest.approx(recording(0, 1.0)[4000:12000].std(), rel=0.1)
    (tmp_path / "b.mp4").write_text("no video")
    with pytest.raises(ValueError, match=r"b.mp4: ffmpeg cannot read it \(.+\)"):
        list(read_blocks(tmp_path / "b.mp4"))


def test_without_ffmpeg_a_sentence_says_what_it_is_needed_for(tmp_path, monkeypatch):
    (tmp_path / "a.m4a").write_bytes(b"something")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match=r"a.m4a: .m4a files are read through the ffmpeg program, which is not inst"):
        list(read_blocks(tmp_path / "a.m4a"))


# ----------------------------------------------------------------------------------------------------------- voice


def test_half_of_a_window_s_frames_must_be_voiced(monkeypatch):
    webrtcvad = pytest.importorskip("webrtcvad")
    monkeypatch.setattr(webrtcvad, "Vad", lambda mode: type("", (), {"is_speech": lambda self, pcm, rate: any(pcm)})())
    is_speech, frame = speech_detector(RATE), 480
    window = np.zeros(10 * frame, np.float32)
    window[: 5 * frame] = 0.5
    assert is_speech(window)
    window[4 * frame : 5 * frame] = 0
    assert not is_speech(window)
    assert not is_speech(np.full(frame - 1, 0.5, np.float32))


def test_silence_and_faint_noise_are_no_speech():
    pytest.importorskip("webrtcvad")
    is_speech = speech_detector(RATE)
    assert not is_speech(np.zeros(RATE, np.float32))
    assert not is_speech(1e-4 * np.random.default_rng(0).standard_normal(RATE).astype(np.float32))
    with pytest.raises(ValueError, match="8, 16, 32 or 48 kHz; this model wants 22050 Hz"):
        speech_detector(22_050)


def test_without_webrtcvad_a_sentence_names_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "webrtcvad", None)
    with pytest.raises(ValueError, match=r'pip install "lascl\[vad\]"'):
        speech_detector(RATE)


def test_speech_is_speech(shared):
    pytest.importorskip("webrtcvad")
    files = sorted((shared / "corpora" / "emodb").glob("*.flac"))[:20]
    is_speech = speech_detector(RATE)
    assert sum(is_speech(np.concatenate(list(read_blocks(file)))) for file in files) >= 18

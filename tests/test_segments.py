"""Calls with speakers: lists of segments and RTTM files, as recordings are, in prediction and in corpora."""

import itertools
import json
import math
import os

import numpy as np
import pytest
import soundfile
import soxr
from test_predict import alone, probabilities, run, save_checkpoint
from tiny import LABELS, RATE, read_csv, recording

import lascl
import lascl.inference
from lascl import LaSCLForAudioClassification, load_corpus
from lascl.data import SpeechDataset, checked_audio, read_audio
from lascl.inference import Recogniser
from lascl.training import pooled


CALL_RATE = 8000  # of a telephone, in stereo
TURNS = [("ann", 0.25, 0.75), ("bob", 0.5, 1.25), ("ann", 1.25, 1.375), ("bob", 0.5, 0.625)]  # two overlap


@pytest.fixture(scope="module")
def checkpoint(audio_encoders, text_encoder, tmp_path_factory) -> str:
    return save_checkpoint("wav2vec2-layer", audio_encoders, text_encoder, tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder: a call of 2 s, stereo, in `calls/`, and a list of its turns."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "calls").mkdir()
    channels = np.stack([recording(seed, 2.0)[:: RATE // CALL_RATE] for seed in (0, 1)], axis=1)
    soundfile.write("calls/one.flac", channels, CALL_RATE)
    rows = [f"calls/one.flac,{start},{end},{speaker}" for speaker, start, end in TURNS]
    (tmp_path / "turns.csv").write_text("path,start,end,speaker\n" + "\n".join(rows) + "\n")
    return tmp_path


def rttm(turns, call="one") -> str:
    lines = [f"SPEAKER {call} 1 {start:.3f} {end - start:.3f} <NA> <NA> {who} <NA> <NA>\n" for who, start, end in turns]
    return "".join(lines)


def part(start: float, end: float) -> np.ndarray:
    """What is to be heard of the call, by other means."""
    samples, _ = soundfile.read("calls/one.flac", dtype="float32")
    return soxr.resample(samples[round(start * CALL_RATE) : round(end * CALL_RATE)].mean(axis=1), CALL_RATE, RATE)


def check_rows(checkpoint, rows, path="calls/one.flac", turns=TURNS):
    assert [(row.get("path"), row.get("start_s"), row.get("end_s"), row.get("speaker")) for row in rows] == [
        (path, f"{start:.3f}", f"{end:.3f}", speaker) for speaker, start, end in turns
    ]
    for row, (_, start, end) in zip(rows, turns):
        assert probabilities(row) == pytest.approx(alone(checkpoint, part(start, end)), abs=1e-5)


# ---------------------------------------------------------------------------------------------------------- prediction


def test_a_list_with_times_has_a_row_a_segment(checkpoint, folder, capsys):
    assert run(checkpoint, "turns.csv", "--output", "out.csv") == 0
    rows = read_csv(folder / "out.csv")
    check_rows(checkpoint, rows)
    assert list(rows[0])[:5] == ["path", "start_s", "end_s", "speaker", "label"]
    assert run(checkpoint, "out.csv", "--output", "again.csv") == 0  # what was written is such a list itself
    assert read_csv(folder / "again.csv") == rows


@pytest.mark.parametrize("name", ["jsonl", "table"])
def test_other_formats_say_when_and_who_too(checkpoint, folder, capsys, name):
    (folder / "turns.csv").write_text("path,start,end,speaker\ncalls/one.flac,0.25,0.75,ann\ncalls/one.flac,,,\n")
    assert run(checkpoint, "turns.csv", "--format", name) == 0
    lines = capsys.readouterr().out.splitlines()[-2:]
    assert len(lines) == 2, "one row for two segments"
    turn, whole = lines
    if name == "table":
        assert turn.split()[:4] == ["calls/one.flac", "0.250", "0.750", "ann"]
        assert whole.split()[:4] == ["calls/one.flac", "-", "-", "-"]
    else:
        times = [[json.loads(line).get(key) for key in ("start_s", "end_s", "speaker")] for line in (turn, whole)]
        assert times == [[0.25, 0.75, "ann"], [None, None, None]]


@pytest.mark.parametrize("where", ["beside", "data_dir"])
def test_rttm_is_such_a_list(checkpoint, folder, where):
    file = folder / ("calls" if where == "beside" else ".") / "one.rttm"
    noted = ";; pyannote.audio\nSPKR-INFO one 1 <NA> <NA> <NA> unknown ann <NA> <NA>\n\n"
    file.write_text(noted + rttm(TURNS), encoding="utf-8")
    (folder / "calls" / "one.txt").write_text("what was said")  # no recording
    options = [] if where == "beside" else ["--data_dir", folder]
    assert run(checkpoint, os.path.relpath(file), *options, "--output", "out.csv") == 0
    path = "calls/one.flac" if where == "beside" else str(folder / "calls" / "one.flac")
    check_rows(checkpoint, read_csv(folder / "out.csv"), path)


def test_of_a_video_and_its_sound_the_sound_is_taken(folder):
    assert hasattr(lascl.inference, "read_segments"), "RTTM files are read nowhere"
    (folder / "calls" / "one.mp4").write_bytes(b"a video")
    (folder / "calls" / "one.rttm").write_text(rttm(TURNS))
    found = lascl.inference.read_segments("calls/one.rttm")
    assert [segment.path for segment in found] == ["calls/one.flac"] * 4
    (folder / "calls" / "one.wav").write_bytes(b"another")
    with pytest.raises(ValueError, match="2 recordings are called 'one', calls/one.flac and calls/one.wav for two"):
        lascl.inference.read_segments("calls/one.rttm")


def test_no_more_of_a_file_is_decoded_than_its_segments(checkpoint, folder, monkeypatch):
    decoded, read = [], soundfile.SoundFile.read

    def counted(self, *args, **kwargs):
        found = read(self, *args, **kwargs)
        decoded.append(len(found))
        return found

    monkeypatch.setattr(soundfile.SoundFile, "read", counted)
    assert run(checkpoint, "turns.csv", "--output", "out.csv") == 0
    assert sum(decoded) == sum(round((end - start) * CALL_RATE) for _, start, end in TURNS)


def test_what_only_ffmpeg_decodes_is_begun_at_the_segment(tmp_path, monkeypatch):
    """A program in its place, which gives a ramp, and notes what it was told."""
    assert hasattr(lascl.inference, "Segment"), "a part of a file cannot be asked for"
    np.linspace(-0.5, 0.5, RATE, dtype=np.float32).tofile(tmp_path / "ramp")
    (tmp_path / "ffmpeg").write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {tmp_path}/argv\nexec cat {tmp_path}/ramp\n')
    (tmp_path / "ffmpeg").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    (tmp_path / "a.m4a").write_bytes(b"a video")
    assert len(read_audio(lascl.inference.Segment(tmp_path / "a.m4a", 61.5, 62.0))) == RATE // 2
    told = (tmp_path / "argv").read_text().split("\n")
    assert told[told.index("-ss") + 1] == "61.500000" and told.index("-ss") < told.index("-i")
    with pytest.raises(ValueError, match=r"a\.m4a, 61\.500 to 63\.000 s: the recording ends at 62\.500 s\."):
        read_audio(lascl.inference.Segment(tmp_path / "a.m4a", 61.5, 63.0))


@pytest.mark.parametrize("ending", ["wav", "flac", "ogg", "mp3"])
def test_segments_that_touch_are_the_file(tmp_path, ending):
    assert hasattr(lascl.inference, "Segment"), "a part of a file cannot be asked for"
    path, times = tmp_path / f"a.{ending}", [0.0, 0.1234567, 0.5, 0.77777, 1.0]
    soundfile.write(path, recording(0, 1.0), RATE)
    parts = [read_audio(lascl.inference.Segment(str(path), *pair)) for pair in itertools.pairwise(times)]
    joined, whole = np.concatenate(parts), read_audio(path)
    assert len(joined) == RATE
    assert joined == pytest.approx(whole[:RATE], abs=0.02 if ending == "mp3" else 1e-6)


def test_each_segment_that_is_none_is_one_sentence_and_the_others_are_answered(checkpoint, folder, capsys):
    bad = ["0.5,0.5", "-0.1,0.5", "1.9,2.5", "7,8", "0.5,", "0.5,1 s", "0.5,0.501", "nan,1", "0.75,0.5"]
    (folder / "bad.csv").write_text(
        "path,start,end\ncalls/one.flac,0.25,0.75\n"
        + "".join(f"calls/one.flac,{times}\n" for times in bad)
        + "calls/none.flac,0,1\ncalls/none.flac,1,2\ncalls/one.flac,1.9,2.05\n"
    )
    assert run(checkpoint, "bad.csv", "--output", "out.csv") == 1
    rows = read_csv(folder / "out.csv")
    assert [(row.get("start_s"), row.get("end_s")) for row in rows] == [("0.250", "0.750"), ("1.900", "2.050")]
    first, *told = [line.strip() for line in capsys.readouterr().err.splitlines()]
    begin = "calls/one.flac, {:.3f} to {:.3f} s: ".format
    none = "a segment begins at 0 s or later, and ends later than that."
    assert first == "lascl-predict: no answer for 11:"
    assert told == [
        "bad.csv, line 7: no value for 'end'.",
        "bad.csv, line 8: the end '1 s' is no number of seconds, such as 12.5.",
        begin(0.5, 0.5) + none,
        begin(-0.1, 0.5) + none,
        begin(1.9, 2.5) + "the recording ends at 2.000 s.",
        begin(7, 8) + "the recording ends before that.",
        begin(0.5, 0.501) + "is too short, 1 ms: this model needs 5 ms, one frame of its encoder.",
        begin(math.nan, 1) + none,
        begin(0.75, 0.5) + none,
        "calls/none.flac: no such audio file.",  # once, for both
    ]


def test_each_line_of_rttm_that_is_none_is_one_sentence(checkpoint, folder, capsys):
    lines = [
        rttm(TURNS[:1]),
        "SPEAKER one 1 0.5\n",
        "SPEAKER one 1 0,5 1 <NA> <NA> ann <NA> <NA>\n",
        rttm(TURNS, "two"),
        "SPEAKER one 1 1 0 <NA> <NA> <NA> <NA> <NA>\n",
    ]
    (folder / "calls" / "all.rttm").write_text("".join(lines))
    assert run(checkpoint, "calls/all.rttm", "--output", "out.csv") == 1
    check_rows(checkpoint, read_csv(folder / "out.csv"), turns=TURNS[:1])
    _, *told = [line.strip() for line in capsys.readouterr().err.splitlines()]
    where = "calls/all.rttm, line {}: ".format
    assert told == [
        where(2) + "has 4 fields, and a SPEAKER line has ten.",
        where(3) + "onset and duration '0,5' and '1' are no numbers of seconds.",
        where(4) + "there is no recording 'two' beside it: say where with --data_dir. Its 4 segments are left out.",
        "calls/one.flac, 1.000 to 1.000 s: a segment begins at 0 s or later, and ends later than that.",
    ]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["empty.rttm"], "empty.rttm: has no SPEAKER line."),
        (["turns.csv", "--window", "1"], "--window cuts whole recordings, and segments are cut already"),
        (["turns.csv", "--data_dir", "calls"], "--data_dir calls is where the recordings of RTTM files lie, and none"),
        (["empty.rttm", "--data_dir", "nowhere"], "--data_dir nowhere is no folder."),
        (["half.csv"], "half.csv: the column 'start' needs 'end' beside it, both in seconds."),
        (["empty.rttm", "--standardise_by", "age"], "empty.rttm has no column 'age': of RTTM there is 'speaker'."),
    ],
)
def test_what_cannot_be_is_told_before_anything_is_loaded(checkpoint, folder, capsys, argv, message):
    (folder / "empty.rttm").write_text("SPKR-INFO one 1 <NA> <NA> <NA> unknown ann <NA> <NA>\n")
    (folder / "half.csv").write_text("path,start\ncalls/one.flac,1\n")
    assert run(checkpoint, *argv, "--output", "out.csv") == 2
    told = capsys.readouterr().err
    assert message in told and told.count("\n") == 1 and not (folder / "out.csv").exists()


@pytest.mark.parametrize("output", ["out.csv", "out.jsonl"])
def test_what_was_cut_off_goes_on_with_the_segments_that_lack(checkpoint, folder, capsys, monkeypatch, output):
    (folder / "turns.csv").write_text(
        (folder / "turns.csv").read_text() + 'calls/one.flac,0.5,0.625,"=cy"\ncalls/one.flac,0.1000001,0.2,\n'
    )
    command = [checkpoint, "turns.csv", "--output", output, "--embeddings", "e.npz"]
    assert run(*command) == 0
    whole = (folder / output).read_bytes()
    with np.load("e.npz") as saved:
        assert "start_s" in saved and saved["start_s"].tolist() == [0.25, 0.5, 1.25, 0.5, 0.5, 0.1]
        assert saved["speaker"].tolist() == ["ann", "bob", "ann", "bob", "=cy", ""]
        embeds = saved["audio_embeds"]
    lines = whole.splitlines(keepends=True)
    (folder / output).write_bytes(b"".join(lines[:-2]) + b"torn")
    embeds[:-2].astype("<f4").tofile(f".{output}.embeddings")
    os.remove("e.npz")
    heard, answer = [], Recogniser._answer
    monkeypatch.setattr(Recogniser, "_answer", lambda self, audio: heard.extend(audio) or answer(self, audio))
    capsys.readouterr()
    assert run(*command) == 0
    assert f"4 of 6 segments are in {output} already." in capsys.readouterr().err
    assert sorted(map(len, heard)) == [1600, 2000] and (folder / output).read_bytes()[:40] == whole[:40]
    assert len((folder / output).read_bytes().splitlines()) == len(lines)
    with np.load("e.npz") as saved:
        assert saved["audio_embeds"] == pytest.approx(embeds, abs=1e-5)
    assert run(*command) == 0 and len(heard) == 2  # nothing is left to do


def test_speakers_of_rttm_are_those_of_their_call(audio_encoders, text_encoder, folder, capsys):
    """SPEAKER_00 of two calls is two people; each has statistics of its own."""
    made = save_checkpoint("wav2vec2-layer", audio_encoders, text_encoder, folder / "m", standardise_audio="training")
    soundfile.write("calls/two.flac", recording(5, 2.0) / 3, RATE)
    turns = [("SPEAKER_00", 0.3 * number, 0.3 * number + 0.25) for number in range(5)]
    (folder / "calls" / "both.rttm").write_text(rttm(turns) + rttm(turns, "two"))
    assert run(made, "calls/both.rttm", "--standardise_by", "speaker", "--output", "out.csv") == 0
    statistics = json.loads((folder / "out.csv.lascl.json").read_text())["statistics"]
    assert [by["group"] for by in statistics] == ["", "one/SPEAKER_00", "two/SPEAKER_00"]
    assert [by["num_recordings"] for by in statistics] == [10, 5, 5]
    rows = read_csv(folder / "out.csv")
    assert [row["speaker"] for row in rows] == ["SPEAKER_00"] * 10
    segments = lascl.inference.read_segments("calls/both.rttm")
    own = [f"{segment.path}/{segment.speaker}" for segment in segments]
    for row, answer in zip(rows, lascl.predict_files(made, segments, standardise_by=own), strict=True):
        assert probabilities(row) == pytest.approx(answer.probabilities, abs=1e-4)
    assert run(made, "calls/both.rttm", "--standardise", "recordings", "--output", "all.csv") == 0


def test_from_python_with_segments_longer_than_the_window(audio_encoders, text_encoder, folder):
    """Whisper's window of 2 s: 3 s of a file are heard twice, and the probabilities averaged."""
    assert hasattr(lascl.inference, "Segment"), "a part of a file cannot be asked for"
    made = save_checkpoint("whisper", audio_encoders, text_encoder, folder / "whisper")
    soundfile.write("long.wav", recording(7, 5.0), RATE)
    samples = soundfile.read("long.wav", dtype="float32")[0]
    asked = [
        lascl.inference.Segment("long.wav", 1.0, 4.0, "ann"),
        "long.wav",
        lascl.inference.Segment("long.wav", 9, 10),
    ]
    long, whole, none = lascl.predict_files(made, asked)
    assert (long.path, long.start_s, long.end_s, long.speaker, long.num_windows) == ("long.wav", 1.0, 4.0, "ann", 2)
    heard = [alone(made, samples[start * RATE : (start + 2) * RATE]) for start in (1, 2)]
    assert long.probabilities == pytest.approx(np.mean(heard, axis=0), abs=1e-5)
    assert (whole.start_s, whole.num_windows, none.label) == (None, 3, None)
    assert none.failure == "long.wav, 9.000 to 10.000 s: the recording ends before that."
    (single,) = lascl.predict_files(made, asked[0])
    assert single.probabilities == pytest.approx(long.probabilities, abs=1e-6)


def test_a_segment_of_more_than_a_minute_is_read_piece_by_piece(checkpoint, folder, monkeypatch):
    assert hasattr(lascl.inference, "Segment"), "a part of a file cannot be asked for"
    monkeypatch.setattr(lascl.inference.files, "HELD_S", 0.5)
    monkeypatch.setattr(Recogniser, "window_s", property(lambda self: 0.5))
    (answer,) = lascl.predict_files(checkpoint, lascl.inference.Segment("calls/one.flac", 0.25, 1.5))
    assert (answer.start_s, answer.num_windows) == (0.25, 3)
    parts = [alone(checkpoint, part(0.25, 1.5)[start:][:8000]) for start in (0, 8000, 12000)]
    assert answer.probabilities == pytest.approx(np.mean(parts, axis=0), abs=1e-5)


# ------------------------------------------------------------------------------------------------------------- corpora


@pytest.fixture
def corpus_dir(folder):
    lines = ["path,label,speaker,start,end"]
    for number, (speaker, start, end) in enumerate(TURNS):
        lines.append(f"calls/one.flac,{LABELS[number % 2]},{speaker},{start},{end}")
    (folder / "manifest.csv").write_text("\n".join([*lines, "calls/one.flac,sad,cy,,"]) + "\n")
    return folder


def test_a_corpus_has_a_row_a_segment(corpus_dir, monkeypatch):
    decoded, decode = [], checked_audio._decode
    monkeypatch.setattr(checked_audio, "_decode", lambda path: decoded.append(path) or decode(path))
    try:
        corpus = load_corpus("csv", corpus_dir)
    except ValueError as error:
        corpus, told = None, str(error)
    assert corpus is not None, told
    assert len(decoded) == 1
    ids = [
        "calls/one",
        *(f"calls/one@{times}" for times in ("0.250-0.750", "0.500-0.625", "0.500-1.250", "1.250-1.375")),
    ]
    assert corpus["id"][:] == ids
    assert corpus["start_s"][:] == [None, 0.25, 0.5, 0.5, 1.25] and corpus["end_s"][:][1:3] == [0.75, 0.625]
    assert corpus["duration_s"][:] == pytest.approx([2.0, 0.5, 0.125, 0.75, 0.125])
    speech = SpeechDataset(corpus, range(5), sampling_rate=RATE, max_duration_s=0.25)
    lengths_s = [0.25, 0.25, 0.125, 0.25, 0.125]
    for number, (start, length_s) in enumerate(zip([0, 0.25, 0.5, 0.5, 1.25], lengths_s)):
        (view,) = speech[number]["views"]
        assert np.array_equal(view, part(start, start + length_s))
    assert speech.durations_s == lengths_s


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("1.5,2.2", "1.500 to 2.200 s: the recording ends at 2.000 s. Correct the times, or leave the segment out."),
        ("3,3.5", "3.000 to 3.500 s: the recording ends at 2.000 s."),
        ("0.5,0.5", "0.500 to 0.500 s: a segment begins at 0 s or later, and ends later than that."),
    ],
)
def test_a_segment_that_is_none_is_told_or_skipped(corpus_dir, row, message):
    with open(corpus_dir / "manifest.csv", "a") as file:
        file.write(f"calls/one.flac,sad,dan,{row}\n")
    told = ""
    try:
        load_corpus("csv", corpus_dir)
    except ValueError as error:
        told = str(error)
    assert message in told and "--on_bad_audio skip" in told
    skipped = []
    assert len(load_corpus("csv", corpus_dir, skipped=skipped)) == 5
    assert len(skipped) == 1 and message in skipped[0][1]


@pytest.mark.parametrize(
    ("row", "message"),
    [("1.5,", "line 7: no value for 'end'"), ("1:30,2:00", "line 7: the start '1:30' is no number of seconds")],
)
def test_times_that_cannot_be_read_are_told_with_their_line(corpus_dir, row, message):
    with open(corpus_dir / "manifest.csv", "a") as file:
        file.write(f"calls/one.flac,sad,dan,{row}\n")
    told = ""
    try:
        load_corpus("csv", corpus_dir)
    except ValueError as error:
        told = str(error)
    assert message in told


def test_views_of_segments_of_one_file_are_not_those_of_others(corpus_dir, checkpoint):
    """Neither by where a segment begins nor by where it ends."""
    assert hasattr(pooled, "view_keys")
    names, extractor = set(), Recogniser.load(checkpoint).feature_extractor
    model = LaSCLForAudioClassification.from_pretrained(checkpoint).lascl
    for times in ("0.5,1.0", "0.5,1.1", "0.6,1.0", ","):
        (corpus_dir / "manifest.csv").write_text(f"id,path,label,speaker,start,end\na,calls/one.flac,sad,ann,{times}\n")
        speech = SpeechDataset(load_corpus("csv", corpus_dir), [0], sampling_rate=RATE, max_duration_s=10)
        names.add(pooled.view_keys(model, speech, extractor)[0, 0])
    assert len(names) == 4

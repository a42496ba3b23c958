"""The synthetic corpus: what is written, that it is the same every time, that emotion is in the prosody."""

import csv
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import soundfile


pytest.importorskip("espeakng_loader")

from lascl.data import synthetic
from lascl.data.synthetic import SYNTHETIC_LABELS, generate_synthetic_corpus


SMALL = {"num_speakers": 2, "utterances_per_speaker": 4}


def read_manifest(corpus):
    with open(corpus / "manifest.csv", newline="") as file:
        return list(csv.DictReader(file))


def snapshot(corpus):
    """Every file of a corpus: its bytes, or for a clip its samples."""
    files = (p for p in sorted(corpus.rglob("*")) if p.is_file())
    return {
        str(p.relative_to(corpus)): soundfile.read(p, dtype="int16")[0].tobytes()
        if p.suffix == ".flac"
        else p.read_bytes()
        for p in files
    }


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return generate_synthetic_corpus(
        tmp_path_factory.mktemp("speech") / "corpus", num_speakers=4, utterances_per_speaker=32
    )


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return generate_synthetic_corpus(tmp_path_factory.mktemp("speech") / "small", **SMALL)


def test_every_speaker_speaks_every_emotion_equally_often(corpus):
    rows = read_manifest(corpus)
    assert list(rows[0]) == ["path", "label", "speaker", "text", "duration_s"]
    pairs = [(row["speaker"], row["label"]) for row in rows]
    speakers = ["speaker-01", "speaker-02", "speaker-03", "speaker-04"]
    assert {pair: pairs.count(pair) for pair in pairs} == {(s, e): 8 for s in speakers for e in SYNTHETIC_LABELS}
    assert len({row["path"] for row in rows}) == len(rows) == len(list(corpus.glob("*/*.flac")))


def test_files_are_what_the_manifest_says(corpus):
    for row in read_manifest(corpus):
        samples, rate = soundfile.read(corpus / row["path"])
        info = soundfile.info(corpus / row["path"])
        assert (rate, info.channels, info.subtype) == (16_000, 1, "PCM_16")
        assert np.isfinite(samples).all()
        assert 0.01 < np.sqrt(np.mean(samples**2)) and np.abs(samples).max() < 1
        assert abs(len(samples) / rate - float(row["duration_s"])) < 1e-3
        assert 0.8 < len(samples) / rate < 3.5


def test_prosody_follows_the_emotion_on_average(corpus):
    measured = {label: [] for label in SYNTHETIC_LABELS}
    for row in read_manifest(corpus):
        samples, rate = soundfile.read(corpus / row["path"])
        spectrum = np.abs(np.fft.rfft(samples)) ** 2
        brightness = np.average(np.fft.rfftfreq(len(samples), 1 / rate), weights=spectrum)
        rms = np.sqrt(np.mean(samples**2))
        measured[row["label"]].append((len(samples) / rate / len(row["text"]), rms, brightness))
    slowness, loudness, brightness = (
        {label: np.mean(values, axis=0)[cue] for label, values in measured.items()} for cue in range(3)
    )
    assert slowness["sad"] > 1.15 * slowness["neutral"] > 1.15 * slowness["angry"]
    assert loudness["angry"] > loudness["happy"] > loudness["neutral"] > loudness["sad"]
    assert brightness["angry"] > brightness["neutral"] > brightness["sad"]


def test_text_does_not_follow_the_emotion(corpus):
    rows = read_manifest(corpus)
    per_label = [{row["text"] for row in rows if row["label"] == label} for label in SYNTHETIC_LABELS]
    assert len(set.intersection(*per_label)) >= 5
    assert len(set(synthetic._SENTENCES)) == 40


def test_speakers_are_different_voices():
    pairs = {synthetic._voice(number) for number in range(1, synthetic._MAX_SPEAKERS + 1)}
    assert len(pairs) == synthetic._MAX_SPEAKERS


def test_same_arguments_give_the_same_samples(small, tmp_path):
    assert snapshot(generate_synthetic_corpus(tmp_path / "again", **SMALL)) == snapshot(small)


def test_seed_changes_the_clips_and_more_speakers_do_not(small, tmp_path):
    other = generate_synthetic_corpus(tmp_path / "other", **SMALL, seed=1)
    more = generate_synthetic_corpus(tmp_path / "more", num_speakers=3, utterances_per_speaker=4)
    clips, others, mores = ({k: v for k, v in snapshot(c).items() if k.endswith("flac")} for c in (small, other, more))
    assert all(others[path] != samples for path, samples in clips.items())
    assert all(mores[path] == samples for path, samples in clips.items())


def test_second_call_writes_nothing(small):
    before = {p: p.stat().st_mtime_ns for p in small.rglob("*")}
    assert generate_synthetic_corpus(str(small), **SMALL) == small
    assert {p: p.stat().st_mtime_ns for p in small.rglob("*")} == before


@pytest.mark.parametrize("damage", ["marker", "clip", "manifest", "arguments"])
def test_half_written_or_other_corpus_is_replaced(small, tmp_path, damage):
    corpus = shutil.copytree(small, tmp_path / "corpus")
    if damage == "marker":
        (corpus / synthetic._MARKER).write_text('{"format": 1, "num_sp')
        (corpus / "speaker-01" / "speaker-01-099-sad.flac").touch()
    elif damage == "clip":
        next(corpus.glob("speaker-02/*.flac")).unlink()
    elif damage == "manifest":
        (corpus / "manifest.csv").unlink()
    else:
        generate_synthetic_corpus(corpus, num_speakers=1, utterances_per_speaker=4)
    assert snapshot(generate_synthetic_corpus(corpus, **SMALL)) == snapshot(small)
    assert [p.name for p in tmp_path.iterdir()] == ["corpus"]


@pytest.mark.parametrize("name", ["thesis.txt", "speaker-01/recording.flac"])
def test_folder_with_other_files_is_left_alone(tmp_path, name):
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_text("years of work")
    with pytest.raises(FileExistsError, match=name):
        generate_synthetic_corpus(tmp_path, **SMALL)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [file]
    with pytest.raises(FileExistsError, match="is a file"):
        generate_synthetic_corpus(file, **SMALL)


def test_failing_synthesis_leaves_nothing_and_says_why(tmp_path, monkeypatch):
    monkeypatch.setattr("espeakng_loader.get_data_path", lambda: str(tmp_path / "nowhere"))
    with pytest.raises(RuntimeError, match="eSpeak NG"):
        generate_synthetic_corpus(tmp_path / "corpus", **SMALL)
    assert list(tmp_path.iterdir()) == []


def test_data_may_lie_deep(small, tmp_path, monkeypatch):
    import espeakng_loader

    deep = tmp_path.joinpath(*["a-directory-name-of-forty-characters-here"] * 5, "espeak-ng-data")
    shutil.copytree(espeakng_loader.get_data_path(), deep)
    assert len(str(deep)) > 200
    monkeypatch.setattr("espeakng_loader.get_data_path", lambda: str(deep))
    assert snapshot(generate_synthetic_corpus(tmp_path / "corpus", **SMALL)) == snapshot(small)


def test_data_is_copied_where_links_are_refused(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("links are a privilege on Windows")

    monkeypatch.setattr("os.symlink", refuse)
    (tmp_path / "deep" / "lang").mkdir(parents=True)
    short = synthetic._short_path(str(tmp_path / "deep"), str(tmp_path))
    assert (tmp_path / "data" / "lang").is_dir() and short == str(tmp_path / "data")


@pytest.mark.parametrize("stale", [False, True])
def test_two_processes_at_once(small, tmp_path, stale):
    if stale:
        (shutil.copytree(small, tmp_path / "corpus") / synthetic._MARKER).unlink()
    code = "import json, runpy, sys; module = runpy.run_path(sys.argv[1]); "
    code += "module['generate_synthetic_corpus'](sys.argv[2], **json.loads(sys.argv[3]))"
    command = [sys.executable, "-c", code, synthetic.__file__, str(tmp_path / "corpus"), json.dumps(SMALL)]
    children = [subprocess.Popen(command) for _ in range(2)]
    assert [child.wait() for child in children] == [0, 0]
    assert snapshot(tmp_path / "corpus") == snapshot(small)
    assert [p.name for p in tmp_path.iterdir()] == ["corpus"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_speakers": 0}, "num_speakers must be an integer, from 1 to 48; got 0"),
        ({"num_speakers": 49}, "got 49"),
        ({"num_speakers": 2.0}, "got 2.0"),
        ({"utterances_per_speaker": 0}, "at least 1; got 0"),
        ({"utterances_per_speaker": 6}, "multiple of 4"),
        ({"seed": -1}, "seed must be an integer, at least 0; got -1"),
        ({"seed": True}, "got True"),
    ],
)
def test_bad_arguments_raise(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        generate_synthetic_corpus(tmp_path / "corpus", **arguments)
    assert list(tmp_path.iterdir()) == []


def test_missing_package_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(ImportError, match=r'pip install "lascl\[demo\]"'):
        generate_synthetic_corpus(tmp_path / "corpus", **SMALL)

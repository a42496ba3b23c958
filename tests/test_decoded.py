"""Audio that was decoded and resampled is kept: the same samples, once for all epochs and runs, within its bound."""

import inspect
import multiprocessing
import os
import time

import numpy as np
import pytest
import soundfile
from tiny import recording

from lascl import load_corpus, train
from lascl.data import SpeechDataset
from lascl.data import dataset as dataset_module


RATE = 16_000
FILES = {
    "far.flac": (48_000, 2),  # another rate, two channels
    "near.flac": (RATE, 1),
    "plain.wav": (RATE, 1),
    "fast.wav": (44_100, 1),
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A row of each file, 0.5 s, and two segments of one."""
    folder = tmp_path_factory.mktemp("files")
    lines = ["path,label,speaker,start,end,id"]
    for number, (name, (rate, channels)) in enumerate(FILES.items()):
        samples = np.stack([recording(number + 10 * channel, 0.5)[: rate // 2] for channel in range(channels)], axis=1)
        soundfile.write(folder / name, np.resize(samples, (rate // 2, channels)), rate)
        lines.append(f"{name},joy,a,,,{name}")
    lines += ["far.flac,fear,b,0.1,0.3,first", "far.flac,fear,b,0.3,0.5,second"]
    (folder / "manifest.csv").write_text("\n".join(lines), encoding="utf-8")
    return load_corpus("csv", folder)


@pytest.fixture
def decoded(monkeypatch) -> list[str]:
    """What was read from its file, call by call."""
    found, read = [], dataset_module.read_audio

    def noted(path, **how):
        found.append(os.path.basename(str(getattr(path, "path", path))))
        return read(path, **how)

    monkeypatch.setattr(dataset_module, "read_audio", noted)
    return found


def store(folder, most_bytes=1e9):
    assert "decoded" in inspect.signature(SpeechDataset).parameters, "decoded audio is kept nowhere"
    from lascl.data.decoded import DecodedAudio

    return DecodedAudio(folder, most_bytes)


def speech(corpus, kept, max_duration_s=1.0, **options):
    audio = {"sampling_rate": RATE, "max_duration_s": max_duration_s}
    return SpeechDataset(corpus, range(len(corpus)), **audio, **({"decoded": kept} if kept else {}), **options)


def samples_of(data):
    return [data.view(index, 0, 0) for index in range(len(data))]


def assert_same(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected):
        assert one.dtype == np.float32 and one.flags.writeable and np.array_equal(one, other)


def test_audio_is_decoded_once_for_all_epochs_and_runs(corpus, tmp_path, decoded):
    """To the bit what decoding gives; a WAV file of the wanted rate and one channel has no copy."""
    kept = store(tmp_path)
    expected = samples_of(speech(corpus, None))
    decoded.clear()
    assert_same(samples_of(speech(corpus, kept)), expected)
    assert sorted(decoded) == ["far.flac"] * 3 + ["fast.wav", "near.flac", "plain.wav"]
    decoded.clear()
    for epoch in range(2):
        again = speech(corpus, store(tmp_path), augmentation="gain", num_views=2)
        again.set_epoch(epoch)
        assert_same([again[index]["views"][0] for index in range(len(again))], expected)
    assert decoded == ["plain.wav"] * 2
    assert len(store(tmp_path).files()) == 5


def test_a_limit_has_its_own_samples_of_what_it_cuts_alone(corpus, tmp_path, decoded):
    store(tmp_path)
    for limit_s in (0.35, 0.3, 1.0, 0.3, float("inf")):
        expected = samples_of(speech(corpus, None, limit_s))
        assert_same(samples_of(speech(corpus, store(tmp_path), limit_s)), expected)
        assert max(map(len, expected)) == round(min(limit_s, 0.5) * RATE)
    decoded.clear()
    samples_of(speech(corpus, store(tmp_path), 2.0))
    assert decoded == ["plain.wav"]


def test_another_file_of_the_same_name_is_decoded(corpus, tmp_path):
    kept, path = store(tmp_path / "kept"), tmp_path / "one.flac"
    (tmp_path / "manifest.csv").write_text("path,label,speaker\none.flac,joy,a\n", encoding="utf-8")
    found = []
    for number in range(2):
        soundfile.write(path, recording(number, 0.2), RATE)
        os.utime(path, ns=(number, number))
        found += samples_of(speech(load_corpus("csv", tmp_path), kept))
    assert len(kept.files()) == 2 and not np.array_equal(*found)


@pytest.mark.parametrize("damage", ["cut", "a byte", "empty"])
def test_damage_is_found_and_decoded_anew(corpus, tmp_path, damage):
    expected = samples_of(speech(corpus, store(tmp_path)))
    for _, _, path in store(tmp_path).files():
        content = path.read_bytes()
        flipped = content[:-6] + bytes([content[-6] ^ 1]) + content[-5:]
        path.write_bytes({"cut": content[:-8], "a byte": flipped, "empty": b""}[damage])
    assert_same(samples_of(speech(corpus, store(tmp_path))), expected)
    assert_same(samples_of(speech(corpus, store(tmp_path))), expected)


def test_what_was_not_used_for_longest_makes_room_and_what_is_in_use_does_not(tmp_path):
    """And what a killed process left is deleted."""

    def read(kept, number):
        return kept.read(f"{number:032x}", lambda: np.full(100, number, np.float32), most_samples=1e9, sampling_rate=1)

    def size(kept):
        return sum(size for _, size, _ in kept.files())

    first = store(tmp_path, 1e9)
    for number in range(300):
        assert (read(first, number) == number).all()
    assert size(first) == 300 * 404
    for number, (_, _, path) in enumerate(sorted(first.files(), key=lambda file: file[2].name)):
        os.utime(path, (time.time() - 1000 + number,) * 2)
    left = tmp_path / "00" / f".{299:032x}.f32.abc"
    left.write_bytes(b"part")
    os.utime(left, (0, 0))
    second = store(tmp_path, 100_000)
    read(second, 0)  # in use again
    for number in range(300, 600):
        assert (read(second, number) == number).all()
    names = {path.name for _, _, path in second.files()}
    assert f"{0:032x}.f32" in names and f"{300:032x}.f32" in names  # used by this run
    assert not names & {f"{number:032x}.f32" for number in range(1, 60)} and not left.exists()
    assert 85_000 < size(second) <= 100_000
    assert f"{599:032x}.f32" not in names  # full of what this run uses: nothing makes room for what it reads next
    second.shrink(0)
    assert second.files() == []


def test_a_folder_that_takes_nothing_is_said_once(corpus, tmp_path, monkeypatch, recwarn):
    kept, expected = store(tmp_path), samples_of(speech(corpus, None))

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lascl.data.decoded.os.replace", full)
    data = speech(corpus, kept)
    assert_same(samples_of(data), expected)
    assert_same(samples_of(data), expected)
    said = [str(warning.message) for warning in recwarn if "No space left" in str(warning.message)]
    assert len(said) == 1 and "--decoded_gb 0" in said[0]
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def read_and_delete(folder):
    kept = store(folder)
    for turn in range(20):
        for number in range(10):
            samples = np.full(5000, number, np.float32)
            found = kept.read(f"{number:032x}", samples.copy, most_samples=1e9, sampling_rate=1)
            assert (found == number).all()
            if turn % 4 == 3:
                kept.shrink(100_000)


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="starting them would take seconds")
def test_processes_share_a_folder(tmp_path):
    """They decode, find, and delete beside each other."""
    store(tmp_path)
    readers = [multiprocessing.get_context("fork").Process(target=read_and_delete, args=(tmp_path,)) for _ in range(3)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    assert [reader.exitcode for reader in readers] == [0, 0, 0]


def test_a_run_decodes_each_recording_once(audio_encoders, text_encoder, tmp_path, decoded, capsys):
    lines = ["path,label,speaker"]
    for number in range(12):
        soundfile.write(tmp_path / f"{number}.flac", recording(number, 0.1), RATE)
        lines.append(f"{number}.flac,{('joy', 'fear')[number % 2]},{'abc'[number // 4]}")
    (tmp_path / "manifest.csv").write_text("\n".join(lines), encoding="utf-8")
    command = ["csv", "--data_dir", tmp_path, "--audio_encoder", audio_encoders["wav2vec2-layer"], "--folds", "1"]
    command += [
        "--text_encoder",
        text_encoder,
        "--projection_dim",
        8,
        "--num_train_epochs",
        2,
        "--augmentation",
        "gain",
    ]
    command += ["--global_batch_size", 4, "--num_folds", 3, "--disable_tqdm", "true", "--save_strategy", "no"]
    counts, runs = [], (("kept", 1), ("not kept", 0))
    for name, decoded_gb in runs:
        where = ["--decoded_dir", tmp_path / "audio", "--decoded_gb", decoded_gb, "--output_dir", tmp_path / name]
        decoded.clear()
        said = None
        try:
            train.main([str(part) for part in [*command, *where]])
        except SystemExit as exit:
            said = exit.code
        assert said is None, "decoded_dir is refused"
        counts.append(len(decoded))
    assert counts == [12, 2 * 8 + 3 * 4]  # two epochs of eight; four are tested in each, and in the end
    for name in ("predictions.csv", "log_history.json", "checkpoint/model.safetensors"):
        found = {(tmp_path / run / "fold-1" / name).read_bytes() for run, _ in runs}
        assert len(found) == 1, name

    from lascl.training.views import main

    capsys.readouterr()
    (tmp_path / "views").mkdir()
    where = ["--views_dir", str(tmp_path / "views"), "--decoded_dir", str(tmp_path / "audio")]
    main(where)
    assert "12 decoded recordings, 0.00 GB" in capsys.readouterr().out
    main([*where, "--empty"])
    main(where)
    assert "0 decoded recordings" in capsys.readouterr().out

"""What a frozen encoder made of a view is kept on disk: found by every run, and never found damaged."""

import inspect
import json
import os
import shutil
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch
from transformers import AutoFeatureExtractor

from lascl import LaSCLForAudioClassification, load_corpus, train
from lascl.data import SpeechDataset
from lascl.modeling_lascl import LaSCLModel


def store_of(folder, most_bytes=1e9):
    from lascl.training.views import ViewStore

    return ViewStore(folder, most_bytes)


@pytest.fixture
def heard(monkeypatch) -> list[int]:
    """How many utterances encoders have heard, call by call."""
    counts, encode = [], LaSCLModel.forward
    signature = inspect.signature(encode)

    def counted(self, *args, **kwargs):
        output = encode(self, *args, **kwargs)
        if signature.bind(self, *args, **kwargs).arguments.get("pooled_audio") is None:
            counts.append(len(output.pooled_audio))
        return output

    monkeypatch.setattr(LaSCLModel, "forward", counted)
    return counts


@pytest.fixture(scope="module")
def recipe(audio_encoders, text_encoder, emodb_like):
    fields = {"corpus": "emodb", "data_dir": emodb_like, "allow_partial": "true", "folds": "1", "disable_tqdm": "true"}
    fields |= {"audio_encoder": audio_encoders["wav2vec2-layer"], "text_encoder": text_encoder}
    fields |= {"projection_dim": "8", "num_train_epochs": "1", "max_duration_s": "0.3", "global_batch_size": "35"}
    return [part for name, value in fields.items() for part in (f"--{name}", str(value))]


def run(main, *argv):
    """Fails by an assertion where a field or a command is not known."""
    said = None
    try:
        main([str(part) for part in argv])
    except SystemExit as exit:
        said = exit.code
    assert said is None, f"{argv[:2]} is refused"


OTHER_VARIANTS = "objective=ce,lascl", "learning_rate=1e-3,1e-2"


@pytest.mark.slow
def test_another_run_another_seed_and_a_study_encode_nothing(recipe, tmp_path, heard):
    """Testing included: 70 utterances in a clean view and in one augmented one of each of eight epochs."""
    from lascl import study

    views = [*recipe, "--augmentation", "gain", "--views_dir", tmp_path / "views"]
    run(train.main, "small-corpus", *views, "--audio_layers", "1,2", "--output_dir", tmp_path / "first")
    assert sum(heard) == 70 * 9 + 2 * 8  # two batches by which the time is foretold
    assert len(list((tmp_path / "views").glob("*.npy"))) == 9
    heard.clear()
    run(train.main, "small-corpus", *views, "--audio_layers", "1,2", "--output_dir", tmp_path / "second")
    vary = [part for fields in OTHER_VARIANTS for part in ("--vary", fields)]
    options = ["--audio_layers", "1,2", "--seeds", "43", "--output_dir", tmp_path / "study"]
    run(study.main, "small-corpus", *views, *vary, *options)
    assert sum(heard) == 0
    for name in ("predictions.csv", "checkpoint/model.safetensors", "log_history.json"):
        first, second = ((tmp_path / n / "fold-1" / name).read_bytes() for n in ("first", "second"))
        assert first == second, name
    assert len(list((tmp_path / "study").glob("*/seed-43/fold-1/metrics.json"))) == 4


DAMAGES = ["truncated", "no checksum", "half a checksum", "no data"]


@pytest.mark.parametrize("damage", ["a byte", *(pytest.param(how, marks=pytest.mark.slow) for how in DAMAGES)])
def test_damage_is_found_and_encoded_anew(recipe, kept, tmp_path, heard, damage):
    views = shutil.copytree(kept, tmp_path / "views")
    path = sorted(views.glob("*.npy"))[1]
    content = path.read_bytes()
    about = path.with_suffix(".json")
    if damage == "truncated":
        path.write_bytes(content[:-5])
    elif damage == "a byte":
        path.write_bytes(content[:-5] + bytes([content[-5] ^ 16]) + content[-4:])
    elif damage == "no data":
        path.unlink()
    else:
        about.write_text(about.read_text()[:20]) if damage == "half a checksum" else about.unlink()
    command = [*recipe, "--freeze_audio_encoder", "true", "--augmentation_period", "1"]
    run(train.main, *command, "--views_dir", views, "--output_dir", tmp_path / "run")
    assert sum(heard) == 70
    assert path.read_bytes() == content
    assert json.loads(about.read_text())["size"] == len(content)


@pytest.fixture(scope="module")
def kept(recipe, tmp_path_factory):
    """A clean view and an augmented one, as a run leaves them."""
    folder = tmp_path_factory.mktemp("kept") / "views"
    command = [*recipe, "--freeze_audio_encoder", "true", "--augmentation_period", "1"]
    run(train.main, *command, "--views_dir", folder, "--output_dir", folder.parent / "run")
    return folder


def fill(store, key, rows):
    with store.writing(key, *rows.shape) as write:
        write(list(range(len(rows)))[::-1], torch.as_tensor(rows).flip(0))


def test_rows_come_out_as_they_went_in_and_no_other_is_read(tmp_path, monkeypatch):
    store, rows = store_of(tmp_path), torch.randn(50, 6)
    from lascl.training import views

    monkeypatch.setattr(views, "MAPPED_AT_MOST", 100)  # let go every few rows
    fill(store, "a" * 32, rows)
    block = store.find("a" * 32)
    assert len(block) == 50 and isinstance(block.array, np.memmap)
    for row in (49, 0, 7, 7):
        assert torch.equal(block[row], rows[row])
    assert torch.equal(block[[5, 3, 5]], rows[[5, 3, 5]])
    assert store.find("b" * 32) is None


def test_a_block_that_is_interrupted_is_absent(tmp_path):
    store = store_of(tmp_path)
    with pytest.raises(KeyboardInterrupt), store.writing("a" * 32, 2, 3) as write:
        write([0], torch.zeros(1, 3))
        raise KeyboardInterrupt
    with pytest.raises(RuntimeError, match="1 of 2 rows were encoded"), store.writing("a" * 32, 2, 3) as write:
        write([0], torch.zeros(1, 3))
    assert store.find("a" * 32) is None and not list(tmp_path.iterdir())


def test_what_was_not_used_for_longest_goes_and_stays_readable_to_who_has_it(tmp_path):
    store, rows = store_of(tmp_path, most_bytes=700), torch.randn(10, 6)  # 240 bytes of content, 128 of header
    for number, key in enumerate("abc"):
        fill(store, key * 32, rows + number)
        time.sleep(0.01)
    first = store.find("a" * 32)  # used now
    store.shrink()
    assert [key for _, _, key in store.blocks()] == ["a" * 32]
    store.most_bytes = 0
    store.shrink()
    assert store.blocks() == [] and torch.equal(first[3], rows[3])


def test_who_needs_what_another_process_makes_waits_for_it(tmp_path, recipe, kept, heard):
    """The other holds the lock of the clean view, and has written it by the time it lets go."""
    views = tmp_path / "views"
    shutil.copytree(kept, views)
    other, store = store_of(kept), store_of(views)
    key = sorted(path.stem for path in views.glob("*.npy"))[0]
    lock = store.making(key)
    lock.acquire()
    block = other.find(key)
    store._delete(key)
    command = [*recipe, "--freeze_audio_encoder", "true", "--augmentation_period", "1", "--views_dir", views]
    thread = threading.Thread(target=run, args=(train.main, *command, "--output_dir", tmp_path / "run"))
    thread.start()
    time.sleep(1)
    assert thread.is_alive()  # it has nothing else to wait for
    fill(store, key, block[list(range(len(block)))])
    lock.release()
    thread.join()
    assert sum(heard) == 0 and (tmp_path / "run" / "fold-1" / "metrics.json").is_file()


def test_nothing_is_kept_where_nothing_may_be(recipe, tmp_path, heard):
    command = [
        *recipe,
        "--freeze_audio_encoder",
        "true",
        "--augmentation_period",
        "1",
        "--views_dir",
        tmp_path / "views",
    ]
    run(train.main, *command, "--views_gb", "0", "--output_dir", tmp_path / "run")
    assert sum(heard) == 140 and not (tmp_path / "views").exists()


def test_the_command_says_and_empties_what_is_ours(kept, tmp_path, capsys):
    from lascl.training import views

    folder = shutil.copytree(kept, tmp_path / "views")
    (folder / "notes.txt").write_text("mine")
    for number, process in enumerate(("a process that was killed", "a process that is writing")):
        path = folder / f".{'a' * 32}.npy.{number}"
        path.write_text(process)
    os.utime(path.with_name(f".{'a' * 32}.npy.0"), (1, 1))
    run(views.main, "--views_dir", folder)
    told = capsys.readouterr().out
    assert "2 blocks of views, 0.00 GB." in told and all(path.stem in told for path in kept.glob("*.npy"))
    run(views.main, "--views_dir", folder, "--empty")
    assert "deleted 2 blocks" in capsys.readouterr().out
    assert sorted(path.name for path in folder.iterdir()) == [path.name, "notes.txt"]
    with pytest.raises(SystemExit) as exit:
        views.main(["--views_dir", str(tmp_path / "absent")])
    assert exit.value.code == 2 and "there is no folder" in capsys.readouterr().err


@pytest.mark.parametrize("sizes", [[300], [1, 299], [100, 100, 100]])
def test_statistics_of_parts_are_those_of_the_whole(audio_encoders, text_encoder, sizes):
    options = {"standardise_audio": True, "projection_dim": 8}
    model = LaSCLForAudioClassification.from_encoders(
        audio_encoders["wav2vec2-layer"], text_encoder, ["a", "b"], **options
    ).lascl
    pooled = 50 + torch.randn(300, 16)
    pooled[:, 3] = 7.0
    model.set_pooled_statistics(iter(pooled.split(sizes)))
    mean, std = pooled.double().mean(0), pooled.double().std(0, correction=0)
    std[3] = 1.0
    equal = {"rtol": 0, "atol": 0} if len(sizes) == 1 else {"rtol": 1e-6, "atol": 0}  # of one part, the same bits
    torch.testing.assert_close(model.pooled_mean, mean.float(), **equal)
    torch.testing.assert_close(model.pooled_std, std.float(), **equal)


LARGE = """
import resource, sys, types
from pathlib import Path
import numpy as np
import torch
from lascl.training.pooled import PooledDataset, parts_of
from lascl.training.views import Block

rows, width = 100_000, 3_072
blocks = {}
for number in range(9):
    path = Path(sys.argv[1]) / f"{number}.npy"
    np.lib.format.open_memmap(path, "w+", "<f4", (rows, width)).flush()
    blocks[(1, number - 1) if number else (0, 0)] = Block(path)
speech = types.SimpleNamespace(
    ids=[str(row) for row in range(rows)], labels=[0] * rows, durations_s=[1.0] * rows, label_names=["a"], epoch=0,
    corpora=None, label_masks=None
)
total = sum(float(part.sum()) for part in parts_of(blocks[0, 0], range(rows)))
data = PooledDataset(speech, range(rows), blocks, num_views=2)
order = np.random.default_rng(0).permutation(rows).tolist()
for epoch in range(8):
    speech.epoch = epoch
    for row in order:
        total += float(data[row]["pooled_audio"][1, 0])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, total)
"""


@pytest.mark.proof
def test_a_hundred_thousand_rows_of_nine_views_take_less_than_two_gib(tmp_path):
    """Sparse files, which take no room on the disk; every row of every view is read, in any order."""
    done = subprocess.run([sys.executable, "-c", LARGE, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    peak_gib, total = map(float, done.stdout.split())
    assert peak_gib < 2 and total == 0


def test_each_field_of_a_checkpoint_that_makes_a_view_is_in_its_name_and_no_other(
    audio_encoders, text_encoder, emodb_like
):
    from test_configuration import OTHER_VALUES

    from lascl.training.pooled import view_keys

    model = LaSCLForAudioClassification.from_encoders(audio_encoders["whisper"], text_encoder, ["a", "b"]).lascl
    extractor = AutoFeatureExtractor.from_pretrained(audio_encoders["whisper"])
    corpus = load_corpus("emodb", emodb_like, allow_partial=True)
    views = {"augmentation": "gain", "num_views": 2, "augmentation_period": 1}
    speech = SpeechDataset(corpus, [0, 1], sampling_rate=16_000, max_duration_s=1.0, **views)

    def names():
        return view_keys(model, speech, extractor)

    before, telling = names(), set()
    for field, value in {**OTHER_VALUES, "audio_config": None, "text_config": None}.items():
        owner, name = (model.config, field) if value is not None else (getattr(model.config, field), "hidden_act")
        old = getattr(owner, name, None)
        setattr(owner, name, "relu" if value is None else value)
        found = names()
        assert all(found[view] != before[view] for view in found) or found == before, field
        telling |= {field} if found != before else set()
        setattr(owner, name, old) if old is not None else owner.__dict__.pop(name, None)
    for field, value in (("chunk_length", 7), ("padding_value", 0.5)):
        old = getattr(extractor, field)
        setattr(extractor, field, value)
        telling |= {field} if names() != before else set()
        setattr(extractor, field, old)
    of_whisper = {"audio_window", "audio_level", "pooled_frames", "chunk_length", "padding_value"}
    assert telling == {"audio_config", "audio_layers", "audio_pooling", *of_whisper}


def test_an_encoding_is_announced_with_its_views_time_and_disk(recipe, tmp_path, capsys, monkeypatch):
    """Of 70 utterances a clean view and, in two epochs, an augmented one; of batches of one there are enough."""
    monkeypatch.setattr(train, "write_report", lambda *_: None)
    frozen = [*recipe, "--freeze_audio_encoder", "true", "--augmentation", "gain", "--augmentation_period", "2"]
    frozen += ["--per_device_eval_batch_size", "1", "--views_dir", str(tmp_path / "views")]
    run(train.main, *frozen, "--output_dir", tmp_path / "run")
    (told,) = [line for line in capsys.readouterr().out.splitlines() if "views of" in line] or [""]
    assert "Encoding 210 views of 70 utterances (clean, augmented in 2 epochs): about " in told
    assert f"kept in {tmp_path / 'views'}" in told and "it goes on where it was" in told
    run(train.main, *frozen, "--output_dir", tmp_path / "again")
    assert "views of" not in capsys.readouterr().out


class Killed(Exception):
    pass


@pytest.mark.parametrize("stopped_after", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_a_kill_while_encoding_loses_nothing(recipe, tmp_path, heard, monkeypatch, stopped_after):
    """Of 28 batches of five views, those that were heard are not heard again; the views are those of an undisturbed
    run, bit for bit."""
    monkeypatch.setattr(train, "write_report", lambda *_: None)
    frozen = [*recipe, "--freeze_audio_encoder", "true", "--augmentation", "gain", "--augmentation_period", "1"]
    frozen += ["--per_device_eval_batch_size", "5"]
    straight = [*frozen, "--output_dir", str(tmp_path / "straight"), "--views_dir", str(tmp_path / "straight-views")]
    interrupted = [*frozen, "--output_dir", str(tmp_path / "run"), "--views_dir", str(tmp_path / "views")]
    run(train.main, *straight)
    monkeypatch.setattr("lascl.training.views.NOTED_EVERY_S", 0.0, raising=False)
    heard.clear()
    counted = LaSCLModel.forward

    def killed(self, *args, **kwargs):
        if len(heard) == stopped_after:
            raise Killed
        return counted(self, *args, **kwargs)

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(LaSCLModel, "forward", killed)
        train.main(interrupted)
    heard.clear()
    run(train.main, *interrupted)
    assert sum(heard) == 140 - 5 * stopped_after
    blocks = sorted(path.name for path in (tmp_path / "views").glob("*.npy"))
    assert blocks == sorted(path.name for path in (tmp_path / "straight-views").glob("*.npy")) and len(blocks) == 2
    for name in blocks:
        assert (tmp_path / "views" / name).read_bytes() == (tmp_path / "straight-views" / name).read_bytes()
    assert not list((tmp_path / "views").glob(".*"))

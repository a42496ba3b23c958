"""Workers read and augment where they help, as many as the machine has room for."""

import multiprocessing
import os
import shutil
from collections import namedtuple

import pytest
import torch
from tiny import RATE

from lascl import LaSCLForAudioClassification, LaSCLTrainer, LaSCLTrainingArguments
from lascl.data import SpeechCollator, SpeechDataset


Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine with so many cores and so much shared memory, as `default_workers` sees it."""

    def machine(cores, shared_bytes=2**34, started="fork", quota="max 100000", processes=1):
        from lascl.training import workers

        (tmp_path / "cpu.max").write_text(quota)
        monkeypatch.setattr(workers, "QUOTA", tmp_path / "cpu.max")
        monkeypatch.setattr(workers, "SHARED", tmp_path)
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(cores), raising=False)
        monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(0, 0, shared_bytes))
        monkeypatch.setattr(multiprocessing, "get_start_method", lambda allow_none=False: started)
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))

    return machine


def arguments(folder, **fields):
    return LaSCLTrainingArguments(str(folder), use_cpu=True, report_to="none", disable_tqdm=True, **fields)


@pytest.mark.parametrize(
    "cores, fields, on_cpu, beside_gpu",
    [
        (1, {}, 0, 0),
        (2, {}, 1, 1),
        (4, {}, 1, 3),
        (16, {}, 4, 4),
        (16, {"quota": "200000 100000"}, 1, 1),
        (16, {"quota": "50000 100000"}, 0, 0),
        (16, {"processes": 8}, 1, 1),
        (16, {"shared_bytes": 2**26}, 0, 0),  # a container's
        (16, {"started": "spawn"}, 0, 0),
        (16, {"started": None}, 4, 4),  # nobody has chosen: Linux forks
    ],
)
def test_workers_are_what_the_machine_has(machine, tmp_path, monkeypatch, cores, fields, on_cpu, beside_gpu):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(16), raising=False)
    assert arguments(tmp_path, dataloader_num_workers=0).dataloader_num_workers == 0
    assert LaSCLTrainingArguments.__dataclass_fields__["dataloader_num_workers"].default is None
    from lascl.training.workers import default_workers

    monkeypatch.setattr(multiprocessing, "get_all_start_methods", lambda: ["fork", "spawn"])
    machine(cores, **fields)
    assert (default_workers(has_accelerator=False), default_workers(has_accelerator=True)) == (on_cpu, beside_gpu)
    args = arguments(tmp_path)
    assert args.dataloader_num_workers == on_cpu
    # What is said of workers asks for one.
    assert arguments(tmp_path, dataloader_persistent_workers=True).dataloader_num_workers == max(1, on_cpu)
    assert arguments(tmp_path, dataloader_num_workers=3).dataloader_num_workers == 3


@pytest.fixture
def trainer(audio_encoders, text_encoder, emodb_like, tmp_path):
    """Of a data set that is so many times the miniature corpus."""
    from transformers import AutoFeatureExtractor

    from lascl import load_corpus

    corpus = load_corpus("emodb", emodb_like, allow_partial=True)
    folder = audio_encoders["wav2vec2-layer"]
    names = corpus.features["label"].names
    model = LaSCLForAudioClassification.from_encoders(folder, text_encoder, names, projection_dim=8)
    extractor = AutoFeatureExtractor.from_pretrained(folder)

    def trainer(times, **fields):
        rows = list(range(len(corpus))) * times
        speech = SpeechDataset(corpus, rows, sampling_rate=RATE, max_duration_s=0.1, augmentation="gain", num_views=2)
        return LaSCLTrainer(
            model,
            arguments(tmp_path, **fields),
            train_dataset=speech,
            eval_dataset={"validation": speech},
            data_collator=SpeechCollator(extractor),
            processing_class=extractor,
        )

    return trainer


def workers_of(trainer):
    loaders = trainer.get_train_dataloader(), trainer.get_eval_dataloader("validation")
    return [loader.num_workers for loader in loaders]


def test_few_rows_and_pooled_audio_have_no_workers(machine, trainer):
    assert LaSCLTrainingArguments.__dataclass_fields__["dataloader_num_workers"].default is None
    from lascl.training.pooled import PooledDataset

    machine(16)
    large = trainer(4)
    assert workers_of(trainer(1)) == [0, 0] and workers_of(large) == [4, 4]
    assert workers_of(trainer(1, dataloader_num_workers=2, dataloader_prefetch_factor=3)) == [2, 2]
    blocks = {(view, 0): torch.zeros(280, 4) for view in range(2)}
    large.train_dataset.augmentation_period = 1
    large.train_dataset = PooledDataset(large.train_dataset, range(280), blocks, num_views=2)
    large.eval_dataset = {"validation": large.train_dataset}
    large.args.dataloader_persistent_workers, large.args.dataloader_prefetch_factor = True, 2
    assert workers_of(large) == [0, 0]
    assert large.args.dataloader_num_workers == 4 and large.args.dataloader_persistent_workers

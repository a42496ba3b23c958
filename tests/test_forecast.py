"""What is foretold of an encoding, and of a study, is true to a factor of two.

The clock is the work that is done, a price for each thing, so that it does not matter what else the machine does."""

import inspect
import json
import re
import time

import pytest

import lascl.data.dataset
from lascl import study, train
from lascl.modeling_lascl import LaSCLModel


FOLDS = ("1", "2")


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    """Of one number: seconds of work. An augmentation costs 0.1 s; an encoder 0.05 s a call and 2 s for a second of
    audio, padding included; the heads 0.01 s a call and 1 ms a row, thrice in training."""
    seconds, forward, augment = [1000.0], LaSCLModel.forward, lascl.data.dataset.augment
    signature = inspect.signature(forward)

    def timed_forward(self, *args, **kwargs):
        output = forward(self, *args, **kwargs)
        given, rows = signature.bind(self, *args, **kwargs).arguments, len(output.pooled_audio)
        if given.get("pooled_audio") is not None:
            seconds[0] += (0.01 + 0.001 * rows) * (3 if self.training else 1)
        else:
            seconds[0] += 0.05 + 2 * rows * given["input_values"].shape[1] / 16_000
        return output

    def timed_augment(*args, **kwargs):
        seconds[0] += 0.1
        return augment(*args, **kwargs)

    monkeypatch.setattr(LaSCLModel, "forward", timed_forward)
    monkeypatch.setattr(lascl.data.dataset, "augment", timed_augment)
    for name in ("monotonic", "perf_counter"):
        monkeypatch.setattr(time, name, lambda: seconds[0])
    return seconds


@pytest.fixture(scope="module")
def recipe(audio_encoders, text_encoder, emodb_like) -> list[str]:
    """Seventy utterances, of 0.3 to 0.6 s, in three views."""
    fields = {"corpus": "emodb", "data_dir": emodb_like, "allow_partial": "true", "freeze_audio_encoder": "true"}
    fields |= {
        "audio_encoder": audio_encoders["wav2vec2-layer"],
        "text_encoder": text_encoder,
        "folds": ",".join(FOLDS),
    }
    fields |= {"projection_dim": "8", "num_train_epochs": "3", "global_batch_size": "16", "disable_tqdm": "true"}
    fields |= {"augmentation": "gain", "augmentation_period": "2", "per_device_eval_batch_size": "2"}
    return [part for name, value in fields.items() for part in (f"--{name}", str(value))]


def foretold_s(text: str, pattern: str) -> float:
    """What `in_words` said."""
    found = re.search(pattern.replace("TIME", r"(?:(\d+) h )?(?:(\d+) min|(\d+) s)"), text)
    assert found, f"nothing is foretold: {text[-500:]}"
    hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return 3600 * hours + 60 * minutes + seconds


def test_an_encoding_lasts_as_long_as_is_said_before_it(recipe, clock, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(train, "write_report", lambda *_: None, raising=False)
    train.main([*recipe, "--folds", "1", "--output_dir", str(tmp_path / "run")])
    told_s = foretold_s(capsys.readouterr().out, r"Encoding 210 views of 70 utterances .*: about TIME here")
    spent_s = json.loads((tmp_path / "run" / "fold-1" / "metrics.json").read_text())["encoding_s"]
    assert 150 < spent_s < 400 and spent_s / 2 < told_s < 2 * spent_s


@pytest.mark.slow
def test_a_study_of_a_frozen_encoder_lasts_as_long_as_its_dry_run_says(recipe, clock, tmp_path, capsys):
    command = ["quickstart", *recipe, "--vary", "objective=ce,lascl"]
    study.main([*command, "--dry_run", "--output_dir", str(tmp_path / "study")])
    told_s = foretold_s(capsys.readouterr().out, "Time: about TIME on this machine")
    began_s = clock[0]
    study.main([*command, "--output_dir", str(tmp_path / "study")])
    spent_s = clock[0] - began_s
    assert len(list((tmp_path / "study").glob("*/seed-*/fold-*/metrics.json"))) == 2 * len(FOLDS)
    assert 150 < spent_s < 400 and spent_s / 2 < told_s < 2 * spent_s

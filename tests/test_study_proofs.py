"""Long proofs, run by `make proofs` alone: a study of the demo, killed again and again or shared by two processes, ends
in the same table as an undisturbed one."""

import os
import random
import re
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest


pytestmark = pytest.mark.proof

ROOT = Path(__file__).resolve().parent.parent
VARIANTS, FOLDS, KILLS = ("objective=ce", "objective=lascl"), (1, 2), 10
RUNS = [(variant, fold) for variant in VARIANTS for fold in FOLDS]
STARTED = re.compile(r"^## .*: (\S+), seed 42, fold (\d+)$", re.MULTILINE)


def command(study: Path, *options: str) -> list[str]:
    argv = [sys.executable, str(ROOT / "study.py"), "quickstart", "--vary", "objective=ce,lascl"]
    argv += ["--folds", ",".join(map(str, FOLDS)), "--num_train_epochs", "2", "--use_cpu", "true"]
    return [*argv, "--disable_tqdm", "true", "--output_dir", str(study), *options]


def started(study: Path, log: Path, *options: str) -> psutil.Popen:
    # One thread a process: how many there are decides in which order numbers are summed.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONUNBUFFERED": "1"}
    with open(log, "w", encoding="utf-8") as file:
        return psutil.Popen(command(study, *options), env=environment, stdout=file, stderr=subprocess.STDOUT)


def evidence(study: Path) -> dict[str, bytes]:
    names = ["table.md", "study.json", "figures/confusion_pair.png"]
    names += [f"{variant}/seed-42/results.json" for variant in VARIANTS]
    names += [f"{variant}/seed-42/fold-{fold}/predictions.csv" for variant, fold in RUNS]
    return {name: (study / name).read_bytes() for name in names}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """(the files, how long it took in seconds)"""
    folder, began = tmp_path_factory.mktemp("undisturbed"), time.monotonic()
    assert started(folder / "study", folder / "log").wait() == 0, (folder / "log").read_text()
    assert STARTED.findall((folder / "log").read_text()) == [(variant, str(fold)) for variant, fold in RUNS]
    return evidence(folder / "study"), time.monotonic() - began


def test_a_study_killed_at_ten_random_moments_ends_in_the_same_table(undisturbed, tmp_path):
    expected, duration_s = undisturbed
    rng, killed = random.Random(8), []
    while len(killed) < KILLS:
        process = started(tmp_path / "study", tmp_path / "log")
        try:
            process.wait(rng.uniform(0.05, 0.25) * duration_s)
        except psutil.TimeoutExpired:
            process.kill()
            process.wait()
            done = len(list((tmp_path / "study").glob("*/*/*/metrics.json")))
            killed.append((done, len(STARTED.findall((tmp_path / "log").read_text()))))
        else:
            pytest.fail(f"finished after {len(killed)} kills: {killed}")
    print("\nfolds done, and begun since the last start, at each kill:", killed)
    assert started(tmp_path / "study", tmp_path / "log").wait() == 0, (tmp_path / "log").read_text()
    assert evidence(tmp_path / "study") == expected


def test_two_shards_at_the_same_time_neither_repeat_nor_lose_a_fold(undisturbed, tmp_path):
    expected, _ = undisturbed
    logs = [tmp_path / "log-1", tmp_path / "log-2"]
    shards = [started(tmp_path / "study", log, "--shard", f"{i}/2") for i, log in enumerate(logs, start=1)]
    assert [shard.wait() for shard in shards] == [0, 0], "\n".join(log.read_text() for log in logs)
    trained = [STARTED.findall(log.read_text()) for log in logs]
    print("\ntrained by each:", trained)
    assert sorted(trained[0] + trained[1]) == sorted((variant, str(fold)) for variant, fold in RUNS)
    assert all(trained)
    assert evidence(tmp_path / "study") == expected

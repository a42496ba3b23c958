"""Long proofs, run by `make proofs` alone: the demo, killed again and again, ends as if nothing had happened."""

import os
import random
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from tiny import as_own_corpus

from lascl import load_corpus, make_folds
from lascl.train import main


pytestmark = pytest.mark.proof

ROOT = Path(__file__).resolve().parent.parent
FOLDS, STEPS = (1, 2), 108  # nine epochs of twelve steps in each fold
FILES = [
    "results.json",
    *(f"fold-{fold}/{name}" for fold in FOLDS for name in ("predictions.csv", "log_history.json")),
    *(f"fold-{fold}/checkpoint/model.safetensors" for fold in FOLDS),
]
RUNS = {"epochs": (), "steps": ("--save_strategy", "steps", "--save_steps", "5")}


def demo(run_dir: Path, num_processes: int, *options: str, kill: tuple[int, int, int] | None = None) -> int:
    """The demo's training in processes of its own; `kill` is (fold, step, rank). Returns the exit code."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(num_processes)]
    script = [str(ROOT / "train.py")] if kill is None else [str(ROOT / "tests" / "killed_run.py"), *map(str, kill)]
    command = [sys.executable, *(launcher if num_processes > 1 else []), *script, "--use_cpu", "true"]
    command += ["--folds", ",".join(map(str, FOLDS)), "--output_dir", str(run_dir), "--disable_tqdm", "true", *options]
    # One thread a process: how many there are decides in which order numbers are summed.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(command, env=environment, capture_output=True, cwd=run_dir.parent, check=False).returncode


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    for num_processes in (1, 2):
        assert demo(folder / str(num_processes), num_processes) == 0
    return folder


@pytest.mark.parametrize("truncated", [False, True], ids=["", "newest checkpoint truncated"])
@pytest.mark.parametrize("saving", RUNS)
@pytest.mark.parametrize("num_processes", [1, 2])
def test_a_demo_killed_at_five_random_steps_ends_as_the_undisturbed_one(
    undisturbed, tmp_path, num_processes, saving, truncated
):
    """Four such runs of one process and four of two: twenty kills each."""
    rng = random.Random(f"{num_processes} {saving} {truncated}")
    moments = sorted(rng.sample([(fold, step) for fold in FOLDS for step in range(1, STEPS + 1)], 5))
    run_dir = tmp_path / "run"
    for fold, step in moments:
        killed = demo(run_dir, num_processes, *RUNS[saving], kill=(fold, step, rng.randrange(num_processes)))
        assert killed != 0 and not (run_dir / f"fold-{fold}" / "metrics.json").exists(), (fold, step)
        checkpoints = sorted(run_dir.glob("fold-*/trainer/checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
        if truncated and checkpoints:
            weights = checkpoints[-1] / "model.safetensors"
            os.truncate(weights, weights.stat().st_size // 2)
    assert demo(run_dir, num_processes, *RUNS[saving]) == 0
    for name in FILES:
        assert (run_dir / name).read_bytes() == (undisturbed / str(num_processes) / name).read_bytes(), (name, moments)


@pytest.mark.parametrize("num_processes", [1, 2])
def test_a_demo_killed_at_random_times_ends_as_the_undisturbed_one(undisturbed, tmp_path, num_processes):
    """Whatever it was doing: starting, saving, predicting."""
    rng, run_dir = random.Random(num_processes), tmp_path / "run"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(num_processes)]
    command += [str(ROOT / "train.py"), "--use_cpu", "true", "--folds", "1,2", "--output_dir", str(run_dir)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    for _ in range(5):
        process = psutil.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            process.wait(rng.uniform(10, 50))
        except psutil.TimeoutExpired:
            for victim in (*process.children(recursive=True), process):
                victim.kill()
            process.wait()
    assert demo(run_dir, num_processes) == 0
    for name in FILES:
        assert (run_dir / name).read_bytes() == (undisturbed / str(num_processes) / name).read_bytes(), name


def test_emodb_as_one_s_own_corpus_gives_the_same_predictions(shared, tmp_path):
    """One fold, one epoch, real speech and real weights."""
    corpus = load_corpus("emodb", shared / "corpora" / "emodb")
    manifest = as_own_corpus(corpus, make_folds(corpus), tmp_path)
    encoders = shared / "encoders"
    common = ["--num_train_epochs", "1", "--folds", "1", "--audio_encoder", str(encoders / "whisper-tiny.en")]
    common += ["--text_encoder", str(encoders / "all-MiniLM-L6-v2"), "--disable_tqdm", "true"]
    for name, data_dir in (("emodb", shared / "corpora" / "emodb"), ("csv", manifest)):
        main([name, "--data_dir", str(data_dir), "--output_dir", str(tmp_path / name), *common])
    for name in ("predictions.csv", "log_history.json", "checkpoint/model.safetensors"):
        found, expected = (tmp_path / corpus_name / "fold-1" / name for corpus_name in ("csv", "emodb"))
        assert found.read_bytes() == expected.read_bytes(), name

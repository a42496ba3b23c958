"""The versions that LaSCL promises to work on, each tried.

    python tests/versions.py            checkpoints on five versions of transformers; fast tests on two of them
    python tests/versions.py --write    the same, and its table goes to results/, from where `make readme` takes it
    python tests/versions.py --suite oldest     the whole suite on the oldest versions of all packages (or `newest`)

Each set of versions is a virtual environment under ~/.cache/lascl-versions (or LASCL_VERSIONS) that borrows all other
packages, torch among them, from the one that runs this. Installed once; a set that cannot be installed is an error.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import venv
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from test_first_checkpoints import FIELDS, STORED, fill_from_seed, inputs_of
from tiny import recording
from transformers import Wav2Vec2FeatureExtractor, WhisperFeatureExtractor

from lascl import LaSCLConfig, LaSCLForAudioClassification
from lascl.training.run_directory import environment


ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
from measuring import save_table  # noqa: E402


CACHE = Path(os.environ.get("LASCL_VERSIONS", Path.home() / ".cache" / "lascl-versions"))
# By version of transformers, the oldest first: what differs from the environment that runs this. A checkpoint must load
# on all; the package supports 5.0.0 and newer.
SETS = {
    "4.57.6": {"huggingface_hub": "0.36.2", "tokenizers": "0.22.2"},
    "5.0.0": {
        "huggingface_hub": "1.3.0",
        "tokenizers": "0.22.2",
        "datasets": "4.0.0",
        "accelerate": "1.15.0",
        # datasets 4.0.0 takes no newer ones.
        "dill": "0.3.8",
        "multiprocess": "0.70.16",
        "fsspec": "2025.3.0",
    },
    "5.8.1": {"huggingface_hub": "1.5.0", "tokenizers": "0.22.2"},
    "5.17.0": {"huggingface_hub": "1.33.0", "tokenizers": "0.23.1", "accelerate": "1.15.0"},
    "5.24.0": {"huggingface_hub": "2.4.0", "tokenizers": "0.23.3", "datasets": "5.2.0", "accelerate": "1.15.0"},
}
OLDEST, NEWEST = "5.0.0", "5.24.0"  # of the package
PACKAGES = ("transformers", "huggingface_hub", "datasets", "accelerate", "torch")
# What the package does with transformers, huggingface_hub and datasets, a training and its verification among it, in
# about a minute.
FAST = (
    *("test_versions", "test_first_checkpoints", "test_configuration", "test_recipe", "test_modeling", "test_encoders"),
    *("test_losses", "test_remote_code", "test_hub_loading", "test_verify"),
)
TOLERANCE = 1e-5  # of the largest value of an output, or of 1

# Runs in a process that cannot import lascl: argv are the folder of the checkpoints and the file for what they answer.
STRANGER = """
import sys


class NoLaSCL:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "lascl":
            raise ModuleNotFoundError(f"{name} is not installed here")


sys.meta_path.insert(0, NoLaSCL())

from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import AutoConfig, AutoModel, AutoModelForAudioClassification, pipeline

assert transformers.__version__ == sys.argv[3], transformers.__version__
root, answers = Path(sys.argv[1]), {}
samples = np.load(root / "samples.npy")
for folder in sorted(path for path in root.iterdir() if path.is_dir()):
    inputs = {name: torch.from_numpy(value) for name, value in np.load(folder / "inputs.npz").items()}
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    for loader in (AutoModel, AutoModelForAudioClassification):
        model = loader.from_pretrained(folder, trust_remote_code=True).eval()
        with torch.no_grad():
            output = model(**inputs)
        for name in ("audio_embeds", "pooled_audio", *(["logits"] if loader is not AutoModel else [])):
            answers[f"{folder.name}/{loader.__name__}/{name}"] = output[name].numpy()
    classify = pipeline("audio-classification", model=str(folder), trust_remote_code=True, top_k=None)
    scores = {score["label"]: score["score"] for score in classify(samples)}
    answers[f"{folder.name}/pipeline/scores"] = np.array([scores[label] for label in config.labels])
np.savez(sys.argv[2], **answers)
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write results/benchmarks/versions.json")
    parser.add_argument("--suite", choices=("oldest", "newest"), help="run the whole suite there instead")
    options = parser.parse_args()
    if options.suite:
        raise SystemExit(run_suite(options.suite))
    with tempfile.TemporaryDirectory() as folder:
        expected = write_checkpoints(Path(folder))
        rows = [try_version(name, Path(folder), expected, name in (OLDEST, NEWEST)) for name in SETS]
    show(rows, options.write)
    failed = [row["transformers"] for row in rows if row["failed"]]
    if failed:
        raise SystemExit(f"versions: failed with transformers {', '.join(failed)}; see above.")


def environment_of(name: str) -> Path:
    """The interpreter of a set, installed if it is not there yet."""
    packages = [f"{package}=={wanted}" for package, wanted in {"transformers": name, **SETS[name]}.items()]
    borrowed = [path for path in sys.path if Path(path).name == "site-packages"]
    key = hashlib.sha256(json.dumps([packages, borrowed, sys.version]).encode()).hexdigest()[:10]
    folder = CACHE / f"{name}-{key}"
    python = folder / "bin" / "python"
    if (folder / "installed").exists():
        return python
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, with_pip=False, symlinks=True)
    own = Path(sysconfig.get_path("purelib", "venv", {"base": str(folder), "platbase": str(folder)}))
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(own), *packages]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"versions: {' '.join(packages)} could not be installed:\n{done.stderr[-2000:]}")
    # The package as it is installed here, for its tests; a line of a .pth adds packages, but runs no hooks of theirs.
    for file in Path(sysconfig.get_path("purelib")).glob("*lascl*"):
        (shutil.copytree if file.is_dir() else shutil.copy)(file, own / file.name)
    (own / "borrowed.pth").write_text("\n".join(borrowed) + "\n", encoding="utf-8")
    (folder / "installed").touch()
    return python


def write_checkpoints(root: Path) -> dict[str, np.ndarray]:
    """Checkpoints as the code of today writes them, and the same with the `config.json` of commit e9d9ffa; returns what
    they must answer: what that commit answered, and for the pipeline the softmax of the logits of today's class."""
    samples = recording(seed=5, duration_s=0.4)
    np.save(root / "samples.npy", samples)
    expected = {}
    for family, entry in json.loads(STORED.read_text(encoding="utf-8")).items():
        model = LaSCLForAudioClassification(LaSCLConfig.from_dict(json.loads(json.dumps(entry["config"])))).eval()
        model.load_state_dict(fill_from_seed(entry["shapes"]))
        if family == "whisper":
            extractor = WhisperFeatureExtractor(feature_size=16, chunk_length=2, return_attention_mask=True)
        else:
            extractor = Wav2Vec2FeatureExtractor(return_attention_mask=True)
        with torch.no_grad():
            logits = model(**extractor(samples, sampling_rate=16_000, return_tensors="pt")).logits
        for name in (family, f"{family}-first"):
            model.save_pretrained(root / name)
            extractor.save_pretrained(root / name)
            np.savez(root / name / "inputs.npz", **{key: value.numpy() for key, value in inputs_of(family).items()})
            for loader in ("AutoModel", "AutoModelForAudioClassification"):
                for output in ("audio_embeds", "pooled_audio"):
                    expected[f"{name}/{loader}/{output}"] = np.array(entry["answers"][output])
            expected[f"{name}/AutoModelForAudioClassification/logits"] = np.array(entry["answers"]["logits"])
            expected[f"{name}/pipeline/scores"] = logits[0].double().softmax(-1).numpy()
        (root / f"{family}-first" / "config.json").write_text(json.dumps(entry["config"]), encoding="utf-8")
    return expected


def try_version(name: str, checkpoints: Path, expected: dict[str, np.ndarray], with_tests: bool) -> dict:
    """One row: the largest difference of each kind of checkpoint, what the fast tests said, and whether it failed."""
    python, row = environment_of(name), {"transformers": name, **SETS[name], "failed": False, "differences": {}}
    with tempfile.TemporaryDirectory() as home:
        found = Path(home) / "answers.npz"
        command = [str(python), "-c", STRANGER, str(checkpoints), str(found), name]
        done = subprocess.run(command, cwd=home, env=clean(Path(home)), capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"transformers {name}:\n{done.stderr[-3000:]}", file=sys.stderr)
            return {**row, "failed": True}
        answers = dict(np.load(found))
    assert set(answers) == set(expected)
    for key, value in expected.items():
        difference = float(np.abs(answers[key] - value).max() / max(1, np.abs(value).max()))
        kind = key.partition("-")[0].partition("/")[0]
        row["differences"][kind] = max(difference, row["differences"].get(kind, 0.0))
    row["failed"] = not all(difference <= TOLERANCE for difference in row["differences"].values())
    if with_tests:
        code, row["tests"] = run_tests(python, *(str(ROOT / "tests" / f"{file}.py") for file in FAST))
        row["failed"] |= code != 0
    return row


def clean(home: Path) -> dict[str, str]:
    """The environment of a process without a cache, a network and paths of ours."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    kept.pop("PYTHONPATH", None)
    own = {"HF_HOME": str(home / "hf"), "HF_MODULES_CACHE": str(home / "modules"), "HF_HUB_OFFLINE": "1"}
    return {**kept, **own, "PYTHONSAFEPATH": "1"}


def run_tests(python: Path, *options: str) -> tuple[int, str]:
    """pytest's exit code and last line, by the interpreter of a set; its output is shown if it fails."""
    command = [str(python), "-m", "pytest", "--durations", "0", "-p", "no:cacheprovider", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        print(done.stdout[-6000:], done.stderr[-2000:], file=sys.stderr)
    lines = done.stdout.strip().splitlines() or ["nothing was said"]
    return done.returncode, lines[-1].strip("= ")


def run_suite(which: str) -> int:
    """Runs all tests on the oldest or newest set and keeps the last line in `results/suite-WHICH.txt`."""
    python = environment_of(OLDEST if which == "oldest" else NEWEST)
    told = f"import importlib.metadata as m; print(', '.join(f'{{p}} {{m.version(p)}}' for p in {PACKAGES}))"
    versions = subprocess.run([str(python), "-c", told], capture_output=True, text=True, check=True).stdout.strip()
    code, last = run_tests(python)
    found = f"{versions}, python {sys.version.split()[0]}\ncommit {environment()['commit']}\n{last}\n"
    (ROOT / "results" / f"suite-{which}.txt").write_text(found, encoding="utf-8")
    print(found, end="")
    return code


def show(rows: list[dict], write: bool):
    """Prints the table, and writes it where asked."""
    kinds = list(dict.fromkeys(family.partition("-")[0] for family in FIELDS))
    columns = ["transformers", "huggingface_hub", *kinds, "fast tests of the package"]
    cells = []
    for row in rows:
        differences = [f"{row['differences'][kind]:.0e}" if kind in row["differences"] else "failed" for kind in kinds]
        said = row.get("tests", "").partition(" in ")[0]  # without the seconds
        cells.append([row["transformers"], row["huggingface_hub"], *differences, said])
    notes = (
        "Largest difference from the answers that commit e9d9ffa gave, as a share of an output's largest value (or of "
        "1), over both Auto models and the pipeline, a padded batch, and configurations of that commit and of today; "
        f"one torch ({version('torch')}) for all."
    )
    if write:
        title = "Checkpoints loaded where lascl is not installed"
        save_table("versions", title, columns, cells, notes, tried=rows)
    else:
        print("\n".join(" | ".join(row) for row in [columns, *cells]))


if __name__ == "__main__":
    main()

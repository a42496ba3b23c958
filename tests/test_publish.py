"""Publishing a run to a Hub on loopback, loading it where LaSCL is not installed, and a Hub that fails."""

import ast
import contextlib
import hashlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from importlib.metadata import packages_distributions, requires
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import yaml
from huggingface_hub import constants
from loopback_hub import ALWAYS, LoopbackHub
from test_remote_code import STRANGER, TEXT_ENCODER_FILES
from tiny import read_csv

from lascl.hub import publish as publishing
from lascl.hub.publish import PublishingError, fold_for_main, publish, stage_fold
from lascl.hub.space import stage_space
from lascl.train import main as train
from lascl.training.recipe import HUB, parse_recipe


ROOT = Path(__file__).resolve().parents[1]
TOKEN = "hf_MarkerThatMustBeFoundNowhere"
REPO = "org/lascl-tiny"
SPACE = "org/lascl-demo"
CODE = {"configuration_lascl.py", "encoders_lascl.py", "modeling_lascl.py"}
STAGED = CODE | {
    *("config.json", "model.safetensors", "preprocessor_config.json", "README.md", "predictions.csv", "metrics.json"),
    *("figures/confusion.png", "figures/tsne.png", ".lascl-files.json", "handler.py", "requirements.txt"),
    *(f"text_encoder/{name}" for name in TEXT_ENCODER_FILES),
}
# What a publishing asks of the Hub, in this order.
REQUESTS = {
    "head": ("GET", "/revision/"),
    "create": ("POST", "/api/repos/create"),
    "branch": ("POST", "/branch/"),
    "validate": ("POST", "/api/validate-yaml"),
    "preupload": ("POST", "/preupload/"),
    "batch": ("POST", "/objects/batch"),
    "put": ("PUT", "/lfs/"),
    "verify": ("POST", "/verify$"),
    "commit": ("POST", "/commit/"),
}
KINDS = ("closed", "hang", "html", 401, 403, 409, 412, 429, 500, 503)
MATRIX = [(request, kind) for request in REQUESTS for kind in KINDS] + [
    *(("put", "cut"), ("create", "done"), ("branch", "done"), ("commit", "done"))
]
# One of each kind and one at each request: the rest is a proof.
QUICK = [
    *(("create", "closed"), ("head", 401), ("branch", 409), ("head", 500), ("preupload", "hang")),
    *(("commit", "done"), ("commit", 429)),
]
AT_THE_SPACE = [("head", "hang"), ("commit", "done"), ("preupload", 403)]
MORE = [("head", "hang"), ("validate", "html"), ("batch", 403), ("put", "cut"), ("verify", 503), ("commit", 412)]


@contextlib.contextmanager
def connected(hub: LoopbackHub):
    """This process talks to that Hub; the clock between retries runs by itself."""
    clock = SimpleNamespace(now=0.0, waits=[])

    def sleep(seconds):
        clock.now += seconds
        clock.waits.append(seconds)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "ENDPOINT", hub.url)
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        patch.setenv("HF_TOKEN", TOKEN)
        patch.setattr(huggingface_hub.utils._http, "time", SimpleNamespace(sleep=sleep))
        patch.setattr(publishing, "time", SimpleNamespace(sleep=sleep, monotonic=lambda: clock.now))
        patch.setattr(publishing, "TIME_OUT", publishing.httpx.Timeout(0.3))
        patch.setattr(publishing, "PATIENCE_S", 10)
        try:
            yield clock
        finally:
            huggingface_hub.set_client_factory(huggingface_hub.utils._http.default_client_factory)


def lascl_publish(run_dir, *options: str) -> int:
    try:
        publishing.main([str(run_dir), "--hub_model_id", REPO, *options])
    except SystemExit as exit:
        return exit.code
    return 0


def environment(hub: LoopbackHub, home: Path, **more: str) -> dict[str, str]:
    """Of a process of its own that talks to that Hub, with nothing in its cache."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    kept.pop("PYTHONPATH", None)
    own = {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(home / "hf"), "OMP_NUM_THREADS": "1"}
    return {**kept, **own, "PYTHONSAFEPATH": "1", **more}


def contents(folder: Path) -> dict[str, str]:
    """path -> hash of every file of a run, but what is staged."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and ".hub" not in path.parts
    }


@pytest.fixture(scope="module")
def command(emodb_like, audio_encoders, text_encoder, figures):
    return [
        "emodb",
        *("--data_dir", str(emodb_like), "--allow_partial", "true", "--folds", "1,2", "--validation", "speaker"),
        *("--audio_encoder", audio_encoders["whisper"], "--text_encoder", text_encoder),
        *("--num_train_epochs", "2", "--global_batch_size", "16", "--augmentation", "gain", "--disable_tqdm", "true"),
    ]


@pytest.fixture(scope="module")
def published(command, tmp_path_factory):
    """A Hub after `train.py --push_to_hub`, the run, and what was printed."""
    root = tmp_path_factory.mktemp("published")
    printed = io.StringIO()
    with LoopbackHub(root / "hub", token=TOKEN) as hub:
        with connected(hub), contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            train([*command, "--push_to_hub", "true", "--hub_model_id", REPO, "--output_dir", str(root / "run")])
        yield SimpleNamespace(hub=hub, run=root / "run", printed=printed.getvalue())


@pytest.fixture
def run(published, tmp_path):
    """A copy of the finished run, and the content that a Hub ends with, whatever happens."""
    shutil.copytree(published.run, tmp_path / "run", ignore=shutil.ignore_patterns(".hub"))
    expected = {branch: published.hub.content(REPO, branch) for branch in ("fold-1", "fold-2", "main")}
    return SimpleNamespace(dir=tmp_path / "run", expected=expected)


def holds(hub: LoopbackHub) -> dict[str, dict[str, str]]:
    return {branch: hub.content(REPO, branch) for branch in sorted(hub.repositories[REPO].branches)}


def test_a_run_with_push_to_hub_leaves_a_branch_for_each_fold_and_main(published):
    repository = published.hub.repositories[REPO]
    assert set(repository.branches) == {"fold-1", "fold-2", "main"}
    for branch, number in (("fold-1", 1), ("fold-2", 2), ("main", fold_for_main(published.run))):
        assert set(published.hub.content(REPO, branch)) == STAGED | {".gitattributes"}
        made = {"README.md", ".lascl-files.json", "handler.py", "requirements.txt"}
        made |= {"figures/confusion.png", "figures/tsne.png"}
        for name in STAGED - made:
            found = published.hub.read(REPO, branch, name)
            fold_dir = published.run / f"fold-{number}"
            kept = fold_dir / name if name in ("predictions.csv", "metrics.json") else fold_dir / "checkpoint" / name
            assert found == kept.read_bytes(), (branch, name)
        assert f'revision="fold-{number}"' in published.hub.read(REPO, branch, "README.md").decode()
    # All weights arrived in the first commit of their branch; what may follow is the card with the run's results.
    for branch in ("fold-1", "fold-2"):
        first = published.hub.repositories[REPO].history(branch)[-2]
        assert first.message == f"Fold {branch[-1]}" and "model.safetensors" in first.files
    assert len(repository.history("main")) == 2
    assert "not published" not in published.printed and "main of org/lascl-tiny: published." in published.printed


@pytest.mark.slow
def test_publishing_does_not_change_what_is_trained(published, command, tmp_path):
    train([*command, "--output_dir", str(tmp_path / "quiet")])
    found, expected = contents(published.run), contents(tmp_path / "quiet")
    assert found.keys() == expected.keys()
    changed = {name for name in found if found[name] != expected[name]}
    # Times of training and the name of the run, no more.
    assert changed <= {"fold-1/metrics.json", "fold-2/metrics.json", "report.html", "report.md", "results.json"}


def test_publishing_again_makes_no_commit(published, run, capsys):
    before = dict(published.hub.repositories[REPO].branches)
    puts = sum(method == "PUT" for method, *_ in published.hub.requests)
    with connected(published.hub):
        assert publish(published.run, REPO) == []
        assert publish(run.dir, REPO) == []  # a copy, whose files are newer
    assert published.hub.repositories[REPO].branches == before
    assert sum(method == "PUT" for method, *_ in published.hub.requests) == puts
    assert "main of org/lascl-tiny: is there already." in capsys.readouterr().out


# Runs where lascl cannot be imported: argv are the repository, the revisions, the folder of the recordings.
LOADER = (
    STRANGER[: STRANGER.index("from pathlib")]
    + """
import csv

import soundfile
import torch
from huggingface_hub import hf_hub_download
from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoModelForAudioClassification, pipeline

repo, revisions, folder = sys.argv[1], sys.argv[2].split(","), sys.argv[3]
for revision in revisions:
    pinned = {"revision": revision, "trust_remote_code": True}
    with open(hf_hub_download(repo, "predictions.csv", revision=revision), encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    config = AutoConfig.from_pretrained(repo, **pinned)
    extractor = AutoFeatureExtractor.from_pretrained(repo, revision=revision)
    backbone, classifier = (
        auto.from_pretrained(repo, **pinned).eval() for auto in (AutoModel, AutoModelForAudioClassification)
    )
    assert type(classifier).__module__.startswith("transformers_modules."), type(classifier)
    pipe = pipeline("audio-classification", model=repo, top_k=None, **pinned)
    for row in rows:
        samples, rate = soundfile.read(f"{folder}/{row['id']}.wav", dtype="float32")
        inputs = extractor(samples, sampling_rate=rate, return_tensors="pt")
        with torch.no_grad():
            out = backbone(**inputs)
            logits = out.audio_embeds @ out.label_embeds.T / config.contrastive_temperature
            answers = [logits.softmax(-1)[0].tolist(), classifier(**inputs).logits.softmax(-1)[0].tolist()]
        scores = {answer["label"]: answer["score"] for answer in pipe({"raw": samples, "sampling_rate": rate})}
        answers.append([scores[label] for label in config.labels])
        for answer in answers:
            for label, probability in zip(config.labels, answer, strict=True):
                assert abs(probability - float(row[f"probability_{label}"])) < 1e-5, (revision, row["id"], label)
    print(revision, len(rows))
assert not [module for module in sys.modules if module.split(".")[0] == "lascl"]
"""
)


@pytest.mark.slow
def test_each_revision_answers_as_its_predictions_where_lascl_is_not_installed(published, emodb_like, tmp_path):
    command = [sys.executable, "-c", LOADER, REPO, "fold-1,fold-2,main", str(emodb_like)]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment(published.hub, tmp_path), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.split() == ["fold-1", "14", "fold-2", "14", "main", "14"]


@pytest.mark.slow
def test_the_published_cards_code_runs_where_lascl_is_not_installed(run, emodb_like, tmp_path):
    with LoopbackHub(tmp_path / "hub", token=TOKEN) as hub:
        with connected(hub):
            assert lascl_publish(run.dir, "--publish_text_encoder") == 0
        card = hub.read(REPO, "fold-1", "README.md").decode()
        blocks = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
        assert len(blocks) == 2 and f'model="{REPO}", revision="fold-1"' in blocks[0] and "set_labels" in blocks[1]
        shutil.copy(emodb_like / "03a01Fa.wav", tmp_path / "speech.wav")
        (tmp_path / "card.py").write_text("\n".join(blocks))
        own = environment(hub, tmp_path)
        done = subprocess.run(
            [sys.executable, "card.py"], cwd=tmp_path, env=own, capture_output=True, text=True, timeout=300
        )
    assert done.returncode == 0, done.stderr[-4000:]
    answers = [[answer["label"] for answer in eval(line)] for line in done.stdout.splitlines() if line.startswith("[")]
    assert set(answers[0]) <= {"anger", "boredom", "disgust", "fear", "happiness", "neutral", "sadness"}
    assert set(answers[1]) == {"joyful", "furious", "weary"}


def test_the_token_is_found_nowhere(published):
    assert any(with_token for *_, with_token in published.hub.requests)
    assert not any(with_token for method, _, with_token in published.hub.requests if method == "PUT")
    files = [path for folder in (published.run, published.hub.folder) for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 40
    assert [path for path in files if TOKEN.encode() in path.read_bytes()] == []
    assert TOKEN not in published.printed
    assert TOKEN not in "".join(c.message for c in published.hub.repositories[REPO].commits.values())


def check_fault(request: str, kind, run, folder: Path, capfd):
    """Failing for ever: exit code 1, one sentence, nothing lost; once: exit code 0 if waiting helps. Then published
    again: all is there, in one commit a branch."""
    method, path = REQUESTS[request]
    before = contents(run.dir)
    for times in (ALWAYS, 1):
        with LoopbackHub(folder / str(times), token=TOKEN) as hub, connected(hub) as clock:
            headers = {"retry_after": "3"} if kind == 429 else {}
            # Not at the first such request, so that something is there already; a repository is made but once.
            hub.fail(kind, method, path, times=times, after=0 if request == "create" else 1, **headers)
            code = lascl_publish(run.dir)
            printed = capfd.readouterr()
            assert code == expected_code(request, kind, times), printed
            assert TOKEN not in printed.out + printed.err
            if code == 1:
                assert printed.err.count("\n") == 1 and "Traceback" not in printed.err, printed.err
                assert "not published: " in printed.err and "Give the same command again" in printed.err
            if code == 1 and kind in (401, 403):
                assert "hf auth login" in printed.err and clock.waits == []
            if kind == 429:
                assert 3 in clock.waits or 4 in clock.waits  # as the Hub asks; huggingface_hub adds a second
            assert contents(run.dir) == before
            hub.recover()
            assert lascl_publish(run.dir) == 0, capfd.readouterr()
            assert holds(hub) == run.expected
            assert [len(hub.repositories[REPO].history(branch)) for branch in run.expected] == [2, 2, 2]
            capfd.readouterr()


def expected_code(request: str, kind, times: int) -> int:
    if kind in (401, 403):
        return 1
    if kind == "done" or request == "verify":  # it is there already when it is tried again
        return 0
    return 0 if times == 1 else 1


@pytest.mark.parametrize("request_, kind", [*QUICK, *(pytest.param(*fault, marks=pytest.mark.slow) for fault in MORE)])
def test_a_failing_hub_costs_a_sentence(request_, kind, run, tmp_path, capfd):
    check_fault(request_, kind, run, tmp_path, capfd)


@pytest.mark.proof
@pytest.mark.parametrize("request_, kind", MATRIX)
def test_every_fault_at_every_request(request_, kind, run, tmp_path, capfd):
    check_fault(request_, kind, run, tmp_path, capfd)


def test_a_hub_that_is_down(run, tmp_path, capfd):
    hub = LoopbackHub(tmp_path / "hub", token=TOKEN)
    with hub:
        pass
    with connected(hub) as clock:
        assert lascl_publish(run.dir) == 1
    printed = capfd.readouterr()
    assert printed.err.count("\n") == 1 and "the connection to the Hub failed" in printed.err
    assert "fold-1, fold-2, main of org/lascl-tiny not published" in printed.err
    assert clock.waits == [2, 4]  # within the patience of 10 s
    with hub, connected(hub):
        assert lascl_publish(run.dir) == 0
        assert holds(hub) == run.expected


@pytest.mark.slow
def test_training_beside_a_hub_that_fails_ends_well_and_says_how_to_publish(command, published, tmp_path, capfd):
    """The folds are complete; no training is repeated for this test."""
    shutil.copytree(published.run, tmp_path / "run", ignore=shutil.ignore_patterns(".hub"))
    options = [
        "--push_to_hub",
        "true",
        "--hub_model_id",
        REPO,
        "--hub_main",
        "first_fold",
        "--hub_private_repo",
        "true",
    ]
    with LoopbackHub(tmp_path / "hub", token="another") as hub, connected(hub):
        train([*command, *options, "--output_dir", str(tmp_path / "run")])
    error = [line for line in capfd.readouterr().err.splitlines() if "not published" in line]
    expected = f"lascl-publish {tmp_path / 'run'} --hub_model_id {REPO} --hub_private_repo true --hub_main first_fold"
    assert len(error) == 1 and error[0].endswith(expected) and "401" in error[0] and "hf auth login" in error[0]


@pytest.mark.slow
def test_killed_while_it_uploads_and_published_again(run, tmp_path):
    with LoopbackHub(tmp_path / "hub", token=TOKEN) as hub:
        hub.fail("hang", "PUT", "/lfs/", after=1)
        process = subprocess.Popen(
            [sys.executable, "-m", "lascl.hub.publish", str(run.dir), "--hub_model_id", REPO],
            cwd=tmp_path,
            env=environment(hub, tmp_path, HF_TOKEN=TOKEN),
        )
        deadline = time.monotonic() + 120
        while sum(method == "PUT" for method, *_ in list(hub.requests)) < 2:
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert set(hub.repositories[REPO].branches) == {"fold-1", "main"}
        assert len(hub.repositories[REPO].history("fold-1")) == 1  # nothing but what a new repository holds
        hub.recover()
        with connected(hub):
            assert lascl_publish(run.dir) == 0
        assert holds(hub) == run.expected


def test_some_folds_and_what_main_holds(run, tmp_path):
    """Scripted scores of the validation: fold 2 is better at the last epoch, fold 1 at its best."""
    for number, scores in ((1, (0.9, 0.2)), (2, (0.3, 0.4))):
        path = run.dir / f"fold-{number}" / "log_history.json"
        entries = [{"step": step, "epoch": step, "validation_ua": ua} for step, ua in enumerate(scores, start=1)]
        path.write_text(json.dumps(entries))
    assert fold_for_main(run.dir) == fold_for_main(run.dir, "best_validation") == 2
    assert fold_for_main(run.dir, "first_fold") == 1
    recipe = yaml.safe_load((run.dir / "recipe.yaml").read_text())
    (run.dir / "recipe.yaml").write_text(yaml.safe_dump({**recipe, "selection": "best_validation"}))
    assert fold_for_main(run.dir) == 1
    with LoopbackHub(tmp_path / "hub", token=TOKEN) as hub, connected(hub):
        assert publish(run.dir, REPO, [2], private=True, hub_main="first_fold") == ["fold-2", "main"]
        weights = run.dir / "fold-1" / "checkpoint" / "model.safetensors"
        assert hub.read(REPO, "main", "model.safetensors") == weights.read_bytes()
        assert hub.repositories[REPO].private and set(hub.repositories[REPO].branches) == {"fold-2", "main"}
    for number in (1, 2):
        (run.dir / f"fold-{number}" / "log_history.json").write_text("[]")
    assert fold_for_main(run.dir) == 1
    with pytest.raises(ValueError, match="needs a run with validation"):
        fold_for_main(run.dir, "best_validation")
    with pytest.raises(ValueError, match="hub_main must be .*first_fold.*; found 'best_test'"):
        fold_for_main(run.dir, "best_test")
    with pytest.raises(ValueError, match="needs a run that has trained on everything: train.py --hub_main full_data"):
        fold_for_main(run.dir, "full_data")


@pytest.mark.slow
def test_main_may_hold_a_training_on_everything_whose_card_claims_no_score_of_its_own(command, tmp_path, capsys):
    run_dir = tmp_path / "run"
    options = ["--folds", "1", "--validation", "speaker", "--selection", "best_validation", "--hub_main", "full_data"]
    with LoopbackHub(tmp_path / "hub", token=TOKEN) as hub, connected(hub):
        run = [*command, *options, "--output_dir", str(run_dir), "--push_to_hub", "true", "--hub_model_id", REPO]
        train(run)
        weights = (run_dir / "full-data" / "checkpoint" / "model.safetensors").read_bytes()
        assert hub.read(REPO, "main", "model.safetensors") == weights != hub.read(REPO, "fold-1", "model.safetensors")
        card = hub.read(REPO, "main", "README.md").decode()
        assert "no held-out score" in card
        assert "predictions.csv" not in hub.content(REPO, "main") and "predictions.csv" in hub.content(REPO, "fold-1")
        assert sorted(path.name for path in (run_dir / "full-data").iterdir()) == ["checkpoint", "log_history.json"]
        assert capsys.readouterr().out.count("Training on everything: 70 utterances.") == 1
        train(run)
        assert "Training on everything: complete, kept." in capsys.readouterr().out


# ---------------------------------------------------------------------------------- what somebody else put on the Hub


@pytest.fixture
def hub(run, tmp_path):
    """A Hub with the run on it."""
    with LoopbackHub(tmp_path / "hub", token=TOKEN) as hub, connected(hub):
        assert lascl_publish(run.dir) == 0
        yield hub


def put(hub, branch: str, repo: str = REPO, without: tuple[str, ...] = (), **files: bytes):
    """A commit by hand; `__` stands for a dot, `___` for a slash in names."""
    files = {name.replace("___", "/").replace("__", "."): content for name, content in files.items()}
    repository = hub.repositories[repo]
    before = repository.commits[repository.branches[branch]].files
    stored = {name: hub.store(content, large=name.endswith(".bin")) for name, content in files.items()}
    kept = {name: file for name, file in before.items() if name not in without}
    repository.add(branch, {**kept, **stored}, "by hand")


def retrain(run_dir: Path, number: int = 1):
    """Another answer to an utterance, so that the fold has something to publish: other scores among it."""
    path = run_dir / f"fold-{number}" / "predictions.csv"
    lines = path.read_text().splitlines()
    rows = read_csv(path)
    for row in rows[:5]:
        row["prediction"] = row["reference"] if row["prediction"] != row["reference"] else "fear"
    text = [",".join(row.values()) for row in rows]
    path.unlink()  # what is staged is a hard link
    path.write_text("\n".join([lines[0], *text]) + "\n")


STRAYS = {
    "LICENSE": b"MIT\n",
    "handler__py": b"# somebody's own",
    "requirements__txt": b"somebodys-package\n",
    "notebooks___try__ipynb": b"{}",
    "pytorch_model__bin": b"other weights",
}


def name_text_encoder(run_dir: Path, text_encoder: str):
    """Turns a run's checkpoints into such as an older LaSCL saved: their text encoder is not beside them."""
    for config in run_dir.glob("*/checkpoint/config.json"):
        shutil.rmtree(config.parent / "text_encoder")
        config.write_text(json.dumps({**json.loads(config.read_text()), "text_encoder": text_encoder}))


def test_files_of_others_survive_and_only_what_was_recorded_is_deleted(run, hub, text_encoder):
    name_text_encoder(run.dir, text_encoder)
    assert lascl_publish(run.dir, "--publish_text_encoder") == 0
    encoder = {name for name in hub.content(REPO, "fold-1") if name.startswith("text_encoder/")}
    assert "text_encoder/config.json" in encoder
    put(hub, "fold-1", text_encoder___config__json=b"{}", **STRAYS)
    strays = {name.replace("___", "/").replace("__", ".") for name in STRAYS}
    before = hub.content(REPO, "fold-1")
    retrain(run.dir)
    assert lascl_publish(run.dir) == 0
    after = hub.content(REPO, "fold-1")
    assert strays <= after.keys() and all(after[name] == before[name] for name in strays)
    assert after["predictions.csv"] != before["predictions.csv"]
    # LaSCL's own that is of no use any more goes, but not what somebody changed.
    assert {name for name in after if name.startswith("text_encoder/")} == {"text_encoder/config.json"}
    assert not any(name.startswith("text_encoder/") for name in hub.content(REPO, "fold-2"))  # each branch by itself
    assert publish(run.dir, REPO) == []


@pytest.mark.parametrize("record", [None, b"{", b'{"files": 3}', b"[]"])
def test_without_a_record_nothing_is_deleted(run, hub, record):
    assert lascl_publish(run.dir, "--publish_text_encoder") == 0
    before = hub.content(REPO, "fold-1")
    put(hub, "fold-1", without=(".lascl-files.json",), **({".lascl-files__json": record} if record else {}), **STRAYS)
    retrain(run.dir)
    assert lascl_publish(run.dir) == 0
    after = hub.content(REPO, "fold-1")
    assert before.keys() <= after.keys() and {"LICENSE", "notebooks/try.ipynb", "pytorch_model.bin"} <= after.keys()
    assert hub.read(REPO, "fold-1", "handler.py") == b"# somebody's own"
    assert after["predictions.csv"] != before["predictions.csv"]  # a LaSCL model is brought up to date
    assert publish(run.dir, REPO) == []


OTHER_MODEL = {
    "config__json": b'{"model_type": "bert"}',
    "model__safetensors": b"bert's",
    "vocab__txt": b"the",
    "README__md": b"---\nlicense: mit\n---\n# BERT\n\n## Use\n\nAs BERT.\n",
}


def test_another_model_is_refused_and_replaced_on_demand(run, tmp_path, capsys):
    with LoopbackHub(tmp_path / "hub", token=TOKEN) as hub, connected(hub):
        huggingface_hub.HfApi().create_repo(REPO)
        put(hub, "main", **OTHER_MODEL)
        before = hub.content(REPO, "main")
        code = lascl_publish(run.dir)
        printed = capsys.readouterr()
        assert code == 2 and hub.content(REPO, "main") == before, printed
        assert printed.err.count("\n") == 1 and "holds a config.json that is of no LaSCL model" in printed.err
        assert "--replace" in printed.err and "Give the same command again" not in printed.err
        assert lascl_publish(run.dir, "--replace") == 0
        after = hub.content(REPO, "main")
        assert STAGED <= after.keys() and after["vocab.txt"] == before["vocab.txt"]
        for branch, content in run.expected.items():
            assert content.items() <= hub.content(REPO, branch).items()  # the card too is LaSCL's alone
        assert lascl_publish(run.dir) == 0


def test_another_model_is_refused_before_anything_is_trained(command, tmp_path, capsys):
    with LoopbackHub(tmp_path / "hub", token=TOKEN) as hub, connected(hub):
        huggingface_hub.HfApi().create_repo(REPO)
        put(hub, "main", **OTHER_MODEL)
        options = ["--push_to_hub", "true", "--hub_model_id", REPO, "--output_dir", str(tmp_path / "run")]
        code = 0
        try:
            train([*command, "--num_train_epochs", "1", *options])
        except SystemExit as exit:
            code = exit.code
    error = capsys.readouterr().err
    assert code == 2 and "train.py: main of org/lascl-tiny holds a config.json that is of no LaSCL model" in error
    assert not list((tmp_path / "run").glob("fold-*"))


def test_weights_without_a_configuration_are_not_written_over(run, tmp_path, capsys):
    with LoopbackHub(tmp_path / "hub", token=TOKEN) as hub, connected(hub):
        huggingface_hub.HfApi().create_repo(REPO)
        put(hub, "main", model__safetensors=b"somebody's", LICENSE=b"MIT")
        assert lascl_publish(run.dir) == 2
        assert "holds model.safetensors, which LaSCL did not write" in capsys.readouterr().err
        assert hub.read(REPO, "main", "model.safetensors") == b"somebody's"


def test_what_somebody_changed_is_not_written_over_unasked(run, hub, capsys):
    put(hub, "fold-2", model__safetensors=b"trained on")
    retrain(run.dir, 2)
    assert lascl_publish(run.dir) == 2
    error = capsys.readouterr().err
    assert "fold-2 of org/lascl-tiny holds model.safetensors, which is not as LaSCL wrote it" in error
    assert hub.read(REPO, "fold-2", "model.safetensors") == b"trained on"
    assert lascl_publish(run.dir, "--replace") == 0
    weights = run.dir / "fold-2" / "checkpoint" / "model.safetensors"
    assert hub.read(REPO, "fold-2", "model.safetensors") == weights.read_bytes()


def section(card: str, heading: str) -> str:
    return re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", card, re.MULTILINE | re.DOTALL)[1].strip()


def test_what_a_person_wrote_into_the_card_stays(run, hub, capsys):
    before = hub.read(REPO, "fold-1", "README.md").decode()
    edited = before.replace("license: other\nlicense_name: see-the-card\n", "license: mit\n").replace(
        "## Protocol", "## How we use it\n\nFor *birds*.\n\n## Protocol"
    )
    edited = edited.replace("For research on speech emotion recognition", "For zoos") + "\n## Thanks\n\nTo all.\n"
    assert "license: mit" in edited and "For zoos" in edited
    put(hub, "fold-1", README__md=edited.encode())
    capsys.readouterr()
    assert publish(run.dir, REPO) == []  # nothing to do, so nothing is touched
    assert hub.read(REPO, "fold-1", "README.md").decode() == edited
    retrain(run.dir)
    for _ in range(2):
        assert lascl_publish(run.dir) == 0
        after = hub.read(REPO, "fold-1", "README.md").decode()
        assert section(after, "How we use it") == "For *birds*." and section(after, "Thanks") == "To all."
        assert after.index("## Training data") < after.index("## How we use it") < after.index("## Protocol")
        assert "For zoos" in after and "license: mit" in after and "license_name" not in after
        assert section(after, "Results") != section(before, "Results")  # its own, as it wrote it: written anew
        assert (
            yaml.safe_load(after.split("---")[1])["model-index"]
            != yaml.safe_load(before.split("---")[1])["model-index"]
        )
        said = capsys.readouterr().out
        assert "left as somebody else wrote or changed it: README.md (" in said
        assert "license" in said and "## Intended use and limits" in said and "## Results" not in said
    assert publish(run.dir, REPO) == []
    assert lascl_publish(run.dir, "--replace") == 0
    after = hub.read(REPO, "fold-1", "README.md").decode()
    assert "For zoos" not in after and "license: other" in after and section(after, "Thanks") == "To all."


def test_a_card_that_was_there_before_gets_what_it_lacks(run, tmp_path):
    with LoopbackHub(tmp_path / "hub", token=TOKEN) as hub, connected(hub):
        huggingface_hub.HfApi().create_repo(REPO)
        put(hub, "main", README__md=b"---\nlicense: mit\n---\n# Our model\n\n## Contact\n\nUs.\n", LICENSE=b"MIT")
        assert lascl_publish(run.dir) == 0
        for branch in ("fold-1", "main"):
            card = hub.read(REPO, branch, "README.md").decode()
            assert "# Our model" in card and section(card, "Contact") == "Us." and "license: mit" in card
            metadata = yaml.safe_load(card.split("---")[1])
            assert metadata["pipeline_tag"] == "audio-classification" and "model-index" in metadata
            assert "| fold 1 |" in section(card, "Results") and "license_name" not in metadata
            assert hub.read(REPO, branch, "LICENSE") == b"MIT"
        assert publish(run.dir, REPO) == []


@pytest.mark.parametrize("kind", [500, 403, "closed", "hang"])
def test_a_hub_that_fails_while_it_is_read_costs_a_sentence_and_loses_nothing(kind, run, hub, capfd):
    put(hub, "fold-1", **STRAYS)
    retrain(run.dir)
    before = holds(hub)
    capfd.readouterr()
    hub.fail(kind, "GET", "/resolve/", times=ALWAYS)
    assert lascl_publish(run.dir) == 1
    printed = capfd.readouterr()
    assert printed.err.count("\n") == 1 and "not published: " in printed.err and TOKEN not in printed.err
    assert holds(hub) == before
    hub.recover()
    assert lascl_publish(run.dir) == 0
    assert hub.read(REPO, "fold-1", "LICENSE") == b"MIT\n"


def test_killed_after_its_commit_a_publishing_still_knows_what_is_whose(run, hub, capfd):
    put(hub, "fold-1", **STRAYS)
    retrain(run.dir)
    hub.fail("done", "POST", "/commit/")  # the commit is made, nobody hears of it
    hub.fail(403, "GET", "/revision/fold-1", times=ALWAYS, after=1)
    assert lascl_publish(run.dir) == 1
    hub.recover()
    assert publish(run.dir, REPO) == (["main"] if fold_for_main(run.dir) == 1 else [])
    assert hub.read(REPO, "fold-1", "LICENSE") == b"MIT\n"
    assert hub.read(REPO, "fold-1", "handler.py") == b"# somebody's own"


def test_the_text_encoder_is_published_on_demand(run, tmp_path, text_encoder):
    from transformers import AutoModel, AutoTokenizer

    name_text_encoder(run.dir, text_encoder)
    staged = stage_fold(run.dir, 1, REPO)
    assert not (staged / "text_encoder").exists() and text_encoder not in (staged / "config.json").read_text()
    folder = stage_fold(run.dir, 1, REPO, publish_text_encoder=True) / "text_encoder"
    expected = AutoModel.from_pretrained(text_encoder).state_dict()
    found = AutoModel.from_pretrained(folder).state_dict()
    assert found.keys() == expected.keys() and all((found[name] == expected[name]).all() for name in found)
    assert (
        AutoTokenizer.from_pretrained(folder)("sad").input_ids
        == AutoTokenizer.from_pretrained(text_encoder)("sad").input_ids
    )


def test_staging_copies_no_weights_and_changes_no_checkpoint(run):
    before = contents(run.dir)
    folder = stage_fold(run.dir, 1, REPO)
    assert contents(run.dir) == before
    assert (folder / "model.safetensors").samefile(run.dir / "fold-1" / "checkpoint" / "model.safetensors")
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} == STAGED


@pytest.mark.parametrize(
    "options, message",
    [
        (["--folds", "3"], "Fold 3 of RUN is not finished; finished: 1, 2."),
        (["--hub_model_id", "no-owner"], "hub_model_id must be org/name"),
        (["--hub_model_id", "org/na--me"], "hub_model_id must be a repository's name on the Hub"),
    ],
)
def test_what_is_wrong_is_said_without_asking_the_hub(run, capsys, options, message):
    assert lascl_publish(run.dir, *options) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and message.replace("RUN", str(run.dir)) in error


def test_a_folder_without_a_fold_is_no_run(tmp_path, capsys):
    assert lascl_publish(tmp_path) == 2
    assert "has no finished fold" in capsys.readouterr().err


def test_an_unfinished_run_publishes_its_folds_and_leaves_main(run, tmp_path):
    (run.dir / "results.json").unlink()
    with LoopbackHub(tmp_path / "hub", token=TOKEN) as hub, connected(hub):
        assert publish(run.dir, REPO) == ["fold-1", "fold-2"]
        assert set(hub.content(REPO, "main")) == {".gitattributes"}


def test_a_damaged_fold_is_said(run, tmp_path):
    (run.dir / "fold-2" / "predictions.csv").unlink()
    with LoopbackHub(tmp_path / "hub", token=TOKEN) as hub, connected(hub):
        with pytest.raises(PublishingError, match=r"fold-2, main of .* not published: it cannot be put together"):
            publish(run.dir, REPO, hub_main="first_fold")
        assert hub.content(REPO, "fold-1")["model.safetensors"]


def test_publishing_is_no_part_of_a_runs_identity_and_trainer_never_pushes(tmp_path):
    options = ["--push_to_hub", "true", "--hub_model_id", REPO, "--hub_private_repo", "false"]
    options += ["--hub_main", "first_fold", "--publish_text_encoder", "true"]
    recipe, _ = parse_recipe(["emodb", *options])
    assert [getattr(recipe, name) for name in HUB] == [True, REPO, False, "first_fold", True]
    assert recipe.to_dict() == parse_recipe(["emodb"])[0].to_dict()
    args = recipe.training_arguments(tmp_path)
    assert not args.push_to_hub and args.hub_model_id is None and args.hub_private_repo is None


@pytest.mark.parametrize(
    "options, message",
    [
        (["--push_to_hub", "true"], "hub_model_id must be org/name"),
        (["--push_to_hub", "true", "--hub_model_id", "name"], "found 'name'"),
        (["--hub_main", "best_test"], "hub_main must be best_validation or first_fold or full_data; found 'best_test'"),
        (["--hub_main", "best_validation"], "needs validation"),
        (["--hub_strategy", "end"], "hub_strategy is not used"),
        (["--hub_token", TOKEN], "hub_token would be written to files; log in with `hf auth login`"),
    ],
)
def test_options_that_cannot_work_are_refused(options, message):
    with pytest.raises(ValueError) as error:
        parse_recipe(["emodb", *options])
    assert message in str(error.value) and TOKEN not in str(error.value)


# -------------------------------------------------------------------------------------------------------------- Space


def test_a_space_is_published_after_its_model_in_one_commit(run, tmp_path, capsys):
    with LoopbackHub(tmp_path / "hub", token=TOKEN) as hub, connected(hub):
        assert lascl_publish(run.dir, "--space", SPACE, "--hub_private_repo", "true") == 0
        assert f"{REPO} is private: give the Space a secret HF_TOKEN" in capsys.readouterr().out
        assert set(hub.repositories) == {REPO, f"spaces/{SPACE}"}
        space = hub.repositories[f"spaces/{SPACE}"]
        assert space.sdk == "gradio" and space.private
        assert [commit.message for commit in space.history("main")] == [f"A demo of {REPO}", "initial commit"]
        names = hub.content(f"spaces/{SPACE}", "main")
        files = {name: hub.read(f"spaces/{SPACE}", "main", name).decode() for name in names}
        commits = len(space.commits)
        assert publish(run.dir, REPO, space=SPACE) == [] and len(space.commits) == commits
    assert files["app.py"] == (ROOT / "space" / "app.py").read_text()
    assert json.loads(files["space.json"]) == {"model": REPO}
    front_matter = yaml.safe_load(files["README.md"].split("---")[1])
    assert (front_matter["sdk"], front_matter["app_file"], front_matter["models"]) == ("gradio", "app.py", [REPO])
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split() if "==" in line)
    assert front_matter["sdk_version"] == pinned["gradio"] and len(front_matter["short_description"]) <= 60
    code = {name.removeprefix("lascl/") for name in files if name.startswith("lascl/")}
    assert (
        CODE | {"__init__.py", "inference/windows.py", "space/timeline.py", "space/style.css", "space/page.js"} <= code
    )
    assert not [name for name in code if name.startswith(("training", "evaluation", "hub", "tests"))]
    assert all(files[f"lascl/{name}"] == (ROOT / name).read_text() for name in code)
    assert {line.split("==")[0] for line in files["requirements.txt"].split()} > {"torch", "transformers", "soundfile"}
    told = (str(ROOT.parent) + "/", str(run.dir), TOKEN)
    assert not [name for name, text in files.items() if any(secret in text for secret in told)]


def test_a_space_takes_torch_for_a_cpu_from_where_it_is_told(run, tmp_path, capsys):
    """No address is known to LaSCL: whoever publishes names it."""
    url, name = "https://wheels.example/cpu", f"spaces/{SPACE}"
    with LoopbackHub(tmp_path / "hub", token=TOKEN) as hub, connected(hub):
        assert lascl_publish(run.dir, "--space", SPACE) == 0
        lines = hub.read(name, "main", "requirements.txt").decode().splitlines()
        assert any(re.fullmatch(r"torch==[\d.]+", line) for line in lines)
        assert "--torch_index_url" in capsys.readouterr().out  # what comes without it is said
        assert lascl_publish(run.dir, "--space", SPACE, "--torch_index_url", url) == 0
        lines = hub.read(name, "main", "requirements.txt").decode().splitlines()
        assert lines[0] == f"--extra-index-url {url}" and re.fullmatch(r"torch==[\d.]+\+cpu", lines[1])
        assert not any("+" in line for line in lines[2:])
        assert "--torch_index_url" not in capsys.readouterr().out
        assert publish(run.dir, REPO, space=SPACE, torch_index_url=url) == []


@pytest.mark.parametrize(
    "url", ["http://a/cpu", "https://me:secret@a/cpu", "a/cpu", "https://a/cpu\n-r x", "https:///x"]
)
def test_an_index_that_cannot_be_published_is_refused(run, capsys, url):
    assert lascl_publish(run.dir, "--space", SPACE, "--torch_index_url", url) == 2
    error = capsys.readouterr().err
    assert "torch_index_url must be an https address without a password" in error and "secret" not in error


def test_a_space_requires_what_its_sources_import(tmp_path):
    folder = stage_space(tmp_path / "space", SPACE, REPO)
    required = {line.split("==")[0] for line in (folder / "requirements.txt").read_text().split()} | {"gradio"}
    assert any(line.startswith("starlette") for line in requires("gradio"))
    required.add("starlette")  # comes with Gradio
    distributions = packages_distributions()
    for path in folder.rglob("*.py"):
        tree = ast.parse(path.read_text())
        # What is imported within a function is not called by the page.
        for node in [*tree.body, *(inner for outer in tree.body if isinstance(outer, ast.Try) for inner in outer.body)]:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            for name in {name.split(".")[0] for name in names} - {"lascl", *sys.stdlib_module_names}:
                assert required & {found.lower().replace("_", "-") for found in distributions[name]}, f"{path}: {name}"
    again = stage_space(folder, SPACE, "org/another")
    assert json.loads((again / "space.json").read_text()) == {"model": "org/another"}


def test_a_space_keeps_what_others_put_there_and_an_app_of_theirs_is_refused(run, hub, capsys):
    assert lascl_publish(run.dir, "--space", SPACE) == 0
    name = f"spaces/{SPACE}"
    card = hub.read(name, "main", "README.md").decode()
    put(hub, "main", name, README__md=(card + "\n## Ours\n\nTea.\n").encode(), examples___a__txt=b"hello")
    before = hub.content(name, "main")
    assert lascl_publish(run.dir, "--space", SPACE) == 0 and hub.content(name, "main") == before
    put(hub, "main", name, **{"lascl___old__py": b"x"}, space__json=b'{"model": "org/other"}')
    capsys.readouterr()
    assert lascl_publish(run.dir, "--space", SPACE) == 2
    assert f"the Space {SPACE} holds space.json, which is not as LaSCL wrote it" in capsys.readouterr().err
    assert lascl_publish(run.dir, "--space", SPACE, "--replace") == 0
    assert {"examples/a.txt", "lascl/old.py"} <= hub.content(name, "main").keys()
    assert b"Tea." in hub.read(name, "main", "README.md")
    huggingface_hub.HfApi().create_repo("org/theirs", repo_type="space", space_sdk="gradio")
    put(hub, "main", "spaces/org/theirs", app__py=b"print()")
    assert lascl_publish(run.dir, "--space", "org/theirs") == 2
    assert "the Space org/theirs has an app.py that is not LaSCL's" in capsys.readouterr().err
    assert hub.read("spaces/org/theirs", "main", "app.py") == b"print()"


@pytest.mark.parametrize(
    "request_, kind",
    [("create", 500), *(pytest.param(*fault, marks=pytest.mark.slow) for fault in AT_THE_SPACE)],
)
def test_a_hub_that_fails_at_the_space_costs_a_sentence(request_, kind, run, tmp_path, capfd):
    method, path = REQUESTS[request_]
    with LoopbackHub(tmp_path / "hub", token=TOKEN) as hub, connected(hub):
        assert lascl_publish(run.dir) == 0
        capfd.readouterr()
        hub.fail(kind, method, path if request_ == "create" else f"/api/spaces/.*{path}", times=ALWAYS)
        code = lascl_publish(run.dir, "--space", SPACE)
        printed = capfd.readouterr()
        assert TOKEN not in printed.out + printed.err
        if kind == "done":  # the commit is there when it is tried again
            assert code == 0
        else:
            assert code == 1 and printed.err.count("\n") == 1, printed.err
            assert f"the Space {SPACE} not published: " in printed.err and "Give the same command again" in printed.err
        hub.recover()
        assert lascl_publish(run.dir, "--space", SPACE) == 0
        assert len(hub.repositories[f"spaces/{SPACE}"].history("main")) == 2
        assert holds(hub) == run.expected


def test_a_space_waits_for_the_end_of_the_run_and_wants_a_name(run, tmp_path, capsys):
    assert lascl_publish(run.dir, "--space", "no-owner") == 2
    assert "space must be org/name" in capsys.readouterr().err
    (run.dir / "results.json").unlink()
    with LoopbackHub(tmp_path / "hub", token=TOKEN) as hub, connected(hub):
        assert publish(run.dir, REPO, space=SPACE) == ["fold-1", "fold-2"]
        assert set(hub.repositories) == {REPO}
    assert "waits for the end of the run, and so does the Space." in capsys.readouterr().out


@pytest.mark.slow
def test_a_published_space_answers_from_an_empty_folder(run, emodb_like, tmp_path):
    """What the Hub does: fetches the Space, starts `app.py`, which fetches the model."""
    pytest.importorskip("gradio", reason='needs Gradio (pip install "lascl[space]")')
    row = read_csv(run.dir / f"fold-{fold_for_main(run.dir)}" / "predictions.csv")[0]
    labels = [name.removeprefix("probability_") for name in row if re.fullmatch("probability_(?!classifier_).*", name)]
    with LoopbackHub(tmp_path / "hub", token=TOKEN) as hub:
        with connected(hub):
            assert lascl_publish(run.dir, "--publish_text_encoder", "--space", SPACE) == 0
        own = environment(hub, tmp_path)
        fetch = f"import huggingface_hub as hub; hub.snapshot_download({SPACE!r}, repo_type='space', local_dir='space')"
        subprocess.run([sys.executable, "-c", fetch], cwd=tmp_path, env=own, check=True, timeout=120)
        del own["PYTHONSAFEPATH"]  # the Hub runs `python app.py`
        own["PYTHONDONTWRITEBYTECODE"] = ""
        with open(tmp_path / "stderr.txt", "w") as errors:
            command, pipe = [sys.executable, "app.py"], subprocess.PIPE
            process = subprocess.Popen(command, cwd=tmp_path / "space", env=own, stdout=pipe, stderr=errors, text=True)
        try:
            line = process.stdout.readline()
            assert line.startswith("Listening at "), (tmp_path / "stderr.txt").read_text()[-4000:]
            from gradio_client import Client, handle_file

            client = Client(line.split()[-1], verbose=False)
            heard = handle_file(str(emodb_like / f"{row['id']}.wav"))
            found = client.predict(heard, "", "", api_name="/recognise")
            own_words = client.predict(heard, "joyful, weary", "", api_name="/recognise")
        finally:
            process.kill()
            process.wait()
    expected = {label: float(row[f"probability_{label}"]) for label in labels}
    assert found["probabilities"] == pytest.approx(expected, abs=1e-5)
    assert set(own_words["probabilities"]) == {"joyful", "weary"} == set(own_words["untrained"])
    # Python leaves these beside what it imports: it was the Space's own copy.
    assert list((tmp_path / "space" / "lascl" / "__pycache__").glob("modeling_lascl.*.pyc"))


# ------------------------------------------------------------------------------------------------------------- proofs


@pytest.mark.proof
def test_two_ranks_upload_once(command, tmp_path):
    with LoopbackHub(tmp_path / "hub", token=TOKEN) as hub:
        options = ["--use_cpu", "true", "--push_to_hub", "true", "--hub_model_id", REPO]
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        done = subprocess.run(
            [*launcher, str(ROOT / "train.py"), *command, *options, "--output_dir", str(tmp_path / "run")],
            cwd=tmp_path,
            env=environment(hub, tmp_path, HF_TOKEN=TOKEN),
            capture_output=True,
            text=True,
            timeout=900,
        )
        assert done.returncode == 0, done.stderr[-4000:]
        assert set(hub.repositories[REPO].branches) == {"fold-1", "fold-2", "main"}
        puts = [path for method, path, _ in hub.requests if method == "PUT"]
        assert len(puts) == len(set(puts))
        assert sum(path.endswith("/commit/fold-1") for _, path, _ in hub.requests) <= 2


@pytest.mark.proof
def test_a_model_of_wavlm_larges_size_is_published_and_loaded(run, tmp_path, capsys):
    """1.2 GB: neither process may hold the weights twice."""
    import torch
    from transformers import BertConfig, Wav2Vec2FeatureExtractor, WavLMConfig

    from lascl import LaSCLConfig, LaSCLForAudioClassification

    large = WavLMConfig(
        hidden_size=1024,
        num_hidden_layers=24,
        num_attention_heads=16,
        intermediate_size=4096,
        feat_extract_norm="layer",
        do_stable_layer_norm=True,
        conv_bias=False,
    )
    emotions = ("anger", "boredom", "disgust", "fear", "happiness", "neutral", "sadness")  # those of the predictions
    model = LaSCLForAudioClassification(
        LaSCLConfig(audio_config=large, text_config=BertConfig(), id2label=dict(enumerate(emotions)))
    )
    with torch.no_grad():
        model.lascl.label_features.normal_()
    checkpoint = run.dir / "fold-1" / "checkpoint"
    (checkpoint / "model.safetensors").unlink()
    model.save_pretrained(checkpoint)
    Wav2Vec2FeatureExtractor(return_attention_mask=True).save_pretrained(checkpoint)
    size = (checkpoint / "model.safetensors").stat().st_size
    assert size > 1.2e9
    del model
    load = (
        "import torch; from transformers import AutoModelForAudioClassification as Auto\n"
        f"model = Auto.from_pretrained({REPO!r}, revision='fold-1', trust_remote_code=True).eval()\n"
        "with torch.no_grad(): print(model(torch.zeros(1, 16000)).logits.shape)"
    )
    publish_command = ["-m", "lascl.hub.publish", str(run.dir), "--hub_model_id", REPO, "--folds", "1"]
    peaks = {}
    with LoopbackHub(tmp_path / "hub", token=TOKEN) as hub:
        for name, words in (("publish", publish_command), ("load", ["-c", load])):
            begun = time.monotonic()
            measured = [sys.executable, "-c", MEASURED, *words]
            done = subprocess.run(
                measured, cwd=tmp_path, env=environment(hub, tmp_path, HF_TOKEN=TOKEN), capture_output=True, text=True
            )
            assert done.returncode == 0, done.stderr[-4000:]
            peaks[name] = int(done.stdout.split()[-1]) * 1024
            with capsys.disabled():
                print(f"\n{name}: {time.monotonic() - begun:.0f} s, at most {peaks[name] / 1e9:.2f} GB")
    assert peaks["publish"] < 1.2e9 and peaks["load"] < size + 1.5e9


# Runs Python with the arguments, and prints the most memory it held, in KiB.
MEASURED = """
import resource, subprocess, sys

subprocess.run([sys.executable, *sys.argv[1:]], check=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""

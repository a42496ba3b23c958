"""README and docs are true: their code runs, their numbers follow from `results/`, what they name exists."""

import json
import re
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from tiny import LABELS
from transformers import AutoFeatureExtractor

from lascl import LaSCLForAudioClassification, load_corpus
from lascl.data.public_corpora import PUBLIC_CORPORA
from lascl.studies.readme import render


ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in PAGES}
MARKED = re.compile(r"<!-- test: (\w+) -->\n```python\n(.*?)```", re.DOTALL)


def code(name: str) -> str:
    """The Python block behind `<!-- test: NAME -->`."""
    blocks = [block for text in TEXTS.values() for found, block in MARKED.findall(text) if found == name]
    assert len(blocks) == 1, f"README and docs have {len(blocks)} blocks named {name}"
    return blocks[0]


def test_every_python_block_is_run_here():
    named = [name for text in TEXTS.values() for name, _ in MARKED.findall(text)]
    assert sum(text.count("```python") for text in TEXTS.values()) == len(named) == len(set(named)) > 8
    assert set(named) == set(re.findall(r'run\("(\w+)"', Path(__file__).read_text(encoding="utf-8")))


# Where the tables are of dozens of runs, whose scores are computed anew.
LONG = {"README.md", "docs/many-corpora.md", "docs/results.md"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in LONG else name for name in TEXTS]
)
def test_the_results_follow_from_the_result_files(name):
    assert render(TEXTS[name], ROOT / "results") == TEXTS[name], "run `make readme`"


def test_benchmarks_are_shown_with_what_made_them_and_from_committed_code_only(tmp_path):
    (tmp_path / "benchmarks").mkdir()
    path = tmp_path / "benchmarks" / "speed.json"
    versions = {"python": "3.11.7", "torch": "2.13.0", "transformers": "5.23.0", "numpy": "2.4.6"}
    found = {
        "title": "How fast",
        "table": "| a | b |\n|---|---|\n| 1 | 2 |",
        "notes": "Median of 5.",
        "commit": "0123456789abcdef",
        "device": "a machine",
        "threads": 2,
        "versions": versions,
    }
    path.write_text(json.dumps(found))
    text = "before\n<!-- benchmark: speed -->\nstale\n<!-- end of benchmark -->\nafter\n"
    rendered = render(text, tmp_path)
    assert rendered == (
        "before\n<!-- benchmark: speed -->\n\n"
        "**How fast**\n\n"
        "| a | b |\n|---|---|\n| 1 | 2 |\n\n"
        "Median of 5.\n\n"
        "Commit `0123456789` on a machine, 2 threads; torch 2.13.0, transformers 5.23.0, python 3.11.7.\n\n"
        "<!-- end of benchmark -->\nafter\n"
    )
    assert render(rendered, tmp_path) == rendered
    path.write_text(json.dumps({**found, "notes": "", "threads": 1}))
    assert "| 1 | 2 |\n\nCommit `0123456789` on a machine, 1 thread;" in render(text, tmp_path)
    for commit in ("0123456789abcdef-dirty", None):
        path.write_text(json.dumps({**found, "commit": commit}))
        with pytest.raises(ValueError, match=r"speed\.json was made by uncommitted code"):
            render(text, tmp_path)
    with pytest.raises(OSError, match=r"missing\.json"):
        render(text.replace("speed", "missing"), tmp_path)


def test_what_no_gpu_has_measured_says_so(tmp_path):
    block = "<!-- benchmark: {} -->\n{}<!-- end of benchmark -->\n"
    rendered = render(block.format("gpu", "| stale | 0.5 |\n"), tmp_path)
    assert "stale" not in rendered and "Nothing has been measured on a GPU" in rendered
    with pytest.raises(FileNotFoundError):
        render(block.format("attention", ""), tmp_path)


def test_docstrings_become_markdown_with_their_sections(tmp_path, monkeypatch):
    (tmp_path / "told.py").write_text(
        "def tell(name: str, *, times=2) -> str:\n"
        '    """Tells a name.\n\n    Args:\n        name: whose, which\n            may be long.\n'
        '        times: how often.\n\n    Returns:\n        (n,) what was told.\n\n    It ends here.\n    """\n'
    )
    monkeypatch.syspath_prepend(tmp_path)
    text = "before\n<!-- api: told.tell -->\nstale\n<!-- end of api -->\nafter\n"
    rendered = render(text, tmp_path)
    assert rendered == (
        "before\n<!-- api: told.tell -->\n\n### `told.tell`\n\n```text\ntell(name, *, times=2)\n```\n\n"
        "Tells a name.\n\n"
        "**Args**\n\n* `name`: whose, which\n      may be long.\n* `times`: how often.\n\n"
        "**Returns**\n\n(n,) what was told.\n\nIt ends here.\n\n<!-- end of api -->\nafter\n"
    )
    assert render(rendered, tmp_path) == rendered
    with pytest.raises(AttributeError, match="ask"):
        render(text.replace("told.tell", "told.ask"), tmp_path)


@pytest.fixture(scope="module")
def folder(audio_encoders, text_encoder, tmp_path_factory) -> Path:
    """What a user has who reads the pages: a checkpoint, and recordings."""
    folder = tmp_path_factory.mktemp("readme")
    model = LaSCLForAudioClassification.from_encoders(audio_encoders["wav2vec2-layer"], text_encoder, LABELS)
    model.save_pretrained(folder / "checkpoint")
    AutoFeatureExtractor.from_pretrained(audio_encoders["wav2vec2-layer"]).save_pretrained(folder / "checkpoint")
    (folder / "recordings").mkdir()
    noise = 0.1 * np.random.default_rng(0).standard_normal((3, 64_000))
    for name, samples in zip(("speech.wav", "recordings/a.wav"), noise):
        soundfile.write(folder / name, samples[:4000], 16_000)
    soundfile.write(folder / "call.wav", noise[2], 16_000)
    (folder / "recordings" / "b.wav").write_bytes(b"")
    return folder


@pytest.fixture
def replaced(audio_encoders, text_encoder, folder, tmp_path):
    """Names that need the Hub, and sizes that need hours, replaced by small ones."""
    return {
        "microsoft/wavlm-large": audio_encoders["wavlm-layer"],
        "FacebookAI/roberta-large": text_encoder,
        'output_dir="out", num_train_epochs=30': f'output_dir="{tmp_path}/out", max_steps=1, global_batch_size=4',
        'load_corpus("synthetic")': 'load_corpus("synthetic", num_speakers=5, utterances_per_speaker=4)',
        "runs/demo/fold-1/checkpoint": f"{folder}/checkpoint",
        '"speech.wav"': f'"{folder}/speech.wav"',
        '"call.wav"': f'"{folder}/call.wav"',
        '"recordings"': f'"{folder}/recordings"',
        "max_duration_s=10": "max_duration_s=0.2",
        '"max_duration_s": 10': '"max_duration_s": 0.2',
        'output_dir="out",\n': f'output_dir="{tmp_path}/own", global_batch_size=4,\n',
    }


def run(name, replaced, capsys, namespace=None):
    text = code(name)
    for before, after in replaced.items():
        text = text.replace(before, after)
    namespace = {} if namespace is None else namespace
    exec(compile(text, f"docs: {name}", "exec"), namespace)
    return namespace, capsys.readouterr().out


def test_using_a_checkpoint(replaced, capsys):
    namespace, printed = run("checkpoint", replaced, capsys)
    assert all(word in printed for word in (*LABELS, "joyful", "furious", "weary"))
    assert namespace["classifier"].model.config.labels == ["joyful", "furious", "weary"]


def test_words_of_ones_own(replaced, capsys):
    namespace, printed = run("words", replaced, capsys)
    assert "torch.Size([3, 256])" in printed and namespace["model"].config.labels == ["joyful", "furious", "weary"]


def test_embeddings_without_lascl(replaced, capsys):
    namespace, printed = run("embeddings", replaced, capsys)
    assert "lascl" not in code("embeddings") and printed.startswith("tensor([[")
    assert namespace["audio"].shape == (1, 256) and abs(namespace["audio"].norm().item() - 1) < 1e-5


def test_labelling_files(replaced, capsys):
    _, printed = run("predict_files", replaced, capsys)
    answered, failed = printed.splitlines()
    assert answered.split()[1] in LABELS and failed.endswith("b.wav: is an empty file, of 0 bytes.")


def test_segments_of_a_call(replaced, capsys):
    _, printed = run("segments", {**replaced, "abstain_below=0.3": "abstain_below=0.0"}, capsys)
    lines = [line.split() for line in printed.splitlines()]
    assert (lines[0][0], lines[-1][2]) == ("0.0", "4.0") and all(line[4] in LABELS for line in lines)
    _, printed = run("segments", {**replaced, "abstain_below=0.3": "abstain_below=1.0"}, capsys)
    assert printed.split()[-1] == "?"


def test_turns_of_a_call(replaced, folder, capsys):
    """Of 4 s; the last is beyond its end."""
    turns = [(0.0, 1.5, "SPEAKER_00"), (1.25, 2.0, "SPEAKER_01"), (4.5, 1.0, "SPEAKER_00")]
    lines = [f"SPEAKER call 1 {start} {length} <NA> <NA> {who} <NA> <NA>\n" for start, length, who in turns]
    (folder / "call.rttm").write_text("".join(lines))
    _, printed = run("turns", {**replaced, '"call.rttm"': repr(str(folder / "call.rttm"))}, capsys)
    rows = [line.split(maxsplit=5) for line in printed.splitlines()]
    assert [(row[0], row[2], row[4]) for row in rows] == [
        ("0.0", "1.5", "SPEAKER_00"),
        ("1.2", "3.2", "SPEAKER_01"),
        ("4.5", "5.5", "SPEAKER_00"),
    ]
    assert [row[5] in LABELS for row in rows] == [True, True, False]
    assert rows[2][5].endswith("call.wav, 4.500 to 5.500 s: the recording ends before that.")


def test_fewer_bits(replaced, capsys):
    namespace, _ = run("half_the_bits", replaced, capsys)
    assert next(namespace["model"].parameters()).dtype == namespace["torch"].bfloat16


def test_the_losses_alone(replaced, capsys):
    namespace, printed = run("losses", replaced, capsys)
    assert all(name in printed for name in ("contrastive", "divergence", "cross_entropy"))
    assert all(namespace[name].grad.abs().sum() > 0 for name in ("audio_embeds", "label_embeds", "class_logits"))


def test_the_loss_of_votes(replaced, capsys):
    namespace, printed = run("votes", replaced, capsys)
    assert printed.strip() == "0.0" and namespace["audio_embeds"].grad[:3].abs().sum() > 0


def test_a_table_of_several_corpora(replaced, folder, capsys):
    for number, (name, labels) in enumerate((("ours", ("ang", "neu")), ("calls", ("anger", "annoyed")))):
        (folder / "corpora" / name).mkdir(parents=True)
        rows = [(f"{speaker}{label}.wav", label, speaker) for speaker in "12" for label in labels]
        for seed, (path, *_) in enumerate(rows):
            samples = np.random.default_rng([number, seed]).standard_normal(1600)
            soundfile.write(folder / "corpora" / name / path, 0.1 * samples, 16_000)
        lines = [",".join(row) for row in (("path", "label", "speaker"), *rows)]
        (folder / "corpora" / name / "manifest.csv").write_text("\n".join(lines))
    _, printed = run("many_corpora", {**replaced, '"corpora/': f'"{folder}/corpora/'}, capsys)
    assert printed.splitlines() == [
        "calls/1anger calls/1 ['anger', 'annoyed', 'neutral']",
        "calls is tested; learned are anger, neutral",
        "ours is tested; learned are anger, annoyed",
    ]


def test_scores_alone(replaced, capsys):
    namespace, _ = run("scores", replaced, capsys)
    assert namespace["scores"]["wa"] == pytest.approx(2 / 3) and namespace["scores"]["ua"] == 0.75


def test_scores_as_an_evaluate_module(replaced, capsys):
    _, printed = run("evaluate_module", replaced, capsys)
    assert "0.5" in printed


def test_listening_to_a_microphone(replaced, capsys, monkeypatch):
    """A stand-in for sounddevice, which gives three seconds of noise and is then pulled out."""
    noise = np.random.default_rng(0).standard_normal((12, 4000, 1)).astype(np.float32)

    class InputStream:
        def __init__(self, samplerate, *, channels, dtype):
            assert (samplerate, channels, dtype) == (16_000, 1, "float32")
            self.left = list(noise)

        def __enter__(self):
            return self

        def __exit__(self, *exception):
            pass

        def read(self, frames):
            if not self.left:
                raise OSError("pulled out")
            block = self.left.pop(0)
            assert len(block) == frames
            return block, False

    monkeypatch.setitem(sys.modules, "sounddevice", types.SimpleNamespace(InputStream=InputStream))
    with pytest.raises(OSError, match="pulled out"):
        run("microphone", replaced, capsys)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["2.0", "2.5", "3.0"]
    assert all(line.split()[2] in LABELS for line in lines)


@pytest.mark.parametrize("family", ["wavlm-layer", "whisper"])
def test_training_from_python(family, audio_encoders, replaced, capsys):
    """As it stands there, of Whisper too, whose window is then no longer than a clip; the same each time."""
    pytest.importorskip("espeakng_loader")
    replaced |= {"microsoft/wavlm-large": audio_encoders[family], "window_s=10": "window_s=1"}
    replaced |= {"chunk_length=10": "chunk_length=1"}
    scores = []
    for _ in range(2):
        torch.rand(1)  # what happened before in the process is no part of it
        namespace, printed = run("trainer", replaced, capsys)
        assert "eval_ua" in printed and namespace["trainer"].state.global_step == 1
        scores.append(namespace["trainer"].evaluate()["eval_loss"])
    assert scores[0] == scores[1]
    if family == "whisper":
        assert namespace["model"].config.audio_config.max_source_positions == 50
    assert len(load_corpus("synthetic", num_speakers=5, utterances_per_speaker=4)) == 20


def test_public_boards(replaced, folder, capsys, monkeypatch):
    """Stand-ins for the packages, which ask as much as they do; what theirs do is in test_boards.py."""
    replaced |= {"runs/mine/fold-1/checkpoint": f"{folder}/checkpoint"}
    samples, rate = soundfile.read(folder / "speech.wav", dtype="float32")
    clip = {"array": samples, "sampling_rate": rate}

    def evaluate(model, tasks):
        assert tasks == ["CREMA_D", "RavdessZeroshot"]
        texts, audio = model.encode([{"text": ["sad", "calm"]}]), model.encode([{"audio": [clip]}])
        return model.similarity(audio, texts)

    monkeypatch.setitem(sys.modules, "mteb", types.SimpleNamespace(evaluate=evaluate, get_tasks=list))
    namespace, _ = run("maeb", replaced, capsys)
    assert namespace["results"].shape == (1, 2)

    def run_eval(cfg, shards, device, out_dir):
        return open_models.ADAPTERS[cfg["adapter"]](cfg, device).predict([samples])

    open_models = types.SimpleNamespace(ADAPTERS={}, run_eval=run_eval)
    monkeypatch.setitem(sys.modules, "oruk_bench.adapters", types.SimpleNamespace(open_models=open_models))
    namespace, _ = run("oruk", replaced, capsys)
    assert namespace["scores"][0] in range(7)


def test_parts_of_ones_own(replaced, capsys):
    """An augmentation, a loss term that is logged, and training that the validation ends."""
    pytest.importorskip("espeakng_loader")
    namespace, _ = run("trainer", replaced, capsys)
    namespace, _ = run("own_parts", replaced, capsys, namespace)
    trainer = namespace["trainer"]
    history = trainer.state.log_history
    assert all(entry["spread"] > 0 for entry in history if "loss" in entry)
    epochs = [entry["eval_validation_ua"] for entry in history if "eval_validation_ua" in entry]
    assert len(epochs) < 50 and max(epochs[-3:]) <= max(epochs[:-3]) == trainer.state.best_metric
    assert trainer.train_dataset.num_views == 2


@pytest.mark.parametrize("name", TEXTS)
def test_targets_files_and_folders_that_it_names_exist(name):
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`?make (\w+)`?", " ".join(re.findall(r"`[^`]*`|^make .*$", TEXTS[name], re.MULTILINE))):
        assert f"\n{target}:" in makefile or f"\n{target} " in makefile, target
    for file in re.findall(r"`([\w/]+/[\w/]*\.(?:py|md|yaml|yml|cfg|txt))`", TEXTS[name]):
        assert (ROOT / file).exists() or file.startswith("RUN/"), file
    for folder in re.findall(r"`((?:recipes|benchmarks|results|examples|docs|space|hub|data)/[\w/]*)`", TEXTS[name]):
        assert (ROOT / folder).exists(), folder


def test_the_readme_tells_what_is_in_the_house():
    told = re.findall(r"`([\w./]+)`", "\n".join(re.findall(r"^\| (`[^|]*) \|", TEXTS["README.md"], re.MULTILINE)))
    modules = {path.name for path in ROOT.glob("*.py")} - {"__init__.py"}
    assert modules <= set(told)
    for name in told:
        assert (ROOT / name).is_dir() if name.endswith("/") else (ROOT / name).is_file(), name
    visible = {path for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(("_", "."))}
    rooms = {f"{path.name}/" for path in visible if (path / "__init__.py").exists()}
    assert rooms <= set(told)


def test_the_docs_list_every_corpus_with_its_count_and_licence():
    lines = [line for line in TEXTS["docs/corpora.md"].splitlines() if line.startswith("| `")]
    for corpus in PUBLIC_CORPORA.values():
        (line,) = [line for line in lines if line.startswith(f"| `{corpus.name}` |")]
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert cells[1:5] == [corpus.title, corpus.language, str(corpus.num_speakers), str(sum(corpus.counts.values()))]
        assert cells[6].startswith(f"{corpus.license}: <{corpus.url}>")
    assert any(line.startswith("| `iemocap` |") and "| 5531 (four classes) |" in line for line in lines)

"""The README is true: its code runs, its numbers follow from `results/`, its commands exist."""

import json
import re
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import LABELS
from transformers import AutoFeatureExtractor

from lascl import LaSCLForAudioClassification, load_corpus
from lascl.data.public_corpora import PUBLIC_CORPORA
from lascl.studies.readme import render


ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def code(name: str) -> str:
    """The Python block behind `<!-- test: NAME -->`."""
    blocks = re.findall(rf"<!-- test: {name} -->\n```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == 1, f"README has {len(blocks)} blocks named {name}"
    return blocks[0]


def test_every_python_block_is_run_here():
    assert len(re.findall("```python", README)) == len(re.findall(r"<!-- test: \w+ -->\n```python", README)) == 3


def test_the_results_follow_from_the_result_files():
    assert render(README, ROOT / "results") == README, "run `make readme`"


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


@pytest.fixture
def replaced(audio_encoders, text_encoder, tmp_path):
    """Names that need the Hub, and sizes that need hours, replaced by small ones."""
    return {
        "microsoft/wavlm-large": audio_encoders["wavlm-layer"],
        "FacebookAI/roberta-large": text_encoder,
        'output_dir="out", num_train_epochs=30': f'output_dir="{tmp_path}/out", max_steps=1, global_batch_size=4',
        'load_corpus("synthetic")': 'load_corpus("synthetic", num_speakers=5, utterances_per_speaker=4)',
        "runs/demo/fold-1/checkpoint": f"{tmp_path}/checkpoint",
        "speech.wav": f"{tmp_path}/speech.wav",
        "max_duration_s=10": "max_duration_s=0.2",
    }


def run(name, replaced, capsys):
    text = code(name)
    for before, after in replaced.items():
        text = text.replace(before, after)
    namespace = {}
    exec(compile(text, f"README: {name}", "exec"), namespace)
    return namespace, capsys.readouterr().out


@pytest.fixture
def checkpoint(audio_encoders, text_encoder, tmp_path):
    model = LaSCLForAudioClassification.from_encoders(audio_encoders["wav2vec2-layer"], text_encoder, LABELS)
    model.save_pretrained(tmp_path / "checkpoint")
    AutoFeatureExtractor.from_pretrained(audio_encoders["wav2vec2-layer"]).save_pretrained(tmp_path / "checkpoint")


def test_using_a_checkpoint(checkpoint, replaced, tmp_path, capsys):
    soundfile.write(tmp_path / "speech.wav", 0.1 * np.random.default_rng(0).standard_normal(4000), 16_000)
    namespace, printed = run("checkpoint", replaced, capsys)
    assert all(label in printed for label in LABELS) and "torch.Size([3, 256])" in printed
    assert namespace["model"].config.labels == ["joyful", "furious", "weary"]


def test_listening_to_a_microphone(checkpoint, replaced, capsys, monkeypatch):
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


def test_training_from_python(replaced, capsys, monkeypatch, tmp_path):
    pytest.importorskip("espeakng_loader")
    namespace, printed = run("trainer", replaced, capsys)
    assert "eval_ua" in printed and namespace["trainer"].state.global_step == 1
    assert len(load_corpus("synthetic", num_speakers=5, utterances_per_speaker=4)) == 20


def test_commands_and_files_that_it_names_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`?make (\w+)`?", README):
        assert f"\n{target}:" in makefile, target
    for name in re.findall(r"`([\w/]+\.(?:py|md|yaml|yml|cfg|txt))`", README):
        assert (ROOT / name).exists() or (ROOT / name).name in ("results.json",), name
    for folder in re.findall(r"^\| `(\w+)/`", README, re.MULTILINE):
        assert (ROOT / folder).is_dir(), folder


def test_the_readme_lists_every_corpus_with_its_count_and_licence():
    lines = [line for line in README.splitlines() if line.startswith("| `")]
    for corpus in PUBLIC_CORPORA.values():
        (line,) = [line for line in lines if line.startswith(f"| `{corpus.name}` |")]
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert cells[1:5] == [corpus.title, corpus.language, str(corpus.num_speakers), str(sum(corpus.counts.values()))]
        assert cells[6].startswith(f"{corpus.license}: <{corpus.url}>")
    assert any(line.startswith("| `iemocap` |") and "| 5531 (four classes) |" in line for line in lines)

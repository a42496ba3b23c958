"""A checkpoint loads where LaSCL is not installed: through the code files saved beside its weights."""

import ast
import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import AUDIO_ENCODERS, LABELS, recording
from transformers import AutoFeatureExtractor, WhisperFeatureExtractor

from lascl import LaSCLForAudioClassification
from lascl import configuration_lascl as configuration
from lascl import encoders_lascl as encoders
from lascl import modeling_lascl as modeling


TEXT_ENCODER_FILES = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
HUB_FILES = [Path(module.__file__) for module in (configuration, encoders, modeling)]
FEW = ["whisper", "wavlm-group"]  # of an encoder of mel frames, and of one of samples
FAMILIES = [pytest.param(family, marks=() if family in FEW else pytest.mark.slow) for family in AUDIO_ENCODERS]

# Runs in a process of its own: argv are the folder of the checkpoints and the file for what they answer.
STRANGER = """
import sys


class NoLaSCL:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "lascl":
            raise ModuleNotFoundError(f"{name} is not installed here")


sys.meta_path.insert(0, NoLaSCL())
try:
    import lascl
except ModuleNotFoundError:
    pass
else:
    raise SystemExit("lascl can be imported: this test would prove nothing")

from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoModelForAudioClassification, pipeline

root, answers = Path(sys.argv[1]), {}
for folder in sorted(path for path in root.iterdir() if path.is_dir()):
    name, samples = folder.name, np.load(root / "samples.npy")
    try:
        AutoModel.from_pretrained(folder)
    except ValueError as error:
        answers[f"{name}/refusal"] = np.array(str(error))
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    inputs = AutoFeatureExtractor.from_pretrained(folder)(samples, sampling_rate=16_000, return_tensors="pt")
    classes = [type(config).__module__]
    for loader in (AutoModel, AutoModelForAudioClassification):
        model = loader.from_pretrained(folder, trust_remote_code=True).eval()
        classes.append(type(model).__module__)
        answers[f"{name}/{loader.__name__}"] = np.array(type(model).__name__)
        with torch.no_grad():
            for output, value in model(**inputs).items():
                answers[f"{name}/{loader.__name__}/{output}"] = value.numpy()
    assert all(module.startswith("transformers_modules.") for module in classes), classes
    classify = pipeline("audio-classification", model=str(folder), trust_remote_code=True, top_k=None)
    alone, *batch = [classify(samples), *classify([samples] * 6, batch_size=6)]  # more utterances than labels
    assert len(batch) == 6 > len(alone) == 4
    for answer in batch:
        assert all(abs(a["score"] - b["score"]) < 1e-5 for a, b in zip(alone, answer, strict=True))
    scores = {score["label"]: score["score"] for score in alone}
    answers[f"{name}/pipeline"] = np.array([scores[label] for label in config.labels])
    answers[f"{name}/labels"] = np.array(config.labels)
assert not [module for module in sys.modules if module.split(".")[0] == "lascl"]
np.savez(sys.argv[2], **answers)
"""


def save_checkpoint(family, audio_encoders, text_encoder, folder):
    torch.manual_seed(0)
    model = LaSCLForAudioClassification.from_encoders(
        audio_encoders[family],
        text_encoder,
        LABELS,
        projection_dim=8,
        audio_layers="weighted" if family == "wavlm-group" else "last",
        prediction_head="classifier" if family == "hubert-layer" else "label",
    ).eval()
    model.save_pretrained(folder)
    if family == "whisper":
        extractor = WhisperFeatureExtractor(feature_size=16, chunk_length=2, return_attention_mask=True)
    else:
        extractor = AutoFeatureExtractor.from_pretrained(audio_encoders[family])
        assert extractor.return_attention_mask
    extractor.save_pretrained(folder)
    return model, extractor


def save_checkpoints(families, audio_encoders, text_encoder, root):
    samples = recording(seed=5, duration_s=0.4)
    np.save(root / "samples.npy", samples)
    answers = {}
    for family in families:
        model, extractor = save_checkpoint(family, audio_encoders, text_encoder, root / family)
        with torch.no_grad():
            out = model(**extractor(samples, sampling_rate=16_000, return_tensors="pt"))
        answers[family] = {name: value.numpy() for name, value in out.items()}
        answers[family]["label_embeds"] = model.get_label_embeddings().detach().numpy()
    return root, answers


@pytest.fixture(scope="module")
def checkpoints(audio_encoders, text_encoder, tmp_path_factory):
    """Gives of a family the folder of its complete checkpoint, among others', and what each answers to `samples.npy`
    through its own class."""
    rest = [family for family in AUDIO_ENCODERS if family not in FEW]

    @functools.cache
    def save(few: bool):
        root = tmp_path_factory.mktemp("checkpoints")
        return save_checkpoints(FEW if few else rest, audio_encoders, text_encoder, root)

    return lambda family: save(family in FEW)


@pytest.fixture(scope="module")
def stranger(checkpoints, tmp_path_factory):
    """Gives of a family what a process without LaSCL, without a cache and without a network got from its checkpoint,
    and from the others beside it."""
    answers_in = functools.cache(lambda root: ask_a_stranger(root, tmp_path_factory.mktemp("elsewhere")))
    return lambda family: answers_in(checkpoints(family)[0])


def ask_a_stranger(root, home):
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    clean.pop("PYTHONPATH", None)
    environment = {
        **clean,
        "HF_HOME": str(home / "hf"),
        "HF_MODULES_CACHE": str(home / "modules"),
        "HF_HUB_OFFLINE": "1",
        "PYTHONSAFEPATH": "1",
    }
    code = [sys.executable, "-c", STRANGER, str(root), str(home / "answers.npz")]
    done = subprocess.run(code, cwd=home, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    with np.load(home / "answers.npz") as answers:
        return dict(answers)


@pytest.mark.parametrize("family", FAMILIES)
def test_remote_code_answers_as_the_class_that_saved(family, checkpoints, stranger):
    expected, stranger = checkpoints(family)[1][family], stranger(family)
    assert stranger[f"{family}/AutoModel"] == "LaSCLModel"
    assert stranger[f"{family}/AutoModelForAudioClassification"] == "LaSCLForAudioClassification"
    shared = {"audio_embeds", "pooled_audio"}
    for loader, names in (
        ("AutoModel", shared | {"label_embeds"}),
        ("AutoModelForAudioClassification", shared | {"logits", "class_logits"}),
    ):
        prefix = f"{family}/{loader}/"
        assert {key.removeprefix(prefix) for key in stranger if key.startswith(prefix)} == names
        for name in names:
            scale = max(1, np.abs(expected[name]).max())
            np.testing.assert_allclose(stranger[prefix + name], expected[name], rtol=0, atol=1e-6 * scale, err_msg=name)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_pipelines_scores_are_the_softmax_of_the_logits(family, checkpoints, stranger):
    logits = checkpoints(family)[1][family]["logits"][0].astype(np.float64)
    stranger = stranger(family)
    softmax = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    assert stranger[f"{family}/labels"].tolist() == LABELS
    np.testing.assert_allclose(stranger[f"{family}/pipeline"], softmax, rtol=0, atol=1e-5)
    assert np.ptp(softmax) > 1e-2  # not the same for every label


@pytest.mark.parametrize("family", FAMILIES)
def test_without_trust_the_refusal_is_the_one_of_transformers(family, stranger):
    refusal = str(stranger(family)[f"{family}/refusal"])
    assert "trust_remote_code=True" in refusal
    assert "contains custom code which must be executed" in refusal


@pytest.mark.parametrize("family", FAMILIES)
def test_a_checkpoint_is_three_code_files_safetensors_and_json(family, checkpoints):
    folder = checkpoints(family)[0] / family
    assert {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    } == {
        "config.json",
        "configuration_lascl.py",
        "encoders_lascl.py",
        "model.safetensors",
        "modeling_lascl.py",
        "preprocessor_config.json",
        *(f"text_encoder/{name}" for name in TEXT_ENCODER_FILES),
    }
    for source in HUB_FILES:
        assert (folder / source.name).read_bytes() == source.read_bytes()
    assert json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"] == "lascl"


@pytest.mark.parametrize("path", HUB_FILES, ids=lambda path: path.name)
def test_code_that_travels_imports_what_comes_with_transformers_the_standard_library_and_its_neighbours_alone(path):
    neighbours, outside = set(), set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            outside |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            outside.add(node.module.split(".")[0])
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 1 and node.module, ast.unparse(node)
            neighbours.add(node.module)
        elif isinstance(node, ast.Call):
            called = getattr(node.func, "id", getattr(node.func, "attr", None))
            assert called not in ("__import__", "import_module"), ast.unparse(node)
    assert "transformers" in outside
    assert outside - set(sys.stdlib_module_names) <= {"torch", "transformers", "huggingface_hub"}
    assert "lascl" not in outside
    assert neighbours <= {source.stem for source in HUB_FILES} - {path.stem}

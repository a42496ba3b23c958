"""Loading from a Hub as a user without LaSCL does: new labels use the text encoder of the commit that was loaded."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import LABELS, TEXT_ENCODER

from lascl import LaSCLForAudioClassification
from lascl.training.random_encoders import save_random_text_encoder


WORDS = ["calm", "tense"]

# Runs in a process of its own, because huggingface_hub reads HF_ENDPOINT once, when it is imported.
# argv: the folder with what is published, the file for what was found.
USER = """
import json
import logging
import os
import sys
from pathlib import Path
from types import SimpleNamespace

from loopback_hub import LoopbackHub, Repository

root, found = Path(sys.argv[1]), {}


def publish(hub, repo_id, branch, *folders, **renamed):
    files = {}
    for folder, prefix in [(folder, "") for folder in folders] + [(f, f"{name}/") for name, f in renamed.items()]:
        for path in sorted(path for path in (root / folder).iterdir() if path.is_file()):
            files[prefix + path.name] = hub.store(path.read_bytes(), large=path.suffix == ".safetensors")
    if repo_id not in hub.repositories:  # as on the Hub, where every repository begins with a main
        hub.repositories[repo_id] = Repository()
        hub.repositories[repo_id].add("main", {}, "initial commit")
    return hub.repositories[repo_id].add(branch, files, f"{len(files)} files")


with LoopbackHub(root / "hub") as hub:
    os.environ |= {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1"}
    import huggingface_hub.utils._http
    from transformers import AutoModel, AutoModelForAudioClassification, pipeline

    huggingface_hub.utils._http.time = SimpleNamespace(sleep=lambda seconds: None)  # between retries
    logged = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: logged.append(record.getMessage())
    logging.getLogger().addHandler(handler)


    def new_labels(name, model):
        logged.clear()
        try:
            model.set_labels(WORDS)
        except Exception as error:
            found[f"{name} error"] = [type(error).__name__, str(error)]
        else:
            found[f"{name} features"] = model.base_model.label_features.tolist()
        found[f"{name} log"] = [message for message in logged if "text encoder" in message]


    WORDS = json.loads(sys.argv[3])
    publish(hub, "org/lascl", "main", "model", text_encoder="text-1")
    first = publish(hub, "org/lascl", "fold-1", "model", text_encoder="text-2")
    model = AutoModelForAudioClassification.from_pretrained("org/lascl", revision="fold-1", trust_remote_code=True)
    assert type(model).__module__.startswith("transformers_modules."), type(model)
    publish(hub, "org/lascl", "fold-1", "model", text_encoder="text-3")  # the branch moves on
    new_labels("moved", model)
    found["commit"] = first
    new_labels("again", model)
    # The same through AutoModel and the pipeline.
    new_labels("AutoModel", AutoModel.from_pretrained("org/lascl", revision="fold-1", trust_remote_code=True))
    main = pipeline("audio-classification", model="org/lascl", trust_remote_code=True).model
    new_labels("pipeline", main)
    main.save_pretrained(root / "saved")

    from lascl import LaSCLForAudioClassification

    found["text commit"] = publish(hub, "org/words", "main", "text-1")
    built = LaSCLForAudioClassification.from_encoders(sys.argv[4], "org/words", ["angry", "sad"], projection_dim=8)
    found["built revision"] = built.config.text_encoder_revision
    publish(hub, "org/words", "main", "text-3")  # the branch moves on
    built.save_pretrained(root / "built")
    found["built files"] = sorted(path.name for path in (root / "built").iterdir())
    new_labels("built", AutoModel.from_pretrained(root / "built", trust_remote_code=True))

    publish(hub, "org/bare", "fold-1", "model-of-hub-text")
    publish(hub, "org/text", "main", "text-1")
    publish(hub, "org/text", "v2", "text-3")
    bare = AutoModel.from_pretrained("org/bare", revision="fold-1", trust_remote_code=True)
    new_labels("bare", bare)

    publish(hub, "org/of-a-folder", "main", "model")
    new_labels("of-a-folder", AutoModel.from_pretrained("org/of-a-folder", trust_remote_code=True))

    publish(hub, "org/down", "main", "model-of-hub-text", text_encoder="text-2")
    down = AutoModel.from_pretrained("org/down", trust_remote_code=True)
    hub.stop()
    huggingface_hub.close_session()
    new_labels("down, cached", down)
    down.config.text_encoder_revision = None
    down.config.text_encoder = "org/never-loaded"
    new_labels("down", down)
Path(sys.argv[2]).write_text(json.dumps(found))
"""


@pytest.fixture(scope="module")
def published(audio_encoders, tmp_path_factory):
    root = tmp_path_factory.mktemp("published")
    for number in (1, 2, 3):
        save_random_text_encoder(TEXT_ENCODER, root / f"text-{number}", seed=number)
    for name in ("model", "model-of-hub-text"):
        model = LaSCLForAudioClassification.from_encoders(
            audio_encoders["wav2vec2-group"], str(root / "text-1"), LABELS, projection_dim=8
        )
        if name == "model-of-hub-text":
            model.config.text_encoder, model.config.text_encoder_revision = "org/text", "v2"
        model.save_pretrained(root / name, save_text_encoder=False)
        if name == "model":  # as an older LaSCL saved it: with a folder of its author's computer
            config = json.loads((root / name / "config.json").read_text())
            (root / name / "config.json").write_text(json.dumps({**config, "text_encoder": "/nowhere/text"}))
        for extractor in Path(audio_encoders["wav2vec2-group"]).glob("preprocessor_config.json"):
            (root / name / extractor.name).write_bytes(extractor.read_bytes())
    return root


@pytest.fixture(scope="module")
def found(published, audio_encoders, tmp_path_factory):
    home = tmp_path_factory.mktemp("elsewhere")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    environment = {**clean, "HF_HOME": str(home / "hf"), "PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, "-c", USER, str(published), str(home / "found.json"), json.dumps(WORDS)]
    command.append(audio_encoders["wav2vec2-group"])
    done = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads((home / "found.json").read_text())


def features(folder, words=WORDS):
    """(K, d_t) by transformers alone: mean over the tokens of each word by itself."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer, encoder = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        states = [encoder(**tokenizer(word, return_tensors="pt")).last_hidden_state[0] for word in words]
    return torch.stack([state.mean(dim=0) for state in states])


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, text",
    [
        ("moved", "text-2"),  # not what the branch has now, nor main's
        ("again", "text-2"),
        ("AutoModel", "text-3"),
        ("pipeline", "text-1"),
        ("built", "text-1"),  # of the commit that it was built with
        ("bare", "text-3"),  # v2 of org/text, not its main
        ("down, cached", "text-3"),  # its own cannot be reached, the same encoder elsewhere is in the cache
    ],
)
def test_new_labels_are_embedded_by_the_encoder_of(name, text, found, published):
    assert f"{name} error" not in found, found[f"{name} error"]
    expected = features(published / text)
    torch.testing.assert_close(torch.tensor(found[f"{name} features"]), expected, rtol=0, atol=1e-5)
    others = [features(published / other) for other in ("text-1", "text-2", "text-3") if other != text]
    assert all((other - expected).abs().max() > 0.01 for other in others)


@pytest.mark.slow
def test_what_is_downloaded_is_said_before_with_its_size(found, published):
    size_mb = (published / "text-2" / "model.safetensors").stat().st_size / 1e6
    (message,) = found["moved log"]
    assert f"text_encoder/ of org/lascl at {found['commit']}: downloading {size_mb:.1f} MB" in message
    (message,) = found["bare log"]
    assert "org/text at v2: downloading" in message
    assert found["again log"] == [] and found["down, cached log"] == []


@pytest.mark.slow
def test_an_encoder_that_cannot_be_had_is_named(found):
    kind, message = found["of-a-folder error"]
    assert kind == "OSError" and "text encoder /nowhere/text" in message and "model.config.text_encoder" in message
    kind, message = found["down error"]
    assert kind == "OSError" and "text encoder org/never-loaded" in message and "Is the Hub reachable?" in message


@pytest.mark.slow
def test_of_a_text_encoder_on_the_hub_name_and_commit_are_saved(found, published):
    assert found["built revision"] == found["text commit"]
    assert "text_encoder" not in found["built files"]
    config = json.loads((published / "built" / "config.json").read_text())
    assert (config["text_encoder"], config["text_encoder_revision"]) == ("org/words", found["text commit"])


@pytest.mark.slow
def test_the_commit_is_not_saved(found, published):
    config = (published / "saved" / "config.json").read_text()
    assert "_commit_hash" not in config and json.loads(config)["id2label"] == {"0": "calm", "1": "tense"}


def test_a_checkpoint_names_no_folder_of_nested_encoders(audio_encoders, text_encoder, tmp_path, monkeypatch):
    model = LaSCLForAudioClassification.from_encoders(audio_encoders["whisper"], text_encoder, LABELS)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert [config[name].get("_name_or_path", "") for name in ("audio_config", "text_config")] == ["", ""]
    monkeypatch.chdir(Path(text_encoder).parent)
    relative = LaSCLForAudioClassification.from_encoders(
        audio_encoders["whisper"], Path(text_encoder).name, LABELS, window_s=1
    )
    assert relative.config.text_encoder == text_encoder  # absolute: no Hub name

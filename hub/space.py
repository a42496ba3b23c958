"""The demo Space of a published model, as a folder: the app, the sources it needs, and what the Hub must know."""

from __future__ import annotations

import ast
import functools
import json
import shutil
import sys
from importlib import metadata
from pathlib import Path
from urllib.parse import urlsplit

import yaml


PACKAGE = Path(__file__).resolve().parent.parent
APP = "lascl.space.app"
SDK, SDK_VERSION = "gradio", "6.31.0"  # that the app was tested with
# Distributions of what the sources import, in versions that work together: those of whoever publishes.
REQUIREMENTS = (
    *("torch", "transformers", "accelerate", "datasets", "huggingface-hub"),
    *("numpy", "soundfile", "soxr", "scikit-learn", "tqdm"),
)
README = """---
{front_matter}---

# {title}

Recognises emotion in speech with [{model_id}](https://huggingface.co/{model_id}), a LaSCL model: record a voice or
choose a file, see the labels' probabilities and when they turn, try words of your own.

A label is how listeners may hear a voice, not what a person feels. The page shows what the model's card says of
its limits.

Nothing is kept: a recording is deleted when its visitor removes it or leaves. `space.json` names the model; the
variables LASCL_MODEL and LASCL_REVISION of the Space win over it.
"""


def stage_space(folder: str | Path, space: str, model_id: str, torch_index_url: str | None = None) -> Path:
    """Puts a Space together; an earlier staging is replaced. It runs where LaSCL is not installed.

    Args:
        folder: where.
        space: `org/name` of the Space.
        model_id: `org/name` of the model on the Hub, which the Space loads when it starts.
        torch_index_url: of a package index with PyTorch's builds for CPUs, see `requirements`.

    Returns:
        The folder: `app.py`, `space.json`, `requirements.txt`, `README.md` and `lascl/`.

    Raises:
        OSError: it cannot be written.
        ValueError: a package that the Space requires is not installed here.
    """
    folder = Path(folder)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for path in sources(APP):
        target = folder / "lascl" / path.relative_to(PACKAGE)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    (folder / "lascl" / "space" / "app.py").replace(folder / "app.py")
    for name in ("style.css", "page.js"):
        shutil.copyfile(PACKAGE / "space" / name, folder / "lascl" / "space" / name)
    (folder / "space.json").write_text(json.dumps({"model": model_id}) + "\n", encoding="utf-8")
    (folder / "requirements.txt").write_text(
        "".join(f"{line}\n" for line in requirements(torch_index_url)), encoding="utf-8"
    )
    title = f"{model_id.rpartition('/')[2]}: emotion in speech"
    front_matter = {
        "title": title,
        "sdk": SDK,
        "sdk_version": SDK_VERSION,
        "python_version": f"{sys.version_info.major}.{sys.version_info.minor}",
        "app_file": "app.py",
        "license": "apache-2.0",
        "models": [model_id],
        "tags": ["lascl", "speech-emotion-recognition", "audio-classification"],
        "short_description": "Speech emotion recognition, with your own words",
    }
    text = README.format(front_matter=yaml.safe_dump(front_matter, sort_keys=False), title=title, model_id=model_id)
    (folder / "README.md").write_text(text, encoding="utf-8")
    return folder


@functools.cache  # a second of reading code for each Space
def sources(module: str) -> tuple[Path, ...]:
    """Files of LaSCL that a module needs when it is imported: its own, and those of all that it imports from LaSCL."""
    found, waiting = set(), [module]
    while waiting:
        path = _file(waiting.pop())
        if path is None or path in found:
            continue
        found.add(path)
        package = ".".join(("lascl", *path.relative_to(PACKAGE).parent.parts))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                waiting += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                base = f"{package}.{node.module}" if node.level else node.module
                waiting += [base, *(f"{base}.{alias.name}" for alias in node.names)]
        waiting.append(package)  # importing a module runs the packages around it
    return tuple(sorted(found))


def _file(module: str) -> Path | None:
    """Of a module or package of LaSCL; `None` for any other name."""
    first, *parts = module.split(".")
    path = PACKAGE.joinpath(*parts)
    candidates = (path.with_name(f"{path.name}.py"), path / "__init__.py") if parts else (PACKAGE / "__init__.py",)
    return next((file for file in candidates if first == "lascl" and file.is_file()), None)


def requirements(torch_index_url: str | None = None) -> list[str]:
    """Lines of `requirements.txt`, with the versions that are installed here.

    Args:
        torch_index_url: of a package index with PyTorch's builds for CPUs, `torch==X+cpu`. Without it torch comes from
            the default index, which has the CUDA build for Linux: gigabytes more than a Space on CPUs can use. No other
            spelling of the requirement selects the CPU build there.

    Raises:
        ValueError: a package is not installed here.
    """
    lines = []
    for name in REQUIREMENTS:
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            raise ValueError(f"The Space requires {name}, which is not installed here.") from None
        lines.append(f"{name}=={version.partition('+')[0]}")  # a local build is on no default index
    if torch_index_url is None:
        return lines
    return [f"--extra-index-url {torch_index_url}", f"{lines[0]}+cpu", *lines[1:]]


def check_index_url(url: str):
    """Raises ValueError for what may not or cannot stand in a public `requirements.txt`."""
    try:
        parts = urlsplit(url)
        is_fit = parts.scheme == "https" and parts.hostname and not parts.username and not parts.password
    except ValueError:
        is_fit = False
    if not is_fit or any(letter.isspace() or not letter.isprintable() for letter in url):
        raise ValueError(
            "torch_index_url must be an https address without a password, of a package index that has PyTorch's builds "
            "for CPUs: it is published."
        )

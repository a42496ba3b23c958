"""What holds the promise that a checkpoint loads wherever transformers is installed, without installing any other."""

import ast
import configparser
import re
import sys
from importlib.metadata import metadata
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import transformers
from huggingface_hub.errors import HfHubHTTPError
from packaging.specifiers import SpecifierSet
from transformers import AutoConfig

from lascl import LaSCLConfig
from lascl import configuration_lascl as configuration
from lascl.hub import publish


ROOT = Path(configuration.__file__).parent
HUB_FILES = ("configuration_lascl.py", "encoders_lascl.py", "modeling_lascl.py")
# What the three files may take from transformers: public names that 4.57.6 and all versions since have. The matrix
# (versions.py) imports them from five versions; a name that is added here must be seen to work there.
IN_EVERY_VERSION = {
    "transformers": {"AutoConfig", "AutoModel", "AutoTokenizer", "PretrainedConfig", "PreTrainedModel"},
    "transformers.utils": {"ModelOutput", "logging"},
    "transformers.utils.hub": {"cached_file", "extract_commit_hash"},
    "transformers.models.wav2vec2.modeling_wav2vec2": {"_compute_mask_indices"},
    "transformers.models.wavlm.modeling_wavlm": {"WavLMAttention"},
    "transformers.models.whisper.modeling_whisper": {"WhisperEncoder"},
}


@pytest.mark.parametrize("name", HUB_FILES)
def test_code_that_travels_takes_from_transformers_only_what_every_version_has(name):
    taken = set()
    for node in ast.walk(ast.parse((ROOT / name).read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "transformers":
            taken |= {(node.module, alias.name) for alias in node.names}
    assert taken
    assert {(module, name) for module, name in taken if name not in IN_EVERY_VERSION.get(module, ())} == set()


@pytest.mark.parametrize("name", HUB_FILES)
def test_code_that_travels_has_no_branch_for_a_version(name):
    """One comparison of versions stands in `check_transformers`; nothing else asks which version this is."""
    text = (ROOT / name).read_text(encoding="utf-8")
    assert re.findall(r"transformers\.__version__", text) == ["transformers.__version__"] * (name == HUB_FILES[0])
    assert "is_transformers_version" not in text and "except ImportError" not in text


def imported_under(version, monkeypatch) -> str:
    """What importing the first of the three files says where transformers is `version`; empty if nothing."""
    monkeypatch.setattr(transformers, "__version__", version)
    specification = spec_from_file_location("elsewhere", configuration.__file__)
    module = module_from_spec(specification)
    monkeypatch.setitem(sys.modules, "elsewhere", module)
    try:
        specification.loader.exec_module(module)
    except ImportError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("version", ["4.56.2", "4.9.0", "3.5.1", "4.44.0.dev0"])
def test_an_older_transformers_is_refused_in_one_sentence_with_both_versions(version, monkeypatch):
    said = imported_under(version, monkeypatch)
    assert said.startswith(f"LaSCL needs transformers 4.57 or newer; found {version}.")
    assert "pip install" in said and "\n" not in said


@pytest.mark.parametrize("version", ["4.57.0", "4.57.6", "5.0.0rc1", "5.24.0", "6.0.0.dev0", "10.0"])
def test_no_newer_transformers_is_refused(version, monkeypatch):
    assert imported_under(version, monkeypatch) == ""


def test_configurations_differ_by_fields_of_lascls_own():
    """transformers 5.20 and newer compare the fields of their own class alone where a class has an `__init__`."""
    assert LaSCLConfig() == LaSCLConfig()
    assert LaSCLConfig() != LaSCLConfig(projection_dim=8)
    assert LaSCLConfig() != LaSCLConfig(audio_config={"hidden_size": 24})
    assert LaSCLConfig() != AutoConfig.for_model("wav2vec2")


@pytest.mark.parametrize("given", ["wav2vec2", 3, ["wav2vec2"]])
def test_an_encoder_configuration_of_another_kind_is_refused_by_field_and_kind(given):
    with pytest.raises(TypeError, match="audio_config must be a dict or a configuration.*; found"):
        LaSCLConfig(audio_config=given)


def options() -> configparser.SectionProxy:
    setup = configparser.ConfigParser(interpolation=None)
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    return setup["options"]


def tried() -> dict:
    """The names and values that stand in the matrix, which is no module of the package."""
    script = ROOT / "tests" / "versions.py"
    assert script.is_file(), "no matrix"
    found = {}
    for node in ast.parse(script.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == "SETS":
            found["SETS"] = ast.literal_eval(node.value)
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Tuple):
            found |= zip((name.id for name in node.targets[0].elts), ast.literal_eval(node.value))
    return found


def test_the_lower_bounds_are_the_versions_that_the_matrix_tries():
    oldest = {"transformers": tried()["OLDEST"], **tried()["SETS"][tried()["OLDEST"]]}
    for package in ("transformers", "huggingface-hub", "datasets", "accelerate"):
        bound = re.search(rf"^{package}>=([\d.]+)", options()["install_requires"], re.M)[1]
        assert f"{oldest[package.replace('-', '_')]}.".startswith(f"{bound}."), package


def test_five_versions_of_transformers_are_tried_from_the_oldest_that_checkpoints_load_on():
    names = list(tried()["SETS"])
    assert len(names) == 5 and names[0].startswith(f"{getattr(configuration, 'OLDEST_TRANSFORMERS', '')}.")
    assert {tried()["OLDEST"], tried()["NEWEST"]} <= set(names)
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert re.search(r"^\S+/python tests/versions\.py$", ci, re.M)  # whole: with the package's tests


def test_the_python_that_is_asked_for_takes_every_pinned_package():
    lowest = re.fullmatch(r">=(3\.\d+)", options()["python_requires"])[1]
    pinned = re.findall(r"^([\w.-]+)==", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.M)
    wanted = {}
    for package in ("numpy", "scipy", "transformers", "torch", "datasets", "accelerate"):
        assert package in pinned
        wanted[package] = metadata(package)["Requires-Python"]
    assert {p: w for p, w in wanted.items() if not SpecifierSet(w).contains(f"{lowest}.9")} == {}


def test_publishing_knows_the_errors_of_the_client_that_huggingface_hub_uses():
    """httpx, and httpx2 from version 2 on; both may be installed."""
    client = getattr(publish, "httpx", None)
    assert client is not None and issubclass(HfHubHTTPError, client.HTTPError)
    assert not re.search(r"^\s*httpx", options()["install_requires"], re.M)

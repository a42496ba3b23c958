"""The house: what may import what, what travels with a checkpoint, what a name promises."""

import ast
import os
import re
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest
from transformers import AutoFeatureExtractor

import lascl
from lascl.data import SpeechCollator, SpeechDataset


ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("data", "training", "studies", "evaluation", "hub", "inference", "space")
MODULES = [
    *ROOT.glob("*.py"),
    *(path for room in (*ROOMS, "tests") for path in (ROOT / room).glob("*.py")),
]
HUB_FILES = ("configuration_lascl.py", "encoders_lascl.py", "modeling_lascl.py")


def spelled_imports(path: Path) -> set[str]:
    """Every module that a file imports as it spells it, also inside functions; relative ones with their dots."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add("." * node.level + (node.module or ""))
    return found


def imports(source: str, package: str) -> set[str]:
    """The full name of all that a file of `package` may import, whatever the form: also inside functions, relative, by
    `import_module`, as an attribute of `lascl`; a public name of `lascl` with the module that it comes from."""
    tree, found, bound = ast.parse(source), set(), {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
            bound |= {alias.asname or alias.name.split(".")[0]: alias.name for alias in node.names if alias.asname}
            bound |= {alias.name.split(".")[0]: alias.name.split(".")[0] for alias in node.names if not alias.asname}
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*parents, *([node.module] if node.module else [])])
            found |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
            bound |= {alias.asname or alias.name: f"{module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
            # f"{__name__}.x" is below the room itself, whatever x is.
            own = ast.unparse(node.args[0]).startswith("f'{__name__}.")
            named = node.args[0].value if isinstance(node.args[0], ast.Constant) else "what a variable says"
            found.add(package if own else named)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            first, _, rest = ast.unparse(node).partition(".")
            if bound.get(first, "").split(".")[0] == "lascl":
                found.add(f"{bound[first]}.{rest}")
    homes = lascl._HOMES
    public = {name.split(".")[1] for name in found if name.startswith("lascl.")} & {"*", *homes}
    return found | {homes[name] for name in (homes if "*" in public else public)}


def imports_of(path: Path) -> set[str]:
    return imports(path.read_text(encoding="utf-8"), ".".join(["lascl", *path.relative_to(ROOT).parent.parts]))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_rooms_are_never_imported_bare(path):
    """`import data` from the root would give second copies of every class."""
    bare = {*ROOMS, "train", "predict", "modeling_lascl", "configuration_lascl", "encoders_lascl"}
    assert {name.split(".")[0] for name in imports_of(path)} & bare == set()


@pytest.mark.parametrize(
    "source",
    [
        "import lascl.training",
        "import lascl.training.trainer as t",
        "from lascl import training",
        "from lascl import training as t",
        "from lascl import LaSCLTrainer",
        "from lascl import score, LaSCLTrainingArguments as Arguments",
        "from lascl import *",
        "from lascl.training import LaSCLTrainer",
        "from lascl.training.trainer import LaSCLTrainer",
        "from ..training import trainer",
        "from .. import training",
        "from .. import LaSCLTrainer",
        "def later():\n    from lascl import LaSCLTrainer",
        "if True:\n    class A:\n        from ..training.trainer import LaSCLTrainer",
        "import lascl\nlascl.LaSCLTrainer",
        "import lascl as l\ndef later():\n    return l.training.trainer.LaSCLTrainer()",
        "from importlib import import_module\nimport_module('lascl.training')",
        "import importlib\nimportlib.import_module('lascl.training.trainer')",
        "__import__('lascl.training')",
    ],
)
def test_every_form_of_import_is_seen(source):
    assert any(name == "lascl.training" or name.startswith("lascl.training.") for name in imports(source, "lascl.data"))


@pytest.mark.parametrize(
    "source",
    ["from lascl import score", "from . import training", "from .training import x", "import lascl\nlascl.data"],
)
def test_what_is_no_import_of_training_is_not_taken_for_one(source):
    assert not any(name.startswith("lascl.training") for name in imports(source, "lascl.data"))


@pytest.mark.parametrize(
    "files, forbidden",
    [
        (["configuration_lascl.py"], ["torch", "lascl"]),
        (["data/*.py"], ["lascl.modeling_lascl", "lascl.training", "lascl.evaluation", "lascl.train"]),
        (["evaluation/*.py"], ["lascl.modeling_lascl", "lascl.training", "lascl.data", "lascl.train", "torch"]),
        (["training/*.py"], ["lascl.train", "lascl.hub", "lascl.studies"]),
        (["hub/*.py", "train.py"], ["lascl.studies", "lascl.study"]),
        (["hub/*.py"], ["lascl.train"]),
        (["inference/*.py"], ["lascl.train", "lascl.training", "lascl.hub"]),
        (["space/*.py"], ["lascl.train", "lascl.training", "lascl.hub", "lascl.evaluation"]),
    ],
    ids=lambda value: value[0],
)
def test_imports_point_one_way(files, forbidden):
    paths = [path for pattern in files for path in ROOT.glob(pattern)]
    assert paths
    for path in paths:
        for name in imports_of(path) - {"lascl"}:
            assert not any(name == wrong or name.startswith(f"{wrong}.") for wrong in forbidden), f"{path}: {name}"
            assert name != "what a variable says", path


def drawn(heading: str) -> str:
    """What `.github/CONTRIBUTING.md` has under a heading."""
    text = (ROOT / ".github" / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert f"## {heading}\n" in text, f"CONTRIBUTING has no picture of: {heading}"
    return text.split(f"## {heading}\n")[1].split("\n## ")[0]


def test_the_rooms_import_as_they_are_drawn():
    """The picture is of all rooms, points upwards, and shows what is imported: no more and no less."""
    lines = drawn("The house").split("```")[1].split("\n")
    picture = {room: known.split() for room, _, known in (line.partition("<-") for line in lines if line)}
    picture = {room.strip(): set(known) for room, known in picture.items()}
    files = {path.stem: [path] for path in ROOT.glob("*.py") if path.name != "__init__.py"}
    files |= {room: list((ROOT / room).glob("*.py")) for room in ROOMS}
    assert picture.keys() == files.keys()
    above = set()
    for room, known in picture.items():
        assert known <= above, f"{room} points down, to {known - above}"
        above.add(room)
        names = set().union(*(imports_of(path) for path in files[room]))
        found = {name.split(".")[1] for name in names if name.startswith("lascl.")} & files.keys() - {room}
        assert found == known, room


def lines_of_code(function: ast.FunctionDef) -> int:
    """Of a function, from `def` to its end, without its docstring."""
    body = function.body[0]
    has_docstring = isinstance(body, ast.Expr) and isinstance(getattr(body.value, "value", None), str)
    docstring = body.end_lineno - body.lineno + 1 if has_docstring else 0
    return function.end_lineno - function.lineno + 1 - docstring


@pytest.mark.parametrize("name, most", [("train.py", 200), ("study.py", 120)])
def test_what_is_run_is_short(name, most):
    assert len((ROOT / name).read_text(encoding="utf-8").splitlines()) <= most


def test_no_function_is_longer_than_a_screen():
    """60 lines, its docstring aside; a longer one says why in the line above it: `# Long: ...`."""
    longer = []
    for path in [path for path in MODULES if path.parent.name != "tests"] + list((ROOT / "benchmarks").glob("*.py")):
        text = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and lines_of_code(node) > 60:
                first = min(part.lineno for part in (node, *node.decorator_list))
                if not text.splitlines()[first - 2].strip().startswith("# Long: "):
                    longer.append(f"{path.relative_to(ROOT)}, {node.name}: {lines_of_code(node)}")
    assert longer == []


def test_private_names_stay_in_their_file():
    """Of our own files; what is private in another package is its matter."""
    crossing = []
    for path in [path for path in MODULES if path.parent.name != "tests"] + list((ROOT / "benchmarks").glob("*.py")):
        private = [name for name in imports_of(path) if name.startswith("lascl.") and re.search(r"\._(?!_)", name)]
        crossing += [f"{path.relative_to(ROOT)}: {name}" for name in private]
    assert crossing == []


def test_a_benchmark_is_not_called_as_a_room_or_a_program_is():
    """Its folder is on the path when it runs: `import inference` would find it."""
    ours = {*ROOMS, *(path.stem for path in ROOT.glob("*.py"))}
    assert {path.stem for path in (ROOT / "benchmarks").glob("*.py")} & ours == set()


def test_a_batch_enters_the_files_that_are_told_from_the_loader_to_the_gradient(
    emodb_like, audio_encoders, text_encoder, tmp_path
):
    """At most six; here with chunks, so that none is spared."""
    told = re.findall(r"^\| `([\w/.]+)` ", drawn("From a recipe to a gradient"), re.MULTILINE)
    assert 0 < len(told) <= 6 and all((ROOT / name).is_file() for name in told)
    corpus = lascl.load_corpus("emodb", emodb_like, allow_partial=True)
    labels = corpus.features["label"].names
    model = lascl.LaSCLForAudioClassification.from_encoders(audio_encoders["wavlm-layer"], text_encoder, labels)
    extractor = AutoFeatureExtractor.from_pretrained(audio_encoders["wavlm-layer"])
    speech = SpeechDataset(corpus, range(4), sampling_rate=16_000, max_duration_s=0.2, augmentation="gain", num_views=2)
    args = lascl.LaSCLTrainingArguments(
        str(tmp_path), global_batch_size=4, contrastive_chunk_size=2, use_cpu=True, report_to="none", max_steps=1
    )
    entered = set()

    def note(frame, event, argument):
        path = Path(frame.f_code.co_filename)
        if event == "call" and path.is_relative_to(ROOT) and not {"tests", ".venv"} & {*path.relative_to(ROOT).parts}:
            entered.add(path.relative_to(ROOT).as_posix())

    def noted(function):
        def call(*args, **kwargs):
            sys.setprofile(note)
            try:
                return function(*args, **kwargs)
            finally:
                sys.setprofile(None)

        return call

    trainer = lascl.LaSCLTrainer(
        model, args, train_dataset=speech, data_collator=noted(SpeechCollator(extractor)), processing_class=extractor
    )
    trainer.training_step = noted(trainer.training_step)
    trainer.train()
    settings = {"configuration_lascl.py", "training/arguments.py"}  # are asked, and see no tensor
    assert entered - settings == set(told)


@pytest.mark.parametrize(
    "name, ours",
    [
        ("configuration_lascl.py", set()),
        ("encoders_lascl.py", {".configuration_lascl"}),
        ("modeling_lascl.py", {".configuration_lascl", ".encoders_lascl"}),
    ],
)
def test_the_files_of_the_hub_import_each_other_one_way_and_relatively(name, ours):
    found = spelled_imports(ROOT / name)
    assert {module for module in found if module.startswith((".", "lascl"))} <= ours
    assert not [module for module in imports_of(ROOT / name) if "what a variable says" in module]


@pytest.mark.parametrize("name", HUB_FILES)
def test_what_travels_needs_torch_and_what_comes_with_transformers_only(name):
    # Every version of transformers requires huggingface_hub.
    allowed = {"torch", "transformers", "huggingface_hub"} | set(sys.stdlib_module_names)
    for module in spelled_imports(ROOT / name):
        ours = module.startswith(".") and module.endswith("_lascl")
        assert ours or module.split(".")[0] in allowed, module


def test_tests_run_on_the_instructions_and_the_threads_asked_for():
    """Else `make every-cpu` would run the same six times."""
    import torch

    assert torch.get_num_threads() == int(os.environ.get("OMP_NUM_THREADS", 1))
    asked = os.environ.get("ATEN_CPU_CAPABILITY")
    assert asked is None or torch.backends.cpu.get_cpu_capability().lower() == asked


@pytest.mark.parametrize("path", sorted((ROOT / "tests").glob("*.py")), ids=lambda path: path.stem)
def test_no_assertion_compares_less_than_it_seems_to(path):
    """`a != b != c` never compares a with c, and nothing differs from itself."""
    asserted = [node.test for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Assert)]
    for test in (node for whole in asserted for node in ast.walk(whole) if isinstance(node, ast.Compare)):
        sides = [ast.unparse(side) for side in (test.left, *test.comparators)]
        calls = any(isinstance(node, ast.Call) for node in ast.walk(test))  # the same call again may answer otherwise
        assert sum(isinstance(operator, ast.NotEq) for operator in test.ops) < 2, ast.unparse(test)
        assert calls or len(set(sides)) == len(sides), ast.unparse(test)


def test_importing_the_package_costs_nothing():
    code = "import sys, lascl; print(sorted({'torch', 'transformers', 'datasets'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_every_public_name_loads_and_registers_the_auto_classes():
    from transformers import AutoConfig, AutoModel, AutoModelForAudioClassification

    for name in lascl.__all__:
        assert getattr(lascl, name) is not None
    config = AutoConfig.for_model("lascl", id2label={0: "a", 1: "b"})
    assert type(config) is lascl.LaSCLConfig
    assert AutoModel._model_mapping[type(config)] is lascl.LaSCLModel
    assert AutoModelForAudioClassification._model_mapping[type(config)] is lascl.LaSCLForAudioClassification
    with pytest.raises(AttributeError, match="'Trainer'"):
        lascl.Trainer  # noqa: B018


def test_packages_are_listed_and_versions_agree():
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    packages = setup["options"]["packages"].split()
    assert set(packages) == {"lascl", "lascl.recipes", *(f"lascl.{room}" for room in ROOMS)}
    assert f"## [{lascl.__version__}]" in (ROOT / "CHANGELOG.md").read_text()
    tables = [line for line in (ROOT / "pyproject.toml").read_text().splitlines() if line.startswith("[")]
    assert tables == ["[build-system]"]


def test_constraints_pin_every_requirement_torch_first():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert lines[0] == "torch==2.13.0" and all("==" in line for line in lines)
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in lines}
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    extras = setup["options.extras_require"]
    wanted = [setup["options"]["install_requires"], *extras.values()]
    for line in "\n".join(wanted).split("\n"):
        name = line.strip().split("=")[0].split(">")[0].split("<")[0].lower()
        assert not name or name.startswith("lascl[") or name in pinned, name


def test_no_audio_no_weights_no_path_of_one_machine_is_tracked():
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files"], capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    files = [ROOT / name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]
    heavy = {".wav", ".flac", ".mp3", ".ogg", ".safetensors", ".bin", ".pt", ".ckpt"}
    assert [file for file in files if file.suffix in heavy] == []
    home = str(ROOT.parent) + "/"
    assert [file for file in files if home in file.read_text(encoding="utf-8", errors="ignore")] == []

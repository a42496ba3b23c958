"""A release, built and tried: `make release`.

    python tests/release.py                  dist/*.whl and dist/*.tar.gz
    python tests/release.py --outdir DIR     the same there
    python tests/release.py --check          only whether all files speak of one version

The version is the same in `__init__.py`, `CITATION.cff` and the newest dated section of `CHANGELOG.md`, or nothing is
built. Wheel and source distribution are each installed in an environment of their own, outside the clone, which has
this one's other packages and no LaSCL; there both are imported and asked for help, and both have every module of the
clone and no other, what travels with a checkpoint, recipes, templates and the licence.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import sysconfig
import tempfile
import venv
from configparser import ConfigParser
from pathlib import Path

import yaml


ROOT = Path(__file__).resolve().parents[1]
VERSION = r"\d+\.\d+\.\d+"
SECTION = re.compile(rf"^## \[({VERSION})\] - (.*)$", re.MULTILINE)
# What a user of the package finds missing last: it is no Python, or is read by the Hub alone.
FILES = (
    *("configuration_lascl.py", "encoders_lascl.py", "modeling_lascl.py", "model_card.md"),
    *("recipes/quickstart.yaml", "recipes/many-corpora-small.yaml", "recipes/accelerate/one_gpu.yaml"),
    *("evaluation/report.html", "evaluation/report.md.jinja", "evaluation/lascl.mplstyle", "space/style.css"),
)
TRIED = """
import importlib.metadata, lascl, lascl.modeling_lascl, lascl.study
from lascl import LaSCLTrainer
assert "site-packages" in lascl.__file__, lascl.__file__
assert LaSCLTrainer.__module__ == "lascl.training.trainer"
told = importlib.metadata.distribution("lascl")
assert told.version == lascl.__version__, (told.version, lascl.__version__)
assert (told.metadata["License-Expression"] or told.metadata["License"]) == "Apache-2.0", told.metadata
files = {str(path) for path in told.files}
assert any(name.endswith(".dist-info/licenses/LICENSE") for name in files), "the licence is missing"
print("\\n".join(sorted(name for name in files if name.startswith("lascl/") and not name.endswith(".pyc"))))
"""


def agreed_version(root: Path) -> tuple[str, str]:
    """The version that all files of a repository speak of, and the day of its release.

    Raises:
        SystemExit: they disagree, or the CHANGELOG does not have it as its newest release, dated.
    """
    code = re.search(rf'^__version__ = "({VERSION})"$', _text(root, "__init__.py"), re.MULTILINE)
    if code is None:
        raise SystemExit('__init__.py has no line __version__ = "X.Y.Z".')
    (setup := ConfigParser()).read_string(_text(root, "setup.cfg"))
    if (attribute := setup["metadata"]["version"]) != "attr: lascl.__version__":
        raise SystemExit(f"setup.cfg must take the version from attr: lascl.__version__; found {attribute}.")
    citation = yaml.safe_load(_text(root, "CITATION.cff"))
    newest = SECTION.search(_text(root, "CHANGELOG.md"))
    if newest is None or not re.fullmatch(r"\d{4}-\d\d-\d\d", newest[2]):
        found = "none" if newest is None else newest[0]
        raise SystemExit(f"The newest release in CHANGELOG.md must be '## [X.Y.Z] - YYYY-MM-DD'; found {found}.")
    told = {"__init__.py": code[1], "CITATION.cff": str(citation["version"]), "CHANGELOG.md": newest[1]}
    if len(set(told.values())) > 1:
        listed = ", ".join(f"{version} in {name}" for name, version in told.items())
        raise SystemExit(f"One version must stand everywhere; found {listed}.")
    if (released := str(citation.get("date-released"))) != newest[2]:
        raise SystemExit(
            f"One day must stand everywhere; found {newest[2]} in CHANGELOG.md, {released} in CITATION.cff."
        )
    return newest[1], newest[2]


def unreleased_changes(root: Path) -> int:
    """How many changes the CHANGELOG has under Unreleased."""
    _, _, after = _text(root, "CHANGELOG.md").partition("## [Unreleased]\n")
    return len(re.findall(r"^\* ", after.split("\n## ")[0], re.MULTILINE))


def _text(root: Path, name: str) -> str:
    return (root / name).read_text(encoding="utf-8")


def build(outdir: Path) -> list[Path]:
    """The source distribution, and the wheel that is made from it: what lies in the clone's `build/` has no part."""
    run(sys.executable, "-m", "build", "--outdir", str(outdir), str(ROOT))
    version, _ = agreed_version(ROOT)
    made = [outdir / f"lascl-{version}.tar.gz", outdir / f"lascl-{version}-py3-none-any.whl"]
    assert all(path.is_file() for path in made), made
    return made


def try_out(package: Path, folder: Path):
    """Installs a package in an environment of its own and tries it there."""
    venv.create(folder, with_pip=True)
    python = str(folder / "bin" / "python")
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", str(package), cwd=folder)
    # By a .pth line, which runs no hooks of editable installs: of the clone nothing comes along.
    own = sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)})
    Path(own, "borrowed.pth").write_text("\n".join(places_of_packages()) + "\n", encoding="utf-8")
    found = set(run(python, "-c", TRIED, cwd=folder).split())
    missing, odd = wanted_files() - found, {name for name in found - wanted_files() if name.endswith(".py")}
    assert not missing, f"{package.name} lacks {', '.join(sorted(missing))}"
    assert not odd, f"{package.name} has modules that the clone has not: {', '.join(sorted(odd))}"
    for words in (("lascl-train", "quickstart"), ("lascl-predict",)):
        said = run(str(folder / "bin" / words[0]), *words[1:], "--help", cwd=folder)
        assert said.startswith("usage: "), said


def wanted_files() -> set[str]:
    """Every module of the packages that setup.cfg names, and what is no Python of theirs."""
    (setup := ConfigParser()).read_string(_text(ROOT, "setup.cfg"))
    packages = setup["options"]["packages"].split()
    modules = [path for name in packages for path in ROOT.joinpath(*name.split(".")[1:]).glob("*.py")]
    return {f"lascl/{path.relative_to(ROOT).as_posix()}" for path in modules} | {f"lascl/{name}" for name in FILES}


def places_of_packages() -> list[str]:
    """Where this environment's packages are, and, of one that borrows them, where those are."""
    own = Path(sysconfig.get_path("purelib"))
    return [str(own), *(line for file in own.glob("borrowed*.pth") for line in file.read_text().split("\n") if line)]


def run(*command: str, cwd: Path | None = None) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    return done.stdout


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--outdir", type=Path, default=ROOT / "dist")
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    version, day = agreed_version(ROOT)
    print(f"Version {version} of {day} everywhere.")
    if count := unreleased_changes(ROOT):
        print(f"CHANGELOG.md has {count} changes under Unreleased, which will be in what is built.")
    if args.check:
        return
    packages = build(args.outdir)
    with tempfile.TemporaryDirectory() as work:
        for number, package in enumerate(packages):
            try_out(package, Path(work) / str(number))
            print(f"{package}: installed and tried, {package.stat().st_size / 1024:.0f} KiB.")


if __name__ == "__main__":
    main()

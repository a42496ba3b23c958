"""A release: one version everywhere or none, and packages that have what a user needs."""

import importlib
import shutil
from pathlib import Path

import pytest

import lascl


ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def release():
    assert (ROOT / "tests" / "release.py").is_file(), "there is no make release"
    return importlib.import_module("release")


@pytest.fixture
def repository(tmp_path) -> Path:
    """The files that speak of a version."""
    for name in ("__init__.py", "setup.cfg", "CITATION.cff", "CHANGELOG.md"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def change(path: Path, before: str, after: str):
    text = path.read_text(encoding="utf-8")
    assert before in text
    path.write_text(text.replace(before, after, 1), encoding="utf-8")


def test_the_version_that_there_is_stands_everywhere(release):
    version, day = release.agreed_version(ROOT)
    assert version == lascl.__version__ and tuple(map(int, version.split("."))) >= (0, 2, 0)
    assert f"## [{version}] - {day}\n" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "name, before, after, said",
    [
        ("__init__.py", '__version__ = "{}"', '__version__ = "9.9.9"', "9.9.9 in __init__.py, {0} in CIT"),
        ("__init__.py", "__version__ = ", "version = ", "__init__.py has no line __version__"),
        ("CITATION.cff", "\nversion: {}", "\nversion: 9.9.9", "9.9.9 in CITATION.cff"),
        ("CITATION.cff", "\ndate-released: ", "\ndate-released: 2001-01-01  # ", "2001-01-01 in CITATION.cff"),
        ("CHANGELOG.md", "## [{}] - ", "## [9.9.9] - 2001-01-01\n\n## [{}] - ", "9.9.9 in CHANGELOG.md"),
        ("CHANGELOG.md", "## [{}] - ", "## [{}] - not released, ", "must be '## .X.Y.Z. - YYYY-MM-DD'; found ## .{0}"),
        ("setup.cfg", "attr: lascl.__version__", "{}", "setup.cfg must take the version from attr"),
    ],
)
def test_a_version_that_disagrees_is_refused(release, repository, name, before, after, said):
    version, _ = release.agreed_version(repository)
    change(repository / name, before.format(version), after.format(version))
    with pytest.raises(SystemExit, match=said.format(version)):
        release.agreed_version(repository)


def test_changes_that_no_version_has_are_counted(release, repository):
    before = release.unreleased_changes(repository)
    change(repository / "CHANGELOG.md", "## [Unreleased]\n", "## [Unreleased]\n\n### Added\n\n* This.\n* That.\n")
    assert release.unreleased_changes(repository) == before + 2


def test_make_release_and_ci_build_and_try_both(release):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "\nrelease: .venv/installed\n\t$(BIN)/python tests/release.py\n" in makefile
    assert "tests/release.py --outdir" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "make release" in (ROOT / ".github" / "CONTRIBUTING.md").read_text(encoding="utf-8")

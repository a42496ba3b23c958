"""Wheel and source distribution, built, installed and tried: what `make release` does, and what it refuses."""

import tarfile
import zipfile
from pathlib import Path

import pytest
import release


@pytest.fixture(scope="module")
def packages(tmp_path_factory) -> list[Path]:
    return release.build(tmp_path_factory.mktemp("dist"))


@pytest.mark.slow
def test_wheel_and_source_are_installed_and_tried_without_the_clone(packages, tmp_path):
    for number, package in enumerate(packages):
        release.try_out(package, tmp_path / str(number))
    with zipfile.ZipFile(packages[1]) as wheel, tarfile.open(packages[0]) as source:
        names = wheel.namelist() + [name.partition("/")[2] for name in source.getnames()]
    odd = ("lascl/tests", "lascl/results", "lascl/docs", "tests", "results", "docs", "runs", "build")
    assert [name for name in names if name.startswith(odd)] == []
    assert {"CHANGELOG.md", "CITATION.cff", "LICENSE"} <= set(names)


@pytest.mark.slow
def test_a_package_that_lacks_a_file_is_refused(packages, tmp_path):
    lacking = tmp_path / packages[1].name
    with zipfile.ZipFile(packages[1]) as whole, zipfile.ZipFile(lacking, "w") as less:
        for name in whole.namelist():
            content = whole.read(name)
            if name.endswith("/RECORD"):
                content = b"".join(line for line in content.splitlines(True) if b"quickstart.yaml" not in line)
            if "quickstart.yaml" not in name:
                less.writestr(name, content)
    with pytest.raises(AssertionError, match=r"lacks lascl/recipes/quickstart\.yaml"):
        release.try_out(lacking, tmp_path / "venv")

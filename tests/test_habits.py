"""What a repository has beside its code: workflows that run what is there, hooks of the versions that are pinned, one
version everywhere."""

import re
from pathlib import Path

import pytest
import yaml

import lascl


ROOT = Path(__file__).resolve().parents[1]


def read(name: str) -> str:
    path = ROOT / name
    assert path.is_file(), f"there is no {name}"
    return path.read_text(encoding="utf-8")


def test_workflows_run_what_ci_runs_on_three_pythons_and_the_ends_of_the_versions():
    jobs = yaml.safe_load(read(".github/workflows/ci.yml"))["jobs"]
    commands = {job: [step["run"] for step in steps["steps"] if "run" in step] for job, steps in jobs.items()}
    assert jobs["run"]["strategy"]["matrix"]["python"] == ["3.11", "3.12", "3.13"]
    assert commands["run"][-1] == ".ci/run" and (ROOT / ".ci" / "run").stat().st_mode & 0o100
    assert jobs["versions"]["strategy"]["matrix"]["suite"] == ["oldest", "newest"]
    makefile = read("Makefile")
    targets = set(re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)[1].split())
    made = [word for lines in commands.values() for line in lines for word in re.findall(r"^make (.+)$", line)]
    assert commands["boards"][1:] == [
        '.venv/bin/python -m pip install --editable ".[boards]"',
        ".venv/bin/python -m pytest -n 0 tests/test_boards.py",
    ]
    assert made == ["${{ matrix.suite }}", ".venv/installed", "proofs"] and {"oldest", "newest", "proofs"} <= targets


def test_actions_may_read_only():
    for path in (ROOT / ".github" / "workflows").glob("*.yml"):
        assert yaml.safe_load(path.read_text(encoding="utf-8"))["permissions"] == {"contents": "read"}, path.name


def test_hooks_have_the_pinned_versions_and_need_no_other_place():
    hooks = {
        hook["id"]: hook for repo in yaml.safe_load(read(".pre-commit-config.yaml"))["repos"] for hook in repo["hooks"]
    }
    assert {"ruff", "ruff-format", "typos", "end-of-file"} <= hooks.keys()
    pinned = set(read("constraints.txt").split())
    wanted = {name for hook in hooks.values() for name in hook["additional_dependencies"]}
    assert {name for name in wanted if name.startswith("ruff")} <= pinned
    assert all("==" in name for name in wanted)


@pytest.mark.parametrize("name", ["bug.yml", "wish.yml"])
def test_forms_ask_for_what_is_needed(name):
    form = yaml.safe_load(read(f".github/ISSUE_TEMPLATE/{name}"))
    assert {"name", "description", "body"} <= form.keys()
    fields = [field for field in form["body"] if field["type"] != "markdown"]
    assert len({field["id"] for field in fields}) == len(fields)
    assert any(field.get("validations", {}).get("required") for field in fields)


def test_who_cites_names_the_version_that_there_is():
    citation = yaml.safe_load(read("CITATION.cff"))
    assert citation["version"] == lascl.__version__ and citation["license"] == "Apache-2.0"
    paper = citation["preferred-citation"]
    names = " and ".join(f"{author['family-names']}, {author['given-names']}" for author in paper["authors"])
    assert names in read("README.md") and paper["title"] in read("README.md")


def test_the_changelog_is_kept_in_its_form():
    """Keep a Changelog's: what is not released first, then versions, the newest first; each change under its kind."""
    text = read("CHANGELOG.md")
    releases = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert releases[0] == "[Unreleased]" and releases[1].startswith(f"[{lascl.__version__}] - 2")
    dated = r"\[\d+\.\d+\.\d+\] - (?:\d{4}-\d\d-\d\d|not released)"
    assert all(re.fullmatch(dated, release) for release in releases[1:]), releases
    for part in re.split(r"^## .*\n", text, flags=re.MULTILINE)[1:]:
        before, *kinds = re.split(r"^### ", part, flags=re.MULTILINE)
        assert "\n* " not in before, before
        names = [kind.split("\n")[0] for kind in kinds]
        assert len(set(names)) == len(names), names
        assert set(names) <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}, names


def test_there_is_a_word_on_conduct_and_security():
    assert "Contributor Covenant" in read(".github/CODE_OF_CONDUCT.md")
    assert "trust_remote_code" in read(".github/SECURITY.md") and "privately" in read(".github/SECURITY.md")
    assert "make test" in read(".github/PULL_REQUEST_TEMPLATE.md")

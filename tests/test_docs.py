"""README and docs hold together: links lead somewhere, commands take their options, errors are those of the code, and
numbers that were measured are in rendered blocks alone."""

import ast
import contextlib
import io
import pkgutil
import re
import shlex
from configparser import ConfigParser
from functools import cache
from pathlib import Path

import pytest


ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = {page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8") for page in PAGES}
BLOCK = re.compile(r"<!-- (results|benchmark): ([\w-]+) -->\n.*?<!-- end of \1 -->", re.DOTALL)
API = re.compile(r"<!-- api: [\w. ]+ -->\n.*?<!-- end of api -->", re.DOTALL)
FENCE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
QUESTIONS = (
    *("predict", "words", "many-corpora", "your-corpus", "corpora", "protocols", "results", "speed", "scale", "hub"),
    *("deploy", "paper", "python", "python-api", "troubleshooting", "votes"),
)


def each_page(test):
    return pytest.mark.parametrize("name", TEXTS)(test)


def test_the_readme_is_read_in_a_minute():
    assert len(TEXTS["README.md"].splitlines()) <= 190


def test_there_is_a_page_a_question_and_readme_and_docs_lead_to_each():
    pages = {f"docs/{name}.md" for name in QUESTIONS}
    assert pages | {"README.md", "docs/README.md"} == TEXTS.keys()
    for index, prefix in (("README.md", "docs/"), ("docs/README.md", "")):
        listed = re.findall(rf"^\| \[[\w ]+\]\({prefix}([\w-]+)\.md\) \|", TEXTS[index], re.MULTILINE)
        assert sorted(listed) == sorted(QUESTIONS), index


def test_every_result_is_shown_on_one_page():
    """The README may show one that a page shows too."""
    shown = [name for page, text in TEXTS.items() if page != "README.md" for _, name in BLOCK.findall(text)]
    assert len(shown) == len(set(shown))
    made = {path.stem for path in (ROOT / "results").iterdir() if path.is_dir()} - {"benchmarks"}
    made |= {path.stem for path in (ROOT / "results" / "benchmarks").glob("*.json")}
    made -= {"large_manifest"}  # a bound that a proof holds, without a table
    assert made <= set(shown), f"put a block of {made - set(shown)} on a page, and run `make readme`"


def test_every_public_name_is_in_the_api():
    import lascl

    told = re.findall(r"^### `lascl\.(\w+)`$", TEXTS["docs/python-api.md"], re.MULTILINE)
    assert {*told, "__version__"} == set(lascl.__all__)


# ------------------------------------------------------------------------------------------------------------- links


def anchors(text: str) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


LINKING = {**TEXTS, ".github/CONTRIBUTING.md": (ROOT / ".github" / "CONTRIBUTING.md").read_text(encoding="utf-8")}


@pytest.mark.parametrize("name", LINKING)
def test_links_lead_somewhere(name):
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", LINKING[name])):
        if target.startswith(("https://", "http://", "mailto:")):
            continue
        file, _, anchor = target.partition("#")
        path = (ROOT / name).parent / file if file else ROOT / name
        assert path.exists(), f"{name}: {target}"
        assert not anchor or anchor in anchors(path.read_text(encoding="utf-8")), f"{name}: {target}"


# ---------------------------------------------------------------------------------------------------------- commands


def programs() -> dict[str, str]:
    """The commands that the package installs, each with its `module:main`."""
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    lines = setup["options.entry_points"]["console_scripts"].split("\n")
    return dict(line.replace(" ", "").split("=") for line in lines if line)


RECIPE_FIELDS_TOO = ("lascl-study", "lascl-verify")  # of the corpus, and of every run


def commands(text: str) -> list[list[str]]:
    """The words of each command line of LaSCL's in a page, from fences and from inline code."""
    text = API.sub("", BLOCK.sub("", text))
    lines = [
        line
        for fence in re.findall(r"^```bash\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
        for line in fence.split("\n")
    ]
    lines += re.findall(r"`((?:lascl-\w+|python train\.py|accelerate launch)[^`]*)`", text.replace("\n", " "))
    words = [shlex.split(line.partition("  #")[0].replace("\\|", "|")) for line in lines if line.strip()]
    return [line for line in words if line[0].startswith("lascl-") or "train.py" in line]


@cache
def options_of(program: str) -> frozenset[str]:
    fields = {f"--{name}" for name in pkgutil.resolve_name("lascl.training.recipe:field_types")()}
    if program == "lascl-train":
        return frozenset(fields)
    assert program in programs(), f"There is no {program}."
    found = set()
    for wanted in ("--help", "--help-all"):
        if wanted == "--help" or wanted in found:
            found |= set(re.findall(r"--[\w-]+", helped(pkgutil.resolve_name(programs()[program]), wanted)))
    return frozenset(found | fields if program in RECIPE_FIELDS_TOO else found)


def helped(main, wanted: str) -> str:
    said = io.StringIO()
    with contextlib.redirect_stdout(said), pytest.raises(SystemExit):
        main([wanted])
    return said.getvalue()


@each_page
def test_commands_take_their_options(name):
    for words in commands(TEXTS[name]):
        is_launched = "train.py" in words
        program = "lascl-train" if is_launched else words[0]
        given = words[words.index("train.py") + 1 if is_launched else 1 :]
        unknown = {word.partition("=")[0] for word in given if word.startswith("--")} - options_of(program)
        assert not unknown, f"{name}: {program} has no {unknown}"


@each_page
def test_options_in_prose_are_of_some_command(name):
    """An option alone, as in `--folds 1,3`; those of `space/app.py` and of others' programs aside."""
    known = frozenset().union(*map(options_of, programs())) | {"--model", "--help", "--help-all"}
    found = re.findall(r"`(--[\w-]+)", FENCE.sub("", API.sub("", BLOCK.sub("", TEXTS[name]))))
    assert set(found) <= known, set(found) - known


def test_a_wrong_option_would_be_seen():
    assert commands("```bash\nlascl-predict MODEL --lables x  # words\n```")[0][2] == "--lables"
    assert "--labels" in options_of("lascl-predict") and "--lables" not in options_of("lascl-predict")
    assert "--num_train_epochs" in options_of("lascl-train") and "--folds" in options_of("lascl-study")


# ------------------------------------------------------------------------------------------------------------ errors


@cache
def said_by_the_code() -> tuple[str, ...]:
    """Every text in the sources, a tab where something is filled in."""
    rooms = ("", "data", "training", "evaluation", "inference", "hub", "studies")
    found = []
    for path in (path for room in rooms for path in (ROOT / room).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(part.value if isinstance(part, ast.Constant) else "\t" for part in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return tuple(found)


def test_errors_that_are_explained_are_those_of_the_code():
    quoted = re.findall(r"^\| `([^`]+)` \|", TEXTS["docs/troubleshooting.md"], re.MULTILINE)
    assert len(quoted) > 40
    for sentence in quoted:
        pieces = [re.escape(piece.strip()) for piece in sentence.split("...")]
        pattern = re.compile(r".*?\t.*?".join(pieces), re.DOTALL)
        assert any(pattern.search(text) for text in said_by_the_code()), sentence


# ----------------------------------------------------------------------------------------------------------- numbers

# The numerals that prose may have: none was measured. Names (float32, ZeRO-2, eq. 4) and code need no leave.
STATED = {
    "16 kHz": "what every model hears",
    "3.11": "the oldest Python, setup.cfg",
    "4.57": "the oldest transformers, configuration_lascl.py",
    "5.0": "the oldest transformers of the package, setup.cfg",
    "(10 s)": "max_duration_s",
    "code is then 1": "of lascl-predict",
    "95 %": "what an interval is",
    "10 minutes, 50 MB": "the page's limits, space/app.py",
    "1e-4 from": "the tolerance of an export, inference/export.py",
    "to 1e-5": "the tolerance of a test, test_distributed.py",
    "20 steps": "of that test",
    "30 dB fainter": "of frames without a voice, encoders_lascl.py",
    "to 1e-12": "the tolerance of a test, test_length_groups.py",
    "torch 2.11": "a version",
    "DeepSpeed 0.19": "a version",
    "8-bit AdamW": "a name",
    "4 bits": "what bitsandbytes calls it",
    "`views_gb`, 20": "a default",
    "`decoded_gb`, 20": "a default",
    "`projection_dim`, 256": "a default",
    "0.07, 0.5 and 0.1": "defaults",
    "10 % of the steps": "a default",
    "0.01, not on": "a default",
    "77.79 WA and 78.42 UA": "the paper's",
    "EmoDB 92.6 UA, RAVDESS 75.3, EMOVO 57.8": "EmoBox's",
    "(1 - lambda_1)": "a formula",
    "K (K - 1)": "a formula",
    "2N": "a formula",
}
NAMES = re.compile(
    r"[Ee]q\. \d+(?:, \d+| and \d+| to \d+)*|Tables? \d+(?: to \d+)*|section \d\.\d|Interspeech 20\d\d"
    r"|wav2vec 2\.0|Apache-2\.0|\b[A-Za-z_]+[-_]?\d+[\w-]*"
)


def prose(text: str) -> str:
    """A page without what is rendered, code, comments and addresses."""
    for left_out in (BLOCK, API, FENCE, re.compile(r"^    .*$", re.MULTILINE), re.compile(r"<!--.*?-->", re.DOTALL)):
        text = left_out.sub("", text)
    for phrase in (phrase for phrase in STATED if "`" in phrase):
        text = text.replace(phrase, "")
    text = re.sub(r"`[^`]*`", "", text.replace("\n", " "))
    text = re.sub(r"\]\([^)]*\)|<https?:[^>]*>", "", text)
    return text


def numerals(text: str) -> list[str]:
    """What is left of the numerals of a page, each with what is around it."""
    text = prose(text)
    for phrase in STATED:
        text = text.replace(phrase, "")
    text = NAMES.sub("", text)
    return [text[max(0, match.start() - 30) : match.end() + 30] for match in re.finditer(r"\d[\d.,]*", text)]


@pytest.mark.parametrize("name", [name for name in TEXTS if name != "docs/corpora.md"])
def test_no_number_in_prose_is_measured(name):
    """Measured ones come from `results/`, in rendered blocks; the counts of corpora have a test of their own."""
    assert numerals(TEXTS[name]) == []


def test_a_measured_number_would_be_seen():
    assert numerals("LaSCL reaches 88.8 UA.") and numerals("It is 1.7x as fast") and numerals("in 12 minutes")
    assert numerals("eq. 4 in float32 on wav2vec2-base, `lambda=0.5`, at 16 kHz") == []


def test_no_leave_is_given_that_nobody_takes():
    everything = " ".join(text.replace("\n", " ") for text in TEXTS.values())
    assert [phrase for phrase in STATED if phrase not in everything] == []

"""README's picture: it follows from its files, shows all that is in them, and is read on white and on black paper."""

import csv
import importlib
import re
import shutil
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest


ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "_static" / "joint-space.svg"
FOLD = ROOT / "results" / "within-each" / "one_model" / "seed-42" / "fold-1"
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def joint_space():
    assert (ROOT / "studies" / "joint_space.py").is_file(), "no command makes a picture of the joint space"
    return importlib.import_module("lascl.studies.joint_space")


def test_the_readme_shows_the_picture_and_a_command_makes_it(joint_space):
    for page, path in (
        ("README.md", "docs/_static/joint-space.svg"),
        ("docs/many-corpora.md", "_static/joint-space.svg"),
    ):
        assert re.search(rf"!\[[^\]]{{40,}}\]\({path}\)", (ROOT / page).read_text(encoding="utf-8")), page
    command = f"lascl.studies.joint_space draw {FOLD.relative_to(ROOT)} {PICTURE.relative_to(ROOT)}\n"
    assert command in (ROOT / "Makefile").read_text(encoding="utf-8")
    assert joint_space.draw(FOLD) == PICTURE.read_text(encoding="utf-8"), "run `make readme`"


def test_every_utterance_is_where_its_file_says_in_the_colour_of_its_word():
    assert PICTURE.is_file(), "there is no picture"
    with open(FOLD / "predictions.csv", newline="", encoding="utf-8") as file:
        rows = {row["id"]: row for row in csv.DictReader(file)}
    _, *lines = (FOLD / "places.csv").read_text(encoding="utf-8").splitlines()
    places = {name: (kind, float(x), float(y)) for kind, name, x, y in (line.split(",") for line in lines)}
    svg = ElementTree.parse(PICTURE).getroot()
    rings = [ring for ring in svg.iter(f"{SVG}circle") if "ring" in ring.get("class")]
    words = [text.text for text in svg.iter(f"{SVG}text") if text.get("class") == "word"]
    word_of = {ring.get("class").split()[0]: word for ring, word in zip(rings, words, strict=True)}
    assert set(words) == {row["reference"] for row in rows.values()}

    drawn = {word: (float(ring.get("cx")), float(ring.get("cy"))) for ring, word in zip(rings, words)}
    found, expected = Counter(), Counter()
    for group in svg.iter(f"{SVG}g"):
        for use in group.findall(f"{SVG}use"):
            at = float(use.get("x")), float(use.get("y"))
            found[(word_of[group.get("class")], use.get("href").removeprefix("#"), *at)] += 1
    # Where two words and the whole lie says how places become points.
    pairs = np.array([[*places[word][1:], *point] for word, point in drawn.items()])
    (x_by, x_from), (y_by, y_from) = (np.polyfit(pairs[:, i], pairs[:, 2 + i], 1) for i in (0, 1))
    for id, row in rows.items():
        _, x, y = places[id]
        expected[(row["reference"], row["corpus"], x_by * x + x_from, y_by * y + y_from)] += 1
    assert len(rows) == sum(found.values()) == len(places) - len(words) > 500
    for kind in {key[:2] for key in found}:
        both = [sorted(key[2:] for key in counted.elements() if key[:2] == kind) for counted in (found, expected)]
        assert len(both[0]) == len(both[1])
        for point in both[0]:
            assert min(np.hypot(*np.subtract(point, other)) for other in both[1]) < 0.2
    width, height = map(float, svg.get("viewBox").split()[2:])
    assert all(0 < x < width and 0 < y < height for *_, x, y in found)


def luminance(colour: str) -> float:
    """WCAG 2's, of #RRGGBB."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return float(np.dot([0.2126, 0.7152, 0.0722], linear))


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_it_is_read_on_white_and_on_black_paper():
    assert PICTURE.is_file(), "there is no picture"
    light, dark = PICTURE.read_text(encoding="utf-8").split("</style>")[0].split("@media (prefers-color-scheme: dark)")
    for sheet in (light, dark):
        told = dict(re.findall(r"([.\w]+)\{[^}]*?fill:(#\w{6})", sheet))
        marks = {name: colour for name, colour in told.items() if re.fullmatch(r"\.c\d", name)}
        assert len(set(marks.values())) == 9
        assert contrast(told["text"], told[".paper"]) > 7
        assert min(contrast(colour, told[".paper"]) for colour in marks.values()) > 2.8, marks
    (size,) = re.findall(r"text\{font:(\d+)px", light)
    assert 400 / 760 * int(size) > 8.5, "too small on a phone"


def test_places_keep_neighbours_together(joint_space, tmp_path):
    """Around each of three words far from each other, its utterances."""
    centres = np.eye(3, 8, dtype=np.float32)
    own = np.repeat(np.arange(3), 20)
    audio = centres[own] + 0.05 * np.random.default_rng(0).standard_normal((60, 8), dtype=np.float32)
    ids = np.array([f"one/{number}" for number in range(60)])
    arrays = {"labels": np.array(["a", "b", "c"]), "label_embeds": centres, "ids": ids, "audio_embeds": audio}
    np.savez(tmp_path / "embeddings.npz", **arrays)
    placed = joint_space.place(tmp_path)
    joint_space.write_places(tmp_path, placed)
    assert joint_space.read_places(tmp_path) == placed
    points = np.array([point for _, _, *point in placed])
    assert (
        points.min() == 0 and points.max() == 1 and [kind for kind, *_ in placed] == ["word"] * 3 + ["utterance"] * 60
    )
    distances = np.linalg.norm(points[3:, None] - points[None, :3], axis=-1)
    assert (distances.argmin(axis=1) == own).all()


def test_files_that_do_not_belong_together_are_refused(joint_space, tmp_path):
    for name in ("places.csv", "predictions.csv"):
        shutil.copy(FOLD / name, tmp_path)
    lines = (FOLD / "places.csv").read_text(encoding="utf-8").splitlines(keepends=True)
    (tmp_path / "places.csv").write_text("".join(lines[:-1]), encoding="utf-8")
    with pytest.raises(ValueError, match=r"is not in both of places\.csv and predictions\.csv"):
        joint_space.draw(tmp_path)
    extra = [f"word,w{number},0.5,0.5\n" for number in range(5)]
    (tmp_path / "places.csv").write_text("".join([lines[0], *extra, *lines[1:]]), encoding="utf-8")
    with pytest.raises(ValueError, match="has 14 words; there are colours for 9"):
        joint_space.draw(tmp_path)
    with pytest.raises(SystemExit):
        joint_space.main(["paint"])

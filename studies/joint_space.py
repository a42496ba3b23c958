"""README's picture: words in the joint space, and around them utterances of several corpora.

    python -m lascl.studies.joint_space place RUN/fold-1 results/NAME/fold-1     # from the fold's embeddings, once
    python -m lascl.studies.joint_space draw results/NAME/fold-1 docs/_static/joint-space.svg

`place` writes `places.csv`: t-SNE sums differently on every CPU, so what it found is kept and not the embeddings, which
are large. `draw` follows from that file and the `predictions.csv` beside it, to the byte (`make readme`).
"""

from __future__ import annotations

import csv
import sys
from html import escape
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lascl.evaluation.figures import tsne_layout
from lascl.evaluation.predictions import read_predictions


PLACES = "places.csv"
# By corpus its sign, drawn around (0, 0), and what the legend says.
SIGNS = {
    "emodb": ("M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0", "EmoDB, German"),
    "emovo": ("M-3.5-3.5h7v7h-7z", "EMOVO, Italian"),
    "nemo": ("M0-4.6l4.4 7.9h-8.8z", "nEMO, Polish"),
    "ravdess": ("M0-4.9l4.9 4.9l-4.9 4.9l-4.9-4.9z", "RAVDESS, English"),
}
# By word its colour on white and on black paper: Okabe and Ito's (2008), and a brown.
COLOURS = (
    *(("#D55E00", "#FF8A3D"), ("#8C6D1F", "#C8A951"), ("#2E9BD6", "#5CC3F5"), ("#009E73", "#2CCB9F")),
    *(("#8E3FB0", "#C58BE8"), ("#C98A00", "#F5C242"), ("#6E6E6E", "#A6A6A6"), ("#34408F", "#8C9AF7")),
    ("#C4588F", "#F08CC0"),
)
WIDTH, HEIGHT, MARGIN, LEGEND = 760, 520, 26, 40  # of the drawing; the last two of its rim and of its last line


class Place(NamedTuple):
    """Where a word, or an utterance of that id, lies: x and y in [0, 1], from the left and from the top."""

    kind: str
    name: str
    x: float
    y: float


def place(fold_dir: Path) -> list[Place]:
    """The words and test utterances of a fold in two dimensions, by t-SNE of cosine distances."""
    with np.load(fold_dir / "embeddings.npz") as arrays:
        words, ids = arrays["labels"].tolist(), arrays["ids"].tolist()
        layout = tsne_layout(np.concatenate([arrays["label_embeds"], arrays["audio_embeds"]]))  # (K + B, 2)
    layout = (layout - layout.min(axis=0)).astype(float) / np.ptp(layout, axis=0)
    kinds = ["word"] * len(words) + ["utterance"] * len(ids)
    return [Place(kind, name, *point) for kind, name, point in zip(kinds, words + ids, layout.round(4).tolist())]


def read_places(folder: Path) -> list[Place]:
    with open(folder / PLACES, newline="", encoding="utf-8") as file:
        return [Place(row["kind"], row["name"], float(row["x"]), float(row["y"])) for row in csv.DictReader(file)]


def write_places(folder: Path, places: list[Place]):
    with open(folder / PLACES, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Place._fields)
        writer.writerows(places)


def draw(folder: Path) -> str:
    """The picture as SVG text, of a folder with `places.csv` and `predictions.csv`. It is light or dark as the reader's
    system is, on paper of its own.

    Raises:
        ValueError: more words than colours, or an utterance that is in one of the files alone.
    """
    places, rows = read_places(folder), {row["id"]: row for row in read_predictions(folder / "predictions.csv")}
    words = [place.name for place in places if place.kind == "word"]
    utterances = [place for place in places if place.kind == "utterance"]
    if len(words) > len(COLOURS):
        raise ValueError(f"{folder / PLACES} has {len(words)} words; there are colours for {len(COLOURS)}.")
    if odd := {place.name for place in utterances} ^ rows.keys():
        raise ValueError(f"{folder}: {min(odd)!r} is not in both of {PLACES} and predictions.csv. Place it anew.")
    parts = [*_head(rows), '<g opacity=".72">']
    for index, word in enumerate(words):
        parts.append(f'<g class="c{index}">')
        for _, id, x, y in utterances:
            if rows[id]["reference"] == word:
                parts.append(f'<use href="#{rows[id]["corpus"]}" x="{_across(x)}" y="{_down(y)}"/>')
        parts.append("</g>")
    parts.append("</g>")
    for index, (_, word, x, y) in enumerate(place for place in places if place.kind == "word"):
        parts.append(f'<circle class="c{index} ring" cx="{_across(x)}" cy="{_down(y)}" r="8"/>')
        parts.append(f'<text class="word" x="{_across(x)}" y="{_down(y, -14)}">{escape(word)}</text>')
    corpora = sorted({row["corpus"] for row in rows.values()})
    for number, corpus in enumerate(corpora):
        x = WIDTH * (number + 0.1) / len(corpora)
        parts.append(f'<use class="sign" href="#{corpus}" x="{x:.1f}" y="{HEIGHT - 20}"/>')
        parts.append(f'<text x="{x + 12:.1f}" y="{HEIGHT - 14}">{escape(SIGNS[corpus][1])}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _head(rows: dict[str, dict]) -> list[str]:
    """What stands before the drawing: what it shows in words, signs, colours, paper."""
    corpora = sorted({row["corpus"] for row in rows.values()})
    light, dark = (
        [f".c{index}{{fill:{colours[shade]}}}" for index, colours in enumerate(COLOURS)] for shade in range(2)
    )
    return [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">',
        "<title>Words in the joint space, and utterances around them</title>",
        f"<desc>{len(rows)} utterances of {', '.join(SIGNS[corpus][1] for corpus in corpora)}, of speakers that the "
        "model never heard, in the colour of their emotion's word. t-SNE: only neighbourhoods mean something.</desc>",
        "<style>",
        "text{font:17px sans-serif;fill:#1F2328} .paper{fill:#FFFFFF} .sign{fill:#1F2328}",
        ".word{font:bold 22px sans-serif;text-anchor:middle;paint-order:stroke;stroke:#FFFFFF;stroke-width:5px}",
        ".ring{stroke:#1F2328;stroke-width:3px}",
        *light,
        "@media (prefers-color-scheme: dark){",
        "text{fill:#E6EDF3} .paper{fill:#0D1117} .sign{fill:#E6EDF3} .word{stroke:#0D1117} .ring{stroke:#E6EDF3}",
        *dark,
        "}",
        "</style>",
        "<defs>",
        *(f'<path id="{corpus}" d="{SIGNS[corpus][0]}"/>' for corpus in corpora),
        "</defs>",
        f'<rect class="paper" width="{WIDTH}" height="{HEIGHT}" rx="8"/>',
    ]


def _across(x: float) -> str:
    return f"{MARGIN + x * (WIDTH - 2 * MARGIN):.1f}"


def _down(y: float, by: float = 0) -> str:
    return f"{MARGIN + y * (HEIGHT - LEGEND - 2 * MARGIN) + by:.1f}"


def main(arguments: list[str]):
    match arguments:
        case ["place", fold_dir, folder]:
            write_places(Path(folder), place(Path(fold_dir)))
        case ["draw", folder, path]:
            Path(path).write_text(draw(Path(folder)), encoding="utf-8")
        case _:
            raise SystemExit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])

"""The paper's Figures 2 and 3 of a study: cross entropy alone beside the full method, on identical utterances."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from lascl.evaluation.figures import (
    Missing,
    draw_confusion,
    draw_tsne,
    drawing_style,
    numbered_names,
    picture,
    renamed,
    true_labels,
)
from lascl.evaluation.report_data import Run, load_run


def geometry(run: Run, number: int) -> dict[str, float | None]:
    """How far a fold's test utterances lie in clusters of their emotion, in the embedding space itself.

    Returns:
        `silhouette`: the mean silhouette coefficient (Rousseeuw, 1987) of cosine distances, in [-1, 1]; None unless
        there are between two labels and one less than utterances. `own_label` and `other_label`: the mean cosine of
        an utterance and the embedding of its label, and of the nearest other label; `nearest_is_own`: the share of
        utterances whose nearest label embedding is their own. These three are None where no label embedding was
        trained.
    """
    from sklearn.metrics import silhouette_score

    arrays, references = run.embeddings[number], true_labels(run, number)
    embeds, occurring = arrays["audio_embeds"].astype(float), len(set(references))
    found = dict.fromkeys(("silhouette", "own_label", "other_label", "nearest_is_own"))
    if 2 <= occurring < len(references):
        found["silhouette"] = float(silhouette_score(embeds, references, metric="cosine"))
    if run.has_label_space:
        cosines = embeds @ arrays["label_embeds"].astype(float).T  # both of unit length
        own = arrays["labels"][None, :] == references[:, None]
        found["own_label"] = float(cosines[own].mean())
        found["other_label"] = float(np.where(own, -np.inf, cosines).max(axis=1).mean())
        found["nearest_is_own"] = float(own[np.arange(len(own)), cosines.argmax(axis=1)].mean())
    return found


def write_pairs(figures: Path, names: tuple[str, str], run_dirs: tuple[Path, Path]) -> str:
    """Draws `confusion_pair.png` and `tsne_pair.png` into a folder.

    Args:
        figures: the folder, made if need be.
        names, run_dirs: of the two runs, in the order of the pictures.

    Returns:
        Markdown that shows them beside the file's folder, with the numbers of `geometry` under the maps; why a pair is
        left out, where the runs did not test the same utterances.

    Raises:
        ValueError: no finished run is there, or a file of it is damaged.
    """
    runs = [load_run(run_dir) for run_dir in run_dirs]
    figures.mkdir(exist_ok=True)
    first, second = ({row["id"] for row in run.rows} for run in runs)
    if first != second:
        return f"Figures are left out: {names[0]} and {names[1]} did not test the same utterances."
    sections = []
    titles = {"confusion": "Confusion matrices, as the paper's Figure 2", "tsne": "t-SNE, as the paper's Figure 3"}
    drawable = [renamed(run, numbered_names(run)) for run in runs]
    with drawing_style():
        for kind, draw in (("confusion", draw_confusion), ("tsne", draw_tsne)):
            try:
                drawn = [draw(run) for run in drawable]
            except Missing as missing:
                sections.append(f"{titles[kind]}: {missing}")
                continue
            for letter, name, (figure, _, _) in zip("ab", names, drawn):
                figure.suptitle(f"({letter}) {name}")
            path = figures / f"{kind}_pair.png"
            _save_side_by_side(path, [picture(figure, "png") for figure, _, _ in drawn])
            words = [f"({letter}) {name}: {alt}" for letter, name, (_, _, alt) in zip("ab", names, drawn)]
            sections += [f"![{titles[kind]}: {names[0]}, {names[1]}]({figures.name}/{path.name})", *words]
    if all(run.embeddings for run in runs):
        sections.append(_geometry_table(names, runs))
    return "\n\n".join(sections)


def _save_side_by_side(path: Path, pictures: list[bytes]):
    from matplotlib import image

    arrays = [image.imread(io.BytesIO(picture), format="png") for picture in pictures]
    height = max(len(array) for array in arrays)
    padded = [np.pad(a, ((0, height - len(a)), (0, 0), (0, 0)), constant_values=1) for a in arrays]
    image.imsave(path, np.concatenate(padded, axis=1), metadata={"Software": None})


def _geometry_table(names: tuple[str, str], runs: list[Run]) -> str:
    heads = ("silhouette", "cosine to own label", "to the nearest other label", "nearest label is own (%)")
    lines = [f"| test utterances | {' | '.join(heads)} |", "|---" * 5 + "|"]
    for name, run in zip(names, runs):
        by_fold = [geometry(run, number) for number in run.embeddings]
        for which, folds in (("the fold of the map", by_fold[:1]), (f"mean over {len(by_fold)} folds", by_fold)):
            if which.startswith("mean") and len(by_fold) == 1:
                continue
            cells = []
            for key in by_fold[0]:
                values = [fold[key] for fold in folds if fold[key] is not None]
                scale, form = (100, ".1f") if key == "nearest_is_own" else (1, ".3f")
                cells.append(format(scale * np.mean(values), form) if values else "-")
            lines.append(f"| {name}, {which} | {' | '.join(cells)} |")
    note = (
        "Of the embedding space itself, not of the maps, which alone prove nothing. The silhouette is of cosine "
        "distances, by true emotion. Where no label embedding is trained, neither is the projection: utterances are "
        "there seen through a random one, which keeps the encoder's neighbourhoods roughly."
    )
    return "\n".join([*lines, "", note])

"""The figures of a report, as the field draws them, each with its caption and its numbers in words.

matplotlib is imported where it is used and never through pyplot: nobody's backend or settings change.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from lascl.evaluation.predictions import head_probabilities, trained_words
from lascl.evaluation.report_data import Run, reliability, speaker_accuracy
from lascl.evaluation.results import interval_of


if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE = str(Path(__file__).with_name("lascl.mplstyle"))
# The first has what most labels need and comes with matplotlib; of the others, those that are installed draw the rest.
FONTS = (
    "DejaVu Sans",
    *("Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans SC", "Source Han Sans SC", "WenQuanYi Micro Hei"),
    *(
        "WenQuanYi Zen Hei",
        "Droid Sans Fallback",
        "PingFang SC",
        "Hiragino Sans GB",
        "Hiragino Sans",
        "Microsoft YaHei",
    ),
    *(
        "SimHei",
        "Yu Gothic",
        "Apple SD Gothic Neo",
        "Malgun Gothic",
        "NanumGothic",
        "Noto Sans Devanagari",
        "Nirmala UI",
    ),
    *("Noto Sans Bengali", "Noto Sans Tamil", "Noto Sans Thai", "Leelawadee UI", "Noto Sans", "Arial Unicode MS"),
)
# A second sign beside the colour: classes stay apart in grey print and for every eye.
MARKERS = "os^DvPX*"
MAX_TSNE_POINTS = 2000
MAX_SPEAKERS = 30
TERMS = {
    "loss": "total loss (eq. 9)",
    "contrastive": "contrastive (eq. 4)",
    "divergence": "label divergence (eq. 5-6)",
    "cross_entropy": "cross-entropy",
    "validation_ua": "validation UA (%)",
    "test_ua": "test UA (%), not used",
}


class Plot(NamedTuple):
    """A drawn figure: a file name without suffix, a title, a caption, its numbers in words, and the file's bytes."""

    name: str
    title: str
    caption: str
    alt: str
    png: bytes
    svg: bytes


class Missing(Exception):
    """A figure cannot be drawn from this run; the message says what is missing."""


def draw_figures(run: Run) -> tuple[list[Plot], list[str]]:
    """Draws what the files of a run allow.

    Returns:
        The figures in the order of the report, and a sentence for each that is left out.
    """
    plots, left_out = [], []
    drawings: dict[str, tuple[str, Callable]] = {
        "corpora": ("Corpus by corpus", _corpora),
        **_confusions(run),
        "tsne": ("Embeddings of the test utterances", draw_tsne),
        "tsne_folds": ("Embeddings of the other folds", _tsne_folds),
        "label_similarity": ("Label similarities", _label_similarity),
        "learning_curves": ("Learning curves", _learning_curves),
        "reliability": ("Reliability", _reliability),
        "speakers": ("Speakers", _speakers),
    }
    numbers = numbered_names(run)
    drawable = renamed(run, numbers)
    with drawing_style():
        for name, (title, draw) in drawings.items():
            try:
                figure, caption, alt = draw(run)
            except Missing as missing:
                if str(missing):
                    left_out.append(f"{title}: {missing}")
                continue
            with warnings.catch_warnings():
                # Its text stays text, and whoever shows it has fonts of its own; here it is only measured.
                warnings.filterwarnings("ignore", "Glyph .* missing from font")
                svg = picture(figure, "svg")
            if numbers:
                figure, _, _ = draw(drawable)
            plots.append(Plot(name, title, caption, alt, picture(figure, "png"), svg))
    return plots, left_out


@contextlib.contextmanager
def drawing_style():
    """matplotlib's settings for the figures of LaSCL, for a while."""
    import matplotlib.style

    # The last, generic one is for who shows an SVG without any of them.
    with matplotlib.style.context([STYLE, {"font.family": [*_installed_fonts(), "sans-serif"]}]):
        yield


def _installed_fonts() -> list[str]:
    from matplotlib import font_manager

    installed = set(font_manager.get_font_names())
    return [name for name in FONTS if name in installed]


def numbered_names(run: Run) -> dict[str, str]:
    """Of each label and speaker that no installed font of `FONTS` can draw, a number that stands for it in the PNG
    files: labels as in the checkpoint from 0 on, speakers as `S1`, `S2`, in order of their names."""
    from matplotlib import font_manager

    fonts = [font_manager.get_font(font_manager.findfont(name)) for name in _installed_fonts()]
    known = set().union(*(font.get_charmap() for font in fonts))
    names = {label: str(index) for index, label in enumerate(run.labels)}
    speakers = sorted({row["speaker"] for row in run.rows} - names.keys())
    names |= {speaker: f"S{number}" for number, speaker in enumerate(speakers, start=1)}
    return {name: number for name, number in names.items() if not known.issuperset(map(ord, name))}


def renamed(run: Run, names: dict[str, str]) -> Run:
    """The run with other names for some of its labels and speakers."""
    if not names:
        return run

    def column(name):
        prefix = next((p for p in ("probability_classifier_", "probability_") if name.startswith(p)), "")
        return prefix + names.get(name.removeprefix(prefix), name.removeprefix(prefix))

    def new(name):
        return names.get(name, name)

    named = ("speaker", "reference", "prediction", "prediction_classifier")
    predictions = {
        number: [{column(key): new(value) if key in named else value for key, value in row.items()} for row in rows]
        for number, rows in run.predictions.items()
    }
    embeddings = {
        number: {**arrays, "labels": np.array([new(label) for label in arrays["labels"].tolist()])}
        for number, arrays in run.embeddings.items()
    }
    results = {**run.results, "pooled": {**run.results["pooled"], "labels": [new(label) for label in run.labels]}}
    if "corpora" in results:
        results["corpora"] = {
            corpus: {**scores, "labels": [new(label) for label in scores["labels"]]}
            for corpus, scores in results["corpora"].items()
        }
    protocol = {**run.protocol}
    if "own_words" in protocol:
        protocol["own_words"] = {name: [new(word) for word in words] for name, words in protocol["own_words"].items()}
    return dataclasses.replace(run, results=results, protocol=protocol, predictions=predictions, embeddings=embeddings)


def picture(figure: Figure, kind: str) -> bytes:
    # No date and no version: the same run gives the same file.
    metadata = {"Software": None} if kind == "png" else {"Date": None, "Creator": None}
    file = io.BytesIO()
    figure.savefig(file, format=kind, metadata=metadata)
    return file.getvalue()


def _figure(*size: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=size or None)


def _confusions(run: Run) -> dict[str, tuple[str, Callable]]:
    """The drawing of the confusion matrix; of several corpora one each, over its own words."""
    corpora = run.results.get("corpora", ())
    if not corpora:
        return {"confusion": ("Confusion matrix", draw_confusion)}
    return {
        f"confusion_{number}": (f"Confusion matrix of {corpus}", partial(draw_confusion, corpus=corpus))
        for number, corpus in enumerate(corpora, start=1)
    }


def _corpora(run: Run):
    """UA of every corpus with its interval over speakers: over its own words, over all, and of words that were not
    trained."""
    if "corpora" not in run.results:
        raise Missing
    corpora, mean = run.results["corpora"], run.results["mean_over_corpora"]
    series = {"own words": (), "all words": ("all_words",), "unseen words": ("unseen_words",)}
    if run.recipe.get("prediction_head") != "classifier":
        series["own words, classifier"] = ("classifier",)
    series = {name: path for name, path in series.items() if not path or path[0] in mean}
    figure = _figure(4.6, 1.7 + 0.2 * len(series) * (len(corpora) + 1))
    axes = figure.add_subplot()
    words, labelled = [], set()
    for place, (corpus, scores) in enumerate([*corpora.items(), ("mean", mean)]):
        told = []
        for number, (name, path) in enumerate(series.items()):
            found = scores.get(path[0]) if path else scores
            if found is None:
                continue
            y, ua, ends = place + (number + 1) / (len(series) + 1) - 0.5, 100 * found["ua"], _ends_of_ua(found)
            look = {"color": f"C{number}", "marker": MARKERS[number], "markersize": 5}
            axes.plot([ua], [y], linestyle="none", label=None if name in labelled else name, **look)
            labelled.add(name)
            if ends:
                axes.plot([100 * end for end in ends], [y, y], color=f"C{number}", linewidth=1)
            told.append(f"{name} {ua:.1f}")
        if scores is not mean:
            chance = 100 / len([word for word in scores["labels"] if word])
            axes.plot([chance, chance], [place - 0.4, place + 0.4], color="#8A8A8A", linestyle=":", linewidth=1)
        words.append(f"{corpus}: {', '.join(told)}")
    axes.set_yticks(range(len(corpora) + 1), [*corpora, "mean"])
    axes.set(xlim=(0, 101), xlabel="UA (%)")
    axes.axhline(len(corpora) - 0.5, color="#D0D0D0", linewidth=0.8)
    axes.invert_yaxis()
    axes.grid(axis="x")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    caption = (
        "UA of each tested corpus; lines are 95 % intervals over its speakers, dotted is chance over its own words. "
        "Lines of the mean are its standard error, which speaks of other speakers of these corpora, not of others."
    )
    if run.results.get("transductive"):
        caption += " Transductive: unlabelled audio of the tested side was used."
    return figure, caption, f"UA by corpus in per cent. {'; '.join(words)}."


def _ends_of_ua(scores: dict) -> list[float] | None:
    """Where the line of a UA ends: its interval, or of a mean over corpora its standard error."""
    if "num_corpora" not in scores:
        return interval_of(scores, "ua")
    error = scores["se"]["ua"]
    return None if error is None else [scores["ua"] - error, scores["ua"] + error]


def draw_confusion(run: Run, corpus: str | None = None):
    """The paper's Fig. 2: rows sum to 100 per cent; of one of several corpora over its own words."""
    scores = run.results["pooled"] if corpus is None else run.results["corpora"][corpus]
    counts, labels = np.array(scores["confusion"]), [label or "no answer" for label in scores["labels"]]
    true = counts.sum(axis=1, keepdims=True)
    shares = np.divide(100.0 * counts, true, out=np.full(counts.shape, np.nan), where=true > 0)
    cells = [[f"{value:.1f}" if value else "0" for value in row] for row in shares]
    figure = _matrix(labels, shares, cells, "Blues", (0, 100), small=counts)
    axes = figure.axes[0]
    axes.set(xlabel="predicted", ylabel="true")
    confused = np.where(np.eye(len(counts), dtype=bool), -1, np.nan_to_num(shares, nan=-1))
    i, j = np.unravel_index(confused.argmax(), confused.shape)
    recalls = ", ".join(f"{label} {shares[k, k]:.1f}" for k, label in enumerate(labels) if true[k])
    alt = f"Confusion matrix in per cent of the true class. Right: {recalls}."
    if confused[i, j] > 0:
        alt += f" Most frequent confusion: {labels[i]} taken for {labels[j]}, {shares[i, j]:.1f}."
    whose = "utterances, as in the paper's Fig. 2" if corpus is None else f"utterances of {corpus}, over its own words"
    caption = (
        f"Per cent of the true class (rows sum to 100), utterances in small print; all {counts.sum()} tested {whose}."
    )
    return figure, caption, alt


def _label_similarity(run: Run):
    """Cosine similarities of the label embeddings, the mean over folds."""
    if not run.embeddings:
        raise Missing("left out, no fold of this run has embeddings.npz.")
    if not run.has_label_space:
        raise Missing("left out, this objective trains no label embeddings.")
    if len(run.labels) < 2:
        raise Missing("left out, there is one label only.")
    matrices = []
    for number, arrays in run.embeddings.items():
        if sorted(arrays["labels"].tolist()) != sorted(run.labels):
            raise ValueError(
                f"fold-{number}/embeddings.npz has the labels {arrays['labels'].tolist()}, results.json has "
                f"{run.labels}. Delete the file: the report then goes without."
            )
        order = [arrays["labels"].tolist().index(label) for label in run.labels]
        embeds = arrays["label_embeds"][order].astype(float)
        embeds /= np.linalg.norm(embeds, axis=1, keepdims=True)
        matrices.append(embeds @ embeds.T)
    mean = np.mean(matrices, axis=0)
    cells = [[f"{value + 0.0:.2f}" for value in row] for row in mean.round(2)]  # + 0.0: no minus before a zero
    figure = _matrix(run.labels, mean, cells, "PuOr_r", (-1, 1))
    pairs = [(mean[i, j], run.labels[i], run.labels[j]) for i in range(len(mean)) for j in range(i)]
    (high, *near), (low, *far) = max(pairs), min(pairs)
    average = np.mean([similarity for similarity, *_ in pairs]).round(2) + 0.0
    folds = f"mean over {len(matrices)} folds" if len(matrices) > 1 else "one fold"
    alt = (
        f"Cosine similarities of the label embeddings, {folds}: nearest {near[0]} and {near[1]} with {high:.2f}, "
        f"farthest {far[0]} and {far[1]} with {low:.2f}; mean over pairs {average:.2f}."
    )
    k = len(run.labels)
    caption = (
        f"Cosine similarities of the label embeddings after training, {folds}. The divergence loss (eq. 5-6) "
        f"pushes them apart; {k} labels can all be as far apart as -{1 / (k - 1):.2f}."
    )
    return figure, caption, alt


def _matrix(labels, values, cells, cmap, limits, small=None) -> Figure:
    """A square matrix, coloured by `values`, with the strings of `cells` in it and `small` numbers under them."""
    k = len(labels)
    side = max(2.6, 0.54 * k)
    figure = _figure(side + 1.4, side + 0.9)
    axes = figure.add_subplot()
    image = axes.imshow(values, cmap=cmap, vmin=limits[0], vmax=limits[1])
    for i in range(k):
        for j in range(k):
            if np.isnan(values[i, j]):
                axes.text(j, i, "-", ha="center", va="center")
                continue
            red, green, blue, _ = image.cmap(image.norm(values[i, j]))
            colour = "white" if 0.299 * red + 0.587 * green + 0.114 * blue < 0.55 else "#222222"
            two_lines = small is not None and small[i, j]
            axes.text(j, i, cells[i][j], ha="center", va="bottom" if two_lines else "center", color=colour)
            if two_lines:
                axes.text(j, i + 0.06, f"{small[i, j]}", ha="center", va="top", fontsize=7, color=colour)
    tilt = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if k > 4 else {}
    axes.set_xticks(range(k), labels, **tilt)
    axes.set_yticks(range(k), labels)
    axes.set_xticks(np.arange(k - 1) + 0.5, minor=True)
    axes.set_yticks(np.arange(k - 1) + 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1.5)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    return figure


def draw_tsne(run: Run):
    """The paper's Fig. 3 of the first fold, with the label embeddings among the utterances."""
    if not run.embeddings:
        raise Missing("left out, no fold of this run has embeddings.npz.")
    number = min(run.embeddings)
    figure = _figure(4.6, 4.7)
    axes = figure.add_subplot()
    shown, total = _scatter_tsne(axes, run, number, large=True)
    handles, names = axes.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=min(4, len(names)), handletextpad=0.2)
    counted = (
        f"{shown} of {total} test utterances, drawn at random," if shown < total else f"The {total} test utterances"
    )
    labels = " and its label embeddings (large and hollow)" if run.has_label_space else ""
    if run.own_words and run.has_label_space:
        labels = " and the words of all corpora (large and hollow; with a star those that this fold never trained on)"
    caption = (
        f"{counted} of fold {number}{_tested_corpora(run, number)}{labels}, t-SNE of cosine distances as in the "
        "paper's Fig. 3. Only neighbourhoods mean something here, not distances or sizes."
    )
    return figure, caption, f"t-SNE map of fold {number}. {_nearest_in_words(run, number)}"


def _tested_corpora(run: Run, number: int) -> str:
    """Of several corpora those that a fold tests, in brackets."""
    names = sorted({row.get("corpus", "") for row in run.predictions[number]} - {""})
    return f" ({', '.join(names)})" if names else ""


def _tsne_folds(run: Run):
    """The same of the other folds: each fold has an embedding space of its own."""
    numbers = sorted(run.embeddings)[1:]
    if not numbers:
        raise Missing
    columns = min(2, len(numbers))
    rows = -(-len(numbers) // columns)
    figure = _figure(4.6, 2.5 * rows if columns > 1 else 4.0)
    drawn = {}
    for position, number in enumerate(numbers, start=1):
        axes = figure.add_subplot(rows, columns, position)
        drawn[number] = _scatter_tsne(axes, run, number, large=False)
        axes.set_title(f"fold {number}{_tested_corpora(run, number)}")
    caption = "As above; each fold has an embedding space and a map of its own, in no common orientation."
    if any(shown < total for shown, total in drawn.values()):
        caption += f" {MAX_TSNE_POINTS} utterances a fold, drawn at random."
    return figure, caption, " ".join(f"Fold {number}: {_nearest_in_words(run, number)}" for number in numbers)


def true_labels(run: Run, number: int) -> np.ndarray:
    """The true labels of the rows of a fold's embeddings."""
    reference = {row["id"]: row["reference"] for row in run.predictions[number]}
    ids = run.embeddings[number]["ids"].tolist()
    unknown = [id for id in ids if id not in reference]
    if unknown:
        raise ValueError(
            f"fold-{number}/embeddings.npz has the utterance {unknown[0]!r}, which predictions.csv beside it has not. "
            "Delete the file: the report then goes without."
        )
    return np.array([reference[id] for id in ids])


def _scatter_tsne(axes, run: Run, number: int, *, large: bool) -> tuple[int, int]:
    """Draws one fold's map; returns how many utterances are shown, and of how many."""
    arrays, references = run.embeddings[number], true_labels(run, number)
    total = len(references)
    chosen = np.sort(np.random.default_rng(0).permutation(total)[:MAX_TSNE_POINTS])
    anchored = arrays["labels"].tolist() if run.has_label_space else []
    points = np.concatenate([arrays["audio_embeds"][chosen], arrays["label_embeds"][: len(anchored)]])
    layout = tsne_layout(points)
    utterances, anchors = layout[: len(chosen)], layout[len(chosen) :]
    for index, label in enumerate(run.labels):
        rows = references[chosen] == label
        if run.own_words and not rows.any():
            continue  # of another corpus: its word is written beside its point
        colour, marker = _sign(index)
        look = {"color": colour, "marker": marker, "linewidths": 0}
        size = 16 if large else 7
        axes.scatter(*utterances[rows].T, s=size, alpha=0.65, label=label, rasterized=True, **look)
    trained = trained_words(run.predictions[number])
    # Hollow, so that no utterance is hidden, and of one corpus without words: colour and sign are in the legend.
    for label, (x, y) in zip(anchored, anchors):
        own_colour, marker = _sign(run.labels.index(label))
        for colour, width in (("black", 3.4), (own_colour, 1.6)):
            axes.scatter(
                x,
                y,
                s=150 if large else 55,
                facecolors="none",
                edgecolors=colour,
                linewidths=width if large else width * 0.7,
                marker=marker,
                zorder=3,
            )
        if run.own_words:
            name = label if label in trained else f"{label}*"
            place = {"xytext": (0, 9 if large else 6), "textcoords": "offset points", "ha": "center"}
            axes.annotate(name, (x, y), fontsize=8 if large else 5, zorder=4, **place)
    axes.set(xticks=[], yticks=[])
    axes.margins(0.08)
    axes.spines[:].set(visible=True, color="#D0D0D0")
    return len(chosen), total


def tsne_layout(points: np.ndarray) -> np.ndarray:
    """(N, 2) of (N, D) embeddings, by t-SNE of cosine distances (van der Maaten and Hinton, 2008), the seed fixed."""
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    points = points.astype(float)
    # scikit-learn wants a perplexity below the number of points, and PCA no fewer dimensions than it returns.
    perplexity = min(30.0, (len(points) - 1) / 3)
    init = "pca" if points.shape[1] >= 2 else "random"
    tsne = TSNE(perplexity=perplexity, metric="cosine", init=init, random_state=0)
    # On a busy machine two threads wait for each other at every step: 9 s instead of 0.2 s for a hundred points.
    with threadpool_limits(1):
        return tsne.fit_transform(points)


def _sign(index: int) -> tuple[str, str]:
    """Colour and marker of a class; no two of 64 classes have the same of both."""
    return f"C{index % 8}", MARKERS[(index + index // 8) % 8]


def _nearest_in_words(run: Run, number: int) -> str:
    """What a map shows, counted in the embedding space itself: whose nearest label embedding is its own."""
    arrays, references = run.embeddings[number], true_labels(run, number)
    if not run.has_label_space:
        return f"{len(references)} utterances without label embeddings, which this objective does not train."
    nearest = arrays["labels"][(arrays["audio_embeds"] @ arrays["label_embeds"].T).argmax(axis=1)]
    counts = [
        f"{label} {(nearest[references == label] == label).sum()} of {(references == label).sum()}"
        for label in run.labels
        if (references == label).any()
    ]
    return f"Utterances whose nearest label embedding, by cosine, is their own: {', '.join(counts)}."


def _learning_curves(run: Run):
    """Every logged loss term over the epochs: folds thin, their mean bold."""
    series = {
        term: [
            curve
            for history in run.histories.values()
            if (curve := [(entry["epoch"], entry[term]) for entry in history if {"epoch", term} <= entry.keys()])
        ]
        for term in TERMS
    }
    series = {term: curves for term, curves in series.items() if curves}
    if not series:
        raise Missing("left out, no fold of this run has a log_history.json with losses.")
    rows = -(-len(series) // 2)
    figure = _figure(4.6, 0.4 + 1.75 * rows)
    words = []
    for position, (term, curves) in enumerate(series.items(), start=1):
        axes = figure.add_subplot(rows, 2, position)
        scale = 100 if term.endswith("_ua") else 1
        folds = [np.array(curve).T * [[1], [scale]] for curve in curves]
        # Folds of unequal size are logged at unequal epochs: the mean is read off at the longest fold's epochs.
        epochs = max((epochs for epochs, _ in folds), key=len)
        mean = np.mean([np.interp(epochs, *fold) for fold in folds], axis=0)
        dot = "o" if len(epochs) < 15 else None
        if len(folds) > 1:
            for fold in folds:
                axes.plot(*fold, color="#A8A8A8", linewidth=0.8)
        axes.plot(epochs, mean, color="C0", marker=dot, markersize=3)
        axes.set_title(TERMS[term])
        axes.grid(axis="y")
        axes.xaxis.get_major_locator().set_params(integer=True, nbins=5)
        words.append(f"{TERMS[term]} from {mean[0]:.3g} to {mean[-1]:.3g}")
    figure.supxlabel("epoch", fontsize="medium")
    n = len(run.histories)
    whose = f"mean of {n} folds" if n > 1 else "one fold"
    caption = f"Training losses by epoch, {f'folds thin and grey, their {whose[:4]} bold' if n > 1 else whose}."
    if "test_ua" in series:
        caption += " Test UA is drawn for comparison only: no epoch was chosen by it."
    return figure, caption, f"Learning curves, {whose}, first to last epoch logged: {'; '.join(words)}."


def _reliability(run: Run):
    """Reliability diagrams of the trained heads in 15 bins, and under them how confident the heads are."""
    trained = ("label", "classifier") if run.has_label_space else ("classifier",)
    own_words = run.own_words
    heads = {head: head_probabilities(run.rows, run.labels, head, own_words) for head in trained}
    if any(probabilities is None for probabilities in heads.values()):
        raise Missing("left out, predictions.csv has no probabilities.")
    own = run.recipe.get("prediction_head", "label")
    references = np.array([row["reference"] for row in run.rows])
    figure = _figure(4.6, 4.4)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    upper.plot([0, 100], [0, 100], color="#8A8A8A", linestyle="--", linewidth=1)
    upper.annotate("as right as confident", (8, 10), rotation=33, color="#666666", fontsize=8, va="bottom")
    words = []
    for head, probabilities in heads.items():
        index = ("label", "classifier").index(head)
        # A head that knows none of a corpus's words says nothing of it.
        says = np.isfinite(probabilities).all(axis=1) | (own_words is None)
        confidences = probabilities[says].max(axis=1)
        right = np.array(run.labels)[probabilities[says].argmax(axis=1)] == references[says]
        bins = reliability(confidences, right)
        filled = bins["count"] > 0
        look = {"color": f"C{index}", "linestyle": ("-", "-.")[index]}
        upper.plot(
            100 * bins["confidence"][filled],
            100 * bins["accuracy"][filled],
            marker=MARKERS[index],
            label=f"{head} head",
            clip_on=False,
            **look,
        )
        edges = np.linspace(0, 100, len(bins["count"]) + 1)
        lower.stairs(bins["count"], edges, linewidth=1.5, **look)
        scores = run.results["pooled"] if head == own else run.results["pooled"]["classifier"]
        error = scores.get("ece") if head in (own, "classifier") else None  # results.json has no label head's beside
        error = "" if error is None else f", calibration error (ECE) {100 * error:.1f}"
        confident, rightly = 100 * confidences.mean(), 100 * right.mean()
        words.append(f"{head} head: mean confidence {confident:.1f}, right {rightly:.1f}{error}")
    upper.set(ylabel="right (%)", xlim=(0, 101), ylim=(0, 103))
    upper.legend(loc="upper left")
    upper.grid()
    lower.set(xlabel="confidence: probability of the predicted class (%)", ylabel="utterances")
    lower.grid(axis="y")
    caption = (
        "How often a prediction is right against how sure the head was, in 15 bins of equal width (Guo et al., 2017); "
        f"under the diagonal it is over-confident. In per cent: {'; '.join(words)}."
    )
    return figure, caption, f"Reliability diagram. In per cent: {'; '.join(words)}."


def _speakers(run: Run):
    """The share of right predictions of each held-out speaker, lowest at the top."""
    from scipy.stats import binomtest

    counts = speaker_accuracy(run.rows)
    ranked = sorted(counts.items(), key=lambda item: (item[1][0] / item[1][1], item[0]))
    shown = ranked[:MAX_SPEAKERS]
    figure = _figure(4.6, 1.1 + 0.24 * len(shown))
    axes = figure.add_subplot()
    for position, (_, (right, n)) in enumerate(shown):
        interval = binomtest(right, n).proportion_ci(method="wilson")
        axes.barh(position, 100 * right / n, color="C5", height=0.72)
        axes.plot([100 * interval.low, 100 * interval.high], [position, position], color="#333333", linewidth=1)
    pooled = 100 * run.results["pooled"]["wa"]
    axes.axvline(pooled, color="black", linewidth=1, linestyle="--")
    axes.annotate(
        f"all {pooled:.1f}",
        (pooled, 1),
        xycoords=("data", "axes fraction"),
        xytext=(0, 3),
        textcoords="offset points",
        ha="center",
        fontsize=8,
    )
    names = [f"{speaker if len(speaker) <= 16 else speaker[:15] + '…'} ({n})" for speaker, (_, n) in shown]
    axes.set_yticks(range(len(shown)), names)
    axes.set(xlim=(0, 101), xlabel="right (%)")
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    axes.grid(axis="x")
    (worst, (worst_right, worst_n)), (best, (best_right, best_n)) = ranked[0], ranked[-1]
    all_shown = len(shown) == len(ranked)
    which = "Each held-out speaker" if all_shown else f"The {len(shown)} lowest of {len(ranked)} held-out speakers"
    caption = f"{which}: share of right predictions, number of utterances in brackets; lines are 95 % Wilson intervals."
    alt = (
        f"Share of right predictions of {len(ranked)} held-out speakers in per cent: lowest {worst} with "
        f"{100 * worst_right / worst_n:.1f} of {worst_n} utterances, highest {best} with "
        f"{100 * best_right / best_n:.1f} of {best_n}; all together {pooled:.1f}."
    )
    return figure, caption, alt

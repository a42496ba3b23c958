"""What lambda_2 weighs: the three reductions of eq. 4 and the paper's grid of lambda_2, by validation in training.

    python benchmarks/contrastive_reduction.py emodb=path/to/emodb ravdess=path/to/ravdess \
        --audio_encoder openai/whisper-tiny.en --text_encoder sentence-transformers/all-MiniLM-L6-v2 --parts runs/parts

The setting is `recipes/small-corpus.yaml` (augmentations repeat after four epochs, to be done in an hour), and the
validation that of `small_corpus_choices.py`, which never looks at a fold's test side: for each fold, its two neighbours
are held out. With A anchors, `mean` with lambda_2 / A is nearly `bracket` with lambda_2 (a batch may lack a class,
and then has fewer anchors): these rows stand beside each other. Writes `results/benchmarks/contrastive_reduction.json`.

What is finished lies in the folder `--parts`: views, then the answers of each choice on each corpus. The same command
of the same commit goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import small_corpus_choices as choices
import torch
from measuring import difference_cells, save_table

from lascl import load_corpus, make_folds
from lascl.evaluation.compare import paired_difference
from lascl.evaluation.metrics import scores_from_counts
from lascl.modeling_lascl import embed_texts, load_text_encoder
from lascl.training.run_directory import corpus_fingerprint, environment, write_text


GRID = (0.01, 0.1, 1.0)  # section 3.2, beside 0
REFERENCE = "mean, 0.1"
SEEDS, PERIOD = (42, 43), 4


def grid_choices(num_anchors: int) -> dict[str, dict]:
    """By name, what differs from the small-corpus recipe; in the name the lambda_2."""
    return {
        "mean, 0": {"divergence_weight": 0.0},
        **{f"mean, {weight:g} / A": {"divergence_weight": weight / num_anchors} for weight in GRID},
        **{f"mean, {weight:g}": {"divergence_weight": weight} for weight in GRID},
        **{
            f"bracket, {weight:g}": {"contrastive_reduction": "bracket", "divergence_weight": weight} for weight in GRID
        },
        **{
            f"sum, {weight:g}": {"contrastive_reduction": "sum", "divergence_weight": weight} for weight in (0.0, *GRID)
        },
    }


def measure(corpus, audio_encoder: str, text_encoder: str, max_duration_s: float, parts: Path) -> dict[str, np.ndarray]:
    """By choice, (S, K, K): confusion matrices by speaker, in validation."""
    folds, names = make_folds(corpus), corpus.features["label"].names
    setting = [environment()["commit"], corpus_fingerprint(corpus), audio_encoder, text_encoder, max_duration_s]
    setting += [choices.RECIPE, SEEDS, PERIOD]
    folder = parts / hashlib.blake2b(json.dumps(setting).encode(), digest_size=8).hexdigest()
    folder.mkdir(parents=True, exist_ok=True)
    neighbours = list(zip(folds, [*folds[1:], folds[0]]))
    views = folder / "views.pt"
    if not views.is_file():
        torch.save(choices.encode(corpus, audio_encoder, max_duration_s, PERIOD), views.with_suffix(".new"))
        views.with_suffix(".new").rename(views)
    encoded = torch.load(views)
    features = {"{label}": embed_texts(*load_text_encoder(text_encoder), names, pooling="mean")}
    counts = {}
    for name, changed in grid_choices(2 * choices.BATCH_SIZE + len(names)).items():
        part = folder / f"{name.replace(' / ', '-over-').replace(', ', '-')}.json"
        if not part.is_file():
            choice = {**choices.RECIPE, **changed}
            found = choices.validation_answers(choice, encoded, corpus, folds, features, seeds=SEEDS, pairs=neighbours)
            write_text(part, json.dumps([[*key, list(told.items())] for key, told in found.items()]))
        told = json.loads(part.read_text(encoding="utf-8"))
        counts[name] = choices.counts_of({(fold, seed): dict(rows) for fold, seed, rows in told}, corpus, folds)
        print(f"{name}: {100 * scores_from_counts(counts[name].sum(0))[1]:.1f}", flush=True)
    return counts


def cells_of(counts: dict[str, np.ndarray], name: str) -> tuple[list[str], dict]:
    """UA, and its difference from the reference with p: as cells, and as numbers."""
    wa, ua, _ = scores_from_counts(counts[name].sum(0))
    if name == REFERENCE:
        return [f"{100 * ua:.1f}", "", ""], {"wa": wa, "ua": ua}
    differences, intervals, p_values = paired_difference(np.stack([counts[REFERENCE], counts[name]], axis=1))
    found = {"wa": wa, "ua": ua, "difference": differences[1], "interval": intervals[1], "p": p_values[1]}
    return [f"{100 * ua:.1f}", *difference_cells(differences[1], intervals[1], p_values[1])], found


def main(argv: list[str] | None = None):
    parser = choices.parser_of_heads(__doc__)
    parser.add_argument("corpora", nargs="+", metavar="CORPUS=FOLDER")
    parser.add_argument("--parts", type=Path, required=True)
    options = parser.parse_args(argv)
    counts = {}
    for pair in options.corpora:
        name, _, data_dir = pair.partition("=")
        corpus = load_corpus(name, data_dir, allow_partial=options.allow_partial)
        encoders = options.audio_encoder, options.text_encoder
        print(f"{name}: {len(corpus)} utterances", flush=True)
        counts[name] = measure(corpus, *encoders, options.max_duration_s, options.parts)
    rows, measured = [], {corpus: {} for corpus in counts}
    for name in next(iter(counts.values())):
        rows.append(name.split(", "))
        for corpus in counts:
            cells, measured[corpus][name] = cells_of(counts[corpus], name)
            rows[-1] += cells
    columns = [cell for corpus in counts for cell in (f"UA, {corpus}", "less the reference's, points", "p")]
    save_table(
        "contrastive_reduction",
        f"What lambda_2 weighs ({Path(options.audio_encoder).name} frozen), by validation in training, per cent",
        ["reduction", "lambda_2", *columns],
        rows,
        f"The reference is {REFERENCE}. A, the anchors of a batch, is {2 * choices.BATCH_SIZE} and one for each label. "
        f"With lambda_2 = 0, `bracket` is `mean`. Mean over {len(SEEDS)} seeds and the two folds that are left out "
        f"beside an utterance's own; augmentations repeat after {PERIOD} epochs. In brackets 95 % intervals over "
        "speakers; p of a paired test over speakers, not corrected for the number of choices.",
        scores=measured,
    )


if __name__ == "__main__":
    main()

"""What balances a rare class: weights in the losses, or the same number of every class in a batch.

    python benchmarks/thinned_class.py emovo --data_dir path/to/emovo --audio_encoder openai/whisper-base \
        --text_encoder sentence-transformers/all-MiniLM-L6-v2 --parts runs/parts

Of one class of a balanced corpus, most utterances of each training side are left out (artificially: which ones is drawn
once); what is tested is whole. The heads are trained as by `recipes/small-corpus.yaml`, on three layers of the frozen
encoder, whose views are kept in the folder `--parts`. Writes `results/benchmarks/thinned_class.json`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import small_corpus_choices as choices
import torch
from measuring import difference_cells, save_table

from lascl import load_corpus, make_folds
from lascl.data.votes import balanced_weights
from lascl.evaluation.compare import paired_difference
from lascl.evaluation.metrics import scores_from_counts
from lascl.modeling_lascl import embed_texts, load_text_encoder


THINNED, KEPT = "anger", 1 / 8  # of this class so many of a training side
LAYERS, PERIOD, SEEDS = (3, 4, 5), 1, (42, 43, 44)
CHOICES = ("as they come", "class_weights: balanced", "utterances_per_class: 4", "all utterances, as they come")


def thinned(corpus, train: list[int], seed: int = 0) -> list[int]:
    """A training side of which `KEPT` of the class `THINNED` is left, drawn once, at least one."""
    number = corpus.features["label"].names.index(THINNED)
    labels = corpus["label"][:]
    rare = [row for row in train if labels[row] == number]
    kept = np.random.default_rng(seed).permutation(rare)[: max(1, round(KEPT * len(rare)))].tolist()
    return [row for row in train if labels[row] != number or row in kept]


def measure(corpus, encoded: torch.Tensor, features: torch.Tensor) -> dict[str, np.ndarray]:
    """By choice, (S, K, K): confusion matrices by speaker, the mean over seeds."""
    folds, words, ids = make_folds(corpus), corpus.features["label"].names, corpus["id"][:]
    labels, found = torch.tensor(corpus["label"][:]), {}
    for name in CHOICES:
        told = {}
        for fold in folds:
            train = list(fold.train) if name.startswith("all") else thinned(corpus, list(fold.train))
            choice = {**choices.RECIPE, "layers": LAYERS}
            if name.startswith("class_weights"):
                balanced = balanced_weights(corpus, train, words)
                choice["class_weights"] = torch.tensor([balanced[word] for word in words])
            if name.startswith("utterances_per_class"):
                choice["utterances_per_class"] = 4
            for seed in SEEDS:
                answered = choices.answers(choice, encoded, ids, labels, train, list(fold.test), features, seed)
                told[fold.number, seed] = dict(zip(fold.test, answered.tolist()))
        # Every fold tests its own speakers: over folds it is a sum, over seeds a mean.
        found[name] = len(folds) * choices.counts_of(told, corpus, folds)
        print(f"{name}: {100 * scores_from_counts(found[name].sum(0))[1]:.1f}", flush=True)
    return found


def recall_of(counts: np.ndarray, number: int) -> float:
    total = counts.sum(axis=0)
    return float(total[number, number] / total[number].sum())


def precision_of(counts: np.ndarray, number: int) -> float:
    total = counts.sum(axis=0)
    return float(total[number, number] / max(total[:, number].sum(), 1e-9))


def main(argv: list[str] | None = None):
    parser = choices.parser_of_heads(__doc__)
    parser.add_argument("corpus")
    parser.add_argument("--data_dir", required=True)
    parser.add_argument("--parts", type=Path, required=True)
    options = parser.parse_args(argv)
    corpus = load_corpus(options.corpus, options.data_dir, allow_partial=options.allow_partial)
    words = corpus.features["label"].names
    encoded = choices.kept_views(corpus, options.audio_encoder, options.max_duration_s, PERIOD, options.parts)
    features = embed_texts(*load_text_encoder(options.text_encoder), words, pooling="mean")
    counts, number = measure(corpus, encoded, features), words.index(THINNED)
    rows, measured = [], {}
    for name in CHOICES:
        wa, ua, _ = scores_from_counts(counts[name].sum(0))
        recall, precision = recall_of(counts[name], number), precision_of(counts[name], number)
        measured[name] = {"wa": wa, "ua": ua, "recall": recall, "precision": precision}
        rows.append(
            [name, f"{100 * wa:.1f}", f"{100 * ua:.1f}", "", "", f"{100 * recall:.1f}", f"{100 * precision:.1f}"]
        )
        if name != CHOICES[0]:
            differences, intervals, p_values = paired_difference(np.stack([counts[CHOICES[0]], counts[name]], axis=1))
            measured[name] |= {"difference": differences[1], "interval": intervals[1], "p": p_values[1]}
            rows[-1][3:5] = difference_cells(differences[1], intervals[1], p_values[1])
    save_table(
        "thinned_class",
        f"A class that is artificially rare: {KEPT:.3g} of {THINNED} is left to train on ({options.corpus}, "
        f"{Path(options.audio_encoder).name} frozen), per cent",
        ["", "WA", "UA", "UA less the first row's, points", "p", f"recall of {THINNED}", f"precision of {THINNED}"],
        rows,
        f"Tested is everybody once, whole, by {len(make_folds(corpus))} folds of speakers; mean over {len(SEEDS)} "
        f"seeds. Layers {', '.join(map(str, LAYERS))}, {choices.RECIPE['epochs']} epochs, augmentations repeat after "
        f"{PERIOD}. In brackets 95 % intervals over speakers; p of a paired test over speakers, not corrected for the "
        "number of choices.",
        scores=measured,
    )


if __name__ == "__main__":
    main()

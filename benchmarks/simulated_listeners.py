"""*Simulated*: do votes teach more than their majority, with 3 listeners and with 10?

    python benchmarks/simulated_listeners.py emodb=path/to/emodb ravdess=path/to/ravdess \
        --audio_encoder openai/whisper-base --text_encoder sentence-transformers/all-MiniLM-L6-v2 --parts runs/parts

Nobody listened. A simulated listener says the word that the actor was to show with the probability `RIGHT`, and else
another, the likelier the nearer it is in valence and arousal (`PLACES`, `REACH`): stated confusions, of words alone.
They do not hear the utterance, so its votes tell nothing of it beyond its word and chance: what learning from votes can
win here is only that a majority of few is wrong, or a tie, more often. Real listeners hear that an utterance lies
between two words, and this says nothing of what that brings.

Of each corpus the same votes are learned in two ways: the majority, ties left out, and the shares, ties among them.
Tested are other speakers, against the acted word and against what infinitely many such listeners would say. The heads
are trained as by `recipes/small-corpus.yaml`, on three layers of the frozen encoder, whose views are kept in the folder
`--parts`. Writes `results/benchmarks/simulated_listeners.json`.

Letters: N utterances, K words, S speakers.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import small_corpus_choices as choices
import torch
from measuring import save_table

from lascl import load_corpus, make_folds
from lascl.evaluation.intervals import speaker_counts, speaker_standard_error, t_interval
from lascl.evaluation.metrics import scores_from_counts
from lascl.evaluation.votes import jensen_shannon, listeners_ceiling, most_voted
from lascl.modeling_lascl import embed_texts, load_text_encoder


RIGHT, REACH = 0.6, 0.6
# Valence and arousal, from -1 to 1: about where circumplex models have them.
PLACES = {
    "anger": (-0.6, 0.8),
    "boredom": (-0.4, -0.7),
    "calm": (0.4, -0.6),
    "disgust": (-0.7, 0.2),
    "fear": (-0.6, 0.6),
    "happiness": (0.8, 0.6),
    "neutral": (0.0, -0.2),
    "sadness": (-0.7, -0.5),
    "surprise": (0.3, 0.8),
}
LISTENERS, LAYERS, PERIOD, SEEDS = (3, 10), (3, 4, 5), 1, (42, 43, 44)
TARGETS = ("majority", "votes")
SCORES = ("UA, acted word", "Jensen-Shannon divergence (bits)", "soft accuracy")


def confusions(words: list[str]) -> np.ndarray:
    """(K, K): the probability that a listener says a word (column) of an utterance of a word (row)."""
    places = np.array([PLACES[word] for word in words])  # (K, 2)
    squared = ((places[:, None] - places[None]) ** 2).sum(axis=-1)
    near = np.exp(-squared / (2 * REACH**2)) * (1 - np.eye(len(words)))
    return RIGHT * np.eye(len(words)) + (1 - RIGHT) * near / near.sum(axis=1, keepdims=True)


def simulated_votes(labels: np.ndarray, words: list[str], listeners: int, seed: int) -> np.ndarray:
    """(N, K) counts: what so many listeners say of utterances of these words."""
    generator, said = np.random.default_rng([seed, listeners]), confusions(words)
    return np.stack([generator.multinomial(listeners, said[label]) for label in labels])


def measure(corpus, encoded: torch.Tensor, features: torch.Tensor, listeners: int) -> dict[str, dict]:
    """By `majority` and `votes`: (S, K, K) `counts` of answers to acted words, and (S, 3) `sums` of n, divergence and
    agreement; each the mean over seeds. And what the listeners themselves are like."""
    words, folds, ids = corpus.features["label"].names, make_folds(corpus), corpus["id"][:]
    labels, speakers = np.array(corpus["label"][:]), np.array(corpus["speaker"][:])
    expected, everyone = confusions(words)[labels], sorted(set(speakers.tolist()))
    found = {name: {"counts": 0.0, "sums": 0.0} for name in TARGETS}
    about = {"wrong": 0.0, "ties": 0.0, "ceiling": 0.0}
    for seed in SEEDS:
        votes = simulated_votes(labels, words, listeners, seed)
        majority = most_voted(votes)
        about["ties"] += (majority < 0).mean() / len(SEEDS)
        about["wrong"] += (majority[majority >= 0] != labels[majority >= 0]).mean() / len(SEEDS)
        about["ceiling"] += listeners_ceiling(votes, words)["soft_accuracy"] / len(SEEDS)
        targets = {
            "majority": torch.from_numpy(majority),
            "votes": torch.from_numpy(votes / votes.sum(axis=1, keepdims=True)).float(),
        }
        for name in TARGETS:
            q = np.zeros((len(labels), len(words)))
            for fold in folds:
                train = [row for row in fold.train if name == "votes" or majority[row] >= 0]
                choice = {**choices.RECIPE, "layers": LAYERS}
                told = choices.probabilities(
                    choice, encoded, ids, targets[name], train, list(fold.test), features, seed
                )
                q[list(fold.test)] = told
            answered = q.argmax(axis=1)
            counts = speaker_counts([words[k] for k in answered], [words[k] for k in labels], speakers.tolist(), words)
            rows = np.stack(
                [np.ones(len(q)), jensen_shannon(q, expected), expected[np.arange(len(q)), answered]], axis=1
            )
            sums = np.stack([rows[speakers == speaker].sum(axis=0) for speaker in everyone])
            found[name]["counts"] = found[name]["counts"] + counts / len(SEEDS)
            found[name]["sums"] = found[name]["sums"] + sums / len(SEEDS)
            print(
                f"{listeners} listeners, seed {seed}, {name}: {100 * scores_from_counts(counts.sum(0))[1]:.1f}",
                flush=True,
            )
    return {**found, "about": about}


def scores_of(both: np.ndarray) -> np.ndarray:
    """(R, 3) `SCORES`, of sums over speakers (R, K K + 3) of counts and of `sums`."""
    size = both.shape[-1] - 3
    words = int(size**0.5)
    ua = scores_from_counts(both[:, :size].reshape(-1, words, words))[:, 1]
    n = both[:, size]
    return np.stack([ua, both[:, size + 1] / n, both[:, size + 2] / n], axis=1)


def compared(found: dict[str, dict]) -> dict[str, list]:
    """The scores of both ways, the differences (votes less majority), and their 95 % intervals over speakers."""
    both = [
        np.concatenate([found[name]["counts"].reshape(len(found[name]["counts"]), -1), found[name]["sums"]], axis=1)
        for name in TARGETS
    ]
    paired = np.concatenate(both, axis=1)  # (S, 2 (K K + 3))
    half = paired.shape[1] // 2

    def difference(sums: np.ndarray) -> np.ndarray:
        return scores_of(sums[:, half:]) - scores_of(sums[:, :half])

    error = speaker_standard_error(paired, difference)
    estimate = difference(paired.sum(axis=0, keepdims=True))[0]
    return {
        **{name: scores_of(sums.sum(axis=0, keepdims=True))[0].tolist() for name, sums in zip(TARGETS, both)},
        "difference": estimate.tolist(),
        "interval": t_interval(estimate, error, len(paired)).tolist(),
    }


def main(argv: list[str] | None = None):
    parser = choices.parser_of_heads(__doc__)
    parser.add_argument("corpora", nargs="+", metavar="CORPUS=FOLDER")
    parser.add_argument("--parts", type=Path, required=True)
    options = parser.parse_args(argv)
    rows, measured, about = [], {}, []
    for pair in options.corpora:
        name, _, data_dir = pair.partition("=")
        corpus = load_corpus(name, data_dir, allow_partial=options.allow_partial)
        words = corpus.features["label"].names
        encoded = choices.kept_views(corpus, options.audio_encoder, options.max_duration_s, PERIOD, options.parts)
        features = embed_texts(*load_text_encoder(options.text_encoder), words, pooling="mean")
        for listeners in LISTENERS:
            found = measure(corpus, encoded, features, listeners)
            told = {**compared(found), **found["about"]}
            measured[f"{name}, {listeners}"] = told
            for number, score in enumerate(SCORES):
                scale, digits = (1, 3) if "bits" in score else (100, 1)
                (low, high), shown = told["interval"][number], told["difference"][number]
                cells = [f"{scale * told[target][number]:.{digits}f}" for target in TARGETS]
                ends = f"[{scale * low:+.{digits}f}, {scale * high:+.{digits}f}]"
                rows.append([name, listeners, score, *cells, f"{scale * shown:+.{digits}f} {ends}"])
            about.append(
                f"{name}, {listeners} listeners: {100 * told['wrong']:.1f} % of majorities are wrong, "
                f"{100 * told['ties']:.1f} % of utterances are ties, and a listener agrees with "
                f"{100 * told['ceiling']:.1f} % of the others"
            )
    encoder = Path(options.audio_encoder).name
    save_table(
        "simulated_listeners",
        f"*Simulated* listeners: learning from their majority, and from their votes ({encoder} frozen)",
        ["corpus", "listeners", "score", "majority", "votes", "votes less majority"],
        rows,
        f"Simulated: a listener says the acted word with probability {RIGHT}, else one near it in valence and arousal, "
        "and hears nothing; scores are against the acted word, and against the expected shares of such listeners. UA "
        f"and soft accuracy in per cent. {'; '.join(about)}. Mean over {len(SEEDS)} seeds, of votes and of training; "
        "folds of speakers as usual; in brackets 95 % intervals over speakers, paired.",
        scores=measured,
    )


if __name__ == "__main__":
    main()

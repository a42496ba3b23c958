"""How often words that were never trained land on their emotion: synonyms of EmoDB's seven labels.

    python benchmarks/synonyms.py RUN

RUN is a finished run directory of EmoDB with all its checkpoints. In every fold each word is put to the test twice: is
its own label the nearest of the trained ones, and, when it alone takes its label's place, how many of the unseen
utterances of that emotion are still told by it? Writes `results/benchmarks/synonyms.json`.

Letters: n utterances of a fold, K trained labels, W words, D width of the joint space.
"""

from __future__ import annotations

import argparse
import csv
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from measuring import save_table

from lascl import LaSCLForAudioClassification


SYNONYMS = {
    "anger": ("angry", "furious", "rage", "irritated"),
    "boredom": ("bored", "weary", "uninterested", "tedium"),
    "disgust": ("disgusted", "revolted", "repulsion", "nauseated"),
    "fear": ("afraid", "terrified", "anxious", "panic"),
    "happiness": ("happy", "joyful", "cheerful", "delighted"),
    "neutral": ("calm", "unemotional", "normal", "matter-of-fact"),
    "sadness": ("sad", "sorrowful", "grief", "depressed"),
}


def fold_answers(fold: Path, words: list[str]) -> tuple[list[str], np.ndarray, np.ndarray, list[str], np.ndarray]:
    """The K trained labels, their embeddings (K, D), those of the words (W, D), the emotions (n,) of the utterances
    that were tested, and their embeddings (n, D)."""
    with open(fold / "predictions.csv", encoding="utf-8", newline="") as file:
        references = {row["id"]: row["reference"] for row in csv.DictReader(file)}
    with np.load(fold / "embeddings.npz") as stored:
        ids, audio_embeds, trained = stored["ids"].tolist(), stored["audio_embeds"], stored["label_embeds"]
        labels = stored["labels"].tolist()
    model = LaSCLForAudioClassification.from_pretrained(fold / "checkpoint", dtype=torch.float32).eval()
    model.set_labels(words)
    with torch.no_grad():
        embedded = model.get_label_embeddings().numpy()
    return labels, trained, embedded, [references[id] for id in ids], audio_embeds


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    folder = parser.parse_args(argv).run
    folds = sorted(path.parent for path in folder.glob("fold-*/checkpoint"))
    if not folds:
        parser.error(f"{folder} holds no fold-*/checkpoint: give a run directory with its checkpoints.")
    words = [word for synonyms in SYNONYMS.values() for word in synonyms]
    nearest, told, by_label, of_label = Counter(), Counter(), Counter(), Counter()
    instead = {word: Counter() for word in words}  # on which label a word lands where not on its own
    for fold in folds:
        labels, trained, embedded, references, audio_embeds = fold_answers(fold, words)
        similarity = audio_embeds @ trained.T  # (n, K)
        emotions = np.array([labels.index(reference) for reference in references])
        for label in set(labels) & SYNONYMS.keys():
            column = labels.index(label)
            of_emotion = emotions == column
            of_label[label] += int(of_emotion.sum())
            by_label[label] += int((similarity[of_emotion].argmax(1) == column).sum())
            for word in SYNONYMS[label]:
                vector = embedded[words.index(word)]
                landed = labels[int((trained @ vector).argmax())]
                nearest[word] += landed == label
                instead[word][landed] += landed != label
                replaced = similarity[of_emotion].copy()
                replaced[:, column] = audio_embeds[of_emotion] @ vector
                told[word] += int((replaced.argmax(1) == column).sum())
    rows, measured = [], {}
    for label, synonyms in SYNONYMS.items():
        if not of_label[label]:
            continue
        for word in synonyms:
            recall = {"trained": by_label[label] / of_label[label], "word": told[word] / of_label[label]}
            measured[word] = {"label": label, "folds": nearest[word], **recall}
            elsewhere = ", ".join(f"{name} {times}" for name, times in instead[word].most_common() if times)
            shares = [f"{100 * recall[name]:.0f}" for name in ("trained", "word")]
            rows.append([label, word, f"{nearest[word]} of {len(folds)}", elsewhere or "-", *shares])
    landed, of = sum(nearest.values()), len(measured) * len(folds)
    kept = np.mean([m["word"] for m in measured.values()]), np.mean([m["trained"] for m in measured.values()])
    save_table(
        "synonyms",
        f"Words that were never trained, {len(measured)} synonyms of EmoDB's labels",
        [
            *("label", "word", "folds in which its label is the nearest", "others that are (folds)"),
            *("recall with the label's own word, %", "with this word in its place, %"),
        ],
        rows,
        f"Of {len(measured)} words in {len(folds)} folds, {landed} of {of} land on their label; "
        f"with a synonym in its place, a label's recall is {100 * kept[0]:.0f} % on average, with its own word "
        f"{100 * kept[1]:.0f} %.",
        words=measured,
        landed=landed / of,
    )


if __name__ == "__main__":
    main()

"""Words of your own over a folder, as a table.

python examples/words_over_a_folder.py MODEL folder/ "calm, tense" out.csv

A row a file: the nearest word, the probability of each, and why not, where a file could not be answered. What is
printed says how often each word was the nearest.
"""

import sys
from pathlib import Path

import pandas as pd

from lascl import predict_files
from lascl.predict import Recogniser


def main(name: str, folder: str, words: str, table: str):
    model = Recogniser.load(name, labels=[word.strip() for word in words.split(",")])
    files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    rows = []
    for answer in predict_files(model, files):
        row = {"path": answer.path, "word": answer.label, "failure": answer.failure}
        if answer.probabilities is not None:
            row |= dict(zip(model.labels, answer.probabilities.round(4)))
        rows.append(row)
    answered = pd.DataFrame(rows)
    answered.to_csv(table, index=False)
    print(answered["word"].value_counts().to_string())


if __name__ == "__main__":
    if len(sys.argv) != 5:
        sys.exit(__doc__)
    main(*sys.argv[1:])

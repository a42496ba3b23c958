"""Is LaSCL better than your system, or worse? `python examples/compare_with_yours.py RUN yours.csv`.

RUN is a run of `train.py`. `yours.csv` has the columns id and prediction, for the utterances that RUN tested; labels
and speakers come from RUN. Paired on the same utterances, with intervals over speakers, as `lascl-compare` does; then
who is right where.
"""

import sys
from pathlib import Path

import pandas as pd

from lascl.evaluation.compare import compare_runs, comparison_text


def main(run: str, yours: str):
    print(comparison_text(compare_runs(run, yours)))
    ours = pd.concat([pd.read_csv(path, dtype=str) for path in sorted(Path(run).glob("fold-*/predictions.csv"))])
    both = ours.merge(pd.read_csv(yours, dtype=str)[["id", "prediction"]], on="id", suffixes=("", "_yours"))
    lascl_right = both["prediction"] == both["reference"]
    yours_right = both["prediction_yours"] == both["reference"]
    print()
    print(pd.crosstab(lascl_right, yours_right, rownames=["LaSCL right"], colnames=["yours right"]).to_string())


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])

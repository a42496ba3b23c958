"""What `lascl-train` and `lascl-study` run: what is typed wrong is told before PyTorch is imported."""

from __future__ import annotations

import sys

from lascl.training.options import check_options


def train(argv: list[str] | None = None):
    """`train.py`, installed."""
    check_options("lascl-train", sys.argv[1:] if argv is None else argv)
    from lascl.train import main

    main(argv)


def study(argv: list[str] | None = None):
    """`study.py`, installed."""
    check_options("lascl-study", sys.argv[1:] if argv is None else argv)
    from lascl.study import main

    main(argv)

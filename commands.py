"""What each installed command runs: what is typed wrong is told before PyTorch is imported."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable

from lascl import options
from lascl.training.options import check_options


def _after(check: Callable, module: str) -> Callable:
    """The command that a module's `main` is, which is imported once its options were read."""

    def run(argv: list[str] | None = None):
        check(argv)
        importlib.import_module(module).main(argv)

    return run


def _fields_of(program: str) -> Callable:
    return lambda argv: check_options(program, sys.argv[1:] if argv is None else argv)


train = _after(_fields_of("lascl-train"), "lascl.train")
study = _after(_fields_of("lascl-study"), "lascl.study")
report = _after(options.report_options, "lascl.report")
compare = _after(options.compare_options, "lascl.evaluation.compare")
publish = _after(options.publish_options, "lascl.hub.publish")
verify = _after(options.verify_options, "lascl.hub.verify")
export = _after(options.export_options, "lascl.inference.export")
words = _after(options.words_options, "lascl.inference.words")
views = _after(options.views_options, "lascl.training.views")

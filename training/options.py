"""Which options there are, known without PyTorch: importing it takes seconds, and what is wrong is told before."""

from __future__ import annotations

import ast
import difflib
import functools
import sys
from collections.abc import Iterable
from pathlib import Path

from lascl.training.stock_fields import known_fields


# Where a recipe's fields are defined; transformers' own stand in the tables of `stock_fields`.
CLASSES = {"recipe.py": ("Publishing", "Recipe"), "arguments.py": ("LaSCLTrainingArguments",)}
OF_A_STUDY = ("recipe", "vary", "seeds", "dry_run", "max_hours", "shard")


@functools.cache
def option_names() -> frozenset[str]:
    """The fields that may be typed. Read from the source of the classes that have them, which are not imported."""
    names = set(known_fields())
    for file, classes in CLASSES.items():
        tree = ast.parse(Path(__file__).with_name(file).read_text(encoding="utf-8"))
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and node.name in classes:
                names |= {part.target.id for part in node.body if isinstance(part, ast.AnnAssign)}
    return frozenset(names - {"training"})


def unknown_field(name: str, known: Iterable[str] | None = None) -> str:
    """What is said of a field that does not exist, with the nearest that does."""
    if name == "dry_run":
        return "There is no field 'dry_run': `lascl-study RECIPE ... --dry_run` says what a training would cost."
    if known is None and name in option_names():
        return f"The installed transformers has no field {name!r}; other versions do."
    near = difflib.get_close_matches(name, option_names() if known is None else known, n=1)
    return f"There is no field {name!r}{f'; did you mean {near[0]!r}?' if near else '.'}"


def check_options(program: str, argv: list[str]):
    """Ends the program with exit code 2 and a sentence if an option is typed that does not exist."""
    known = option_names() | (set(OF_A_STUDY) if "study" in program else {"help_all"})
    for option in argv:
        name = option[2:].partition("=")[0].replace("-", "_")
        if option.startswith("--") and name not in {*known, "help"}:
            print(f"{program}: {unknown_field(name, known)}", file=sys.stderr)
            sys.exit(2)

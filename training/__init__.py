"""Training: arguments, the Trainer, recipes, and what a run directory holds."""

from typing import TYPE_CHECKING

from lascl.lazy import lazily


if TYPE_CHECKING:
    from lascl.training.arguments import LaSCLTrainingArguments
    from lascl.training.trainer import LaSCLTrainer

__all__ = ["LaSCLTrainer", "LaSCLTrainingArguments"]

__getattr__ = lazily(
    __name__,
    {"LaSCLTrainer": "lascl.training.trainer", "LaSCLTrainingArguments": "lascl.training.arguments"},
)

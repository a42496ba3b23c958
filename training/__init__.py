"""Training: arguments, the Trainer, recipes, and what a run directory holds."""

from lascl.training.arguments import LaSCLTrainingArguments
from lascl.training.trainer import LaSCLTrainer


__all__ = ["LaSCLTrainer", "LaSCLTrainingArguments"]

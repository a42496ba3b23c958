"""How a command that trains ends where its user can mend what went wrong: with exit code 2 and one sentence."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from accelerate.utils.memory import should_reduce_batch_size

from lascl.training.arguments import LaSCLTrainingArguments
from lascl.training.digests import OtherWeights
from lascl.training.run_directory import is_disk_full


@contextlib.contextmanager
def exits_in_a_sentence(program: str, explain: Callable[[BaseException], str | None]) -> Iterator[None]:
    """Prints on stderr what `explain` says of an exception, after the program's name, and exits with code 2. What it
    says nothing about (`None`) is raised as it is."""
    try:
        yield
    except BaseException as error:
        sentence = explain(error)
        if sentence is None:
            raise
        print(f"{program}: {sentence}", file=sys.stderr)
        sys.exit(2)


def what_is_refused(error: BaseException) -> str | None:
    """Before training: what is wrong with the recipe, the corpus, the encoders or the machine."""
    return str(error) if isinstance(error, (ValueError, OSError, ImportError)) else None


def what_ran_out(error: BaseException, folder: Path, args: LaSCLTrainingArguments | None = None) -> str | None:
    """While training: the memory, if there are arguments to advise on, the disk of `folder`, or frozen weights that an
    interrupted fold was not trained on."""
    if args and should_reduce_batch_size(error):  # accelerate knows what an exhausted memory says, on every device
        return memory_advice(args)
    if isinstance(error, OtherWeights):
        return str(error)
    if is_disk_full(error):
        return (
            f"a file in {folder} could not be written: the disk is full ({str(error).splitlines()[0]}). "
            "Free some space and give the same command again: what is finished is kept."
        )
    return None


def memory_advice(args: LaSCLTrainingArguments) -> str:
    """One sentence: what did not fit, and what to add to the command."""
    if args.contrastive_chunk_s is not None:
        return (
            f"out of memory with {args.contrastive_chunk_s:g} s of audio at once. Add --contrastive_chunk_s "
            f"{args.contrastive_chunk_s / 2:g}, or, if a single utterance does not fit, --gradient_checkpointing true: "
            "the gradients stay those of the whole batch. What is finished is kept."
        )
    at_once = min(args.contrastive_chunk_size or args.per_device_train_batch_size, args.per_device_train_batch_size)
    views = args.views_an_utterance
    found = f"out of memory with {at_once} utterances x {views} view{'s' if views > 1 else ''} at once."
    kept = "What is finished is kept."
    if at_once == 1:
        return f"{found} Add --gradient_checkpointing true, --bf16 true or a smaller --max_duration_s. {kept}"
    return f"{found} Add --contrastive_chunk_size {at_once // 2}: the gradients stay those of the whole batch. {kept}"

"""What all commands share: who reads their output may stop reading."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable


def unless_pipe_closes(main: Callable) -> Callable:
    """Lets a command end with exit code 1 and without a word when its standard output is closed, as by `| head`.

    A broken pipe elsewhere, to a worker or a server, is an error as before.
    """

    @functools.wraps(main)
    def run(*args, **kwargs):
        try:
            try:
                return main(*args, **kwargs)
            finally:
                sys.stdout.flush()  # here, where it can be caught, and not when the interpreter ends
        except BrokenPipeError:
            if not _is_closed(sys.stdout):
                raise
            # The interpreter flushes once more.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)

    return run


def _is_closed(file) -> bool:
    """Whether what a file holds back cannot be written; a failed write stays held back."""
    try:
        file.flush()
    except BrokenPipeError:
        return True
    return False

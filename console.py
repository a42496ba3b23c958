"""What all commands share: who reads their output may stop reading."""

from __future__ import annotations

import functools
import os
import select
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
    """Whether nobody reads any more what a file is written for."""
    try:
        descriptor = file.fileno()
    except (OSError, ValueError):  # no file of the system
        return False
    poll = select.poll()
    poll.register(descriptor, 0)  # errors are told unasked
    return bool(poll.poll(0))

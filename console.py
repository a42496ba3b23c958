"""What all commands share: who reads their output may stop reading, and one of them at a time writes a thing."""

from __future__ import annotations

import functools
import os
import select
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


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


def say(*lines: str):
    """Prints lines of a log: on a terminal as they are, with blank ones between parts; in a file without these."""
    text = "\n".join(lines)
    if not sys.stdout.isatty():
        text = "\n".join(line for line in text.split("\n") if line.strip())
    print(text, flush=True)


def in_words(seconds: float) -> str:
    """A duration, as it is told before something begins."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


@contextmanager
def held(lock_file: Path, if_busy: str) -> Iterator[None]:
    """Holds a lock for this process, however long it runs; a kill leaves nothing that would have to be removed.

    Raises:
        ValueError: another process holds it; `if_busy` is said.
        OSError: nothing can be written where the file lies.
    """
    from filelock import FileLock, Timeout  # here, since `--help` does not need it

    lock = FileLock(lock_file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(if_busy) from None
    try:
        yield
    finally:
        with suppress(OSError):  # while it is held: who opened it before finds that it is gone
            os.unlink(lock_file)
        lock.release()


def _is_closed(file) -> bool:
    """Whether nobody reads any more what a file is written for."""
    try:
        descriptor = file.fileno()
    except (OSError, ValueError):  # no file of the system
        return False
    poll = select.poll()
    poll.register(descriptor, 0)  # errors are told unasked
    return bool(poll.poll(0))

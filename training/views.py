"""What frozen encoders made of audio, kept on disk and found again by every run, fold, variant and study; and, beside
it, the audio that was decoded and resampled (`lascl.data.decoded`).

A block is the pooled audio (N, d_a) of N utterances in one view. Its name, of `lascl.training.pooled.view_keys`,
follows from all that makes it; `NAME.npy` holds it, and `NAME.json`, which is written last, its size and checksum.

    lascl-views             says what is kept of both, and how much that is
    lascl-views --empty     deletes it
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import re
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from huggingface_hub import cached_assets_path
from transformers.utils import logging

from lascl.console import unless_pipe_closes
from lascl.data.decoded import DecodedAudio
from lascl.options import views_options
from lascl.training.run_directory import write_json


logger = logging.get_logger(__name__)
GB = 10**9
# Blocks, their checksums, the locks under which they are made, and what a process left that was killed meanwhile.
OURS = re.compile(r"[0-9a-f]{32}\.(npy|json|lock)|\.{1,2}[0-9a-f]{32}\.(npy|json)(\.part)?(\.\d+)?")
ABANDONED_AFTER_S = 3600.0  # a file to which nothing was written for so long
NOTED_EVERY_S = 1.0  # how much of a block was written: what a kill costs at most
READ_AT_ONCE = 2**24  # bytes, to check a file
# Bytes of rows that were read, after which a file's pages are let go: about six times as many are in memory by then, as
# the system maps what lies around each.
MAPPED_AT_MOST = 2**23


def default_folder() -> Path:
    """In the Hugging Face cache, where libraries keep what is not downloaded."""
    return cached_assets_path("lascl", namespace="views")


def default_decoded_folder() -> Path:
    """Beside it, of decoded audio."""
    return cached_assets_path("lascl", namespace="decoded")


class Block:
    """(N, d_a) float32 in a file that is mapped into memory: only the rows that are asked for are read, and pages that
    were read are let go again, so that a block takes no memory to speak of, however large it is."""

    def __init__(self, path: str | Path):
        self.path, self.array, self.read_bytes = Path(path), np.load(path, mmap_mode="r"), 0

    def __len__(self):
        return len(self.array)

    def __reduce__(self):
        return Block, (self.path,)

    def __getitem__(self, rows: int | Sequence[int]) -> torch.Tensor:
        """(d_a,) of a row, or (n, d_a) of several: a copy."""
        found = torch.from_numpy(np.array(self.array[rows]))
        self.read_bytes += found.nbytes
        if self.read_bytes > MAPPED_AT_MOST and hasattr(mmap, "MADV_DONTNEED"):
            self.array._mmap.madvise(mmap.MADV_DONTNEED)
            self.read_bytes = 0
        return found


class JoinedBlock:
    """Several blocks as one of (N, d_a), nothing of them read before it is asked for.

    Args:
        blocks: (n, d_a) each.
        rows: of each block, which rows of the whole its own are; each of N occurs once.
    """

    def __init__(self, blocks: Sequence[torch.Tensor | Block], rows: Sequence[Sequence[int]]):
        self.blocks = list(blocks)
        of_parts = [np.asarray(part, dtype=np.int64) for part in rows]
        self.part = np.empty(sum(map(len, of_parts)), dtype=np.int64)  # (N,) which block
        self.place = np.empty_like(self.part)  # (N,) which of its rows
        for number, part in enumerate(of_parts):
            self.part[part], self.place[part] = number, np.arange(len(part))

    def __len__(self):
        return len(self.part)

    def __getitem__(self, rows: int | Sequence[int]) -> torch.Tensor:
        """(d_a,) of a row, or (n, d_a) of several: a copy."""
        if np.ndim(rows) == 0:
            return self.blocks[self.part[rows]][int(self.place[rows])]
        parts, places = self.part[rows], self.place[rows]
        numbers = np.unique(parts)
        found = {number: self.blocks[number][places[parts == number].tolist()] for number in numbers}
        whole = next(iter(found.values())).new_empty(len(parts), self.blocks[0][0].shape[-1])
        for number, content in found.items():
            whole[torch.from_numpy(parts == number)] = content
        return whole


class ViewStore:
    """Blocks by name in a folder. Several processes may use it at once: a file is whole or absent, and who needs what
    another makes waits for it.

    Args:
        folder: is made if need be.
        most_bytes: beyond this, what was not used for longest is deleted, also while others still read it (their
            system keeps it for them).
    """

    def __init__(self, folder: str | Path, most_bytes: float):
        self.folder, self.most_bytes = Path(folder), most_bytes
        self.folder.mkdir(parents=True, exist_ok=True)

    def find(self, key: str) -> Block | None:
        """The block of this name; `None` if there is none. One that is damaged is deleted, so that it is made anew."""
        path, about = self.folder / f"{key}.npy", self.folder / f"{key}.json"
        try:
            told = json.loads(about.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except ValueError:
            told = {}
        try:
            if told.get("size") == path.stat().st_size and told.get("crc32") == _checksum(path):
                block = Block(path)
                os.utime(about)  # used now
                return block
        except (OSError, ValueError):
            pass
        logger.warning(f"{path} is damaged: what it held is encoded anew.")
        self._delete(key)
        return None

    def has(self, key: str) -> bool:
        """Whether a block of this name is there, as `find` would find it, but for damage."""
        return (self.folder / f"{key}.json").is_file()

    def making(self, key: str) -> FileLock:
        """Held while a block is made: another process that wants it waits, and finds it."""
        return FileLock(self.folder / f"{key}.lock")

    def begun(self, key: str, num_rows: int, width: int, batch_size: int) -> int:
        """How many rows of this block an earlier start has written, which was killed, in batches of this size."""
        part, note = (self.folder / f".{key}.{ending}.part" for ending in ("npy", "json"))
        try:
            told = json.loads(note.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return 0
        is_this = part.is_file() and (told["shape"], told["batch_size"]) == ([num_rows, width], batch_size)
        return told["rows"] if is_this else 0

    @contextlib.contextmanager
    def writing(
        self, key: str, num_rows: int, width: int, *, batch_size: int | None = None
    ) -> Iterator[Callable[[Sequence[int], torch.Tensor], None]]:
        """What takes numbers of rows and (n, width) of their content, each row once; at the end the block is there.

        Args:
            batch_size: rows come in one order and in batches of this size, whenever the block is written: then a kill
                leaves what was written, and the rows that were `begun` are not asked for again. To be used by one
                process at a time (`making`).
        """
        note = self.folder / f".{key}.json.part"
        temporary = self.folder / f".{key}.npy.{'part' if batch_size else os.getpid()}"
        num_written = self.begun(key, num_rows, width, batch_size) if batch_size else 0
        try:
            with open(temporary, "r+b" if num_written else "wb") as file:
                shape = {"descr": "<f4", "fortran_order": False, "shape": (num_rows, width)}
                np.lib.format.write_array_header_1_0(file, shape)
                start, noted = file.tell(), time.monotonic()

                def write(rows: Sequence[int], content: torch.Tensor):
                    nonlocal num_written, noted
                    for row, values in zip(rows, content.numpy().astype("<f4", copy=False), strict=True):
                        file.seek(start + 4 * width * row)
                        file.write(values.tobytes())
                        num_written += 1
                    if batch_size and time.monotonic() - noted >= NOTED_EVERY_S:
                        file.flush()
                        os.fsync(file.fileno())
                        write_json(note, {"shape": [num_rows, width], "batch_size": batch_size, "rows": num_written})
                        noted = time.monotonic()

                yield write
                if num_written != num_rows:
                    raise RuntimeError(f"{num_written} of {num_rows} rows were encoded.")
                file.flush()
                os.fsync(file.fileno())
            about = {"size": temporary.stat().st_size, "crc32": _checksum(temporary), "shape": [num_rows, width]}
            os.replace(temporary, self.folder / f"{key}.npy")
            write_json(self.folder / f"{key}.json", about)
            note.unlink(missing_ok=True)
        finally:
            if not batch_size:
                temporary.unlink(missing_ok=True)

    def blocks(self) -> list[tuple[float, int, str]]:
        """When each block was last used, its bytes and its name; the longest ago first."""
        found = []
        for about in self.folder.glob("*.json"):
            with contextlib.suppress(OSError):  # deleted beside us
                if OURS.fullmatch(about.name):
                    found.append((about.stat().st_mtime, about.with_suffix(".npy").stat().st_size, about.stem))
        return sorted(found)

    def shrink(self):
        """Deletes what was not used for longest until the rest is within the bound."""
        blocks = self.blocks()
        total = sum(size for _, size, _ in blocks)
        for _, size, key in blocks:
            if total <= self.most_bytes:
                return
            self._delete(key)
            total -= size

    def empty(self):
        """Deletes every block, and what killed processes left; no other file, and none that is being written."""
        for path in list(self.folder.iterdir()):
            with contextlib.suppress(OSError):  # deleted beside us, or read by somebody, on Windows
                is_written = path.name.startswith(".") and time.time() - path.stat().st_mtime < ABANDONED_AFTER_S
                if OURS.fullmatch(path.name) and not is_written:
                    path.unlink()

    def _delete(self, key: str):
        for ending in ("json", "npy"):  # in this order: what has no checksum is not taken for a block
            with contextlib.suppress(PermissionError):  # of a file that somebody reads, on Windows
                (self.folder / f"{key}.{ending}").unlink(missing_ok=True)


def _checksum(path: Path) -> int:
    """CRC-32 of a file, which finds what a disk or a copy did to it."""
    checksum = 0
    with open(path, "rb") as file:
        while part := file.read(READ_AT_ONCE):
            checksum = zlib.crc32(part, checksum)
    return checksum


@unless_pipe_closes
def main(argv: list[str] | None = None):
    options = views_options(argv)
    store = ViewStore(options.views_dir or default_folder(), float("inf"))
    blocks = store.blocks()
    total_gb = sum(size for _, size, _ in blocks) / GB
    kept = f"{len(blocks)} block{'' if len(blocks) == 1 else 's'} of views, {total_gb:.2f} GB"
    decoded = DecodedAudio(options.decoded_dir or default_decoded_folder(), float("inf"))
    files = decoded.files()
    audio = f"{len(files)} decoded recording{'' if len(files) == 1 else 's'}, {sum(f[1] for f in files) / GB:.2f} GB"
    if options.empty:
        store.empty()
        decoded.shrink(0)
        print(f"{store.folder}: deleted {kept}.")
        print(f"{decoded.folder}: deleted {audio}.")
        return
    print(f"{decoded.folder}: {audio}.")
    print(f"{store.folder}: {kept}.")
    for used, size, key in reversed(blocks):
        print(f"{key}  {size / GB:8.3f} GB  last used {time.strftime('%Y-%m-%d %H:%M', time.localtime(used))}")


if __name__ == "__main__":
    main()

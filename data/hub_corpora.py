"""Any `datasets` data set, local or on the Hub, as a corpus."""

from __future__ import annotations

import os
from pathlib import Path

import datasets

from lascl.data.votes import (
    check_some_label,
    counted,
    number_of_rating,
    number_of_votes,
    rating_columns,
    vote_columns,
)


SUFFIXES = {b"RIFF": ".wav", b"fLaC": ".flac", b"OggS": ".ogg", b"ID3": ".mp3"}


def read_hub_dataset(
    data_dir: str | Path | None,
    *,
    allow_partial: bool,
    dataset_name: str | None = None,
    dataset_config: str | None = None,
    revision: str | None = None,
    split: str | None = None,
    audio_column: str = "audio",
    label_column: str = "label",
    speaker_column: str = "speaker",
    session_column: str | None = None,
    fold_column: str | None = None,
    id_column: str | None = None,
    targets: str = "corpus",
):
    """Reads a data set through `datasets`; its audio is decoded by soundfile.

    Args:
        data_dir: a local data set: what `save_to_disk` wrote, or a folder that `load_dataset` understands (Parquet;
            plain folders of audio need the package torchcodec for it).
        allow_partial: not used: nothing says what is complete.
        dataset_name, dataset_config, revision: of a data set on the Hub; without `data_dir`.
        split: by default all, joined.
        audio_column: an `Audio` column, or paths.
        label_column: a `ClassLabel`, or words; or lists of them, of what each listener said: the rows' votes. Columns
            `votes_anger`, ... are votes too, beside a label or without.
        speaker_column: who speaks.
        session_column, fold_column: if there are such columns.
        id_column: by default the split and the row's number.
        targets: what is learned (`load_corpus`); by votes, a row that has some needs no label.

    Returns:
        (rows, labels) as `load_corpus` wants them; with `valence`, `arousal` and `dominance` where there are such
        columns. Audio that lies in the data set itself is written once below the
        Hugging Face cache.

    Raises:
        ValueError: neither or both of `data_dir` and `dataset_name`, a split or column that does not exist, an empty
            cell, or a data set that cannot be loaded (with the reason that `datasets` gives).
    """
    if (data_dir is None) == (dataset_name is None):
        raise ValueError("hf needs either data_dir (a local data set) or the option dataset_name (one on the Hub).")
    loaded = _load(data_dir, dataset_name, dataset_config, revision)
    if split is not None and split not in loaded:
        raise ValueError(f"hf: there is no split {split!r}; found {', '.join(loaded)}.")
    wanted = {"label": label_column, "speaker": speaker_column, "session": session_column, "fold": fold_column}
    wanted = {name: column for name, column in {**wanted, "id": id_column}.items() if column is not None}
    del wanted["label"]
    rows, labels = [], set()
    for part in loaded if split is None else [split]:
        table = loaded[part]
        voted = vote_columns(table.column_names)
        needs_label = targets == "corpus" or not voted
        for column in (audio_column, *([label_column] if needs_label else []), *wanted.values()):
            if column not in table.column_names:
                raise ValueError(
                    f"hf: the split {part!r} has no column {column!r}; found {', '.join(table.column_names)}. Name "
                    "yours with audio_column, label_column, speaker_column."
                )
        audio = _audio_paths(table, audio_column, part)
        columns = {name: _cells(table, column, part) for name, column in wanted.items()}
        said = _said_by_listeners(table, label_column, voted, part, needs_label)
        labels |= {label for row in said for label in (row["label"], *row.get("votes", ())) if label is not None}
        rated = {
            name: [number_of_rating(cell, f"hf: {column} of row {row} of the split {part!r}") for row, cell in cells]
            for column, name in rating_columns(_numeric(table)).items()
            for cells in [enumerate(table[column][:])]
        }
        for number in range(len(table)):
            row = {name: cells[number] for name, cells in {**columns, **rated}.items()}
            row = {"id": f"{part}-{number:06d}", "audio": audio[number], "session": None, **row, **said[number]}
            rows.append(row)
    check_some_label("hf", label_column, rows, targets)
    return rows, labels


def _numeric(table: datasets.Dataset) -> list[str]:
    """The columns of numbers: a word such as `positive` is no rating, whatever its column is called."""
    kinds = {name: feature.dtype for name, feature in table.features.items() if isinstance(feature, datasets.Value)}
    return [name for name, kind in kinds.items() if kind.startswith(("int", "uint", "float"))]


def _said_by_listeners(
    table: datasets.Dataset, column: str, voted: dict[str, str], part: str, needs_label: bool
) -> list[dict]:
    """Of every row its `label`, None where it has none, and, of a table with votes, its `votes`."""
    cells = [None] * len(table)
    if column in table.column_names:
        inner = getattr(table.features[column], "feature", None)  # of lists
        if inner is not None:
            names = inner.int2str if isinstance(inner, datasets.ClassLabel) else str
            return [{"label": None, "votes": counted(map(names, row or ()))} for row in table[column][:]]
        if needs_label:
            cells = _cells(table, column, part)
        else:
            feature, values = table.features[column], table[column][:]
            words = feature.int2str if isinstance(feature, datasets.ClassLabel) else str
            cells = [None if value is None or str(value).strip() == "" else words(value) for value in values]
    if not voted:
        return [{"label": cell} for cell in cells]
    counts = {label: table[name][:] for name, label in voted.items()}
    found = []
    for number, cell in enumerate(cells):
        where = f"hf: row {number} of the split {part!r}: votes_"
        votes = {label: number_of_votes(told[number], f"{where}{label}") for label, told in counts.items()}
        votes = {label: count for label, count in votes.items() if count}
        if cell is None and not votes:
            raise ValueError(f"hf: row {number} of the split {part!r} has neither a label nor votes. Leave it out.")
        found.append({"label": cell, "votes": votes})
    return found


def _load(data_dir, dataset_name, dataset_config, revision) -> datasets.DatasetDict:
    try:
        if data_dir is None:
            return datasets.load_dataset(dataset_name, dataset_config, revision=revision)
        root = Path(data_dir).resolve()
        if not root.is_dir():
            raise FileNotFoundError(f"the folder {root} does not exist")
        on_disk = (root / "dataset_info.json").is_file() or (root / "dataset_dict.json").is_file()
        loaded = datasets.load_from_disk(str(root)) if on_disk else datasets.load_dataset(str(root))
    except Exception as error:  # datasets has no error of its own: a missing name raises what its parts raise
        cause = error
        while cause.__cause__ is not None:  # the outermost says only that an error occurred
            cause = cause.__cause__
        reason = (str(cause).strip() or type(cause).__name__).splitlines()[0]
        hint = " For a folder of audio files, write a manifest and use the corpus csv." if data_dir is not None else ""
        raise ValueError(f"hf: the data set cannot be loaded ({reason}).{hint}") from error
    return loaded if isinstance(loaded, datasets.DatasetDict) else datasets.DatasetDict({"all": loaded})


def _cells(table: datasets.Dataset, column: str, part: str) -> list[str]:
    """A column as words."""
    feature, values = table.features[column], table[column][:]
    empty = [number for number, value in enumerate(values) if value is None or str(value).strip() == ""]
    if empty:
        raise ValueError(f"hf: row {empty[0]} of the split {part!r} has no value for {column!r}. Leave it out.")
    return [feature.int2str(value) if isinstance(feature, datasets.ClassLabel) else str(value) for value in values]


def _audio_paths(table: datasets.Dataset, column: str, part: str) -> list[str]:
    if not isinstance(table.features[column], datasets.Audio):
        return [str(Path(path).resolve()) for path in table[column][:]]
    # Never decoded by datasets, which would need torchcodec and FFmpeg.
    table = table.cast_column(column, datasets.Audio(decode=False))
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "lascl-hub-audio" / f"{part}-{table._fingerprint}"
    paths = []
    for number, cell in enumerate(table.select_columns([column])):
        path, content = cell[column]["path"], cell[column]["bytes"]
        if content is None:
            paths.append(str(Path(path).resolve()))
            continue
        suffix = Path(path or "").suffix or next((s for magic, s in SUFFIXES.items() if content.startswith(magic)), "")
        target = folder / f"{number:06d}{suffix}"
        if not (target.is_file() and target.stat().st_size == len(content)):
            folder.mkdir(parents=True, exist_ok=True)
            temporary = target.with_name(f".{target.name}.{os.getpid()}")
            temporary.write_bytes(content)
            os.replace(temporary, target)
        paths.append(str(target))
    return paths

"""Corpora: a name and a folder become one table with the same columns for every corpus."""

from __future__ import annotations

import csv
import difflib
import inspect
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import datasets

from lascl.data.checked_audio import check_audio
from lascl.data.emobox import read_emobox
from lascl.data.hub_corpora import read_hub_dataset
from lascl.data.iemocap import read_iemocap
from lascl.data.public_corpora import PUBLIC_CORPORA, read_public
from lascl.data.synthetic import SYNTHETIC_LABELS, generate_synthetic_corpus


# Of the columns that only some corpora have.
_COLUMN_TYPES = {str: "string", float: "float64", bool: "bool", int: "int64"}


def load_corpus(
    name: str,
    data_dir: str | Path | None = None,
    *,
    labels: Sequence[str] | Mapping[str, str] | None = None,
    allow_partial: bool = False,
    skipped: list[tuple[str, str]] | None = None,
    **options,
) -> datasets.Dataset:
    """Loads a corpus as a table, one row an utterance, sorted by `id`.

    Args:
        name: `csv` (one's own: `data_dir` is a manifest with the columns `path,label,speaker` and, if there are such
            things, `id`, `session` and `fold`, or the folder that holds `manifest.csv`; paths are relative to it),
            `iemocap` (the original release tree, see `lascl.data.iemocap`), a name of
            `lascl.data.public_corpora.PUBLIC_CORPORA` (`emodb`, `ravdess`, ...: `data_dir` holds its WAV or FLAC files,
            in folders or not), `emobox` (manifests of EmoBox), `hf` (a `datasets` data set) or `synthetic` (spoken by
            eSpeak NG and made on first use; `data_dir` is where, by default the Hugging Face cache).
        data_dir: the folder of the corpus.
        labels: the corpus's labels to keep, by default all; or a mapping from them to the words that the model shall
            learn (`{"hap": "happiness", "exc": "happiness"}`), which may join several. Others are left out.
        allow_partial: go on although utterances are missing or extra.
        skipped: a list, to which (id, what is wrong) is added for every utterance whose audio cannot be used, and
            which is then left out. By default such audio is an error.
        **options: of the corpus, such as `improvised_only` of `iemocap`; its reader says which.

    Returns:
        A `datasets.Dataset` with the columns `id` (str, unique), `audio` (str, absolute path), `label` (`ClassLabel`,
        its names in alphabetical order), `speaker` (str), `session` (str or None) and `duration_s` (float, seconds);
        and what else the corpus tells: `fold` (str) where the manifest has it.

    Raises:
        ValueError: an unknown name or option, a missing `data_dir`, counts that are not those of a right copy, a
            manifest row that cannot be read (with its line), audio that cannot be (with the file), a label in `labels`
            that the corpus does not have, or a label without any utterance.
        FileNotFoundError: `data_dir` does not exist.
        ImportError: `synthetic` without eSpeak NG, with the package to install.
    """
    if name not in _READERS:
        raise ValueError(f"Unknown corpus {name!r}. Known: {', '.join(sorted(_READERS))}.")
    reader = _READERS[name]
    unknown = sorted(set(options) - set(inspect.signature(reader).parameters))
    if unknown:
        raise ValueError(f"{name} has no option {unknown[0]!r}.")
    rows, known = reader(data_dir, allow_partial=allow_partial, **options)
    repeated = [id for id, count in Counter(row["id"] for row in rows).items() if count > 1]
    if repeated:
        raise ValueError(f"{name}: the id {repeated[0]!r} stands for several files. Keep one copy of each utterance.")
    rows, words = _choose_labels(name, rows, known, labels)
    rows = sorted(_measure(rows, skipped), key=lambda row: row["id"])
    folded = Counter(word.casefold() for word in words)
    alike = sorted(word for word in words if folded[word.casefold()] > 1)
    if alike:
        raise ValueError(f"{name}: the labels {alike[0]!r} and {alike[1]!r} differ in case alone. Spell them one way.")
    absent = sorted(words - {row["label"] for row in rows})
    if absent:
        raise ValueError(
            f"{name}: no utterance is labelled {', '.join(map(repr, absent))}. Complete the corpus, or name the labels "
            "that it has with `labels`."
        )
    features = datasets.Features(
        {
            "id": datasets.Value("string"),
            "audio": datasets.Value("string"),
            "label": datasets.ClassLabel(names=sorted(words)),
            "speaker": datasets.Value("string"),
            "session": datasets.Value("string"),
            "duration_s": datasets.Value("float64"),
        }
    )
    for column in dict.fromkeys(column for row in rows for column in row if column not in features):
        kind = next((type(row[column]) for row in rows if row.get(column) is not None), str)
        features[column] = datasets.Value(_COLUMN_TYPES[kind])
    table = {column: [row.get(column) for row in rows] for column in features}
    corpus = datasets.Dataset.from_dict(table, features=features)
    corpus.info.dataset_name = name  # `make_folds` knows the usual folds of some
    return corpus


def _choose_labels(name: str, rows: list[dict], known: Iterable[str], labels) -> tuple[list[dict], set[str]]:
    """The rows that are kept, under the words that are learned, and these words."""
    if labels is None:
        return rows, set(known)
    words = dict(labels) if isinstance(labels, Mapping) else {label: label for label in labels}
    known = sorted(known)
    for label in words:
        if label not in known:
            near = difflib.get_close_matches(str(label), known, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"{name} has no label {label!r}; it has {', '.join(known)}.{hint}")
    return [{**row, "label": words[row["label"]]} for row in rows if row["label"] in words], set(words.values())


def _measure(rows: list[dict], skipped: list[tuple[str, str]] | None) -> list[dict]:
    """Adds `duration_s` where the corpus does not know it: every file is decoded once, and remembered."""
    found = check_audio(row["audio"] for row in rows if "duration_s" not in row)
    bad = [(row["id"], found[row["audio"]]) for row in rows if isinstance(found.get(row["audio"]), str)]
    if bad and skipped is None:
        others = f" The same goes for {len(bad) - 1} more, such as: {bad[1][1]}" if len(bad) > 1 else ""
        raise ValueError(f"{bad[0][1]}{others} Or go on without: --on_bad_audio skip.")
    if bad and len(bad) == len(rows):
        raise ValueError(f"None of the {len(bad)} utterances can be used. The first: {bad[0][1]}")
    if bad:
        skipped += bad
    left_out = {id for id, _ in bad}
    return [{"duration_s": found.get(row["audio"]), **row} for row in rows if row["id"] not in left_out]


def _read_csv(data_dir, *, allow_partial):
    if data_dir is None:
        raise ValueError("csv needs data_dir: a manifest, or the folder that holds manifest.csv.")
    manifest = Path(data_dir).resolve()
    if manifest.is_dir():
        manifest = manifest / "manifest.csv"
    if not manifest.is_file():
        raise FileNotFoundError(f"csv: there is no manifest {manifest}.")
    rows, lines = [], {}
    try:
        table = list(_manifest_rows(manifest))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{manifest} cannot be read ({error}). Save it as CSV in UTF-8.") from None
    for line, cells in table:
        id = cells.get("id", Path(cells["path"]).with_suffix("").as_posix())
        if id in lines:
            raise ValueError(
                f"{manifest}, line {line}: the id {id!r} stands for several files; line {lines[id]} has it too. Keep "
                "one copy of each utterance, or add a column `id`."
            )
        lines[id] = line
        rows.append(
            {
                "id": id,
                "audio": str(manifest.parent / cells["path"]),
                "label": cells["label"],
                "speaker": cells["speaker"],
                "session": cells.get("session"),
                **({"fold": cells["fold"]} if "fold" in cells else {}),
            }
        )
    if not rows:
        raise ValueError(f"{manifest} lists no utterance.")
    return rows, {row["label"] for row in rows}


def _manifest_rows(manifest: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """(line number, cells) of every row, each cell filled."""
    with open(manifest, encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        columns = reader.fieldnames or []
        for column in ("path", "label", "speaker"):
            if column not in columns:
                hint = " Separate columns by commas." if len(columns) == 1 else ""
                raise ValueError(
                    f"{manifest}: the column {column!r} is missing; found {', '.join(columns) or 'none'}.{hint}"
                )
        used = [c for c in ("path", "label", "speaker", "id", "session", "fold") if c in columns]
        for row in reader:
            empty = [column for column in used if not (row[column] or "").strip()]
            if empty or None in row:
                what = f"no value for {empty[0]!r}" if empty else f"more than {len(columns)} values"
                raise ValueError(f"{manifest}, line {reader.line_num}: {what}. Correct or remove the line.")
            yield reader.line_num, {column: row[column].strip() for column in used}


def _read_synthetic(data_dir, *, allow_partial, num_speakers=10, utterances_per_speaker=48, seed=0):
    if data_dir is None:
        # One folder for each choice, so that a small corpus for a test does not replace the demo's.
        folder = f"{num_speakers}-speakers-{utterances_per_speaker}-utterances-seed-{seed}"
        data_dir = Path(datasets.config.HF_DATASETS_CACHE) / "lascl-synthetic" / folder
    root = generate_synthetic_corpus(
        data_dir, num_speakers=num_speakers, utterances_per_speaker=utterances_per_speaker, seed=seed
    ).resolve()
    with open(root / "manifest.csv", encoding="utf-8", newline="") as file:
        rows = [
            {
                "id": Path(row["path"]).stem,
                "audio": str(root / row["path"]),
                "label": row["label"],
                "speaker": row["speaker"],
                "session": None,
                "duration_s": float(row["duration_s"]),
            }
            for row in csv.DictReader(file)
        ]
    return rows, SYNTHETIC_LABELS


_READERS = {
    "csv": _read_csv,
    "emobox": read_emobox,
    "hf": read_hub_dataset,
    "iemocap": read_iemocap,
    "synthetic": _read_synthetic,
    **{name: partial(read_public, corpus) for name, corpus in PUBLIC_CORPORA.items()},
}

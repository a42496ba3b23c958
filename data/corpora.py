"""Corpora: a name and a folder become one table with the same columns for every corpus."""

from __future__ import annotations

import csv
import difflib
import inspect
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import datasets

from lascl.data.checked_audio import check_audio, sample_hashes
from lascl.data.emobox import read_emobox
from lascl.data.hub_corpora import read_hub_dataset
from lascl.data.iemocap import read_iemocap
from lascl.data.public_corpora import PUBLIC_CORPORA, read_public
from lascl.data.segments import Segment, time_columns, times_of
from lascl.data.synthetic import SYNTHETIC_LABELS, generate_synthetic_corpus
from lascl.data.votes import (
    RATINGS,
    SHARES,
    NoVotes,
    check_targets,
    choose_targets,
    number_of_rating,
    number_of_votes,
    rating_columns,
    share_rows,
    shares_of,
    vote_columns,
)


# Of the columns that only some corpora have.
_COLUMN_TYPES = {str: "string", float: "float64", bool: "bool", int: "int64"}
ENTRY = ("name", "corpus", "data_dir", "labels", "corpus_options")  # what is told of each of several corpora
# Columns whose values mean something in their own corpus alone: speaker "01" of two corpora is two people.
OWN_TO_A_CORPUS = ("id", "speaker", "session", "text_id")
TOLD_TO_READERS = ("targets",)  # by `load_corpus` itself, to a reader that takes it: no option of a user's


def load_corpus(
    name: str,
    data_dir: str | Path | None = None,
    *,
    labels: Sequence[str] | Mapping[str, str] | None = None,
    allow_partial: bool = False,
    skipped: list[tuple[str, str]] | None = None,
    targets: str = "corpus",
    ties: str = "drop",
    **options,
) -> datasets.Dataset:
    """Loads a corpus as a table, one row an utterance, sorted by `id`.

    Args:
        name: `csv` (one's own: `data_dir` is a manifest with the columns `path,label,speaker` and, if there are such
            things, `id`, `session` and `fold`, or the folder that holds `manifest.csv`; paths are relative to it. With
            `start` and `end`, in seconds, a row is a segment of its file; with both empty, the whole file),
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
        targets: what is learned: `corpus`, the corpus's own label; `majority`, the word that most listeners chose;
            `votes`, the share of each word that is kept among the listeners' votes. The latter two need votes: the
            columns `votes_anger`, ... of a manifest, IEMOCAP's evaluators, CREMA-D's `tabulatedVotes.csv`, or lists of
            labels (`emobox`, `hf`).
        ties: where two words have most votes, `drop` leaves the utterance out, `share` learns it by both (`majority`)
            or by all votes (`votes`).
        **options: of the corpus, such as `improvised_only` of `iemocap`; its reader says which.

    Returns:
        A `datasets.Dataset` with the columns `id` (str, unique), `audio` (str, absolute path), `label` (`ClassLabel`,
        its names in alphabetical order), `speaker` (str), `session` (str or None) and `duration_s` (float, seconds);
        and what else the corpus tells: `fold` (str) where the manifest has it, `start_s` and `end_s` (float, seconds)
        where rows are segments of files, `None` of a whole file; `valence`, `arousal`, `dominance` (float) where the
        corpus rates; and where listeners voted, `votes_<word>` (float) for each word that is kept, None of rows without
        votes. `targets: votes`, and shared ties, add `shares`, a list of K floats that sum to 1, in the order of the
        label's names; `label` is then None where no word of these has most votes. What became of all rows stands in
        `info.description`.

    Raises:
        ValueError: an unknown name or option, a missing `data_dir`, counts that are not those of a right copy, a
            manifest row that cannot be read (with its line), audio that cannot be (with the file), a label in `labels`
            that the corpus does not have, a label without any utterance, or `targets` of votes where there are none.
        FileNotFoundError: `data_dir` does not exist.
        ImportError: `synthetic` without eSpeak NG, with the package to install.
    """
    _check_known(name)
    check_targets(targets, ties)
    reader = _READERS[name]
    taken = set(inspect.signature(reader).parameters)
    unknown = sorted(set(options) - taken | set(options) & set(TOLD_TO_READERS))
    if unknown:
        raise ValueError(f"{name} has no option {unknown[0]!r}.")
    told = {"targets": targets} if "targets" in taken else {}
    rows, known = reader(data_dir, allow_partial=allow_partial, **told, **options)
    repeated = [id for id, count in Counter(row["id"] for row in rows).items() if count > 1]
    if repeated:
        raise ValueError(f"{name}: the id {repeated[0]!r} stands for several files. Keep one copy of each utterance.")
    chosen = _chosen_words(name, known, labels)
    rows, said = choose_targets(name, rows, chosen, targets, ties)
    rows = sorted(_measure(rows, skipped), key=lambda row: row["id"])
    occurring = {word for row in rows for word in (row["label"], *(row.get(SHARES) or ())) if word is not None}
    # Of votes, a word that nobody's utterance has for its own is none of the words, unless it was asked for.
    words = set(chosen.values()) if targets == "corpus" or labels is not None else occurring
    if not words:
        raise ValueError(f"{name}: no utterance has votes or a label for its words. {said}")
    folded = Counter(word.casefold() for word in words)
    alike = sorted(word for word in words if folded[word.casefold()] > 1)
    if alike:
        raise ValueError(f"{name}: the labels {alike[0]!r} and {alike[1]!r} differ in case alone. Spell them one way.")
    absent = sorted(words - occurring)
    if absent:
        raise ValueError(
            f"{name}: no utterance is labelled {', '.join(map(repr, absent))}. Complete the corpus, or name the labels "
            "that it has with `labels`."
        )
    rows = [_of_words(row, words) for row in rows]
    features = _features(rows, words)
    table = {column: [row.get(column) for row in rows] for column in features}
    corpus = datasets.Dataset.from_dict(table, features=features)
    corpus.info.dataset_name = name  # `make_folds` knows the usual folds of some
    corpus.info.description = said
    return corpus


def _features(rows: list[dict], words: set[str]) -> datasets.Features:
    """The types of a table's columns: those of every corpus, and what else these rows have."""
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
        unknown = float if column in RATINGS.values() else str
        kind = next((type(row[column]) for row in rows if row.get(column) is not None), unknown)
        features[column] = datasets.Value(_COLUMN_TYPES.get(kind, "float64"))
        if column == SHARES:
            features[column] = datasets.Sequence(features[column])
    return features


def _of_words(row: dict, words: set[str]) -> dict:
    """A row with the columns of votes for these words alone, and its shares in their order."""
    row = {
        column: cell for column, cell in row.items() if vote_columns([column]).get(column, next(iter(words))) in words
    }
    return {**row, SHARES: share_rows([row[SHARES]], sorted(words))[0]} if SHARES in row else row


def load_corpora(
    corpora: Sequence[Mapping],
    *,
    allow_partial: bool = False,
    skipped: list[tuple[str, str]] | None = None,
    targets: str = "corpus",
    ties: str = "drop",
) -> datasets.Dataset:
    """Loads corpora as one table, sorted by `id`. What each calls a label stays its word: nothing is mapped.

    Args:
        corpora: of each, as a mapping, `corpus`, and if need be `data_dir`, `labels` and `corpus_options`, which are
            the arguments of `load_corpus`; and a `name`, by default its `corpus`. Their order changes nothing.
        allow_partial, skipped, targets, ties: as for `load_corpus`. Of several corpora at least one must have votes for
            `targets` of votes; what another has is learned as its label.

    Returns:
        Of one corpus, the table of `load_corpus`. Of several, a table with the columns of all, and with `corpus` (str),
        the name; `id`, `speaker`, `session` and `text_id` have it in front (`emodb/03a01Fa`), since they mean something
        in their own corpus alone; `label` has the words of all, sorted; what a corpus does not tell is None.

    Warns:
        UserWarning: recordings with equal samples in two corpora (`equal_recordings`).

    Raises:
        ValueError: as `load_corpus`, the corpus named; no corpora, a key that means nothing, two of one name, a name
            with `/`, `,` or `=` in it, or labels of two corpora that differ in case alone.
        FileNotFoundError, ImportError: as `load_corpus`.
    """
    entries = check_entries(corpora)
    check_targets(targets, ties)
    if len(entries) == 1:
        return _load_entry(entries[0], allow_partial, skipped, targets, ties)
    tables = {}
    for entry in entries:
        left_out = None if skipped is None else []
        try:
            tables[entry["name"]] = _load_entry(entry, allow_partial, left_out, targets, ties, is_one_of_several=True)
        except (ValueError, FileNotFoundError) as error:
            kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
            told = str(error).removeprefix(f"{entry['name']}: ")
            raise kind(f"{entry['name']}: {told}") from error
        if left_out:
            skipped += [(f"{entry['name']}/{id}", reason) for id, reason in left_out]
    if targets != "corpus" and not any(vote_columns(table.column_names) for table in tables.values()):
        raise ValueError(
            f"targets {targets} needs votes, and none of {', '.join(tables)} has any. Give targets: corpus."
        )
    table = _join(tables, kinds=",".join(f"{entry['name']}={entry['corpus']}" for entry in entries))
    if sentence := said_of_equal_recordings(equal_recordings(table)):
        warnings.warn(sentence, stacklevel=2)
    return table


def check_entries(corpora: Sequence[Mapping]) -> list[dict]:
    """What is told of each corpus, with all keys of `ENTRY`, by name. Raises ValueError as `load_corpora` does, before
    anything is read."""
    if isinstance(corpora, (str, Mapping)) or not all(isinstance(entry, Mapping) for entry in corpora):
        raise ValueError(f"corpora must be a list of mappings such as {{'corpus': 'emodb'}}; found {corpora!r}.")
    if not corpora:
        raise ValueError("corpora names no corpus.")
    entries = []
    for told in corpora:
        unknown = sorted(map(str, set(told) - set(ENTRY)))
        if unknown:
            raise ValueError(f"An entry of corpora has no key {unknown[0]!r}; it has {', '.join(ENTRY)}.")
        entry = {**dict.fromkeys(ENTRY), **told}
        _check_known(entry["corpus"])
        entry["name"] = str(entry["corpus"] if entry["name"] is None else entry["name"])
        if not entry["name"].strip() or set("/,=") & set(entry["name"]):
            raise ValueError(f"The name of a corpus must have no '/', ',' or '=' in it; found {entry['name']!r}.")
        entries.append(entry)
    names = Counter(entry["name"] for entry in entries)
    twice = sorted(name for name, count in names.items() if count > 1)
    if twice:
        raise ValueError(f"Two of the corpora are called {twice[0]!r}. Give each a name of its own.")
    return sorted(entries, key=lambda entry: entry["name"])


def _check_known(name: str):
    """Raises ValueError unless there is a reader of this name."""
    if name not in _READERS:
        several = f" For several corpora: --corpora {name}." if "," in str(name) else ""
        raise ValueError(f"Unknown corpus {name!r}. Known: {', '.join(sorted(_READERS))}.{several}")


def _load_entry(
    entry: Mapping,
    allow_partial: bool,
    skipped: list[tuple[str, str]] | None,
    targets: str,
    ties: str,
    is_one_of_several: bool = False,
) -> datasets.Dataset:
    def load(targets: str, ties: str) -> datasets.Dataset:
        return load_corpus(
            entry["corpus"],
            entry["data_dir"],
            labels=entry["labels"],
            allow_partial=allow_partial,
            skipped=skipped,
            targets=targets,
            ties=ties,
            **(entry["corpus_options"] or {}),
        )

    try:
        return load(targets, ties)
    except NoVotes:
        if not is_one_of_several:
            raise
        return load("corpus", "drop")


def _join(tables: Mapping[str, datasets.Dataset], kinds: str) -> datasets.Dataset:
    """One table of several, by name; `kinds` says what each is, as `a=csv,emodb=emodb`."""
    words = sorted({word for table in tables.values() for word in table.features["label"].names})
    folded = {}
    for word in words:
        if (other := folded.setdefault(word.casefold(), word)) != word:
            raise ValueError(
                f"The labels {other!r} and {word!r} of two corpora differ in case alone. Spell them one way: give one "
                "of them `labels` that map its labels to words."
            )
    features = {}
    for table in tables.values():
        features = {**table.features, **features}
    own = {"label": datasets.ClassLabel(names=words), "corpus": datasets.Value("string")}
    features = datasets.Features({**features, **own})
    columns = {column: [] for column in features}
    for name, table in tables.items():
        own = table.features["label"].names
        number_of, shares = [words.index(word) for word in own], shares_of(table)
        for column, cells in columns.items():
            values = table[column][:] if column in table.column_names else [None] * len(table)
            if column in OWN_TO_A_CORPUS:
                values = [None if value is None else f"{name}/{value}" for value in values]
            if column == "label":
                values = [None if label is None else number_of[label] for label in values]
            elif column == SHARES:
                told = [{own[label]: 1.0} for label in table["label"][:]] if shares is None else None
                values = share_rows(told or [dict(zip(own, row)) for row in shares.tolist()], words)
            cells += values
        columns["corpus"][-len(table) :] = [name] * len(table)
    order = sorted(range(len(columns["id"])), key=columns["id"].__getitem__)
    columns = {column: [cells[row] for row in order] for column, cells in columns.items()}
    joined = datasets.Dataset.from_dict(columns, features=features)
    joined.info.dataset_name = "many"  # which has no usual folds of its own
    joined.info.config_name = kinds  # `make_folds` knows the usual folds of some
    joined.info.description = " ".join(table.info.description for table in tables.values() if table.info.description)
    return joined


def equal_recordings(table: datasets.Dataset) -> list[tuple[str, str]]:
    """Ids of recordings of different corpora whose samples are equal, whatever their files are called and however they
    are packed, in pairs: the first of either corpus. Every file is decoded once and remembered."""
    if "corpus" not in table.column_names:
        return []
    ids, names, paths = (table[column][:] for column in ("id", "corpus", "audio"))
    hashes, first = sample_hashes(paths), {}
    for id, name, path in zip(ids, names, paths):
        if hashes[path] is not None:
            first.setdefault(hashes[path], {}).setdefault(name, id)
    pairs = []
    for found in first.values():
        one, *others = found.values()
        pairs += [(one, other) for other in others]
    return pairs


def said_of_equal_recordings(pairs: list[tuple[str, str]]) -> str:
    """A sentence about what `equal_recordings` found; empty if that is nothing."""
    if not pairs:
        return ""
    more = f", and {len(pairs) - 1} more such pairs" if pairs[1:] else ""
    return (
        f"The same recording is in two corpora: {pairs[0][0]} and {pairs[0][1]}{more}. Where one trains and the other "
        "is tested, the score is too good: leave one of them out."
    )


def _chosen_words(name: str, known: Iterable[str], labels) -> dict[str, str]:
    """By label that is kept, the word that is learned for it."""
    if labels is None:
        return {label: label for label in known}
    words = dict(labels) if isinstance(labels, Mapping) else {label: label for label in labels}
    known = sorted(known)
    for label in words:
        if label not in known:
            near = difflib.get_close_matches(str(label), known, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"{name} has no label {label!r}; it has {', '.join(known)}.{hint}")
    return words


def _measure(rows: list[dict], skipped: list[tuple[str, str]] | None) -> list[dict]:
    """Adds `duration_s` where the corpus does not know it: every file is decoded once, and remembered. A segment that
    its recording does not have is audio that cannot be used."""
    sources = [
        row["audio"]
        if row.get("start_s") is None or row.get("dialog") is not None  # as `recordings_of` has it
        else Segment(row["audio"], row["start_s"], row["end_s"])
        for row in rows
    ]
    found = check_audio(source for source, row in zip(sources, rows) if "duration_s" not in row)
    bad = [(row["id"], found[source]) for source, row in zip(sources, rows) if isinstance(found.get(source), str)]
    if bad and skipped is None:
        others = f" The same goes for {len(bad) - 1} more, such as: {bad[1][1]}" if len(bad) > 1 else ""
        raise ValueError(f"{bad[0][1]}{others} Or go on without: --on_bad_audio skip.")
    if bad and len(bad) == len(rows):
        raise ValueError(f"None of the {len(bad)} utterances can be used. The first: {bad[0][1]}")
    if bad:
        skipped += bad
    left_out = {id for id, _ in bad}
    return [{"duration_s": found.get(source), **row} for source, row in zip(sources, rows) if row["id"] not in left_out]


def _read_csv(data_dir, *, allow_partial, targets="corpus"):
    if data_dir is None:
        raise ValueError("csv needs data_dir: a manifest, or the folder that holds manifest.csv.")
    manifest = Path(data_dir).resolve()
    if manifest.is_dir():
        manifest = manifest / "manifest.csv"
    if not manifest.is_file():
        raise FileNotFoundError(f"csv: there is no manifest {manifest}.")
    rows, lines = [], {}
    try:
        table = list(_manifest_rows(manifest, targets))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{manifest} cannot be read ({error}). Save it as CSV in UTF-8.") from None
    for line, cells, times, said in table:
        reach = "" if times is None else f"@{times[0]:.3f}-{times[1]:.3f}"
        id = cells.get("id", Path(cells["path"]).with_suffix("").as_posix() + reach)
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
                "label": cells.get("label") or None,
                "speaker": cells["speaker"],
                "session": cells.get("session"),
                **({"fold": cells["fold"]} if "fold" in cells else {}),
                **({} if times is None else dict(zip(("start_s", "end_s"), times))),
                **said,
            }
        )
    if not rows:
        raise ValueError(f"{manifest} lists no utterance.")
    voted = set() if targets == "corpus" else {label for row in rows for label in row.get("votes") or ()}
    return rows, voted | {row["label"] for row in rows} - {None}


def _manifest_rows(
    manifest: Path, targets: str
) -> Iterator[tuple[int, dict[str, str], tuple[float, float] | None, dict]]:
    """Of every row line number, cells, each filled, start and end, in seconds, of a segment, and `votes` and ratings.
    Where votes are learned, a row that has some needs no label."""
    with open(manifest, encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        columns = reader.fieldnames or []
        voted = vote_columns(columns)
        needed = ("path", "speaker") if voted and targets != "corpus" else ("path", "label", "speaker")
        for column in needed:
            if column not in columns:
                hint = " Separate columns by commas." if len(columns) == 1 else ""
                if column == "label" and voted:
                    hint = " Choose what is learned of the votes: targets: majority or votes."
                raise ValueError(
                    f"{manifest}: the column {column!r} is missing; found {', '.join(columns) or 'none'}.{hint}"
                )
        used = [c for c in ("path", "label", "speaker", "id", "session", "fold") if c in columns]
        timed, rated = time_columns(manifest, columns), rating_columns(columns)
        for row in reader:
            where = f"{manifest}, line {reader.line_num}:"
            said = {"votes": _votes_of_cells(row, voted, where)} if voted else {}
            said |= {name: number_of_rating(row[column], f"{where} {column}") for column, name in rated.items()}
            empty = [column for column in used if not (row[column] or "").strip()]
            if targets != "corpus" and said.get("votes") and "label" in empty:
                empty.remove("label")
            if empty or None in row:
                what = f"no value for {empty[0]!r}" if empty else f"more than {len(columns)} values"
                hint = ", or learn from its votes (targets: votes)" if empty == ["label"] and said.get("votes") else ""
                raise ValueError(f"{where} {what}. Correct or remove the line{hint}.")
            try:
                times = times_of(row, timed) if timed else None
            except ValueError as error:
                raise ValueError(f"{where} {error}. Correct or remove the line.") from None
            yield reader.line_num, {column: (row[column] or "").strip() for column in used}, times, said


def _votes_of_cells(row: Mapping[str, str], voted: Mapping[str, str], where: str) -> dict[str, float]:
    """By label, the votes of a manifest's row, those that are not 0."""
    votes = {label: number_of_votes(row[column], f"{where} {column}") for column, label in voted.items()}
    return {label: count for label, count in votes.items() if count}


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

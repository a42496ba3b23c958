"""EmoBox (Ma et al. 2024, doi:10.21437/Interspeech.2024-788): its manifests, and with them its official folds.

A corpus's folder there holds `fold_K/<corpus>_{train,test,valid}_fold_K.jsonl` and `label_map.json`. A line has `key`,
`dataset`, `wav` (a path below `downloads/<corpus>/`), `emo` (the corpus's own label) and `length` in seconds. Speakers
are in `data.seg.wrd.stm` beside it, where there is one, a line an utterance: key, channel, speaker, start, end, words.
In some corpora (EmoDB among them) the same speakers are in training and in test.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from lascl.data.folds import TRAIN
from lascl.data.public_corpora import PUBLIC_CORPORA
from lascl.data.votes import check_some_label, counted, number_of_rating, rating_columns


# Where neither the file's name nor EmoBox tells the speaker.
UNKNOWN_SPEAKER = "unknown"
_MANIFEST = re.compile(r".+_(?P<side>train|test|valid)_fold_?(?P<fold>\d+)\.jsonl")
_IEMOCAP_TURN = re.compile(r"(?P<session>Ses0\d)[FM]_\w+_(?P<talker>[FM])\w+")


def read_emobox(
    data_dir: str | Path | None,
    *,
    allow_partial: bool,
    audio_dir: str | Path | None = None,
    targets: str = "corpus",
):
    """Reads one corpus by the manifests of EmoBox.

    Args:
        data_dir: a corpus's folder of EmoBox, such as `EmoBox/data/emodb`.
        allow_partial: go on although audio files are missing, without them.
        audio_dir: where the corpus lies: the folder that holds `downloads/`, or the corpus's own folder; by default
            `data_dir` or a folder above it, as in a clone of EmoBox. For a video that the manifest names, the WAV of
            the same name.
        targets: what is learned (`load_corpus`).

    Returns:
        (rows, labels): rows with `id` (the manifest's key), `audio`, `label` (through `label_map.json`, in lower
        case), `speaker` (by the file's name for IEMOCAP and the corpora of `PUBLIC_CORPORA`; else EmoBox's, or
        `unknown`), `session` (IEMOCAP), and `fold`: the number of the fold that tests it, `train` if none does; with
        one fold, `train`, `test` or `valid`. Where `emo` is a list, it is what each listener said: the row's `votes`,
        and it has no label. `valence`, `arousal` and `dominance` where a line has them.

    Raises:
        ValueError: no manifests, an utterance that two folds test or that a fold neither tests nor trains on, one that
            is a part of a file, a label that the map lacks, or (without `allow_partial`) files that are not there.
        FileNotFoundError: a folder that does not exist.
    """
    if data_dir is None:
        raise ValueError("emobox needs data_dir: a corpus's folder of EmoBox, such as EmoBox/data/emodb.")
    root = Path(data_dir).resolve()
    audio_root = root if audio_dir is None else Path(audio_dir).resolve()
    for folder in (root, audio_root):
        if not folder.is_dir():
            raise FileNotFoundError(f"emobox: the folder {folder} does not exist.")
    entries, sides = _read_manifests(root)
    names = _fold_names(sides)
    path = root / "label_map.json"
    words = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    roots = [root, *root.parents] if audio_dir is None else [audio_root]
    speakers = _read_speakers(root)
    rows, missing = [], []
    for key, entry in entries.items():
        if "start_time" in entry:
            raise ValueError(f"emobox: {key} is a part of {entry['wav']}. Cut the file, and use the corpus csv.")
        said = entry["emo"] if isinstance(entry["emo"], list) else [entry["emo"]]
        unknown = [label for label in said if words and label not in words]
        if unknown:
            raise ValueError(f"emobox: {path} has no word for the label {unknown[0]!r} of {key}. Add it.")
        said = [words.get(label, label).lower() for label in said]
        audio = _find_audio(roots, entry)
        if audio is None:
            missing.append(entry["wav"])
            continue
        speaker, session = _who_talks(entry, speakers)
        rows.append(
            {
                "id": key,
                "audio": str(audio),
                **_label_or_votes(entry["emo"], said),
                "speaker": speaker,
                "session": session,
                "fold": names[key],
                **{
                    name: number_of_rating(entry[column], f"emobox: {column} of {key}")
                    for column, name in rating_columns(list(entry)).items()
                },
            }
        )
    if missing and not (allow_partial and rows):
        raise ValueError(
            f"emobox: {len(missing)} of {len(entries)} files are not below {audio_root}, such as {missing[0]}. Name "
            "their folder with audio_dir, or go on with allow_partial."
        )
    check_some_label("emobox", "emo", rows, targets)
    return rows, {label for row in rows for label in (row["label"], *row.get("votes", ())) if label is not None}


def _label_or_votes(emo: str | list[str], said: list[str]) -> dict:
    return {"label": None, "votes": counted(said)} if isinstance(emo, list) else {"label": said[0]}


def _read_manifests(root: Path) -> tuple[dict[str, dict], dict[int, dict[str, set[str]]]]:
    """Each utterance's entry by key; and the keys of each fold's sides."""
    entries, sides = {}, {}
    for path in sorted(root.glob("fold_*/*.jsonl")):
        match = _MANIFEST.fullmatch(path.name)
        if match is None:
            continue
        with open(path, encoding="utf-8") as file:
            try:
                lines = [json.loads(line) for line in file if line.strip()]
            except ValueError as error:
                raise ValueError(f"{path} cannot be read ({error}). Get it again.") from None
        entries |= {line["key"]: line for line in lines}
        fold = sides.setdefault(int(match["fold"]), {"train": set(), "test": set(), "valid": set()})
        fold[match["side"]] |= {line["key"] for line in lines}
    if not sides:
        raise ValueError(f"emobox: {root} holds no fold_K/*_train_fold_K.jsonl. Name a corpus's folder of EmoBox.")
    return entries, sides


def _fold_names(sides: dict[int, dict[str, set[str]]]) -> dict[str, str]:
    if len(sides) == 1:
        (only,) = sides.values()
        return {key: side for side, keys in only.items() for key in keys}
    names: dict[str, str] = {}
    everything = set().union(*(keys for fold in sides.values() for keys in fold.values()))
    for number, fold in sides.items():
        twice = fold["test"] & names.keys()
        if twice:
            raise ValueError(f"emobox: {min(twice)} is tested in the folds {names[min(twice)]} and {number}.")
        names |= dict.fromkeys(fold["test"], str(number))
        unused = everything - fold["test"] - fold["train"] - fold["valid"]
        if unused:
            raise ValueError(
                f"emobox: fold {number} neither trains on nor tests {min(unused)}. Complete its manifests."
            )
    return {key: names.get(key, TRAIN) for key in everything}


def _read_speakers(root: Path) -> dict[str, str]:
    path = root / "data.seg.wrd.stm"
    if not path.is_file():
        return {}
    lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines()]
    return {cells[0]: cells[2] for cells in lines if len(cells) > 4 and not cells[0].startswith(";;")}


def _find_audio(roots: list[Path], entry: dict) -> Path | None:
    relative = Path(entry["wav"])
    inside = Path(entry["wav"].removeprefix(f"downloads/{entry['dataset']}/"))
    if relative.suffix == ".mp4":
        relative, inside = relative.with_suffix(".wav"), inside.with_suffix(".wav")
    return next((path for root in roots for path in (root / relative, root / inside) if path.is_file()), None)


def _who_talks(entry: dict, speakers: dict[str, str]) -> tuple[str, str | None]:
    """Speaker and session."""
    stem = entry["wav"].rpartition(".")[0]
    # The name comes first: what EmoBox has for IEMOCAP is whose recording it is, not who talks.
    if turn := _IEMOCAP_TURN.fullmatch(Path(stem).name):
        return turn["session"] + turn["talker"], turn["session"][-1]
    corpus = PUBLIC_CORPORA.get(entry["dataset"])
    match = corpus and re.fullmatch(f"(?:.*/)?{corpus.pattern}", stem)
    return (corpus.speaker(match["speaker"]) if match else speakers.get(entry["key"], UNKNOWN_SPEAKER)), None

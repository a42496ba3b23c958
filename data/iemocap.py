"""IEMOCAP (Busso et al. 2008, doi:10.1007/s10579-008-9076-6), read from its release tree as it is handed out.

Counts are those that public statistics of the release agree on; the corpus itself is licensed and not part of this
package.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType


IEMOCAP_LABELS = {
    "ang": "angry",
    "hap": "happy",
    "exc": "excited",
    "sad": "sad",
    "neu": "neutral",
    "fru": "frustrated",
    "sur": "surprised",
    "fea": "fearful",
    "dis": "disgusted",
    "oth": "other",
    "xxx": "undecided",  # the evaluators have no majority
}
# The usual four classes, excited counting as happy: 5531 utterances, 2943 of them improvised.
DEFAULT_CLASSES = ("ang", "hap", "exc", "sad", "neu")
DEFAULT_MERGE = MappingProxyType({"exc": "hap"})
# Utterances in sessions 1 to 5.
IEMOCAP_COUNTS = {
    "ang": (229, 137, 240, 327, 170),
    "hap": (135, 117, 135, 65, 143),
    "exc": (143, 210, 151, 238, 299),
    "sad": (194, 197, 305, 143, 245),
    "neu": (384, 362, 320, 258, 384),
}
# The 151 recordings: eight improvised scenes and seven parts of scripts, each with the markers on her and on him, but
# for some that were not recorded or were recorded in two goes.
IEMOCAP_DIALOGS = {
    f"Ses0{session}{marked}_{scene}"
    for session in range(1, 6)
    for marked in "FM"
    for scene in (
        *(f"impro0{number}" for number in range(1, 9)),
        *(f"script{part}" for part in ("01_1", "01_2", "01_3", "02_1", "02_2", "03_1", "03_2")),
    )
} - {"Ses01F_impro08", "Ses01M_impro08", "Ses03M_impro05", "Ses03M_impro08"} | {
    *("Ses03M_impro05a", "Ses03M_impro05b", "Ses03M_impro08a", "Ses03M_impro08b"),
    "Ses05M_script01_1b",
}

# [6.2901 - 8.2357]<TAB>Ses01F_impro01_F000<TAB>neu<TAB>[2.5000, 2.5000, 2.5000]
_TURN = re.compile(
    r"\[(?P<start_s>[\d.]+)\s*-\s*(?P<end_s>[\d.]+)\]\s+"
    r"(?P<id>(?P<dialog>Ses0(?P<session>[1-5])[FM]_(?P<scene>(?:impro|script)\w+))_(?P<talker>[FM])[^\W_]+)\s+"
    r"(?P<raw_label>\w+)\s+"
    r"\[(?P<valence>[\d.]+),\s*(?P<activation>[\d.]+),\s*(?P<dominance>[\d.]+)\]"
)
# C-E2:<TAB>Neutral; Sadness;<TAB>(a remark). Self-reports are C-F1, C-M1.
_EVALUATOR = re.compile(r"C-E\d+:(?P<categories>[^(]*)")
# Ses01F_impro01_F000 [006.2901-008.2357]: Excuse me.
_SPOKEN = re.compile(r"(?P<id>Ses\w+)\s*\[[^\]]*\]:(?P<text>.*)")


def read_iemocap(
    data_dir: str | Path | None,
    *,
    allow_partial: bool,
    improvised_only: bool = False,
    classes: Iterable[str] = DEFAULT_CLASSES,
    merge: Mapping[str, str] = DEFAULT_MERGE,
    targets: str = "corpus",
) -> tuple[list[dict], set[str]]:
    """Reads the release: `dialog/EmoEvaluation`, `dialog/transcriptions` and `sentences/wav` of each session.

    Only turns that an evaluation file names are utterances; a WAV file or a transcript of any other turn is not
    looked at. Files whose names do not begin with `Ses` (`._Ses01F_impro01.txt`) are litter.

    Args:
        data_dir: the folder that holds `Session1` to `Session5`, or the one that holds `IEMOCAP_full_release`.
        allow_partial: go on although recordings or utterances are missing or extra; of an utterance that is there
            twice, the first is used.
        improvised_only: leave out what is said from a script. The copy is checked before that, scripts included.
        classes: the release's labels to keep, of `ang hap exc sad neu fru sur fea dis oth xxx`.
        merge: labels of the release that count as another one of them, in one step; `{}` keeps all apart.
        targets: unless `corpus`, the turns of all labels of the release are read, those without a majority too: what
            they are taken for follows from their votes.

    Returns:
        (rows, labels): the label words that can occur, and one row an utterance with

        * `id`, `audio` (absolute path), `label` (a word), `raw_label` (the release's), `dialog` (the recording);
        * `session` (`1` to `5`) and `speaker`: who talks (`Ses01F`, `Ses01M`: ten speakers). That is the letter of the
          turn; the one in the recording's name tells who wears the markers, and both talk in every recording;
        * `improvised` (bool), `start_s` and `end_s` (seconds in the recording);
        * `valence`, `activation`, `dominance`: the release's means over the evaluators, 1 to 5; `arousal` is
          `activation`, under the name that other corpora have for it;
        * `votes`: how many of the evaluators (`C-E*`) named each word. They may name several, and each is a vote, as
          the release counts for its majority; named twice after `merge`, it is one. A word of an evaluator's own counts
          as `other`. Empty where there is no such evaluator;
        * `agreement`: the share, 0 to 1, of the evaluators who chose categories (`C-E*`, without the actors' reports
          on themselves, `C-F*` and `C-M*`) that named `raw_label`, alone or beside others; None where there is no such
          evaluator, and for `xxx`, which nobody can name;
        * `transcript`: the text with its stage directions (`[LAUGHTER]`), or None;
        * `text_id`: what two utterances share that say the same scripted text: the transcript in lower case without
          stage directions and punctuation, or, where there is none, the part of the script (`script01_1`). None if
          improvised.

    Raises:
        ValueError: no `data_dir`, no release in it, a label that the release does not have, an evaluation that cannot
            be read (with file and line), nothing left to load; and, unless `allow_partial`, a copy that differs from
            the release: the recordings and ids that are missing or extra, and the counts of sessions and labels.
        FileNotFoundError: `data_dir` does not exist.
    """
    classes = list(classes)
    for raw_label in (*classes, *merge, *merge.values()):
        if raw_label not in IEMOCAP_LABELS:
            near = difflib.get_close_matches(str(raw_label), IEMOCAP_LABELS, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"iemocap has no label {raw_label!r}; it has {', '.join(IEMOCAP_LABELS)}.{hint}")
    root = _release_root(data_dir)

    wavs = defaultdict(list)
    for path in sorted(root.glob("Session[1-5]/sentences/wav/*/Ses*.wav")):
        wavs[path.stem].append(path)
    evaluations = sorted(root.glob("Session[1-5]/dialog/EmoEvaluation/Ses*.txt"))
    turns = defaultdict(list)
    for path in evaluations:
        for turn in _read_evaluation(path):
            turns[turn["id"]].append(turn)
    transcripts = _read_transcripts(root)

    rows = []
    for id, (turn, *_) in turns.items():
        if (turn["raw_label"] not in classes and targets == "corpus") or id not in wavs:
            continue
        transcript, chosen = transcripts.get(id), turn.pop("chosen")
        rows.append(
            {
                **turn,
                "votes": _votes(chosen, merge),
                "audio": str(wavs[id][0]),
                "label": IEMOCAP_LABELS[merge.get(turn["raw_label"], turn["raw_label"])],
                "transcript": transcript,
                "text_id": None if turn["improvised"] else _text_id(turn["dialog"], transcript),
            }
        )
    wanted = classes if targets == "corpus" else [*IEMOCAP_LABELS]
    differences = _differences({path.stem for path in evaluations}, turns, wavs, rows, wanted)
    if differences and not allow_partial:
        raise ValueError(
            f"iemocap: {root} is not a right copy of the release: {'; '.join(differences)}. Correct it, or go on with "
            "allow_partial."
        )
    rows = [row for row in rows if row["improvised"] or not improvised_only]
    if not rows:
        raise ValueError(f"iemocap: {root} has no WAV file of an utterance labelled {', '.join(classes) or 'at all'}.")
    return rows, {IEMOCAP_LABELS[merge.get(raw_label, raw_label)] for raw_label in classes}


def _release_root(data_dir: str | Path | None) -> Path:
    if data_dir is None:
        raise ValueError("iemocap needs data_dir: the folder that holds Session1 to Session5.")
    given = Path(data_dir).resolve()
    if not given.is_dir():
        raise FileNotFoundError(f"iemocap: the folder {given} does not exist.")
    for root in (given, given / "IEMOCAP_full_release"):
        if any(root.glob("Session[1-5]")):
            return root
    raise ValueError(f"iemocap: neither {given} nor IEMOCAP_full_release in it holds the folders Session1 to Session5.")


def _read_evaluation(path: Path) -> Iterator[dict]:
    """The turns of a recording, each a block: a line for the turn, then one for each evaluator."""
    turn, chosen = None, []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        if line.startswith("["):
            if turn:
                yield {**turn, "agreement": _agreement(turn["raw_label"], chosen), "chosen": chosen}
            match = _TURN.match(line)
            if not match or match["raw_label"] not in IEMOCAP_LABELS:
                raise ValueError(
                    f"iemocap: {path}, line {number}: {line!r} is not an evaluation such as '[6.29 - 8.23] "
                    "Ses01F_impro01_F000 neu [2.5, 2.5, 2.5]'. Take the file from the release again."
                )
            turn, chosen = _turn(match), []
        elif match := _EVALUATOR.match(line):
            # A category's first three letters are its label: Neutral (in places `Neutral state`), Happiness, Other.
            chosen.append({category.strip()[:3].lower() for category in match["categories"].split(";")})
    if turn:
        yield {**turn, "agreement": _agreement(turn["raw_label"], chosen), "chosen": chosen}


def _turn(match: re.Match) -> dict:
    return {
        "id": match["id"],
        "speaker": f"Ses0{match['session']}{match['talker']}",
        "session": match["session"],
        "dialog": match["dialog"],
        "raw_label": match["raw_label"],
        "improvised": match["scene"].startswith("impro"),
        **{column: float(match[column]) for column in ("start_s", "end_s", "valence", "activation", "dominance")},
        "arousal": float(match["activation"]),
    }


def _agreement(raw_label: str, chosen: list[set[str]]) -> float | None:
    if raw_label == "xxx" or not chosen:
        return None
    return sum(raw_label in categories for categories in chosen) / len(chosen)


def _votes(chosen: list[set[str]], merge: Mapping[str, str]) -> dict[str, float]:
    """How many evaluators named each word; `chosen` are the categories that each named."""
    named = Counter()
    for categories in chosen:
        known = (category if category in IEMOCAP_LABELS else "oth" for category in categories if category)
        named.update({IEMOCAP_LABELS[merge.get(label, label)] for label in known})
    return {word: float(count) for word, count in named.items()}


def _read_transcripts(root: Path) -> dict[str, str | None]:
    transcripts = {}
    for path in sorted(root.glob("Session[1-5]/dialog/transcriptions/Ses*.txt")):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            if match := _SPOKEN.match(line):
                transcripts.setdefault(match["id"], match["text"].strip() or None)
    return transcripts


def _text_id(dialog: str, transcript: str | None) -> str:
    spoken = re.sub(r"\[[^\]]*\]", " ", transcript or "").casefold().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    words = re.findall(r"[^\W_]+(?:'[^\W_]+)*", spoken)
    return " ".join(words) or re.search(r"script\d+_\d+", dialog)[0]  # script01_1b is more of script01_1


def _differences(dialogs: set[str], turns: dict, wavs: dict, rows: list[dict], classes: list[str]) -> list[str]:
    """What a copy lacks or has too much, in words; empty for a right copy."""
    chosen = {id: found for id, found in turns.items() if found[0]["raw_label"] in classes}
    counts = Counter((row["raw_label"], int(row["session"])) for row in rows)
    wrong = [
        (session, f"session {session} {raw_label} {counts[raw_label, session]} instead of {expected}")
        for raw_label in sorted(IEMOCAP_COUNTS.keys() & set(classes))
        for session, expected in enumerate(IEMOCAP_COUNTS[raw_label], start=1)
        if counts[raw_label, session] != expected
    ]
    # A WAV file without an evaluation is no fault. But where counts are wrong, one numbered like an evaluated turn may
    # be a turn whose evaluation is lost.
    lacking = {f"Ses0{session}" for session, _ in wrong}
    unevaluated = [
        id
        for id in wavs.keys() - turns.keys()
        if id[:5] in lacking and re.search(r"_[FM]\d+$", id) and id.rpartition("_")[0] in dialogs
    ]
    kinds = {
        "no evaluation file of the recordings": IEMOCAP_DIALOGS - dialogs,
        "evaluation files of recordings that the release does not have": dialogs - IEMOCAP_DIALOGS,
        "no WAV file of": chosen.keys() - wavs.keys(),
        "no evaluation of the WAV files": unevaluated,
        "evaluated twice": [id for id, found in chosen.items() if len(found) > 1],
        "WAV files in two places": [id for id in chosen if len(wavs.get(id, ())) > 1],
    }
    differences = [f"{kind} {_some(names)}" for kind, names in kinds.items() if names]
    return differences + ([f"counts: {', '.join(text for _, text in wrong)}"] if wrong else [])


def _some(names: Iterable[str], most: int = 20) -> str:
    names = sorted(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")

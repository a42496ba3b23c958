"""Public corpora of acted speech: one table of what a right copy of each looks like, one reader for all of them.

The file name tells everything about an utterance, so nothing but the audio is read, and folders may lie as they like:
what is above the part of the path that `pattern` describes is ignored, and so are other files (`._*` of macOS, songs,
video, transcripts). A file's suffix is `.wav` or `.flac`, in any case.

Words are those of EmoDB (anger, disgust, fear, happiness, neutral, sadness) and surprise, whatever the corpus calls
them, so that these corpora can be joined; IEMOCAP has its usual adjectives. Where the name tells the text that is
spoken, the column `text_id` has its code (two rows of a corpus with the same code say the same words); where it tells
the intensity, `intensity` has that.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lascl.data.votes import number_of_votes


# More than these are counted, not listed.
MAX_LISTED_IDS = 10
CREMAD_VOTES = "tabulatedVotes.csv"
CREMAD_LETTERS = {"A": "anger", "D": "disgust", "F": "fear", "H": "happiness", "N": "neutral", "S": "sadness"}


@dataclass(frozen=True)
class PublicCorpus:
    """What a right copy of one corpus looks like.

    Attributes:
        name: as given to `load_corpus`.
        title: its name in full.
        example: one of its file names.
        pattern: of the end of a file's path without suffix, as a regular expression with the groups `id` (unique; a `/`
            in it becomes `_`), `label`, `speaker`, and, where the name tells them, `text` and `intensity`.
        labels: the code in the file name -> the word.
        counts: the word -> the utterances of the full release.
        num_speakers: of the full release.
        language: English name.
        license: as its authors state it; `not stated` where they do not.
        url: where to get it or to ask for it.
        citation: of the paper, a DOI where there is one.
        intensities: the code in the file name -> the word; None for an intensity that was not asked for.
        speaker: from the group `speaker` to the speaker's name, where they differ.
        votes: from the folder to what listeners said, by id, votes by word; for a corpus that comes with that.
    """

    name: str
    title: str
    example: str
    pattern: str
    labels: Mapping[str, str]
    counts: Mapping[str, int]
    num_speakers: int
    language: str
    license: str
    url: str
    citation: str
    intensities: Mapping[str, str | None] = field(default_factory=dict)
    speaker: Callable[[str], str] = str
    votes: Callable[[Path], Mapping[str, Mapping[str, float]]] | None = None


def read_cremad_votes(root: Path) -> dict[str, dict[str, float]]:
    """What CREMA-D's listeners said of the voice alone, by id, from `tabulatedVotes.csv`, which lies in `root`, beside
    it, or in a folder `processedResults` there; empty without it.

    A clip has three rows: of the voice, of the face, and of both. Their numbers, in the first column, begin with 1, 2
    and 3. The columns `A`, `D`, `F`, `H`, `N`, `S` count votes.

    Raises:
        ValueError: a column is missing, or a count is none; the message names the file and the line.
    """
    places = [folder / part for folder in (root, root.parent) for part in ("", "processedResults")]
    path = next((place / CREMAD_VOTES for place in places if (place / CREMAD_VOTES).is_file()), None)
    if path is None:
        return {}
    found = {}
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        columns = reader.fieldnames or []
        for column in (*CREMAD_LETTERS, "fileName"):
            if column not in columns:
                raise ValueError(f"cremad: {path} has no column {column!r}. Take it from the release again.")
        for row in reader:
            if not re.fullmatch(r"1\d{5}", (row[columns[0]] or "").strip()):
                continue
            where = f"cremad: {path}, line {reader.line_num}:"
            votes = {word: number_of_votes(row[c], f"{where} {c}") for c, word in CREMAD_LETTERS.items()}
            found[Path(row["fileName"].strip()).stem] = {word: count for word, count in votes.items() if count}
    return found


PUBLIC_CORPORA = {
    corpus.name: corpus
    for corpus in (
        PublicCorpus(
            name="ravdess",
            title="Ryerson Audio-Visual Database of Emotional Speech and Song (its speech)",
            example="03-01-06-01-02-01-12.wav",
            # Audio only (03) and speech (01), then emotion, intensity, statement, repetition, actor.
            pattern=r"(?P<id>03-01-(?P<label>0[1-8])-(?P<intensity>0[12])-(?P<text>0[12])-0[12]-(?P<speaker>\d\d))",
            labels={
                "01": "neutral",
                "02": "calm",
                "03": "happiness",
                "04": "sadness",
                "05": "anger",
                "06": "fear",
                "07": "disgust",
                "08": "surprise",
            },
            # Neutral was not recorded in strong intensity.
            counts={
                "neutral": 96,
                "calm": 192,
                "happiness": 192,
                "sadness": 192,
                "anger": 192,
                "fear": 192,
                "disgust": 192,
                "surprise": 192,
            },
            num_speakers=24,
            language="English",
            license="CC BY-NC-SA 4.0",
            url="https://zenodo.org/records/1188976",
            citation="10.1371/journal.pone.0196391",
            intensities={"01": "normal", "02": "strong"},
        ),
        PublicCorpus(
            name="cremad",
            title="Crowd-sourced Emotional Multimodal Actors Dataset (CREMA-D)",
            example="1001_DFA_ANG_XX.wav",
            # One sentence (IEO) was also acted in three intensities.
            pattern=r"(?P<id>(?P<speaker>10\d\d)_(?P<text>[A-Z]{3})_(?P<label>[A-Z]{3})_(?P<intensity>LO|MD|HI|XX))",
            labels={
                "ANG": "anger",
                "DIS": "disgust",
                "FEA": "fear",
                "HAP": "happiness",
                "NEU": "neutral",
                "SAD": "sadness",
            },
            counts={"anger": 1271, "disgust": 1271, "fear": 1271, "happiness": 1271, "neutral": 1087, "sadness": 1271},
            num_speakers=91,
            language="English",
            license="ODbL 1.0",
            url="https://github.com/CheyneyComputerScience/CREMA-D",
            citation="10.1109/TAFFC.2014.2336244",
            intensities={"LO": "low", "MD": "medium", "HI": "high", "XX": None},
            votes=read_cremad_votes,
        ),
        PublicCorpus(
            name="tess",
            title="Toronto Emotional Speech Set",
            example="OAF_back_angry.wav",
            # The release misspells one file: OA_bite_neutral.
            pattern=r"(?P<id>(?P<speaker>OAF?|YAF)_(?P<text>[a-z]+)_(?P<label>angry|disgust|fear|happy|neutral|ps|sad))",
            labels={
                "angry": "anger",
                "disgust": "disgust",
                "fear": "fear",
                "happy": "happiness",
                "neutral": "neutral",
                "ps": "surprise",  # "pleasant surprise"
                "sad": "sadness",
            },
            counts={
                "anger": 400,
                "disgust": 400,
                "fear": 400,
                "happiness": 400,
                "neutral": 400,
                "surprise": 400,
                "sadness": 400,
            },
            num_speakers=2,
            language="English",
            license="CC BY-NC-ND 4.0",
            url="https://doi.org/10.5683/SP2/E8H2MF",
            citation="10.5683/SP2/E8H2MF",
            speaker=lambda code: f"{code[0]}AF",
        ),
        PublicCorpus(
            name="savee",
            title="Surrey Audio-Visual Expressed Emotion",
            example="DC_a01.wav",
            # Copies have DC_a01, the release has DC/a01. The number counts the sentences of one emotion, so that the
            # three sentences common to all emotions have a code in each.
            pattern=r"(?P<id>(?P<speaker>DC|JE|JK|KL)[_/](?P<text>(?P<label>sa|su|[adfhn])\d\d))",
            labels={
                "a": "anger",
                "d": "disgust",
                "f": "fear",
                "h": "happiness",
                "n": "neutral",
                "sa": "sadness",
                "su": "surprise",
            },
            counts={
                "anger": 60,
                "disgust": 60,
                "fear": 60,
                "happiness": 60,
                "neutral": 120,
                "sadness": 60,
                "surprise": 60,
            },
            num_speakers=4,
            language="English",
            license="research, on registration",
            url="http://kahlan.eps.surrey.ac.uk/savee/",
            citation="Haq and Jackson, Speaker-dependent audio-visual emotion recognition, AVSP 2009",
        ),
        PublicCorpus(
            name="emovo",
            title="EMOVO",
            example="dis-f1-b1.wav",
            pattern=r"(?P<id>(?P<label>dis|gio|neu|pau|rab|sor|tri)-(?P<speaker>[fm][1-3])-(?P<text>[bdln]\d))",
            labels={
                "dis": "disgust",
                "gio": "happiness",  # gioia
                "neu": "neutral",
                "pau": "fear",  # paura
                "rab": "anger",  # rabbia
                "sor": "surprise",  # sorpresa
                "tri": "sadness",  # tristezza
            },
            counts={
                "disgust": 84,
                "happiness": 84,
                "neutral": 84,
                "fear": 84,
                "anger": 84,
                "surprise": 84,
                "sadness": 84,
            },
            num_speakers=6,
            language="Italian",
            license="not stated",
            url="http://voice.fub.it/activities/corpora/emovo/index.html",
            citation="Costantini et al., EMOVO corpus: an Italian emotional speech database, LREC 2014",
        ),
        PublicCorpus(
            name="shemo",
            title="Sharif Emotional Speech Database",
            example="F01A01.wav",
            # The number counts a speaker's utterances of one emotion: it is not a text's. Expected are the 3000 of the
            # authors; EmoBox lists 2838 of them.
            pattern=r"(?P<id>(?P<speaker>[FM]\d\d)(?P<label>[AFHNSW])\d\d\d?)",
            labels={
                "A": "anger",
                "F": "fear",
                "H": "happiness",
                "N": "neutral",
                "S": "sadness",
                "W": "surprise",
            },
            counts={
                "anger": 1059,
                "fear": 38,
                "happiness": 201,
                "neutral": 1028,
                "sadness": 449,
                "surprise": 225,
            },
            num_speakers=87,
            language="Persian",
            license="free for academic use",
            url="https://github.com/pariajm/sharif-emotional-speech-database",
            citation="10.1007/s10579-018-9427-x",
        ),
        PublicCorpus(
            name="aesdd",
            title="Acted Emotional Speech Dynamic Database",
            example="a01 (1).wav",
            # Emotion, utterance, (speaker), and a letter for another take. Utterance 20 is improvised: other words.
            # The corpus grows, and its authors give no exact count: expected are the 604 of the copy that EmoBox uses.
            pattern=r"(?P<id>(?P<label>[adfhs])(?P<text>[012]\d) \(0?(?P<speaker>\d)\)[ab]?)",
            labels={"a": "anger", "d": "disgust", "f": "fear", "h": "happiness", "s": "sadness"},
            counts={"anger": 121, "disgust": 122, "fear": 120, "happiness": 119, "sadness": 122},
            num_speakers=6,
            language="Greek",
            license="not stated",
            url="http://m3c.web.auth.gr/research/aesdd-speech-emotion-recognition/",
            citation="10.17743/jaes.2018.0036",
        ),
        PublicCorpus(
            name="subesco",
            title="SUST Bangla Emotional Speech Corpus",
            example="F_01_OISHI_S_10_ANGRY_1.wav",
            # Gender, number and name of the speaker, sentence, emotion, take; one file has a stray bracket.
            pattern=(
                r"(?P<id>(?P<speaker>[FM]_\d\d_[A-Z]+)_S_(?P<text>\d\d?)_"
                r"(?P<label>ANGRY|DISGUST|FEAR|HAPPY|NEUTRAL|SAD|SURPRISE)_[1-5])\]?"
            ),
            labels={
                "ANGRY": "anger",
                "DISGUST": "disgust",
                "FEAR": "fear",
                "HAPPY": "happiness",
                "NEUTRAL": "neutral",
                "SAD": "sadness",
                "SURPRISE": "surprise",
            },
            counts={
                "anger": 1000,
                "disgust": 1000,
                "fear": 1000,
                "happiness": 1000,
                "neutral": 1000,
                "sadness": 1000,
                "surprise": 1000,
            },
            num_speakers=20,
            language="Bangla",
            license="CC BY 4.0",
            url="https://zenodo.org/records/4526477",
            citation="10.1371/journal.pone.0250173",
            speaker=lambda code: code[:4],
        ),
        PublicCorpus(
            name="cafe",
            title="Canadian French Emotional speech dataset",
            example="01-C-1-1.wav",
            # Folders are named in French, and their accents come out of archives garbled: the file name has it all.
            pattern=r"(?P<id>(?P<speaker>\d\d)-(?P<label>[CDJNPST])-(?P<intensity>[12])-(?P<text>[1-6]))",
            labels={
                "C": "anger",  # colère
                "D": "disgust",  # dégoût
                "J": "happiness",  # joie
                "N": "neutral",
                "P": "fear",  # peur
                "S": "surprise",
                "T": "sadness",  # tristesse
            },
            # Neutral has one intensity.
            counts={
                "anger": 144,
                "disgust": 144,
                "happiness": 144,
                "neutral": 72,
                "fear": 144,
                "surprise": 144,
                "sadness": 144,
            },
            num_speakers=12,
            language="French",
            license="CC BY-NC-SA 4.0",
            url="https://zenodo.org/records/1478765",
            citation="10.1145/3204949.3208121",
            intensities={"1": "weak", "2": "strong"},
        ),
        PublicCorpus(
            name="jlcorpus",
            title="JL-Corpus",
            example="female1_angry_10a_1.wav",
            # Speaker, emotion, sentence with the session's letter, repetition. The first five emotions are the primary
            # ones; the secondary ones keep the corpus's own words.
            pattern=(
                r"(?P<id>(?P<speaker>(?:fe)?male[12])_(?P<label>angry|sad|neutral|happy|excited|"
                r"anxious|apologetic|assertive|concerned|encouraging)_(?P<text>\d\d?)[ab]_[12])"
            ),
            labels={
                "angry": "anger",
                "sad": "sadness",
                "neutral": "neutral",
                "happy": "happiness",
                "excited": "excitement",
                "anxious": "anxious",
                "apologetic": "apologetic",
                "assertive": "assertive",
                "concerned": "concerned",
                "encouraging": "encouraging",
            },
            counts={
                "anger": 240,
                "sadness": 240,
                "neutral": 240,
                "happiness": 240,
                "excitement": 240,
                "anxious": 240,
                "apologetic": 240,
                "assertive": 240,
                "concerned": 240,
                "encouraging": 240,
            },
            num_speakers=4,
            language="English",
            license="CC0 1.0",
            url="https://www.kaggle.com/datasets/tli725/jl-corpus",
            citation="10.21437/Interspeech.2018-1349",
        ),
        PublicCorpus(
            name="emodb",
            title="Berlin Database of Emotional Speech",
            example="03a01Fa.wav",
            # Speaker, text, emotion (in German), version.
            pattern=r"(?P<id>(?P<speaker>\d\d)(?P<text>[ab]\d\d)(?P<label>[WLEAFNT])[a-z])",
            labels={
                "W": "anger",  # Wut
                "L": "boredom",  # Langeweile
                "E": "disgust",  # Ekel
                "A": "fear",  # Angst
                "F": "happiness",  # Freude
                "N": "neutral",
                "T": "sadness",  # Trauer
            },
            counts={
                "anger": 127,
                "boredom": 81,
                "disgust": 46,
                "fear": 69,
                "happiness": 71,
                "neutral": 79,
                "sadness": 62,
            },
            num_speakers=10,
            language="German",
            license="not stated",
            url="http://emodb.bilderbar.info",
            citation="10.21437/Interspeech.2005-446",
        ),
    )
}


def read_public(corpus: PublicCorpus, data_dir: str | Path | None, *, allow_partial: bool):
    """Reads a corpus of the table: rows as `load_corpus` wants them, and the words that a full release has.

    Args:
        corpus: an entry of `PUBLIC_CORPORA`.
        data_dir: a folder that holds the corpus, in folders of its own or not.
        allow_partial: go on although utterances are missing or extra.

    Returns:
        (rows, labels): rows with `id`, `audio`, `label`, `speaker`, `session` (None), and, where the file name tells
        them, `text_id` (str) and `intensity` (str or None), and `votes` of a corpus that comes with some. A file that
        is there twice gives two rows with one id, which `load_corpus` refuses.

    Raises:
        ValueError: `data_dir` is None, holds nothing of the corpus, or (without `allow_partial`) not what its full
            release has: the difference is told for each label, and by id where few are missing and every speaker said
            the same.
        FileNotFoundError: `data_dir` does not exist.
    """
    if data_dir is None:
        raise ValueError(f"{corpus.name} needs data_dir: the folder that holds files such as {corpus.example}.")
    root = Path(data_dir).resolve()
    if not root.is_dir():
        raise FileNotFoundError(f"{corpus.name}: the folder {root} does not exist.")
    pattern = re.compile(f"(?:.*/)?{corpus.pattern}")
    rows, matches = [], []
    for path in sorted(root.rglob("*")):
        if path.suffix.lower() not in (".wav", ".flac"):
            continue
        # With the folder's own name: data_dir may be one speaker's.
        match = pattern.fullmatch(f"{root.name}/{path.relative_to(root).with_suffix('').as_posix()}")
        if match and match["label"] in corpus.labels:
            matches.append(match)
            rows.append(
                {
                    "id": match["id"].replace("/", "_"),
                    "audio": str(path),
                    "label": corpus.labels[match["label"]],
                    "speaker": corpus.speaker(match["speaker"]),
                    "session": None,
                    **({"text_id": match["text"]} if "text" in pattern.groupindex else {}),
                    **({"intensity": corpus.intensities[match["intensity"]]} if corpus.intensities else {}),
                }
            )
    votes = corpus.votes(root) if corpus.votes else {}
    rows = [{**row, "votes": votes.get(row["id"], {})} for row in rows] if votes else rows
    if not rows:
        raise ValueError(f"{corpus.name}: {root} holds no file named like {corpus.example}. Get it at {corpus.url}.")
    found = Counter({row["id"]: row["label"] for row in rows}.values())  # a second copy completes nothing
    wrong = [
        f"{label} {found[label]} instead of {expected}"
        for label, expected in corpus.counts.items()
        if found[label] != expected
    ]
    if wrong and not allow_partial:
        missing = _missing_ids(corpus, matches)
        listed = f" Missing: {', '.join(missing)}." if 0 < len(missing) <= MAX_LISTED_IDS else ""
        raise ValueError(
            f"{corpus.name}: a whole copy has {sum(corpus.counts.values())} utterances; {root} has {found.total()} "
            f"({'; '.join(wrong)}).{listed} Complete it, or go on with allow_partial."
        )
    return rows, corpus.counts.keys()


def _missing_ids(corpus: PublicCorpus, matches: list[re.Match]) -> list[str]:
    """Ids that are not there, where they can be known: all speakers said the same, and each thing is there from one."""
    codes, spoken = {}, set()
    for match in matches:
        speaker = corpus.speaker(match["speaker"])
        codes.setdefault(speaker, match["speaker"])
        # What is said is the id without its speaker.
        start, end = (position - match.start("id") for position in match.span("speaker"))
        spoken.add((speaker, match["id"][:start], match["id"][end:]))
    said = {(before, after) for _, before, after in spoken}
    if len(codes) != corpus.num_speakers or len(codes) * len(said) != sum(corpus.counts.values()):
        return []
    return sorted(
        f"{before}{code}{after}".replace("/", "_")
        for speaker, code in codes.items()
        for before, after in said
        if (speaker, before, after) not in spoken
    )

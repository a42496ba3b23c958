"""What in a repository is LaSCL's and what is somebody else's.

Each commit of a publishing holds a record, `.lascl-files.json`: which files LaSCL wrote on this branch, and what of the
card. What is there as it was written may be written anew or deleted. What differs, or is in no record, is somebody's.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path

import yaml
from huggingface_hub.hf_api import RepoSibling
from huggingface_hub.utils import yaml_dump


RECORD = ".lascl-files.json"
CARD = "README.md"
CHUNK = 1 << 20
FRONT_MATTER = re.compile(r"\A---[ \t]*\n(.*?\n)?---[ \t]*(?:\n|\Z)", re.DOTALL)
# Of scores that LaSCL writes: by these a card of the time before the record is known.
OUR_ARGUMENTS = {"protocol", "utterances", "max_duration_s"}


@dataclass
class Record:
    """What LaSCL wrote.

    Args:
        files: path -> (SHA-256, git's SHA-1 of the blob): the Hub tells the one of large files, the other of small.
        metadata: field of the card -> hash of its value.
        sections: heading in the card -> hash of the section.
    """

    files: dict[str, tuple[str, str]]
    metadata: dict[str, str]
    sections: dict[str, str]

    @classmethod
    def of_folder(cls, folder: Path) -> Record:
        """Of what is staged there."""
        paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != RECORD]
        metadata, sections = _hashed(Card((folder / CARD).read_text(encoding="utf-8")))
        return cls({path.relative_to(folder).as_posix(): hashes(path) for path in paths}, metadata, sections)

    @classmethod
    def parsed(cls, content: bytes) -> Record | None:
        """Of a branch; `None` if it is damaged, for then nothing is known."""
        try:
            told = json.loads(content)
            files = {str(path): (str(sha256), str(sha1)) for path, (sha256, sha1) in told["files"].items()}
            return cls(files, dict(told["metadata"]), dict(told["sections"]))
        except (ValueError, TypeError, KeyError, AttributeError):
            return None

    def text(self) -> str:
        about = "What LaSCL wrote on this branch. It deletes and overwrites nothing else; leave this file as it is."
        return json.dumps({"about": about, **vars(self)}, indent=1, ensure_ascii=False) + "\n"

    def wrote(self, remote: RepoSibling) -> bool:
        """Whether a file of the branch is there as LaSCL wrote it."""
        sha256, sha1 = self.files.get(remote.rfilename, (None, None))
        return sha256 == remote.lfs.sha256 if remote.lfs else sha1 == remote.blob_id


def hashes(content: Path | bytes) -> tuple[str, str]:
    """SHA-256, and git's SHA-1 of the blob; a file is read in pieces."""
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest(), hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    sha256, sha1 = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % content.stat().st_size)
    with open(content, "rb") as file:
        while piece := file.read(CHUNK):
            sha256.update(piece)
            sha1.update(piece)
    return sha256.hexdigest(), sha1.hexdigest()


def is_lascl_config(content: bytes) -> bool:
    """Whether a `config.json` is that of a LaSCL model."""
    try:
        config = json.loads(content)
    except ValueError:
        return False
    return isinstance(config, dict) and config.get("model_type") == "lascl"


# --------------------------------------------------------------------------------------------------------- the card


class Card:
    """A README in parts that can be told apart: the metadata's fields, and sections by their headings.

    A section begins at a heading of the second level outside code; what stands before the first has the heading "".
    Of sections with the same heading, the later ones are numbered.
    """

    def __init__(self, text: str):
        lines = text.replace("\r\n", "\n")
        found = FRONT_MATTER.match(lines)
        self.front_matter = found[0] if found else ""
        try:
            metadata = yaml.safe_load(found[1] or "") if found else None
        except yaml.YAMLError:  # no page of the Hub reads it either
            metadata = None
        self.metadata = metadata if isinstance(metadata, dict) else {}
        self.sections, heading, in_code = {"": []}, "", False
        for line in lines[len(self.front_matter) :].split("\n"):
            if line.startswith(("```", "~~~")):
                in_code = not in_code
            if line.startswith("## ") and not in_code:
                heading, number = line.strip(), 1
                while heading in self.sections:
                    number += 1
                    heading = f"{line.strip()} [{number}]"
                self.sections[heading] = []
            self.sections[heading].append(line)
        joined = {heading: "\n".join(lines).strip("\n") for heading, lines in self.sections.items()}
        self.sections = {heading: text for heading, text in joined.items() if text.strip()}


def merged_card(new: str, old: str, record: Record | None, *, replace: bool = False) -> tuple[str, list[str]]:
    """A card as LaSCL writes it now, with what a person wrote into the one that is there.

    What is as LaSCL wrote it is written anew. What a person added, changed or took away stays so; without a record,
    that is all that differs. `model-index` is the exception: scores in LaSCL's form are LaSCL's, record or none.

    Args:
        new: as LaSCL writes it.
        old: as it is there.
        record: of the commit that wrote it.
        replace: what a person changed or took away is written anew too; what was added stays.

    Returns:
        The card, and the names of LaSCL's fields and sections that a person changed or took away: these are not what
        LaSCL would write now.
    """
    if new == old:
        return old, []
    new_card, old_card = Card(new), Card(old)
    kept = []
    metadata = _merged(
        new_card.metadata, old_card.metadata, record and record.metadata, _hash_of_value, _scores_of_ours, replace, kept
    )
    sections = _merged(
        new_card.sections, old_card.sections, record and record.sections, _hash, lambda *_: False, replace, kept
    )
    if metadata.get("license") != new_card.metadata.get("license") and "license_name" not in old_card.metadata:
        metadata.pop("license_name", None)  # that of another licence
    if metadata == old_card.metadata and list(sections.items()) == list(old_card.sections.items()):
        return old, kept  # to the letter
    if list(metadata.items()) == list(new_card.metadata.items()):
        front_matter = new_card.front_matter
    else:
        front_matter = f"---\n{yaml_dump(metadata, sort_keys=False)}---\n"
    body = "\n\n".join(sections.values())
    return f"{front_matter}\n{body}\n", kept


def _merged(new: dict, old: dict, recorded: dict | None, hash_of, is_ours, replace: bool, kept: list[str]) -> dict:
    """New parts in their order, each followed by what a person put behind it; names that were kept go to `kept`."""

    def untouched(name) -> bool:
        return is_ours(name, old[name]) or (recorded is not None and recorded.get(name) == hash_of(old[name]))

    result = {}
    for name, value in new.items():
        if name in old and hash_of(old[name]) == hash_of(value):
            result[name] = old[name]  # to the letter
        elif name in old and (untouched(name) or replace):
            result[name] = value
        elif name in old:
            result[name] = old[name]
            kept.append(name)
        elif recorded is None or name not in recorded or replace:
            result[name] = value
        else:
            kept.append(name)  # a person took it away
    before = None
    for name, value in old.items():
        if name not in new and not untouched(name):
            place = list(result).index(before) + 1 if before in result else 0 if before is None else len(result)
            items = list(result.items())
            result = dict([*items[:place], (name, value), *items[place:]])
        before = name if name in result else before
    return result


def _scores_of_ours(name: str, value) -> bool:
    """Whether these are scores, all in LaSCL's form."""
    if name != "model-index" or not isinstance(value, list):
        return False
    try:
        results = [result for model in value for result in model["results"]]
        return all(result["dataset"]["args"].keys() >= OUR_ARGUMENTS for result in results)
    except (TypeError, KeyError, AttributeError):
        return False


def _hashed(card: Card) -> tuple[dict[str, str], dict[str, str]]:
    metadata = {str(name): _hash_of_value(value) for name, value in card.metadata.items()}
    return metadata, {heading: _hash(text) for heading, text in card.sections.items()}


def _hash_of_value(value) -> str:
    return _hash(json.dumps(value, sort_keys=True, default=str))


def _hash(text: str) -> str:
    """Whatever space ends its lines: editors change that."""
    return hashlib.sha256("\n".join(line.rstrip() for line in text.split("\n")).encode()).hexdigest()

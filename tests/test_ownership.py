"""Cards that LaSCL and people write together, and the record of what is whose."""

from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lascl.hub.ownership import CARD, Card, Record, hashes, is_lascl_config, merged_card


HEADINGS = ["## Use", "## Results", "## Training"]
words = st.text("abc #-`*\n", max_size=20).map(lambda text: text.replace("```", "").replace("\n## ", "\n# ").strip())


def written(sections: dict[str, str], **metadata) -> str:
    """A card as LaSCL writes it."""
    fields = "".join(f"{name}: {value}\n" for name, value in {"license": "other", **metadata}.items())
    body = "\n\n".join(f"{heading}\n\n{text}" for heading, text in sections.items())
    return f"---\n{fields}---\n\n# LaSCL\n\n{body}\n"


def record_of(card: str, folder) -> Record:
    folder.mkdir(exist_ok=True)
    (folder / CARD).write_text(card, encoding="utf-8")
    return Record.of_folder(folder)


def sections_of(card: str) -> dict[str, str]:
    return Card(card).sections


@settings(max_examples=40, deadline=None)
@given(st.lists(words, min_size=3, max_size=3), st.lists(words, min_size=3, max_size=3), st.data())
def test_what_people_write_is_never_lost_and_what_lascl_wrote_is_never_old(tmp_path_factory, before, after, data):
    old, new = (written(dict(zip(HEADINGS, texts))) for texts in (before, after))
    record = record_of(old, tmp_path_factory.getbasetemp() / "cards")
    edited, lines = {}, old
    for heading in data.draw(st.sets(st.sampled_from(HEADINGS))):
        edited[heading] = f"{heading}\n\na person's words on {heading[3:]}"
        lines = lines.replace(sections_of(lines)[heading], edited[heading])
    added = {f"## Mine {number}": f"## Mine {number}\n\n{data.draw(words)}".strip() for number in range(2)}
    position = data.draw(st.sampled_from(HEADINGS))
    lines = lines.replace(f"{position}\n", f"{added['## Mine 0']}\n\n{position}\n", 1) + f"\n{added['## Mine 1']}\n"

    merged, kept = merged_card(new, lines, record)
    found = sections_of(merged)
    assert set(kept) == {heading for heading in edited if sections_of(new)[heading] != edited[heading]}
    for heading, expected in {**sections_of(new), **edited, **added}.items():
        assert found[heading].split() == expected.split(), heading
    order = list(found)
    assert order.index("## Mine 0") < order.index(position) and order[-1] == "## Mine 1"
    assert merged_card(new, merged, record_of(new, tmp_path_factory.getbasetemp() / "cards"))[0] == merged


def test_what_a_person_takes_away_stays_away_and_what_lascl_no_longer_writes_goes(tmp_path):
    old = written({"## Use": "so", "## Results": "85", "## Old": "x"}, tags="a", datasets="d")
    record = record_of(old, tmp_path)
    without = old.replace("## Results\n\n85\n\n", "").replace("tags: a\n", "")
    new = written({"## Use": "thus", "## Results": "86"}, tags="b", language="de")
    merged, kept = merged_card(new, without, record)
    assert kept == ["tags", "## Results"]
    assert Card(merged).metadata == {"license": "other", "language": "de"}
    assert list(sections_of(merged)) == ["", "## Use"] and "thus" in merged
    assert merged_card(new, without, record, replace=True) == (new, [])


def test_a_heading_within_code_is_none_and_the_same_heading_twice_is_two(tmp_path):
    code = "```python\n## Use\n```"
    old = written({"## Use": code, "## Notes": "1"}) + "\n## Notes\n\n2\n"
    assert list(sections_of(old)) == ["", "## Use", "## Notes", "## Notes [2]"]
    merged, _ = merged_card(written({"## Use": "new"}), old, record_of(written({"## Use": code}), tmp_path))
    assert "new" in merged and code not in merged and merged.index("\n1\n") < merged.index("\n2\n")


def test_space_at_the_ends_of_lines_and_windows_line_ends_are_no_edit(tmp_path):
    old = written({"## Use": "line one\nline two"})
    new = written({"## Use": "line three"})
    for edited in (old.replace("\n", "\r\n"), old.replace("one\n", "one  \n"), f"{old}\n\n"):
        assert merged_card(new, edited, record_of(old, tmp_path)) == (new, [])
        assert merged_card(old, edited, record_of(old, tmp_path)) == (edited, [])  # to the letter


def test_scores_in_lascls_form_are_lascls_without_a_record_too():
    ours = "[{name: a, results: [{dataset: {args: {protocol: p, utterances: 3, max_duration_s: 1}}}]}]"
    theirs = "[{name: a, results: [{dataset: {name: x}}]}]"
    new = written({"## Use": "x"})
    for scores, stays in ((ours, False), (theirs, True), ("[]", False), ("[1]", True), ("best", True)):
        merged, _ = merged_card(new, written({"## Use": "x"}, **{"model-index": scores}), None)
        assert ("model-index" in Card(merged).metadata) == stays, scores


@pytest.mark.parametrize(
    "old", ["", "# Only a title\n", "---\n---\n", "---\n: [\n---\n# Bad metadata\n", "---\nlicense"]
)
def test_any_card_gets_what_it_lacks(old):
    new = written({"## Use": "so"})
    merged, _ = merged_card(new, old, None)
    assert Card(merged).metadata == {"license": "other"} and "## Use\n\nso" in merged
    assert all(line in merged for line in old.split("\n") if line.startswith("# "))
    assert merged_card(new, merged, None)[0] == merged


def test_a_record_is_read_as_it_was_written_and_a_damaged_one_not_at_all(tmp_path):
    (tmp_path / "weights").write_bytes(b"\0" * 3_000_000)
    record = record_of(written({"## Übung": "x"}), tmp_path)
    assert Record.parsed(record.text().encode()) == record and set(record.files) == {CARD, "weights"}
    assert hashes(tmp_path / "weights") == hashes(b"\0" * 3_000_000)
    for damaged in (
        b"",
        b"{",
        b"null",
        b"[]",
        b'{"files": {}}',
        b'{"files": [], "metadata": {}, "sections": {}}',
        b"\xff",
    ):
        assert Record.parsed(damaged) is None
    sha256, sha1 = record.files["weights"]
    large = SimpleNamespace(rfilename="weights", lfs=SimpleNamespace(sha256=sha256), blob_id=None)
    small = SimpleNamespace(rfilename="weights", lfs=None, blob_id=sha1)
    other = SimpleNamespace(rfilename="other", lfs=None, blob_id=sha1)
    assert record.wrote(large) and record.wrote(small) and not record.wrote(other)


def test_which_configurations_are_lascls():
    assert is_lascl_config(b'{"model_type": "lascl"}')
    for other in (b"", b"{", b"[]", b'"lascl"', b'{"model_type": "bert"}', b"{}"):
        assert not is_lascl_config(other)

"""Several corpora as one table: names, words, equal recordings, and what is refused."""

import json
import warnings
from collections import Counter
from itertools import chain

import numpy as np
import pytest
import soundfile
import torch
import yaml
from datasets import ClassLabel, Dataset, Features, Value
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import RATE, recording

import lascl
from lascl.data import Fold, SpeechDataset, UtteranceBatchSampler, corpora, load_corpus, make_folds
from lascl.train import main
from lascl.training.recipe import parse_recipe
from lascl.training.run_directory import open_run


def loaded(entries, **options):
    assert hasattr(lascl.data, "load_corpora"), "several corpora cannot be loaded"
    return lascl.data.load_corpora(entries, **options)


EMODB_WORDS = ["anger", "boredom", "disgust", "fear", "happiness", "neutral", "sadness"]


def test_corpora_become_one_table_in_which_no_name_means_two_things(three_corpora, emodb_like):
    table = loaded(three_corpora, allow_partial=True)
    assert table.column_names == ["id", "audio", "label", "speaker", "session", "duration_s", "text_id", "corpus"]
    assert Counter(table["corpus"][:]) == {"emodb": 70, "acted": 18, "calls": 18}
    assert table.features["label"].names == sorted({*EMODB_WORDS, "calm", "annoyed"})
    assert table["id"][:] == sorted(table["id"][:]) and table.info.dataset_name == "many"
    rows = {row["id"]: row for row in table}
    alone = load_corpus("emodb", emodb_like, allow_partial=True)
    for row in alone:
        found = rows[f"emodb/{row['id']}"]
        assert found["audio"] == row["audio"] and found["duration_s"] == row["duration_s"]
        assert found["speaker"] == f"emodb/{row['speaker']}" and found["session"] is None
        assert found["text_id"] == "emodb/a01"
        assert table.features["label"].int2str(found["label"]) == alone.features["label"].int2str(row["label"])
    call = rows["calls/03-annoyed-2"]
    assert call["speaker"] == call["session"] == "calls/03" and call["text_id"] is None and call["corpus"] == "calls"
    assert table.features["label"].int2str(call["label"]) == "annoyed"
    # Speaker "2" of two corpora, and EmoDB's "03" beside the calls', are two people each.
    assert len(set(table["speaker"][:])) == 10 + 3 + 2


def test_the_order_of_corpora_changes_nothing(three_corpora, many):
    again = loaded(three_corpora[::-1], allow_partial=True)
    assert again.features == many.features and again.to_dict() == many.to_dict()


def test_one_corpus_is_today_s_table(three_corpora, emodb_like):
    """Also under a name of its own: nothing is prefixed."""
    alone = load_corpus("emodb", emodb_like, allow_partial=True)
    table = loaded([{**three_corpora[0], "name": "mine"}], allow_partial=True)
    assert table.features == alone.features and table.to_dict() == alone.to_dict()
    assert table.info.dataset_name == "emodb"


def test_labels_options_and_left_out_files_are_each_corpus_s_own(tmp_path, three_corpora):
    (tmp_path / "manifest.csv").write_text("path,label,speaker\na.wav,mad,x\nb.wav,sad,x\nbad.wav,sad,x\n")
    for number, name in enumerate(("a", "b")):
        soundfile.write(tmp_path / f"{name}.wav", recording(seed=number), RATE)
    (tmp_path / "bad.wav").write_text("no audio")
    mine = {"name": "mine", "corpus": "csv", "data_dir": tmp_path, "labels": {"mad": "anger", "sad": "sadness"}}
    skipped = []
    table = loaded([mine, {**three_corpora[2], "labels": ["anger", "annoyed"]}], skipped=skipped)
    assert table.features["label"].names == ["anger", "annoyed", "sadness"] and len(table) == 2 + 12
    ((id, reason),) = skipped
    assert id == "mine/bad" and "bad.wav" in reason
    with pytest.raises(ValueError, match=r"^mine: .*bad.wav.*--on_bad_audio skip"):
        loaded([mine, three_corpora[2]])


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda entries: [entries[1], entries[1]], "Two of the corpora are called 'acted'"),
        (lambda entries: [{**entries[1], "name": "a/b"}, entries[2]], "must have no '/'.*found 'a/b'"),
        (lambda entries: [{**entries[1], "folder": "x"}], "no key 'folder'; it has name, corpus, data_dir"),
        (lambda entries: [{"corpus": "emo"}, entries[1]], "Unknown corpus 'emo'. Known: .*emodb"),
        (lambda entries: [], "names no corpus"),
        (lambda entries: entries[0], "must be a list of mappings"),
        (lambda entries: [entries[0], {**entries[1], "labels": ["rage"]}], "^acted: csv has no label 'rage'"),
        (lambda entries: [entries[0], {"corpus": "csv", "data_dir": "nowhere"}], "^csv: there is no manifest"),
        (
            lambda entries: [entries[0], {**entries[1], "labels": {"anger": "Anger", "calm": "calm"}}],
            "'Anger' and 'anger' of two corpora differ in case",
        ),
    ],
)
def test_what_is_wrong_with_corpora_is_said(three_corpora, change, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        loaded(change(three_corpora), allow_partial=True)


def test_the_same_recording_in_two_corpora_is_found_and_said(tmp_path):
    """By its samples, in whatever container and under whatever name; a mere copy within a corpus is its own matter."""
    entries = []
    for name, suffix, takes in (("one", "wav", (1, 2, 3, 3)), ("two", "flac", (4, 2, 5, 6)), ("three", "wav", (2, 6))):
        root = tmp_path / name
        root.mkdir()
        lines = ["path,label,speaker"]
        for number, seed in enumerate(takes):
            samples = (32767 * recording(seed)).astype(np.int16)  # each format rounds floats in its own way
            soundfile.write(root / f"{name}{number}.{suffix}", samples, RATE)
            lines.append(f"{name}{number}.{suffix},anger,{number}")
        (root / "manifest.csv").write_text("\n".join(lines))
        entries.append({"name": name, "corpus": "csv", "data_dir": root})
    with pytest.warns(UserWarning, match="in two corpora: one/one1 and three/three0, and 2 more such pairs"):
        table = loaded(entries)
    pairs = corpora.equal_recordings(table)
    # In order of the table: "one", "three", "two".
    assert pairs == [("one/one1", "three/three0"), ("one/one1", "two/two1"), ("three/three1", "two/two3")]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded([{**entries[0], "labels": None}])


# ---------------------------------------------------------------------------------------------------------------- words


def words():
    assert hasattr(corpora, "load_corpora"), "there is one corpus only"
    from lascl.data import words

    return words


def test_which_words_a_corpus_annotates(many):
    names, annotates = many.features["label"].names, words().annotated_words(many)
    assert words().corpus_names(many) == ["acted", "calls", "emodb"] and annotates.dtype == bool
    assert words().corpus_of_rows(many) == many["corpus"][:]
    found = [[word for word, there in zip(names, row) if there] for row in annotates]
    assert found == [["anger", "calm", "neutral"], ["anger", "annoyed", "neutral"], EMODB_WORDS]


def test_a_fold_s_words_are_those_of_the_corpora_that_train(many):
    rows = {name: [] for name in ("acted", "calls", "emodb")}
    for row, name in enumerate(many["corpus"][:]):
        rows[name].append(row)
    fold = Fold(1, train=rows["acted"], test=rows["emodb"], validation=rows["calls"])
    assert words().words_of_fold(many, fold) == ["anger", "calm", "neutral"]
    # All that the corpus annotates, also where its training side lacks a word.
    label = many.features["label"].str2int("calm")
    without = [row for row in rows["acted"] if many["label"][row] != label]
    fold = Fold(1, train=without + rows["calls"], test=rows["emodb"])
    assert words().words_of_fold(many, fold) == ["anger", "annoyed", "calm", "neutral"]


def test_one_corpus_has_no_names_and_all_its_words(emodb_like):
    table = load_corpus("emodb", emodb_like, allow_partial=True)
    assert words().corpus_names(table) == [] and words().corpus_of_rows(table) is None
    assert words().annotated_words(table).shape == (0, 7)
    assert words().words_of_fold(table, Fold(1, train=[0], test=[1])) == EMODB_WORDS


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 3), st.integers(0, 2)), min_size=1, max_size=12))
def test_words_are_counted_as_a_loop_counts_them(rows):
    """Of rows of any corpus, any word, on any side (0 trains)."""
    features = Features({"label": ClassLabel(names=list("wxyz")), "corpus": Value("string")})
    names, labels, _ = zip(*rows)
    table = Dataset.from_dict({"label": labels, "corpus": names}, features=features)
    offered = {name: {"wxyz"[label] for other, label, _ in rows if other == name} for name, _, _ in rows}
    annotates = words().annotated_words(table)
    for name, row in zip(sorted(offered), annotates, strict=True):
        assert {word for word, there in zip("wxyz", row) if there} == offered[name]
    sides = [[number for number, row in enumerate(rows) if row[2] == side] for side in range(3)]
    trained = set().union(*(offered[rows[number][0]] for number in sides[0]), set())
    assert words().words_of_fold(table, Fold(1, *sides)) == sorted(trained)


def test_a_data_set_knows_its_words_and_what_each_row_s_corpus_offers(many):
    assert "corpus" in many.column_names
    names = many.features["label"].names
    rows = [many["id"][:].index(id) for id in ("emodb/03a01Wa", "acted/1-anger-0", "calls/03-annoyed-0")]
    learned = ["anger", "boredom", "calm", "unheard"]
    speech = SpeechDataset(many, rows, sampling_rate=RATE, max_duration_s=0.2, words=learned)
    assert speech.corpora == ["emodb", "acted", "calls"] and speech.label_names == learned
    expected = [[True, True, False, False], [True, False, True, False], [True, False, False, False]]
    assert speech.label_masks.dtype == torch.bool and speech.label_masks.tolist() == expected
    words_of_rows = [names[many["label"][row]] for row in rows]
    assert words_of_rows == ["anger", "anger", "annoyed"] and speech.labels == [0, 0, -1]
    assert speech[1]["label_mask"].tolist() == expected[1] and speech[1]["label"] == 0
    everything = SpeechDataset(many, rows, sampling_rate=RATE, max_duration_s=0.2)
    assert everything.label_names == names and everything.labels == [many["label"][row] for row in rows]
    assert [[names[k] for k in np.flatnonzero(mask)] for mask in everything.label_masks] == [
        *(EMODB_WORDS, ["anger", "calm", "neutral"], ["anger", "annoyed", "neutral"])
    ]


def test_of_one_corpus_nothing_is_masked(emodb_like):
    table = load_corpus("emodb", emodb_like, allow_partial=True)
    speech = SpeechDataset(table, range(3), sampling_rate=RATE, max_duration_s=0.2)
    assert speech.corpora is None and speech.label_masks is None
    assert sorted(speech[0]) == ["id", "label", "views"]


# -------------------------------------------------------------------------------------------------------------- recipes


def recipe_of(*argv):
    """The parsed recipe; what is refused fails the test by its sentence."""
    try:
        return parse_recipe(list(argv))[0]
    except ValueError as error:
        raise AssertionError(f"refused: {error}") from None


def refusal(call, *arguments):
    """The sentence by which something is refused; empty if it is not."""
    try:
        call(*arguments)
    except (ValueError, FileNotFoundError, TypeError) as error:
        return str(error)
    return ""


def entry(name, corpus=None, data_dir=None, labels=None, corpus_options=None):
    told = {"corpus": corpus or name, "data_dir": data_dir, "labels": labels, "corpus_options": corpus_options}
    return {"name": name, **told}


def test_corpora_on_the_command_line_are_found_below_the_folder():
    recipe = recipe_of("--corpora", "ravdess, emodb,nemo=csv", "--data_dir", "root")
    expected = [
        entry("emodb", None, "root/emodb"),
        entry("nemo", "csv", "root/nemo"),
        entry("ravdess", None, "root/ravdess"),
    ]
    assert recipe.corpora == recipe.entries == expected and recipe.corpus is None
    assert recipe.corpus_title == "emodb, nemo, ravdess"


def test_corpora_in_a_file_have_what_one_corpus_has(tmp_path):
    told = [
        {"corpus": "emodb", "data_dir": "a/b", "labels": ["anger", "fear"]},
        {"name": "mine", "corpus": "csv", "labels": {"mad": "anger"}},
        {"corpus": "hf", "corpus_options": {"dataset_name": "org/name"}},
    ]
    (tmp_path / "r.yaml").write_text(yaml.safe_dump({"corpora": told, "data_dir": "root"}))
    recipe = recipe_of(str(tmp_path / "r.yaml"))
    assert recipe.entries == [
        entry("emodb", None, "a/b", ["anger", "fear"]),
        entry("hf", None, None, None, {"dataset_name": "org/name"}),  # on the Hub: no folder is made up for it
        entry("mine", "csv", "root/mine", {"mad": "anger"}),
    ]
    typed = recipe_of("--corpora", json.dumps(told), "--data_dir", "root")
    assert typed.to_dict()["corpora"] == recipe.to_dict()["corpora"]
    # And what a run writes down is read again.
    (tmp_path / "again.yaml").write_text(yaml.safe_dump(recipe.to_dict()))
    assert recipe_of(str(tmp_path / "again.yaml")).to_dict() == recipe.to_dict()


def test_one_corpus_by_corpora_is_that_corpus(tmp_path):
    one = recipe_of("emodb", "--corpora", "mine=emodb", "--data_dir", "root")
    assert one.to_dict() == recipe_of("emodb", "--data_dir", "root/mine").to_dict()


def test_what_is_typed_of_corpora_displaces_what_a_recipe_says(tmp_path):
    assert recipe_of("emodb", "--corpora", "ravdess,emovo").corpus_title == "emovo, ravdess"
    (tmp_path / "many.yaml").write_text("corpora: ravdess,emovo\n")
    assert recipe_of(str(tmp_path / "many.yaml")).corpus_title == "emovo, ravdess"
    back = recipe_of(str(tmp_path / "many.yaml"), "--corpus", "emodb")
    assert (back.corpus, back.corpora) == ("emodb", None)


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--corpora", "emodb,ravdess", "--corpus", "emodb"], "corpus 'emodb' stands beside corpora"),
        (["--corpora", "emodb,ravdess", "--labels", "anger"], "labels ['anger'] stands beside corpora"),
        (["--corpora", "emodb,emodb"], "Two of the corpora are called 'emodb'"),
        (["--corpora", "emodb,nemo"], "Unknown corpus 'nemo'"),
        (["--corpora", "emodb,ravdess", "--corpus_exponent", "2"], "between 0 and 1; found 2.0"),
        (["--folds", "none"], "folds none trains nothing"),
    ],
)
def test_what_a_recipe_cannot_say_of_corpora_is_refused(argv, message, tmp_path):
    found = refusal(lambda: parse_recipe(argv)[0].training_arguments(tmp_path))
    assert message in found


def test_several_names_given_for_one_corpus_lead_to_corpora(tmp_path, capsys):
    with pytest.raises(SystemExit) as exit:
        main(["--corpus", "emodb,ravdess", "--output_dir", str(tmp_path / "run")])
    error = capsys.readouterr().err
    assert exit.value.code == 2 and "--corpora emodb,ravdess" in error and error.count("\n") == 1


def test_where_corpora_lie_is_no_part_of_a_run_and_what_they_are_is(tmp_path, many):
    def opened(*argv):
        return refusal(open_run, tmp_path / "run", recipe_of(*argv), many)

    corpora = ("--corpora", "emodb,acted=csv,calls=csv")
    assert opened(*corpora, "--data_dir", "here") == ""
    (tmp_path / "run" / "fold-1").mkdir()
    assert opened("--corpora", "calls=csv,acted=csv,emodb", "--data_dir", "there") == ""
    assert "different are: corpora" in opened("--corpora", "emodb,acted=csv,other=csv", "--data_dir", "here")
    assert "corpus (None there, 'emodb' here)" in opened("--corpus", "emodb")
    assert "corpus_exponent (0.5 there, 1.0 here)" in opened(*corpora, "--data_dir", "here", "--corpus_exponent", "1")
    assert opened(*corpora, "--data_dir", "here", "--final_model", "true") == ""


# -------------------------------------------------------------------------------------------------------------- batches


def batches_of(sizes, epoch=0, order=None, **options):
    """All batches of an epoch as lists of (corpus, number) of corpora of so many utterances."""
    rows = [(name, number) for name, size in sizes.items() for number in range(size)]
    rows = [rows[place] for place in order] if order else rows
    try:
        sampler = UtteranceBatchSampler(
            [f"{name}/{number:04d}" for name, number in rows], corpora=[name for name, _ in rows], seed=3, **options
        )
    except TypeError as error:
        raise AssertionError(f"batches know of no corpora: {error}") from None
    sampler.set_epoch(epoch)
    return [[rows[index] for index in batch] for batch in sampler.global_batches()]


def test_each_corpus_has_the_places_of_its_weight():
    """535, 1440, 588 and 583 utterances: their roots are 23.13, 37.95, 24.25 and 24.15 of 109.47, times 3146."""
    sizes = {"emodb": 535, "ravdess": 1440, "emovo": 588, "nemo": 583}
    for exponent, expected in ((0.5, (665, 1091, 697, 694)), (1, tuple(sizes.values())), (0, (787, 787, 786, 786))):
        batches = batches_of(sizes, global_batch_size=32, corpus_exponent=exponent)
        assert len(batches) == 99 and {len(batch) for batch in batches} == {31, 32}
        places = Counter(name for batch in batches for name, _ in batch)
        if exponent == 0:  # alike: who has the two that are left over is of no matter
            assert sorted(places.values()) == sorted(expected)
        else:
            assert [abs(places[name] - count) <= 1 for name, count in zip(sizes, expected)] == [True] * 4
            assert exponent == 0.5 or tuple(places[name] for name in sizes) == expected
        shares = [Counter(name for name, _ in batch) for batch in batches]
        for name in sizes:  # evenly over the batches
            assert max(share[name] for share in shares) - min(share[name] for share in shares) <= 1


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(2, 40), min_size=2, max_size=4),
    size=st.integers(2, 16),
    exponent=st.sampled_from([0.0, 0.3, 0.5, 1.0]),
    epoch=st.integers(0, 7),
)
def test_every_batch_holds_two_corpora_or_is_refused(sizes, size, exponent, epoch):
    sizes = dict(zip("abcd", sizes))
    try:
        batches = batches_of(sizes, epoch, global_batch_size=size, corpus_exponent=exponent)
    except ValueError as error:
        assert "must hold utterances of two corpora" in str(error)
        weights = [count**exponent for count in sizes.values()]
        others = (1 - max(weights) / sum(weights)) * sum(sizes.values())
        number = -(-sum(sizes.values()) // size)
        assert others < number + 1 or sum(sizes.values()) < 2 * number
        return
    assert len(batches) == -(-sum(sizes.values()) // size) and sum(map(len, batches)) == sum(sizes.values())
    places = Counter(name for batch in batches for name, _ in batch)
    for batch in batches:
        assert len({name for name, _ in batch}) >= 2 and len(batch) <= size
        for name, count in sizes.items():  # the same twice only where an epoch needs it more often than it has batches
            most = max(Counter(row for row in batch if row[0] == name).values(), default=1)
            assert most == 1 or -(-places[name] // count) > len(batches)


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0])
def test_the_utterances_of_a_corpus_take_turns_over_epochs(exponent):
    sizes, read = {"a": 30, "b": 7, "c": 12}, Counter()
    for epoch in range(9):
        for batch in batches_of(sizes, epoch, global_batch_size=8, corpus_exponent=exponent):
            read.update(batch)
        for name, size in sizes.items():
            times = [read[name, number] for number in range(size)]
            assert max(times) - min(times) <= 1
            assert exponent < 1 or times == [epoch + 1] * size
    assert batches_of(sizes, 1, global_batch_size=8) != batches_of(sizes, 2, global_batch_size=8)


@settings(max_examples=30, deadline=None)
@given(order=st.permutations(range(25)), epoch=st.integers(0, 3))
def test_the_order_of_rows_and_of_corpora_changes_no_batch(order, epoch):
    sizes = {"a": 5, "b": 8, "c": 12}
    expected = batches_of(sizes, epoch, global_batch_size=6)
    assert batches_of(sizes, epoch, order, global_batch_size=6) == expected


def test_any_number_of_processes_reads_the_same_batches():
    ids = [f"{name}/{number:02d}" for name, size in (("a", 30), ("b", 11), ("c", 19)) for number in range(size)]
    options = {"corpora": [id[0] for id in ids], "global_batch_size": 12, "seed": 1}
    found = {}
    for processes, steps in ((1, 1), (2, 1), (3, 1), (2, 2), (4, 1)):
        read = []
        for index in range(processes):
            try:
                sampler = UtteranceBatchSampler(
                    ids, num_processes=processes, process_index=index, accumulation_steps=steps, **options
                )
            except TypeError as error:
                raise AssertionError(f"batches know of no corpora: {error}") from None
            sampler.set_epoch(2)
            parts = list(sampler)
            read.append([[*chain(*parts[place : place + steps])] for place in range(0, len(parts), steps)])
        found[processes, steps] = [sorted(chain(*parts)) for parts in zip(*read)]
        for parts in zip(*read):  # each process has of each corpus what another has, but for one
            for name in "abc":
                counts = [sum(ids[row][0] == name for row in part) for part in parts]
                assert max(counts) - min(counts) <= 1
    assert all(batches == found[1, 1] for batches in found.values())


def test_one_corpus_s_batches_are_yesterday_s():
    ids = [f"u{number:02d}" for number in range(40)]
    plain = UtteranceBatchSampler(ids, global_batch_size=8, seed=5).global_batches()
    try:
        named = UtteranceBatchSampler(ids, global_batch_size=8, seed=5, corpora=["a"] * 40, corpus_exponent=0.0)
    except TypeError as error:
        raise AssertionError(f"batches know of no corpora: {error}") from None
    assert named.global_batches() == plain


@pytest.mark.parametrize(
    "options, message",
    [
        (
            {"sizes": {"a": 300, "b": 5}, "corpus_exponent": 1},
            "Each of 39 batches .* 5 places of an epoch's 305",
        ),
        ({"sizes": {"a": 2, "b": 2}, "global_batch_size": 1}, "Each of 4 batches must hold utterances of two corpora"),
        ({"sizes": {"a": 9, "b": 9}, "corpus_exponent": -0.1}, "between 0 and 1; found -0.1"),
        ({"sizes": {"a": 9, "b": 9}, "durations_s": [1.0] * 18}, "and not by bucket_by_length too: unset it"),
        (
            {"sizes": {"a": 9, "b": 9}, "labels": [0, 1] * 9, "utterances_per_class": 4},
            "and not by utterances_per_class too: unset it",
        ),
    ],
)
def test_batches_of_corpora_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        batches_of(**{"global_batch_size": 8, **options})


# ------------------------------------------------------------------------------------------------------------ protocols


def folds_of(table, *arguments, **options):
    """The folds; what is refused fails the test by its sentence."""
    try:
        return make_folds(table, *arguments, **options)
    except ValueError as error:
        raise AssertionError(f"refused: {error}") from None


def names_of(table, rows):
    return {table["corpus"][row] for row in rows}


def test_each_corpus_is_left_out_in_turn_and_this_is_the_default(many):
    assert "corpus" in many.column_names
    folds = folds_of(many, protocol="leave_one_corpus_out")
    assert folds_of(many) == folds
    assert [(fold.number, fold.name) for fold in folds] == [(1, "acted"), (2, "calls"), (3, "emodb")]
    for fold in folds:
        assert names_of(many, fold.test) == {fold.name}
        assert names_of(many, fold.train) == {"acted", "calls", "emodb"} - {fold.name}
        assert sorted([*fold.train, *fold.test]) == list(range(len(many))) and list(fold.validation) == []


def test_a_training_corpus_may_validate_in_turn(many):
    sides = {
        fold.name: (names_of(many, fold.train), names_of(many, fold.validation))
        for fold in folds_of(many, validation="corpus")
    }
    assert sides == {
        "acted": ({"emodb"}, {"calls"}),
        "calls": ({"acted"}, {"emodb"}),
        "emodb": ({"calls"}, {"acted"}),
    }
    by_speaker = folds_of(many, validation="speaker", seed=1)
    assert all(len({many["speaker"][row] for row in fold.validation}) == 1 for fold in by_speaker)


def test_within_each_tests_what_each_corpus_alone_would(many, three_corpora):
    """`calls` has two sessions, so two folds, `acted` three of a speaker each, and EmoDB its five usual pairs."""
    folds = folds_of(many, protocol="within_each")
    assert [fold.number for fold in folds] == [1, 2, 3, 4, 5] and {fold.name for fold in folds} == {None}
    alone = {}
    for told in three_corpora:
        name = told.get("name", told["corpus"])
        own = load_corpus(told["corpus"], told["data_dir"], allow_partial=True)
        alone[name] = [{f"{name}/{own['id'][row]}" for row in fold.test} for fold in make_folds(own)]
    assert {name: len(tests) for name, tests in alone.items()} == {"emodb": 5, "acted": 3, "calls": 2}
    for number, fold in enumerate(folds):
        tested = {many["id"][row] for row in fold.test}
        assert tested == set().union(*(tests[number] for tests in alone.values() if number < len(tests)))
        assert sorted([*fold.train, *fold.test]) == list(range(len(many)))
    speakers = [{many["speaker"][row] for row in fold.test if many["corpus"][row] == "emodb"} for fold in folds]
    assert speakers[0] == {"emodb/03", "emodb/08"} and speakers[4] == {"emodb/15", "emodb/16"}
    few = many.filter(lambda row: row["corpus"] != "calls")  # whose two speakers are all there are
    three = folds_of(few, 3, protocol="within_each", validation="speaker")
    assert len(three) == 3 and all(names_of(few, fold.test) == {"acted", "emodb"} for fold in three)
    held_back = [{few["speaker"][row] for row in fold.validation} for fold in three]
    for fold, speakers in zip(three, held_back):
        assert not speakers & {few["speaker"][row] for row in (*fold.train, *fold.test)}
    assert all(held_back)


def test_an_official_split_is_one_fold_of_many(tmp_path, three_corpora):
    lines = ["path,label,speaker,fold"]
    for number, side in enumerate(("train", "train", "dev", "test")):
        soundfile.write(tmp_path / f"{number}.wav", recording(seed=number), RATE)
        lines.append(f"{number}.wav,anger,{number},{side}")
    (tmp_path / "manifest.csv").write_text("\n".join(lines))
    table = loaded([{"name": "split", "corpus": "csv", "data_dir": tmp_path}, three_corpora[2]])
    first, second = folds_of(table, protocol="within_each")
    of_split = [
        [[table["id"][row] for row in rows if table["corpus"][row] == "split"] for rows in (fold.train, fold.test)]
        for fold in (first, second)
    ]
    assert of_split == [[["split/0", "split/1", "split/2"], ["split/3"]], [[f"split/{n}" for n in range(4)], []]]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"num_folds": 3}, "speaker_folds and within_each; found 3 with leave_one_corpus_out"),
        ({"protocol": "within_each", "validation": "corpus"}, "belongs to the protocol leave_one_corpus_out"),
        ({"protocol": "within_each", "num_folds": 3}, "^calls: num_folds must lie between 2 and .*, 2; found 3"),
        ({"protocol": "leave_one_corpora_out"}, "leave_one_corpus_out, within_each; found 'leave_one_corpora_out'"),
    ],
)
def test_what_folds_of_corpora_cannot_be(many, options, message):
    with pytest.raises(ValueError, match=message):
        make_folds(many, **options)


def test_one_corpus_cannot_be_left_out(emodb_like, three_corpora):
    alone = load_corpus("emodb", emodb_like, allow_partial=True)
    for protocol in ("leave_one_corpus_out", "within_each"):
        with pytest.raises(ValueError, match=f"The protocol {protocol} needs several corpora"):
            make_folds(alone, protocol=protocol)
    with pytest.raises(ValueError, match="needs three corpora"):
        make_folds(loaded(three_corpora[1:]), validation="corpus")


def test_folds_go_by_the_names_of_their_corpora(many):
    folds = folds_of(many)
    assert recipe_of("--folds", "emodb,1").fold_numbers(folds) == [1, 3]
    assert recipe_of("--folds", "calls").fold_numbers(folds) == [2]
    assert recipe_of("--folds", "none", "--final_model", "true").fold_numbers(folds) == []
    found = refusal(recipe_of("--folds", "emo").fold_numbers, folds)
    assert found == "folds must be 'all' or numbers such as 1,3, or names of acted, calls, emodb; found 'emo'."


@pytest.mark.slow
def test_the_real_corpora_have_their_folds(shared):
    """Names and sizes of the four, with the same folds as each has alone."""
    root = shared / "corpora"
    told = [{"corpus": name, "data_dir": root / name} for name in ("emodb", "ravdess", "emovo")]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # RAVDESS has a recording twice, which is its own matter
        table = loaded([*told, {"name": "nemo", "corpus": "csv", "data_dir": root / "nemo"}])
    assert Counter(table["corpus"][:]) == {"emodb": 535, "ravdess": 1440, "emovo": 588, "nemo": 583}
    assert len(table.features["label"].names) == 9 and len(set(table["speaker"][:])) == 10 + 24 + 6 + 9
    unseen = {}
    for fold in folds_of(table):
        learned = set(words().words_of_fold(table, fold))
        own = {table.features["label"].names[table["label"][row]] for row in fold.test}
        unseen[fold.name] = own - learned
    assert unseen == {"emodb": {"boredom"}, "ravdess": {"calm"}, "emovo": set(), "nemo": set()}
    within = folds_of(table, protocol="within_each")
    assert len(within) == 5 and sum(len(fold.test) for fold in within) == len(table)

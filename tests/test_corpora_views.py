"""Of several corpora each has views of its own on disk: another choice of corpora encodes nothing anew."""

import numpy as np
import pytest
import torch
from datasets import concatenate_datasets
from transformers import AutoFeatureExtractor

from lascl import LaSCLForAudioClassification, LaSCLTrainingArguments
from lascl.data import SpeechCollator, SpeechDataset
from lascl.modeling_lascl import LaSCLModel
from lascl.training import pooled


@pytest.fixture(scope="module")
def model(audio_encoders, text_encoder):
    torch.manual_seed(0)
    return LaSCLForAudioClassification.from_encoders(audio_encoders["wav2vec2-layer"], text_encoder, ["a", "b"])


@pytest.fixture(scope="module")
def collator(audio_encoders):
    return SpeechCollator(AutoFeatureExtractor.from_pretrained(audio_encoders["wav2vec2-layer"]))


@pytest.fixture(scope="module")
def args(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("args"))
    return LaSCLTrainingArguments(folder, use_cpu=True, disable_tqdm=True, per_device_eval_batch_size=4)


@pytest.fixture
def heard(monkeypatch) -> list[int]:
    """How many utterances encoders have heard, call by call."""
    counts, encode = [], LaSCLModel.forward

    def counted(self, *arguments, **named):
        output = encode(self, *arguments, **named)
        counts.append(len(output.pooled_audio))
        return output

    monkeypatch.setattr(LaSCLModel, "forward", counted)
    return counts


def speech_of(table, rows=None):
    views = {"augmentation": "noise", "num_views": 2, "augmentation_period": 2}
    return SpeechDataset(
        table, range(len(table)) if rows is None else rows, sampling_rate=16_000, max_duration_s=1.0, **views
    )


def part_of(table, corpus):
    return table.select([row for row, name in enumerate(table["corpus"][:]) if name == corpus])


def mixed(table):
    """In an order in which corpora take turns."""
    order = np.random.default_rng(0).permutation(len(table)).tolist()
    return table.select(order)


def test_another_choice_of_corpora_encodes_only_what_is_new(model, collator, args, two_corpora, tmp_path, heard):
    from lascl.training.views import ViewStore

    table = mixed(two_corpora)
    renamed = [f"third/{id}" for id in two_corpora["id"][:9]]
    third = two_corpora.select(range(9)).remove_columns(["id", "corpus"])
    third = third.add_column("id", renamed).add_column("corpus", ["third"] * 9).cast(two_corpora.features)

    def encode(choice):
        heard.clear()
        store = ViewStore(tmp_path / "views", 1e9)  # what a new process finds
        blocks = pooled.embed_views(model, speech_of(choice), collator, {}, args, store)
        return blocks, sum(heard)

    _, first = encode(part_of(table, "left"))
    both, second = encode(table)
    again, none = encode(table)
    alone, right = encode(part_of(table, "right"))
    _, more = encode(concatenate_datasets([third, table]))
    assert [first, second, none, right, more] == [3 * 15, 3 * 9, 0, 0, 3 * 9]
    rows = [row for row, name in enumerate(table["corpus"][:]) if name == "right"]
    for place, block in both.items():
        assert len(block) == len(table)
        assert torch.equal(block[rows], alone[place][list(range(9))]) and torch.equal(block[rows], again[place][rows])


def test_joined_views_are_each_utterance_s_own(model, collator, args, two_corpora):
    table = mixed(two_corpora)
    speech, cache = speech_of(table), {}
    blocks = pooled.embed_views(model, speech, collator, cache, args)
    assert len(cache) == 2 * 3, "a block for each corpus, view and epoch"
    data = pooled.PooledDataset(speech, range(len(table)), blocks, num_views=2)
    for epoch in (0, 1):
        data.set_epoch(epoch)
        for row in range(len(table)):
            views = [speech.view(row, view, epoch) for view in (0, 1)]
            batch = collator([{"label": 0, "views": views}])
            del batch["labels"]
            with torch.no_grad():
                alone = model.eval().lascl(**batch).pooled_audio
            torch.testing.assert_close(data[row]["pooled_audio"], alone, rtol=1e-4, atol=1e-5)


def test_rows_of_joined_blocks_are_read_when_asked_for():
    from lascl.training import views

    assert hasattr(views, "JoinedBlock")
    whole, read = torch.arange(24.0).reshape(8, 3), []

    class Noted:
        def __init__(self, rows):
            self.rows = whole[rows]

        def __getitem__(self, rows):
            read.append(rows)
            return self.rows[rows]

    parts = [[6, 0, 3], [1, 7, 2, 5, 4]]
    block = views.JoinedBlock([Noted(rows) for rows in parts], parts)
    assert read == [] and len(block) == 8
    for row in range(8):
        assert torch.equal(block[row], whole[row])
    assert read == [1, 0, 2, 2, 4, 3, 0, 1]
    for rows in ([5, 0, 0, 7], [3], [6, 3]):
        assert torch.equal(block[rows], whole[rows])


def test_a_corpus_has_the_same_names_whatever_lies_beside_it_and_those_it_has_alone(model, collator, two_corpora):
    assert hasattr(pooled, "by_corpus")
    names = {}
    for told, table in {
        "both": mixed(two_corpora),
        "left alone": part_of(two_corpora, "left"),
        "without a column": part_of(two_corpora, "left").remove_columns("corpus"),
    }.items():
        for rows, part in pooled.by_corpus(speech_of(table.sort("id"))):
            assert part.ids == [table.sort("id")["id"][row] for row in rows]
            keys = pooled.view_keys(model.lascl, part, collator.feature_extractor)
            names[told, part.ids[0].split("/")[0]] = list(keys.values())
    assert names["both", "left"] == names["left alone", "left"] == names["without a column", "left"]
    assert not set(names["both", "left"]) & set(names["both", "right"])


def test_a_clean_view_has_one_name_whatever_its_utterance_is_called(model, collator, two_corpora):
    """Alone a corpus's ids have no prefix. What is drawn for an augmented view follows from the id."""
    left = part_of(two_corpora, "left").remove_columns("corpus")
    renamed = left.map(lambda row: {"id": row["id"].removeprefix("left/")})
    assert renamed["id"][:] != left["id"][:]
    names = [pooled.view_keys(model.lascl, speech_of(table), collator.feature_extractor) for table in (left, renamed)]
    assert names[0].keys() == names[1].keys() and len(names[0]) == 3
    assert [place for place in names[0] if names[0][place] == names[1][place]] == [(0, 0)]


def embed_a_share(table, audio_encoder, text_encoder, folder):
    """What each process comes to know of all views, saved by its number."""
    torch.manual_seed(0)
    model = LaSCLForAudioClassification.from_encoders(audio_encoder, text_encoder, ["a", "b"])
    collator = SpeechCollator(AutoFeatureExtractor.from_pretrained(audio_encoder))
    args = LaSCLTrainingArguments(str(folder), use_cpu=True, disable_tqdm=True, global_batch_size=4)
    blocks = pooled.embed_views(model, speech_of(table), collator, {}, args)
    whole = {place: block[list(range(len(table)))] for place, block in blocks.items()}
    torch.save(whole, folder / f"{args.process_index}.pt")


def test_two_processes_embed_each_corpus_as_one_does(
    audio_encoders, text_encoder, model, collator, args, two_corpora, tmp_path
):
    from tiny import in_two_processes

    table = mixed(two_corpora)
    in_two_processes(embed_a_share, table, audio_encoders["wav2vec2-layer"], text_encoder, tmp_path)
    alone = pooled.embed_views(model, speech_of(table), collator, {}, args)
    for number in (0, 1):
        found = torch.load(tmp_path / f"{number}.pt")
        assert found.keys() == alone.keys()
        for place, block in found.items():
            torch.testing.assert_close(block, alone[place][list(range(len(table)))], rtol=1e-4, atol=1e-5)

"""A checkpoint as public boards ask it. What the boards' own packages do with it is tried where they are installed
(`pip install "lascl[boards]"`); what the adapters promise is held without them."""

import importlib
import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
import torch
from tiny import LABELS
from transformers import AutoFeatureExtractor

from lascl import LaSCLForAudioClassification
from lascl.inference import Recogniser


ROOT = Path(__file__).resolve().parents[1]
RATE = 16_000


@pytest.fixture(scope="module")
def boards():
    assert (ROOT / "inference" / "boards.py").is_file(), "there are no adapters for boards"
    return importlib.import_module("lascl.inference.boards")


@pytest.fixture(scope="module")
def checkpoints(audio_encoders, text_encoder, tmp_path_factory) -> dict[str, Path]:
    folders = {}
    for name, encoder in (("wav2vec2", "wav2vec2-layer"), ("whisper", "whisper")):
        folders[name] = tmp_path_factory.mktemp("boards") / "fold-1" / name
        torch.manual_seed(0)
        model = LaSCLForAudioClassification.from_encoders(audio_encoders[encoder], text_encoder, LABELS)
        model.save_pretrained(folders[name])
        window = {"chunk_length": 2} if name == "whisper" else {}
        AutoFeatureExtractor.from_pretrained(audio_encoders[encoder], **window).save_pretrained(folders[name])
    return folders


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(round(seconds * RATE))).astype(np.float32)


def item(samples: np.ndarray | list, rate: int = RATE) -> dict:
    return {"array": samples, "sampling_rate": rate}


def test_clips_of_any_length_are_answered_as_they_would_be_alone(boards, checkpoints):
    """A long one as the mean over windows side by side, the last of which ends with it; a short one before silence."""
    model = Recogniser.load(checkpoints["whisper"])
    window = round(model.window_s * RATE)
    clips = [noise(0.3, 1), noise(2.4 * model.window_s, 2), noise(0.0005, 3), np.zeros(0, np.float32)]
    probabilities, embeds = boards.hear_clips(model, clips)
    assert probabilities.shape == (4, len(LABELS)) and embeds.shape == (4, model.model.config.projection_dim)
    np.testing.assert_allclose(embeds[0], model([clips[0]])[1][0], atol=1e-5)
    starts = (0, window, len(clips[1]) - window)
    parts = model([clips[1][start : start + window] for start in starts])
    np.testing.assert_allclose(probabilities[1], parts[0].mean(axis=0), atol=1e-5)
    mean = parts[1].mean(axis=0)
    np.testing.assert_allclose(embeds[1], mean / np.linalg.norm(mean), atol=1e-5)
    padded = np.zeros(math.ceil(model.min_duration_s * RATE), np.float32)
    padded[: len(clips[2])] = clips[2]
    np.testing.assert_allclose(embeds[2], model([padded])[1][0], atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(embeds, axis=1), 1, atol=1e-5)
    with pytest.raises(ValueError, match="Clip 1: gives no finite probabilities"):
        boards.hear_clips(model, [clips[0], np.full(4000, np.nan, np.float32)])


def test_audio_for_maeb_is_its_embedding_whatever_its_rate_and_channels(boards, checkpoints):
    model = boards.MAEBModel(checkpoints["wav2vec2"], device="cpu")
    clips = [noise(0.2, seed) for seed in range(3)]
    stereo = np.stack([clips[2] + 0.05, clips[2] - 0.05])
    slow = soxr.resample(clips[1], RATE, 8000)
    batches = [{"audio": [item(clips[0]), item(slow, 8000)]}, {"audio": [item(stereo)]}]
    embeds = model.encode(batches, task_metadata=None, hf_split="test", hf_subset="default", batch_size=2)
    assert embeds.dtype == np.float32 and embeds.shape == (3, model.recogniser.model.config.projection_dim)
    alone = Recogniser.load(checkpoints["wav2vec2"])
    for row, samples in zip(embeds, (clips[0], soxr.resample(slow, 8000, RATE), clips[2])):
        np.testing.assert_allclose(row, alone([samples])[1][0], atol=1e-4)


def test_text_for_maeb_is_embedded_as_a_label(boards, checkpoints):
    model = boards.MAEBModel(checkpoints["wav2vec2"])
    texts = ["this person is feeling calm", "angry", "this person is feeling calm"]
    embeds = model.encode([{"text": texts[:2]}, {"text": texts[2:]}])
    labelled = LaSCLForAudioClassification.from_pretrained(checkpoints["wav2vec2"]).eval()
    labelled.set_labels(texts[:2], "{label}")
    expected = labelled.get_label_embeddings().detach().numpy()[[0, 1, 0]]
    np.testing.assert_allclose(embeds, expected, atol=1e-6)
    cosines = model.similarity(embeds, expected)
    assert cosines.shape == (3, 3)
    np.testing.assert_allclose(cosines.diagonal(), 1, atol=1e-6)
    np.testing.assert_allclose(model.similarity_pairwise(embeds, expected), 1, atol=1e-6)
    # Other words change nothing of what is heard.
    heard = [boards.MAEBModel(checkpoints["wav2vec2"]).encode([{"audio": [item(noise(0.2))]}])]
    heard.append(model.encode([{"audio": [item(noise(0.2))]}]))
    assert np.array_equal(*heard)


@pytest.mark.parametrize(
    "batches, found",
    [
        ([{"audio": [], "text": []}], "found audio, text"),
        ([{"image": []}], "found image"),
        ([{"text": ["angry"]}, {"audio": [item(noise(0.1))]}], "found both"),
    ],
)
def test_what_is_neither_audio_nor_text_is_refused(boards, checkpoints, batches, found):
    with pytest.raises(ValueError, match=found):
        boards.MAEBModel(checkpoints["wav2vec2"]).encode(batches)


def test_another_training_is_another_model_to_maeb(boards, checkpoints, tmp_path):
    """mteb gives results that it has for the name and revision instead of computing them."""
    first = boards.MAEBModel(checkpoints["wav2vec2"])
    assert first.name == f"local/{'-'.join(checkpoints['wav2vec2'].parts[-3:])}" and len(first.revision) == 40
    assert boards.MAEBModel(checkpoints["wav2vec2"], name="me/mine").name == "me/mine"
    changed = LaSCLForAudioClassification.from_pretrained(checkpoints["wav2vec2"])
    with torch.no_grad():
        changed.classifier.bias += 1
    changed.save_pretrained(tmp_path)
    AutoFeatureExtractor.from_pretrained(checkpoints["wav2vec2"]).save_pretrained(tmp_path)
    assert boards.MAEBModel(tmp_path).revision != first.revision
    assert boards.MAEBModel(checkpoints["wav2vec2"]).revision == first.revision


def test_oruk_gets_its_seven_words_whatever_was_trained(boards, checkpoints):
    adapter = boards.OrukAdapter({"model_id": str(checkpoints["wav2vec2"])}, "cpu")
    clips = [noise(0.2, seed) for seed in range(4)]
    answers = adapter.predict(clips)
    asked = Recogniser.load(checkpoints["wav2vec2"], labels=list(boards.ORUK_LABELS))
    assert answers == asked(clips)[0].argmax(axis=1).tolist() and all(type(answer) is int for answer in answers)
    words = {"happiness": "joy", "anger": "fury"}
    other = boards.OrukAdapter({"model_id": str(checkpoints["wav2vec2"]), "words": words}, "cpu")
    assert other.recogniser.labels == ["fury", "joy", *boards.ORUK_LABELS[2:]]
    with pytest.raises(ValueError, match="words must be for labels of the board .*; found boredom"):
        boards.OrukAdapter({"model_id": str(checkpoints["wav2vec2"]), "words": {"boredom": "boredom"}})


def test_oruk_scores_a_checkpoint(boards, checkpoints, tmp_path):
    """The board's own run over shards as it hands them out."""
    pytest.importorskip("oruk_bench", reason='needs the extra: pip install "lascl[boards]"')
    import pyarrow as pa
    import pyarrow.parquet as pq
    from oruk_bench.adapters import open_models
    from oruk_bench.core import LABELS as THEIRS

    assert tuple(THEIRS) == boards.ORUK_LABELS
    clips, labels = [noise(0.2 + seed / 100, seed) for seed in range(14)], list(range(7)) * 2
    flacs = []
    for samples in clips:
        soundfile.write(file := io.BytesIO(), samples, RATE, format="FLAC")
        flacs.append(file.getvalue())
    columns = {"audio_flac": flacs, "label": labels, "language": ["de"] * 14, "source_id": ["noise"] * 14}
    pq.write_table(pa.table(columns), tmp_path / "shard.parquet")
    open_models.ADAPTERS["lascl"] = boards.OrukAdapter
    cfg = {"name": "mine", "adapter": "lascl", "model_id": str(checkpoints["wav2vec2"]), "batch_size": 5}
    found = open_models.run_eval(cfg, tmp_path, device="cpu", out_dir=tmp_path / "out")
    heard = [soundfile.read(io.BytesIO(flac), dtype="float32")[0] for flac in flacs]
    answers = boards.OrukAdapter(cfg, "cpu").predict(heard)
    assert np.load(tmp_path / "out" / "mine.npz")["preds"].tolist() == answers
    assert found["accuracy"] == pytest.approx(np.mean(np.equal(answers, labels))) and found["n"] == 14
    assert json.loads((tmp_path / "out" / "mine.json").read_text())["macro_f1"] == found["macro_f1"]


def test_maeb_scores_a_checkpoint(boards, checkpoints, tmp_path, monkeypatch):
    """Its linear probe and its zero-shot classification, on tasks whose data is made here."""
    mteb = pytest.importorskip("mteb", reason='needs the extra: pip install "lascl[boards]"')
    monkeypatch.setenv("MTEB_CACHE", str(tmp_path))
    model = boards.MAEBModel(checkpoints["wav2vec2"], device="cpu")
    assert isinstance(model, mteb.EncoderProtocol)
    for task in maeb_tasks():
        results = mteb.evaluate(model, task, cache=None, num_proc=1, encode_kwargs={"batch_size": 4})
        (scores,) = results.task_results[0].scores["test"]
        assert 0 <= scores["accuracy"] <= 1
        assert (results.model_name, results.model_revision) == (model.name, model.revision)


def maeb_tasks() -> list:
    """A task of classification and a zero-shot one, of two kinds of noise."""
    from datasets import Dataset, DatasetDict
    from mteb.abstasks import AbsTaskClassification, AbsTaskZeroShotClassification
    from mteb.abstasks.task_metadata import TaskMetadata
    from mteb.tasks.classification.eng.cremad import CREMAD
    from mteb.tasks.zeroshot_classification.eng.ravdess import RavdessZeroshotClassification

    # Decoded already, as `datasets.Audio` hands it over: that wants torchcodec, which does not load everywhere.
    clips = [item((noise(0.2, seed) * (1 + seed % 2)).tolist()) for seed in range(24)]
    made = Dataset.from_dict({"audio": clips, "label": [0, 1] * 12})

    def filled(base, kind, name, **told):
        fields = {**base.metadata.model_dump(), "name": name, "eval_splits": ["test"]}
        fields["dataset"] = {"path": "made/here", "revision": "1"}

        def load_data(self, *args, **kwargs):
            self.dataset = DatasetDict({"train": made, "test": made})
            self.data_loaded = True

        attributes = {"metadata": TaskMetadata(**fields), "load_data": load_data, "input_column_name": "audio", **told}
        return type(name, (kind,), {**attributes, "label_column_name": "label"})()

    asked = {"get_candidate_labels": lambda self: ["this person is calm", "this person is angry"]}
    return [
        filled(CREMAD, AbsTaskClassification, "MadeProbe", n_experiments=2),
        filled(RavdessZeroshotClassification, AbsTaskZeroShotClassification, "MadeZeroShot", **asked),
    ]

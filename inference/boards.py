"""A checkpoint as two public boards ask it: MAEB, the audio tasks of mteb, and oruk-bench. Nothing is sent anywhere.

Neither package is needed to import this module. Letters: B clips, K labels, D width of the joint space.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import soxr
import torch

from lascl.inference.files import BATCH_S, Mean, length_buckets
from lascl.inference.recogniser import Recogniser
from lascl.inference.windows import cut_windows


# What oruk-bench scores, in its order (`oruk_bench.core.LABELS`).
ORUK_LABELS = ("anger", "happiness", "sadness", "fear", "disgust", "surprise", "neutral")


def hear_clips(model: Recogniser, clips: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Answers clips of any length: a board wants an answer to each. One longer than the model hears at once is heard in
    windows side by side, as `predict_files` does; one shorter than a frame of the encoder is followed by silence.

    Args:
        clips: B arrays (samples,), mono floats at the model's `sampling_rate`.

    Returns:
        (B, K) probabilities and (B, D) audio embeddings of unit length.

    Raises:
        ValueError: a clip that holds NaN or infinite samples, or samples far too large.
    """
    shortest = math.ceil(model.min_duration_s * model.sampling_rate)
    longest, size = (round(seconds * model.sampling_rate) for seconds in (model.heard_at_once_s, model.window_s))
    pieces, owners = [], []
    for number, samples in enumerate(clips):
        samples = np.pad(samples, (0, max(0, shortest - len(samples)))).astype(np.float32)
        cut = [samples] if len(samples) <= longest else [part for _, part in cut_windows([samples], size, size)]
        pieces += cut
        owners += [number] * len(cut)
    collected = [Mean() for _ in clips]
    lengths_s = [model.heard_s(len(samples) / model.sampling_rate) for samples in pieces]
    most_s = BATCH_S.get(model.model.device.type, BATCH_S["cuda"])
    for bucket in length_buckets(lengths_s, most_rows=math.inf, most_s=most_s):
        for index, *answer in zip(bucket, *model([pieces[index] for index in bucket])):
            collected[owners[index]].add(tuple(answer))
    answers = [mean.answer(f"Clip {number}", model.labels) for number, mean in enumerate(collected)]
    if failed := [answer.failure for answer in answers if answer.failure]:
        raise ValueError(failed[0])
    return np.stack([answer.probabilities for answer in answers]), np.stack([answer.audio_embeds for answer in answers])


class MAEBModel:
    """A checkpoint as mteb's `EncoderProtocol`: audio is its embedding in the joint space, text that of a label, so
    that classification, clustering and zero-shot tasks run on it.

        mteb.evaluate(MAEBModel("runs/mine/fold-1/checkpoint"), mteb.get_tasks(["CREMA_D", "RavdessZeroshot"]))

    Args:
        model: folder or Hub name of a checkpoint.
        revision: branch, tag or commit on the Hub.
        device: as for `Recogniser.load`.
        name: `organisation/model`, by which mteb keeps results; by default the Hub name, or `local/` and the folder's.

    Raises:
        ValueError, OSError: as `Recogniser.load`.
    """

    def __init__(
        self, model: str | Path, revision: str | None = None, *, device: str | None = None, name: str | None = None
    ):
        self.recogniser = Recogniser.load(model, revision=revision, device=device)
        folder = Path(self.recogniser.model.config._name_or_path)
        is_local = folder.is_dir()
        self.name = name or (f"local/{'-'.join(folder.resolve().parts[-3:])}" if is_local else str(model))
        # mteb takes results that it has for those of the same name and revision: another training is another revision.
        self.revision = _digest(folder) if is_local else self.recogniser.model.config._commit_hash

    def encode(
        self,
        inputs: Iterable[Mapping],
        *,
        task_metadata=None,
        hf_split: str | None = None,
        hf_subset: str | None = None,
        prompt_type=None,
        **kwargs,
    ) -> np.ndarray:
        """(B, D) float32 of unit length, in the order of the inputs.

        Args:
            inputs: batches: under `audio` items with an `array`, (samples,) or (channels, samples), and a
                `sampling_rate`; or under `text` strings, which are embedded as label words are, without a template.
            task_metadata, hf_split, hf_subset, prompt_type, kwargs: mteb's; no answer depends on them.

        Raises:
            ValueError: batches of neither or of both; audio as `hear_clips`; text for a checkpoint that answers by its
                classifier.
            OSError: text, and the text encoder cannot be loaded.
        """
        texts, embeds = [], []
        for batch in inputs:
            if ("audio" in batch) == ("text" in batch):
                raise ValueError(f"A batch must have either audio or text; found {', '.join(batch)}.")
            if "text" in batch:
                texts += batch["text"]
            else:
                embeds.append(hear_clips(self.recogniser, [self._clip(item) for item in batch["audio"]])[1])
        if texts and embeds:
            raise ValueError("Batches must be all of audio or all of text; found both.")
        return self._embed(texts) if texts else np.concatenate(embeds)

    def _clip(self, item: Mapping) -> np.ndarray:
        samples = np.asarray(item["array"], np.float32)
        samples = samples.mean(axis=0) if samples.ndim > 1 else samples
        return soxr.resample(samples, item["sampling_rate"], self.recogniser.sampling_rate)

    def _embed(self, texts: list[str]) -> np.ndarray:
        words = list(dict.fromkeys(texts))
        model = self.recogniser.model
        model.set_labels(words, "{label}")
        with torch.inference_mode():
            embeds = model.get_label_embeddings().cpu().numpy()  # (K, D)
        return embeds[[words.index(text) for text in texts]]

    def similarity(self, embeddings1, embeddings2) -> torch.Tensor:
        """(B1, B2) cosines of two collections of embeddings."""
        return torch.as_tensor(embeddings1) @ torch.as_tensor(embeddings2).T

    def similarity_pairwise(self, embeddings1, embeddings2) -> torch.Tensor:
        """(B,) cosines of the pairs of two collections."""
        return (torch.as_tensor(embeddings1) * torch.as_tensor(embeddings2)).sum(dim=-1)

    @property
    def mteb_model_meta(self):
        """What mteb files results by."""
        from mteb.models import ModelMeta

        told = {
            "name": self.name,
            "revision": self.revision,
            "embed_dim": self.recogniser.model.config.projection_dim,
            "n_parameters": sum(weight.numel() for weight in self.recogniser.model.parameters()),
            "similarity_fn_name": "cosine",
            "framework": ["PyTorch"],
            "modalities": ["audio", "text"],
        }
        return ModelMeta.create_empty(overwrites=told)


def _digest(folder: Path) -> str:
    """Of what a checkpoint answers by."""
    found = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.suffix in (".json", ".safetensors", ".bin")):
        with open(path, "rb") as file:
            found.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    return found.hexdigest()[:40]


class OrukAdapter:
    """A checkpoint as an adapter of oruk-bench, which answers the board's seven words whatever it was trained on:

        oruk_bench.adapters.open_models.ADAPTERS["lascl"] = OrukAdapter
        oruk_bench.adapters.open_models.run_eval({"name": "mine", "adapter": "lascl", "model_id": ...}, "shards")

    Args:
        cfg: `model_id`, the folder or Hub name of a checkpoint; `words`, what it is asked for labels of the board, such
            as `{"happiness": "joy"}`, where that is another word than the board's own; `revision`.
        device: as for `Recogniser.load`.

    Raises:
        ValueError: `words` for what is no label of the board; or as `Recogniser.load`, which cannot give other words to
            a checkpoint that answers by its classifier: the board's own `hf_audio_cls` reads that one.
        OSError: as `Recogniser.load`.
    """

    def __init__(self, cfg: Mapping, device: str | None = None):
        words = cfg.get("words") or {}
        if unknown := words.keys() - set(ORUK_LABELS):
            raise ValueError(f"words must be for labels of the board ({', '.join(ORUK_LABELS)}); found {min(unknown)}.")
        asked = [words.get(label, label) for label in ORUK_LABELS]
        self.recogniser = Recogniser.load(cfg["model_id"], revision=cfg.get("revision"), labels=asked, device=device)

    def predict(self, audios: Sequence[np.ndarray]) -> list[int]:
        """Of each clip, (samples,) at 16 kHz, the index of its label in `ORUK_LABELS`. Raises as `hear_clips`."""
        probabilities, _ = hear_clips(self.recogniser, audios)
        return probabilities.argmax(axis=-1).tolist()

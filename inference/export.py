"""A checkpoint as one ONNX file: `lascl-export MODEL out/`.

The file is the whole model, its feature extractor included: samples in, logits out. Who runs it needs onnxruntime and
no PyTorch; `examples/onnx_predict.py` does.

Letters: B utterances, L samples, M mel bins, K labels, D width of the joint space.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import math
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers import Wav2Vec2FeatureExtractor, WhisperFeatureExtractor
from transformers.utils import logging as transformers_logging

import lascl
from lascl.console import unless_pipe_closes
from lascl.data import read_audio
from lascl.encoders_lascl import samples_of_one_frame
from lascl.inference.recogniser import Recogniser
from lascl.options import export_options


FORMAT = "lascl-onnx"
MODEL, DATA, LABELS, ABOUT, README = "model.onnx", "model.onnx.data", "labels.npz", "lascl_onnx.json", "README.md"
INT8, INT8_DATA = "model_int8.onnx", "model_int8.onnx.data"
# All that an export may hold. Weights beyond 2 GB lie in DATA, which is read from beside the model.
FILES = {MODEL, DATA, INT8, INT8_DATA, LABELS, ABOUT, README, "preprocessor_config.json"}
TOLERANCE = 1e-4  # of probabilities and embeddings
CHECKED_DURATION_S = 10  # of each utterance, at most
CHECKED_AT_ONCE = 8


# ---------------------------------------------------------------------------------------------------------- the graph


class _NormalisedSamples(nn.Module):
    """What `Wav2Vec2FeatureExtractor` does: each utterance to mean 0 and variance 1, if it says so."""

    def __init__(self, extractor: Wav2Vec2FeatureExtractor, frame: int):
        super().__init__()
        self.do_normalize, self.frame = extractor.do_normalize, frame

    def forward(self, samples: torch.Tensor, valid: torch.Tensor) -> dict[str, torch.Tensor]:
        if self.do_normalize:
            count = valid.sum(dim=-1, keepdim=True)
            mean = samples.sum(dim=-1, keepdim=True) / count
            centred = torch.where(valid, samples - mean, 0.0)
            samples = centred / torch.sqrt(centred.square().sum(dim=-1, keepdim=True) / count + 1e-7)
        # Padding changes no answer. With a frame of it there is never too little for the convolutions, and the graph
        # has one path for all lengths.
        return {
            "input_values": F.pad(samples, (0, self.frame)),
            "attention_mask": F.pad(valid, (0, self.frame)).long(),
        }


class _LogMel(nn.Module):
    """What `WhisperFeatureExtractor` does: log-mel features of the whole window. The Fourier transform is a convolution
    with windowed sines and cosines, which every runtime has and computes alike."""

    def __init__(self, extractor: WhisperFeatureExtractor):
        super().__init__()
        self.window, self.n_fft, self.hop_length = extractor.n_samples, extractor.n_fft, extractor.hop_length
        n = torch.arange(self.n_fft, dtype=torch.float64)
        angle = 2 * math.pi / self.n_fft * (torch.arange(self.n_fft // 2 + 1)[:, None] * n % self.n_fft)
        taper = torch.hann_window(self.n_fft, dtype=torch.float64)
        waves = torch.cat([angle.cos() * taper, angle.sin() * taper])  # (2 * frequencies, n_fft)
        self.register_buffer("waves", waves[:, None].float())
        self.register_buffer("mel_filters", torch.from_numpy(extractor.mel_filters).T.float())  # (M, frequencies)

    def forward(self, samples: torch.Tensor, valid: torch.Tensor) -> dict[str, torch.Tensor]:
        # A row of negative length is an error of the runtime: what is longer than the window is never cut in silence.
        silence = samples.new_zeros(samples.shape[0], self.window - samples.shape[1])
        samples = torch.cat([samples, silence], dim=-1)  # (B, window)
        reflected = F.pad(samples[:, None], (self.n_fft // 2, self.n_fft // 2), mode="reflect")
        spectrum = F.conv1d(reflected, self.waves, stride=self.hop_length)[..., :-1]
        power = spectrum.square().unflatten(1, (2, -1)).sum(dim=1)  # (B, frequencies, mel frames)
        log_mel = (self.mel_filters @ power).clamp(min=1e-10).log10()  # (B, M, mel frames)
        log_mel = torch.maximum(log_mel, log_mel.amax(dim=(1, 2), keepdim=True) - 8)
        starts = torch.arange(0, self.window, self.hop_length)
        mask = starts < valid.sum(dim=-1, keepdim=True)  # (B, mel frames)
        return {"input_features": (log_mel + 4) / 4, "attention_mask": mask.long()}


class _FromSamples(nn.Module):
    """The model from samples to logits and audio embeddings, the label embeddings given."""

    def __init__(self, recogniser: Recogniser):
        super().__init__()
        extractor, encoder = recogniser.feature_extractor, recogniser.model.lascl.audio_encoder
        if isinstance(extractor, WhisperFeatureExtractor):
            self.front_end = _LogMel(extractor)
        else:
            self.front_end = _NormalisedSamples(extractor, samples_of_one_frame(encoder))
        self.model = recogniser.model

    def forward(self, input_values: torch.Tensor, lengths: torch.Tensor, label_embeds: torch.Tensor | None = None):
        valid = torch.arange(input_values.shape[1]) < lengths[:, None]  # (B, L)
        outputs = self.model(**self.front_end(torch.where(valid, input_values, 0.0), valid))
        if label_embeds is None:
            return outputs.logits, outputs.audio_embeds
        # Product by product: a matrix product sums in an order that depends on where a label stands.
        similarity = (outputs.audio_embeds[:, None] * label_embeds).sum(dim=-1)  # (B, K)
        return similarity / self.model.label_temperature, outputs.audio_embeds


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the exporter's remarks on its own workings from the user."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@torch.no_grad()
def _save_graph(recogniser: Recogniser, path: Path):
    """Writes the ONNX file.

    Raises:
        ValueError: the exporter does not manage this encoder.
    """
    config = recogniser.model.config
    num_samples = int(min(recogniser.max_duration_s, 0.5) * recogniser.sampling_rate) // 2
    longest = recogniser.max_duration_s * recogniser.sampling_rate
    batch = torch.export.Dim("batch", min=1)
    samples = torch.export.Dim("samples", min=1, max=None if math.isinf(longest) else int(longest))
    # Sizes that differ from each other and from 1, so that the exporter takes none for another.
    inputs = {"input_values": torch.zeros(2, num_samples), "lengths": torch.tensor([num_samples, num_samples // 2])}
    shapes = {"input_values": {0: batch, 1: samples}, "lengths": {0: batch}}
    if config.prediction_head == "label":
        inputs["label_embeds"] = torch.zeros(3, config.projection_dim)
        shapes["label_embeds"] = {0: torch.export.Dim("labels", min=1)}
    try:
        with _quiet():
            program = torch.onnx.export(
                _FromSamples(recogniser).eval(),
                kwargs=inputs,
                input_names=list(inputs),
                output_names=["logits", "audio_embeds"],
                dynamic_shapes=shapes,
                dynamo=True,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        reason = (str(error.__cause__ or error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"torch {torch.__version__} cannot export the encoder type {config.audio_config.model_type!r} to ONNX "
            f"({reason}). Nothing was written."
        ) from error
    _strip(program.model)
    program.save(path)


def _strip(model):
    """Takes out what the exporter noted: lines of code with the paths of this machine, ten times a small model."""
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        for value in node.outputs:
            value.metadata_props.clear()


def _save_int8(model: Path, path: Path):
    """Writes the graph once more with the weights of its matrix products in 8 bits, a scale for each of their columns.

    What these are multiplied with is brought to 8 bits while it is computed, by its own range ("dynamic"), so no audio
    is needed. Convolutions, attention scores and the mel filters stay in float32.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with _quiet():
        quantize_dynamic(
            model,
            path,
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            weight_type=QuantType.QInt8,
            use_external_data_format=model.with_name(DATA).exists(),
        )


# ---------------------------------------------------------------------------------------------------------- the check


def _generated_speech(recogniser: Recogniser) -> list[np.ndarray]:
    """Sounds like syllables, of very different lengths; the first is one frame of the encoder."""
    rng, rate = np.random.default_rng(0), recogniser.sampling_rate
    shortest, longest_s = (
        math.ceil(recogniser.min_duration_s * rate),
        min(recogniser.max_duration_s, CHECKED_DURATION_S),
    )
    utterances = []
    for share in (0, 0.04, 0.13, 0.31, 0.57, 0.98):
        t = np.arange(max(shortest, round(share * longest_s * rate))) / rate
        pitch_hz = rng.uniform(90, 250) * (1 + 0.1 * np.sin(2 * np.pi * rng.uniform(0.3, 1) * t))
        phase = 2 * np.pi * np.cumsum(pitch_hz) / rate
        voice = sum(np.sin(k * phase) / k for k in range(1, 8)) * np.sin(2 * np.pi * rng.uniform(1, 3) * t) ** 2
        utterances.append((0.1 * voice + 0.005 * rng.standard_normal(len(t))).astype(np.float32))
    return utterances


def _largest_differences(path: Path, recogniser: Recogniser, utterances: list[np.ndarray]) -> tuple[float, float]:
    """Of probabilities and of audio embeddings between the ONNX file and PyTorch, over batches padded to their longest
    and over each utterance alone."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    label_embeds = {}
    if recogniser.model.config.prediction_head == "label":
        label_embeds = {"label_embeds": recogniser.model.get_label_embeddings().detach().numpy()}

    def run(utterances: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        lengths = np.array([len(samples) for samples in utterances], dtype=np.int64)
        padded = np.zeros((len(utterances), lengths.max()), dtype=np.float32)
        for row, samples in zip(padded, utterances):
            row[: len(samples)] = samples
        logits, audio_embeds = session.run(
            ["logits", "audio_embeds"], {"input_values": padded, "lengths": lengths, **label_embeds}
        )
        return torch.from_numpy(logits).softmax(dim=-1).numpy(), audio_embeds

    largest = []
    for start in range(0, len(utterances), CHECKED_AT_ONCE):
        batch = utterances[start : start + CHECKED_AT_ONCE]
        with _hearing_whole_windows(recogniser):
            expected = recogniser(batch)
        alone = zip(*(run([samples]) for samples in batch))
        for found in (run(batch), [np.concatenate(rows) for rows in alone]):
            largest.append([np.abs(ours - theirs).max() for ours, theirs in zip(found, expected)])
    # numpy's maximum keeps a NaN, which then is no difference below the tolerance.
    probabilities, embeddings = np.max(largest, axis=0)
    return float(probabilities), float(embeddings)


@contextlib.contextmanager
def _hearing_whole_windows(recogniser: Recogniser) -> Iterator[None]:
    """As the graph does, whose shapes are fixed: also with a checkpoint whose `audio_window` is `utterance`."""
    config = recogniser.model.config
    before, config.audio_window = config.audio_window, "fixed"
    try:
        yield
    finally:
        config.audio_window = before


def _change_by_whole_windows(recogniser: Recogniser, utterances: list[np.ndarray]) -> float | None:
    """The largest in a probability, where the checkpoint itself hears no more than an utterance lasts; else `None`."""
    if recogniser.model.config.audio_window == "fixed" or math.isinf(recogniser.max_duration_s):
        return None
    own = np.concatenate([recogniser([samples])[0] for samples in utterances])
    with _hearing_whole_windows(recogniser):
        return float(np.abs(own - np.concatenate([recogniser([samples])[0] for samples in utterances])).max())


# ----------------------------------------------------------------------------------------------------------- the files


def export(
    model: Recogniser | str | Path,
    folder: str | Path,
    *,
    revision: str | None = None,
    labels: Sequence[str] | None = None,
    label_template: str | None = None,
    check: Sequence[str | Path] = (),
    int8: bool = False,
) -> dict:
    """Writes a checkpoint as ONNX, checked against PyTorch, with all that is needed to use it.

    Inputs of `model.onnx`: `input_values` (B, L) float32, mono at the model's rate, padded at the end with anything;
    `lengths` (B,) int64, how many samples of each row are signal; `label_embeds` (K, D) float32, any label words, if
    the checkpoint predicts with its label head. Outputs: `logits` (B, K) of the head that the checkpoint predicts with,
    whose softmax is a probability, and `audio_embeds` (B, D) of unit length. B, L and K are free; for Whisper L is at
    most its window, and more is an error. Shapes of the graph are fixed: a checkpoint whose `audio_window` is
    `utterance` hears the whole window there, and by how much that changes its answers is stated.

    `folder` is there whole or, if anything fails, as it was before. An earlier export there is replaced.

    Args:
        model: a recogniser in float32 on the CPU, or the folder or Hub name of a checkpoint.
        folder: where to; absent, empty or an earlier export.
        revision, labels, label_template: as for `Recogniser.load`; only with a folder or name.
        check: audio files to check with, the first 10 s of each (or Whisper's window); by default generated sounds of
            one frame to 10 s.
        int8: write `model_int8.onnx` too, smaller and less exact: its distance from PyTorch is measured alike, and
            stated; how much is too much is for its user to say.

    Returns:
        What `lascl_onnx.json` says.

    Raises:
        ImportError: without the extra `onnx`.
        ValueError: `folder` holds something else, an audio file cannot be read, the encoder or feature extractor
            cannot be exported, or ONNX and PyTorch differ by more than 1e-4 in a probability or an embedding.
        OSError: no such checkpoint, or nothing can be written.
    """
    missing = [name for name in ("onnx", "onnxruntime", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f'Exporting needs {", ".join(missing)}: pip install "lascl[onnx]".')
    folder = Path(folder).resolve()
    _refuse_other_content(folder)
    if not isinstance(model, Recogniser):
        model = Recogniser.load(
            model, revision=revision, labels=labels, label_template=label_template, device=torch.device("cpu")
        )
    elif (revision, labels, label_template) != (None, None, None):
        raise ValueError("A recogniser has its labels and revision: give them to Recogniser.load.")
    _refuse_what_cannot_be_exported(model)
    longest_s = min(model.max_duration_s, CHECKED_DURATION_S)
    utterances = [read_audio(path, sampling_rate=model.sampling_rate, max_duration_s=longest_s) for path in check]
    model.model.get_label_embeddings()  # raises if there are none

    folder.parent.mkdir(parents=True, exist_ok=True)
    # Beside the folder, so that renaming moves no bytes.
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as temporary:
        staged = Path(temporary) / "new"
        staged.mkdir()
        utterances = utterances or _generated_speech(model)
        about = _describe(
            model,
            *_save_checked_graphs(model, staged, utterances, int8),
            _change_by_whole_windows(model, utterances),
            num_utterances=len(utterances),
            audio="files" if check else "generated",
        )
        save_labels(model, staged / LABELS)
        model.feature_extractor.save_pretrained(staged)
        (staged / ABOUT).write_text(json.dumps(about, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        (staged / README).write_text(_readme(about), encoding="utf-8")
        if folder.exists():
            folder.rename(Path(temporary) / "old")
        staged.rename(folder)
    return about


def _save_checked_graphs(
    model: Recogniser, folder: Path, utterances: list[np.ndarray], int8: bool
) -> tuple[tuple[float, float], tuple[float, float] | None]:
    """Writes `model.onnx` and, if it is wanted, `model_int8.onnx`; the largest differences of each from PyTorch.

    Raises:
        ValueError: the first differs by more than the tolerance, or the second gives no finite answers.
    """
    _save_graph(model, folder / MODEL)
    differences = _largest_differences(folder / MODEL, model, utterances)
    if not max(differences) <= TOLERANCE:
        raise ValueError(
            f"ONNX and PyTorch differ by {differences[0]:.2g} in a probability and {differences[1]:.2g} in an "
            f"embedding, more than {TOLERANCE:g}; nothing was written. Please report it with your versions of "
            "torch, transformers and onnxruntime."
        )
    if not int8:
        return differences, None
    _save_int8(folder / MODEL, folder / INT8)
    int8_differences = _largest_differences(folder / INT8, model, utterances)
    if not all(map(math.isfinite, int8_differences)):
        raise ValueError("In int8 this model gives no finite answers; nothing was written. Leave int8 out.")
    return differences, int8_differences


def save_labels(recogniser: Recogniser, path: str | Path):
    """Writes what an exported model is given for its labels: `labels`, K words, and, if the checkpoint predicts
    with its label head, `label_embeds` (K, D) float32 of unit length. New words for an export:

        save_labels(Recogniser.load(model, labels=["furious", "weary"]), "out/labels.npz")

    Args:
        recogniser: of the checkpoint that was exported, with any labels.
        path: ends in `.npz`.
    """
    arrays = {"labels": np.array(recogniser.labels)}
    if recogniser.model.config.prediction_head == "label":
        arrays["label_embeds"] = recogniser.model.get_label_embeddings().detach().float().cpu().numpy()
    np.savez(path, **arrays)


def _refuse_other_content(folder: Path):
    if folder.is_dir():
        found = {path.name for path in folder.iterdir()}
        if not found or (ABOUT in found and found <= FILES):
            return
        other = min(found - FILES, default=min(found))
        raise ValueError(f"{folder} holds {other!r}, which no export left there. Give a new or an empty folder.")
    if folder.exists():
        raise ValueError(f"{folder} is a file. Give a new or an empty folder.")


def _refuse_what_cannot_be_exported(recogniser: Recogniser):
    extractor, model = recogniser.feature_extractor, recogniser.model
    if (model.dtype, model.device.type) != (torch.float32, "cpu"):
        raise ValueError(
            f"Exporting wants a model in float32 on the CPU; found {model.dtype} on {model.device}. Load it with "
            "device='cpu'."
        )
    if not isinstance(extractor, (Wav2Vec2FeatureExtractor, WhisperFeatureExtractor)):
        raise ValueError(
            f"The feature extractor becomes part of the ONNX model, which Wav2Vec2FeatureExtractor and "
            f"WhisperFeatureExtractor can; found {type(extractor).__name__}."
        )
    if getattr(extractor, "dither", 0) != 0:
        raise ValueError(
            f"The feature extractor adds noise (dither={extractor.dither:g}), so ONNX and PyTorch could not agree. Set "
            "dither to 0 in preprocessor_config.json."
        )


def _describe(
    recogniser: Recogniser,
    differences: tuple[float, float],
    int8_differences: tuple[float, float] | None,
    whole_window_change: float | None,
    *,
    num_utterances: int,
    audio: str,
) -> dict:
    """The contents of `lascl_onnx.json`."""
    config, longest_s = recogniser.model.config, recogniser.max_duration_s
    with_labels, name = config.prediction_head == "label", config._name_or_path
    inputs = {
        "input_values": ["float32", ["batch", "samples"], "mono audio, nominally in [-1, 1], padded at the end"],
        "lengths": ["int64", ["batch"], "how many samples of each row are signal"],
    }
    if with_labels:
        inputs["label_embeds"] = [
            "float32",
            ["labels", config.projection_dim],
            f"unit-length embeddings of the label words, any number: those of {LABELS} or others of this checkpoint",
        ]
    heads = {"both": "both heads"}.get(config.prediction_head, f"the {config.prediction_head} head")
    logits = f"of {heads}, a column a label; their softmax is a probability"
    outputs = {
        "logits": ["float32", ["batch", "labels" if with_labels else len(config.labels)], logits],
        "audio_embeds": ["float32", ["batch", config.projection_dim], "unit-length embeddings of the utterances"],
    }
    return {
        "format": FORMAT,
        # Of a checkpoint in a folder its own name alone: where it lay is nobody's business.
        "model": Path(name).resolve().name if Path(name).is_dir() else name,
        "commit": getattr(config, "_commit_hash", None),
        "audio_encoder": config.audio_config.model_type,
        "prediction_head": config.prediction_head,
        "sampling_rate": recogniser.sampling_rate,
        "max_duration_s": None if math.isinf(longest_s) else longest_s,
        "labels": recogniser.labels,
        "label_template": config.label_template,
        "trained_labels": config.classifier_labels or recogniser.labels,
        "contrastive_temperature": recogniser.model.label_temperature if with_labels else None,
        "inputs": {key: dict(zip(("type", "shape", "meaning"), value)) for key, value in inputs.items()},
        "outputs": {key: dict(zip(("type", "shape", "meaning"), value)) for key, value in outputs.items()},
        "check": {
            "audio": audio,
            "utterances": num_utterances,
            "max_probability_difference": differences[0],
            "max_embedding_difference": differences[1],
            "tolerance": TOLERANCE,
            **({} if whole_window_change is None else {"whole_window_max_probability_change": whole_window_change}),
            **(
                {}
                if int8_differences is None
                else {
                    "int8_max_probability_difference": int8_differences[0],
                    "int8_max_embedding_difference": int8_differences[1],
                }
            ),
        },
        "versions": {"lascl": lascl.__version__, "torch": torch.__version__},
    }


def _readme(about: dict) -> str:
    with_labels = about["prediction_head"] == "label"
    label_embeds = 'inputs["label_embeds"] = labels["label_embeds"]\n' if with_labels else ""
    limit = f", at most {about['max_duration_s']:g} s" if about["max_duration_s"] else ""
    words, int8 = "The answer is the classifier's, alone or in part: the labels cannot change.", ""
    if "int8_max_probability_difference" in about["check"]:
        int8 = f"""
`{INT8}` is the same with weights of 8 bits, and less exact: on the same audio it was up to
{about["check"]["int8_max_probability_difference"]:.1e} from PyTorch in a probability.
"""
    window = ""
    if "whole_window_max_probability_change" in about["check"]:
        window = f"""
The checkpoint hears no more than an utterance lasts; this file, whose shapes are fixed, always hears its whole window.
On the audio that it was checked with that changed a probability by up to
{about["check"]["whole_window_max_probability_change"]:.1e}.
"""
    if with_labels:
        words = f"""\
**Other words** need no other model: `label_embeds` is an input, and `{LABELS}` is what is given for it. With LaSCL (and
PyTorch) installed, this writes another such file from the same checkpoint:

```bash
lascl-export {about["model"] or "CHECKPOINT"} other/ --labels "furious, joyful, weary"    # take other/{LABELS}
```

or, in Python, `lascl.inference.export.save_labels(Recogniser.load(CHECKPOINT, labels=[...]), "other.npz")`. The model
was trained on {", ".join(about["trained_labels"])}; other words are as good as the text encoder that embeds them."""
    return f"""\
# {about["model"] or "LaSCL"} as ONNX

`{MODEL}` is the whole model, from samples to logits, by `lascl-export`. It needs onnxruntime, and no PyTorch:

```python
import numpy as np
import onnxruntime
import soundfile

session, labels = onnxruntime.InferenceSession("{MODEL}"), np.load("{LABELS}")
samples, sampling_rate = soundfile.read("speech.wav", dtype="float32")  # mono, {about["sampling_rate"]} Hz{limit}
inputs = {{"input_values": samples[None], "lengths": np.array([len(samples)])}}
{label_embeds}(logits,) = session.run(["logits"], inputs)
weights = np.exp(logits[0] - logits[0].max())
print(dict(zip(labels["labels"].tolist(), (weights / weights.sum()).tolist())))
```

Several utterances at once are padded at the end to the longest; `lengths` keeps the padding out of every answer.

{words}
{window}{int8}
`{ABOUT}` says what goes in and out, and by how much this file and PyTorch differed when it was written: at most
{about["check"]["max_probability_difference"]:.1e} in a probability.
"""


@unless_pipe_closes
def main(argv: list[str] | None = None):
    """Prints what was written and how far it is from PyTorch; exits with code 2 and one sentence if nothing was."""
    args = export_options(argv)
    transformers_logging.disable_progress_bar()  # of loading weights
    try:
        about = export(
            args.model,
            args.folder,
            revision=args.revision,
            labels=args.labels,
            label_template=args.template,
            check=args.check,
            int8=args.int8,
        )
    except (ValueError, OSError, ImportError) as error:
        print(f"lascl-export: {error}", file=sys.stderr)
        sys.exit(2)
    size_mb = _size_mb(args.folder, MODEL)
    limit = f", at most {about['max_duration_s']:g} s" if about["max_duration_s"] else ""
    print(f"{args.folder}: {MODEL}, {size_mb:.1f} MB; mono audio at {about['sampling_rate']} Hz{limit}.")
    untrained = about["labels"] != about["trained_labels"]
    print(f"Labels: {', '.join(about['labels'])}{' (not what it was trained on)' if untrained else ''}.")
    found = about["check"]
    print(
        f"Checked on {found['utterances']} {'utterances' if found['audio'] == 'files' else 'generated sounds'}, padded "
        f"and alone: at most {found['max_probability_difference']:.1e} from PyTorch in a probability, "
        f"{found['max_embedding_difference']:.1e} in an embedding."
    )
    if (change := found.get("whole_window_max_probability_change")) is not None:
        print(f"It hears whole windows, which changes a probability of the checkpoint's by up to {change:.1e}.")
    if args.int8:
        print(
            f"{INT8}, {_size_mb(args.folder, INT8):.1f} MB: at most {found['int8_max_probability_difference']:.1e} "
            f"from PyTorch in a probability, {found['int8_max_embedding_difference']:.1e} in an embedding."
        )


def _size_mb(folder: str, name: str) -> float:
    return sum(path.stat().st_size for path in Path(folder).glob(f"{name}*")) / 1e6


if __name__ == "__main__":
    main()

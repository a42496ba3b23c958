"""A LaSCL model behind an Inference Endpoint: the Hub runs this file as `handler.py` beside a published fold.

It needs torch and transformers, which endpoints have, and what `requirements.txt` beside it names; LaSCL need not be
installed. Formats that libsndfile does not know (m4a, video) want the ffmpeg program, too.

    {"inputs": AUDIO, "parameters": {"top_k": 3, "labels": ["joyful", "weary"], "window_s": 2.0}}

AUDIO is a file's bytes, the same as base64, or mono samples as `{"array": [...], "sampling_rate": 16000}`.

Letters: K labels, W windows that are answered at once.
"""

import base64
import binascii
import copy
import io
import itertools
import shutil
import subprocess
import sys
import tempfile
import threading

import numpy as np
import soundfile
import soxr
import torch
from transformers import AutoFeatureExtractor, AutoModelForAudioClassification


MIN_DURATION_S, MAX_DURATION_S = 0.1, 600
MAX_VALUES = MAX_DURATION_S * 48_000 * 2  # samples times channels that are decoded
BLOCK_VALUES = 4_000_000
WHOLE_S, WINDOW_S = 30.0, 10.0  # heard at once at most; windows of longer audio. Whisper says itself what it hears
BATCH_SIZE = 8
MAX_LABELS = 100
# What ffmpeg may take a stranger's file for: no playlist, which would have it open other files and addresses.
FFMPEG_FORMATS = "mov,mp4,m4a,3gp,matroska,webm,avi,flv,asf,mpeg,mpegts,aac,ac3,eac3,amr,wav,mp3,ogg,flac,aiff,caf"


class EndpointHandler:
    """Answers requests of an endpoint, also several at once.

    Args:
        path: the folder of the repository.
    """

    def __init__(self, path: str = ""):
        device = "cuda" if torch.cuda.is_available() else "cpu"
        model = AutoModelForAudioClassification.from_pretrained(path, trust_remote_code=True, dtype=torch.float32)
        self.model = model.eval().to(device)
        self.feature_extractor = AutoFeatureExtractor.from_pretrained(path)
        self.rate = self.feature_extractor.sampling_rate
        hears_s = getattr(self.feature_extractor, "chunk_length", None)
        self.whole_s, self.window_s = min(hears_s or WHOLE_S, WHOLE_S), min(hears_s or WINDOW_S, WHOLE_S)
        self.text_encoder, self.lock = None, threading.Lock()

    def __call__(self, data: dict) -> list[dict]:
        """Labels and scores of a recording, the likeliest first.

        Args:
            data: `inputs`, see above, and perhaps `parameters`: `top_k`, how many labels are told (all); `labels`,
                other words than the model's own, as a list or separated by commas; `window_s`, seconds that are heard
                at once, each window told by itself; `sampling_rate` of an array in Hz, if it does not stand beside it.

        Returns:
            `[{"label", "score"}, ...]`; the mean over windows where a recording is longer than is heard at once. With
            `window_s`, `[{"start_s", "end_s", "scores": [{"label", "score"}, ...]}, ...]`: the last window ends with
            the recording and overlaps the one before.

        Raises:
            ValueError: one sentence on what cannot be answered and why.
        """
        if not isinstance(data, dict) or data.get("inputs") is None:
            raise ValueError('A request needs "inputs": audio as bytes, base64, or an array with its sampling_rate.')
        parameters = data.get("parameters") or {}
        if unknown := sorted(parameters.keys() - {"top_k", "labels", "window_s", "sampling_rate"}):
            raise ValueError(f"Unknown parameter {unknown[0]!r}: there are top_k, labels, window_s and sampling_rate.")
        top_k, window_s = parameters.get("top_k"), parameters.get("window_s")
        if top_k is not None and (not isinstance(top_k, int) or isinstance(top_k, bool) or top_k < 1):
            raise ValueError(f"top_k must be a whole number of at least 1; found {top_k!r}.")
        if window_s is not None and not (is_number(window_s) and MIN_DURATION_S <= window_s <= self.whole_s):
            raise ValueError(f"window_s must be {MIN_DURATION_S:g} to {self.whole_s:g} seconds; found {window_s!r}.")
        model = self.with_labels(parameters.get("labels"))
        samples = self.samples(data["inputs"], parameters.get("sampling_rate", data.get("sampling_rate")))
        windows = self.windows(len(samples), window_s)
        probabilities = self.probabilities(model, [samples[start:end] for start, end in windows])  # (W, K)
        if window_s is None:
            return ranked(model, probabilities.mean(axis=0), top_k)
        return [
            {"start_s": start / self.rate, "end_s": end / self.rate, "scores": ranked(model, row, top_k)}
            for (start, end), row in zip(windows, probabilities)
        ]

    # ------------------------------------------------------------------------------------------------------- audio

    def samples(self, inputs, sampling_rate=None) -> np.ndarray:
        """(samples,) float32, mono, at the model's rate."""
        if isinstance(inputs, dict):
            array = inputs.get("array", inputs.get("raw"))
            sampling_rate = inputs.get("sampling_rate", sampling_rate)
            if array is None:
                raise ValueError('A dictionary of audio needs "array" and "sampling_rate".')
        elif isinstance(inputs, str):
            array = None
            try:
                content = base64.b64decode(inputs.partition("base64,")[2] or inputs, validate=True)
            except (binascii.Error, ValueError):
                raise ValueError("A string must be an audio file in base64; this is none.") from None
        elif isinstance(inputs, (bytes, bytearray, memoryview)):
            array, content = None, bytes(inputs)
        else:
            array = inputs
        samples, rate = decoded(content) if array is None else checked(array, sampling_rate)
        if rate != self.rate:
            samples = soxr.resample(samples, rate, self.rate)
        if not np.isfinite(samples).all():
            raise ValueError("The audio holds NaN or infinite samples.")
        if (duration_s := len(samples) / self.rate) < MIN_DURATION_S:
            raise ValueError(f"The audio is too short: {duration_s:g} s; give {MIN_DURATION_S:g} s at least.")
        return np.ascontiguousarray(samples, dtype=np.float32)

    def windows(self, num_samples: int, window_s: float | None) -> list[tuple[int, int]]:
        """First and last-but-one sample of each window: side by side, the last one ends with the recording."""
        if num_samples <= (window_s or self.whole_s) * self.rate:
            return [(0, num_samples)]
        size = round((window_s or self.window_s) * self.rate)
        starts = [*range(0, num_samples - size, size), num_samples - size]
        return [(start, start + size) for start in starts]

    # ------------------------------------------------------------------------------------------------------- model

    @torch.inference_mode()
    def probabilities(self, model, windows: list[np.ndarray]) -> np.ndarray:
        """(W, K), the softmax of the model's own head."""
        rows, waiting = [], iter(windows)
        is_whisper = "input_features" in self.feature_extractor.model_input_names
        while batch := list(itertools.islice(waiting, BATCH_SIZE)):
            inputs = self.feature_extractor(
                batch,
                sampling_rate=self.rate,
                padding="max_length" if is_whisper else "longest",
                return_attention_mask=True,
                return_tensors="pt",
            )
            logits = model(**inputs.to(self.model.device)).logits
            rows.append(logits.double().softmax(dim=-1).cpu().numpy())
        probabilities = np.concatenate(rows)
        if not np.isfinite(probabilities).all():
            raise ValueError("The audio gives no finite probabilities: its samples are far too large.")
        return probabilities

    def with_labels(self, labels):
        """The model, or for other words another that shares its weights: one request changes nothing of the next."""
        if labels is None:
            return self.model
        words = labels.split(",") if isinstance(labels, str) else labels
        if not isinstance(words, (list, tuple)) or not all(isinstance(word, str) for word in words):
            raise ValueError(f"labels must be a list of words; found {labels!r}.")
        words = list(dict.fromkeys(filter(None, (" ".join(word.split()) for word in words))))
        if words == self.model.config.labels:
            return self.model
        if not 2 <= len(words) <= MAX_LABELS:
            raise ValueError(f"labels must be 2 to {MAX_LABELS} different words; found {len(words)}.")
        if self.model.config.prediction_head == "classifier":
            raise ValueError("This model predicts with its classifier, whose labels cannot change: leave out labels.")
        backbone = self.model.lascl
        tensors = itertools.chain(self.model.parameters(), self.model.buffers())
        with self.lock:  # a tokenizer cannot be used by two threads at once
            if self.text_encoder is None:
                load = sys.modules[type(backbone).__module__].load_text_encoder
                self.text_encoder = load(*backbone._find_text_encoder())
            model = copy.deepcopy(self.model, {id(tensor): tensor for tensor in tensors})
            model.lascl._set_labels(words, None, *self.text_encoder)
        return model


def ranked(model, probabilities: np.ndarray, top_k: int | None) -> list[dict]:
    """Of (K,) probabilities."""
    order = np.argsort(-probabilities, kind="stable")[:top_k]
    return [{"label": model.config.labels[index], "score": float(probabilities[index])} for index in order]


def is_number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def checked(array, sampling_rate) -> tuple[np.ndarray, int]:
    """Samples that were sent as such, and their rate."""
    if not is_number(sampling_rate) or not 1000 <= sampling_rate <= 768_000 or sampling_rate != int(sampling_rate):
        raise ValueError(f"An array needs its sampling_rate, a whole number in Hz; found {sampling_rate!r}.")
    try:
        samples = np.asarray(array, dtype=np.float32)
    except (ValueError, TypeError):
        raise ValueError("An array must hold numbers.") from None
    if samples.ndim != 1:
        raise ValueError(f"An array must be mono, (samples,); found {samples.shape}.")
    if len(samples) > MAX_DURATION_S * sampling_rate:
        raise ValueError(f"The audio is too long: at most {MAX_DURATION_S // 60} minutes are taken.")
    return samples, int(sampling_rate)


def decoded(content: bytes) -> tuple[np.ndarray, int]:
    """Mono samples of a file, and their rate; never more in memory than is taken."""
    if not content:
        raise ValueError("The audio is empty, of 0 bytes.")
    too_long = f"The audio is too long: at most {MAX_DURATION_S // 60} minutes are taken, of stereo at 48 kHz."
    blocks, num_read = [], 0
    try:
        with soundfile.SoundFile(io.BytesIO(content)) as file:
            if 0 < file.frames < 2**62 and (
                file.frames > MAX_DURATION_S * file.samplerate or file.frames * file.channels > MAX_VALUES
            ):
                raise ValueError(too_long)
            block_size = max(1, BLOCK_VALUES // file.channels)
            while len(block := file.read(block_size, dtype="float32", always_2d=True)):  # (samples, channels)
                blocks.append(block.mean(axis=1))
                num_read += len(block)
                if num_read > MAX_DURATION_S * file.samplerate or num_read * file.channels > MAX_VALUES:
                    raise ValueError(too_long)
            return np.concatenate([*blocks, np.zeros(0, np.float32)]), file.samplerate
    except soundfile.LibsndfileError as error:
        if shutil.which("ffmpeg") is None:
            reason = error.error_string.strip(" .")
            raise ValueError(f"The audio cannot be read ({reason}): send WAV, FLAC, OGG or MP3.") from None
    return through_ffmpeg(content)


def through_ffmpeg(content: bytes, rate: int = 48_000) -> tuple[np.ndarray, int]:
    with tempfile.NamedTemporaryFile() as file:  # some containers are read from their end
        file.write(content)
        file.flush()
        only = ["-protocol_whitelist", "file", "-format_whitelist", FFMPEG_FORMATS]
        command = ["ffmpeg", "-nostdin", "-v", "error", *only, "-i", f"file:{file.name}", "-vn", "-ac", "1"]
        command += ["-t", str(MAX_DURATION_S + 1), "-ar", str(rate), "-f", "f32le", "-"]
        done = subprocess.run(command, capture_output=True)
    samples = np.frombuffer(done.stdout[: len(done.stdout) // 4 * 4], dtype="<f4")
    if done.returncode or not len(samples):
        raise ValueError("The audio cannot be read: send WAV, FLAC, OGG or MP3.")
    if len(samples) > MAX_DURATION_S * rate:
        raise ValueError(f"The audio is too long: at most {MAX_DURATION_S // 60} minutes are taken.")
    return samples, rate

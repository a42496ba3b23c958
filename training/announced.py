"""What encoding all views will cost, said before it begins.

Letters: B utterances of the batch that is timed, V views, N utterances, d_a width of the pooled audio.
"""

from __future__ import annotations

import statistics
import time

import torch
from accelerate.utils import send_to_device

from lascl.console import in_words
from lascl.data import SpeechCollator, SpeechDataset
from lascl.modeling_lascl import LaSCLForAudioClassification
from lascl.training.arguments import LaSCLTrainingArguments
from lascl.training.views import GB, ViewStore


TIMED_FROM = 32  # batches on: so many are worth one more, from which the time is foretold
LONG_S = 60.0  # an encoding of which is said what would make it shorter


def seconds_of_a_view(
    model: LaSCLForAudioClassification,
    speech: SpeechDataset,
    collator: SpeechCollator,
    place: tuple[int, int],
    args: LaSCLTrainingArguments,
) -> float:
    """Seconds that a view costs on average, read, augmented and encoded: one batch of clips of middling length is
    timed, after one that is not counted. With workers, the slower of reading and encoding counts."""
    middle = sorted(range(len(speech)), key=lambda row: speech.durations_s[row])
    start = max(0, (len(middle) - args.per_device_eval_batch_size) // 2)
    rows = middle[start : start + args.per_device_eval_batch_size]
    for _ in range(2):
        began = time.monotonic()
        items = [{"label": 0, "views": [speech.view(row, *place)]} for row in rows]
        batch = collator(items)
        del batch["labels"]
        read_s = time.monotonic() - began
        with torch.no_grad():
            model.lascl(**send_to_device(batch, model.device)).pooled_audio.cpu()  # waits for a GPU
        encoded_s = time.monotonic() - began - read_s
    workers = args.workers_for(speech)["num_workers"]
    batch_s = max(read_s / workers, encoded_s) if workers else read_s + encoded_s
    share = statistics.fmean(speech.durations_s) / max(statistics.fmean(speech.durations_s[row] for row in rows), 1e-3)
    return batch_s / len(rows) * share


def announcement_of(
    model: LaSCLForAudioClassification,
    todo: list[tuple[SpeechDataset, tuple[int, int]]],
    collator: SpeechCollator,
    args: LaSCLTrainingArguments,
    store: ViewStore | None,
) -> str:
    """How many views a frozen encoder is about to hear, how long that takes here and what is kept of it.

    Args:
        todo: of each block that is not known yet its utterances, of one corpus, and their view and epoch.
    """
    num_views = sum(len(part) for part, _ in todo)
    speech, last = max(todo, key=lambda block: (len(block[0]), block[1]))  # an augmented view of the largest corpus
    seconds = 0.0
    if num_views > TIMED_FROM * args.per_device_eval_batch_size:
        seconds = num_views * seconds_of_a_view(model, speech, collator, last, args) / args.world_size
    told = f"about {in_words(seconds)} here, " if seconds else ""
    size_gb = 4 * num_views * model.config.pooled_size / GB
    places = {place for _, place in todo}
    epochs = len({epoch for view, epoch in places if view})
    num_utterances = sum(len(part) for part in {id(part): part for part, _ in todo}.values())
    of = [*(["clean"] if (0, 0) in places else []), *([f"augmented in {epochs} epochs"] if epochs > 1 else [])]
    of += ["augmented"] if epochs == 1 else []
    where = f"kept in {store.folder}, where every later run finds them" if store else "in memory, for this run alone"
    sentences = [
        f"Encoding {num_views} views of {num_utterances} utterances ({', '.join(of)}): {told}{size_gb:.3f} GB, {where}."
    ]
    if store:
        sentences += ["Stopped meanwhile, it goes on where it was."] if args.world_size == 1 else []
        if size_gb * GB > store.most_bytes:
            sentences.append(f"That is more than --views_gb {store.most_bytes / GB:g} keeps.")
    if seconds > LONG_S:
        has_window = model.config.audio_config.model_type == "whisper" and model.config.audio_window == "fixed"
        ways = [*(["--audio_window utterance"] if has_window else []), *_ways(speech, epochs)]
        sentences.append(f"Shorter by {', '.join(ways)}.")
    return " ".join(sentences)


def _ways(speech: SpeechDataset, epochs: int) -> list[str]:
    """What makes an encoding shorter."""
    ways = [f"--augmentation_period {epochs // 2}"] if epochs > 1 else []
    ways += ["--num_views 2"] if speech.num_views > 2 else []
    ways += ["--augmentation none"] if epochs else []
    ways += [f"--max_duration_s {statistics.median(speech.durations_s):.0f}"] if len(ways) < 3 else []
    return [*ways, "a smaller --audio_encoder", "--dataloader_num_workers"]

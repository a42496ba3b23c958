"""A checkpoint in the browser: label probabilities of a recording, when they turn, and one's own words.

    python space/app.py --model PATH_OR_HUB_NAME [--revision REVISION] [--host HOST] [--port PORT]

In a Space the model is that of the variables LASCL_MODEL and LASCL_REVISION, else of `space.json` beside this file.
Nothing of a visitor is kept: a recording lies in a folder of this process until its visitor removes it or leaves.

Letters: K labels, S segments, C columns of the drawn waveform.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import copy
import html
import itertools
import json
import os
import re
import secrets
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from huggingface_hub import ModelCard
from transformers.utils import cached_file

from lascl.data.audio import read_blocks, stated_size, too_many_values
from lascl.inference import Recogniser, Window, segments, stream
from lascl.modeling_lascl import load_text_encoder
from lascl.space import timeline


try:
    import gradio as gr
    import gradio.processing_utils
    import gradio.route_utils
    from starlette.middleware import Middleware
    from starlette.responses import PlainTextResponse
except ModuleNotFoundError:
    raise ModuleNotFoundError('The demo needs Gradio: pip install "lascl[space]".') from None

MAX_DURATION_S = 600
MIN_DURATION_S = 0.1
MAX_MB = 50
MAX_VALUES = MAX_DURATION_S * 96_000 * 2  # samples times channels: of stereo at 96 kHz the whole time
VISITOR_MB, ALL_MB = 200, 2000  # that wait in this process's folder to be heard, of one address and of all
MAX_WORDS, MAX_WORD_LENGTH, MAX_TEMPLATE_LENGTH = 20, 60, 120
WHOLE_S = 10  # as long as the utterances of training: up to here a recording is heard at once, if the model can
WINDOW_S = 3  # of longer ones; or as long as the model hears, if that is less
HOPS_PER_WINDOW = 4
MAX_WINDOWS = 400  # of a long recording the hop grows, so that its visitor does not wait for ever
BATCH_SIZE = 8
CONCURRENT = 2  # visitors who are answered at once; the others wait
MAX_WAITING = 32
KEPT_S = 1800  # after this a recording is deleted whatever its visitor does


class Refusal(ValueError):
    """What a visitor gave cannot be answered. The message is one sentence for the visitor; it names no path."""


# ------------------------------------------------------------------------------------------------------------ answers


@dataclass
class Answer:
    """What is said of a recording.

    Args:
        labels: K words.
        probabilities: (K,), the mean over the recording's time.
        segments: S stretches of the same label.
        heights: (C,) of the drawn waveform.
        duration_s: of the recording.
        window_s, num_windows: what was heard at once, and how often.
        untrained: those of `labels` that the model was not trained on, in this template.
    """

    labels: list[str]
    probabilities: np.ndarray
    segments: list[Window]
    heights: np.ndarray
    duration_s: float
    window_s: float
    num_windows: int
    untrained: list[str]


def answer(
    recogniser: Recogniser,
    recording: str | Path | None,
    words: str = "",
    template: str = "",
    *,
    text_encoder: tuple | None = None,
    progress: Callable[[float], object] = lambda share: None,
) -> Answer:
    """Hears a recording. Other words than the model's own are embedded for this answer alone.

    Args:
        recogniser: the model with its own labels; it is left as it is.
        recording: a file.
        words: labels, separated by commas; empty: the model's own.
        template: what the text encoder reads for a word, with `{label}`; empty: the model's own.
        text_encoder: of `load_words`; `None`: no other words.
        progress: is told the share that was heard, now and then.

    Raises:
        Refusal: no recording, one that is damaged, too long, too short or too large; words that cannot be used.
    """
    if recording is None:
        raise Refusal("Record something or choose a file first.")
    recogniser, untrained = with_words(recogniser, words, template, text_encoder)
    samples = read_recording(Path(recording), recogniser.sampling_rate)
    duration_s = len(samples) / recogniser.sampling_rate
    if duration_s < (shortest_s := max(MIN_DURATION_S, recogniser.min_duration_s)):
        raise Refusal(f"Your recording is too short; it must last at least {shortest_s:g} seconds.")
    window_s, hop_s = windowing(duration_s, recogniser.max_duration_s)
    windows = []
    try:
        for window in stream(recogniser, samples, window_s=window_s, hop_s=hop_s, batch_size=BATCH_SIZE):
            windows.append(window)
            progress(window.end_s / duration_s)
    except ValueError as error:  # samples that no model can make sense of
        raise Refusal(f"Your recording cannot be heard. {error}") from None
    merged = list(segments(windows, recogniser.labels))
    return Answer(
        labels=recogniser.labels,
        probabilities=sum((one.end_s - one.start_s) * one.probabilities for one in merged) / duration_s,
        segments=merged,
        heights=timeline.peaks(samples),
        duration_s=duration_s,
        window_s=window_s,
        num_windows=len(windows),
        untrained=untrained,
    )


def read_recording(path: Path, sampling_rate: int) -> np.ndarray:
    """(samples,) of a visitor's file, mono float32; never more in memory than is taken.

    Raises:
        Refusal: missing, too large, too long, or no audio.
    """
    try:
        size_mb = path.stat().st_size / 1e6
        if size_mb > MAX_MB:
            raise Refusal(f"Your recording has {size_mb:.1f} MB; at most {MAX_MB} MB are taken: give a part of it.")
        too_long = f"Your recording is too long; at most {MAX_DURATION_S // 60} minutes are taken: give a part of it."
        # A few megabytes of silence can be hours, or hundreds of megabytes a second: the header is asked first.
        stated_s, stated_values = stated_size(path) or (0, 0)
        if stated_s > MAX_DURATION_S:
            raise Refusal(too_long)
        if stated_values > MAX_VALUES:
            raise Refusal(f"Your recording {too_many_values(MAX_VALUES)}")
        blocks, num_samples = [], 0
        for block in read_blocks(path, sampling_rate=sampling_rate, max_values=MAX_VALUES):
            blocks.append(block)
            num_samples += len(block)
            if num_samples > MAX_DURATION_S * sampling_rate:
                raise Refusal(too_long)
    except FileNotFoundError:
        raise Refusal("Your recording is no longer here: choose the file once more.") from None
    except Refusal:
        raise
    except ValueError as error:
        raise Refusal(without_path(str(error), path)) from None
    return np.concatenate(blocks)


def without_path(message: str, path: Path) -> str:
    """A sentence of `read_blocks`, for those who must not learn where the file lies."""
    for form in (f"{path}: ", f"{path.resolve()}: "):
        message = message.removeprefix(form)
    for form in (str(path.resolve()), str(path)):
        message = message.replace(form, "it")
    return f"Your recording {message}" if message[:3] in ("is ", "hol", "can") else f"Your recording: {message}"


def windowing(duration_s: float, hears_s: float) -> tuple[float, float]:
    """Window and hop in seconds for a recording, by what the model hears at once."""
    if duration_s <= min(WHOLE_S, hears_s):
        return duration_s, duration_s
    window_s = min(WINDOW_S, hears_s)
    return window_s, min(window_s, max(window_s / HOPS_PER_WINDOW, (duration_s - window_s) / MAX_WINDOWS))


# ---------------------------------------------------------------------------------------------------------- own words


_embedding = threading.Lock()  # a tokenizer cannot be used by two threads at once


def load_words(recogniser: Recogniser) -> tuple | None:
    """Text encoder and tokenizer for other words, loaded once; `None` if the model cannot answer them."""
    if recogniser.model.config.prediction_head == "classifier":
        return None
    try:
        return load_text_encoder(*recogniser.model.lascl._find_text_encoder())
    except (OSError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        print(f"The page has no box for own words: the text encoder cannot be loaded ({reason}).", file=sys.stderr)
        return None


def with_words(
    recogniser: Recogniser, words: str, template: str, text_encoder: tuple | None
) -> tuple[Recogniser, list[str]]:
    """A recogniser that answers a visitor's words, and those among them that were not trained.

    It is another one, which shares the weights and nothing else: what one visitor sets no other sees.

    Raises:
        Refusal: words or a template that cannot be used.
    """
    config = recogniser.model.config
    labels = list(dict.fromkeys(word for word in (" ".join(part.split()) for part in words.split(",")) if word))
    template = template.strip()
    trained = recogniser.trained_labels or config.labels  # a checkpoint may have been saved with other words
    if not labels and not template:
        return recogniser, [label for label in config.labels if label not in trained]
    if text_encoder is None:
        raise Refusal("This model answers its own labels only: leave the words empty.")
    labels = labels or config.labels
    if len(labels) < 2:
        raise Refusal("Give at least two words, separated by commas: of a single one the model is always sure.")
    if len(labels) > MAX_WORDS or max(map(len, labels)) > MAX_WORD_LENGTH:
        raise Refusal(f"Give at most {MAX_WORDS} words of at most {MAX_WORD_LENGTH} letters each.")
    if template and ("{label}" not in template or len(template) > MAX_TEMPLATE_LENGTH):
        raise Refusal(
            f"The template must hold {{label}}, as in 'a {{label}} voice', and at most {MAX_TEMPLATE_LENGTH} letters."
        )
    is_trained_template = template in ("", config.label_template)
    untrained = [label for label in labels if label not in trained or not is_trained_template]
    tensors = itertools.chain(recogniser.model.parameters(), recogniser.model.buffers())
    model = copy.deepcopy(recogniser.model, {id(tensor): tensor for tensor in tensors})
    with _embedding:
        model.lascl._set_labels(labels, template or None, *text_encoder)
    return Recogniser(model, recogniser.feature_extractor, list(trained) if untrained else None), untrained


# --------------------------------------------------------------------------------------------------------- recordings


class OwnUpload(gradio.route_utils.GradioUploadFile):
    """Gradio keeps an upload under a hash of its content, so that visitors who bring the same share one file: the one
    who leaves first would delete it under the other. Here every upload has a place of its own."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.sha.update(secrets.token_bytes(16))


async def refuse_address(url: str):
    """In place of Gradio's fetching of addresses that programs name, which knows no limit: files are sent."""
    raise gr.Error("Send a file: this page fetches nothing from addresses.", print_exception=False)


class Quota:
    """ASGI middleware: an upload is refused while its visitor, or all together, have too much waiting to be heard.

    A visitor is an address. Behind proxies it is what the nearest of them says; whoever makes up another still meets
    the limit of all.

    Args:
        app: what is behind.
        folder: where uploads lie.
    """

    def __init__(self, app, folder: Path):
        self.app, self.folder = app, folder
        self.kept = {}  # visitor -> uploads, of which some may be gone
        self.coming = collections.Counter()  # visitor -> bytes that are being sent

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http" or scope["method"] != "POST" or not scope["path"].endswith("/upload"):
            return await self.app(scope, receive, send)
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        visitor = headers.get("x-forwarded-for", "").split(",")[-1].strip() or (scope["client"] or ("",))[0]
        length = headers.get("content-length", "")
        size = min(int(length), MAX_MB * 1_000_000) if length.isdigit() else MAX_MB * 1_000_000
        if self.held(visitor) + size > VISITOR_MB * 1e6 or self.held_by_all() + size > ALL_MB * 1e6:
            said = "Too many recordings wait to be heard here. Try again when the first of them are answered."
            return await PlainTextResponse(said, status_code=413)(scope, receive, send)
        body = []

        async def note(message):
            if message["type"] == "http.response.body":
                body.append(message.get("body", b""))
            await send(message)

        self.coming[visitor] += size
        try:
            return await self.app(scope, receive, note)
        finally:
            self.coming[visitor] -= size
            self.coming += collections.Counter()  # forgets who sends nothing
            with contextlib.suppress(ValueError):  # no list: it was refused
                self.kept.setdefault(visitor, []).extend(Path(path) for path in json.loads(b"".join(body)))

    def held(self, visitor: str) -> int:
        """Bytes of a visitor; what was deleted is forgotten."""
        self.kept = {who: there for who, paths in self.kept.items() if (there := [p for p in paths if p.is_file()])}
        return self.coming[visitor] + sum(map(size_of, self.kept.get(visitor, ())))

    def held_by_all(self) -> int:
        """Bytes of all, broken uploads included."""
        return sum(self.coming.values()) + sum(map(size_of, self.folder.rglob("*")))


def size_of(path: Path) -> int:
    try:
        return path.lstat().st_size
    except OSError:  # gone meanwhile
        return 0


def delete(recording: Path):
    """Deletes an uploaded file and its folder."""
    recording.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # gone already
        recording.parent.rmdir()


def sweep(folder: Path, older_than_s: float):
    """Deletes what has lain in a folder for longer.

    Gradio's `delete_cache` knows finished uploads alone: those that were broken off, and the folders, would stay.
    """
    for path in sorted(folder.rglob("*"), reverse=True):  # files before their folders
        try:
            if time.time() - path.lstat().st_mtime > older_than_s:
                path.rmdir() if path.is_dir() else path.unlink()
        except OSError:  # another was faster, or the folder holds something newer
            pass


def sweep_forever(folder: Path):
    while True:
        time.sleep(60)
        sweep(folder, KEPT_S)


# ----------------------------------------------------------------------------------------------------------- the page


class Visits:
    """What the page does when a visitor asks, brings a recording or leaves.

    Args:
        recogniser: the model with its own labels.
        text_encoder: for a visitor's own words, see `load_words`.
    """

    def __init__(self, recogniser: Recogniser, text_encoder: tuple | None):
        self.recogniser, self.text_encoder = recogniser, text_encoder
        self.recordings = {}  # visitor -> recording on the page

    def listen(self, recording, words, template, progress=lambda share: None) -> Answer:
        how = {"text_encoder": self.text_encoder, "progress": progress}
        try:
            return answer(self.recogniser, recording, words or "", template or "", **how)
        except Refusal:
            raise
        except Exception as error:
            # Without the message, which may name the visitor's file.
            print(f"No answer: {type(error).__name__}", *traceback.format_tb(error.__traceback__), file=sys.stderr)
            raise Refusal("That went wrong on this side: try again, or tell whoever runs this page.") from None

    def for_page(self, recording, words, template, progress=gr.Progress()):  # noqa: B008
        try:
            found = self.listen(recording, words, template, lambda share: progress(share, desc="Listening"))
        except Refusal as refusal:
            # A screen reader says an alert at once.
            said = f'<p class="refused" role="alert">{html.escape(str(refusal))}</p>'
            return gr.Column(visible=False), None, said, "", ""
        return gr.Column(visible=True), *shown(found)

    def for_program(self, recording, words, template):
        try:
            return as_json(self.listen(recording, words, template))
        except Refusal as refusal:
            raise gr.Error(str(refusal), print_exception=False) from None
        finally:
            if recording is not None:
                delete(Path(recording))

    def keep(self, recording, request: gr.Request):
        before = self.recordings.pop(request.session_hash, None)
        if recording is not None:
            self.recordings[request.session_hash] = recording
        if before not in (None, recording):
            delete(Path(before))

    def leave(self, request: gr.Request):
        self.keep(None, request)


def build(recogniser: Recogniser, name: str = "", about: str = "") -> gr.Blocks:
    """The page.

    Args:
        recogniser: the model with its own labels.
        name: of the model, as visitors read it.
        about: Markdown: what the model is and what its limits are, see `about_model`.
    """
    visits = Visits(recogniser, load_words(recogniser))
    with gr.Blocks(title="LaSCL: emotion in speech", analytics_enabled=False) as page:
        gr.Markdown(introduction(recogniser, name), elem_classes="lead")
        with gr.Row(equal_height=False):
            with gr.Column():
                audio, words, template = _questions(takes_words=visits.text_encoder is not None)
                button = gr.Button("Recognise", variant="primary")
                said = gr.HTML(elem_classes="said")
            with gr.Column():
                gr.HTML('<p class="hint">The answer appears here.</p>', elem_classes="waiting")
                # An empty one has a label where ARIA allows none.
                with gr.Column(visible=False) as result:
                    label = gr.Label(label="Probabilities")
        figure = gr.HTML()
        table = gr.HTML()
        gr.Markdown(about, elem_classes="about")

        results, at_once = [result, label, said, figure, table], {"queue": False, "show_progress": "hidden"}
        listening = {"concurrency_limit": CONCURRENT, "concurrency_id": "listening"}  # pages and programs together
        gr.on(
            [button.click, words.submit, template.submit],
            visits.for_page,
            [audio, words, template],
            results,
            **listening,
            api_visibility="private",
        )
        audio.change(visits.keep, audio, None, **at_once, api_visibility="private")
        nothing = (None, "", "", "")
        audio.clear(lambda: (gr.Column(visible=False), *nothing), None, results, **at_once, api_visibility="private")
        gr.Button(visible=False).click(
            visits.for_program,
            [audio, words, template],
            gr.JSON(visible=False, label="Answer"),
            api_name="recognise",
            **listening,
        )
        page.unload(visits.leave)
    return page


def _questions(takes_words: bool) -> tuple[gr.Audio, gr.Textbox, gr.Textbox]:
    """The boxes for a recording, own words and their template."""
    audio = gr.Audio(label="Recording", sources=["upload", "microphone"], type="filepath", buttons=[])
    gr.Markdown(
        f"At most {MAX_DURATION_S // 60} minutes and {MAX_MB} MB. The recording is sent to this server to "
        "be heard, and deleted when you remove it or leave the page, after "
        f"{KEPT_S // 60} minutes at the latest.",
        elem_classes="hint",
    )
    # `page.js` writes here.
    gr.HTML(f'<p class="refused" role="alert" id="too-large" data-max-mb="{MAX_MB}"></p>')
    with gr.Group(visible=takes_words):
        words = gr.Textbox(
            label="Your own words (optional)",
            info="Separated by commas. The model was not trained on them.",
            placeholder="joyful, furious, weary",
            max_length=MAX_WORDS * (MAX_WORD_LENGTH + 2),
        )
        template = gr.Textbox(
            label="Template (optional)",
            info="The phrase that the text encoder reads; {label} stands for the word.",
            placeholder="a {label} voice",
            max_length=MAX_TEMPLATE_LENGTH,
        )
    return audio, words, template


def shown(found: Answer) -> tuple[dict[str, float], str, str, str]:
    """Values of the page: probabilities, what is said about them, the timeline, the table."""
    probabilities = {label: float(share) for label, share in zip(found.labels, found.probabilities)}
    if found.num_windows == 1:
        how = f"{found.duration_s:.1f} seconds, heard at once."
    else:
        how = (
            f"{found.duration_s:.1f} seconds, heard in {found.num_windows} windows of {found.window_s:g} seconds that "
            "overlap. The probabilities are the mean over the time."
        )
    said = f"<p>{how}</p>"
    if found.untrained:
        names = ", ".join(map(html.escape, found.untrained))
        said += (
            f'<p class="untrained"><strong>Not trained:</strong> {names}. The model knows such words only by what its '
            "text encoder takes them to mean; nobody has measured how well it answers them.</p>"
        )
    figure = timeline.figure(found.segments, found.labels, found.heights, found.duration_s)
    # A status: a screen reader says that the answer has come.
    return probabilities, f'<div role="status">{said}</div>', figure, timeline.table(found.segments, found.labels)


def as_json(found: Answer) -> dict:
    """An answer for programs."""
    return {
        "probabilities": {label: float(share) for label, share in zip(found.labels, found.probabilities)},
        "untrained": found.untrained,
        "segments": [
            {
                "start_s": segment.start_s,
                "end_s": segment.end_s,
                "label": segment.label,
                "probability": float(segment.probabilities.max()),
            }
            for segment in found.segments
        ],
    }


def introduction(recogniser: Recogniser, name: str) -> str:
    labels = ", ".join(recogniser.labels)
    return (
        "# How does this voice sound?\n\n"
        f"Record a voice or choose a file: the model says which of its labels is nearest, and when that changes. "
        "A label is how listeners may hear a voice, not what a person feels.\n\n"
        f"Model: **{name}**. Labels: {labels}."
    )


# ---------------------------------------------------------------------------------------------------------- the model


def about_model(name_or_path: str, revision: str | None = None) -> str:
    """Markdown of what a checkpoint's card says of the model and of its limits, and where it is."""
    file = cached_file(
        name_or_path,
        "README.md",
        revision=revision or "main",
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    text = ModelCard.load(file, ignore_metadata_errors=True).text if file else ""
    what = re.search(r"^# .*?\n(.*?)^## ", text, re.MULTILINE | re.DOTALL)
    limits = re.search(r"^## Intended use and limits\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    parts = ["## About this model"]
    if what:
        parts.append(re.sub(r"\[([^]]*)\]\(#[^)]*\)", r"\1", what[1]).strip())  # links into the card lead nowhere here
    if not Path(name_or_path).is_dir():
        parts.append(f"Its card: <https://huggingface.co/{name_or_path}>.")
    parts.append("## Intended use and limits")
    parts.append(
        limits[1].strip()
        if limits
        else "The model has no card that tells its limits. A label does not say what a person feels, thinks or "
        "intends: do not use it to decide about a person."
    )
    return "\n\n".join(parts)


def visible_name(name_or_path: str, revision: str | None = None) -> str:
    """A Hub name with its revision; of a folder no more than that it is one."""
    if Path(name_or_path).is_dir():
        return "a local checkpoint"
    return f"{name_or_path}, revision {revision}" if revision else name_or_path


def configured_model() -> tuple[str | None, str | None]:
    """Model and revision of a Space: from its variables, else from `space.json`."""
    if os.environ.get("LASCL_MODEL"):
        return os.environ["LASCL_MODEL"], os.environ.get("LASCL_REVISION") or None
    file = Path(__file__).with_name("space.json")
    settings = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return settings.get("model"), settings.get("revision")


# ------------------------------------------------------------------------------------------------------------ running


def launch(page: gr.Blocks, **where):
    """Serves a page: nothing is reported, remembered or fetched from elsewhere."""
    blue = gr.themes.Color(
        *("#eff7fc", "#d9edf8", "#b3dbf1", "#7fc1e5", "#3f9fd3", "#0072B2", "#00629a", "#005080", "#003f66", "#002f4d"),
        "#001f33",
    )
    theme = gr.themes.Default(primary_hue=blue, font=["system-ui", "sans-serif"], font_mono=["monospace"]).set(
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_400",
    )
    style, script = (
        Path(timeline.__file__).with_name(name).read_text(encoding="utf-8") for name in ("style.css", "page.js")
    )
    return page.queue(max_size=MAX_WAITING).launch(
        theme=theme,
        head=f"<style>{style}</style><script>{script}</script>",  # what Gradio does to `css` loses container queries
        max_file_size=MAX_MB * 1_000_000,
        footer_links=["api"],
        run_history=False,
        enable_monitoring=False,
        share=False,
        ssr_mode=False,
        show_error=False,
        quiet=True,
        **where,
    )


def main(argv: list[str] | None = None):
    """Serves the page until it is stopped. Exits with code 2 and one sentence when there is no model."""
    parser = argparse.ArgumentParser(prog="app.py", description="A LaSCL checkpoint in the browser.")
    parser.add_argument("--model", metavar="PATH_OR_HUB_NAME", help="by default $LASCL_MODEL, or that of space.json")
    parser.add_argument("--revision", help="branch, tag or commit on the Hub")
    parser.add_argument("--host", help="address to listen at; by default this computer alone")
    parser.add_argument("--port", type=int, help="by default the first free one from 7860 on")
    args = parser.parse_args(argv)
    name, revision = (args.model, args.revision) if args.model else configured_model()
    if name is None:
        parser.error("give --model, a checkpoint's folder or its name on the Hub.")
    try:
        recogniser = Recogniser.load(name, revision=revision)
    except (ValueError, OSError) as error:
        parser.exit(2, f"app.py: {(str(error).strip() or type(error).__name__).splitlines()[0]}\n")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what is deleted at the end is deleted then too
    with tempfile.TemporaryDirectory(prefix="lascl-space-") as folder:
        gradio.route_utils.GradioUploadFile = OwnUpload
        gradio.processing_utils.async_ssrf_protected_get = refuse_address
        os.environ["GRADIO_TEMP_DIR"] = folder  # before the page is built: its parts note it
        threading.Thread(target=sweep_forever, args=[Path(folder)], daemon=True).start()
        page = build(recogniser, visible_name(name, revision), about_model(name, revision))
        where = {"server_name": args.host, "server_port": args.port}
        quota = {"middleware": [Middleware(Quota, folder=Path(folder))]}
        _, url, _ = launch(page, **where, app_kwargs=quota, prevent_thread_lock=True)
        print(f"Listening at {url}", flush=True)
        page.block_thread()


if __name__ == "__main__":
    main()

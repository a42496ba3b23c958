"""When the mood of a call turns: `python examples/call_timeline.py MODEL call.wav timeline.png [call.rttm]`.

Prints the segments and draws the probability of each label over the call; given who speaks when, as RTTM or as a CSV
with the columns `path,start,end,speaker`, a line a speaker, coloured by label.
"""

import sys

import matplotlib


matplotlib.use("Agg")  # draws to files, also where there is no screen

import matplotlib.pyplot as plt
import numpy as np

from lascl import predict_files
from lascl.predict import Recogniser, read_segments, segments, stream


def main(name: str, call: str, picture: str, turns: str | None = None):
    model = Recogniser.load(name)
    figure, axes = plt.subplots(figsize=(9, 3), layout="constrained")
    (draw_speakers if turns else draw_windows)(axes, model, turns or call)
    axes.set(xlabel="seconds")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(picture, dpi=150)


def draw_windows(axes, model: Recogniser, call: str):
    windows = list(stream(model, call, window_s=2.0, hop_s=0.5, batch_size=8))
    for segment in segments(windows, model.labels):
        print(f"{segment.start_s:7.1f} to {segment.end_s:7.1f} s  {segment.label}")
    middles = [(window.start_s + window.end_s) / 2 for window in windows]
    axes.stackplot(middles, np.stack([window.probabilities for window in windows], axis=1), labels=model.labels)
    axes.set(ylabel="probability", ylim=(0, 1), xlim=(middles[0], max(middles[-1], middles[0] + 0.5)))


def draw_speakers(axes, model: Recogniser, turns: str):
    answers = sorted(predict_files(model, read_segments(turns)), key=lambda answer: answer.start_s)
    for answer in answers:
        times = f"{answer.start_s:7.1f} to {answer.end_s:7.1f} s"
        print(f"{times}  {answer.failure or answer.label}  {answer.speaker}")
    speakers = sorted({str(answer.speaker) for answer in answers})
    for label in model.labels:
        mine = [answer for answer in answers if answer.label == label]
        places = [speakers.index(str(answer.speaker)) for answer in mine]
        lengths = [answer.end_s - answer.start_s for answer in mine]
        axes.barh(places, lengths, left=[answer.start_s for answer in mine], height=0.6, label=label)
    axes.set_yticks(range(len(speakers)), speakers)


if __name__ == "__main__":
    if len(sys.argv) not in (4, 5):
        sys.exit(__doc__)
    main(*sys.argv[1:])

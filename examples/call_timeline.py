"""When the mood of a call turns: `python examples/call_timeline.py MODEL call.wav timeline.png`.

Prints the segments and draws the probability of each label over the call.
"""

import sys

import matplotlib


matplotlib.use("Agg")  # draws to files, also where there is no screen

import matplotlib.pyplot as plt
import numpy as np

from lascl.predict import Recogniser, segments, stream


def main(name: str, call: str, picture: str):
    model = Recogniser.load(name)
    windows = list(stream(model, call, window_s=2.0, hop_s=0.5, batch_size=8))
    for segment in segments(windows, model.labels):
        print(f"{segment.start_s:7.1f} to {segment.end_s:7.1f} s  {segment.label}")
    middles = [(window.start_s + window.end_s) / 2 for window in windows]
    figure, axes = plt.subplots(figsize=(9, 3), layout="constrained")
    axes.stackplot(middles, np.stack([window.probabilities for window in windows], axis=1), labels=model.labels)
    axes.set(xlabel="seconds", ylabel="probability", ylim=(0, 1), xlim=(middles[0], max(middles[-1], middles[0] + 0.5)))
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(picture, dpi=150)


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(*sys.argv[1:])

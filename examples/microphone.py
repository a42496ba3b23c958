"""What the microphone hears, twice a second: `pip install sounddevice && python examples/microphone.py MODEL [words]`.

`words` are labels of your own, such as "calm, tense, amused". Control-C ends it.
"""

import sys
from contextlib import suppress
from itertools import count

import sounddevice

from lascl.predict import Recogniser, stream


def main(name: str, words: str | None = None):
    labels = [word.strip() for word in words.split(",")] if words else None
    model = Recogniser.load(name, labels=labels)
    with sounddevice.InputStream(model.sampling_rate, channels=1, dtype="float32") as microphone:
        blocks = (microphone.read(model.sampling_rate // 4)[0][:, 0] for _ in count())
        for window in stream(model, blocks, window_s=2.0, hop_s=0.5):
            print(f"{window.end_s:7.1f} s  {window.label:<12} " + "#" * round(40 * window.probabilities.max()))


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    with suppress(KeyboardInterrupt):
        main(*sys.argv[1:])

"""What a trained checkpoint is asked: arrays, files and long recordings in, probabilities of labels out."""

from lascl.inference.recogniser import Recogniser
from lascl.inference.windows import Window, segments, stream


__all__ = ["Recogniser", "Window", "segments", "stream"]

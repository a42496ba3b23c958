"""What a trained checkpoint is asked: arrays, files and long recordings in, probabilities of labels out."""

from lascl.inference.recogniser import Recogniser


__all__ = ["Recogniser"]

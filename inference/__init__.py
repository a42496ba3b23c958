"""What a trained checkpoint is asked: arrays, files and long recordings in, probabilities of labels out.

Names load when first used: a command reads its arguments before PyTorch is imported.
"""

import importlib
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from lascl.inference.files import predict_files
    from lascl.inference.recogniser import Recogniser
    from lascl.inference.windows import Window, segments, stream

_HOMES = {
    "Recogniser": "recogniser",
    "Window": "windows",
    "predict_files": "files",
    "segments": "windows",
    "stream": "windows",
}
__all__ = [
    "Recogniser",
    "Window",
    "predict_files",
    "segments",
    "stream",
]


def __getattr__(name):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)

"""What a trained checkpoint is asked: arrays, files and long recordings in, probabilities of labels out.

Names load when first used: a command reads its arguments before PyTorch is imported.
"""

from typing import TYPE_CHECKING

from lascl.lazy import lazily


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

__getattr__ = lazily(__name__, {name: f"{__name__}.{home}" for name, home in _HOMES.items()})

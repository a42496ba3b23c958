"""What a trained checkpoint is asked: arrays, files and long recordings in, probabilities of labels out.

Names load when first used: a command reads its arguments before PyTorch is imported.
"""

from typing import TYPE_CHECKING

from lascl.lazy import lazily


if TYPE_CHECKING:
    from lascl.data.segments import Segment
    from lascl.inference.boards import MAEBModel, OrukAdapter
    from lascl.inference.files import predict_files
    from lascl.inference.finding import read_segments
    from lascl.inference.recogniser import Recogniser
    from lascl.inference.windows import Window, segments, stream

_HOMES = {
    "MAEBModel": "lascl.inference.boards",
    "OrukAdapter": "lascl.inference.boards",
    "Recogniser": "lascl.inference.recogniser",
    "Segment": "lascl.data.segments",
    "Window": "lascl.inference.windows",
    "predict_files": "lascl.inference.files",
    "read_segments": "lascl.inference.finding",
    "segments": "lascl.inference.windows",
    "stream": "lascl.inference.windows",
}
__all__ = [
    "MAEBModel",
    "OrukAdapter",
    "Recogniser",
    "Segment",
    "Window",
    "predict_files",
    "read_segments",
    "segments",
    "stream",
]

__getattr__ = lazily(__name__, _HOMES)

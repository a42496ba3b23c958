"""Labels of speech files from a folder that `lascl-export` wrote: needs onnxruntime, soundfile and numpy, nothing else.

python examples/onnx_predict.py out/ speech.wav [more.wav ...]
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import soundfile


def main(folder: str, *paths: str):
    folder = Path(folder)
    about = json.loads((folder / "lascl_onnx.json").read_text(encoding="utf-8"))
    labels = np.load(folder / "labels.npz")  # another file of label_embeds, and the same model answers other words
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    for path in paths:
        try:
            samples, sampling_rate = soundfile.read(path, dtype="float32", always_2d=True)  # (samples, channels)
        except soundfile.LibsndfileError as error:
            sys.exit(f"{path}: cannot be read ({error.error_string})")
        duration_s = len(samples) / sampling_rate
        if sampling_rate != about["sampling_rate"]:
            sys.exit(f"{path}: has {sampling_rate} Hz; convert it to {about['sampling_rate']} Hz first.")
        if not 0 < duration_s <= (about["max_duration_s"] or np.inf):
            sys.exit(f"{path}: lasts {duration_s:g} s; give more than 0 s, and at most {about['max_duration_s']} s.")
        # A batch of one. For several, pad at the end to the longest; `lengths` keeps the padding out of the answer.
        inputs = {"input_values": samples.mean(axis=1)[None], "lengths": np.array([len(samples)], dtype=np.int64)}
        if about["prediction_head"] == "label":
            inputs["label_embeds"] = labels["label_embeds"]
        (logits,) = session.run(["logits"], inputs)  # (1, labels)
        probabilities = np.exp(logits[0] - logits[0].max())
        probabilities /= probabilities.sum()
        ranked = sorted(zip(probabilities, labels["labels"]), reverse=True)
        print(f"{path}: " + ", ".join(f"{label} {100 * probability:.1f} %" for probability, label in ranked))


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])

"""Does a checkpoint in fewer bits answer as the plain one does?

    python benchmarks/quantised.py CHECKPOINT DATA_DIR

CHECKPOINT is a LaSCL checkpoint, DATA_DIR a folder with EmoDB. Every way of loading answers all its utterances on the
CPU; compared with float32 are the labels and the probabilities. A way whose package is not installed is left out.
Writes `results/benchmarks/quantised.json`.
"""

from __future__ import annotations

import argparse
import importlib.util
import warnings
from collections.abc import Callable
from functools import partial

import torch
from measuring import save_table
from torch.utils.data import DataLoader
from transformers import AutoFeatureExtractor, BitsAndBytesConfig, TorchAoConfig

from lascl import LaSCLForAudioClassification, load_corpus
from lascl.data import SpeechCollator, SpeechDataset


BATCH_SIZE = 8
NEAR = 0.05  # of a probability
FEW_OUTPUTS = ["gru_rel_pos_linear", "classifier"]  # bitsandbytes' 4 bits want more, on a CPU


def ways(checkpoint: str) -> dict[str, Callable[[], LaSCLForAudioClassification]]:
    """By name, what loads the checkpoint; the first is the plain one."""
    load = partial(LaSCLForAudioClassification.from_pretrained, checkpoint)
    found = {
        "float32": partial(load, dtype=torch.float32),
        "`dtype=torch.bfloat16`": partial(load, dtype=torch.bfloat16),
        "`dtype=torch.float16`": partial(load, dtype=torch.float16),
        "`quantize_dynamic`, int8": lambda: torch.ao.quantization.quantize_dynamic(load().eval(), {torch.nn.Linear}),
    }
    if importlib.util.find_spec("torchao"):
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig

        for name, config in (
            ("torchao, int8 weights", Int8WeightOnlyConfig()),
            ("torchao, int8 weights and activations", Int8DynamicActivationInt8WeightConfig()),
        ):
            found[name] = partial(load, quantization_config=TorchAoConfig(config), dtype=torch.float32)
    if importlib.util.find_spec("bitsandbytes"):
        for name, config in (
            ("bitsandbytes, 8 bits", BitsAndBytesConfig(load_in_8bit=True)),
            ("bitsandbytes, 4 bits", BitsAndBytesConfig(load_in_4bit=True, llm_int8_skip_modules=FEW_OUTPUTS)),
        ):
            found[name] = partial(load, quantization_config=config, dtype=torch.float32)
    return found


@torch.inference_mode()
def answers(model: LaSCLForAudioClassification, batches: list[dict]) -> torch.Tensor:
    """(N, K) probabilities of all utterances."""
    dtype = model.lascl.label_features.dtype
    rows = []
    for batch in batches:
        floats = {n: v.to(dtype) for n, v in batch.items() if isinstance(v, torch.Tensor) and v.is_floating_point()}
        inputs = {**batch, **floats}
        rows.append(model.eval()(**inputs).logits.float().softmax(dim=-1))
    return torch.cat(rows)


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("data_dir")
    options = parser.parse_args(argv)
    warnings.simplefilter("ignore")  # PyTorch's, of what it will move elsewhere
    corpus = load_corpus("emodb", options.data_dir, allow_partial=True)
    extractor = AutoFeatureExtractor.from_pretrained(options.checkpoint)
    longest_s = min(10.0, getattr(extractor, "chunk_length", 10.0))
    speech = SpeechDataset(corpus, range(len(corpus)), sampling_rate=extractor.sampling_rate, max_duration_s=longest_s)
    batches = list(DataLoader(speech, BATCH_SIZE, collate_fn=SpeechCollator(extractor)))
    for batch in batches:
        del batch["labels"]
    plain, rows, measured = None, [], {}
    for name, load in ways(options.checkpoint).items():
        probabilities = answers(load(), batches)
        plain = probabilities if plain is None else plain
        same = int((probabilities.argmax(-1) == plain.argmax(-1)).sum())
        differences = (probabilities - plain).abs().amax(dim=-1)  # (N,)
        largest, near = float(differences.max()), float((differences <= NEAR).float().mean())
        measured[name] = {"same": same, "of": len(plain), "largest_difference": largest, "near": near}
        rows.append([name, f"{same} of {len(plain)}", f"{100 * near:.1f}", f"{largest:.3f}"])
        print(*rows[-1], flush=True)
    save_table(
        "quantised",
        "A checkpoint in fewer bits, on a CPU, against float32",
        ["way", "same labels", f"% with all probabilities within {NEAR}", "largest difference of a probability"],
        rows[1:],
        f"{len(plain)} utterances of EmoDB, in batches of {BATCH_SIZE}; heads trained on whisper-tiny.en as "
        "`recipes/small-corpus.yaml` does, without augmentation.",
        ways=measured,
    )


if __name__ == "__main__":
    main()

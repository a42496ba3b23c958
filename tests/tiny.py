"""What several test files need: tiny encoders of every family, tiny recordings, the shared folder if it is there."""

import csv
import gc
import os
import socket
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from accelerate.state import AcceleratorState
from datasets import ClassLabel, Dataset, Features, Value
from threadpoolctl import threadpool_limits

from lascl import load_corpus, make_folds, report
from lascl.evaluation.figures import draw_figures
from lascl.training import fold
from lascl.training.random_encoders import save_random_audio_encoder, save_random_text_encoder


# Tensors this small are slower on two threads, by far so on busy cores; `make every-cpu` asks for one and for two.
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))
# Trainer collects garbage several times a training: what the imports made is never garbage, and need not be looked at.
gc.collect()
gc.freeze()

# torch's fused attention asks the CPU whether it can pack bfloat16, and not ATEN_CPU_CAPABILITY, and fails where they
# differ. A CPU that cannot is no such case.
if "ATEN_CPU_CAPABILITY" in os.environ:
    torch.backends.cuda.enable_flash_sdp(False)  # of all devices, whatever its name


@pytest.fixture(scope="session", autouse=True)
def fresh_views(tmp_path_factory):
    """No run finds what another test's encoder made of the same audio, unless it is told where to look."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fold, "default_folder", lambda: tmp_path_factory.mktemp("views"))
        decoded = tmp_path_factory.mktemp("decoded")
        patch.setattr(fold, "default_decoded_folder", lambda: decoded, raising=False)
        patch.setenv("HF_ASSETS_CACHE", str(tmp_path_factory.mktemp("assets")))  # of what runs in a process of its own
        yield


@pytest.fixture(scope="session", autouse=True)
def no_figures():
    """Drawing a run's figures takes longer than training a tiny model: reports go without, but for who asks for
    `figures`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "draw_figures", lambda run: ([], []))
        yield


@pytest.fixture(scope="module")
def figures(no_figures):
    """Runs of this module's tests have a report with all its figures, as a user's have."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "draw_figures", draw_figures)
        yield


# wav2vec 2.0 and its kin at a size that runs in milliseconds. Receptive field: 40 + 20 * 2 = 80 samples, stride 40:
# 400 frames a second, of which attention takes the square.
CONVOLUTIONAL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "conv_dim": [8, 8],
    "conv_kernel": [40, 3],
    "conv_stride": [20, 2],
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "vocab_size": 8,
    # No chance in the tiny encoders: tests that want it switch it on.
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "feat_proj_dropout": 0.0,
    "layerdrop": 0.0,
    "apply_spec_augment": False,
}
FINE = {"conv_kernel": [10, 3], "conv_stride": [5, 2]}  # of ten samples a frame, for short waves of many frames
LAYER_NORM = {"feat_extract_norm": "layer", "do_stable_layer_norm": True}
AUDIO_ENCODERS = {
    "wav2vec2-group": {"model_type": "wav2vec2", **CONVOLUTIONAL},
    "wav2vec2-layer": {"model_type": "wav2vec2", **CONVOLUTIONAL, **LAYER_NORM},
    "hubert-group": {"model_type": "hubert", **CONVOLUTIONAL},
    "hubert-layer": {"model_type": "hubert", **CONVOLUTIONAL, **LAYER_NORM},
    "wavlm-group": {"model_type": "wavlm", **CONVOLUTIONAL},
    "wavlm-layer": {"model_type": "wavlm", **CONVOLUTIONAL, **LAYER_NORM},
    "unispeech": {"model_type": "unispeech", **CONVOLUTIONAL},
    "unispeech-sat": {"model_type": "unispeech-sat", **CONVOLUTIONAL},
    "hubert-batch": {"model_type": "hubert", **CONVOLUTIONAL, "conv_pos_batch_norm": True},
    "data2vec-audio": {
        "model_type": "data2vec-audio",
        **{k: v for k, v in CONVOLUTIONAL.items() if not k.startswith("num_conv_pos")},
        "num_conv_pos_embeddings": 2,
        "num_conv_pos_embedding_groups": 2,
        "conv_pos_kernel_size": 3,
    },
    "whisper": {
        "model_type": "whisper",
        "d_model": 16,
        "encoder_layers": 2,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 24,
        "decoder_layers": 1,
        "decoder_attention_heads": 2,
        "decoder_ffn_dim": 24,
        "num_mel_bins": 16,
        "max_source_positions": 100,
        "vocab_size": 8,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "decoder_start_token_id": 3,
    },
}
TEXT_ENCODER = {
    "model_type": "bert",
    "hidden_size": 12,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}
LABELS = ["angry", "happy", "neutral", "sad"]
RATE = 16_000


@pytest.fixture(scope="session")
def audio_encoders(tmp_path_factory) -> dict[str, str]:
    """Folders of tiny audio encoders with random weights, by family."""
    root = tmp_path_factory.mktemp("audio-encoders")
    return {name: str(save_random_audio_encoder(spec, root / name)) for name, spec in AUDIO_ENCODERS.items()}


@pytest.fixture(scope="session")
def text_encoder(tmp_path_factory) -> str:
    """Folder of a tiny text encoder with random weights."""
    return str(save_random_text_encoder(TEXT_ENCODER, tmp_path_factory.mktemp("text-encoder")))


def recording(seed: int, duration_s: float = 0.5) -> np.ndarray:
    """A voiced-like sound: a few harmonics and noise, different for each seed. (samples,) float32."""
    rng = np.random.default_rng(seed)
    t = np.arange(int(duration_s * RATE)) / RATE
    harmonics = sum(rng.uniform(0.05, 0.2) * np.sin(2 * np.pi * k * rng.uniform(90, 250) * t) for k in range(1, 5))
    return (harmonics + 0.02 * rng.standard_normal(len(t))).astype(np.float32)


def flac_that_states(path: Path, rate: int, channels: int, seconds: int) -> Path:
    """A short silence whose header tells of a long one, as a long one's header would."""
    soundfile.write(path, np.zeros((4096, channels), np.int16), rate)
    content = bytearray(path.read_bytes())
    num_samples = rate * seconds  # 36 bits of the header
    content[21] = content[21] & 0xF0 | num_samples >> 32
    content[22:26] = (num_samples & 0xFFFFFFFF).to_bytes(4, "big")
    path.write_bytes(content)
    assert soundfile.info(path).duration == seconds and soundfile.info(path).channels == channels
    return path


@pytest.fixture(scope="session")
def emodb_like(tmp_path_factory) -> Path:
    """Ten speakers with one utterance of each of EmoDB's seven emotions, 0.3 to 0.6 s, under EmoDB's file names."""
    root = tmp_path_factory.mktemp("emodb-like")
    for index, speaker in enumerate(("03", "08", "09", "10", "11", "12", "13", "14", "15", "16")):
        for number, emotion in enumerate("WLEAFNT"):
            samples = recording(seed=10 * index + number, duration_s=0.3 + 0.05 * number)
            soundfile.write(root / f"{speaker}a01{emotion}a.wav", samples, RATE)
    return root


@pytest.fixture(scope="session")
def three_corpora(emodb_like, tmp_path_factory) -> list[dict]:
    """Entries of `load_corpora`: `emodb`, and two manifests whose words and speakers are others and the same. `acted`:
    speakers 1 to 3, of each two utterances of anger, calm and neutral. `calls`: speakers 03 and 2, each in a session of
    its own, of each three utterances of anger, annoyed and neutral."""
    told = {"acted": ("123", "anger calm neutral", 2), "calls": (("03", "2"), "anger annoyed neutral", 3)}
    entries = [{"corpus": "emodb", "data_dir": str(emodb_like)}]
    for corpus, (name, (speakers, words, each)) in enumerate(told.items(), start=1):
        root, number = tmp_path_factory.mktemp(name), 0
        lines = ["path,label,speaker" + (",session" if name == "calls" else "")]
        for speaker in speakers:
            for word in words.split():
                for take in range(each):
                    samples = recording(seed=1000 * corpus + number, duration_s=0.3 + 0.02 * number)
                    soundfile.write(root / f"{speaker}-{word}-{take}.wav", samples, RATE)
                    session = f",{speaker}" if name == "calls" else ""
                    lines.append(f"{speaker}-{word}-{take}.wav,{word},{speaker}{session}")
                    number += 1
        (root / "manifest.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
        entries.append({"name": name, "corpus": "csv", "data_dir": str(root)})
    return entries


@pytest.fixture(scope="session")
def many(three_corpora):
    """Their table: 70, 18 and 18 utterances."""
    from lascl import load_corpora

    return load_corpora(three_corpora, allow_partial=True)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real weights and real speech; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("LASCL_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    if not (folder / "corpora" / "emodb").is_dir():
        pytest.skip(f"needs real weights and speech: no folder {folder} (set LASCL_SHARED)")
    return folder


@pytest.fixture(scope="session")
def two_corpora(tmp_path_factory) -> Dataset:
    """A table of two corpora, 0.06 to 0.16 s: `left` has the speakers a (6 recordings), b (6) and c (3), who are calm,
    fearful or joyful, `right` d (6) and e (3), who are fearful, joyful or in rage."""
    folder, rows = tmp_path_factory.mktemp("two-corpora"), []
    for speaker, count in {"left/a": 6, "left/b": 6, "left/c": 3, "right/d": 6, "right/e": 3}.items():
        for number in range(count):
            path, duration_s = folder / f"{speaker.replace('/', '-')}-{number}.wav", 0.06 + 0.004 * len(rows)
            soundfile.write(path, recording(len(rows), duration_s) * (1 + len(rows) % 5) / 5, RATE)
            corpus = speaker[: speaker.index("/")]
            about = {"corpus": corpus, "speaker": speaker, "label": number % 3 + (corpus == "right"), "session": None}
            rows.append({"id": f"{speaker}/{number}", "audio": str(path), "duration_s": duration_s, **about})
    kinds = dict.fromkeys(("id", "audio", "speaker", "session", "corpus"), Value("string"))
    labels = ClassLabel(names=["calm", "fear", "joy", "rage"])
    table = Dataset.from_list(rows, features=Features({**kinds, "duration_s": Value("float64"), "label": labels}))
    table.info.dataset_name = "many"
    return table


@pytest.fixture(scope="session")
def own_corpus(emodb_like, tmp_path_factory) -> Path:
    """The same files under a manifest without folds, so that a seed draws them."""
    corpus = load_corpus("emodb", emodb_like, allow_partial=True)
    folder = as_own_corpus(corpus, make_folds(corpus), tmp_path_factory.mktemp("own-corpus"))
    lines = (folder / "manifest.csv").read_text(encoding="utf-8").splitlines()
    (folder / "manifest.csv").write_text("".join(f"{line.partition(',')[2]}\n" for line in lines), encoding="utf-8")
    return folder


def as_own_corpus(corpus, folds, folder: Path) -> Path:
    """A manifest in `folder` over the files of a corpus, with its folds as a column; rows in another order."""
    fold_of = {row: fold.number for fold in folds for row in fold.test}
    names = corpus.features["label"].names
    with open(folder / "manifest.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["fold", "path", "speaker", "label", "id"])
        for row in reversed(range(len(corpus))):
            entry = corpus[row]
            writer.writerow([fold_of[row], entry["audio"], entry["speaker"], names[entry["label"]], entry["id"]])
    return folder


class Interrupted(Exception):
    pass


def cut_off(monkeypatch, command, after_steps: int):
    """Runs `train.py`, which ends where it would begin the step behind so many: as if it were killed there."""
    from lascl import LaSCLTrainer, train  # here, so that tests of pure functions do not wait for it

    whole_training_step = LaSCLTrainer.training_step

    def training_step(self, *args, **kwargs):
        if self.state.global_step == after_steps:
            raise Interrupted
        return whole_training_step(self, *args, **kwargs)

    monkeypatch.setattr(LaSCLTrainer, "training_step", training_step)
    with pytest.raises(Interrupted):
        train.main(command)
    monkeypatch.undo()


def loss_and_gradients(trainer, model, batch: dict) -> tuple[float, dict[str, torch.Tensor]]:
    """Of a batch, in float64."""
    model.double().train()
    loss = trainer.compute_loss(model, {**batch, "input_values": batch["input_values"].double()})
    loss.backward()
    return loss.item(), {name: each.grad for name, each in model.named_parameters() if each.requires_grad}


def free_port() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


def _be_one_of_two(rank: int, nodes: int, port: str, function, arguments):
    local = {"LOCAL_RANK": str(rank if nodes == 1 else 0), "LOCAL_WORLD_SIZE": str(2 // nodes)}
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", **local, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    # A fork has no other thread of its parent's: a second one would wait for them for ever.
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    threadpool_limits(1)
    AcceleratorState._reset_state(reset_partial_state=True)  # the tests' process is alone, its children are not
    function(*arguments)


def in_two_processes(function, *arguments, nodes: int = 1):
    """Calls it in each of two processes, on one node or on two, told of each other as torchrun tells them.

    They are forked from this process and have imported what it has, which takes a new one seven seconds. torch cannot
    train in a fork where it sees a GPU: there they start anew.
    """
    start = "spawn" if torch.cuda.is_available() else "fork"
    given = (nodes, free_port(), function, arguments)
    both = torch.multiprocessing.start_processes(_be_one_of_two, given, nprocs=2, join=False, start_method=start)
    deadline = time.monotonic() + 240
    try:
        while not both.join(timeout=5):  # raises what one of them raised
            assert time.monotonic() < deadline, f"{function.__name__} in two processes did not end in 240 s"
    finally:
        for process in both.processes:
            process.kill()


def read_csv(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))

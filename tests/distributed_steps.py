"""Trains tiny models for a few steps and saves what happened; test_distributed.py does so in one process and in two."""

from pathlib import Path
from types import MethodType
from unittest import mock

import torch
from accelerate.utils import convert_outputs_to_fp32
from transformers import AutoFeatureExtractor, set_seed

from lascl import LaSCLForAudioClassification, LaSCLTrainer, LaSCLTrainingArguments, load_corpus
from lascl.data import SpeechCollator, SpeechDataset
from lascl.encoders_lascl import CALL_PRICE


class DoubleCollator(SpeechCollator):
    """Batches in float64, where runs that do the same sums in another order agree to the last but few digits."""

    def __call__(self, items):
        batch = super().__call__(items)
        return {**batch, "input_values": batch["input_values"].double()}


class RecordingDataset(SpeechDataset):
    """Keeps what was asked of it: (epoch, id) pairs."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.seen = []

    def __getitem__(self, index):
        self.seen.append((self.epoch, self.ids[index]))
        return super().__getitem__(index)


class OverSpeech(torch.utils.data.Dataset):
    """What tells of the same utterances something else."""

    def __init__(self, speech):
        self.speech, self.ids, self.num_views, self.set_epoch = speech, speech.ids, speech.num_views, speech.set_epoch
        self.durations_s = speech.durations_s

    def __len__(self):
        return len(self.speech)


class TwoCorpora(OverSpeech):
    """Utterances of EmoDB's seven words as of two corpora, which share some of their words: who speaks, and of words
    that one of them lacks the word, says whose an utterance is. Items hold the words of theirs."""

    CORPORA = ((0, 1, 2, 3), (2, 3, 4, 5, 6))

    def __getitem__(self, index):
        item = self.speech[index]
        own = next(words for words in self.CORPORA[:: 1 if item["id"] < "09" else -1] if item["label"] in words)
        return {**item, "label_mask": torch.isin(torch.arange(7), torch.tensor(own))}


class Voted(OverSpeech):
    """Utterances as three listeners heard them: two say the label, one the next word, which the corpus may lack; of
    every fifth all say something that is no word."""

    def __getitem__(self, index):
        item, votes = self.speech[index], torch.zeros(7)
        if index % 5 != 4:
            votes[item["label"]], votes[(item["label"] + 1) % 7] = 2.0, 1.0
        return {**item, "label": votes}


# Plain gradient descent without clipping: a wrong scale of any gradient shows in the weights, which AdamW hides, and
# parameters whose true gradient is zero do not amplify rounding, as they do in AdamW.
GRADIENT_DESCENT = {
    "global_batch_size": 8,
    "num_train_epochs": 2,
    "optim": "sgd",
    "learning_rate": 0.05,
    "encoder_learning_rate": 0.02,
    "warmup_steps": 0,
    "max_grad_norm": 1e9,  # never reached; given 0, transformers 5.0 logs no norm
}


def train(setting: dict, folder: Path) -> dict:
    """Two views of each of the first 16 utterances, by default for two epochs of two steps; then a prediction of the
    ten utterances behind them. `arguments` of a setting replace those of `GRADIENT_DESCENT`; a `call_price` of 0
    encodes rows of different length apart."""
    prices = {**CALL_PRICE, **({"cpu": setting["call_price"]} if "call_price" in setting else {})}
    with mock.patch.dict(CALL_PRICE, prices):
        return train_at_this_price(setting, folder)


def train_at_this_price(setting: dict, folder: Path) -> dict:
    num_utterances, double = setting.get("utterances", 16), setting.get("double", True)
    args = LaSCLTrainingArguments(
        str(folder),
        per_device_eval_batch_size=2,
        logging_strategy="steps",
        logging_steps=1,
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        **setting.get("arguments", GRADIENT_DESCENT),
    )
    corpus = load_corpus("emodb", setting["data_dir"], allow_partial=True)
    set_seed(7)
    model = LaSCLForAudioClassification.from_encoders(
        setting["audio_encoder"], setting["text_encoder"], corpus.features["label"].names, **setting["model"]
    )
    model = model.double() if double else model
    if "autocast" in setting:  # as accelerate does on a GPU, without scaling: on a CPU it refuses float16
        autocast = torch.autocast("cpu", dtype=setting["autocast"])
        model.forward = MethodType(convert_outputs_to_fp32(autocast(type(model).forward)), model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    extractor = AutoFeatureExtractor.from_pretrained(setting["audio_encoder"])
    audio = {"sampling_rate": extractor.sampling_rate, "max_duration_s": 0.4}
    dataset = RecordingDataset(corpus, range(num_utterances), augmentation="noise", num_views=2, **audio)
    collator = DoubleCollator(extractor) if double else SpeechCollator(extractor)
    wrappers = {"two_corpora": TwoCorpora, "voted": Voted}

    def wrapped(speech):
        for name, wrapper in wrappers.items():
            speech = wrapper(speech) if setting.get(name) else speech
        return speech

    trainer = LaSCLTrainer(model, args, train_dataset=wrapped(dataset), data_collator=collator)
    trainer.train()
    prediction = trainer.predict(wrapped(SpeechDataset(corpus, range(16, 26), **audio)))
    return {
        "processes": args.world_size,
        "rows": args.per_device_train_batch_size,
        "steps": [entry for entry in trainer.state.log_history if "loss" in entry],
        "before": before,
        "after": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "seen": dataset.seen,
        "logits": [torch.from_numpy(logits) for logits in prediction.predictions],
        "metrics": prediction.metrics,
    }


def train_all(settings: dict[str, dict], folder: Path):
    """What one of several processes does: its results are `{name}-{rank}.pt` in `folder`."""
    for name, setting in settings.items():
        result = train(setting, folder / "trainer")
        torch.save(result, folder / f"{name}-{torch.distributed.get_rank()}.pt")
    torch.distributed.destroy_process_group()

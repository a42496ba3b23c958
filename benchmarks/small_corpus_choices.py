"""What helps a small corpus, by validation inside the training sides alone: behind `recipes/small-corpus.yaml`.

    python benchmarks/small_corpus_choices.py emodb --data_dir path/to/emodb --audio_encoder openai/whisper-tiny.en \
        --text_encoder sentence-transformers/all-MiniLM-L6-v2

The encoder is frozen and hears every view once; then the heads are trained anew for every choice. For each fold of
the corpus, whose test side is never looked at, each of the other folds is held out in turn for validation, and all that
is left is trained on. Each choice differs from the recipe in one thing, and is compared with it paired and by speaker,
on validation alone. Writes `results/benchmarks/small_corpus_choices.json`.

Letters: N utterances, L hidden states of the encoder, E epochs until the augmentations repeat, V views, K labels.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import math
from copy import deepcopy
from pathlib import Path

import numpy as np
import torch
from measuring import difference_cells, layer_means, load_listener, save_table
from torch import nn
from transformers import get_cosine_schedule_with_warmup

from lascl import load_corpus, make_folds
from lascl.data import SpeechDataset, UtteranceBatchSampler
from lascl.data.dataset import repeated
from lascl.evaluation.compare import paired_difference
from lascl.evaluation.intervals import speaker_counts
from lascl.evaluation.metrics import scores_from_counts
from lascl.modeling_lascl import LaSCLProjection, embed_texts, joint_loss, load_text_encoder, unit_length
from lascl.training.pooled import OneView, blocks_of
from lascl.training.run_directory import corpus_fingerprint


# `recipes/small-corpus.yaml`, and what it leaves at LaSCL's defaults.
RECIPE = {
    "layers": (1, 2, 3),
    "standardise": True,
    "template": "{label}",
    "views": 2,
    "utterances_per_class": None,
    "learnt_temperature": False,
    "average_weights": None,  # decay of an exponential moving average
    "temperature": 0.07,
    "contrastive_weight": 0.5,
    "divergence_weight": 0.1,
    "contrastive_reduction": "mean",
    "class_weights": None,
    "projection_dim": 256,
    "learning_rate": 1e-3,
    "weight_decay": 0.01,
    "epochs": 20,
}
# Of the emotions that most corpora have: what a voice does.
DESCRIPTIONS = {
    "anger": "a loud, harsh, tense and fast voice, full of rage",
    "boredom": "a slow, flat, monotonous and tired voice without interest",
    "disgust": "a voice that is repelled, creaky and drawn out",
    "fear": "a high, trembling, breathless and anxious voice",
    "happiness": "a bright, lively, cheerful voice that smiles",
    "neutral": "a calm, plain, matter-of-fact voice",
    "sadness": "a quiet, slow, low voice close to tears",
}
CHOICES = {
    "the recipe": {},
    "last layer": {"layers": (-1,)},
    "layer 2": {"layers": (2,)},
    "layers 2, 3": {"layers": (2, 3)},
    "all layers side by side": {"layers": "all"},
    "learned weights over all layers": {"layers": "weighted"},
    "pooled audio as it is": {"standardise": False},
    "template 'a person speaking with {label}'": {"template": "a person speaking with {label}"},
    "template 'a {label} voice'": {"template": "a {label} voice"},
    "a description of each emotion": {"template": "descriptions"},
    "one view": {"views": 1},
    "three views": {"views": 3},
    "four views": {"views": 4},
    "balanced batches": {"utterances_per_class": 4},
    "learnt temperature": {"learnt_temperature": True},
    "moving average of weights": {"average_weights": 0.98},
    "temperature 0.05": {"temperature": 0.05},
    "temperature 0.1": {"temperature": 0.1},
    "temperature 0.2": {"temperature": 0.2},
    "contrastive weight 0.3": {"contrastive_weight": 0.3},
    "contrastive weight 0.9": {"contrastive_weight": 0.9},
    "no divergence": {"divergence_weight": 0.0},
    "divergence weight 1": {"divergence_weight": 1.0},
    "projection of 128": {"projection_dim": 128},
    "projection of 512": {"projection_dim": 512},
    "learning rate 3e-4": {"learning_rate": 3e-4},
    "learning rate 3e-3": {"learning_rate": 3e-3},
    "weight decay 0.1": {"weight_decay": 0.1},
    "weight decay 1": {"weight_decay": 1.0},
    "10 epochs": {"epochs": 10},
    "40 epochs": {"epochs": 40},
}
PERIOD, BATCH_SIZE, SEEDS = 8, 32, (42, 43, 44)


def encode(corpus, audio_encoder: str, max_duration_s: float, period: int | None = None) -> torch.Tensor:
    """(1 + E, N, L, width): mean over frames of every hidden state; the clean view, then E augmented ones."""
    longest_s = min(max(corpus["duration_s"][:]), max_duration_s)
    encoder, extractor = load_listener(audio_encoder, longest_s)
    speech = SpeechDataset(
        corpus,
        range(len(corpus)),
        sampling_rate=extractor.sampling_rate,
        max_duration_s=longest_s,
        augmentation="mixed",
        num_views=2,
        augmentation_period=period or PERIOD,
        seed=SEEDS[0],
    )
    views = (OneView(speech, range(len(corpus)), *place) for place in blocks_of(speech, 2))
    return torch.stack([layer_means(encoder, extractor, view) for view in views])


def kept_views(corpus, audio_encoder: str, max_duration_s: float, period: int, parts: Path) -> torch.Tensor:
    """What `encode` gives, kept in a folder under a name that follows from the corpus, the encoder and the settings."""
    setting = [corpus_fingerprint(corpus), Path(audio_encoder).name, max_duration_s, period, SEEDS[0]]
    path = parts / f"{hashlib.blake2b(json.dumps(setting).encode(), digest_size=8).hexdigest()}.pt"
    if not path.is_file():
        parts.mkdir(parents=True, exist_ok=True)
        torch.save(encode(corpus, audio_encoder, max_duration_s, period), path.with_suffix(".new"))
        path.with_suffix(".new").rename(path)
    return torch.load(path)


class Heads(nn.Module):
    """Projections, classifier, and what a choice adds to them."""

    def __init__(self, choice: dict, width: int, num_layers: int, label_features: torch.Tensor):
        super().__init__()
        self.audio = LaSCLProjection(width, choice["projection_dim"])
        self.text = LaSCLProjection(label_features.shape[1], choice["projection_dim"])
        self.classifier = nn.Linear(width, len(label_features))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        self.label_features = label_features
        self.layer_weights = nn.Parameter(torch.zeros(num_layers)) if choice["layers"] == "weighted" else None
        temperature = torch.tensor(math.log(choice["temperature"]))
        self.log_temperature = nn.Parameter(temperature) if choice["learnt_temperature"] else temperature

    def forward(self, pooled: torch.Tensor):
        if self.layer_weights is not None:
            pooled = torch.einsum("l,bld->bd", self.layer_weights.softmax(0), pooled)
        return unit_length(self.audio(pooled)), unit_length(self.text(self.label_features)), self.classifier(pooled)


def answers(choice: dict, encoded: torch.Tensor, ids, labels: torch.Tensor, train, test, features, seed: int):
    """(len(test),): the nearest label embedding's, after training on `train`."""
    return probabilities(choice, encoded, ids, labels, train, test, features, seed).argmax(-1)


def probabilities(choice: dict, encoded: torch.Tensor, ids, targets: torch.Tensor, train, test, features, seed: int):
    """(len(test), K): what the label head says after training on `train`.

    Args:
        targets: (N,) labels, or (N, K) shares of votes.
    """
    torch.manual_seed(seed)
    layers = range(encoded.shape[2]) if choice["layers"] == "all" else choice["layers"]
    x = encoded if layers == "weighted" else encoded[:, :, list(layers)].flatten(2)  # (1 + E, N, ...)
    if choice["standardise"]:
        clean = x[0, train].double()
        mean, std = clean.mean(0).float(), clean.std(0, correction=0).float()
        x = (x - mean) / torch.where(std > 0, std, 1.0)
    heads = Heads(choice, x.shape[-1], encoded.shape[2], features)
    decayed = [p for name, p in heads.named_parameters() if p.ndim > 1]
    others = [p for name, p in heads.named_parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": choice["weight_decay"]}, {"params": others, "weight_decay": 0.0}],
        lr=choice["learning_rate"],
    )
    per_class, classes = choice["utterances_per_class"], targets if targets.ndim == 1 else targets.argmax(dim=1)
    sampler = UtteranceBatchSampler(
        [ids[row] for row in train],
        global_batch_size=per_class * len(features) if per_class else BATCH_SIZE,
        seed=seed,
        labels=[int(classes[row]) for row in train] if per_class else None,
        utterances_per_class=per_class,
    )
    num_steps = choice["epochs"] * len(sampler)
    schedule = get_cosine_schedule_with_warmup(optimizer, round(0.1 * num_steps), num_steps)
    averaged = deepcopy(heads) if choice["average_weights"] else None
    train = torch.tensor(train)
    for epoch in range(choice["epochs"]):
        sampler.set_epoch(epoch)
        for batch in sampler:
            rows = train[batch]
            # Each epoch of the period is a draw of its own, so further views are those of other epochs.
            blocks = [0, *(1 + (epoch + 2 * view) % (len(x) - 1) for view in range(choice["views"] - 1))]
            audio_embeds, label_embeds, class_logits = heads(torch.cat([x[block, rows] for block in blocks]))
            loss, _ = joint_loss(
                audio_embeds,
                label_embeds,
                class_logits,
                repeated(targets[rows], len(blocks)),
                contrastive_temperature=heads.log_temperature.exp(),
                contrastive_weight=choice["contrastive_weight"],
                divergence_weight=choice["divergence_weight"],
                label_anchors=True,
                contrastive_reduction=choice["contrastive_reduction"],
                class_weights=choice["class_weights"],
            )
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(heads.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            if averaged is not None:
                with torch.no_grad():
                    for kept, new in zip(averaged.parameters(), heads.parameters()):
                        kept.lerp_(new, 1 - choice["average_weights"])
    with torch.no_grad():
        audio_embeds, label_embeds, _ = (averaged or heads)(x[0, test])
        similarity = (audio_embeds @ label_embeds.T).double()
    return (similarity / heads.log_temperature.detach().exp()).softmax(dim=-1).numpy()


def validation_answers(
    choice: dict, encoded, corpus, folds, features: dict[str, torch.Tensor], *, seeds=None, pairs=None
) -> dict:
    """For every fold and seed, (fold, seed), the answers to the utterances of all other folds, each from a training
    that heard neither of the two: row of the corpus -> index of the label. Two folds share one training; `pairs` says
    which, by default all."""
    ids, labels, seeds = corpus["id"][:], torch.tensor(corpus["label"][:]), seeds or SEEDS
    found = {(fold.number, seed): {} for fold in folds for seed in seeds}
    for one, other in pairs or itertools.combinations(folds, 2):
        held_out = {*one.test, *other.test}
        train = [row for row in range(len(corpus)) if row not in held_out]
        test = [*one.test, *other.test]
        for seed in seeds:
            chosen = answers(choice, encoded, ids, labels, train, test, features[choice["template"]], seed)
            told = dict(zip(test, chosen.tolist()))
            found[one.number, seed] |= {row: told[row] for row in other.test}
            found[other.number, seed] |= {row: told[row] for row in one.test}
    return found


def counts_of(found: dict, corpus, folds, only_fold: int | None = None) -> np.ndarray:
    """(S, K, K): confusion matrices by speaker, the mean over folds and seeds."""
    references, speakers, names = corpus["label"][:], corpus["speaker"][:], corpus.features["label"].names
    everyone = sorted(set(speakers))
    mean = np.zeros((len(everyone), len(names), len(names)))
    chosen = {key: told for key, told in found.items() if only_fold in (None, key[0])}
    for told in chosen.values():
        rows = sorted(told)
        counts = speaker_counts(
            [names[told[row]] for row in rows],
            [names[references[row]] for row in rows],
            [speakers[row] for row in rows],
            names,
        )
        present = sorted({speakers[row] for row in rows})
        mean[[everyone.index(speaker) for speaker in present]] += counts / len(chosen)
    return mean


def parser_of_heads(description: str) -> argparse.ArgumentParser:
    """What benchmarks that train the heads alone are told: the encoders, and how much of the audio is heard."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--audio_encoder", required=True)
    parser.add_argument("--text_encoder", required=True)
    parser.add_argument("--max_duration_s", type=float, default=10.0)
    parser.add_argument("--allow_partial", action="store_true")
    return parser


def main(argv: list[str] | None = None):
    parser = parser_of_heads(__doc__)
    parser.add_argument("corpus")
    parser.add_argument("--data_dir", required=True)
    options = parser.parse_args(argv)
    corpus = load_corpus(options.corpus, options.data_dir, allow_partial=options.allow_partial)
    folds, names = make_folds(corpus), corpus.features["label"].names
    encoder, tokenizer = load_text_encoder(options.text_encoder)
    texts = {
        "descriptions": [DESCRIPTIONS.get(name, name) for name in names],
        **{
            template: [template.replace("{label}", name) for name in names]
            for template in {choice.get("template", "{label}") for choice in CHOICES.values()} - {"descriptions"}
        },
    }
    features = {name: embed_texts(encoder, tokenizer, texts[name], pooling="mean") for name in texts}
    encoded = encode(corpus, options.audio_encoder, options.max_duration_s)
    found, counts = {}, {}
    for name, changed in CHOICES.items():
        found[name] = validation_answers({**RECIPE, **changed}, encoded, corpus, folds, features)
        counts[name] = counts_of(found[name], corpus, folds)
        print(f"{name}: {100 * scores_from_counts(counts[name].sum(0))[1]:.1f}", flush=True)
    recipe = next(iter(found))  # what the others are compared with
    best_of_fold = {
        fold.number: max(
            found, key=lambda name: scores_from_counts(counts_of(found[name], corpus, folds, fold.number).sum(0))[1]
        )
        for fold in folds
    }
    rows, measured = [], {}
    for name in found:
        wa, ua, _ = scores_from_counts(counts[name].sum(0))
        times = sum(best == name for best in best_of_fold.values())
        measured[name] = {"wa": wa, "ua": ua, "best_of_folds": times}
        rows.append([name, f"{100 * wa:.1f}", f"{100 * ua:.1f}", "", "", times])
        if name != recipe:
            differences, intervals, p_values = paired_difference(np.stack([counts[recipe], counts[name]], axis=1))
            measured[name] |= {"difference": differences[1], "interval": intervals[1], "p": p_values[1]}
            rows[-1][3:5] = difference_cells(differences[1], intervals[1], p_values[1])
    encoder_name, others = Path(options.audio_encoder).name, len(folds) - 1
    save_table(
        "small_corpus_choices",
        f"Choices for a small corpus ({options.corpus}, {encoder_name} frozen), by validation in training, per cent",
        ["choice", "WA", "UA", "UA less the recipe's, points", "p", f"best for, of {len(folds)} folds"],
        rows,
        f"Mean over {len(SEEDS)} seeds and over the {others} folds that can be left out beside an utterance's own. In "
        "brackets 95 % intervals over speakers; p of a paired test over speakers, not corrected for the number of "
        "choices.",
        scores=measured,
    )


if __name__ == "__main__":
    main()

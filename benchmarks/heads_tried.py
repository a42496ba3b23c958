"""What was tried on the states of a frozen encoder, in corpora that nobody trained on and within corpora, and what each
thing brought: by validation inside the training sides alone.

    python benchmarks/heads_tried.py emodb=path/to/emodb ravdess=path/to/ravdess emovo=path/to/emovo nemo:csv=path \
        --audio_encoder openai/whisper-base --text_encoder sentence-transformers/all-MiniLM-L6-v2 --parts runs/parts

Unheard: of four corpora one is left out and never looked at, another is held back, the other two train; the corpus
held back is answered in its own words. Every pair of training corpora serves twice, as either of the others is the one
left out. States are standardised by what was trained on, or each corpus by its own (of the corpus held back that is
transductive: its recordings are used, not its labels). Within: as `small_corpus_choices.py`, of each corpus one fold is
never looked at, the others validate in turn.

The encoder hears each view once; then the heads are trained anew for every choice, which differs from the recipe in
one thing. What is done goes into `--parts`, where the same command goes on. Writes
`results/benchmarks/heads_tried.json`.

Letters: N utterances, V views, L hidden states, W their width, d features, K words, n of a training.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from pathlib import Path

import numpy as np
import small_corpus_choices as choices
import torch
import yaml
from measuring import save_table
from torch import nn
from torch.nn import functional as F
from transformers import AutoFeatureExtractor, get_cosine_schedule_with_warmup

from lascl import LaSCLForAudioClassification, LaSCLTrainingArguments, load_corpora, make_folds
from lascl.data import SpeechCollator, SpeechDataset
from lascl.data.augmentation import delay
from lascl.data.effects import pass_filter
from lascl.data.words import annotated_words, corpus_names, corpus_of_rows
from lascl.modeling_lascl import (
    embed_texts,
    joint_loss,
    load_text_encoder,
    mean_of_heads,
    pooled_statistics,
    unit_length,
)
from lascl.studies.floors import logistic_regression
from lascl.training.pooled import embed_views, parts_of
from lascl.training.recipe import find_recipe
from lascl.training.run_directory import corpus_fingerprint, write_json
from lascl.training.views import ViewStore


SEED, LAYERS = 42, "1,2,3,4,5,6"
STATISTICS, HEADS, FLOOR = ("training", "corpus"), ("label", "both"), "logistic regression"


def channel(samples: np.ndarray, sampling_rate: int) -> np.ndarray:
    """Another recording chain, drawn anew: an echo of a room, a telephone's band, the steps of an 8-bit codec."""
    if np.random.random() < 0.5:
        samples = delay(samples, sampling_rate, np.random.uniform(20, 80))
    if np.random.random() < 0.5:
        samples = pass_filter(samples, sampling_rate, np.random.uniform(200, 400), "highpass")
        samples = pass_filter(samples, sampling_rate, np.random.uniform(3000, 4000), "lowpass")
    if np.random.random() < 0.5:
        loudest = max(np.abs(samples).max(), 1e-6)
        compressed = np.sign(samples) * np.log1p(255 * np.abs(samples) / loudest) / np.log(256)
        stepped = np.round(compressed * 127) / 127
        samples = np.sign(stepped) * (256 ** np.abs(stepped) - 1) / 255 * loudest
    return samples.astype(np.float32)


# How a view is heard: its augmentation, and whether all are equally loud and frames without a voice are left out.
VIEWS = {"as recorded": ("none", False), "equal": ("none", True), "mixed": ("mixed", True), "channel": (channel, True)}
AFFECT = ("arousal", "pleasant", "unpleasant")
RECIPE = {  # `recipes/many-corpora-small.yaml`
    **{"views": ("equal",), "layers": (2, 3, 4), "with_std": False, "pooled_dropout": 0.8, "texts": "phrasings"},
    **{"dropout": 0.0, "width": 256, "depth": 2, "members": 1, "reversal": 0.0, "mixing": 0.0, "temperature": 0.07},
    **{"epochs": 25, "batch_size": 64, "learning_rate": 1.5e-3},
}
WITHIN = {"pooled_dropout": 0.5, "texts": "words", "epochs": 20, "batch_size": 32, "learning_rate": 1e-3}
REFERENCE = "the recipe"
CHOICES = {
    REFERENCE: {},
    "as recorded: no equal levels, all frames": {"views": ("as recorded",)},
    "equal and as recorded side by side": {"beside": "as recorded"},
    "hidden states 2, 3": {"layers": (2, 3)},
    "hidden states 3 to 5": {"layers": (3, 4, 5)},
    "hidden states 2 to 5": {"layers": (2, 3, 4, 5)},
    "hidden states 1 to 6": {"layers": (1, 2, 3, 4, 5, 6)},
    "mean and standard deviation over frames": {"with_std": True},
    "each state of an utterance to mean 0 and deviation 1": {"is_normed": True},
    "no dropout on pooled states": {"pooled_dropout": 0.0},
    "dropout 0.5 on pooled states": {"pooled_dropout": 0.5},
    "dropout 0.7 on pooled states": {"pooled_dropout": 0.7},
    "dropout 0.3 inside the projection": {"dropout": 0.3},
    "projection of 128": {"width": 128},
    "projection of 512": {"width": 512},
    "projection of three layers": {"depth": 3},
    "words alone": {"texts": "words"},
    "descriptions by arousal and valence alone": {"texts": "affect"},
    "a second view: mixed": {"views": ("equal", "mixed")},
    "a second view: channel": {"views": ("equal", "channel")},
    "three views: mixed, channel": {"views": ("equal", "mixed", "channel")},
    "three seeds averaged": {"members": 3},
    "gradient reversal on the corpus": {"reversal": 0.1},
    "the same without reversal": {"reversal": -0.1},
    "two corpora's utterances of a word mixed": {"mixing": 0.4},
    "temperature 0.15": {"temperature": 0.15},
    "40 epochs": {"epochs": 40},
    "each word's similarities standardised over the corpus held back, transductive": {"is_centred": True},
}
OF_SEVERAL = ("reversal", "mixing", "is_centred")  # keys that mean nothing within a corpus


class Table:
    """All corpora, their utterances in all views, and the texts of their words."""

    def __init__(self, corpus, options):
        self.corpus, self.words = corpus, corpus.features["label"].names
        self.names, self.of = corpus_names(corpus), np.array(corpus_of_rows(corpus))
        self.labels = torch.tensor(corpus["label"][:])  # (N,)
        self.own = dict(zip(self.names, torch.from_numpy(annotated_words(corpus))))  # (K,) bool by corpus
        self.masks = torch.stack([self.own[name] for name in self.of])  # (N, K)
        self.states = {name: encoded(corpus, name, options) for name in VIEWS}  # (N, L, 2, W)
        recipe = yaml.safe_load(find_recipe("many-corpora-small").read_text(encoding="utf-8"))
        phrasings, (encoder, tokenizer) = recipe["phrasings"], options.text
        affect = {word: [text for text in texts if text.endswith(AFFECT)] for word, texts in phrasings.items()}
        told = {"words": {}, "phrasings": phrasings, "affect": affect}
        self.texts = {  # (K, d_t)
            kind: torch.stack(
                [
                    embed_texts(encoder, tokenizer, texts.get(word) or [word], pooling="mean").mean(dim=0)
                    for word in self.words
                ]
            )
            for kind, texts in told.items()
        }

    def features(self, choice: dict) -> torch.Tensor:
        """(V, N, d), not standardised; the clean view first."""
        kept = [layer - 1 for layer in choice["layers"]]
        views = [self.states[view][:, kept, : 1 + choice["with_std"]].flatten(1) for view in choice["views"]]
        if "beside" in choice:
            views = [torch.cat([x, self.states[choice["beside"]][:, kept, 0].flatten(1)], dim=1) for x in views]
        x = torch.stack(views)  # (V, N, d)
        if choice.get("is_normed"):
            x = F.layer_norm(x.unflatten(-1, (len(kept), -1)), (x.shape[-1] // len(kept),)).flatten(-2)
        return x


@torch.no_grad()
def encoded(corpus, view: str, options) -> torch.Tensor:
    """(N, L, 2, W): mean and standard deviation over frames of every hidden state but the first."""
    augmentation, is_equal = VIEWS[view]
    settings = {"audio_level": "equal", "pooled_frames": "active"} if is_equal else {}
    window_s = math.ceil(min(max(corpus["duration_s"][:]), options.max_duration_s))
    extractor = AutoFeatureExtractor.from_pretrained(options.audio_encoder, return_attention_mask=True)
    extractor = type(extractor)(**{**extractor.to_dict(), "chunk_length": window_s})
    torch.manual_seed(SEED)
    model = LaSCLForAudioClassification.from_encoders(
        options.audio_encoder,
        options.text_encoder,
        corpus.features["label"].names,
        audio_layers=LAYERS,
        audio_pooling="mean_std",
        audio_window="utterance",
        window_s=window_s,
        **settings,
    )
    speech = SpeechDataset(
        corpus,
        range(len(corpus)),
        sampling_rate=extractor.sampling_rate,
        max_duration_s=options.max_duration_s,
        augmentation=augmentation,
        num_views=1 if augmentation == "none" else 2,
        augmentation_period=1,
        seed=SEED,
    )
    args = LaSCLTrainingArguments(str(options.parts), use_cpu=True, report_to="none", per_device_eval_batch_size=8)
    blocks = embed_views(
        model, speech, SpeechCollator(extractor), {}, args, ViewStore(options.parts / "views", float("inf"))
    )
    last = blocks[max(blocks)]  # the augmented view, if there is one
    pooled = torch.cat(list(parts_of(last, range(len(corpus)))))
    return pooled.float().unflatten(1, (len(LAYERS.split(",")), 2, -1))


# ------------------------------------------------------------------------------------------------------------- heads


class Reversed(torch.autograd.Function):
    """The identity, whose gradient is turned round."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return -gradient


def projection(input_dim: int, width: int, depth: int, dropout: float) -> nn.Sequential:
    """`LaSCLProjection`, of any depth and with dropout in between."""
    hidden = [nn.Linear(input_dim, width), nn.GELU(), nn.Dropout(dropout)]
    for _ in range(depth - 2):
        hidden += [nn.Linear(width, width), nn.GELU(), nn.Dropout(dropout)]
    return nn.Sequential(*hidden, nn.Linear(width, width))


class Heads(nn.Module):
    """Projections and classifier, and what tells corpora apart."""

    def __init__(self, choice: dict, num_features: int, texts: torch.Tensor, num_corpora: int):
        super().__init__()
        self.choice, self.texts, width = choice, texts, choice["width"]
        self.audio = projection(num_features, width, choice["depth"], choice["dropout"])
        self.text = projection(texts.shape[1], width, 2, 0.0)
        self.classifier, self.corpus = nn.Linear(num_features, len(texts)), nn.Linear(width, num_corpora)
        nn.init.xavier_uniform_(self.classifier.weight)
        nn.init.zeros_(self.classifier.bias)

    def loss(self, x, labels, masks, corpora) -> torch.Tensor:
        """Eq. 9 of standardised states (B, d), and what the choice adds."""
        x = F.dropout(x, self.choice["pooled_dropout"])
        audio_embeds = unit_length(self.audio(x))
        loss, _ = joint_loss(
            audio_embeds,
            unit_length(self.text(self.texts)),
            self.classifier(x),
            labels,
            contrastive_temperature=self.choice["temperature"],
            contrastive_weight=0.5,
            divergence_weight=0.1,
            label_anchors=True,
            label_mask=masks,
        )
        if weight := self.choice["reversal"]:
            told = self.corpus(Reversed.apply(audio_embeds) if weight > 0 else audio_embeds)
            loss = loss + abs(weight) * F.cross_entropy(told, corpora)
        return loss

    def probabilities(self, x: torch.Tensor, offered: torch.Tensor, known: torch.Tensor) -> dict[str, torch.Tensor]:
        """Of both ways to answer (n, K), 0 for words that are not offered."""
        similarity = unit_length(self.audio(x)) @ unit_length(self.text(self.texts)).T / self.choice["temperature"]
        if self.choice.get("is_centred"):  # each word's over these utterances
            spread = similarity.std(dim=0)
            similarity = (similarity - similarity.mean(dim=0)) / spread * spread.mean()
        label = similarity.masked_fill(~offered, -torch.inf).softmax(dim=-1)
        classes = [k if offered[k] and known[k] else None for k in range(len(offered))]
        return {"label": label, "both": mean_of_heads(label, self.classifier(x), classes)}


def fit(choice: dict, x, labels, masks, corpora, texts, seed: int) -> Heads:
    """The heads, trained on standardised states (V, n, d) of a training side."""
    torch.manual_seed(seed)
    heads = Heads(choice, x.shape[-1], texts, int(corpora.max()) + 1)
    decayed = [p for p in heads.parameters() if p.ndim > 1]
    others = [p for p in heads.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}], lr=choice["learning_rate"]
    )
    num_batches = math.ceil(len(labels) / choice["batch_size"])
    num_steps = choice["epochs"] * num_batches
    schedule = get_cosine_schedule_with_warmup(optimizer, round(0.1 * num_steps), num_steps)
    for _ in range(choice["epochs"]):
        for rows in torch.randperm(len(labels)).tensor_split(num_batches):
            batch = x[:, rows]  # (V, B, d)
            if choice["mixing"]:
                batch = mixed(choice["mixing"], batch, x, labels, corpora, rows)
            told = [told[rows].repeat(len(x), *[1] * (told.ndim - 1)) for told in (labels, masks, corpora)]
            loss = heads.loss(batch.flatten(0, 1), *told)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(heads.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    return heads.eval()


def mixed(alpha: float, batch, x, labels, corpora, rows) -> torch.Tensor:
    """Each utterance between itself and another corpus's of the same word, where there is one."""
    share = torch.distributions.Beta(alpha, alpha).sample((len(rows), 1))
    partners = []
    for row in rows.tolist():
        others = ((labels == labels[row]) & (corpora != corpora[row])).nonzero()[:, 0]
        partners.append(int(others[torch.randint(len(others), ())]) if len(others) else row)
    return share * batch + (1 - share) * x[:, partners]


def answers(choice: dict, x, table: Table, train, sides: dict[str, np.ndarray]) -> dict[tuple, list[int]]:
    """By side and head, the words that are answered to the clean view of the rows of `sides`, by the heads that were
    trained on the rows `train`. x (V, N, d) is standardised."""
    labels, corpora = table.labels[train], torch.from_numpy(np.unique(table.of[train], return_inverse=True)[1])
    known = torch.zeros(len(table.words), dtype=torch.bool).index_fill(0, labels, True)
    summed = {}
    for member in range(choice["members"]):
        texts = table.texts[choice["texts"]]
        heads = fit(choice, x[:, train], labels, table.masks[train], corpora, texts, SEED + member)
        with torch.no_grad():
            for side, rows in sides.items():
                for head, told in heads.probabilities(x[0, rows], table.masks[rows[0]], known).items():
                    summed[side, head] = summed.get((side, head), 0) + told
    return {key: told.argmax(dim=-1).tolist() for key, told in summed.items()}


def standardise(x: torch.Tensor, groups: list[np.ndarray]) -> torch.Tensor:
    """(V, N, d): by mean and deviation of the clean view of each group of rows; rows of no group as of the first."""
    z = torch.empty_like(x)
    for group, rows in enumerate(groups):
        mean, std = (value.float() for value in pooled_statistics(x[0, rows]))
        members = rows if group else slice(None)
        z[:, members] = (x[:, members] - mean) / std
    return z


def ua(answered, references) -> float:
    """Per cent."""
    answered, references = np.asarray(answered), np.asarray(references)
    return 100 * float(np.mean([(answered[references == word] == word).mean() for word in np.unique(references)]))


# -------------------------------------------------------------------------------------------------------- validation


def unheard(choice: dict, table: Table, with_floor: bool) -> dict[str, dict[str, float]]:
    """UA by head for either statistics and each corpus left out and held back; `with_floor` of logistic regression
    too."""
    found = {}
    x, sides = table.features(choice), {name: np.flatnonzero(table.of == name) for name in table.names}
    for train_names in itertools.combinations(table.names, 2):
        held_back = [name for name in table.names if name not in train_names]
        train = np.flatnonzero(np.isin(table.of, train_names))
        for statistics in STATISTICS:
            z = standardise(x, [train] if statistics == "training" else [train, *sides.values()])
            told = answers(choice, z, table, train, {name: sides[name] for name in held_back})
            for name in held_back:
                references, left_out = table.labels[sides[name]].numpy(), next(n for n in held_back if n != name)
                scores = {head: ua(told[name, head], references) for head in HEADS}
                if with_floor:
                    own = train[table.own[name][table.labels[train]].numpy()]
                    regression = logistic_regression(z[0, own].numpy(), table.labels[own].numpy(), is_several=True)
                    scores[FLOOR] = ua(regression.predict(z[0, sides[name]].numpy()), references)
                found[f"{statistics}, {left_out} left out, {name} held back"] = scores
    return found


def within(choice: dict, table: Table, with_floor: bool) -> dict[str, dict[str, float]]:
    """UA by head for each corpus, the mean over the folds that are never looked at; `with_floor` of logistic
    regression too."""
    x, found = table.features(choice), {}
    of_all = [np.array(fold.test) for fold in make_folds(table.corpus, protocol="within_each", seed=SEED)]
    for name in table.names:
        rows = np.flatnonzero(table.of == name)
        folds = [test for test in (test[table.of[test] == name] for test in of_all) if len(test)]
        told = {}  # by fold that is not looked at and head, answers by row
        for one, other in itertools.combinations(range(len(folds)), 2):
            train = np.setdiff1d(rows, np.concatenate([folds[one], folds[other]]))
            z = standardise(x, [train])
            here = answers(choice, z, table, train, {n: folds[n] for n in (one, other)})
            if with_floor:
                regression = logistic_regression(z[0, train].numpy(), table.labels[train].numpy(), is_several=False)
                here |= {(n, FLOOR): regression.predict(z[0, folds[n]].numpy()).tolist() for n in (one, other)}
            for (validated, how), answered in here.items():
                left_out = other if validated == one else one
                told.setdefault((left_out, how), {}).update(zip(folds[validated].tolist(), answered))
        scores = {key: ua(list(answered.values()), table.labels[list(answered)]) for key, answered in told.items()}
        heads = {how for _, how in told}
        found[name] = {how: float(np.mean([scores[n, how] for n in range(len(folds))])) for how in sorted(heads)}
    return found


def kept(name: str, choice: dict, measure, table: Table, options) -> dict:
    """What was measured of a choice, now or by an earlier start."""
    heard = [corpus_fingerprint(table.corpus), Path(options.audio_encoder).name, options.max_duration_s]
    said = json.dumps([measure.__name__, choice, *heard])
    path = options.parts / f"{hashlib.blake2b(said.encode(), digest_size=8).hexdigest()}.json"
    if not path.is_file():
        write_json(path, measure(choice, table, with_floor=name == REFERENCE))
    found = json.loads(path.read_text(encoding="utf-8"))
    print(f"{measure.__name__}, {name}: {np.mean([scores['label'] for scores in found.values()]):.1f}", flush=True)
    return found


def cells_of(found: dict, first: dict, key: str) -> list[str]:
    """Of the scores whose name begins so: both heads' means, and how often the label head is ahead of the recipe's."""
    names = [name for name in found if name.startswith(key)]
    ahead = sum(found[name]["label"] > first[name]["label"] for name in names)
    means = [f"{np.mean([found[name][head] for name in names]):.1f}" for head in HEADS]
    return [*means, "" if found is first else f"{ahead} of {len(names)}"]


def main(argv: list[str] | None = None):
    parser = choices.parser_of_heads(__doc__)
    parser.add_argument("corpora", nargs="+", metavar="NAME[:CORPUS]=FOLDER")
    parser.add_argument("--parts", type=Path, required=True)
    options = parser.parse_args(argv)
    entries = []
    for pair in options.corpora:
        told, _, folder = pair.partition("=")
        name, _, kind = told.partition(":")
        entries.append({"name": name, "corpus": kind or name, "data_dir": folder})
    options.parts.mkdir(parents=True, exist_ok=True)
    options.text = load_text_encoder(options.text_encoder)
    table = Table(load_corpora(entries, allow_partial=options.allow_partial), options)
    measured = {}
    for name, change in CHOICES.items():
        measured[name] = {"unheard": kept(name, RECIPE | change, unheard, table, options)}
        if not set(change) & set(OF_SEVERAL):
            measured[name]["within"] = kept(name, RECIPE | WITHIN | change, within, table, options)
    save(table, measured, options)


def save(table: Table, measured: dict, options):
    """The table, a row a choice."""
    first = measured[REFERENCE]
    floors = {
        kind: {name: dict.fromkeys(HEADS, scores[FLOOR]) for name, scores in first[kind].items()} for kind in first
    }
    rows = []
    for name, found in ({"logistic regression on the recipe's states": floors} | measured).items():
        cells = [cell for key in STATISTICS for cell in cells_of(found["unheard"], first["unheard"], key)]
        own = cells_of(found["within"], first["within"], "") if "within" in found else [""] * 3
        rows.append([name, *cells, *own])
    heads = ("label head", "both heads", "label head ahead of the recipe's")
    save_table(
        "heads_tried",
        f"What was tried on {Path(options.audio_encoder).name}, frozen, by validation in training: UA, per cent",
        [
            "choice",
            *(f"unheard, {statistics} statistics: {head}" for statistics in STATISTICS for head in heads),
            *(f"within a corpus: {head}" for head in heads),
        ],
        rows,
        f"Corpora: {', '.join(table.names)}. One seed ({SEED}). Unheard: the mean over the corpora left out, which are "
        "never looked at, and those held back of the others; with corpus statistics transductive. Within: the mean "
        f"over corpora, of whose folds one is never looked at; there {WITHIN}. Logistic regression: on the same "
        "states, standardised alike.",
        scores=measured,
    )


if __name__ == "__main__":
    main()

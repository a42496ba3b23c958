"""LaSCLTrainer in one process: loss, optimiser, schedule, logs, epochs, repeatability, evaluation."""

import gc
import math
import sys
import time
from collections import defaultdict

import numpy as np
import pytest
import torch
from distributed_steps import RecordingDataset
from tiny import LABELS, RATE, recording
from torch import nn
from transformers import AutoFeatureExtractor, TrainerCallback, set_seed

from lascl import LaSCLForAudioClassification, LaSCLTrainer, LaSCLTrainingArguments, load_corpus
from lascl.data import SpeechCollator, SpeechDataset
from lascl.modeling_lascl import LaSCLOutput


SETTINGS = {
    "the paper's": {},
    "other weights": {"contrastive_weight": 0.3, "divergence_weight": 0.7, "contrastive_temperature": 0.2},
    "no label anchors": {"label_anchors": False, "prediction_head": "classifier"},
    "no divergence": {"divergence_weight": 0},
    "cross entropy alone": {"contrastive_weight": 0, "prediction_head": "classifier"},
    "no cross entropy": {"contrastive_weight": 1},
    "bracket": {"contrastive_reduction": "bracket", "divergence_weight": 0.7},
    "sum": {"contrastive_reduction": "sum", "contrastive_weight": 0.3},
}
TERMS = {name: ["contrastive", "divergence", "cross_entropy"] for name in SETTINGS} | {
    "no divergence": ["contrastive", "cross_entropy"],
    "cross entropy alone": ["cross_entropy"],
    "no cross entropy": ["contrastive", "divergence"],
}


class Clips(torch.utils.data.Dataset):
    """Sixteen clips of different lengths in memory, two views each. Keeps what was asked of it: (epoch, id) pairs."""

    def __init__(self, count=16):
        self.epoch, self.seen = None, []
        self.items = [
            {
                "id": f"clip-{index}",
                "label": index % len(LABELS),
                "views": [recording(index, 0.05 + 0.01 * (index % 5)), recording(100 + index, 0.06)],
            }
            for index in range(count)
        ]

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        self.seen.append((self.epoch, self.items[index]["id"]))
        return self.items[index]


@pytest.fixture(scope="module")
def build(audio_encoders, text_encoder):
    """A tiny model with the same weights at every call, and its collator."""

    def build(family="wav2vec2-layer", labels=LABELS, **config):
        set_seed(7)
        config = {"projection_dim": 8, **config}
        model = LaSCLForAudioClassification.from_encoders(
            audio_encoders[family], text_encoder, labels, window_s=1, **config
        )
        seconds = {"chunk_length": 1} if family == "whisper" else {}
        return model, SpeechCollator(AutoFeatureExtractor.from_pretrained(audio_encoders[family], **seconds))

    return build


def arguments(folder, **changes):
    values = {
        "global_batch_size": 8,
        "num_train_epochs": 2,
        "logging_strategy": "steps",
        "logging_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
        **changes,
    }
    return LaSCLTrainingArguments(str(folder), **values)


def logged(trainer):
    """The entries of the log that stand for training steps."""
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def weights(model):
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def batch_of(collate, count=8):
    return collate([Clips().items[index] for index in range(count)])


# --------------------------------------------------------------------------------------------- waiting for a device


@pytest.fixture
def looks(monkeypatch):
    """Which functions of LaSCL look at a tensor's values, for which a GPU would have to be waited for, and how."""
    found = set()

    def spied(name):
        stock = getattr(torch.Tensor, name)

        def look(tensor, *args, **kwargs):
            frame = sys._getframe(1)
            if frame.f_globals.get("__name__", "").startswith("lascl."):
                found.add((frame.f_code.co_qualname.partition(".<locals>")[0], name))
            return stock(tensor, *args, **kwargs)

        return look

    for name in ("item", "tolist", "cpu", "numpy", "nonzero", "__bool__", "__int__", "__float__", "__index__"):
        monkeypatch.setattr(torch.Tensor, name, spied(name))
    return found


@pytest.mark.parametrize("chunk_s", [None, 0.1])
@pytest.mark.parametrize("family", ["wavlm-layer", "wav2vec2-group"])
def test_a_step_looks_at_tensors_only_where_they_are_on_the_cpu(family, chunk_s, build, tmp_path, looks):
    model, collate = build(family)
    config = model.lascl.audio_encoder.config
    config.layerdrop, config.apply_spec_augment, config.mask_time_prob, config.mask_time_length = 0.5, True, 0.3, 3
    trainer = LaSCLTrainer(model, arguments(tmp_path, contrastive_chunk_s=chunk_s), train_dataset=Clips())
    batch = batch_of(collate)
    model.train()
    trainer.compute_loss(model, batch).backward()  # the first looks once whether there are label features
    looks.clear()
    trainer.compute_loss(model, batch).backward()
    only_of_a_cpu = {("groups_to_encode", "tolist"), ("_check_joint", "__int__")}
    drawn_on_the_cpu = {("draw", "__float__")}
    made_of_numbers = {("_draw_time_mask", "__int__"), ("LaSCLModel._pool_groups", "__int__")}  # of frames, by stock
    assert looks <= only_of_a_cpu | drawn_on_the_cpu | made_of_numbers
    assert ("_check_joint", "__int__") in looks
    del batch["lengths"]
    trainer.compute_loss(model, batch)
    assert {("padding_of", "__int__"), ("_draw_time_mask", "cpu")} <= looks  # what the numbers spare


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_step_waits_for_no_gpu(build, tmp_path):
    model, collate = build("wavlm-layer")
    trainer = LaSCLTrainer(model, arguments(tmp_path, use_cpu=False), train_dataset=Clips())
    batch = {name: value.cuda() if hasattr(value, "cuda") else value for name, value in batch_of(collate).items()}
    model.train()
    trainer.compute_loss(model, batch).backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        trainer.compute_loss(model, batch).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


# ------------------------------------------------------------------------------ the loss, once more from the paper


def terms_by_loops(outputs, labels, config):
    """Eq. 4, 6 and 8 in float64, from what the model returned."""
    z, e = outputs.audio_embeds.detach().double(), outputs.label_embeds.detach().double()
    logits, y = outputs.class_logits.detach().double().tolist(), labels.tolist()
    points, classes = (torch.cat([z, e]), y + list(range(len(e)))) if config.label_anchors else (z, y)
    s = (points @ points.T).tolist()
    anchors = []
    for i in range(len(s)):
        others = [j for j in range(len(s)) if j != i]
        positives = [j for j in others if classes[j] == classes[i]]
        total = sum(math.exp(s[i][j] / config.contrastive_temperature) for j in others)
        shares = [math.exp(s[i][j] / config.contrastive_temperature) / total for j in positives]
        if shares:
            anchors.append(-sum(math.log(share) for share in shares) / len(shares))
    d = (e @ e.T).tolist()
    divergence = 0.0
    for i in range(len(d)):
        others = [j for j in range(len(d)) if j != i]
        total = 1 + sum(math.exp(d[i][k]) for k in others)
        divergence -= sum(math.log(1 - math.exp(d[i][j]) / total) for j in others)
    entropies = [math.log(sum(map(math.exp, row))) - row[label] for row, label in zip(logits, y, strict=True)]
    reduction = getattr(config, "contrastive_reduction", "mean")
    return {
        "contrastive": sum(anchors) if reduction == "sum" else sum(anchors) / len(anchors),
        "divergence": divergence / len(anchors) if reduction == "bracket" else divergence,
        "cross_entropy": sum(entropies) / len(entropies),
    }


def total_of(terms, config):
    """Eq. 9."""
    tied = terms["contrastive"] + config.divergence_weight * terms["divergence"]
    return config.contrastive_weight * tied + (1 - config.contrastive_weight) * terms["cross_entropy"]


@pytest.mark.parametrize("family", ["wav2vec2-layer", "whisper"])
@pytest.mark.parametrize("setting", SETTINGS)
def test_both_callers_of_the_joint_loss_agree_and_are_equation_9(build, tmp_path, family, setting):
    model, collate = build(family, **SETTINGS[setting])
    batch = batch_of(collate)
    model.train()
    outputs = model(**batch)
    assert outputs.loss is not None and outputs.audio_embeds.shape == (16, 8)
    outputs.loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    expected = terms_by_loops(outputs, batch["labels"], model.config)
    assert outputs.loss.item() == pytest.approx(total_of(expected, model.config), rel=1e-5)

    model.zero_grad(set_to_none=True)
    trainer = LaSCLTrainer(model, arguments(tmp_path))
    loss = trainer.compute_loss(model, batch)
    loss.backward()
    trainer.log({"loss": loss.item()})
    assert "labels" in batch  # the caller's batch is left as it was
    assert loss.item() == pytest.approx(outputs.loss.item(), rel=1e-6)
    assert sorted(outputs.terms) == sorted(TERMS[setting])
    for name, term in outputs.terms.items():
        assert trainer.state.log_history[-1][name] == pytest.approx(term.item(), rel=1e-6)
        assert term.item() == pytest.approx(expected[name], rel=1e-5)
    assert any(gradient is not None and gradient.abs().max() > 1e-3 for gradient in gradients.values())
    for name, parameter in model.named_parameters():
        if gradients[name] is None:
            assert parameter.grad is None, name
        else:
            torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-5, atol=1e-6, msg=name)


# ---------------------------------------------------------------------------------------- optimiser and schedule


@pytest.mark.parametrize("family", ["wav2vec2-group", "wav2vec2-layer", "wavlm-layer", "data2vec-audio", "whisper"])
@pytest.mark.parametrize("frozen", [True, False])
def test_every_trained_parameter_is_in_the_one_group_it_belongs_to(build, tmp_path, family, frozen):
    model, _ = build(family, freeze_feature_encoder=frozen, audio_layers="weighted")
    trainer = LaSCLTrainer(
        model, arguments(tmp_path, encoder_learning_rate=2e-4, learning_rate=3e-3, weight_decay=0.07)
    )
    found = defaultdict(list)
    for group in trainer.create_optimizer().param_groups:
        for parameter in group["params"]:
            found[id(parameter)].append((group["lr"], group["weight_decay"]))

    norms = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, nn.LayerNorm | nn.GroupNorm | nn.modules.batchnorm._BatchNorm)
        for parameter in module.parameters()
    }
    expected = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        spared = id(parameter) in norms or name.endswith("bias") or name == "lascl.layer_weights"
        rate = 2e-4 if name.startswith("lascl.audio_encoder.") else 3e-3
        expected[id(parameter)] = [(rate, 0.0 if spared else 0.07)]
    assert found == expected
    assert {rates[0] for rates in expected.values()} == {(2e-4, 0.0), (2e-4, 0.07), (3e-3, 0.0), (3e-3, 0.07)}
    front_end = ("conv1", "conv2") if family == "whisper" else ("feature_extractor",)
    of_front_end = [
        p for n, p in model.named_parameters() if n.removeprefix("lascl.audio_encoder.").startswith(front_end)
    ]
    assert of_front_end
    assert all((id(parameter) in found) != frozen for parameter in of_front_end)
    assert id(model.lascl.layer_weights) in found


def test_rates_rise_linearly_then_fall_as_a_cosine_to_zero_in_both_groups(build, tmp_path):
    model, collate = build()
    in_encoder = {id(p) for p in model.lascl.audio_encoder.parameters()}
    used = []

    class Rates(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, optimizer, **kwargs):
            rates = {True: set(), False: set()}  # of the encoder, of the rest
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    rates[id(parameter) in in_encoder].add(group["lr"])
            used.append([*rates[True], *rates[False]])

    trainer = LaSCLTrainer(
        model,
        arguments(tmp_path, num_train_epochs=10, learning_rate=4e-3, encoder_learning_rate=1e-4),
        train_dataset=Clips(),
        data_collator=collate,
        callbacks=[Rates()],
    )
    trainer.train()
    # 20 steps: 10 % of warm-up are the first 2.
    curve = [step / 2 if step < 2 else (1 + math.cos(math.pi * (step - 2) / 18)) / 2 for step in range(20)]
    assert used[:3] == [[0, 0], pytest.approx([5e-5, 2e-3]), pytest.approx([1e-4, 4e-3])]
    assert used == [pytest.approx([1e-4 * share, 4e-3 * share], rel=1e-6, abs=1e-12) for share in curve]
    assert [entry["learning_rate"] for entry in logged(trainer)] == pytest.approx([4e-3 * x for x in curve], abs=1e-12)
    assert [group["lr"] for group in trainer.optimizer.param_groups] == pytest.approx([0] * 4, abs=1e-12)


@pytest.mark.parametrize(("encoder_rate", "rate"), [(1e-3, 0.0), (0.0, 1e-3)])
def test_at_a_rate_of_zero_a_part_stays_as_it_was(build, tmp_path, encoder_rate, rate):
    model, collate = build()
    before = weights(model)
    args = arguments(tmp_path, encoder_learning_rate=encoder_rate, learning_rate=rate, warmup_steps=0)
    LaSCLTrainer(model, args, train_dataset=Clips(), data_collator=collate).train()
    moved = {name for name, tensor in weights(model).items() if not torch.equal(tensor, before[name])}
    parts = {name.removeprefix("lascl.").split(".")[0] for name in moved}
    assert parts == ({"audio_encoder"} if encoder_rate else {"audio_projection", "text_projection", "classifier"})


# ------------------------------------------------------------------------------------------------------------ logs


class RecordingTrainer(LaSCLTrainer):
    """Keeps, of every forward pass in training, the inputs and the terms worked out by loops."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.inputs, self.terms = [], []

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        if model.training:
            self.inputs.append(inputs["input_values"].clone())
            self.terms.append(terms_by_loops(outputs, inputs["labels"], model.config))
        return (loss, outputs) if return_outputs else loss


@pytest.mark.parametrize("setting", SETTINGS)
def test_each_term_is_logged_as_its_mean_since_the_last_log(build, tmp_path, setting):
    model, collate = build(**SETTINGS[setting])
    trainer = RecordingTrainer(
        model,
        # An evaluation after each step must not enter the means.
        arguments(
            tmp_path,
            num_train_epochs=3,
            gradient_accumulation_steps=2,
            logging_steps=3,
            eval_strategy="steps",
            eval_steps=1,
        ),
        train_dataset=Clips(),
        eval_dataset=Clips(2),
        data_collator=collate,
    )
    trainer.train()
    entries = logged(trainer)
    assert (len(trainer.terms), len(entries)) == (12, 2)  # six steps of two passes, logged every three steps
    for entry, passes in zip(entries, (trainer.terms[:6], trainer.terms[6:]), strict=True):
        means = {name: sum(terms[name] for terms in passes) / 6 for name in passes[0]}
        assert entry["loss"] == pytest.approx(total_of(means, model.config), rel=1e-5)
        assert {name for name in means if name in entry} == set(TERMS[setting])
        for name in TERMS[setting]:
            assert entry[name] == pytest.approx(means[name], rel=1e-5)
    first = TERMS[setting][0]
    assert entries[0][first] != pytest.approx(entries[1][first], rel=1e-4)
    assert trainer.terms[0][first] != pytest.approx(entries[0][first], rel=1e-4)


class WithATermOfItsOwn(LaSCLTrainer):
    """Adds (the mean of the embeddings' first numbers) + 2."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        own = outputs.audio_embeds[:, 0].mean() + 2
        getattr(self, "log_term", lambda name, term: None)("own", own)
        return (loss + own, outputs) if return_outputs else loss + own


def test_a_term_of_ones_own_is_trained_on_and_logged_by_itself_and_in_the_loss(build, tmp_path):
    logs, trained = {}, {}
    for kind in (LaSCLTrainer, WithATermOfItsOwn):
        model, collate = build()
        given = arguments(tmp_path / kind.__name__, max_steps=1, gradient_accumulation_steps=2, warmup_steps=0)
        trainer = kind(model, given, train_dataset=Clips(), data_collator=collate)
        trainer.train()
        (logs[kind],), trained[kind] = logged(trainer), weights(model.lascl.audio_projection)
    plain, own = logs[LaSCLTrainer], logs[WithATermOfItsOwn]
    assert 1 < own.get("own", 0) < 3
    assert own["loss"] - plain["loss"] == pytest.approx(own["own"], rel=1e-5)
    assert plain["contrastive"] == own["contrastive"]
    without, with_it = trained[LaSCLTrainer], trained[WithATermOfItsOwn]
    assert any(not torch.equal(without[name], with_it[name]) for name in without)


def test_a_second_training_is_logged_as_if_it_were_the_first(build, tmp_path):
    """Also where the first was stopped between two logs: nothing of it is in the second's means."""
    model, collate = build()
    args = arguments(tmp_path, learning_rate=0, encoder_learning_rate=0, logging_steps=4, max_steps=6)
    trainer = RecordingTrainer(model, args, train_dataset=Clips(), data_collator=collate)
    ends = []
    for _ in range(2):
        trainer.terms.clear()
        result = trainer.train()
        losses = [total_of(terms, model.config) for terms in trainer.terms]
        assert len(losses) == 6
        end = trainer.state.log_history[-1]
        (entry,) = logged(trainer)  # of step 4
        assert entry["loss"] == pytest.approx(sum(losses[:4]) / 4, rel=1e-5)
        assert end["train_loss"] == pytest.approx(sum(losses) / 6, rel=1e-5)
        ends.append((end["train_loss"], result.metrics["train_loss"]))
        clock = trainer.clock.num_steps
    assert ends[0] == pytest.approx(ends[1], rel=1e-6) and clock == 6


# ------------------------------------------------------------------------------------- batch sizes and accumulation


@pytest.mark.parametrize(("utterances", "accumulation", "rows"), [(32, 1, 32), (32, 4, 8), (8, 8, 1)])
def test_the_global_batch_is_split_over_accumulation_steps(tmp_path, utterances, accumulation, rows):
    args = arguments(tmp_path, global_batch_size=utterances, gradient_accumulation_steps=accumulation)
    assert args.per_device_train_batch_size == args.train_batch_size == rows


@pytest.mark.parametrize(("utterances", "accumulation"), [(10, 4), (2, 4), (0, 1), (-8, 2)])
def test_a_global_batch_that_cannot_be_split_is_refused(tmp_path, utterances, accumulation):
    with pytest.raises(ValueError, match=rf"global_batch_size .*1 x {accumulation}; found {utterances}\."):
        arguments(tmp_path, global_batch_size=utterances, gradient_accumulation_steps=accumulation)


def test_processes_that_form_no_group_are_refused_and_told_the_way_out(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="2 processes.*--use_cpu true"):
        arguments(tmp_path, use_cpu=False)


def test_several_processes_that_share_no_gradients_are_refused(build, tmp_path, monkeypatch):
    """Two processes, but a model that is not wrapped: so it is under torchrun with `ddp_backend` alone."""
    model, collate = build()
    trainer = LaSCLTrainer(model, arguments(tmp_path), train_dataset=Clips(), data_collator=collate)
    monkeypatch.setattr(type(trainer.accelerator), "num_processes", 2)
    with pytest.raises(RuntimeError, match="2 processes.* not wrapped in DDP.*--use_cpu true"):
        trainer.compute_loss(model.train(), batch_of(collate))


@pytest.mark.parametrize(("scaled_by_model", "factor"), [(False, 1), (True, 2)])
def test_two_accumulated_halves_have_the_gradient_of_the_whole(build, tmp_path, monkeypatch, scaled_by_model, factor):
    """Rule 7.1 of the design. The second case is what the model would give if it did not say
    `accepts_loss_kwargs = False`: twice the gradient."""
    trained = []
    for accumulation in (1, 2):
        model, collate = build(contrastive_weight=0, prediction_head="classifier")
        if scaled_by_model:
            monkeypatch.setattr(type(model), "accepts_loss_kwargs", True)
        trainer = LaSCLTrainer(
            model,
            arguments(
                tmp_path,
                gradient_accumulation_steps=accumulation,
                optim="sgd",
                learning_rate=0.05,
                max_grad_norm=1e9,  # never reached; given 0, transformers 5.0 logs no norm
            ),
            train_dataset=Clips(),
            data_collator=collate,
        )
        trainer.train()
        trained.append((logged(trainer), weights(model)))
    (whole, whole_weights), (halves, halves_weights) = trained
    # Warm-up: the first step is taken at a rate of 0, so the first two see the same weights.
    assert len(whole) == len(halves) == 4 and whole[0]["learning_rate"] == 0
    for step in range(2):
        assert halves[step]["grad_norm"] == pytest.approx(factor * whole[step]["grad_norm"], rel=1e-5)
        assert whole[step]["grad_norm"] > 0.1
    if factor == 1:
        assert [step["grad_norm"] for step in halves] == pytest.approx([step["grad_norm"] for step in whole], rel=1e-5)
        assert [step["loss"] for step in halves] == pytest.approx([step["loss"] for step in whole], rel=1e-5)
        torch.testing.assert_close(halves_weights, whole_weights, rtol=1e-5, atol=1e-6)


# ----------------------------------------------------------------------------------------------- epochs and repeats


@pytest.fixture(scope="module")
def corpus(emodb_like):
    return load_corpus("emodb", emodb_like, allow_partial=True)


@pytest.fixture(scope="module")
def runs(build, corpus, tmp_path_factory):
    """Twelve steps, three epochs of sixteen utterances, with dropout, shuffling and noise; saved in mid-epoch."""
    root = tmp_path_factory.mktemp("runs")

    def run(name, seed=42, resume=None):
        model, collate = build(labels=corpus.features["label"].names)
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.1
        audio = {"sampling_rate": RATE, "max_duration_s": 0.1}
        dataset = RecordingDataset(corpus, range(16), augmentation="noise", num_views=2, **audio)
        if resume:  # what a new process knows must come from the checkpoint
            model.init_weights()
            torch.manual_seed(99)
        trainer = LaSCLTrainer(
            model,
            arguments(
                root / name, global_batch_size=4, num_train_epochs=3, save_strategy="steps", save_steps=6, seed=seed
            ),
            train_dataset=dataset,
            data_collator=collate,
        )
        trainer.train(resume_from_checkpoint=resume)
        return weights(model), dataset.seen, logged(trainer), dataset.ids

    return {
        "straight": run("straight"),
        "again": run("again"),
        "resumed": run("resumed", resume=str(root / "straight" / "checkpoint-6")),
        "other seed": run("other seed", seed=43),
    }


def test_the_same_seed_gives_the_same_weights_bit_by_bit(runs):
    straight, again = runs["straight"][0], runs["again"][0]
    assert [name for name in straight if not torch.equal(straight[name], again[name])] == []
    other = runs["other seed"][0]
    assert not torch.equal(straight["classifier.weight"], other["classifier.weight"])


def test_a_run_resumed_in_mid_epoch_ends_in_the_weights_of_the_straight_run_bit_by_bit(runs):
    straight, resumed = runs["straight"][0], runs["resumed"][0]
    assert [name for name in straight if not torch.equal(straight[name], resumed[name])] == []
    of_straight, of_resumed = runs["straight"][2], runs["resumed"][2]
    assert [entry["step"] for entry in of_resumed] == list(range(1, 13))  # the first six from the checkpoint's state
    for key in ("loss", "grad_norm", *TERMS["the paper's"]):
        assert [entry[key] for entry in of_resumed] == [entry[key] for entry in of_straight]


def test_each_epoch_is_told_to_the_training_data_and_sees_every_utterance_once(runs):
    _, seen, _, ids = runs["straight"]
    assert [epoch for epoch, _ in seen] == [0] * 16 + [1] * 16 + [2] * 16
    orders = [[id for told, id in seen if told == epoch] for epoch in range(3)]
    assert all(sorted(order) == sorted(ids) for order in orders)
    assert len({tuple(order) for order in orders}) == 3  # no two epochs in the same order


def test_a_resumed_epoch_is_told_and_goes_on_where_it_stopped(runs):
    assert runs["resumed"][1] == runs["straight"][1][24:]  # six steps of four utterances are done


def test_augmented_views_change_with_the_epoch_and_not_with_workers(build, corpus, tmp_path):
    inputs = []
    for workers, persistent in ((0, False), (2, False), (2, True)):
        model, collate = build(labels=corpus.features["label"].names)
        audio = {"sampling_rate": RATE, "max_duration_s": 0.1}
        trainer = RecordingTrainer(
            model,
            arguments(
                tmp_path,
                global_batch_size=4,
                dataloader_num_workers=workers,
                dataloader_persistent_workers=persistent,
            ),
            train_dataset=SpeechDataset(corpus, range(8), augmentation="noise", num_views=2, **audio),
            data_collator=collate,
        )
        trainer.train()
        inputs.append(trainer.inputs)
    alone, with_workers, with_lasting_workers = inputs
    assert len(alone) == 4  # two epochs of two steps
    for step in range(4):
        assert torch.equal(alone[step], with_workers[step]) and torch.equal(alone[step], with_lasting_workers[step])
    epochs = []
    for batches in (alone[:2], alone[2:]):
        assert [batch.shape for batch in batches] == [(8, 1600)] * 2
        clean = torch.cat([batch[:4] for batch in batches])
        order = clean[:, 0].argsort()  # utterances come in another order in every epoch
        epochs.append((clean[order], torch.cat([batch[4:] for batch in batches])[order]))
    (clean, augmented), (clean_again, augmented_again) = epochs
    assert torch.equal(clean, clean_again)
    assert (augmented != augmented_again).any(dim=1).all()
    assert (augmented != clean).any(dim=1).all()


# ------------------------------------------------------------------------------------------------------ evaluation


def test_evaluate_gives_the_scores_of_both_heads_and_the_local_loss(build, tmp_path):
    references = [0, 0, 0, 0, 1, 1, 2, 2, 2, 3]
    predicted = [0, 0, 0, 1, 1, 1, 2, 2, 2, 2]
    model, _ = build(contrastive_weight=0, prediction_head="classifier")

    def scripted(input_values):
        """The label head predicts as above; the classifier always class 0, with probability 3 / (3 + 1 + 1 + 1)."""
        rows = input_values[:, 0].long()
        return LaSCLOutput(
            logits=torch.eye(4)[torch.tensor(predicted)[rows]],
            class_logits=torch.tensor([math.log(3), 0.0, 0.0, 0.0]).expand(len(rows), 4),
            audio_embeds=torch.zeros(len(rows), 8),
            label_embeds=torch.zeros(4, 8),
        )

    model.forward = scripted
    trainer = LaSCLTrainer(
        model,
        arguments(tmp_path, per_device_eval_batch_size=4),
        eval_dataset=list(enumerate(references)),
        data_collator=lambda items: {
            "input_values": torch.tensor([[float(row)] for row, _ in items]),
            "labels": torch.tensor([reference for _, reference in items]),
        },
    )
    metrics = trainer.evaluate()
    # Label head: recalls 3/4, 1, 1, 0; precisions 1, 2/3, 3/4, 0; so F1 6/7, 4/5, 6/7, 0.
    assert metrics["eval_wa"] == pytest.approx(8 / 10)
    assert metrics["eval_ua"] == pytest.approx((3 / 4 + 1 + 1 + 0) / 4)
    assert metrics["eval_macro_f1"] == pytest.approx((6 / 7 + 4 / 5 + 6 / 7 + 0) / 4)
    # Classifier: recall 1 and precision 4/10 in class 0, so F1 4/7; nothing in the others.
    assert metrics["eval_classifier_wa"] == pytest.approx(4 / 10)
    assert metrics["eval_classifier_ua"] == pytest.approx(1 / 4)
    assert metrics["eval_classifier_macro_f1"] == pytest.approx(4 / 7 / 4)
    assert metrics["eval_loss"] == pytest.approx((4 * math.log(2) + 6 * math.log(6)) / 10, rel=1e-6)


def test_prediction_returns_the_logits_of_both_heads_and_no_hidden_states(build, tmp_path):
    model, collate = build(audio_layers="weighted")
    clips = Clips(6)
    trainer = LaSCLTrainer(model, arguments(tmp_path, per_device_eval_batch_size=4), data_collator=collate)
    prediction = trainer.predict([{**clips[index], "views": clips[index]["views"][:1]} for index in range(6)])
    assert isinstance(prediction.predictions, tuple) and len(prediction.predictions) == 2
    assert prediction.label_ids.tolist() == [0, 1, 2, 3, 0, 1]
    model.eval()
    for index in range(6):
        alone = torch.from_numpy(clips[index]["views"][0])[None]
        alone = (alone - alone.mean()) / alone.std(correction=0)
        with torch.no_grad():
            pooled = model.lascl(alone).pooled_audio
            cosine = nn.functional.cosine_similarity(model.get_audio_embeddings(alone), model.get_label_embeddings())
            classes = pooled @ model.classifier.weight.T + model.classifier.bias
        np.testing.assert_allclose(prediction.predictions[0][index], cosine / 0.07, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(prediction.predictions[1][index], classes[0], rtol=1e-4, atol=1e-5)


def test_what_would_be_ignored_is_refused(tmp_path):
    with pytest.raises(ValueError, match="derived from global_batch_size \\(32 here\\); found 4"):
        LaSCLTrainingArguments(output_dir=str(tmp_path), per_device_train_batch_size=4)
    with pytest.raises(ValueError, match="label_smoothing_factor"):
        LaSCLTrainingArguments(output_dir=str(tmp_path), label_smoothing_factor=0.1)
    with pytest.raises(ValueError, match="override compute_loss"):
        LaSCLTrainer(compute_loss_func=lambda *_: None)


# ----------------------------------------------------------------------------------------------------------- memory


def text_encoders_in_memory():
    gc.collect()
    modules = [thing for thing in gc.get_objects() if issubclass(type(thing), nn.Module)]
    return [module for module in modules if type(module).__module__.endswith("modeling_bert")]


def test_nothing_of_the_text_encoder_is_in_memory_while_training(build, tmp_path):
    left_behind = {id(module) for module in text_encoders_in_memory()}  # by another test, in this process
    model, collate = build()
    found = []

    class Look(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            found.append([module for module in text_encoders_in_memory() if id(module) not in left_behind])

    trainer = LaSCLTrainer(
        model, arguments(tmp_path, max_steps=1), train_dataset=Clips(), data_collator=collate, callbacks=[Look()]
    )
    trainer.train()
    assert found == [[]]
    assert not any("text_encoder" in name for name in model.state_dict())


def test_the_log_says_what_steps_cost(build, tmp_path):
    class SlowClips(Clips):
        def __getitem__(self, index):
            time.sleep(0.01)
            return super().__getitem__(index)

    model, collate = build()
    started = time.monotonic()
    trainer = LaSCLTrainer(model, arguments(tmp_path), train_dataset=SlowClips(), data_collator=collate)
    trainer.train()
    elapsed_s = time.monotonic() - started
    entries = logged(trainer)
    assert len(entries) == 4
    for entry in entries:
        # Eight clips of a batch take 80 ms at least, which is waited for: there are no workers.
        assert 1 / elapsed_s < entry["steps_per_second"] < 1 / 0.08
        assert 0.08 * entry["steps_per_second"] <= entry["data_wait_share"] < 1
        assert 100 < entry["peak_memory_mib"] < 24 * 1024
    total = trainer.clock.since_start()
    seconds = [1 / entry["steps_per_second"] for entry in entries]
    assert total["steps_per_second"] == pytest.approx(4 / sum(seconds))
    waited_s = sum(entry["data_wait_share"] * s for entry, s in zip(entries, seconds, strict=True))
    assert total["data_wait_share"] == pytest.approx(waited_s / sum(seconds))

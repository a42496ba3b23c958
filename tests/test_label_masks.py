"""Many corpora in one batch: what a corpus does not annotate takes no part in the loss of its rows.

Expected values come from the loops below, which follow the rules one comparison after the other over Python's float64,
from numbers worked out by hand, or from the loss of each corpus alone.
"""

import inspect
import json
import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from test_losses import joint as without_masks
from tiny import loss_and_gradients, recording
from torch.utils.data import DataLoader
from transformers import AutoFeatureExtractor, Trainer, TrainingArguments

from lascl import LaSCLForAudioClassification, LaSCLTrainer, LaSCLTrainingArguments
from lascl.data import SpeechCollator
from lascl.modeling_lascl import joint_loss, label_divergence_loss, supervised_contrastive_loss


REDUCTIONS = ["mean", "bracket", "sum"]
BOTH = [True, False]


# ---------------------------------------------------------------------------------------------------- the rules, slowly


def dot(u, v):
    return sum(a * b for a, b in zip(u, v, strict=True))


def cosine(u, v):
    return dot(u, v) / math.sqrt(dot(u, u) * dot(v, v))


def anchors_by_loops(z, y, tau, compares):
    """The summands of eq. 4: of each anchor that has a positive among those it compares with."""
    anchors = []
    for i in range(len(z)):
        others = [j for j in range(len(z)) if j != i and compares(i, j)]
        positives = [j for j in others if y[j] == y[i]]
        if positives:
            total = sum(math.exp(cosine(z[i], z[j]) / tau) for j in others)
            logs = [math.log(math.exp(cosine(z[i], z[j]) / tau) / total) for j in positives]
            anchors.append(-sum(logs) / len(logs))
    return anchors


def divergence_by_loops(e, compares):
    """Eq. 5 and 6 over the pairs that compare."""
    found = 0.0
    for i in range(len(e)):
        others = [j for j in range(len(e)) if j != i and compares(i, j)]
        total = 1 + sum(math.exp(dot(e[i], e[k])) for k in others)
        found -= sum(math.log(1 - math.exp(dot(e[i], e[j])) / total) for j in others)
    return found


def cross_entropy_by_loops(logits, y, words):
    """Eq. 8, each row's softmax over its own words."""
    rows = [math.log(sum(math.exp(row[k]) for k in own)) - row[label] for row, label, own in zip(logits, y, words)]
    return sum(rows) / max(len(rows), 1)


def joint_by_loops(b, mask, *, tau=0.1, lambda_1=0.5, lambda_2=0.1, label_anchors=True, reduction="mean"):
    """Eq. 9 by the rules of the issue: what compares is decided for one pair after the other."""
    audio, e, logits, y = (x.tolist() for x in (b.audio, b.label, b.logits, b.labels))
    words = [{k for k, is_own in enumerate(row) if is_own} for row in mask.tolist()]  # of each row
    points = [("audio", i) for i in range(len(audio))] + [("word", k) for k in range(len(e))] * label_anchors

    def words_compare(k, other):
        return any({k, other} <= own for own in words)

    def compares(first, second):
        (kind, i), (other_kind, j) = sorted((points[first], points[second]))
        if (kind, other_kind) == ("audio", "audio"):
            return y[j] in words[i] and y[i] in words[j]
        return j in words[i] if kind == "audio" else words_compare(i, j)

    z = audio + e if label_anchors else audio
    anchors = anchors_by_loops(z, y + list(range(len(e))) if label_anchors else y, tau, compares)
    pairs = divergence_by_loops(e, words_compare)
    num_anchors = len(anchors) or 1
    contrastive = sum(anchors) if reduction == "sum" else sum(anchors) / num_anchors
    divergence = pairs / num_anchors if reduction == "bracket" else pairs
    terms = {
        "contrastive": contrastive,
        "divergence": divergence,
        "cross_entropy": cross_entropy_by_loops(logits, y, words),
    }
    bracket = contrastive + lambda_2 * divergence
    return lambda_1 * bracket + (1 - lambda_1) * terms["cross_entropy"], terms


# -------------------------------------------------------------------------------------------------------------- batches


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def batch(corpora, *, rows=6, views=2, num_words, dim=5, seed=0):
    """A batch whose rows belong to the corpora in turn, each with a label among that corpus's words, and its mask."""
    draw = torch.Generator().manual_seed(seed)
    own = [sorted(corpora[row % len(corpora)]) for row in range(rows)]
    labels = torch.tensor([words[int(torch.randint(len(words), (), generator=draw))] for words in own] * views).long()
    mask = torch.zeros(rows * views, num_words, dtype=torch.bool)
    for row, words in enumerate(own * views):
        mask[row, words] = True
    total = rows * views
    b = SimpleNamespace(
        audio=normal(total, dim, seed=seed + 1),
        label=normal(num_words, dim, seed=seed + 2) / dim**0.5,
        logits=normal(total, num_words, seed=seed + 3),
        labels=labels,
    )
    return b, mask


# Words that corpora share, that one lacks, that none has.
CORPORA = {
    "two that share some words": ([{0, 1, 2}, {1, 2, 3, 4}], 5),
    "disjoint words": ([{0, 1, 2}, {3, 4}], 5),
    "one inside the other": ([{0, 1, 2, 3}, {1, 2}], 4),
    "three in a chain": ([{0, 1}, {1, 2}, {2, 3}], 4),
    "words of no corpus": ([{0, 2}, {2, 4}], 7),
    "a row's own word alone": ([{0}, {1}, {2}], 3),
    "one word of all": ([{1}], 3),
    "one corpus that annotates all": ([{0, 1, 2}], 3),
}


def joint(b, mask, *, reduction="mean", **weights):
    assert "label_mask" in inspect.signature(joint_loss).parameters, "joint_loss knows no words of a corpus"
    return without_masks(b, contrastive_reduction=reduction, label_mask=mask, **weights)


def contrastive(embeddings, labels, tau, comparable):
    assert "comparable" in inspect.signature(supervised_contrastive_loss).parameters, "it compares all with all"
    return supervised_contrastive_loss(embeddings, labels, tau, comparable)


def divergence(label_embeddings, comparable):
    assert "comparable" in inspect.signature(label_divergence_loss).parameters, "it compares all with all"
    return label_divergence_loss(label_embeddings, comparable)


def gradients(loss, *tensors):
    """The value, and the gradient of each tensor, which must be there and finite."""
    leaves = [x.detach().clone().requires_grad_() for x in tensors]
    value = loss(*leaves)
    value.backward()
    assert value.isfinite() and all(leaf.grad is not None and leaf.grad.isfinite().all() for leaf in leaves)
    return value.detach(), [leaf.grad for leaf in leaves]


def gradients_of_joint(b, mask, **options):
    def loss(audio, label, logits):
        return joint(SimpleNamespace(audio=audio, label=label, logits=logits, labels=b.labels), mask, **options)[0]

    return gradients(loss, b.audio, b.label, b.logits)


def close(expected, tolerance=1e-10):
    return pytest.approx(expected, rel=0, abs=tolerance)


# ------------------------------------------------------------------------------------------------------ eq. 4 and eq. 6


def random_mask(size, seed, symmetric=True):
    mask = torch.rand(size, size, generator=torch.Generator().manual_seed(seed)) < 0.6
    return mask & mask.T if symmetric else mask


@pytest.mark.parametrize("symmetric", BOTH)
@pytest.mark.parametrize("rows, classes", [(1, 1), (2, 1), (6, 2), (12, 4)])
def test_eq_4_runs_over_what_compares(rows, classes, symmetric):
    for seed in range(4):
        z, mask = normal(rows, 4, seed=seed), random_mask(rows, seed, symmetric)
        y = torch.randint(classes, (rows,), generator=torch.Generator().manual_seed(seed))
        anchors = anchors_by_loops(z.tolist(), y.tolist(), 0.1, lambda i, j, mask=mask: bool(mask[i, j]))
        assert contrastive(z, y, 0.1, mask).item() == close(sum(anchors) / (len(anchors) or 1))
        whole = contrastive(z, y, 0.1, mask | torch.eye(rows, dtype=torch.bool))
        assert torch.equal(whole, contrastive(z, y, 0.1, mask & ~torch.eye(rows, dtype=torch.bool)))  # the diagonal


def test_eq_4_by_hand():
    # Labels A A B at 0, 60 and 90 degrees, tau = 1/2, as in test_losses.py, but first and third do not compare:
    #   first:  its positive is all it compares with: -log(1) = 0
    #   second: -log(e^1 / (e^1 + e^sqrt(3))) = log(1 + e^(sqrt(3) - 1)) = 1.124715472
    # mean 0.562357736.
    angles = torch.deg2rad(torch.tensor([0.0, 60.0, 90.0], dtype=torch.float64))
    z, y = torch.stack([angles.cos(), angles.sin()], dim=1), torch.tensor([0, 0, 1])
    mask = torch.tensor([[1, 1, 0], [1, 1, 1], [0, 1, 1]]).bool()
    assert contrastive(z, y, 0.5, mask).item() == close(0.562357736, 1e-9)


@pytest.mark.parametrize("symmetric", BOTH)
@pytest.mark.parametrize("words", [1, 2, 5, 9])
def test_eq_6_runs_over_what_compares(words, symmetric):
    for seed in range(4):
        e, mask = normal(words, 3, seed=seed), random_mask(words, seed, symmetric)
        expected = divergence_by_loops(e.tolist(), lambda i, j, mask=mask: bool(mask[i, j]))
        assert divergence(e, mask).item() == close(expected)


def test_eq_6_by_hand():
    # Three labels at right angles, of which the first two compare: p = 1 / (1 + 1) in both pairs: 2 log 2 = 1.386294361
    mask = torch.tensor([[0, 1, 0], [1, 0, 0], [0, 0, 0]]).bool()
    assert divergence(torch.eye(3, dtype=torch.float64), mask).item() == close(1.386294361, 1e-9)


def test_the_gradients_of_both_are_the_derivatives():
    y = torch.tensor([0, 1, 0, 2, 1, 0])
    for seed in range(3):
        mask = random_mask(6, seed)
        z = normal(6, 3, seed=seed).requires_grad_()
        assert torch.autograd.gradcheck(lambda z, mask=mask: contrastive(z, y, 0.3, mask), (z,))
        assert torch.autograd.gradcheck(lambda e, mask=mask: divergence(e, mask), (z,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_mask_of_ones_is_no_mask_to_the_bit(dtype):
    z, y = normal(9, 4).to(dtype), torch.tensor([0, 1, 0, 2, 1, 0, 3, 3, 4])
    ones = torch.ones(9, 9, dtype=torch.bool)
    for masked, plain in (
        (lambda z: contrastive(z, y, 0.07, ones), lambda z: supervised_contrastive_loss(z, y, 0.07)),
        (lambda e: divergence(e, ones), label_divergence_loss),
    ):
        for found, expected in zip(gradients(masked, z), gradients(plain, z)):
            assert torch.equal(*(x[0] if isinstance(x, list) else x for x in (found, expected)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("temperature", [0.07, 1e-3])
def test_where_nothing_compares_both_are_zero_with_zero_gradient(dtype, temperature):
    z, y, nothing = normal(5, 3).to(dtype), torch.tensor([0, 0, 1, 1, 2]), torch.zeros(5, 5, dtype=torch.bool)
    for loss in (lambda z: contrastive(z, y, temperature, nothing), lambda e: divergence(e, nothing)):
        value, (gradient,) = gradients(loss, z)
        assert value == 0 and not gradient.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_row_that_compares_with_nothing_has_gradient_zero_among_others_that_do(dtype):
    z, y, mask = normal(5, 3).to(dtype), torch.tensor([0, 0, 1, 1, 0]), torch.ones(5, 5, dtype=torch.bool)
    mask[2], mask[:, 2] = False, False
    for loss in (lambda z: contrastive(z, y, 0.07, mask), lambda e: divergence(e, mask)):
        value, (gradient,) = gradients(loss, z)
        assert value > 0 and not gradient[2].any() and all(gradient[row].any() for row in (0, 1, 3, 4))


@pytest.mark.parametrize(
    "mask", [torch.ones(4, 4).long(), torch.ones(4, 3).bool(), torch.ones(3, 3).bool(), torch.ones(3, 3)]
)
def test_a_mask_of_another_shape_or_kind_is_refused_and_told(mask):
    z, y = normal(4, 3), torch.tensor([0, 0, 1, 1])
    found = rf"= \(4, 4\) of torch.bool; found \({mask.shape[0]}, {mask.shape[1]}\) of {mask.dtype}"
    for refused, letters in ((lambda: contrastive(z, y, 0.1, mask), "M, M"), (lambda: divergence(z, mask), "K, K")):
        with pytest.raises(ValueError, match=rf"Expected comparable \({letters}\) {found}"):
            refused()


# ---------------------------------------------------------------------------------------------------------------- eq. 9


@pytest.mark.parametrize("label_anchors", BOTH)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("corpora, num_words", CORPORA.values(), ids=CORPORA.keys())
def test_eq_9_by_the_rules_one_pair_after_the_other(corpora, num_words, reduction, label_anchors):
    for seed, (lambda_1, lambda_2) in enumerate([(0.5, 0.1), (0.9, 1.0), (0.3, 0.0)]):
        b, mask = batch(corpora, num_words=num_words, seed=10 * seed)
        options = {"lambda_1": lambda_1, "lambda_2": lambda_2, "label_anchors": label_anchors, "reduction": reduction}
        loss, terms = joint(b, mask, **options)
        expected, expected_terms = joint_by_loops(b, mask, **options)
        assert loss.item() == close(expected)
        assert {name: term.item() for name, term in terms.items()} == {n: close(expected_terms[n]) for n in terms}
        if lambda_2 > 0:  # else nothing ties the labels to the loss without their anchors
            gradients_of_joint(b, mask, **options)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    corpora=st.lists(st.sets(st.integers(0, 5), min_size=1), min_size=1, max_size=4),
    rows=st.integers(1, 6),
    views=st.integers(1, 2),
    label_anchors=st.booleans(),
    seed=st.integers(0, 2**20),
)
def test_eq_9_of_any_corpora(corpora, rows, views, label_anchors, seed):
    b, mask = batch(corpora, rows=rows, views=views, num_words=6, seed=seed)
    loss, _ = joint(b, mask, label_anchors=label_anchors)
    assert loss.item() == close(joint_by_loops(b, mask, label_anchors=label_anchors)[0])


@pytest.mark.parametrize("label_anchors", BOTH)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_the_gradient_of_eq_9_is_the_derivative(reduction, label_anchors):
    b, mask = batch(*CORPORA["words of no corpus"][:1], rows=3, num_words=5, dim=3)

    def loss(audio, label, logits):
        inputs = SimpleNamespace(audio=audio, label=label, logits=logits, labels=b.labels)
        options = {"label_anchors": label_anchors, "reduction": reduction}
        return joint(inputs, mask, tau=0.3, lambda_1=0.7, lambda_2=1.0, **options)[0]

    assert torch.autograd.gradcheck(loss, [x.requires_grad_() for x in (b.audio, b.label, b.logits)])


@pytest.mark.parametrize("label_anchors", BOTH)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_eq_9_with_a_mask_of_ones_is_eq_9_to_the_bit(dtype, reduction, label_anchors):
    b, mask = batch([{0, 1, 2, 3}], num_words=4)
    for name in ("audio", "label", "logits"):
        setattr(b, name, getattr(b, name).to(dtype))
    options = {"tau": 0.07, "reduction": reduction, "label_anchors": label_anchors}
    assert mask.all()
    (masked, with_mask), (plain, without) = (gradients_of_joint(b, given, **options) for given in (mask, None))
    assert torch.equal(masked, plain)
    assert all(torch.equal(found, expected) for found, expected in zip(with_mask, without, strict=True))
    (_, terms), (_, plain_terms) = (joint(b, given, **options) for given in (mask, None))
    assert all(torch.equal(terms[name], plain_terms[name]) for name in terms | plain_terms)


@pytest.mark.parametrize("label_anchors", BOTH)
def test_corpora_of_disjoint_words_are_each_alone(label_anchors):
    """Eq. 4 as printed, eq. 6 and the summed cross entropy are then sums over the corpora."""
    first, _ = batch([{0, 1, 2}], rows=5, num_words=3, seed=1)
    second, _ = batch([{0, 1}], rows=3, num_words=2, seed=7)
    rows, others = len(first.labels), len(second.labels)
    mask = torch.zeros(rows + others, 5, dtype=torch.bool)
    mask[:rows, :3], mask[rows:, 3:] = True, True
    logits = normal(rows + others, 5, seed=9)
    logits[:rows, :3], logits[rows:, 3:] = first.logits, second.logits
    both = SimpleNamespace(
        audio=torch.cat([first.audio, second.audio]),
        label=torch.cat([first.label, second.label]),
        logits=logits,
        labels=torch.cat([first.labels, second.labels + 3]),
    )
    options = {"label_anchors": label_anchors, "reduction": "sum"}
    _, terms = joint(both, mask, **options)
    (_, of_first), (_, of_second) = (joint(b, None, **options) for b in (first, second))
    for name in ("contrastive", "divergence"):
        assert terms[name].item() == close((of_first[name] + of_second[name]).item())
    summed = rows * of_first["cross_entropy"] + others * of_second["cross_entropy"]
    assert terms["cross_entropy"].item() == close((summed / (rows + others)).item())
    # And what one corpus holds moves nothing of the other, however near its words and voices come.
    _, (audio, label, _) = gradients_of_joint(both, mask, **options)
    both.audio[rows:], both.label[3:] = normal(others, 5, seed=20), both.label[:2] + 1e-3
    _, (audio_then, label_then, _) = gradients_of_joint(both, mask, **options)
    torch.testing.assert_close(audio_then[:rows], audio[:rows], rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(label_then[:3], label[:3], rtol=1e-12, atol=1e-14)
    assert (label_then[3:] - label[3:]).abs().max() > 1e-3


def test_what_was_not_offered_is_no_negative():
    """RAVDESS has calm and no boredom, EmoDB boredom and no calm, both neutral: calm and bored voices do not compare,
    each does with neutral ones of its own corpus, and neutral ones with each other."""
    boredom, calm, neutral = 0, 1, 2
    labels = torch.tensor([boredom, neutral, calm, neutral])
    mask = torch.tensor([[1, 0, 1], [1, 0, 1], [0, 1, 1], [0, 1, 1]]).bool()
    b = SimpleNamespace(audio=normal(4, 3), label=normal(3, 3, seed=1), logits=normal(4, 3, seed=2), labels=labels)
    nothing_else = {"label_anchors": False, "reduction": "sum", "lambda_1": 1.0, "lambda_2": 0.0}
    z = F.normalize(b.audio, dim=1)
    s = (z @ z.T / 0.1).exp()
    # Anchors with a positive: rows 1 and 3, neutral. EmoDB's does not compare with calm, RAVDESS's not with boredom.
    expected = -torch.log(s[1, 3] / (s[1, 0] + s[1, 3])) - torch.log(s[3, 1] / (s[3, 2] + s[3, 1]))
    assert joint(b, mask, **nothing_else)[0].item() == close(expected.item())
    # Of the words, boredom and calm are each apart from neutral, and are no pair.
    to_bored, to_calm = (b.label[neutral] @ b.label[word] for word in (boredom, calm))
    alone = torch.log(1 + to_bored.exp()) + torch.log(1 + to_calm.exp())  # -log(1 - e^s / (1 + e^s))
    p = torch.stack([to_bored, to_calm]).exp() / (1 + to_bored.exp() + to_calm.exp())
    assert joint(b, mask)[1]["divergence"].item() == close((alone - torch.log(1 - p).sum()).item())


@pytest.mark.parametrize("label_anchors", BOTH)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_word_that_no_corpus_of_the_batch_annotates_gets_no_gradient_at_all(dtype, label_anchors):
    corpora, num_words = CORPORA["words of no corpus"]
    b, mask = batch(corpora, num_words=num_words)
    for name in ("audio", "label", "logits"):
        setattr(b, name, getattr(b, name).to(dtype))
    nowhere = [k for k in range(num_words) if not any(k in words for words in corpora)]
    assert nowhere == [1, 3, 5, 6]
    value, (_, label, logits) = gradients_of_joint(b, mask, label_anchors=label_anchors)
    assert not label[nowhere].any() and not logits[:, nowhere].any()
    assert label[[0, 2, 4]].abs().min() > 0 and logits[mask].abs().min() > 0 and not logits[~mask].any()
    b.label[nowhere], b.logits[:, nowhere] = 7.0, 1e4  # whatever they are
    assert torch.equal(gradients_of_joint(b, mask, label_anchors=label_anchors)[0], value)


def test_rows_whose_corpus_annotates_one_word_have_only_positives():
    b, mask = batch([{0}, {1}, {2}], num_words=3)
    (_, terms), (_, (_, label, logits)) = joint(b, mask), gradients_of_joint(b, mask, lambda_1=0.5)
    assert terms["divergence"] == 0 and terms["cross_entropy"] == 0 and not logits.any()
    assert terms["contrastive"] > 0 and label.any()  # equal words still draw each other


def test_an_empty_batch_compares_nothing():
    """No row annotates a pair of words: nothing is pushed apart, where without a mask the divergence would be left."""
    b, mask = batch([{0, 1, 2}], rows=0, num_words=3)
    value, found = gradients_of_joint(b, mask)
    assert mask.shape == (0, 3) and value == 0 and not any(gradient.any() for gradient in found)


def test_masks_meet_autocast_and_half_precision_as_the_loss_does():
    b, mask = batch(*CORPORA["two that share some words"][:1], num_words=5)
    half = SimpleNamespace(**{name: x.bfloat16() if x.is_floating_point() else x for name, x in vars(b).items()})
    single = SimpleNamespace(**{name: x.float() if x.is_floating_point() else x for name, x in vars(half).items()})
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = joint(half, mask)[0]
    assert found.dtype == torch.float32 and torch.equal(found, joint(single, mask)[0])


@pytest.mark.parametrize("lambda_1", [0.0, 0.5, 1.0])
def test_a_label_outside_its_own_words_is_refused_and_both_are_told(lambda_1):
    b, mask = batch([{0, 1, 3}], num_words=4)
    b.labels[3] = 2
    with pytest.raises(ValueError, match="found 2 in row 3, whose words are 0, 1, 3"):
        joint(b, mask, lambda_1=lambda_1)
    b.labels[3], mask[5] = 0, False
    with pytest.raises(ValueError, match=r"found \d in row 5, whose words are none"):
        joint(b, mask, lambda_1=lambda_1)


def test_a_mask_of_the_words_of_another_shape_or_kind_is_refused_and_told():
    b, mask = batch([{0, 1, 2}], num_words=4)
    for wrong in (mask[:-1], mask[:, :3], mask.long(), mask.double()):
        found = rf"\(B, K\) = \(12, 4\) of torch.bool; found \({wrong.shape[0]}, {wrong.shape[1]}\) of {wrong.dtype}"
        with pytest.raises(ValueError, match=f"Expected label_mask {found}"):
            joint(b, wrong)


# --------------------------------------------------------------------------------------------- from items to a gradient


WORDS = ["angry", "bored", "calm", "fear", "happy", "neutral", "sad"]
ANNOTATED = [{"angry", "calm", "happy", "neutral"}, {"bored", "neutral", "sad"}]  # nobody annotates fear


def clips(count=8, views=2, masked=True):
    """Items of two corpora in turn, as a data set of them gives them."""
    items = []
    for index in range(count):
        own = sorted(ANNOTATED[index % 2])
        audio = [recording(100 * view + index, 0.05 + 0.01 * (index % 5)) for view in range(views)]
        item = {"id": f"clip-{index}", "label": WORDS.index(own[index // 2 % len(own)]), "views": audio}
        mask = torch.tensor([word in own for word in WORDS])
        items.append({**item, "label_mask": mask} if masked else item)
    return items


@pytest.fixture(scope="module")
def build(audio_encoders, text_encoder):
    """A tiny model, the same at every call, and its collator."""

    def build(**config):
        torch.manual_seed(7)
        folder = audio_encoders["wav2vec2-layer"]
        model = LaSCLForAudioClassification.from_encoders(folder, text_encoder, WORDS, projection_dim=8, **config)
        return model, SpeechCollator(AutoFeatureExtractor.from_pretrained(folder))

    return build


def collated(collate, items):
    batch = collate(items)
    assert "label_mask" in batch, "the items' masks are lost"
    return batch


def trainer_of(model, folder, **arguments):
    args = LaSCLTrainingArguments(str(folder), use_cpu=True, report_to="none", disable_tqdm=True, **arguments)
    return LaSCLTrainer(model, args)


def test_collators_stack_the_masks_view_by_view_and_only_if_the_items_hold_them(build):
    from lascl.training.pooled import collate_pooled

    _, collate = build()
    items = clips(3)
    expected = torch.stack([item["label_mask"] for item in [*items, *items]])
    assert torch.equal(collated(collate, items)["label_mask"], expected)
    pooled = [{**item, "pooled_audio": torch.zeros(2, 4)} for item in items]
    assert torch.equal(collated(collate_pooled, pooled)["label_mask"], expected)
    for item in pooled:
        item["label_mask"] = item["label_mask"].tolist()  # as a table holds it
    assert torch.equal(collated(collate_pooled, pooled)["label_mask"], expected)
    without = [{name: value for name, value in item.items() if name != "label_mask"} for item in pooled]
    assert "label_mask" not in collate(without) and "label_mask" not in collate_pooled(without)


@pytest.mark.parametrize("label_anchors", BOTH)
def test_forward_takes_the_mask_for_its_loss_and_the_trainer_computes_the_same(build, tmp_path, label_anchors):
    config = {} if label_anchors else {"label_anchors": False, "prediction_head": "classifier"}
    model, collate = build(**config)
    batch = collated(collate, clips())
    model.train()
    outputs = model(**batch)
    b = SimpleNamespace(
        audio=outputs.audio_embeds, label=outputs.label_embeds, logits=outputs.class_logits, labels=batch["labels"]
    )
    expected, terms = joint_by_loops(b, batch["label_mask"], tau=0.07, label_anchors=label_anchors)
    assert outputs.loss.item() == pytest.approx(expected, rel=1e-5)
    assert {name: term.item() for name, term in outputs.terms.items()} == pytest.approx(terms, rel=1e-5)
    outputs.loss.backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    trainer, keys = trainer_of(model, tmp_path), batch.keys()
    loss = trainer.compute_loss(model, batch)
    loss.backward()
    assert batch.keys() == keys and loss.item() == pytest.approx(outputs.loss.item(), rel=1e-6)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, found[name], rtol=1e-5, atol=1e-6, msg=name)
    fear = WORDS.index("fear")
    assert not model.classifier.weight.grad[fear].any() and model.classifier.bias.grad[fear] == 0
    assert model.classifier.weight.grad.abs().amax(dim=1).gt(0).sum() == len(WORDS) - 1
    # The mask is for the loss: what the model answers is of all words.
    del batch["labels"], batch["label_mask"]
    torch.testing.assert_close(outputs.logits, model(**batch).logits)


@pytest.mark.parametrize("chunks", [{"contrastive_chunk_size": 1}, {"contrastive_chunk_size": 3}])
def test_chunks_of_several_corpora_are_the_whole_batch(build, tmp_path, chunks):
    found = []
    for fields in ({}, chunks):
        model, collate = build()
        batch = collated(collate, clips())
        found.append(loss_and_gradients(trainer_of(model, tmp_path, **fields), model, batch))
    (plain, expected), (cached, gradient) = found
    assert cached == pytest.approx(plain, rel=1e-10)
    torch.testing.assert_close(gradient, expected, rtol=1e-8, atol=1e-12)


def test_evaluation_answers_with_a_rows_own_words(build, tmp_path):
    model, collate = build()
    with torch.no_grad():
        model.classifier.bias[WORDS.index("fear")] = 1e3  # which no corpus annotates
    rows = clips(views=1)
    trainer = trainer_of(model, tmp_path, per_device_eval_batch_size=3)
    trainer.data_collator = collate
    prediction = trainer.predict(rows)
    batch = collated(collate, rows)
    with torch.no_grad():
        outputs = model.eval()(**batch)
    assert (outputs.class_logits.argmax(dim=1) == WORDS.index("fear")).all()
    heads = {"": outputs.logits, "classifier_": outputs.class_logits}
    for (prefix, head), found in zip(heads.items(), prediction.predictions, strict=True):
        found, own = torch.from_numpy(found), batch["label_mask"]
        torch.testing.assert_close(found[own], head[own], rtol=1e-5, atol=1e-5)
        assert (found[~own] == torch.finfo(torch.float32).min).all()
        answers = [max((k for k in range(7) if own[row, k]), key=lambda k: head[row, k]) for row in range(8)]
        right = sum(answer == item["label"] for answer, item in zip(answers, rows, strict=True))
        assert prediction.metrics[f"test_{prefix}wa"] == pytest.approx(right / 8)
    means = []
    for start in (0, 3, 6):  # the loss of a batch is its own
        batch = collated(collate, rows[start : start + 3])
        with torch.no_grad():
            means += [model(**batch).loss.item()] * len(batch["labels"])
    assert prediction.metrics["test_loss"] == pytest.approx(sum(means) / 8, rel=1e-5)


def test_an_argument_with_label_in_its_name_leaves_stock_trainer_its_labels(build, tmp_path):
    """It takes every argument of `forward` so called for labels, and scores nothing where a batch lacks one."""
    model, collate = build()
    seen = []

    def compute_metrics(prediction):
        seen.append(prediction.label_ids)
        return {"n": len(prediction.label_ids)}

    fields = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "remove_unused_columns": False}
    args = TrainingArguments(str(tmp_path), **fields)
    rows = clips(4, views=1, masked=False)
    trainer = Trainer(model, args, eval_dataset=rows, data_collator=collate, compute_metrics=compute_metrics)
    metrics = trainer.evaluate()
    assert metrics["eval_n"] == 4 and math.isfinite(metrics["eval_loss"])
    assert seen[0].tolist() == [row["label"] for row in rows]
    assert trainer_of(model, tmp_path).label_names == ["labels"]


def test_a_row_whose_label_its_corpus_does_not_annotate_is_refused_before_it_is_trained_on(build, tmp_path):
    """By the collator, on the CPU: a GPU is not asked."""
    model, collate = build()
    items = clips(2)
    items[1]["label"] = WORDS.index("angry")
    args = LaSCLTrainingArguments(str(tmp_path), use_cpu=True, report_to="none")
    trainer = LaSCLTrainer(model, args, data_collator=collate)
    caught = ""
    try:
        trainer.data_collator(items)
    except ValueError as error:
        caught = str(error)
    assert "found 0 in row 1, whose words are 1, 5, 6" in caught


def test_statistics_are_taken_of_batches_with_masks(build):
    from lascl.training.fold import pool_utterances

    model, collate = build()
    masked, plain = (DataLoader(clips(4, 1, masked), 2, collate_fn=collate) for masked in BOTH)
    assert "label_mask" in next(iter(masked)), "the items' masks are lost"
    assert torch.equal(pool_utterances(model, masked), pool_utterances(model, plain))


class Begun(Exception):
    """Carries what the loss was given first out of `train.py`, which need not train for that."""


@pytest.mark.parametrize("encoder", ["trained", "frozen"])
def test_a_run_over_three_corpora_hands_each_rows_own_words_to_the_loss(
    encoder, three_corpora, audio_encoders, text_encoder, tmp_path, monkeypatch
):
    """`acted` is tested: its calm is learned by none, and annoyed by `calls` alone."""
    from lascl.train import main

    def begin(audio_embeds, label_embeds, class_logits, labels, **settings):
        raise Begun(labels, len(label_embeds), settings["label_mask"])

    monkeypatch.setattr("lascl.modeling_lascl.joint_loss", begin)
    command = [
        *("csv", "--corpora", json.dumps(three_corpora), "--allow_partial", "true", "--folds", "acted"),
        *("--audio_encoder", audio_encoders["whisper"], "--text_encoder", text_encoder, "--max_steps", "1"),
        *("--augmentation", "gain", "--augmentation_period", "1", "--disable_tqdm", "true"),
        *("--freeze_audio_encoder", str(encoder == "frozen"), "--output_dir", str(tmp_path / "run")),
    ]
    with pytest.raises(Begun) as begun:
        main(command)
    labels, num_words, mask = begun.value.args
    emodb = ["anger", "boredom", "disgust", "fear", "happiness", "neutral", "sadness"]
    calls, words, half = ["anger", "annoyed", "neutral"], sorted({*emodb, "annoyed"}), len(mask) // 2
    assert (num_words, mask.shape) == (8, (len(labels), 8))
    own = {tuple(word for word, is_own in zip(words, row) if is_own) for row in mask.tolist()}
    assert own == {tuple(emodb), tuple(calls)}
    assert torch.equal(mask[:half], mask[half:]) and torch.equal(labels[:half], labels[half:])  # two views
    assert mask.gather(1, labels[:, None]).all()

"""The losses of what listeners said: shares of votes in place of labels.

Expected values come from the loops below, which follow the rules one pair after the other over Python's float64, from
numbers worked out by hand, or from the loss of labels, which one vote a row must be.
"""

import inspect
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from test_losses import joint as plain_joint
from tiny import loss_and_gradients, recording
from transformers import AutoFeatureExtractor, Trainer, TrainingArguments

from lascl import LaSCLForAudioClassification, LaSCLTrainer, LaSCLTrainingArguments
from lascl.data import SpeechCollator
from lascl.modeling_lascl import joint_loss, supervised_contrastive_loss


REDUCTIONS = ["mean", "bracket", "sum"]
BOTH = [True, False]


# ---------------------------------------------------------------------------------------------------- the rules, slowly


def dot(u, v):
    return sum(a * b for a, b in zip(u, v, strict=True))


def cosine(u, v):
    return dot(u, v) / math.sqrt(dot(u, u) * dot(v, v))


def shares_by_loops(votes, own):
    kept = [v if k in own else 0.0 for k, v in enumerate(votes)]
    return [v / sum(kept) for v in kept] if sum(kept) else kept


def anchors_by_loops(z, tau, weight, compares):
    """Of each anchor that has a positive: i, a_i and L_i. `weight` and `compares` are w_ij and c_ij as functions."""
    found = []
    for i in range(len(z)):
        others = [j for j in range(len(z)) if j != i and compares(i, j) > 0]
        total = sum(weight(i, j) for j in others)
        if not total:
            continue
        below = sum(compares(i, j) * math.exp(cosine(z[i], z[j]) / tau) for j in others)
        logs = [
            weight(i, j) / total * math.log(compares(i, j) * math.exp(cosine(z[i], z[j]) / tau) / below) for j in others
        ]
        found.append((i, min(1.0, total), -sum(logs)))
    return found


def joint_by_loops(
    b, mask=None, *, tau=0.1, lambda_1=0.5, lambda_2=0.1, label_anchors=True, reduction="mean", s=0.0, c=None
):
    """Eq. 9 of shares by the rules of the issue; `c` by word weighs the means."""
    audio, e, logits, votes = (x.tolist() for x in (b.audio, b.label, b.logits, b.labels))
    num_rows, num_words = len(audio), len(e)
    own = [{k for k in range(num_words) if mask is None or mask[i, k]} for i in range(num_rows)]
    p = [shares_by_loops(row, words) for row, words in zip(votes, own)]
    voted = [i for i in range(num_rows) if sum(p[i])]
    q = [[(1 - s) * x + s / len(own[i]) * (k in own[i]) for k, x in enumerate(p[i])] for i in range(num_rows)]
    q = [q[i] if i in voted else p[i] for i in range(num_rows)]  # smoothed

    def words_compare(k, other):
        return mask is None or any({k, other} <= own[i] for i in voted)

    def compares(i, j):
        i, j = sorted((i, j))
        if i >= num_rows:  # two words
            return float(words_compare(i - num_rows, j - num_rows))
        if i not in voted or (j < num_rows and j not in voted):
            return 0.0
        if j >= num_rows:
            return float(j - num_rows in own[i])
        return sum(p[i][k] for k in own[j]) * sum(p[j][k] for k in own[i])

    def weight(i, j):
        i, j = sorted((i, j))
        if i >= num_rows:
            return 0.0
        return q[i][j - num_rows] if j >= num_rows else dot(q[i], q[j])

    found = anchors_by_loops(audio + e if label_anchors else audio, tau, weight, compares)
    r = [dot(p[i], c or [1] * num_words) for i in range(num_rows)] + list(c or [1] * num_words)
    a = sum(a for _, a, _ in found)
    mean = sum(r[i] * a * loss for i, a, loss in found) / (sum(r[i] * a for i, a, _ in found) or 1)
    contrastive = mean * (a or 1) if reduction == "sum" else mean
    divergence = 0.0
    for i in range(num_words):
        others = [j for j in range(num_words) if j != i and words_compare(i, j)]
        below = 1 + sum(math.exp(dot(e[i], e[k])) for k in others)
        divergence -= sum(math.log(1 - math.exp(dot(e[i], e[j])) / below) for j in others)
    divergence = divergence / max(a, 1) if reduction == "bracket" else divergence
    rows = []
    for i in voted:
        below = math.log(sum(math.exp(logits[i][k]) for k in own[i]))
        rows.append(r[i] * sum(q[i][k] * (below - logits[i][k]) for k in own[i]))
    terms = {
        "contrastive": contrastive,
        "divergence": divergence,
        "cross_entropy": sum(rows) / (sum(r[i] for i in voted) or 1),
    }
    return lambda_1 * (contrastive + lambda_2 * divergence) + (1 - lambda_1) * terms["cross_entropy"], terms


# -------------------------------------------------------------------------------------------------------------- batches


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def batch(rows=5, views=2, words=4, dim=5, seed=0, listeners=3, silent=(), corpora=None):
    """Votes of so many listeners on each row, none on `silent` ones; of `corpora`, in turn, also the mask. A listener
    may say a word that the corpus does not annotate."""
    draw = torch.Generator().manual_seed(seed)
    chosen = torch.randint(words, (rows, listeners), generator=draw)
    votes = F.one_hot(chosen, words).sum(dim=1).double()  # (rows, words)
    votes[list(silent)] = 0
    total = rows * views
    b = SimpleNamespace(
        audio=normal(total, dim, seed=seed + 1),
        label=normal(words, dim, seed=seed + 2) / dim**0.5,
        logits=normal(total, words, seed=seed + 3),
        labels=votes.repeat(views, 1),
    )
    if corpora is None:
        return b, None
    mask = torch.zeros(total, words, dtype=torch.bool)
    for row in range(total):
        mask[row, sorted(corpora[row % rows % len(corpora)])] = True
    return b, mask


def takes_votes(function, *args, **kwargs):
    try:
        return function(*args, **kwargs)
    except (TypeError, ValueError, RuntimeError) as error:
        raise AssertionError(f"votes are not taken: {error}") from error


def joint(b, mask=None, *, reduction="mean", s=0.0, **weights):
    assert not s or "target_smoothing" in inspect.signature(joint_loss).parameters, "nothing smooths targets"
    options = {} if reduction == "mean" else {"contrastive_reduction": reduction}
    options |= {} if mask is None else {"label_mask": mask}
    return takes_votes(plain_joint, b, **options, **({"target_smoothing": s} if s else {}), **weights)


def contrastive(z, votes, tau=0.1, comparable=None, **options):
    return takes_votes(
        supervised_contrastive_loss, z, votes, tau, *([] if comparable is None else [comparable]), **options
    )


def gradients(loss, *tensors):
    """The value, and the gradient of each tensor, which must be there and finite."""
    leaves = [x.detach().clone().requires_grad_() for x in tensors]
    value = loss(*leaves)
    value.backward()
    assert value.isfinite() and all(leaf.grad is not None and leaf.grad.isfinite().all() for leaf in leaves)
    return value.detach(), [leaf.grad for leaf in leaves]


def gradients_of_joint(b, mask=None, **options):
    def loss(audio, label, logits):
        return joint(SimpleNamespace(audio=audio, label=label, logits=logits, labels=b.labels), mask, **options)[0]

    return gradients(loss, b.audio, b.label, b.logits)


def close(expected, tolerance=1e-10):
    return pytest.approx(expected, rel=0, abs=tolerance)


# -------------------------------------------------------------------------------------------------------------- eq. 4


def test_eq_4_of_votes_by_hand():
    # Three rows at 0, 60 and 90 degrees, tau = 1/2; the votes are A 3, A 2 B 1, B 3: shares (1, 0), (2/3, 1/3), (0, 1).
    # w12 = 2/3, w13 = 0, w23 = 1/3. W = 2/3, 1, 1/3 = a. Cosines 1/2, 0, sqrt(3)/2, twice that in the exponent.
    #   first:  -log(e^1 / (e^1 + e^0)) = log(1 + e^-1)                  = 0.313261688
    #   second: 2/3 log(1 + e^(sqrt3 - 1)) + 1/3 log(1 + e^(1 - sqrt3))  = 2/3 1.124715472 + 1/3 0.392664664
    #                                                                    = 0.880698536
    #   third:  -log(e^sqrt3 / (e^sqrt3 + e^0)) = log(1 + e^-sqrt3)      = 0.162901882
    # (2/3 0.313261688 + 0.880698536 + 1/3 0.162901882) / 2 = 0.571920144
    angles = torch.deg2rad(torch.tensor([0.0, 60.0, 90.0], dtype=torch.float64))
    z = torch.stack([angles.cos(), angles.sin()], dim=1)
    votes = torch.tensor([[3, 0], [2, 1], [0, 3]], dtype=torch.float64)
    assert contrastive(z, votes, 0.5).item() == close(0.571920144, 1e-8)
    assert contrastive(z, votes, 0.5, contrastive_reduction="sum").item() == close(2 * 0.571920144, 1e-8)


@pytest.mark.parametrize("rows, words", [(1, 1), (2, 3), (7, 2), (12, 5)])
def test_eq_4_of_votes_one_pair_after_the_other(rows, words):
    for seed in range(4):
        b, _ = batch(rows, 1, words, seed=seed, silent=range(0, rows, 5) if seed % 2 else ())
        p = [shares_by_loops(row, set(range(words))) for row in b.labels.tolist()]

        def compares(i, j, p=p):
            return float(bool(sum(p[i]) and sum(p[j])))

        found = anchors_by_loops(b.audio.tolist(), 0.1, lambda i, j, p=p: dot(p[i], p[j]), compares)
        expected = sum(a * loss for _, a, loss in found) / (sum(a for _, a, _ in found) or 1)
        assert contrastive(b.audio, b.labels).item() == close(expected)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-6), (torch.float64, 1e-12)])
@pytest.mark.parametrize("rows, words", [(2, 1), (6, 2), (16, 5), (5, 9)])
def test_one_vote_a_row_is_the_loss_of_labels(rows, words, dtype, tolerance):
    for seed in range(3):
        z, y = (
            normal(rows, 4, seed=seed).to(dtype),
            torch.randint(words, (rows,), generator=torch.Generator().manual_seed(seed)),
        )
        votes = 3 * F.one_hot(y, words).to(dtype)
        found = gradients(lambda z, votes=votes: contrastive(z, votes, 0.5), z)
        expected = gradients(lambda z, y=y: supervised_contrastive_loss(z, y, 0.5), z)
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def test_an_anchor_with_next_to_no_positives_counts_next_to_nothing():
    """Were it divided by what it has, the last row would count as much as the others, however little it agrees."""
    z = normal(3, 4)
    votes = torch.tensor([[1.0, 0, 0], [1.0, 0, 0], [1e-9, 1, 0]], dtype=torch.float64)
    alone = torch.tensor([[1.0, 0, 0], [1.0, 0, 0], [0, 1, 0]], dtype=torch.float64)
    assert contrastive(z, votes).item() == close(contrastive(z, alone).item(), 1e-7)
    tiny = torch.tensor([[1.0, 0, 0], [1e-30, 1, 0]])
    value, (gradient,) = gradients(lambda z: contrastive(z, tiny), z[:2].float())
    assert value == 0 and not gradient.any()  # one other alone: its probability is 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("silent", [[2], [0, 1, 2, 3, 4]])
def test_a_row_without_votes_compares_with_nothing(silent, dtype):
    b, _ = batch(5, 1, 3, silent=silent)
    z, votes = b.audio.to(dtype), b.labels.to(dtype)
    value, (gradient,) = gradients(lambda z: contrastive(z, votes), z)
    kept = [row for row in range(5) if row not in silent]
    assert not gradient[silent].any() and value.item() == close(contrastive(z[kept], votes[kept]).item(), 1e-6)
    if not kept:
        assert value == 0


def test_a_float_weighs_a_comparison_where_it_stands():
    z, y = normal(6, 3), torch.tensor([0, 1, 0, 1, 2, 2])
    c = torch.rand(6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    c = ((c + c.T) / 2).fill_diagonal_(0)
    c[0, 3] = c[3, 0] = 0
    for votes in (y, F.one_hot(y, 3).double()):
        found = anchors_by_loops(z.tolist(), 0.1, lambda i, j: float(y[i] == y[j]), lambda i, j: c[i, j].item())
        expected = sum(a * loss for _, a, loss in found) / sum(a for _, a, _ in found)
        assert contrastive(z, votes, 0.1, c).item() == close(expected)
        assert torch.autograd.gradcheck(lambda z, votes=votes: contrastive(z, votes, 0.3, c), (z.requires_grad_(),))
        z.requires_grad_(False)
    ones = torch.ones(6, 6, dtype=torch.float64)
    for one, other in zip(
        gradients(lambda z: contrastive(z, y, 0.1, ones), z), gradients(lambda z: contrastive(z, y, 0.1), z)
    ):
        assert torch.equal(*(x[0] if isinstance(x, list) else x for x in (one, other)))


def test_what_is_neither_true_nor_a_share_is_refused():
    z, votes = normal(3, 2), torch.ones(3, 2)
    for wrong, message in (
        (torch.full((3, 3), 1.5), "comparable must lie in [0, 1]; found 1.5 to 1.5."),
        (torch.full((3, 3), float("nan")), "comparable must lie in [0, 1]; found nan to nan."),
        (torch.ones(3, 3, dtype=torch.long), "(3, 3) of torch.bool; found (3, 3) of torch.int64"),
    ):
        with pytest.raises(ValueError) as caught:
            supervised_contrastive_loss(z, torch.zeros(3).long(), 0.1, wrong)
        assert message in str(caught.value)
    for wrong in (-1.0, float("inf"), float("nan")):
        votes[1, 0] = wrong
        with pytest.raises(ValueError) as caught:
            supervised_contrastive_loss(z, votes, 0.1)
        assert f"Votes must be finite and at least 0; found [{wrong}, 1.0] in row 1" in str(caught.value)


# -------------------------------------------------------------------------------------------------------------- eq. 9


CORPORA = {
    "one": None,
    "two that share some words": [{0, 1, 2}, {1, 2, 3, 4}],
    "disjoint words": [{0, 1, 2}, {3, 4}],
    "one inside the other": [{0, 1, 2, 3, 4}, {1, 2}],
    "a row's own word alone": [{0}, {1}, {2}],
}


@pytest.mark.parametrize("label_anchors", BOTH)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("corpora", CORPORA.values(), ids=CORPORA.keys())
def test_eq_9_of_votes_one_pair_after_the_other(corpora, reduction, label_anchors):
    for seed, (lambda_1, lambda_2, s) in enumerate([(0.5, 0.1, 0.0), (0.9, 1.0, 0.1), (0.3, 0.0, 0.5)]):
        b, mask = batch(words=5, seed=10 * seed, silent=[1] if seed else [], corpora=corpora)
        options = {"lambda_1": lambda_1, "lambda_2": lambda_2, "label_anchors": label_anchors, "reduction": reduction}
        loss, terms = joint(b, mask, s=s, **options)
        expected, expected_terms = joint_by_loops(b, mask, s=s, **options)
        assert loss.item() == close(expected)
        assert {name: term.item() for name, term in terms.items()} == {n: close(expected_terms[n]) for n in terms}
        if lambda_2 > 0:
            gradients_of_joint(b, mask, s=s, **options)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    corpora=st.none() | st.lists(st.sets(st.integers(0, 4), min_size=1), min_size=1, max_size=3),
    rows=st.integers(1, 5),
    silent=st.sets(st.integers(0, 4)),
    listeners=st.integers(1, 5),
    label_anchors=st.booleans(),
    s=st.sampled_from([0.0, 0.3, 1.0]),
    seed=st.integers(0, 2**20),
)
def test_eq_9_of_any_votes(corpora, rows, silent, listeners, label_anchors, s, seed):
    silent = [row for row in silent if row < rows]
    b, mask = batch(rows, 2, 5, seed=seed, listeners=listeners, silent=silent, corpora=corpora)
    loss, _ = joint(b, mask, label_anchors=label_anchors, s=s)
    assert loss.item() == close(joint_by_loops(b, mask, label_anchors=label_anchors, s=s)[0])


@pytest.mark.parametrize("label_anchors", BOTH)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_the_gradient_of_eq_9_of_votes_is_the_derivative(reduction, label_anchors):
    b, mask = batch(4, 2, 5, dim=3, silent=[2], corpora=CORPORA["two that share some words"])

    def loss(audio, label, logits):
        inputs = SimpleNamespace(audio=audio, label=label, logits=logits, labels=b.labels)
        options = {"label_anchors": label_anchors, "reduction": reduction, "s": 0.1}
        return joint(inputs, mask, tau=0.3, lambda_1=0.7, lambda_2=1.0, **options)[0]

    assert torch.autograd.gradcheck(loss, [x.requires_grad_() for x in (b.audio, b.label, b.logits)])


@pytest.mark.parametrize("corpora", [None, CORPORA["two that share some words"]])
@pytest.mark.parametrize("label_anchors", BOTH)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_eq_9_of_one_vote_a_row_is_that_of_labels(dtype, tolerance, label_anchors, corpora):
    """And what compares are the booleans."""
    b, mask = batch(words=5, corpora=corpora)
    own = torch.ones(10, 5) if mask is None else mask.double()
    y = torch.multinomial(own.float(), 1, generator=torch.Generator().manual_seed(0))[:, 0]
    for name in ("audio", "label", "logits"):
        setattr(b, name, getattr(b, name).to(dtype))
    of_labels, of_votes = (SimpleNamespace(**{**vars(b), "labels": labels}) for labels in (y, F.one_hot(y, 5).float()))
    options = {"label_anchors": label_anchors, "tau": 0.5}
    found, expected = (gradients_of_joint(rows, mask, **options) for rows in (of_votes, of_labels))
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def test_cross_entropy_of_votes_is_torchs_of_probabilities():
    b, _ = batch(silent=[])
    found = joint(b, lambda_1=0.0)[0]
    torch.testing.assert_close(found, F.cross_entropy(b.logits, b.labels / b.labels.sum(dim=1, keepdim=True)))
    counts, shares = (joint(SimpleNamespace(**{**vars(b), "labels": b.labels * f}))[0] for f in (1.0, 1 / 3))
    assert counts.item() == close(shares.item())


@pytest.mark.parametrize("label_anchors", BOTH)
@pytest.mark.parametrize("corpora", [None, [{0, 1}, {2, 3}]])
def test_rows_without_votes_are_in_no_term(corpora, label_anchors):
    """As if they were not there: not in a mean, and their corpus makes no pair of words."""
    b, mask = batch(6, 1, 4, silent=[1, 3, 5], corpora=corpora)
    value, (audio, label, logits) = gradients_of_joint(b, mask, label_anchors=label_anchors)
    kept = [0, 2, 4]
    fewer = SimpleNamespace(audio=b.audio[kept], label=b.label, logits=b.logits[kept], labels=b.labels[kept])
    expected = joint(fewer, None if mask is None else mask[kept], label_anchors=label_anchors)[0]
    assert value.item() == close(expected.item())
    assert not audio[1::2].any() and not logits[1::2].any() and label.any()


def test_a_batch_without_any_votes_has_no_loss_but_that_of_the_words():
    b, mask = batch(silent=range(5))
    value, (audio, label, logits) = gradients_of_joint(b, mask)
    assert not audio.any() and not logits.any() and label.any()  # the words are pushed apart
    b, mask = batch(silent=range(5), corpora=[{0, 1, 2, 3}])
    value, found = gradients_of_joint(b, mask)
    assert value == 0 and not any(gradient.any() for gradient in found)


def test_votes_for_words_of_no_corpus_of_a_row_are_left_out():
    b, mask = batch(words=5, corpora=[{0, 1, 2}, {1, 2, 3}])
    b.labels[0] = torch.tensor([0, 0, 0, 2, 1.0])  # for words that its corpus lacks alone
    b.labels[1] = torch.tensor([9.0, 1, 1, 0, 0])
    told = SimpleNamespace(**{**vars(b), "labels": b.labels.clone()})
    told.labels[0], told.labels[1] = 0, torch.tensor([0, 1.0, 1, 0, 0])
    assert joint(b, mask)[0].item() == close(joint(told, mask)[0].item())


def test_smoothing_weighs_more_in_eq_4_than_in_the_cross_entropy():
    """In a batch of K words alike often, with s = 0.1 and K = 4: s (1 - 1/K) = 0.075 of a row in the cross entropy, and
    (2 - s) times as much, 0.1425, of an anchor among the utterances."""
    rows, words, s = 4000, 4, 0.1
    y = torch.arange(rows) % words
    smoothed = (1 - s) * F.one_hot(y, words).double() + s / words
    agreement = (smoothed[0] * smoothed).sum(dim=1)
    others = agreement[y != y[0]].sum() / agreement.sum()
    assert others.item() == close((2 - s) * s * (1 - 1 / words), 1e-6)
    assert (smoothed[0].sum() - smoothed[0, 0]).item() == close(s * (1 - 1 / words))
    # And that these are the weights of the loss: it is the loss of the smoothed shares, given by hand, but for c_ij.
    b, _ = batch(8, 1, words)
    b.labels = F.one_hot(y[:8], words).double()
    by_hand = SimpleNamespace(**{**vars(b), "labels": smoothed[:8]})
    assert joint(b, s=s)[0].item() == close(joint(by_hand)[0].item())
    assert joint(SimpleNamespace(**{**vars(b), "labels": y[:8]}), s=s)[0].item() == close(joint(by_hand)[0].item())


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_smoothing_of_nothing_is_no_smoothing_to_the_bit(reduction):
    b, mask = batch(words=5, corpora=CORPORA["two that share some words"])
    for labels in (b.labels, mask.long().argmax(dim=1)):
        b.labels = labels
        options = {"contrastive_reduction": reduction, "label_mask": mask}
        assert "target_smoothing" in inspect.signature(joint_loss).parameters, "nothing smooths targets"
        plain, neutral = (plain_joint(b, **options, **more)[0] for more in ({}, {"target_smoothing": 0.0}))
        assert torch.equal(plain, neutral)


def test_votes_meet_autocast_and_half_precision_as_labels_do():
    b, mask = batch(words=5, corpora=CORPORA["two that share some words"])
    half = SimpleNamespace(**{name: x.bfloat16() for name, x in vars(b).items()})
    single = SimpleNamespace(**{name: x.float() for name, x in vars(half).items()})
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = joint(half, mask, s=0.1)[0]
    assert found.dtype == torch.float32 and torch.equal(found, joint(single, mask, s=0.1)[0])


def test_what_is_no_row_of_votes_is_refused_and_told():
    b, _ = batch()
    good = b.labels
    for labels, message in (
        (good[:, :3], "Expected labels (B,), or (B, K) of floats, and class_logits (B, K) for audio_embeds of B=10"),
        (good[0], "found (4,) and (10, 4)"),
        (good - 1, "Votes must be finite and at least 0; found ["),
        (good / 0, "Votes must be finite and at least 0; found ["),
    ):
        b.labels = labels
        with pytest.raises(ValueError) as caught:
            plain_joint(b)
        assert message in str(caught.value)
    b.labels = good
    for s in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=rf"target_smoothing must lie in \[0, 1\]; found {s}"):
            plain_joint(b, target_smoothing=s)


# --------------------------------------------------------------------------------------------- from items to a gradient


WORDS = ["angry", "calm", "happy", "sad"]


def clips(count=8, views=2, voted=True):
    """Clips on which three listeners voted, and of the last none."""
    items = []
    for index in range(count):
        votes = [0.0] * 4
        votes[index % 4], votes[(index + 1) % 4] = 2.0, 1.0
        audio = [recording(100 * view + index, 0.05 + 0.01 * (index % 5)) for view in range(views)]
        label = votes if index < count - 1 else [0.0] * 4
        items.append({"id": f"clip-{index}", "label": label if voted else index % 4, "views": audio})
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


def trainer_of(model, folder, **arguments):
    args = LaSCLTrainingArguments(str(folder), use_cpu=True, report_to="none", disable_tqdm=True, **arguments)
    return LaSCLTrainer(model, args)


def test_collators_stack_votes_view_by_view(build):
    from lascl.training.pooled import collate_pooled

    _, collate = build()
    items = clips(3)
    expected = torch.tensor([item["label"] for item in [*items, *items]])
    for kind in (list, torch.tensor, np.array):
        told = [{**item, "label": kind(item["label"]), "pooled_audio": torch.zeros(2, 4)} for item in items]
        for found in (takes_votes(collate, told)["labels"], takes_votes(collate_pooled, told)["labels"]):
            assert torch.equal(found, expected) and found.dtype == torch.float32
    mixed = [*items, {**items[0], "label": 1}]
    with pytest.raises(ValueError, match="Some labels are numbers of a class, others votes for each word"):
        collate(mixed)


@pytest.mark.parametrize("config", [{}, {"target_smoothing": 0.2}])
def test_forward_takes_votes_and_the_trainer_computes_the_same(build, tmp_path, config):
    from lascl import LaSCLConfig

    assert config.keys() <= LaSCLConfig.field_defaults().keys(), "the configuration knows no smoothing"
    model, collate = build(**config)
    batch = takes_votes(collate, clips())
    model.train()
    outputs = takes_votes(model, **batch)
    b = SimpleNamespace(
        audio=outputs.audio_embeds, label=outputs.label_embeds, logits=outputs.class_logits, labels=batch["labels"]
    )
    expected, terms = joint_by_loops(b, tau=0.07, s=config.get("target_smoothing", 0.0))
    assert outputs.loss.item() == pytest.approx(expected, rel=1e-5)
    assert {name: term.item() for name, term in outputs.terms.items()} == pytest.approx(terms, rel=1e-5)
    loss = trainer_of(model, tmp_path).compute_loss(model, batch)
    assert loss.item() == pytest.approx(outputs.loss.item(), rel=1e-6)


@pytest.mark.parametrize("chunks", [{"contrastive_chunk_size": 1}, {"contrastive_chunk_size": 3}])
def test_chunks_of_voted_rows_are_the_whole_batch(build, tmp_path, chunks):
    found = []
    for fields in ({}, chunks):
        model, collate = build()
        batch = takes_votes(collate, clips())
        found.append(loss_and_gradients(trainer_of(model, tmp_path, **fields), model, batch))
    (plain, expected), (cached, gradient) = found
    assert cached == pytest.approx(plain, rel=1e-10)
    torch.testing.assert_close(gradient, expected, rtol=1e-8, atol=1e-12)


def test_evaluation_scores_against_the_word_with_most_votes(build, tmp_path):
    model, collate = build()
    rows = clips(8, views=1)
    rows[2]["label"] = [1.0, 0.0, 1.0, 1.0]  # listeners who agree on nothing
    trainer = trainer_of(model, tmp_path, per_device_eval_batch_size=3)
    trainer.data_collator = collate
    prediction = takes_votes(trainer.predict, rows)
    right = [prediction.predictions[0][row].argmax() == row % 4 for row in range(7) if row != 2]
    assert prediction.metrics["test_wa"] == pytest.approx(sum(right) / 6)
    assert math.isfinite(prediction.metrics["test_loss"])
    undecided = trainer.predict([rows[2], rows[7]])
    assert "test_wa" not in undecided.metrics and "test_loss" in undecided.metrics


def test_a_training_of_votes_balances_by_the_word_with_most(build, tmp_path):
    class Told(torch.utils.data.Dataset):
        num_views = 2

        def __init__(self, items):
            self.items, self.ids = items, [item["id"] for item in items]
            self.label_shares = torch.tensor([item["label"] for item in items])
            self.labels = [-1] * len(items)

        def __len__(self):
            return len(self.items)

        def __getitem__(self, index):
            return self.items[index]

    model, collate = build()
    args = LaSCLTrainingArguments(
        str(tmp_path), use_cpu=True, report_to="none", disable_tqdm=True, max_steps=2, save_strategy="no",
        global_batch_size=4, utterances_per_class=1, logging_steps=1, logging_strategy="steps",
    )  # fmt: skip
    trainer = LaSCLTrainer(model, args, train_dataset=Told(clips(9)), data_collator=collate)
    takes_votes(trainer.train)
    batches = trainer._sampler.global_batches()
    assert all(
        sorted(clips(9)[row]["label"].index(max(clips(9)[row]["label"])) for row in b) == [0, 1, 2, 3] for b in batches
    )
    assert all(math.isfinite(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry)


def test_stock_trainer_hands_votes_on(build, tmp_path):
    model, collate = build()
    fields = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "remove_unused_columns": False}
    trainer = Trainer(
        model, TrainingArguments(str(tmp_path), **fields), eval_dataset=clips(4, 1), data_collator=collate
    )
    assert math.isfinite(takes_votes(trainer.evaluate)["eval_loss"])

"""The losses of the paper (section 2.2, eq. 4-9) as pure functions of tensors.

Expected values never come from the code under test: they come from the plain loops below, which follow
the paper line by line, from numbers worked out by hand in a comment, or from the torch call that a loss
collapses to.

One liberty with eq. 4: the paper writes a sum over the anchors; by default, as in the code released by Khosla et al.,
the mean over the anchors that have a positive is taken, so that the value does not grow with the batch. What the other
reductions do has a section of its own.
"""

import inspect
import math
from decimal import Decimal, localcontext
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from lascl.modeling_lascl import joint_loss, label_divergence_loss, supervised_contrastive_loss


TEMPERATURES = [0.05, 0.07, 0.1, 0.15, 0.2]  # the grid of section 3.2
LOW_PRECISION = [torch.bfloat16, torch.float16]


# -------------------------------------------------------- the paper's equations, as loops over Python numbers

FLOAT = SimpleNamespace(number=float, exp=math.exp, log=math.log, sqrt=math.sqrt)
DECIMAL = SimpleNamespace(number=Decimal, exp=Decimal.exp, log=Decimal.ln, sqrt=Decimal.sqrt)  # any number of digits


def numbers(tensor, arithmetic=FLOAT):
    return [[arithmetic.number(x) for x in row] for row in tensor.detach().double().tolist()]


def dot(u, v):
    return sum(a * b for a, b in zip(u, v, strict=True))


def cosine(u, v, arithmetic):
    lengths = arithmetic.sqrt(dot(u, u)) * arithmetic.sqrt(dot(v, v))
    return dot(u, v) / lengths if lengths else lengths  # a vector without direction is similar to nothing: 0


def anchors_by_loops(embeddings, labels, temperature, arithmetic=FLOAT):
    """The summands of eq. 4, of the anchors that have a positive."""
    z, y, tau = numbers(embeddings, arithmetic), labels.tolist(), arithmetic.number(temperature)
    anchors = []
    for i in range(len(z)):
        others = [j for j in range(len(z)) if j != i]  # Z(i)
        positives = [p for p in others if y[p] == y[i]]  # P(i)
        if not positives:
            continue
        denominator = sum(arithmetic.exp(cosine(z[i], z[j], arithmetic) / tau) for j in others)
        total = 0
        for p in positives:
            total += arithmetic.log(arithmetic.exp(cosine(z[i], z[p], arithmetic) / tau) / denominator)
        anchors.append(-total / len(positives))
    return anchors


def contrastive_by_loops(embeddings, labels, temperature, arithmetic=FLOAT):
    """Eq. 4, the mean over the anchors that have a positive."""
    anchors = anchors_by_loops(embeddings, labels, temperature, arithmetic)
    return float(sum(anchors) / len(anchors)) if anchors else 0.0


def divergence_by_loops(label_embeddings):
    """Eq. 5 and 6: the sum over ordered pairs of different labels."""
    e = numbers(label_embeddings)
    total = 0
    for i in range(len(e)):
        others = [j for j in range(len(e)) if j != i]  # E_i
        for j in others:
            p = math.exp(dot(e[i], e[j])) / (sum(math.exp(dot(e[i], e[k])) for k in others) + 1)
            total -= math.log(1 - p)
    return total


def divergence_with_enough_digits(label_embeddings):
    """The same where 1 - p is as small as e^-20000: over the denominator of eq. 5, in 60 decimal digits."""
    e = numbers(label_embeddings, DECIMAL)
    total = 0
    with localcontext(prec=60):
        for i in range(len(e)):
            others = [j for j in range(len(e)) if j != i]
            for j in others:
                numerator = sum(dot(e[i], e[k]).exp() for k in others if k != j) + 1
                denominator = sum(dot(e[i], e[k]).exp() for k in others) + 1
                total -= (numerator / denominator).ln()
    return float(total)


def cross_entropy_by_loops(class_logits, labels):
    """Eq. 7 and 8."""
    logits, y = numbers(class_logits), labels.tolist()
    total = 0
    for row, label in zip(logits, y, strict=True):
        total -= math.log(math.exp(row[label]) / sum(math.exp(x) for x in row))
    return total / len(y)


def joint_by_loops(audio, label, logits, labels, *, tau, lambda_1, lambda_2, label_anchors):
    """Eq. 9, all three terms always computed."""
    if label_anchors:
        union, union_labels = torch.cat([audio, label]), torch.cat([labels, torch.arange(len(label))])
    else:
        union, union_labels = audio, labels
    contrastive = contrastive_by_loops(union, union_labels, tau)
    divergence = divergence_by_loops(label)
    return lambda_1 * (contrastive + lambda_2 * divergence) + (1 - lambda_1) * cross_entropy_by_loops(logits, labels)


# ------------------------------------------------------------------------------------------------- the inputs


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def integers(high, size, seed=0):
    return torch.randint(high, (size,), generator=torch.Generator().manual_seed(seed))


def permutation(size, seed=0):
    return torch.randperm(size, generator=torch.Generator().manual_seed(seed))


def rotation(size, seed=0):
    return torch.linalg.qr(normal(size, size, seed=seed))[0]


def at_degrees(*angles, lengths=None):
    angles = torch.deg2rad(torch.tensor(angles, dtype=torch.float64))
    unit = torch.stack([angles.cos(), angles.sin()], dim=1)
    return unit if lengths is None else unit * torch.tensor(lengths, dtype=torch.float64)[:, None]


def batch(utterances=5, views=2, dim=6, classes=4, seed=0, dtype=torch.float64, present=None):
    """Arguments of joint_loss: `views` views of each utterance; only the first `present` classes occur."""
    rows = utterances * views
    return SimpleNamespace(
        audio=normal(rows, dim, seed=seed, dtype=dtype),
        label=normal(classes, dim, seed=seed + 1, dtype=dtype) / dim**0.5,
        logits=normal(rows, classes, seed=seed + 2, dtype=dtype),
        labels=integers(present or classes, utterances, seed=seed + 3).repeat(views),
    )


def joint(b, *, tau=0.1, lambda_1=0.5, lambda_2=0.1, label_anchors=True, **others):
    return joint_loss(
        b.audio,
        b.label,
        b.logits,
        b.labels,
        contrastive_temperature=tau,
        contrastive_weight=lambda_1,
        divergence_weight=lambda_2,
        label_anchors=label_anchors,
        **others,
    )


def value_and_gradients(function, *inputs):
    """Backward works and reaches every input: no degenerate batch may leave a rank without gradients."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    value = function(*leaves)
    assert value.shape == ()
    value.backward()
    for leaf in leaves:
        assert leaf.grad is not None, "the input has left the graph"
        assert leaf.grad.shape == leaf.shape
        assert leaf.grad.isfinite().all()
    assert value.isfinite()
    return value.item(), [leaf.grad for leaf in leaves]


def close(expected, tolerance=1e-10):
    return pytest.approx(expected, rel=0, abs=tolerance)


# --------------------------------------------------------------------- eq. 4: the supervised contrastive loss


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("rows, dim, classes", [(2, 1, 1), (5, 3, 2), (12, 8, 4), (17, 2, 3), (24, 16, 30)])
def test_contrastive_is_equation_4(rows, dim, classes, temperature):
    for seed in range(3):
        embeddings, labels = normal(rows, dim, seed=seed), integers(classes, rows, seed=seed + 100)
        loss = supervised_contrastive_loss(embeddings, labels, temperature)
        assert loss.item() == close(contrastive_by_loops(embeddings, labels, temperature))


def test_contrastive_by_hand_leaves_an_anchor_without_positive_out_of_the_mean_but_in_the_denominators():
    # Labels A A B at 0, 60 and 90 degrees, tau = 1/2; cos 60 = 1/2, cos 90 = 0, cos 30 = sqrt(3)/2, so
    # sim/tau is 1 (first-second), 0 (first-third), sqrt(3) (second-third). The lengths do not matter.
    #   first:  -log(e^1 / (e^1 + e^0))       = log(1 + e^-1)            = 0.313261688
    #   second: -log(e^1 / (e^1 + e^sqrt(3))) = log(1 + e^(sqrt(3) - 1)) = 1.124715472
    #   third:  no positive
    # mean of the first two = 0.718988580
    embeddings, labels = at_degrees(0, 60, 90, lengths=[1, 3, 0.2]), torch.tensor([0, 0, 1])
    assert supervised_contrastive_loss(embeddings, labels, 0.5).item() == close(0.718988580, 1e-9)


def test_contrastive_by_hand_averages_the_positives_outside_the_logarithm():
    # One class at 0, 90 and 180 degrees, tau = 1.
    #   0 and 180: sims 0 and -1; log(e^0 + e^-1) = 0.313261688; mean with 1.313261688: 0.813261688
    #   90:        sims 0 and 0; log 2 = 0.693147181
    # mean = (2 * 0.813261688 + 0.693147181) / 3 = 0.773223519
    # With the mean inside the logarithm it would be log 2 = 0.693147181.
    embeddings, labels = at_degrees(0, 90, 180), torch.tensor([0, 0, 0])
    assert supervised_contrastive_loss(embeddings, labels, 1.0).item() == close(0.773223519, 1e-9)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_contrastive_with_one_positive_each_is_cross_entropy_over_the_other_similarities(temperature):
    # Two views of each of n utterances, every utterance its own class: SimCLR's NT-Xent.
    n = 9
    order = permutation(2 * n)
    embeddings, labels = normal(2 * n, 5)[order], torch.arange(n).repeat(2)[order]
    z = F.normalize(embeddings, dim=1)
    off_diagonal = ~torch.eye(2 * n, dtype=torch.bool)
    similarities = (z @ z.T / temperature)[off_diagonal].view(2 * n, 2 * n - 1)
    positive = (labels[:, None] == labels)[off_diagonal].view(2 * n, 2 * n - 1).nonzero()[:, 1]
    expected = F.cross_entropy(similarities, positive)
    assert supervised_contrastive_loss(embeddings, labels, temperature).item() == close(expected.item())


def test_contrastive_gradient_is_the_derivative():
    embeddings, labels = normal(7, 4).requires_grad_(), torch.tensor([0, 1, 0, 2, 1, 0, 3])
    assert torch.autograd.gradcheck(lambda z: supervised_contrastive_loss(z, labels, 0.2), (embeddings,))


a_seed = st.integers(0, 2**31 - 1)
quickly = settings(max_examples=25, deadline=None, derandomize=True)


@quickly
@given(rows=st.integers(0, 12), dim=st.integers(1, 6), classes=st.integers(1, 5), seed=a_seed)
def test_contrastive_depends_on_neither_order_nor_length_nor_rotation_nor_class_numbers(rows, dim, classes, seed):
    embeddings, labels = normal(rows, dim, seed=seed), integers(classes, rows, seed=seed + 1)
    loss = close(supervised_contrastive_loss(embeddings, labels, 0.1).item(), 1e-9)

    order = permutation(rows, seed)
    assert supervised_contrastive_loss(embeddings[order], labels[order], 0.1).item() == loss
    rescaled = embeddings * (3 * normal(rows, 1, seed=seed + 2)).exp()
    assert supervised_contrastive_loss(rescaled, labels, 0.1).item() == loss
    rotated = embeddings @ rotation(dim, seed)
    assert supervised_contrastive_loss(rotated, labels, 0.1).item() == loss
    renamed = torch.tensor([1000, -3, 2, 0, -100])[labels]
    assert supervised_contrastive_loss(embeddings, renamed, 0.1).item() == loss


@pytest.mark.parametrize(
    "labels",
    [[], [0], [3, 1, 2, 0], [5, -5]],
    ids=["no sample", "one sample", "every sample its own class", "two samples of two classes"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_contrastive_without_any_positive_is_zero_with_zero_gradient(labels, dtype):
    embeddings, labels = normal(len(labels), 3, dtype=dtype), torch.tensor(labels, dtype=torch.long)
    value, (gradient,) = value_and_gradients(lambda z: supervised_contrastive_loss(z, labels, 0.07), embeddings)
    assert value == 0
    assert not gradient.any()


def test_contrastive_of_one_class_is_equation_4():
    embeddings, labels = normal(6, 3), torch.full((6,), 2)
    value, _ = value_and_gradients(lambda z: supervised_contrastive_loss(z, labels, 0.07), embeddings)
    assert value == close(contrastive_by_loops(embeddings, labels, 0.07))


def test_contrastive_of_two_samples_of_one_class_is_zero():
    # The only other sample is the positive: the fraction of eq. 4 is 1.
    value, (gradient,) = value_and_gradients(
        lambda z: supervised_contrastive_loss(z, torch.tensor([1, 1]), 0.07), normal(2, 3)
    )
    assert value == close(0)
    assert gradient.abs().max() < 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("row", [[1.0, -2.0, 0.5], [0.0, 0.0, 0.0]], ids=["duplicates", "zero vectors"])
@pytest.mark.parametrize("temperature", [0.05, 1e-3])
def test_contrastive_of_equal_rows_is_the_log_of_the_number_of_others(row, dtype, temperature):
    # All similarities are the same, so each of the 4 others has probability 1/4.
    embeddings, labels = torch.tensor([row] * 5, dtype=dtype), torch.tensor([0, 0, 1, 1, 1])
    value, _ = value_and_gradients(lambda z: supervised_contrastive_loss(z, labels, temperature), embeddings)
    assert value == close(math.log(4), 1e-4 if dtype == torch.float32 else 1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("zero_rows", [[0], [1, 4], [0, 2, 5]])
def test_contrastive_takes_a_zero_vector_as_similar_to_nothing(zero_rows, dtype):
    embeddings, labels = normal(6, 4, dtype=dtype), torch.tensor([0, 1, 0, 1, 1, 2])
    embeddings[zero_rows] = 0
    value, (gradient,) = value_and_gradients(lambda z: supervised_contrastive_loss(z, labels, 0.1), embeddings)
    assert value == close(contrastive_by_loops(embeddings, labels, 0.1), 1e-5 if dtype == torch.float32 else 1e-10)
    assert (
        gradient.norm() < 100
    )  # dividing by a small epsilon instead of the length gives 10^12: clipping kills the rest


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_contrastive_at_a_tiny_temperature_is_exact_where_the_exponentials_overflow(dtype):
    # e^(1/0.001) is 10^434, beyond float64: the expected value is computed with 60 decimal digits.
    embeddings, labels = normal(10, 4, dtype=dtype), integers(3, 10)
    value, _ = value_and_gradients(lambda z: supervised_contrastive_loss(z, labels, 1e-3), embeddings)
    with localcontext(prec=60):
        expected = contrastive_by_loops(embeddings, labels, 1e-3, DECIMAL)
    assert expected > 100
    assert value == pytest.approx(expected, rel=1e-5 if dtype == torch.float32 else 1e-12)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_contrastive_in_float32_is_as_good_as_in_float64(temperature):
    embeddings, labels = normal(68, 256, dtype=torch.float32), integers(4, 68)
    single, (single_gradient,) = value_and_gradients(
        lambda z: supervised_contrastive_loss(z, labels, temperature), embeddings
    )
    double, (double_gradient,) = value_and_gradients(
        lambda z: supervised_contrastive_loss(z, labels, temperature), embeddings.double()
    )
    assert single == pytest.approx(double, rel=2e-6)
    assert (single_gradient - double_gradient).norm() < 1e-5 * double_gradient.norm()


# ------------------------------------------------------------------------- eq. 5-6: the label divergence loss


@pytest.mark.parametrize("classes, dim", [(2, 1), (2, 5), (3, 2), (4, 8), (7, 16), (12, 3)])
def test_divergence_is_equations_5_and_6_with_plain_dot_products(classes, dim):
    for seed in range(3):
        label_embeddings = 1.5 * normal(classes, dim, seed=seed) / dim**0.5
        loss = label_divergence_loss(label_embeddings)
        assert loss.item() == close(divergence_by_loops(label_embeddings))
        assert loss.item() == close(divergence_with_enough_digits(label_embeddings))


def test_divergence_by_hand_of_orthogonal_labels():
    # Each dot product is 0 and each exponential 1, so with K labels p = 1 / ((K - 1) + 1) = 1/K in each of
    # the K (K - 1) ordered pairs: 6 log(3/2) = 2.432790649 for K = 3, 12 log(4/3) = 3.452184869 for K = 4.
    assert label_divergence_loss(torch.eye(3, dtype=torch.float64)).item() == close(2.432790649, 1e-9)
    assert label_divergence_loss(torch.eye(4, dtype=torch.float64)).item() == close(3.452184869, 1e-9)


def test_divergence_by_hand_of_equal_labels():
    # K = 3 equal unit vectors: p = e / (2e + 1) = 0.422318798, 1 - p = (e + 1) / (2e + 1) in each of 6 pairs:
    # 6 (log(2e + 1) - log(e + 1)) = 6 (1.861994804 - 1.313261688) = 3.292398699.
    equal = torch.tensor([[0.6, 0.8]] * 3, dtype=torch.float64)
    value, _ = value_and_gradients(label_divergence_loss, equal)
    assert value == close(3.292398699, 1e-9)


@pytest.mark.parametrize("length, similarity", [(0.0, 0.0), (1.0, 1.0), (2.0, 4.0)])
@pytest.mark.parametrize("sign", [1, -1])
def test_divergence_of_two_labels_has_a_closed_form(length, similarity, sign):
    # p = e^s / (e^s + 1) in both ordered pairs, so -log(1 - p) = log(1 + e^s), twice. The length counts.
    label_embeddings = torch.tensor([[length, 0], [sign * length, 0]], dtype=torch.float64)
    expected = 2 * math.log(1 + math.exp(sign * similarity))
    assert label_divergence_loss(label_embeddings).item() == close(expected)


def test_divergence_gradient_is_the_derivative():
    assert torch.autograd.gradcheck(label_divergence_loss, (normal(5, 3).requires_grad_(),))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1.0, 0.0, 1e4])
def test_divergence_of_one_label_is_zero_with_zero_gradient(dtype, scale):
    value, (gradient,) = value_and_gradients(label_divergence_loss, scale * normal(1, 4, dtype=dtype))
    assert value == 0
    assert not gradient.any()


def test_divergence_of_zero_vectors_is_that_of_orthogonal_ones():
    value, (gradient,) = value_and_gradients(label_divergence_loss, torch.zeros(3, 4))
    assert value == close(2.432790649, 1e-5)  # 6 log(3/2), as above
    assert not gradient.any()  # the derivative of a dot product at 0 is 0


@quickly
@given(classes=st.integers(1, 7), dim=st.integers(1, 6), seed=a_seed)
def test_divergence_depends_on_neither_order_nor_rotation(classes, dim, seed):
    label_embeddings = normal(classes, dim, seed=seed)
    loss = close(label_divergence_loss(label_embeddings).item(), 1e-9)
    assert label_divergence_loss(label_embeddings[permutation(classes, seed)]).item() == loss
    assert label_divergence_loss(label_embeddings @ rotation(dim, seed)).item() == loss


@quickly
@given(near=st.floats(0, 179), apart=st.floats(1, 180), turn=st.floats(-180, 180))
def test_divergence_of_two_unit_labels_grows_as_they_come_closer(near, apart, turn):
    far = min(near + apart, 180)
    nearer, farther = at_degrees(turn, turn + near), at_degrees(turn, turn + far)
    assert label_divergence_loss(nearer) > label_divergence_loss(farther)


def hundredfold(*rows):
    return 100 * torch.tensor(rows)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "label_embeddings",
    [
        hundredfold([1.0, 0.0], [1.0, 0.0]),
        hundredfold([1.0, 0.0], [-1.0, 0.0]),
        hundredfold([1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]),
        hundredfold([1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, 0.0]),
        100 * F.normalize(normal(5, 4, dtype=torch.float32), dim=1),
    ],
    ids=["equal pair", "opposite pair", "both", "also orthogonal and zero", "random"],
)
def test_divergence_is_stable_at_dot_products_of_ten_thousand(label_embeddings, dtype):
    value, _ = value_and_gradients(label_divergence_loss, label_embeddings.to(dtype))
    expected = divergence_with_enough_digits(label_embeddings)
    rel, tolerance = (1e-5, 1e-6) if dtype == torch.float32 else (1e-12, 1e-10)
    assert value == pytest.approx(expected, rel=rel, abs=tolerance)


def test_divergence_gradient_is_right_at_dot_products_of_ten_thousand():
    # e_1 = e_2 = -e_3: the pairs (1, 2) and (2, 1) cost log(1 + e^(e_1.e_2)) = e_1.e_2 up to e^-10000, all
    # others nothing, so the loss is 2 e_1.e_2 and its derivative 2 e_2 at e_1, 2 e_1 at e_2, 0 at e_3.
    _, (gradient,) = value_and_gradients(
        label_divergence_loss, torch.tensor([[100.0, 0.0], [100.0, 0.0], [-100.0, 0.0]])
    )
    torch.testing.assert_close(gradient, torch.tensor([[200.0, 0.0], [200.0, 0.0], [0.0, 0.0]]))


# --------------------------------------------------------------------------------- eq. 9: the joint objective


@pytest.mark.parametrize("label_anchors", [True, False])
@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize(
    "utterances, views, dim, classes, present",
    [(1, 1, 3, 2, None), (3, 2, 2, 3, None), (5, 2, 8, 4, 2), (4, 3, 6, 5, 1), (12, 1, 4, 7, 6)],
)
def test_joint_is_equation_9(utterances, views, dim, classes, present, temperature, label_anchors):
    b = batch(utterances, views, dim, classes, present=present)
    for lambda_1, lambda_2 in [
        (0.1, 0.01),
        (0.5, 0.1),
        (0.9, 1.0),
        (0.3, 0.0),
        (0.0, 1.0),
        (1.0, 0.1),
        (1.0, 0.0),
    ]:
        weights = {
            "tau": temperature,
            "lambda_1": lambda_1,
            "lambda_2": lambda_2,
            "label_anchors": label_anchors,
        }
        loss, _ = joint(b, **weights)
        assert loss.shape == ()
        assert loss.item() == close(joint_by_loops(b.audio, b.label, b.logits, b.labels, **weights))


def test_joint_by_hand():
    # One utterance (1, 0) of class 0, labels (1, 0) and (0, 1), logits (0, 0), tau = 1, lambda_1 = 1/2,
    # lambda_2 = 1/10.
    #   contrastive: the utterance and label 0 have each other as positive at sim 1 and label 1 as negative at
    #                sim 0: log(1 + e^-1) = 0.313261688 both; label 1 has no positive; the mean is 0.313261688
    #   divergence:  one dot product, 0: 2 log(1 + e^0) = 1.386294361
    #   cross entropy: log 2 = 0.693147181
    # (0.313261688 + 0.1 * 1.386294361) / 2 + 0.693147181 / 2 = 0.572519152
    b = SimpleNamespace(
        audio=torch.tensor([[1.0, 0.0]], dtype=torch.float64),
        label=torch.eye(2, dtype=torch.float64),
        logits=torch.zeros(1, 2, dtype=torch.float64),
        labels=torch.tensor([0]),
    )
    loss, terms = joint(b, tau=1.0)
    assert loss.item() == close(0.572519152, 1e-8)
    assert terms["contrastive"].item() == close(0.313261688, 1e-8)
    assert terms["divergence"].item() == close(1.386294361, 1e-8)
    assert terms["cross_entropy"].item() == close(0.693147181, 1e-8)


@pytest.mark.parametrize("label_anchors", [True, False])
def test_joint_terms_are_the_unweighted_losses(label_anchors):
    b = batch(classes=3)
    _, terms = joint(b, tau=0.15, lambda_1=0.3, lambda_2=0.01, label_anchors=label_anchors)
    union, union_labels = b.audio, b.labels
    if label_anchors:
        union, union_labels = torch.cat([b.audio, b.label]), torch.cat([b.labels, torch.tensor([0, 1, 2])])
    assert {name: term.shape for name, term in terms.items()} == dict.fromkeys(
        ["contrastive", "divergence", "cross_entropy"], torch.Size([])
    )
    assert terms["contrastive"].item() == close(contrastive_by_loops(union, union_labels, 0.15))
    assert terms["divergence"].item() == close(divergence_by_loops(b.label))
    assert terms["cross_entropy"].item() == close(cross_entropy_by_loops(b.logits, b.labels))


@pytest.mark.parametrize("label_anchors", [True, False])
@pytest.mark.parametrize(
    "lambda_1, lambda_2, computed",
    [
        (0.5, 0.1, {"contrastive", "divergence", "cross_entropy"}),
        (0.5, 0.0, {"contrastive", "cross_entropy"}),
        (1.0, 0.1, {"contrastive", "divergence"}),
        (1.0, 0.0, {"contrastive"}),
        (0.0, 0.1, {"cross_entropy"}),
        (0.0, 0.0, {"cross_entropy"}),
    ],
)
def test_joint_leaves_out_a_term_without_weight(lambda_1, lambda_2, computed, label_anchors):
    _, terms = joint(batch(), lambda_1=lambda_1, lambda_2=lambda_2, label_anchors=label_anchors)
    assert set(terms) == computed


@pytest.mark.parametrize("label_anchors", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_joint_without_contrastive_weight_is_cross_entropy(dtype, label_anchors):
    b = batch(dtype=dtype)
    loss, _ = joint(b, lambda_1=0.0, lambda_2=1.0, label_anchors=label_anchors)
    torch.testing.assert_close(loss, F.cross_entropy(b.logits, b.labels))


def test_joint_with_full_contrastive_weight_does_not_depend_on_the_class_logits():
    b = batch()
    loss, _ = joint(b, lambda_1=1.0)
    b.logits = b.logits + normal(*b.logits.shape, seed=9)
    assert torch.equal(joint(b, lambda_1=1.0)[0], loss)


def test_joint_without_label_anchors_depends_on_the_label_embeddings_only_by_their_divergence():
    b, other = batch(), batch()
    other.label = normal(*b.label.shape, seed=9)
    loss, _ = joint(b, lambda_2=0.0, label_anchors=False)
    assert torch.equal(joint(other, lambda_2=0.0, label_anchors=False)[0], loss)
    difference = joint(other, lambda_2=0.1, label_anchors=False)[0] - joint(b, lambda_2=0.1, label_anchors=False)[0]
    expected = 0.5 * 0.1 * (divergence_by_loops(other.label) - divergence_by_loops(b.label))
    assert difference.item() == close(expected)


@pytest.mark.parametrize("label_anchors", [True, False])
def test_joint_gradient_is_the_derivative(label_anchors):
    b = batch(utterances=3, dim=3, classes=3)

    def loss(audio, label, logits):
        inputs = SimpleNamespace(audio=audio, label=label, logits=logits, labels=b.labels)
        return joint(inputs, tau=0.2, lambda_1=0.7, lambda_2=1.0, label_anchors=label_anchors)[0]

    assert torch.autograd.gradcheck(loss, [x.requires_grad_() for x in (b.audio, b.label, b.logits)])


@quickly
@given(
    utterances=st.integers(1, 5),
    views=st.integers(1, 3),
    dim=st.integers(1, 5),
    classes=st.integers(1, 5),
    label_anchors=st.booleans(),
    seed=a_seed,
)
def test_joint_depends_on_neither_the_order_of_rows_and_classes_nor_the_length_of_audio_embeddings(
    utterances, views, dim, classes, label_anchors, seed
):
    b = batch(utterances, views, dim, classes, seed=seed)
    loss = close(joint(b, label_anchors=label_anchors)[0].item(), 1e-9)

    rows = permutation(utterances * views, seed)
    shuffled = SimpleNamespace(audio=b.audio[rows], label=b.label, logits=b.logits[rows], labels=b.labels[rows])
    assert joint(shuffled, label_anchors=label_anchors)[0].item() == loss

    new = permutation(classes, seed)  # class k of the renamed batch is class new[k]
    renamed = SimpleNamespace(
        audio=b.audio, label=b.label[new], logits=b.logits[:, new], labels=new.argsort()[b.labels]
    )
    assert joint(renamed, label_anchors=label_anchors)[0].item() == loss

    rescaled = SimpleNamespace(**vars(b))
    rescaled.audio = b.audio * (3 * normal(utterances * views, 1, seed=seed)).exp()
    assert joint(rescaled, label_anchors=label_anchors)[0].item() == loss


DEGENERATE = {
    "one sample": {"utterances": 1, "views": 1},
    "one sample in two views": {"utterances": 1, "views": 2},
    "one class present": {"present": 1},
    "an absent class": {"present": 3},
    "K = 1": {"classes": 1},
    "K = 1, one sample": {"utterances": 1, "views": 1, "classes": 1},
    "more classes than samples": {"utterances": 2, "classes": 9},
}


@pytest.mark.parametrize("label_anchors", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sizes", DEGENERATE.values(), ids=DEGENERATE.keys())
def test_joint_of_a_degenerate_batch_is_equation_9_and_backward_reaches_all(sizes, dtype, label_anchors):
    b = batch(**sizes, dtype=dtype)
    weights = {"tau": 0.1, "lambda_1": 0.5, "lambda_2": 0.1, "label_anchors": label_anchors}

    def loss(audio, label, logits):
        return joint(SimpleNamespace(audio=audio, label=label, logits=logits, labels=b.labels), **weights)[0]

    value, _ = value_and_gradients(loss, b.audio, b.label, b.logits)
    expected = joint_by_loops(b.audio, b.label, b.logits, b.labels, **weights)
    assert value == close(expected, 1e-5 if dtype == torch.float32 else 1e-10)


def test_joint_of_utterances_without_positive_and_without_label_anchors_still_reaches_the_audio():
    b = batch(utterances=3, views=1)
    b.labels = torch.tensor([2, 0, 1])

    def loss(audio):
        inputs = SimpleNamespace(audio=audio, label=b.label, logits=b.logits, labels=b.labels)
        return joint(inputs, label_anchors=False)[0]

    _, (gradient,) = value_and_gradients(loss, b.audio)
    assert not gradient.any()
    assert joint(b, label_anchors=False)[1]["contrastive"].item() == 0


@pytest.mark.parametrize("label_anchors", [True, False])
def test_joint_with_zero_vectors_and_duplicates_is_finite(label_anchors):
    b = batch(dtype=torch.float32)
    b.audio[0], b.audio[3], b.label[1], b.label[2] = 0, b.audio[4], 0, b.label[3]
    weights = {"tau": 0.1, "lambda_1": 0.5, "lambda_2": 0.1, "label_anchors": label_anchors}

    def loss(audio, label, logits):
        return joint(SimpleNamespace(audio=audio, label=label, logits=logits, labels=b.labels), **weights)[0]

    value, _ = value_and_gradients(loss, b.audio, b.label, b.logits)
    assert value == close(joint_by_loops(b.audio, b.label, b.logits, b.labels, **weights), 1e-5)


@pytest.mark.parametrize("label_anchors", [True, False])
def test_joint_of_no_samples_is_the_weighted_divergence(label_anchors):
    # A rank whose share of the last batch is empty: no positives, no cross entropy.
    b = batch(utterances=0)

    def loss(audio, label, logits):
        inputs = SimpleNamespace(audio=audio, label=label, logits=logits, labels=b.labels)
        return joint(inputs, lambda_1=0.5, lambda_2=0.1, label_anchors=label_anchors)[0]

    value, _ = value_and_gradients(loss, b.audio, b.label, b.logits)
    assert value == close(0.5 * 0.1 * divergence_by_loops(b.label))


# -------------------------------------------------------------------- what lambda_1 and lambda_2 weigh: reductions


REDUCTIONS = ["mean", "bracket", "sum"]


def reduced_by_loops(b, reduction, *, tau, lambda_1, lambda_2, label_anchors):
    """Eq. 9 with the bracket as `reduction` has it, from sums over anchors and over pairs of labels."""
    z, y = b.audio, b.labels
    if label_anchors:
        z, y = torch.cat([b.audio, b.label]), torch.cat([b.labels, torch.arange(len(b.label))])
    anchors, pairs = anchors_by_loops(z, y, tau), divergence_by_loops(b.label)
    num_anchors = len(anchors) or 1
    bracket = {
        "mean": sum(anchors) / num_anchors + lambda_2 * pairs,
        "bracket": (sum(anchors) + lambda_2 * pairs) / num_anchors,
        "sum": sum(anchors) + lambda_2 * pairs,
    }[reduction]
    cross_entropy = cross_entropy_by_loops(b.logits, b.labels) if len(b.labels) else 0.0
    return lambda_1 * bracket + (1 - lambda_1) * cross_entropy


def reduced(b, reduction, **weights):
    """The loss and its terms, or a failure that says what is missing."""
    assert "contrastive_reduction" in inspect.signature(joint_loss).parameters, "joint_loss knows no reduction"
    return joint(b, contrastive_reduction=reduction, **weights)


# Without positives, with classes that only a label has, with one class, one label, and no rows at all.
REDUCED_BATCHES = {
    "usual": {},
    "three views, an absent class": {"utterances": 4, "views": 3, "classes": 5, "present": 3},
    "one view": {"utterances": 6, "views": 1},
    "one class present": {"present": 1},
    "one sample": {"utterances": 1, "views": 1},
    "K = 1": {"classes": 1},
    "K = 1, one sample": {"utterances": 1, "views": 1, "classes": 1},
    "more classes than samples": {"utterances": 2, "views": 1, "classes": 9},
    "no rows": {"utterances": 0},
}


@pytest.mark.parametrize("label_anchors", [True, False])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("sizes", REDUCED_BATCHES.values(), ids=REDUCED_BATCHES.keys())
def test_joint_is_equation_9_in_every_reduction_and_backward_reaches_all(sizes, reduction, label_anchors):
    b = batch(**sizes)
    for lambda_1, lambda_2 in [(0.5, 0.1), (0.9, 1.0), (1.0, 0.01), (0.3, 0.0)]:
        weights = {"tau": 0.1, "lambda_1": lambda_1, "lambda_2": lambda_2, "label_anchors": label_anchors}
        loss, terms = reduced(b, reduction, **weights)
        assert loss.item() == close(reduced_by_loops(b, reduction, **weights), 1e-9)
        # Eq. 9 joins the terms that are logged, in every reduction.
        divergence, cross_entropy = (terms.get(name, torch.zeros(())) for name in ("divergence", "cross_entropy"))
        bracket = terms["contrastive"] + lambda_2 * divergence
        assert loss.item() == close((lambda_1 * bracket + (1 - lambda_1) * cross_entropy).item(), 1e-9)
    weights = {"tau": 0.1, "lambda_1": 0.5, "lambda_2": 0.1, "label_anchors": label_anchors}

    def loss_of(audio, label, logits):
        inputs = SimpleNamespace(audio=audio, label=label, logits=logits, labels=b.labels)
        return reduced(inputs, reduction, **weights)[0]

    value_and_gradients(loss_of, b.audio, b.label, b.logits)


def test_reductions_by_hand():
    # The batch of `test_joint_by_hand`: A = 2 anchors (label 1 has no positive) of 0.313261688 each, sum 0.626523376;
    # two pairs of labels, 1.386294361; cross entropy 0.693147181; both lambdas 1/2.
    #   mean:    0.313261688 + 1.386294361 / 2       = 1.006408869
    #   bracket: (0.626523376 + 1.386294361 / 2) / 2 = 0.659835278
    #   sum:     0.626523376 + 1.386294361 / 2       = 1.319670557
    # and the loss is the mean of that and of 0.693147181.
    b = SimpleNamespace(
        audio=torch.tensor([[1.0, 0.0]], dtype=torch.float64),
        label=torch.eye(2, dtype=torch.float64),
        logits=torch.zeros(1, 2, dtype=torch.float64),
        labels=torch.tensor([0]),
    )
    for reduction, bracket in zip(REDUCTIONS, [1.006408869, 0.659835278, 1.319670557], strict=True):
        loss, _ = reduced(b, reduction, tau=1.0, lambda_2=0.5)
        assert loss.item() == close((bracket + 0.693147181) / 2, 1e-8), reduction


@pytest.mark.parametrize("label_anchors", [True, False])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_the_gradient_of_every_reduction_is_the_derivative(reduction, label_anchors):
    b = batch(utterances=3, dim=3, classes=3)

    def loss(audio, label, logits):
        inputs = SimpleNamespace(audio=audio, label=label, logits=logits, labels=b.labels)
        return reduced(inputs, reduction, tau=0.2, lambda_1=0.7, lambda_2=1.0, label_anchors=label_anchors)[0]

    assert torch.autograd.gradcheck(loss, [x.requires_grad_() for x in (b.audio, b.label, b.logits)])


@pytest.mark.parametrize("label_anchors", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_default_reduction_is_mean_to_the_bit(dtype, label_anchors):
    b = batch(dtype=dtype)
    before, terms_before = joint(b, label_anchors=label_anchors)
    loss, terms = reduced(b, "mean", label_anchors=label_anchors)
    assert torch.equal(loss, before)
    assert terms.keys() == terms_before.keys()
    assert all(torch.equal(terms[name], terms_before[name]) for name in terms)


def test_bracket_is_mean_with_lambda_2_over_the_anchors_and_a_bracket_of_sum_over_them():
    b = batch(utterances=16, views=2, classes=4)  # every row has its other view, every label a row: A = 32 + 4
    assert set(b.labels.tolist()) == {0, 1, 2, 3}
    bracket, terms = reduced(b, "bracket", lambda_2=0.1)
    assert bracket.item() == close(reduced(b, "mean", lambda_2=0.1 / 36)[0].item())
    _, terms_of_sum = reduced(b, "sum", lambda_2=0.1)
    assert terms["contrastive"].item() == close(terms_of_sum["contrastive"].item() / 36)
    assert terms["divergence"].item() == close(terms_of_sum["divergence"].item() / 36)
    assert torch.equal(reduced(b, "bracket", lambda_2=0.0)[0], reduced(b, "mean", lambda_2=0.0)[0])


def test_contrastive_alone_is_summed_as_printed_or_divided_by_the_anchors():
    assert "contrastive_reduction" in inspect.signature(supervised_contrastive_loss).parameters
    embeddings, labels = normal(9, 4), torch.tensor([0, 1, 0, 2, 1, 0, 3, 3, 4])  # 2 and 4 are alone: A = 7
    anchors = anchors_by_loops(embeddings, labels, 0.1)
    assert len(anchors) == 7
    found = [
        supervised_contrastive_loss(embeddings, labels, 0.1, contrastive_reduction=reduction).item()
        for reduction in REDUCTIONS
    ]
    assert found == [close(sum(anchors) / 7), close(sum(anchors) / 7), close(sum(anchors))]


def test_an_unknown_reduction_is_refused_and_named():
    for run in (
        lambda: reduced(batch(), "average"),
        lambda: supervised_contrastive_loss(
            normal(4, 3), torch.tensor([0, 0, 1, 1]), 0.1, contrastive_reduction="average"
        ),
    ):
        with pytest.raises(ValueError, match="mean, bracket, sum; found 'average'"):
            run()


# --------------------------------------------------------------------------------------- precision and purity


def three_losses(b):
    loss, terms = joint(b, tau=0.05)
    return [
        supervised_contrastive_loss(b.audio, b.labels, 0.05),
        label_divergence_loss(b.label),
        loss,
        *(terms[name] for name in ("contrastive", "divergence", "cross_entropy")),
    ]


def cast(b, dtype):
    return SimpleNamespace(audio=b.audio.to(dtype), label=b.label.to(dtype), logits=b.logits.to(dtype), labels=b.labels)


@pytest.mark.parametrize("autocast_dtype", LOW_PRECISION)
@pytest.mark.parametrize("input_dtype", [torch.float32, *LOW_PRECISION, torch.float64])
def test_autocast_changes_nothing(input_dtype, autocast_dtype):
    b = cast(batch(dim=32), input_dtype)
    working = torch.float64 if input_dtype == torch.float64 else torch.float32
    expected = three_losses(cast(b, working))
    with torch.autocast("cpu", dtype=autocast_dtype):
        losses = three_losses(b)
    for loss, value in zip(losses, expected, strict=True):
        assert loss.dtype == working
        assert torch.equal(loss, value)


@pytest.mark.parametrize("dtype", LOW_PRECISION)
def test_low_precision_inputs_are_computed_in_float32(dtype):
    b = cast(batch(dim=32), dtype)
    for loss, expected in zip(three_losses(b), three_losses(cast(b, torch.float32)), strict=True):
        assert loss.dtype == torch.float32
        assert torch.equal(loss, expected)


@pytest.mark.parametrize("dtype", LOW_PRECISION)
def test_low_precision_audio_may_meet_float32_labels(dtype):
    b = batch(dtype=torch.float32)
    b.audio, b.logits = b.audio.to(dtype), b.logits.to(dtype)
    loss, _ = joint(b)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, joint(cast(b, torch.float32))[0])


def test_float64_stays_float64():
    assert {loss.dtype for loss in three_losses(batch())} == {torch.float64}


@pytest.mark.parametrize("dtype", LOW_PRECISION)
def test_low_precision_inputs_get_finite_gradients_under_autocast(dtype):
    b = batch(dim=32, dtype=dtype)

    def loss(audio, label, logits):
        with torch.autocast("cpu", dtype=dtype):
            return joint(SimpleNamespace(audio=audio, label=label, logits=logits, labels=b.labels), tau=0.05)[0]

    _, gradients = value_and_gradients(loss, b.audio, b.label, b.logits)
    assert all(gradient.any() for gradient in gradients)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_inputs_are_not_modified(dtype):
    b, same = batch(dtype=dtype), batch(dtype=dtype)
    versions = {name: tensor._version for name, tensor in vars(b).items()}
    three_losses(b)
    assert {name: tensor._version for name, tensor in vars(b).items()} == versions
    for name, tensor in vars(b).items():
        assert torch.equal(tensor, getattr(same, name)), name


def test_the_same_inputs_give_the_same_losses():
    for first, second in zip(three_losses(batch()), three_losses(batch()), strict=True):
        assert torch.equal(first, second)


# -------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("rows, found", [(13, 11), (11, 13), (1, 3), (3, 0)])
def test_contrastive_refuses_labels_of_another_length_and_says_how_many(rows, found):
    with pytest.raises(ValueError, match=rf"\b{found}\b"):
        supervised_contrastive_loss(normal(rows, 4), torch.zeros(found, dtype=torch.long), 0.1)


@pytest.mark.parametrize("lambda_1", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("found", [11, 15])
def test_joint_refuses_labels_of_another_length_and_says_how_many(found, lambda_1):
    b = batch(utterances=13, views=1)
    b.labels = integers(4, found)
    with pytest.raises(ValueError, match=rf"\b{found}\b"):
        joint(b, lambda_1=lambda_1)


def test_joint_refuses_class_logits_of_another_number_of_classes_and_says_how_many():
    b = batch(classes=4)
    b.logits = normal(len(b.audio), 7)
    with pytest.raises(ValueError, match=r"\b7\b"):
        joint(b)


@pytest.mark.parametrize("temperature", [0, 0.0, -0.07])
def test_a_temperature_that_is_not_positive_is_refused_and_named(temperature):
    with pytest.raises(ValueError, match=rf"(?i)temperature.*{temperature}"):
        supervised_contrastive_loss(normal(4, 3), torch.tensor([0, 0, 1, 1]), temperature)
    with pytest.raises(ValueError, match=rf"(?i)temperature.*{temperature}"):
        joint(batch(), tau=temperature)


@pytest.mark.parametrize("label_anchors", [True, False])
@pytest.mark.parametrize("lambda_1", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("label", [4, 17, -1, -100], ids=["K", "beyond K", "-1", "the index cross entropy ignores"])
def test_joint_refuses_a_label_outside_the_classes_and_names_it(label, lambda_1, label_anchors):
    b = batch(classes=4)
    b.labels[3] = label
    with pytest.raises(ValueError, match=rf"(?<![\d-]){label}\b"):
        joint(b, lambda_1=lambda_1, label_anchors=label_anchors)

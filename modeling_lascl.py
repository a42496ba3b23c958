"""LaSCL: pooling, projections, the paper's losses as pure functions, and the two model classes.

One of the three files that travel with every checkpoint. Paper: Hu et al., "Label Semantic-Driven Contrastive Learning
for Speech Emotion Recognition", Interspeech 2025; equation numbers are the paper's.

Letters: B rows of a batch (utterances x views), T encoder frames, K labels, D width of the joint space, d_a and d_t
widths of the audio and the text encoder, M embeddings that a contrastive loss compares. A row's own words are those
that its corpus annotates, of which its listeners chose one.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from huggingface_hub import HfApi
from torch import nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedModel
from transformers.utils import ModelOutput, logging
from transformers.utils.hub import cached_file, extract_commit_hash

from .configuration_lascl import REDUCTIONS, LaSCLConfig, checked_phrasings, is_folder_name, words_key
from .encoders_lascl import (
    active_frames,
    at_equal_level,
    build_audio_encoder,
    check_window,
    draw,
    encoder_outputs,
    groups_to_encode,
    has_no_values,
    input_convolution,
    load_audio_encoder,
    refuse_odd_audio,
    samples_of_one_frame,
    window_groups,
)


logger = logging.get_logger(__name__)


# ------------------------------------------------------------------------------------------------------------ losses


def supervised_contrastive_loss(
    embeddings: torch.Tensor,
    labels: torch.Tensor,
    temperature: float,
    comparable: torch.Tensor | None = None,
    *,
    contrastive_reduction: str = "mean",
) -> torch.Tensor:
    r"""Supervised contrastive loss over all M embeddings as anchors (eq. 4).

        L_i = -1/|P(i)|  sum_{p in P(i)}  log  exp(sim(z_i, z_p)/tau) / sum_{j in C(i)} exp(sim(z_i, z_j)/tau)
        L   = sum_i L_i / A   (`mean`, `bracket`)   or   sum_i L_i   (`sum`)

    with sim the cosine, C(i) the other embeddings that i compares with (all of them, in the paper), P(i) those in C(i)
    with the label of i, and A the number of anchors whose P(i) is not empty; the others add nothing. The paper prints
    the sum; the released code of Khosla et al. (2020, arXiv:2004.11362) takes the mean, whose size does not grow with
    the batch.

    Of shares p (M, K) instead of labels, as listeners' votes give them, a pair is positive as far as it agrees:

        w_ij = sum_k p_ik p_jk  for j in C(i),   W_i = sum_j w_ij,   a_i = min(1, W_i)
        L    = sum_i a_i sum_j (w_ij / W_i) (-log q_ij) / sum_i a_i,     A = sum_i a_i

    with q_ij the fraction above, so that an anchor with next to no positives counts next to nothing. Where every row
    has one word, w_ij is 1 or 0, and this is the loss of labels. A row without votes compares with nothing.

    Args:
        embeddings: (M, D), any length: they are normalised here. A zero vector has cosine 0 to everything.
        labels: (M,) integers; equal means positive. Their values carry no order. Or (M, K) of a floating type, at least
            0: votes or shares, each row of which is divided by its sum.
        temperature: tau, above 0.
        comparable: (M, M) of bool, row i the C(i) of anchor i; the diagonal does not count. Or of a floating type, c in
            [0, 1]: how far each compares; exp(sim(z_i, z_j)/tau) is then weighed by c_ij wherever it stands, and 0 is
            not in C(i). `None`: all compare, and so they do if all are true, or 1, to the bit.
        contrastive_reduction: `mean`, `bracket` or `sum`. The first two differ in `joint_loss` alone.

    Returns:
        0-dim tensor of at least 0, float32 (float64 for float64 input). With no anchor that has a positive (one
        sample, as many classes as samples, nothing comparable, no votes): 0, in the graph. What neither compares with
        anything nor is compared with has gradient 0.

    Raises:
        ValueError: shapes that do not match, a mask that is neither of bool nor in [0, 1], votes below 0 or not finite
            (both checked on CPU), a temperature not above 0, or an unknown reduction.
    """
    _check_reduction(contrastive_reduction)
    if labels.ndim == 2 and labels.is_floating_point():
        _check_votes(labels)
    summands, weights = _anchors(embeddings, labels, temperature, comparable)
    return _over_anchors(summands, weights, contrastive_reduction)[0]


def _check_reduction(contrastive_reduction: str):
    if contrastive_reduction not in REDUCTIONS:
        raise ValueError(
            f"contrastive_reduction must be one of {', '.join(REDUCTIONS)}; found {contrastive_reduction!r}."
        )


def _check_mask(name: str, mask: torch.Tensor | None, shape: tuple[int, int], letters: str, is_weight: bool = False):
    """Raises ValueError unless `mask` is of this shape and of bool, or, if `is_weight`, floats in [0, 1]; what floats
    hold is looked at on CPU alone, where nothing is waited for."""
    if mask is None:
        return
    is_of_kind = mask.dtype == torch.bool or (is_weight and mask.is_floating_point())
    if mask.shape != shape or not is_of_kind:
        raise ValueError(
            f"Expected {name} ({letters}) = {shape} of torch.bool; found {tuple(mask.shape)} of {mask.dtype}."
        )
    if mask.dtype != torch.bool and mask.device.type == "cpu" and not bool(((mask >= 0) & (mask <= 1)).all()):
        raise ValueError(f"{name} must lie in [0, 1]; found {mask.min().item():g} to {mask.max().item():g}.")


def shares_of(votes: torch.Tensor, label_mask: torch.Tensor | None = None) -> torch.Tensor:
    """Shares (N, K) of votes or shares (N, K): those for words outside `label_mask` (N, K) are left out, and each row
    is divided by its sum. A row of which nothing is left stays zero."""
    votes = _full_precision(votes)
    if label_mask is not None:
        votes = votes.masked_fill(~label_mask, 0)
    total = votes.sum(dim=1, keepdim=True)
    return votes / torch.where(total > 0, total, torch.ones_like(total))


def _check_votes(votes: torch.Tensor):
    """Raises ValueError unless votes (N, K) are numbers of at least 0; they are looked at on CPU alone."""
    if votes.device.type == "cpu" and not bool((votes.isfinite() & (votes >= 0)).all()):
        row = int((~(votes.isfinite() & (votes >= 0)).all(dim=1)).nonzero()[0])
        raise ValueError(f"Votes must be finite and at least 0; found {votes[row].tolist()} in row {row} of labels.")


def _anchors(embeddings, labels, temperature, comparable=None) -> tuple[torch.Tensor, torch.Tensor]:
    """Both (M,), of eq. 4: a_i L_i, and a_i, which of labels is true or false: whether an anchor has a positive."""
    is_of_votes = labels.ndim == 2 and labels.is_floating_point()
    if embeddings.ndim != 2 or labels.shape[: 2 - is_of_votes] != embeddings.shape[:1]:
        raise ValueError(
            f"Expected embeddings (M, D) and labels (M,), or (M, K) of floats; found {tuple(embeddings.shape)} and "
            f"{tuple(labels.shape)}."
        )
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0; found {temperature}.")
    _check_mask("comparable", comparable, (len(embeddings), len(embeddings)), "M, M", is_weight=True)
    with torch.autocast(embeddings.device.type, enabled=False):
        z = unit_length(_full_precision(embeddings))
        similarity = z @ z.T / temperature  # (M, M)
        left_out = torch.eye(len(z), dtype=torch.bool, device=z.device)
        if comparable is not None:
            is_compared = comparable > 0  # (M, M)
            left_out = left_out | ~is_compared
            if comparable.is_floating_point():
                similarity = similarity + torch.where(is_compared, comparable.to(z.dtype), 1.0).log()
        if is_of_votes:
            shares = shares_of(labels.to(z.dtype))  # (M, K)
            is_silent = ~shares.any(dim=1)  # (M,)
            left_out = left_out | is_silent[:, None] | is_silent[None, :]
        # The lowest finite number, not -inf: a row that compares with nothing stays finite in value and in gradient.
        similarity = similarity.masked_fill(left_out, torch.finfo(z.dtype).min)
        log_probability = similarity - similarity.logsumexp(dim=1, keepdim=True)  # (M, M)
        if is_of_votes:
            agreement = (shares @ shares.T).masked_fill(left_out, 0)  # (M, M)
            total = agreement.sum(dim=1)  # (M,)
            # a_i / W_i is 1 / max(1, W_i): nothing is divided by a small number.
            summands = -(agreement * log_probability.masked_fill(left_out, 0)).sum(dim=1) / total.clamp(min=1)
            return summands, total.clamp(max=1)
        is_positive = (labels[:, None] == labels[None, :]) & ~left_out
        num_positives = is_positive.sum(dim=1)  # (M,)
        summands = -log_probability.masked_fill(~is_positive, 0).sum(dim=1) / num_positives.clamp(min=1)
        return summands, num_positives > 0


def _over_anchors(
    summands: torch.Tensor,
    weights: torch.Tensor,
    contrastive_reduction: str,
    class_weights: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Both 0-dim: eq. 4 of what `_anchors` gives, and A, the sum of a_i; 1, to divide by, where no anchor counts. With
    class weights (M,) its mean over anchors is one by these."""
    num_anchors = _divisor(weights.sum())
    if class_weights is not None:
        mean = (class_weights * summands).sum() / _divisor((class_weights * weights).sum())
        return mean * num_anchors if contrastive_reduction == "sum" else mean, num_anchors
    total = summands.sum()
    return total if contrastive_reduction == "sum" else total / num_anchors, num_anchors


def _divisor(total: torch.Tensor) -> torch.Tensor:
    """A sum of weights, or 1 where there are none."""
    return torch.where(total > 0, total, torch.ones_like(total))


def label_divergence_loss(label_embeddings: torch.Tensor, comparable: torch.Tensor | None = None) -> torch.Tensor:
    r"""Pushes the label embeddings apart (eq. 5 and 6), summed over the ordered pairs that compare.

        L = - sum_i sum_{j in C(i)} log(1 - p_ij),    p_ij = exp(e_i . e_j) / (1 + sum_{k in C(i)} exp(e_i . e_k))

    with C(i) the other labels that i compares with: all of them in the paper, which makes K (K - 1) pairs. Computed as
    log(1 - p_ij) = log(1 + sum_{k in C(i), k != j} exp(s_ik)) - log(1 + sum_{k in C(i)} exp(s_ik)), s the dot products,
    which is finite for any finite s.

    Paper unclear: whether e is normalised. We take the dot products of what is given; the model gives embeddings of
    unit length, because eq. 10 compares them by cosine and unnormalised ones could lower the loss by shrinking alone.

    Args:
        label_embeddings: (K, D).
        comparable: (K, K) of bool, row i the C(i) of label i; the diagonal does not count. `None`: all compare, and so
            they do if all are true, to the bit.

    Returns:
        0-dim tensor of at least 0, float32 (float64 for float64 input). K = 1 or 0, or nothing comparable: 0, in the
        graph. A label that neither compares with anything nor is compared with has gradient 0.

    Raises:
        ValueError: not a matrix, or a mask of another shape or not of bool.
    """
    if label_embeddings.ndim != 2:
        raise ValueError(f"Expected label_embeddings (K, D); found {tuple(label_embeddings.shape)}.")
    _check_mask("comparable", comparable, (len(label_embeddings), len(label_embeddings)), "K, K")
    with torch.autocast(label_embeddings.device.type, enabled=False):
        e = _full_precision(label_embeddings)
        similarity = e @ e.T  # (K, K)
        num_labels, lowest = len(e), torch.finfo(e.dtype).min
        is_self = torch.eye(num_labels, dtype=torch.bool, device=e.device)
        left_out = is_self if comparable is None else is_self | ~comparable  # (K, K)
        others = similarity.masked_fill(left_out, lowest)
        # (K, K, K): for anchor i and pair partner j, the similarities of i to all k in C(i) other than j.
        without_partner = others[:, None, :].expand(-1, num_labels, -1).masked_fill(is_self[None], lowest)
        log_one_minus_p = _log_one_plus_sum_exp(without_partner) - _log_one_plus_sum_exp(others)[:, None]  # (K, K)
        return -log_one_minus_p.masked_fill(left_out, 0).sum()


def joint_loss(
    audio_embeds: torch.Tensor,
    label_embeds: torch.Tensor,
    class_logits: torch.Tensor | None,
    labels: torch.Tensor,
    *,
    contrastive_temperature: float,
    contrastive_weight: float,
    divergence_weight: float,
    label_anchors: bool,
    contrastive_reduction: str = "mean",
    label_mask: torch.Tensor | None = None,
    target_smoothing: float = 0.0,
    class_weights: torch.Tensor | None = None,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    r"""The training objective (eq. 9).

        L = lambda_1 (L_SCL + lambda_2 L_Label) + (1 - lambda_1) L_CE

    L_SCL is eq. 4 over the union of audio and label embeddings (over the audio embeddings alone without
    `label_anchors`), L_Label eq. 6, L_CE eq. 8: the mean cross entropy of the classifier over the B rows.

    Eq. 4 is printed as a sum over anchors and eq. 6 as one over the K (K - 1) ordered pairs of labels, but eq. 8 as a
    mean. With A the anchors that have a positive (B + K of them at most; 0 counts as 1):

        `mean`     L_SCL = sum / A,  L_Label as it is: one label pair weighs A times what eq. 9 gives it
        `bracket`  L_SCL = sum / A,  L_Label / A: within the bracket lambda_2 weighs what eq. 9 gives it, and lambda_1
                   a bracket whose size does not grow with the batch
        `sum`      as printed: the bracket weighs A times what it does under `bracket`, against the same L_CE

    So `mean` with lambda_2 / A is `bracket` with lambda_2, and without L_Label the two are one. A is of the rows that
    are given here: of all processes and chunks, but of one micro-batch alone where gradients are accumulated. A
    micro-batch has a smaller A, so `bracket` then weighs L_Label more, and `sum` the bracket less.

    Rows of several corpora have words of their own, `label_mask` m. A label is the best of the words that were offered:
    where boredom was not, calm may be bored, and neither is the other's negative. So

        audio i and audio j compare   if m[i, y_j] and m[j, y_i]
        audio i and label k compare   if m[i, k]
        label k and label l compare   if some row of the batch annotates both
        L_CE                          takes its softmax over the words of m[i]

    and eq. 4 and 6 run over what compares: one corpus's "angry" and another's "anger" are not pushed apart, unless some
    corpus of the batch has both. Label pairs go by the rows of the batch, not by a table of corpora: so the loss is a
    function of its arguments alone, and a word that no row annotates gets no gradient. They are the rows given here, as
    for A: those of all processes and chunks, which change nothing.

    `labels` may be the votes of each row's listeners, or their shares p_ik. Then L_CE is -sum_k p_ik log(softmax_ik),
    and eq. 4 that of shares (`supervised_contrastive_loss`), with p_ik between audio i and label k, and 0 between
    labels. Shares are among a row's own words: votes for others are left out. Two rows compare as far as each one's
    words were offered to the other's listeners:

        c_ij = (sum_k p_ik m[j, k]) (sum_k p_jk m[i, k])   between audio i and audio j

    which of one word each is the rule above. A row without votes is in no term: it compares with nothing, L_CE is the
    mean over the others, and its mask makes no pair of labels. (`bracket` divides L_Label by max(A, 1), since A may be
    a fraction.)

    `target_smoothing` s takes (1 - s) p_ik + s / (words of row i) for p_ik, among the row's own words; c_ij stays as it
    is. In L_CE the other words weigh s (1 - 1/K) of a row together. In eq. 4 both sides of a pair of utterances are
    smoothed, so that in a batch of K words alike often the utterances of other words weigh (2 - s) s (1 - 1/K) of an
    anchor: nearly twice as much. Between an utterance and the labels it is what it is in L_CE.

    `class_weights` c weigh the means over anchors and over rows: an audio row by sum_k p_ik c_k (unsmoothed), label k
    by c_k, and both losses divide by the sum of weights, so that only their proportions count. A stays what it is:
    `sum` is A times such a mean, and L_Label has no weights.

    Args:
        audio_embeds: (B, D), all views of all utterances (of all processes, in distributed training).
        label_embeds: (K, D), once, whatever the number of processes.
        class_logits: (B, K) of the classifier (eq. 7); `None` if it does not know these labels: L_CE is then left out.
        labels: (B,) integers in [0, K). Or (B, K) of a floating type, at least 0: votes or shares; one vote a row is
            the loss of integers, but for rounding.
        contrastive_temperature: tau of eq. 4, above 0.
        contrastive_weight: lambda_1, in [0, 1].
        divergence_weight: lambda_2, at least 0.
        label_anchors: whether the label embeddings are anchors, positives and negatives of eq. 4.
        contrastive_reduction: `mean`, `bracket` or `sum`, as above.
        label_mask: (B, K) of bool, the words that the corpus of each row annotates, its own label among them. `None`:
            all words; a mask of ones is the same to the bit, but for an empty batch, where no row annotates a pair.
        target_smoothing: s, in [0, 1]; 0 leaves labels and shares as they are.
        class_weights: (K,) of a floating type, above 0; `None`: all alike, as they are if they are equal.

    Returns:
        The loss (0-dim) and its terms before lambda_1 and lambda_2 but after the reduction, so that eq. 9 joins them to
        the loss whatever the reduction: 0-dim tensors named `contrastive`, `divergence` and `cross_entropy`. A term
        whose weight is 0 is not computed and not in the dict. An empty batch, and one without any votes, has cross
        entropy 0, in the graph.

    Raises:
        ValueError: shapes that do not match, a mask that is not of bool, an unknown reduction, a smoothing beyond its
            range, or (checked on CPU, where it costs no synchronisation) a label outside [0, K) or outside its row of
            the mask, or votes below 0 or not finite.
    """
    _check_reduction(contrastive_reduction)
    _check_joint(audio_embeds, label_embeds, class_logits, labels, label_mask, target_smoothing, class_weights)
    num_labels, terms = len(label_embeds), {}
    precision = torch.promote_types(audio_embeds.dtype, torch.float32)
    if labels.is_floating_point():
        labels = shares_of(labels.to(precision), label_mask)  # (B, K)
    elif target_smoothing > 0:
        labels = F.one_hot(labels.long(), num_labels).to(precision)  # (B, K)
    targets = labels if target_smoothing == 0 else _smoothed(labels, label_mask, target_smoothing)
    weights = None if class_weights is None else _row_weights(labels, class_weights.to(precision))  # (B,)
    loss = audio_embeds.new_zeros((), dtype=precision)
    if contrastive_weight > 0:
        embeddings, classes = audio_embeds, targets
        comparable, comparable_labels = _what_compares(labels, label_mask, label_anchors)
        if label_anchors:
            # Full precision first: under autocast `cat` would round one to the other's dtype.
            embeddings = torch.cat([_full_precision(audio_embeds), _full_precision(label_embeds)])  # (B + K, D)
            classes = _with_labels(targets, num_labels)
        anchors = _anchors(embeddings, classes, contrastive_temperature, comparable)
        of_anchors = (
            torch.cat([weights, class_weights.to(weights)]) if label_anchors and weights is not None else weights
        )
        terms["contrastive"], num_anchors = _over_anchors(*anchors, contrastive_reduction, of_anchors)
        loss = loss + contrastive_weight * terms["contrastive"]
        if divergence_weight > 0:
            divergence = label_divergence_loss(label_embeds, comparable_labels)
            is_divided = contrastive_reduction == "bracket"
            terms["divergence"] = divergence / num_anchors.clamp(min=1) if is_divided else divergence
            loss = loss + contrastive_weight * divergence_weight * terms["divergence"]
    if contrastive_weight < 1 and class_logits is not None:
        terms["cross_entropy"] = _cross_entropy(class_logits, targets, label_mask, weights)
        loss = loss + (1 - contrastive_weight) * terms["cross_entropy"]
    return loss, terms


def _check_joint(audio_embeds, label_embeds, class_logits, labels, label_mask, target_smoothing, class_weights):
    """Raises ValueError as `joint_loss` does."""
    num_rows, num_labels = len(audio_embeds), len(label_embeds)
    logits_shape = (num_rows, num_labels) if class_logits is None else class_logits.shape
    is_of_votes = labels.is_floating_point()
    labels_shape = (num_rows, num_labels) if is_of_votes else (num_rows,)
    if labels.shape != labels_shape or logits_shape != (num_rows, num_labels):
        raise ValueError(
            f"Expected labels (B,), or (B, K) of floats, and class_logits (B, K) for audio_embeds of B={num_rows} rows "
            f"and K={num_labels} label_embeds; found {tuple(labels.shape)} and {tuple(logits_shape)}."
        )
    if not 0 <= target_smoothing <= 1:
        raise ValueError(f"target_smoothing must lie in [0, 1]; found {target_smoothing}.")
    if class_weights is not None and class_weights.shape != (num_labels,):
        raise ValueError(f"Expected class_weights (K,) = ({num_labels},); found {tuple(class_weights.shape)}.")
    _check_mask("label_mask", label_mask, (num_rows, num_labels), "B, K")
    if is_of_votes:
        _check_votes(labels)
    elif labels.device.type == "cpu":
        if num_rows and not 0 <= int(labels.min()) <= int(labels.max()) < num_labels:
            raise ValueError(
                f"labels must lie in [0, {num_labels}); found {int(labels.min())} to {int(labels.max())}. Do the "
                "model's id2label and the data agree?"
            )
        if label_mask is not None:
            check_own_words(labels, label_mask)


def _smoothed(shares: torch.Tensor, label_mask: torch.Tensor | None, target_smoothing: float) -> torch.Tensor:
    """Shares (B, K), smoothed among each row's own words; a row without votes stays zero."""
    own = torch.ones_like(shares) if label_mask is None else label_mask.to(shares.dtype)
    spread = own / own.sum(dim=1, keepdim=True).clamp(min=1)
    smoothed = (1 - target_smoothing) * shares + target_smoothing * spread
    return torch.where(shares.any(dim=1, keepdim=True), smoothed, shares)


def _with_labels(targets: torch.Tensor, num_labels: int) -> torch.Tensor:
    """What the audio is, (B,) or (B, K), and behind it what the K labels are: each itself."""
    if targets.is_floating_point():
        return torch.cat([targets, torch.eye(num_labels, dtype=targets.dtype, device=targets.device)])  # (B + K, K)
    return torch.cat([targets, torch.arange(num_labels, device=targets.device, dtype=targets.dtype)])  # (B + K,)


def _row_weights(labels: torch.Tensor, class_weights: torch.Tensor) -> torch.Tensor:
    """(B,) what rows of labels (B,) or shares (B, K) weigh; 0 without votes."""
    return (labels * class_weights).sum(dim=1) if labels.is_floating_point() else class_weights[labels.long()]


def _cross_entropy(class_logits, targets, label_mask, weights) -> torch.Tensor:
    """Eq. 8, its mean over the rows, of shares over those that have votes; by `weights` (B,) where given. 0-dim."""
    with torch.autocast(class_logits.device.type, enabled=False):
        own = among_own_words(_full_precision(class_logits), label_mask)
        if not targets.is_floating_point() and weights is None:
            return F.cross_entropy(own, targets.long(), reduction="sum") / max(len(targets), 1)
        if targets.is_floating_point():
            summands = -(targets * own.log_softmax(dim=1).masked_fill(targets == 0, 0)).sum(dim=1)  # (B,)
        else:
            summands = F.cross_entropy(own, targets.long(), reduction="none")  # (B,)
        if weights is None:
            return summands.sum() / targets.any(dim=1).sum().clamp(min=1)
        return (weights * summands).sum() / _divisor(weights.sum())


def check_own_words(labels: torch.Tensor, label_mask: torch.Tensor):
    """Raises ValueError unless each of `labels` (B,) is among the words of its row in `label_mask` (B, K). It looks at
    what they hold, for which a GPU would be waited for."""
    is_label = labels[:, None] == torch.arange(label_mask.shape[1], device=labels.device)  # (B, K)
    foreign = ~(is_label & label_mask).any(dim=1)  # (B,)
    if foreign.any():
        row = int(foreign.nonzero()[0])
        own = ", ".join(map(str, label_mask[row].nonzero()[:, 0].tolist())) or "none"
        raise ValueError(
            f"A label must be among the words of its row in label_mask; found {int(labels[row])} in row {row}, whose "
            f"words are {own}. Do labels and masks come from the same corpora?"
        )


def among_own_words(logits: torch.Tensor, label_mask: torch.Tensor | None) -> torch.Tensor:
    """Logits (B, K) whose softmax and largest are of the words in `label_mask` (B, K) alone: the others are the lowest
    finite number, and get no gradient. `None`: as they are."""
    return logits if label_mask is None else logits.masked_fill(~label_mask, torch.finfo(logits.dtype).min)


def mean_of_heads(
    label_probabilities: torch.Tensor, class_logits: torch.Tensor, classes: Sequence[int | None]
) -> torch.Tensor:
    r"""The answer of both heads together (ours; not in the paper).

        p_k = (l_k + m c_k) / 2   of the labels S that the classifier knows,    m = sum of l over S
        p_k = l_k                 of others

    with l the label head's probabilities and c the classifier's among S. How likely a label of S is at all is left to
    the label head, which knows of the others: these keep what they have.

    Args:
        label_probabilities: (B, K), l.
        class_logits: (B, C) of the classifier.
        classes: of each label its class, in [0, C), or `None` if the classifier does not know it.

    Returns:
        (B, K), which sums to 1 as l does. Nothing depends on the order of the labels, to the bit. Where the classifier
        knows no label: l itself; where it knows one alone: l in value.
    """
    known = sorted((place, label) for label, place in enumerate(classes) if place is not None)
    if not known:
        return label_probabilities
    places, labels = map(list, zip(*known))
    of_classes = class_logits[:, places].to(label_probabilities.dtype).softmax(dim=-1)  # (B, S)
    of_labels = label_probabilities[:, labels]  # (B, S)
    answer = label_probabilities.clone()
    answer[:, labels] = (of_labels + of_labels.sum(dim=-1, keepdim=True) * of_classes) / 2
    return answer


def _what_compares(labels, label_mask, label_anchors) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """What compares in eq. 4 (B, B), or (B + K, B + K) with the labels behind the audio, and in eq. 6 (K, K), by the
    rules of `joint_loss` for labels (B,) or shares (B, K); `None` where everything does."""
    if label_mask is None:
        return None, None
    offered = label_mask
    if labels.is_floating_point():
        with _without_autocast(labels.device.type):
            was_offered = labels @ label_mask.to(labels.dtype).T  # (B, B): of the votes on i, those for words of j
        audio = (was_offered * was_offered.T).clamp(max=1)  # what sums to 1 may round above it
        offered = label_mask & labels.any(dim=1, keepdim=True)
    else:
        was_offered = label_mask[:, labels.long()]  # (B, B): to the listeners of i, the word of j
        audio = was_offered & was_offered.T
    words = (offered[:, :, None] & offered[:, None, :]).any(dim=0)  # (K, K)
    if not label_anchors:
        return audio, words
    own = label_mask.to(audio.dtype)
    rows = torch.cat([audio, own], dim=1)  # (B, B + K)
    return torch.cat([rows, torch.cat([own.T, words.to(audio.dtype)], dim=1)]), words


def unit_length(x: torch.Tensor) -> torch.Tensor:
    """Rows of `x` (..., D) scaled to length 1, in float32 (float64 for float64 input). A zero row stays zero with a
    finite gradient: the norm is masked, not epsilon-ed, because an epsilon would give such a row a gradient of its
    reciprocal."""
    x = _full_precision(x)
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x / torch.where(norm > 0, norm, torch.ones_like(norm))


def _full_precision(x: torch.Tensor) -> torch.Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _without_autocast(device_type: str) -> contextlib.AbstractContextManager:
    """Where matrix products keep the precision of what they are given. Nothing is switched where autocast is off
    already: `torch.export` would write the switch into its graph."""
    if torch.is_autocast_enabled(device_type):
        return torch.autocast(device_type, enabled=False)
    return contextlib.nullcontext()


def _log_one_plus_sum_exp(x: torch.Tensor) -> torch.Tensor:
    """log(1 + sum exp(x)) over the last dimension; the lowest finite number stands for an absent summand."""
    return torch.cat([x, x.new_zeros(*x.shape[:-1], 1)], dim=-1).logsumexp(dim=-1)


# ----------------------------------------------------------------------------------------------------------- modules


def masked_mean(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean of `x` (B, T, C) over the positions where `mask` (B, T) is true; 0 for a row without any. Summed and divided
    in float32 (float64 for float64 input): in float16, 499 frames of 200 are infinite, in bfloat16 499 frames 500."""
    weights, precision = mask.to(x.dtype)[..., None], torch.promote_types(x.dtype, torch.float32)
    return (x * weights).sum(dim=1, dtype=precision) / weights.sum(dim=1, dtype=precision).clamp(min=1)


def masked_max(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Maximum of `x` (B, T, C) over the positions where `mask` (B, T) is true, as float32 (float64 of float64)."""
    return _full_precision(x.masked_fill(~mask[..., None], torch.finfo(x.dtype).min).amax(dim=1))


def masked_mean_std(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """(B, 2 C): mean and standard deviation (of the frames as they are, not as a sample) of `x` (B, T, C) over the
    positions where `mask` (B, T) is true, in float32 (float64 for float64 input). A feature that does not vary has
    deviation 0 with gradient 0; so has a row with one position, or none."""
    mean = masked_mean(x, mask)  # (B, C)
    variance = masked_mean((_full_precision(x) - mean[:, None]).square(), mask)
    varies = variance > 0
    std = torch.where(varies, torch.where(varies, variance, 1.0).sqrt(), 0.0)
    return torch.cat([mean, std], dim=-1)


POOLINGS = {"mean": masked_mean, "max": masked_max, "mean_std": masked_mean_std}


class LaSCLProjection(nn.Module):
    """Two linear layers with GELU in between (eq. 3): (B, input_dim) to (B, D), in the precision of their weights.
    Paper unclear: the width in between; we take D."""

    def __init__(self, input_dim: int, projection_dim: int):
        super().__init__()
        self.hidden = nn.Linear(input_dim, projection_dim)
        self.output = nn.Linear(projection_dim, projection_dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.output(F.gelu(self.hidden(as_computed(self.hidden, x))))


def as_computed(linear: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """`x` in the precision of a linear layer. A quantised weight may be integers, whose bias then tells the precision,
    or no parameter at all: then as it is."""
    floating = (parameter.dtype for parameter in linear.parameters() if parameter.is_floating_point())
    return x.to(next(floating, x.dtype))


@dataclass
class LaSCLOutput(ModelOutput):
    """What both models return; `None` where a model or a call does not compute it. Everything is float32, also with
    weights in half precision and under autocast (float64 with weights in float64).

    Args:
        loss: 0-dim, given `labels`: eq. 9 on the local batch.
        logits: (B, K) of `config.prediction_head`; their softmax is a probability.
        class_logits: (B, K) of the classifier on `pooled_audio` (eq. 7).
        audio_embeds: (B, D), unit length.
        label_embeds: (K, D), unit length; not of `LaSCLForAudioClassification` at inference.
        pooled_audio: (B, d_a), the pooled hidden states H_a (eq. 1), standardised if the configuration says so, before
            `pooled_dropout`.
        hidden_states: given `output_hidden_states`: of the audio encoder, its embedding and each layer, (B, T, C) each.
        terms: the unweighted loss terms by name.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    class_logits: torch.Tensor | None = None
    audio_embeds: torch.Tensor | None = None
    label_embeds: torch.Tensor | None = None
    pooled_audio: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    terms: dict[str, torch.Tensor] | None = None


# ------------------------------------------------------------------------------------------------------------ models


class LaSCLPreTrainedModel(PreTrainedModel):
    """What the two models share with transformers: configuration, initialisation, and what Trainer must know."""

    config_class = LaSCLConfig
    base_model_prefix = "lascl"
    # What only one of the two classes has: no surprise when AutoModel reads a classifier's checkpoint.
    _keys_to_ignore_on_load_unexpected = [r"^classifier\."]
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    # Without this, Trainer takes the loss for one that is already divided over accumulation steps and processes, and
    # gradients come out twice, or more, as large.
    accepts_loss_kwargs = False

    @torch.no_grad()
    def _init_weights(self, module):
        # By these names alone: while a checkpoint loads, transformers 5 guards them against what was loaded.
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)

    def get_input_embeddings(self) -> nn.Module:
        """The convolution that audio enters by, as of transformers' Whisper."""
        owner, name = input_convolution(self.base_model.audio_encoder)
        return getattr(owner, name)

    def set_input_embeddings(self, value: nn.Module):
        owner, name = input_convolution(self.base_model.audio_encoder)
        setattr(owner, name, value)

    def _returns_dict(self, wanted: bool | None) -> bool:
        return bool(self.config.return_dict if wanted is None else wanted)

    def save_pretrained(
        self, save_directory, is_main_process=True, *, save_text_encoder=True, push_to_hub=False, **kwargs
    ):
        """As in transformers, and with `text_encoder/` where new labels would else find none: it came with the
        checkpoint, or lies in a folder of this computer. One that `config.text_encoder` names is found on the Hub.

        Args:
            save_text_encoder: `False` leaves it out. What Trainer keeps for itself during training, in folders called
                `checkpoint-<step>`, is without it in any case.
        """
        names = ("repo_id", "commit_message", "commit_description", "private", "revision", "create_pr", "tags")
        pushed = {name: kwargs.pop(name) for name in names if push_to_hub and name in kwargs}
        super().save_pretrained(save_directory, is_main_process=is_main_process, **kwargs)
        name = os.path.basename(os.path.normpath(save_directory))
        if save_text_encoder and is_main_process and not re.fullmatch(r"checkpoint-\d+", name):
            self.base_model._keep_text_encoder(os.path.join(save_directory, "text_encoder"))
        if push_to_hub and is_main_process:
            # Stock's own argument would send what stock has written alone.
            self.push_to_hub(pushed.pop("repo_id", name), token=kwargs.get("token"), **pushed)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, output_loading_info=False, **kwargs):
        """As in transformers. Loading makes every parameter trainable, so what stays frozen is frozen again.

        `config._commit_hash` has the commit of a checkpoint from the Hub, so that `set_labels` finds what belongs to
        it even if its branch has moved on; transformers keeps the name alone. It is never saved.
        """
        model, loading_info = super().from_pretrained(
            pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs
        )
        lacked = {key.partition("audio_encoder.")[2] for key in loading_info["missing_keys"]}
        if lacked.issuperset(name for name, _ in model.base_model.audio_encoder.named_parameters()):
            raise ValueError(
                f"{pretrained_model_name_or_path} holds no weights of the audio encoder, as an intermediate checkpoint "
                "of a frozen one: it is good for going on with that training alone. Load the fold's checkpoint/."
            )
        model.base_model.start_missing(loading_info)
        model.base_model.freeze_constants()
        if pretrained_model_name_or_path is not None and not os.path.isdir(pretrained_model_name_or_path):
            where = {name: kwargs[name] for name in ("revision", "cache_dir", "subfolder") if name in kwargs}
            model.config._commit_hash = cached_commit(pretrained_model_name_or_path, **where)
        return (model, loading_info) if output_loading_info else model


class LaSCLModel(LaSCLPreTrainedModel):
    """Audio encoder, pooling and projections: audio and label embeddings in one space (eq. 1-3).

    The text encoder is frozen and the labels are few, so its output H_t is a constant: it is kept as the buffer
    `label_features` (K, d_t), and the text encoder is in memory only while `set_labels` runs. A model made from a bare
    configuration has no label features yet.

    In evaluation mode, audio that could only be answered by a guess is refused, see `forward`; whoever has looked at
    the audio before sets the attribute `takes_odd_audio`.
    """

    def __init__(self, config: LaSCLConfig):
        super().__init__(config)
        highest, available = max(config.audio_layer_numbers, default=0), config.audio_config.num_hidden_layers
        if highest > available:
            raise ValueError(f"audio_layers asks for layer {highest}, but this audio encoder has {available}.")
        for field, default in (("audio_level", "recorded"), ("pooled_frames", "valid")):
            family = config.audio_config.model_type
            if getattr(config, field) != default and family != "whisper":
                raise ValueError(
                    f"{field} {getattr(config, field)} is for Whisper; this audio encoder is of the type {family!r}. "
                    f"Set {field} to {default}."
                )
        self.audio_encoder = build_audio_encoder(config.audio_config)
        d_a, d_t = config.pooled_size, config.text_config.hidden_size
        self.audio_projection = LaSCLProjection(d_a, config.projection_dim)
        self.text_projection = LaSCLProjection(d_t, config.projection_dim)
        self.layer_weights = None
        if config.audio_layers == "weighted":
            # One weight for the embedding and one for each layer; equal at the start.
            self.layer_weights = nn.Parameter(torch.zeros(config.audio_config.num_hidden_layers + 1))
        if config.standardises:
            self.register_buffer("pooled_mean", torch.zeros(d_a))
            self.register_buffer("pooled_std", torch.ones(d_a))
        self.register_buffer("label_features", torch.full((config.num_labels, d_t), float("nan")))
        self._has_label_features = False
        self.takes_odd_audio = False
        self.main_input_name = self.audio_encoder.main_input_name
        self.post_init()
        self.freeze_constants()

    @torch.no_grad()
    def start_missing(self, loading_info: dict):
        """Gives what a checkpoint lacked of this module's own tensors the value that `__init__` gives: loading leaves
        memory of any content there.

        Not in `_init_weights`: transformers 4 calls that for a whole module once any tensor in it is missing, and so
        would overwrite those that were loaded.
        """
        lacked = [*loading_info["missing_keys"], *(entry[0] for entry in loading_info["mismatched_keys"])]
        lacked = {key.removeprefix("lascl.") for key in lacked}
        for name, start in (
            ("label_features", float("nan")),
            ("layer_weights", 0.0),
            ("pooled_mean", 0.0),
            ("pooled_std", 1.0),
        ):
            if name in lacked:
                getattr(self, name).fill_(start)

    def freeze_constants(self):
        """Freezes what training leaves as it is: Whisper's sinusoidal positions, and the convolutional front end if
        the configuration says so."""
        if self.config.audio_config.model_type == "whisper":
            self.audio_encoder.embed_positions.requires_grad_(False)
        if self.config.freeze_feature_encoder:
            self.freeze_feature_encoder()
        if self.config.freeze_audio_encoder:
            self.audio_encoder.requires_grad_(False)

    def train(self, mode: bool = True):
        """As in torch; a frozen audio encoder stays in evaluation mode, without dropout and masks."""
        super().train(mode)
        if self.config.freeze_audio_encoder:
            self.audio_encoder.eval()
        return self

    def set_pooled_statistics(self, pooled: torch.Tensor | Iterable[torch.Tensor]):
        """Takes `pooled_statistics` of (N, d_a) pooled audio, as `forward` gives it before this was called, for
        `standardise_audio`.

        Raises:
            ValueError: a model that does not standardise.
        """
        if not self.config.standardises:
            raise ValueError(
                f"This model has standardise_audio={self.config.standardise_audio!r}; build it with "
                "standardise_audio='training'."
            )
        mean, std = pooled_statistics(pooled)
        self.pooled_mean.copy_(mean)
        self.pooled_std.copy_(std)

    def freeze_feature_encoder(self):
        """Keeps the convolutional front end of the audio encoder as it is (paper, 3.2)."""
        if self.config.audio_config.model_type == "whisper":
            for convolution in (self.audio_encoder.conv1, self.audio_encoder.conv2):
                convolution.requires_grad_(False)
        elif hasattr(self.audio_encoder, "freeze_feature_encoder"):
            self.audio_encoder.freeze_feature_encoder()
        else:
            self.audio_encoder.feature_extractor.requires_grad_(False)

    def forward(
        self,
        input_values: torch.Tensor | None = None,
        input_features: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        pooled_audio: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        lengths: Sequence[int] | None = None,
    ) -> LaSCLOutput | tuple:
        """Embeds utterances and labels.

        Rows are encoded in groups of like length, so that padding costs next to nothing; which answers a batch gets
        does not depend on it, but for rounding. What layer-drop and SpecAugment draw is drawn for the whole batch. Of
        Whisper, `config.audio_window` says what is heard: under `utterance` a row's window follows from its mask alone;
        without a mask, and while a graph is traced, all hear the whole window.

        Args:
            input_values: (B, samples) at 16 kHz, as the checkpoint's feature extractor returns it.
            input_features: (B, mel bins, mel frames) instead, for Whisper.
            attention_mask: (B, samples or mel frames), 1 on signal; `None`: nothing is padding.
            pooled_audio: (B, d_a) instead of both, as an earlier call returned it: nothing is encoded.
            output_hidden_states: whether to return the audio encoder's states; by default as the configuration says.
            return_dict: `False` returns the tuple of what there is; by default as the configuration says.
            lengths: B numbers, what `attention_mask` sums to. An accelerator is not asked for them: without, it encodes
                the batch whole. A CPU takes them from the mask.

        Returns:
            `audio_embeds`, `label_embeds`, `pooled_audio`, and `hidden_states` if asked for.

        Raises:
            ValueError: none or several of the inputs; no labels set yet; Whisper features of another length than its
                window; and, in evaluation mode, audio that is empty, shorter than one frame of the encoder, or holds
                NaN or infinite values, unless `takes_odd_audio` is set.
        """
        wanted = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        pooled, hidden_states = self._pool_audio(
            input_values, input_features, attention_mask, lengths, pooled_audio, wanted
        )
        output = LaSCLOutput(
            audio_embeds=unit_length(self.audio_projection(self.drop(pooled))),
            label_embeds=self.get_label_embeddings(),
            pooled_audio=pooled,
            hidden_states=hidden_states,
        )
        return output if self._returns_dict(return_dict) else output.to_tuple()

    def _pool_audio(
        self, input_values, input_features, attention_mask, lengths=None, pooled_audio=None, with_states=False
    ):
        """(B, d_a): H_a of eq. 1, and the encoder's hidden states `with_states`."""
        if sum(given is not None for given in (input_values, input_features, pooled_audio)) != 1:
            raise ValueError("Give exactly one of input_values, input_features and pooled_audio.")
        if pooled_audio is not None:
            return _full_precision(pooled_audio), None
        inputs, encoder = input_values if input_features is None else input_features, self.audio_encoder
        check_window(encoder, inputs, attention_mask)
        if self.config.audio_level == "equal":
            inputs = at_equal_level(inputs, attention_mask)
        groups = [] if with_states else groups_to_encode(encoder, inputs, attention_mask, lengths)
        if self.config.audio_window == "utterance":
            groups = groups or window_groups(encoder, inputs, attention_mask, lengths)
        drawn = draw(encoder, inputs, attention_mask, lengths)
        pool = partial(self._pool_groups, groups) if groups else self._pool_rows
        pooled, states = pool(inputs, attention_mask, drawn, with_states)
        if not self.training and not self.takes_odd_audio:
            refuse_odd_audio(self.audio_encoder, inputs, attention_mask, pooled)
        return self.standardise(pooled), states

    def _pool_groups(self, groups: list[tuple[list[int], int]], inputs, attention_mask, drawn, with_states=False):
        """As `_pool_rows`, rows in their order: each group encoded alone, cut to its length, with what is drawn for the
        whole batch. States end in zeros where others are longer."""
        encoder, device = self.audio_encoder, inputs.device
        order = [row for rows, _ in groups for row in rows]
        back = sorted(range(len(order)), key=order.__getitem__)
        # Not awaited: a GPU goes on with what it has.
        order, back = (torch.tensor(rows).to(device, non_blocking=True) for rows in (order, back))
        inputs, attention_mask, drawn = inputs[order], attention_mask[order], drawn.of_rows(order)
        mask_rate = attention_mask.shape[-1] // inputs.shape[-1]  # 1, but of Whisper's mask for samples
        pooled, states, start = [], [], 0
        for rows, length in groups:
            part = slice(start, start + len(rows))
            one_frame = samples_of_one_frame(encoder) or 1
            num_frames = int(encoder._get_feat_extract_output_lengths(max(length, one_frame)))
            mask = attention_mask[part, : length * mask_rate]
            found = self._pool_rows(inputs[part, ..., :length], mask, drawn.of_rows(part, num_frames), with_states)
            pooled.append(found[0])
            states.append(found[1])
            start = part.stop
        return torch.cat(pooled)[back], self._states_of_groups(states, back) if with_states else None

    @staticmethod
    def _states_of_groups(states: list[tuple[torch.Tensor, ...]], back: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Of groups by rising length, (n, T_n, C) a layer each: (B, T, C) a layer, with zeros behind the shorter."""
        longest = states[-1][0].shape[1]
        filled = [[F.pad(state, (0, 0, 0, longest - state.shape[1])) for state in group] for group in states]
        return tuple(torch.cat(layer)[back] for layer in zip(*filled))

    def _pool_rows(self, inputs, attention_mask, drawn, with_states=False):
        """(B, d_a), and all hidden states `with_states`. Paper unclear: how frames become one vector; we take the mean
        over valid frames."""
        numbers, weighted = self.config.audio_layer_numbers, self.layer_weights is not None
        all_layers = weighted or bool(numbers) or with_states
        outputs, mask = encoder_outputs(self.audio_encoder, inputs, attention_mask, all_layers=all_layers, drawn=drawn)
        if self.config.pooled_frames == "active":
            active = mask & active_frames(inputs, attention_mask)[:, : mask.shape[-1]]  # (B, T)
            mask = active | (mask & ~active.any(dim=-1, keepdim=True))  # no `where`: ONNX runtimes have none of bools
        hidden = outputs.hidden_states if weighted or numbers else outputs.last_hidden_state
        if weighted:
            share = self.layer_weights.softmax(dim=0)
            hidden = sum(weight * layer for weight, layer in zip(share, hidden))  # (B, T, d_a)
        pool = POOLINGS[self.config.audio_pooling]
        if numbers:
            pooled = torch.cat([pool(hidden[number], mask) for number in numbers], dim=-1)
        else:
            pooled = pool(hidden, mask)
        return pooled, tuple(outputs.hidden_states) if with_states else None

    def standardise(self, pooled: torch.Tensor) -> torch.Tensor:
        """(B, d_a) pooled audio as `standardise_audio` wants it, by what `set_pooled_statistics` took."""
        if not self.config.standardises:
            return pooled
        return (pooled - self.pooled_mean.to(pooled.device)) / self.pooled_std.to(pooled.device)

    def drop(self, pooled: torch.Tensor) -> torch.Tensor:
        """(B, d_a) pooled audio as a head is to have it: in training with `pooled_dropout`, each time drawn anew. Of 0,
        and outside training, nothing is drawn."""
        is_dropping = self.training and self.config.pooled_dropout > 0
        return F.dropout(pooled, self.config.pooled_dropout) if is_dropping else pooled

    def get_audio_embeddings(
        self,
        input_values: torch.Tensor | None = None,
        input_features: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        lengths: Sequence[int] | None = None,
    ) -> torch.Tensor:
        """(B, D) unit-length audio embeddings, float32; arguments and errors as in `forward`, but without labels."""
        pooled, _ = self._pool_audio(input_values, input_features, attention_mask, lengths)
        return unit_length(self.audio_projection(self.drop(pooled)))

    def get_label_embeddings(self) -> torch.Tensor:
        """(K, D) unit-length embeddings of `config.labels`, in their order, float32.

        Outside training each label is projected alone, so that its embedding does not depend on the other labels or on
        their order: a kernel that is given K rows may sum each of them in another order. In training they are projected
        at once, which differs by rounding alone.

        Raises:
            ValueError: no labels were set yet.
        """
        if not (self._has_label_features or has_no_values(self.label_features)):
            # Looked at once a model: after that a check would stop the GPU at every step.
            self._has_label_features = bool(torch.isfinite(self.label_features).all())
            if not self._has_label_features:
                raise ValueError(
                    "This model has no label embeddings yet. Call model.set_labels([...]), or build it with "
                    "LaSCLForAudioClassification.from_encoders."
                )
        if self.training:
            return unit_length(self.text_projection(self.label_features))
        # Copies: where a row lies in memory may change the order of its sums, too.
        return torch.cat([unit_length(self.text_projection(row.clone())) for row in self.label_features.split(1)])

    def set_labels(
        self,
        labels: list[str],
        template: str | None = None,
        phrasings: Mapping[str, Sequence[str]] | None = None,
    ):
        """Makes the model answer these label words, whatever it was trained on.

        The text encoder comes from the checkpoint's own `text_encoder/` folder if it has one (of the same commit, if
        the checkpoint came from the Hub), else from `config.text_encoder`; it is released afterwards. Before anything
        is downloaded, a warning says what and how large.

        Args:
            labels: K different words or phrases.
            template: replaces `config.label_template`; must contain `{label}`.
            phrasings: by word, the phrases whose embeddings' mean stands for it, see `LaSCLConfig.label_phrasings`.
                Those of the configuration stay for words that have no entry here: `{"anger": ["anger"]}` is the bare
                word again.

        Raises:
            ValueError: no labels, repeated labels, a template without `{label}`, phrasings that are no lists of
                different phrases, or no known text encoder.
            OSError: the text encoder could not be loaded.
        """
        labels, phrasings = checked_labels(labels), checked_phrasings(phrasings, "phrasings")
        name, revision, subfolder = self._find_text_encoder()
        announce_download(name, revision, subfolder)
        try:
            text_encoder, tokenizer = load_text_encoder(name, revision, subfolder)
        except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: as in `find_file`
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise OSError(
                f"New labels need the text encoder {described(name, revision, subfolder)}, which could not be loaded "
                f"({reason}). Is the Hub reachable? Else set model.config.text_encoder to a folder that holds it."
            ) from error
        self._set_labels(labels, template, text_encoder, tokenizer, phrasings)

    def _find_text_encoder(self) -> tuple[str, str | None, str]:
        """Hub name or folder, revision and subfolder."""
        checkpoint = self.config._name_or_path  # empty for a model that was not loaded
        folder = os.path.join(checkpoint, "text_encoder")
        if checkpoint and os.path.isdir(folder):
            return folder, None, ""
        commit = getattr(self.config, "_commit_hash", None)
        # Only its configuration is fetched here. What cannot be reached now counts as absent: `config.text_encoder`
        # is the same encoder, and may be in the cache.
        if commit and find_file(checkpoint, "config.json", revision=commit, subfolder="text_encoder"):
            return checkpoint, commit, "text_encoder"
        if self.config.text_encoder is None:
            raise ValueError(
                "This model does not know its text encoder, so it cannot embed new labels. Set "
                "model.config.text_encoder to a Hub name or a folder."
            )
        return self.config.text_encoder, self.config.text_encoder_revision, ""

    def _keep_text_encoder(self, folder: str):
        """Saves the text encoder into a folder, unless the Hub has it by the name in the configuration, or it is there
        already. Weights are not lost for its sake: what cannot be had is warned of."""
        try:
            name, revision, subfolder = self._find_text_encoder()
        except ValueError:  # it knows none
            if getattr(self.config, "_commit_hash", None):
                logger.warning("No text encoder of this checkpoint is found: what is saved takes no new labels.")
            return
        is_there = os.path.isdir(folder) and os.path.isdir(name) and os.path.samefile(name, folder)
        if is_there or (not subfolder and not is_folder_name(name)):
            return
        announce_download(name, revision, subfolder)
        try:
            save_text_encoder(name, folder, revision, subfolder)
        except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: as in `find_file`
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            logger.warning(
                f"The text encoder {described(name, revision, subfolder)} could not be saved ({reason}): what is saved "
                "answers its labels, and no new ones."
            )

    def _set_labels(self, labels, template, text_encoder, tokenizer, phrasings=None):
        labels, template = checked_labels(labels), template or self.config.label_template
        if "{label}" not in template:
            raise ValueError(f"template must contain {{label}}; found {template!r}.")
        phrasings = checked_phrasings({**(self.config.label_phrasings or {}), **(phrasings or {})})
        embed = partial(embed_texts, text_encoder, tokenizer, pooling=self.config.text_pooling)
        features = []
        for label in labels:
            phrases = (phrasings or {}).get(label, [label])
            texts = [template.replace("{label}", phrase) for phrase in phrases]
            features.append(embed(texts).mean(dim=0))  # (d_t,); of one text, what it is, to the bit
        features = torch.stack(features)  # (K, d_t)
        if self.config.classifier_labels is None and labels != self.config.labels:
            self.config.classifier_labels = self.config.labels
        elif labels == self.config.classifier_labels:
            self.config.classifier_labels = None
        self.config.label_template, self.config.label_phrasings = template, phrasings
        self.config.id2label = dict(enumerate(labels))
        self.config.label2id = {label: index for index, label in enumerate(labels)}
        self.label_features = features.to(self.label_features)
        self._has_label_features = True


def _not_taken_for_a_label(name: str):
    """Hides an argument of `forward` from `inspect.signature`. transformers' Trainer takes each argument there with
    "label" in its name for labels, and scores nothing where a batch lacks one."""

    def hide(forward):
        signature = inspect.signature(forward)
        shown = [parameter for parameter in signature.parameters.values() if parameter.name != name]
        forward.__signature__ = signature.replace(parameters=shown)
        return forward

    return hide


class LaSCLForAudioClassification(LaSCLPreTrainedModel):
    """`LaSCLModel` with its two heads: the nearest label embedding (eq. 10) and the classifier (eq. 7)."""

    def __init__(self, config: LaSCLConfig):
        super().__init__(config)
        self.lascl = LaSCLModel(config)
        num_classes = len(config.classifier_labels or config.labels)
        self.classifier = nn.Linear(config.pooled_size, num_classes)
        self.main_input_name = self.lascl.main_input_name
        self.post_init()

    @classmethod
    def from_encoders(
        cls,
        audio: str,
        text: str,
        labels: list[str],
        *,
        audio_encoder_revision: str | None = None,
        window_s: int | None = None,
        **config,
    ) -> LaSCLForAudioClassification:
        """Builds a model from two pre-trained encoders; projections and classifier are new, drawn from torch's
        generator: call `transformers.set_seed` before, or every model is another.

        Args:
            audio: Hub name or folder of the audio encoder.
            text: Hub name or folder of the text encoder; only its embeddings of `labels` are kept in memory. Of a name,
                the commit is kept as `text_encoder_revision`; what lies in a folder is saved with the model.
            labels: the K label words.
            audio_encoder_revision: branch, tag or commit of `audio`. For `text` there is `text_encoder_revision`.
            window_s: Whisper only: the longest clip it will see, in whole seconds; by default its own 30, all of which
                every clip then costs. Its feature extractor must have the same window: load it with
                `AutoFeatureExtractor.from_pretrained(audio, chunk_length=window_s, return_attention_mask=True)`.
            **config: any other field of `LaSCLConfig`.

        Raises:
            ValueError: a field that `LaSCLConfig` lacks or refuses, labels that repeat, or an encoder type whose
                answers padding would change.
            OSError: an encoder that could not be loaded.
        """
        unknown = sorted(set(config) - set(LaSCLConfig.field_defaults()))
        if unknown:
            raise ValueError(f"LaSCLConfig has no field {', '.join(unknown)}.")
        labels = checked_labels(labels)
        audio_encoder = load_audio_encoder(audio, revision=audio_encoder_revision, window_s=window_s)
        text_encoder, tokenizer = load_text_encoder(text, config.get("text_encoder_revision"))
        # The commit, so that new words meet the same encoder when its branch has moved on; a folder has none.
        revision = config.get("text_encoder_revision") or "main"
        config["text_encoder_revision"] = None if os.path.isdir(text) else cached_commit(text, revision=revision)
        model = cls(
            LaSCLConfig(
                # Copies, because LaSCLConfig resets the attention implementation that the loaded encoders have chosen.
                audio_config=copy.deepcopy(audio_encoder.config),
                text_config=copy.deepcopy(text_encoder.config),
                # Absolute, so that it is found from elsewhere and never taken for a Hub name. Not saved.
                text_encoder=os.path.abspath(text) if os.path.isdir(text) else text,
                id2label=dict(enumerate(labels)),
                **config,
            )
        )
        model.lascl.audio_encoder, model.config.audio_config = audio_encoder, audio_encoder.config
        model.lascl.freeze_constants()
        model.lascl._set_labels(labels, None, text_encoder, tokenizer)
        return model

    @_not_taken_for_a_label("label_mask")
    def forward(
        self,
        input_values: torch.Tensor | None = None,
        input_features: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        pooled_audio: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        lengths: Sequence[int] | None = None,
        label_mask: torch.Tensor | None = None,
    ) -> LaSCLOutput | tuple:
        """Classifies utterances.

        Args:
            input_values, input_features, attention_mask, pooled_audio, output_hidden_states, return_dict, lengths: as
                for `LaSCLModel.forward`.
            labels: (B,) integers in [0, K), or (B, K) floats, votes or shares of listeners; given, the loss of eq. 9 on
                this batch is computed.
            label_mask: (B, K) of bool, for that loss: the words that the corpus of each row annotates (`joint_loss`).
                `logits` are of all words whatever it says.

        Returns:
            `logits` of `config.prediction_head`, `class_logits`, `audio_embeds` and `pooled_audio`; in training and
            with `labels` also `label_embeds` (else `get_label_embeddings()` has them), with `labels` `loss` and
            `terms`. Label logits are sim(z, e_k) / `label_temperature`, which is contrastive_temperature unless
            another was fitted for these words (`label_temperatures`), so that argmax is eq. 10 and softmax a
            probability. `class_logits` is `None` once other labels than the classifier's were set.

        Raises:
            ValueError: as `LaSCLModel.forward` and `joint_loss`; `labels` or the classifier asked for after other
                labels were set.
        """
        embedded = self.lascl(
            input_values, input_features, attention_mask, pooled_audio, output_hidden_states, True, lengths
        )
        class_logits = None
        if self.config.classifier_labels is None:
            class_logits = self._classify(self.lascl.drop(embedded.pooled_audio))
        elif labels is not None or self.config.prediction_head == "classifier":
            raise ValueError(
                f"The classifier was trained on {self.config.classifier_labels}, but the labels are now "
                f"{self.config.labels}: only the label head answers. Set prediction_head='label' and give no labels."
            )
        logits = class_logits
        if self.config.prediction_head != "classifier":
            logits = self._label_logits(embedded, class_logits)
        loss, terms = None, None
        if labels is not None:
            loss, terms = self.joint_loss(
                embedded.audio_embeds, embedded.label_embeds, class_logits, labels, label_mask
            )
        output = LaSCLOutput(
            loss=loss,
            logits=logits,
            class_logits=class_logits,
            audio_embeds=embedded.audio_embeds,
            # transformers' pipeline takes all outputs of a batch apart by utterance; of labels there may be fewer.
            label_embeds=embedded.label_embeds if self.training or labels is not None else None,
            pooled_audio=embedded.pooled_audio,
            hidden_states=embedded.hidden_states,
            terms=terms,
        )
        return output if self._returns_dict(return_dict) else output.to_tuple()

    @property
    def label_temperature(self) -> float:
        """What divides the cosines of the label head: that of `config.label_temperatures` for these very words, in
        whatever order, else `config.contrastive_temperature`."""
        fitted = self.config.label_temperatures or {}
        return fitted.get(words_key(self.config.labels), self.config.contrastive_temperature)

    def _label_logits(self, embedded: LaSCLOutput, class_logits: torch.Tensor | None) -> torch.Tensor:
        """(B, K) of the label head, or of both heads: then the logarithm of `mean_of_heads`."""
        with _without_autocast(embedded.audio_embeds.device.type):
            logits = embedded.audio_embeds @ embedded.label_embeds.T / self.label_temperature
            if self.config.prediction_head == "label":
                return logits
            if class_logits is None:  # the labels are others now; some of them may be the classifier's
                class_logits = self._classify(embedded.pooled_audio)
            both = mean_of_heads(logits.softmax(dim=-1), class_logits, self.config.known_classes)
            return both.clamp(min=torch.finfo(both.dtype).tiny).log()

    def joint_loss(
        self,
        audio_embeds: torch.Tensor,
        label_embeds: torch.Tensor,
        class_logits: torch.Tensor | None,
        labels: torch.Tensor,
        label_mask: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """`joint_loss` with the weights of the configuration; arguments, returns and errors as there."""
        return joint_loss(
            audio_embeds,
            label_embeds,
            class_logits,
            labels,
            contrastive_temperature=self.config.contrastive_temperature,
            contrastive_weight=self.config.contrastive_weight,
            divergence_weight=self.config.divergence_weight,
            label_anchors=self.config.label_anchors,
            contrastive_reduction=self.config.contrastive_reduction,
            label_mask=label_mask,
            target_smoothing=self.config.target_smoothing,
            class_weights=self._class_weights(audio_embeds),
        )

    def _class_weights(self, like: torch.Tensor) -> torch.Tensor | None:
        """(K,) the weight of each label, 1 for one that has none; `None` if no label has one."""
        weights = self.config.class_weights
        if weights is None:
            return None
        return torch.tensor([weights.get(label, 1.0) for label in self.config.labels], device=like.device)

    def _classify(self, pooled_audio: torch.Tensor) -> torch.Tensor:
        """(B, K) of the classifier, in float32 also where its weights are in half precision: a logit near 14 has steps
        of 0.06 in bfloat16, which would decide between close classes."""
        linear = self.classifier
        with _without_autocast(pooled_audio.device.type):
            # Quantised weights, and such as accelerate fetches from elsewhere, are used through their layer alone.
            is_plain = type(linear.weight) is nn.Parameter and linear.weight.device == pooled_audio.device
            if is_plain and linear.weight.dtype in (torch.float16, torch.bfloat16):
                return F.linear(pooled_audio, linear.weight.float(), linear.bias.float())
            return linear(as_computed(linear, pooled_audio))

    def get_audio_embeddings(self, *args, **kwargs) -> torch.Tensor:
        """See `LaSCLModel.get_audio_embeddings`."""
        return self.lascl.get_audio_embeddings(*args, **kwargs)

    def get_label_embeddings(self) -> torch.Tensor:
        """See `LaSCLModel.get_label_embeddings`."""
        return self.lascl.get_label_embeddings()

    def set_labels(
        self,
        labels: list[str],
        template: str | None = None,
        phrasings: Mapping[str, Sequence[str]] | None = None,
    ):
        """See `LaSCLModel.set_labels`. Unless they are the classifier's, only the label head answers them.

        Raises:
            ValueError: also if the model predicts with its classifier, whose labels cannot change.
        """
        if self.config.prediction_head == "classifier":
            raise ValueError(
                "This model predicts with its classifier, whose labels cannot change. Set "
                "model.config.prediction_head = 'label' if its label head was trained."
            )
        self.lascl.set_labels(labels, template, phrasings)


# --------------------------------------------------------------------------------------------------- statistics, text


@contextlib.contextmanager
def not_standardised(config: LaSCLConfig) -> Iterator[None]:
    """While pooled audio is wanted as it is, for statistics of one's own."""
    before, config.standardise_audio = config.standardise_audio, "none"
    try:
        yield
    finally:
        config.standardise_audio = before


def pooled_statistics(pooled: torch.Tensor | Iterable[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation (d_a,) of (N, d_a) pooled audio, in float64; of a large N part by part (n, d_a). The
    deviation is 1 where a feature never varies, so that it is only centred."""
    count, mean, variance = 0, 0.0, 0.0
    for part in [pooled] if isinstance(pooled, torch.Tensor) else pooled:
        part = part.double()
        count += len(part)
        share, difference = len(part) / count, part.mean(dim=0) - mean
        variance = (1 - share) * variance + share * part.var(dim=0, correction=0)
        variance = variance + share * (1 - share) * difference.square()
        mean = mean + share * difference
    std = variance.sqrt()
    return mean, torch.where(std > 0, std, 1.0)


def checked_labels(labels) -> list[str]:
    """The labels as a list.

    Raises:
        ValueError: a string (a list of letters, which nobody means), no labels, or labels that repeat.
    """
    if isinstance(labels, str):
        raise ValueError(f"Labels must be a list of words; found the string {labels!r}.")
    labels = list(labels)
    if not labels or len(set(labels)) != len(labels):
        raise ValueError(f"Labels must be at least one and differ from each other; found {labels}.")
    return labels


def load_text_encoder(name_or_path: str, revision: str | None = None, subfolder: str = ""):
    """The frozen text encoder, float32, in evaluation mode, and its tokenizer. Of an encoder-decoder, the encoder."""

    where = {"revision": revision or "main", "subfolder": subfolder}

    def load(**local):
        tokenizer = AutoTokenizer.from_pretrained(name_or_path, **where, **local)
        config = AutoConfig.from_pretrained(name_or_path, **where, **local)
        adapter = {"adapter_kwargs": local} if local else {}  # an adapter is looked for by these alone
        encoder = AutoModel.from_pretrained(name_or_path, dtype=torch.float32, **where, **local, **adapter)
        return (encoder.get_encoder() if config.is_encoder_decoder else encoder).eval(), tokenizer

    try:
        return load()
    except RuntimeError:  # as in `find_file`, of a file that is not in the cache and need not be: an adapter's
        return load(local_files_only=True)


def save_text_encoder(name_or_path: str, folder: str, revision: str | None = None, subfolder: str = ""):
    """Saves a text encoder and its tokenizer, as `load_text_encoder` finds them, in a folder, which is replaced: what
    transformers writes, and no other file that lies beside them."""
    where = {"revision": revision or "main", "subfolder": subfolder}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # of what a checkpoint lacks and nothing uses, such as BERT's pooler: the same bytes
        parts = [
            AutoModel.from_pretrained(name_or_path, dtype="auto", **where),
            AutoTokenizer.from_pretrained(name_or_path, **where),
        ]
    shutil.rmtree(folder, ignore_errors=True)
    for part in parts:
        part.save_pretrained(folder)


def find_file(name_or_path: str, file: str, **where) -> str | None:
    """Path of a file of a repository, fetched if need be; `None` if it is absent or cannot be reached."""
    try:
        return cached_file(
            name_or_path,
            file,
            _raise_exceptions_for_gated_repo=False,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
            **where,
        )
    except RuntimeError:  # what huggingface_hub 1.3 says of a Hub that it cannot reach: "the client has been closed"
        return None


def cached_commit(name_or_path: str, **where) -> str | None:
    """The commit that a repository's files were fetched of; transformers itself keeps the name alone."""
    return extract_commit_hash(find_file(name_or_path, "config.json", local_files_only=True, **where), None)


def described(name_or_path: str, revision: str | None, subfolder: str) -> str:
    """A Hub name or folder in words, with its revision if it has one."""
    place = f"{subfolder}/ of {name_or_path}" if subfolder else name_or_path
    return f"{place} at {revision}" if revision else place


def announce_download(name_or_path: str, revision: str | None, subfolder: str):
    """Warns of weights that must be downloaded, with their size; says nothing if they are here."""
    if os.path.isdir(name_or_path):
        return
    where = {"revision": revision or "main"}
    try:
        entries = list(HfApi().list_repo_tree(name_or_path, subfolder or None, **where))
    except Exception:  # offline, no such repository, ...: loading comes next and says it, or finds all in the cache
        return
    sizes = {entry.path: entry.size for entry in entries if hasattr(entry, "size")}
    weights = [path for path in sizes if path.endswith(".safetensors")]
    weights = weights or [path for path in sizes if os.path.basename(path).startswith("pytorch_model")]
    missing = [path for path in weights if find_file(name_or_path, path, local_files_only=True, **where) is None]
    if missing:
        size_mb = sum(sizes[path] for path in missing) / 1e6
        encoder = described(name_or_path, revision, subfolder)
        logger.warning(f"New labels need the text encoder {encoder}: downloading {size_mb:.1f} MB.")


@torch.no_grad()
def embed_texts(encoder: nn.Module, tokenizer, texts: list[str], *, pooling: str) -> torch.Tensor:
    """H_t of eq. 2: (K, d_t) embeddings of K texts, each embedded alone, so that it depends on no other text. Paper
    unclear: how tokens become one vector; `mean` takes all tokens of the text, the encoder's special ones included;
    `first` the first token."""
    embeddings = []
    for text in texts:
        tokens = tokenizer([text], return_tensors="pt")
        hidden = encoder(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]).last_hidden_state
        mask = tokens["attention_mask"].bool()  # (1, tokens), all true: a text alone has no padding
        embeddings.append(hidden[:, 0] if pooling == "first" else masked_mean(hidden, mask))  # (1, d_t)
    return torch.cat(embeddings)


__all__ = [
    "LaSCLForAudioClassification",
    "LaSCLModel",
    "LaSCLOutput",
    "LaSCLPreTrainedModel",
    "joint_loss",
    "label_divergence_loss",
    "supervised_contrastive_loss",
]

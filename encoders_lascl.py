"""How stock encoders are adapted, one of the three files that travel with every checkpoint.

Adaptations keep stock parameter names, switch on by what the encoder is, and store nothing in the checkpoint, so the
weights load in a stock encoder too. Shapes: B utterances, L samples (or mel frames), T encoder frames, C channels,
H attention heads, D channels of a head.
"""

from __future__ import annotations

import contextlib
import threading
import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint
from transformers import AutoModel, PretrainedConfig, PreTrainedModel
from transformers.models.wav2vec2.modeling_wav2vec2 import _compute_mask_indices
from transformers.models.wavlm.modeling_wavlm import WavLMAttention
from transformers.models.whisper.modeling_whisper import WhisperEncoder
from transformers.utils import logging


logger = logging.get_logger(__name__)

# Their convolutions run over padding between the layers, or their masks do not fit their frames.
LEAKY_TYPES = {"wav2vec2-conformer", "sew", "sew-d"}
# Whisper's front end: 100 mel frames a second, halved by its second convolution.
WHISPER_FRAMES_PER_S = 50
# Mean power of a mel frame in dB, as the loud parts of an utterance have it: what all utterances get by `audio_level`
# equal (about the middle of the corpora that we have), and what is too faint for a voice.
EQUAL_LEVEL_DB, FAINTEST_DB = -20.0, -60.0
# A frame is active if it is at most so much fainter than the loudest but 5 %, which may be clicks.
ACTIVE_DB = 30.0
# Held while a Whisper encoder runs, which may be told for so long that its window is shorter, by whatever thread.
WHISPER_RUNS = threading.RLock()
# CUDA's memory-efficient attention copies a mask whose rows do not start at a multiple of so many elements.
MASK_ALIGNMENT = {"cuda": 16}
# What one more call of the encoder costs beside the audio that it hears, in samples of that audio, by device type; a
# constant, because a price that was timed would let an interrupted run end in other bytes.
CALL_PRICE = {"cpu": 1_600, "cuda": 1_600_000}


def build_audio_encoder(config: PretrainedConfig) -> PreTrainedModel:
    """The audio encoder of `config` with fresh weights, adapted. Of an encoder-decoder only the encoder is built.

    Raises:
        ValueError: an encoder type whose answers padding would change.
    """
    if config.model_type == "whisper":
        return WhisperEncoder(config)
    return _adapt(AutoModel.from_config(config))


def load_audio_encoder(
    name_or_path: str, *, revision: str | None = None, window_s: int | None = None
) -> PreTrainedModel:
    """A pre-trained audio encoder in float32 from the Hub or a folder, adapted.

    Args:
        name_or_path: Hub name or path.
        revision: branch, tag or commit on the Hub.
        window_s: Whisper only, in whole seconds: its position table is cut to this window (at most its own, 30 s),
            so that an utterance costs its own length, not 30 s. Ignored by encoders that take any length.

    Raises:
        ValueError: a window longer than Whisper's own, or an encoder type whose answers padding would change.
        OSError: no such model (transformers' own message).
    """
    # Half-precision checkpoints are loaded as float32: fine-tuning in half precision loses small updates.
    encoder = AutoModel.from_pretrained(name_or_path, revision=revision or "main", dtype=torch.float32)
    if encoder.config.model_type == "whisper":
        encoder = encoder.get_encoder()
        encoder.embed_positions.requires_grad_(False)  # sinusoids; loading makes every parameter trainable
        return encoder if window_s is None else _cut_window(encoder, window_s)
    return _adapt(encoder)


def _cut_window(encoder: WhisperEncoder, window_s: int) -> WhisperEncoder:
    positions, wanted = encoder.embed_positions.num_embeddings, window_s * WHISPER_FRAMES_PER_S
    if wanted > positions:
        raise ValueError(
            f"Whisper's encoder sees at most {positions / WHISPER_FRAMES_PER_S:g} s; found a window of {window_s} s. "
            "Lower max_duration_s."
        )
    # The table is sinusoidal and starts at 0: its first rows are the table of a shorter window.
    encoder.embed_positions = nn.Embedding.from_pretrained(encoder.embed_positions.weight[:wanted].clone())
    encoder.max_source_positions = encoder.config.max_source_positions = wanted
    return encoder


def _adapt(encoder: PreTrainedModel) -> PreTrainedModel:
    if encoder.config.is_encoder_decoder:
        encoder = encoder.get_encoder()
    takes_waveforms = getattr(encoder, "main_input_name", None) == "input_values"
    tells_padding = hasattr(encoder, "_get_feature_vector_attention_mask")
    leaky = encoder.config.model_type in LEAKY_TYPES or getattr(encoder.config, "add_adapter", False)
    if not (takes_waveforms and tells_padding) or leaky:
        raise ValueError(
            f"With the encoder type {encoder.config.model_type!r}, padding would change the answer. Choose wav2vec2 "
            "(without adapter), hubert, wavlm, data2vec-audio, unispeech, unispeech-sat or whisper."
        )
    first = _first_convolution(encoder)
    first_norm = getattr(first, "layer_norm", None)
    if isinstance(first_norm, nn.GroupNorm) and not isinstance(first_norm, MaskedGroupNorm):
        first.layer_norm = MaskedGroupNorm.adopt(first_norm)
    for layer in getattr(getattr(encoder, "feature_extractor", None), "conv_layers", None) or []:
        convolution = layer.conv
        plain = (convolution.padding, convolution.dilation, convolution.groups) == ((0,), (1,), 1)
        if isinstance(getattr(layer, "layer_norm", None), nn.LayerNorm) and plain:
            convolution.__class__ = ChannelsLastConv1d
    for layer in _before_convolutions(encoder):
        layer.valid_frames = None
        layer.register_forward_hook(_zero_padding)
    encoder.encoder.layers.__class__ = DroppableLayers
    # The same answers as stock's, for which a GPU need not be waited for.
    encoder._get_feature_vector_attention_mask = types.MethodType(_frames_on_signal, encoder)
    encoder._mask_hidden_states = types.MethodType(_hide_frames, encoder)
    for module in encoder.modules():
        if type(module) is WavLMAttention:
            # The same module with another forward: its parameters, hooks and device stay as they are.
            module.__class__ = RecomputedWavLMAttention
            module.config = encoder.config
    return encoder


def _first_convolution(encoder) -> nn.Module | None:
    convolutions = getattr(getattr(encoder, "feature_extractor", None), "conv_layers", None)
    return convolutions[0] if convolutions else None


def input_convolution(encoder: PreTrainedModel) -> tuple[nn.Module, str]:
    """The convolution that audio enters by: the module that owns it, and its name there."""
    return (encoder, "conv1") if encoder.config.model_type == "whisper" else (_first_convolution(encoder), "conv")


def _before_convolutions(encoder) -> list[nn.Module]:
    """Layers of the position embedding whose output runs into a further convolution: there padding is no longer
    zero, and would leak into the last valid frames."""
    if encoder.config.model_type == "data2vec-audio":
        return list(encoder.encoder.pos_conv_embed.layers)
    if getattr(encoder.config, "conv_pos_batch_norm", False):  # some HuBERTs
        return [encoder.encoder.pos_conv_embed.batch_norm]
    return []


def _zero_padding(layer: nn.Module, inputs, hidden_states: torch.Tensor) -> torch.Tensor:
    if layer.valid_frames is None:
        return hidden_states
    valid = torch.arange(hidden_states.shape[-1], device=hidden_states.device) < layer.valid_frames[:, None]  # (B, T)
    return hidden_states * valid[:, None]  # (B, C, T)


def _frames_on_signal(encoder, feature_vector_length: int, attention_mask: torch.Tensor, add_adapter=None):
    """(B, T) boolean: which frames lie on signal, in place of `_get_feature_vector_attention_mask`."""
    num_frames = encoder._get_feat_extract_output_lengths(attention_mask.sum(-1))  # (B,)
    return torch.arange(feature_vector_length, device=attention_mask.device) < num_frames[:, None]


def _hide_frames(encoder, hidden_states, mask_time_indices=None, attention_mask=None):
    """(B, T, C), in place of `_mask_hidden_states`: frames of a given mask become `masked_spec_embed`. What stock draws
    itself, it draws and hides itself."""
    stock = type(encoder)._mask_hidden_states
    if mask_time_indices is None or encoder.config.mask_feature_prob > 0:
        return stock(encoder, hidden_states, mask_time_indices=mask_time_indices, attention_mask=attention_mask)
    hiding = encoder.masked_spec_embed.to(hidden_states.dtype)
    return torch.where(mask_time_indices[..., None], hiding, hidden_states)


class MaskedGroupNorm(nn.GroupNorm):
    """Group normalisation over the valid frames of each utterance.

    wav2vec2-base, hubert-base and wavlm-base normalise each channel of their first convolution over *time*. Stock does
    so over padding too, and an utterance then changes with its neighbours in the batch. `valid_frames` (B,), set
    before each forward, keeps padding out of mean and variance; `None` is stock's behaviour.
    """

    valid_frames: torch.Tensor | None = None

    @classmethod
    def adopt(cls, stock: nn.GroupNorm) -> MaskedGroupNorm:
        """The same parameters under the same names. Stock has one group a channel here; anything else is refused."""
        if stock.num_groups != stock.num_channels:
            raise ValueError(
                f"Masked group norm needs one group a channel; found {stock.num_groups} groups for "
                f"{stock.num_channels} channels."
            )
        norm = cls(stock.num_groups, stock.num_channels, eps=stock.eps, affine=stock.affine)
        norm.weight, norm.bias = stock.weight, stock.bias
        return norm

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if self.valid_frames is None:
            return super().forward(hidden_states)
        # (B, C, T). Statistics in float32 at least, as the fused kernel keeps them.
        x = hidden_states if hidden_states.dtype == torch.float64 else hidden_states.float()
        valid = torch.arange(x.shape[-1], device=x.device) < self.valid_frames[:, None]  # (B, T)
        # A matrix product with the mask sums valid frames without a masked copy of the largest tensor of the model.
        share = (valid.to(x.dtype) / valid.sum(-1, keepdim=True).clamp(min=1))[..., None]  # (B, T, 1)
        with torch.autocast(x.device.type, enabled=False):
            centred = x - x @ share  # (B, C, T) - (B, C, 1)
            scale = torch.rsqrt(centred.square() @ share + self.eps) * self.weight[:, None]
            return (centred * scale + self.bias[:, None]).to(hidden_states.dtype)


class ChannelsLastConv1d(nn.Conv1d):
    """A convolution whose output lies in memory as (B, T, C), seen as (B, C, T); on a CPU alone.

    The layers of WavLM-Large's, HuBERT-Large's and wav2vec2-large-lv60's front ends normalise over channels. Between
    them stock turns the largest tensors of the whole model around, twice a layer; in this order nothing is copied. With
    group norm it would be slower.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, L) to (B, C, T)."""
        if x.device.type != "cpu" or has_no_values(x):
            return super().forward(x)
        if self.in_channels == 1:  # of one channel, no order can be told: as a matrix product it has the wanted one
            windows = x[:, 0].unfold(-1, self.kernel_size[0], self.stride[0])  # (B, T, kernel)
            return F.linear(windows, self.weight[:, 0], self.bias).transpose(1, 2)
        return F.conv2d(x.unsqueeze(2), self.weight.unsqueeze(2), self.bias, (1, self.stride[0])).squeeze(2)


class DroppableLayers(nn.ModuleList):
    """The layers of an encoder, of which those in `skipped` are passed over by a loop: layer-drop (Fan et al., 2020)
    drawn for a whole batch, where stock draws in every call. Everything but the loop sees all of them."""

    skipped: frozenset[int] = frozenset()

    def __iter__(self) -> Iterator[nn.Module]:
        return (layer for number, layer in enumerate(super().__iter__()) if number not in self.skipped)


class RecomputedWavLMAttention(WavLMAttention):
    """WavLM's attention (Chen et al., 2022, section 3) without a (B, H, T, T) tensor kept for backward.

        softmax(q k^T / sqrt(D) + gate * distance_bias) v

    by `scaled_dot_product_attention`. The gated bias and the attention are computed again in backward, with the same
    dropout; the distance bias alone is kept, once for all layers and utterances, as (H, T, T). Stock keeps several
    tensors of (B, H, T, T) a layer. Outputs, gradients and, on the CPU, the random numbers drawn in a call are stock's,
    also under autocast; a batch that is encoded in groups of like length is one call a group.

    Attention weights are never whole here: asked for `output_attentions`, stock's forward runs. Unlike stock, the
    projections are called as modules, so that adapters placed on them (LoRA) take part.
    """

    def forward(self, hidden_states, attention_mask=None, position_bias=None, index=0, **kwargs):
        """(B, T, C), `None` for the attention weights, and the distance bias (H, T, T) for the layers that follow."""
        if kwargs.get("output_attentions", self.config.output_attentions):
            return super().forward(hidden_states, attention_mask, position_bias, index=index, **kwargs)
        num_frames = hidden_states.shape[1]
        if position_bias is None:
            filling = -num_frames % MASK_ALIGNMENT.get(hidden_states.device.type, 1)
            position_bias = F.pad(self.compute_bias(num_frames, num_frames), (0, filling)).contiguous()
        padding = None
        if attention_mask is not None:
            padding = F.pad(attention_mask.ne(1), (0, position_bias.shape[-1] - num_frames))[:, None, None]
        query, key, value = (
            self._split_heads(projection(hidden_states)) for projection in (self.q_proj, self.k_proj, self.v_proj)
        )  # (B, H, T, D) each
        inputs = (hidden_states, query, key, value, position_bias, padding)
        if torch.is_grad_enabled() and query.requires_grad:
            attended = checkpoint(self._attend, *inputs, use_reentrant=False)
        else:
            attended = self._attend(*inputs)
        # As (T, B, C), stock's layout: dropout behind this layer draws in the order of strides.
        attended = attended.permute(2, 0, 1, 3).flatten(2)
        return self.out_proj(attended).transpose(0, 1), None, position_bias

    def compute_bias(self, query_length: int, key_length: int) -> torch.Tensor:
        """(H, T, T): the embedding of each distance between two frames, as stock has it. Distances are sorted into
        buckets on the CPU, where a logarithm decides as stock's; but each once, and without waiting for a GPU."""
        device = self.rel_attn_embed.weight.device
        buckets = self._relative_positions_bucket(torch.arange(1 - query_length, key_length))  # by distance
        queries, keys = torch.arange(query_length, device=device), torch.arange(key_length, device=device)
        distances = keys[None, :] - queries[:, None] + query_length - 1  # (T, T), from 0
        return self.rel_attn_embed(buckets.to(device, non_blocking=True)[distances]).permute(2, 0, 1)

    def _attend(self, hidden_states, query, key, value, position_bias, padding):
        """(B, H, T, D). `position_bias` may have more than T columns, which are cut off again."""
        # (B * H, T, D) and back: bitsandbytes' layers take no more dimensions.
        by_head = self._split_heads(hidden_states)
        gates = self.gru_rel_pos_linear(by_head.flatten(0, 1)).unflatten(0, by_head.shape[:2])  # (B, H, T, 8)
        gate_a, gate_b = gates.unflatten(-1, (2, 4)).sum(-1).sigmoid().chunk(2, dim=-1)  # (B, H, T, 1) each
        gate = gate_a * (gate_b * self.gru_rel_pos_const - 1) + 2
        # The largest tensor of the model, in the precision that the kernel wants.
        bias = gate.to(query.dtype) * position_bias.to(query.dtype)  # (B, H, T, T or more)
        if padding is not None:
            bias = bias.masked_fill_(padding, float("-inf"))
        if bias.shape[-1] != query.shape[2]:
            bias = bias[..., : query.shape[2]]
        dropout = self.dropout if self.training else 0.0
        with _kernels_with_mask_gradient(query.device):
            return F.scaled_dot_product_attention(query, key, value, attn_mask=bias, dropout_p=dropout)

    def _split_heads(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)  # (B, T, C) -> (B, H, T, D)


def _kernels_with_mask_gradient(device: torch.device):
    """On CUDA, the kernels that give the gradient of a mask. Pinned, because a pass without gradients would choose
    another one, which draws dropout in another order; and cuDNN's backward with a mask can give NaN
    (pytorch#196678)."""
    if device.type != "cuda":
        return contextlib.nullcontext()
    return sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH])


def encode_audio(
    encoder: PreTrainedModel, inputs: torch.Tensor, attention_mask: torch.Tensor | None, *, all_layers: bool
) -> tuple[torch.Tensor | tuple[torch.Tensor, ...], torch.Tensor]:
    """Runs the adapted encoder so that padding changes nothing.

    Args:
        encoder: from `build_audio_encoder` or `load_audio_encoder`.
        inputs: (B, L) waveform at the encoder's rate, or Whisper's (B, mel bins, L) log-mel features.
        attention_mask: (B, L) with 1 on signal and 0 on padding (right-padded), or `None` for no padding. For
            Whisper at the rate of mel frames or of samples: its extractor gives either.
        all_layers: whether to return every hidden state, the embedding first.

    Returns:
        (B, T, C) last hidden state, or the tuple of all; and the (B, T) boolean mask of valid frames. A row shorter
        than one frame is taken as one frame of signal and silence, so that no utterance vanishes.

    Raises:
        ValueError: Whisper features of another length than its window, with both lengths.
    """
    check_window(encoder, inputs, attention_mask)
    outputs, mask = encoder_outputs(encoder, inputs, attention_mask, all_layers=all_layers)
    return (outputs.hidden_states if all_layers else outputs.last_hidden_state), mask


def encoder_outputs(encoder: PreTrainedModel, inputs, attention_mask, *, all_layers: bool, drawn: Drawn | None = None):
    """As `encode_audio`, with all that the encoder returns: its last state need not be the last of all, which some
    encoders normalise once more. What is `drawn` for training is drawn here unless it is given. Whisper's features may
    be shorter than its window: see `window_groups`, and, for those of a whole batch, `check_window`."""
    if encoder.config.model_type == "whisper":
        # Whisper attends to the silence behind an utterance, as it was trained to: only pooling needs the mask.
        with contextlib.nullcontext() if has_no_values(inputs) else _first_positions(encoder, inputs.shape[-1] // 2):
            outputs = encoder(inputs, output_hidden_states=all_layers)
    else:
        drawn = draw(encoder, inputs, attention_mask) if drawn is None else drawn
        inputs, attention_mask = _reach_one_frame(encoder, inputs, attention_mask)
        _tell_valid_frames(encoder, attention_mask)
        hidden = {} if drawn.time_mask is None else {"mask_time_indices": drawn.time_mask}
        with _without_layers(encoder, drawn.skipped_layers):
            outputs = encoder(inputs, attention_mask=attention_mask, output_hidden_states=all_layers, **hidden)
        _tell_valid_frames(encoder, None)  # an exported graph must leave its modules as they were
        if all_layers and drawn.skipped_layers:
            outputs.hidden_states = _filled_up(outputs.hidden_states, drawn.skipped_layers)
    last = outputs.last_hidden_state
    mask = frame_mask(encoder, attention_mask, batch_size=last.shape[0], num_frames=last.shape[1], device=last.device)
    return outputs, mask


def check_window(encoder: PreTrainedModel, inputs: torch.Tensor, attention_mask: torch.Tensor | None):
    """Refuses Whisper features of another length than its window, and warns of what may have been cut there."""
    if encoder.config.model_type != "whisper":
        return
    window = 2 * len(encoder.embed_positions.weight)  # its configuration may tell of a part, to another thread
    if inputs.shape[-1] != window:
        raise ValueError(
            f"This Whisper encoder takes exactly {window} mel frames ({window / 100:g} s); found "
            f"{inputs.shape[-1]} ({inputs.shape[-1] / 100:g} s). Use the feature extractor saved with the checkpoint, "
            f"or AutoFeatureExtractor.from_pretrained(..., chunk_length={window / 100:g}); of a model that is built "
            f"anew, window_s={inputs.shape[-1] / 100:g} in from_encoders sets the window."
        )
    looked_at = not (encoder.training or attention_mask is None or has_no_values(inputs))
    if looked_at and bool(attention_mask[:, -1].any()):
        # Its stock extractor cuts in silence; all that is left to see here is a window without room.
        logger.warning_once(
            f"An utterance fills the whole window of {window / 100:g} s. What a longer recording has beyond it is not "
            "heard, since the feature extractor cuts there: split such a one into windows."
        )


@contextlib.contextmanager
def _first_positions(encoder: WhisperEncoder, num_positions: int) -> Iterator[None]:
    """Lets a Whisper encoder hear a part of its window: stock asks its configuration how long its input must be, and
    its position table, of which it then takes the first rows, how many there are."""
    config, table = encoder.config, encoder.embed_positions
    with WHISPER_RUNS:
        whole = len(table.weight)
        config.max_source_positions = table.num_embeddings = num_positions
        try:
            yield
        finally:
            config.max_source_positions = table.num_embeddings = whole


def frame_mask(
    encoder: PreTrainedModel,
    attention_mask: torch.Tensor | None,
    *,
    batch_size: int,
    num_frames: int,
    device: torch.device,
) -> torch.Tensor:
    """(B, T) boolean mask of the encoder's frames that lie on signal; all true without `attention_mask`."""
    if attention_mask is None:
        return torch.ones(batch_size, num_frames, dtype=torch.bool, device=device)
    if encoder.config.model_type == "whisper":
        # Samples or mel frames alike: both are a whole multiple of the encoder's frames.
        return attention_mask[:, :: attention_mask.shape[1] // num_frames][:, :num_frames].bool()
    return encoder._get_feature_vector_attention_mask(num_frames, attention_mask).bool()


def length_groups(lengths: Sequence[int], call_price: int) -> list[list[int]]:
    """Rows of a batch in groups that are encoded one after the other, each padded to its own longest row, at the least
    price: the sum over groups of rows x longest + `call_price`. A pure function of its arguments.

    Args:
        lengths: of the rows, in samples.
        call_price: of a group, in samples; 0 puts rows of different length in different groups.

    Returns:
        The numbers of the rows by rising length, in groups. No rows: no groups.
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    prices, starts = [0], [0]  # of the first n rows: the least price, and where their last group starts
    for end in range(1, len(order) + 1):
        longest = lengths[order[end - 1]]
        price, start = min((prices[start] + (end - start) * longest, start) for start in range(end))
        prices.append(price + call_price)
        starts.append(start)
    groups, end = [], len(order)
    while end:
        groups.append(order[starts[end] : end])
        end = starts[end]
    return groups[::-1]


def groups_to_encode(
    encoder: PreTrainedModel, inputs: torch.Tensor, attention_mask: torch.Tensor | None, lengths: Sequence[int] | None
) -> list[tuple[list[int], int]]:
    """The rows of a batch in the groups that are best encoded apart on this device, by rising length, each with the
    length to which its rows are cut. Empty where the batch is best encoded as it is: padding costs nothing, or cannot
    be seen.

    On a CPU lengths come from the mask. On an accelerator, which would have to be waited for, they are those that are
    given, if they are. A batch stays whole while a graph is traced, of Whisper's fixed window, and where stock masks
    features, which it draws in every call.

    Raises:
        ValueError: `lengths` of another number of rows.
    """
    if lengths is not None and len(lengths) != len(inputs):
        raise ValueError(f"lengths must be one number a row; found {len(lengths)} for {len(inputs)} rows.")
    config, device_type = encoder.config, inputs.device.type
    masks_features = encoder.training and getattr(config, "apply_spec_augment", False) and config.mask_feature_prob > 0
    if attention_mask is None or config.model_type == "whisper" or masks_features or has_no_values(inputs):
        return []
    if device_type == "cpu":
        lengths = valid_lengths(attention_mask).tolist()
    if lengths is None:
        return []
    groups = length_groups(lengths, CALL_PRICE.get(device_type, CALL_PRICE["cuda"]))
    # Of silence alone one sample is left, which is filled up to a frame.
    return [(rows, max(int(lengths[rows[-1]]), 1)) for rows in groups] if len(groups) > 1 else []


def window_groups(
    encoder: PreTrainedModel, inputs: torch.Tensor, attention_mask: torch.Tensor | None, lengths: Sequence[int] | None
) -> list[tuple[list[int], int]]:
    """The rows of a batch of Whisper features by the window that each hears of `audio_window` utterance, each group
    with its mel frames: those up to the end of the last second that has signal, at least 1 s, at most the whole window.
    A row's window follows from that row alone. Empty where all hear the whole window: without a mask, while a graph is
    traced, whose shapes are fixed, and for other encoders.

    An accelerator is waited for unless `lengths` are given.
    """
    if encoder.config.model_type != "whisper" or attention_mask is None or has_no_values(inputs):
        return []
    if lengths is None or inputs.device.type == "cpu":
        lengths = valid_lengths(attention_mask).tolist()
    whole, per_second = inputs.shape[-1], 2 * WHISPER_FRAMES_PER_S
    step = attention_mask.shape[-1] // whole * per_second  # a second, at the rate of the mask
    groups: dict[int, list[int]] = {}
    for row, length in enumerate(lengths):
        window = min(max(-(-int(length) // step), 1) * per_second, whole)
        groups.setdefault(window, []).append(row)
    return [(groups[window], window) for window in sorted(groups)]


def at_equal_level(input_features: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
    """Whisper features as of recordings that are all equally loud, at `EQUAL_LEVEL_DB`.

        level = 10 log10( sum_t p_t^2 / sum_t p_t ),    p_t = the mean over mel bins of 10^(4 x_t - 4)

    over the valid frames t, x being what the feature extractor makes of log10 of the power: (log10 + 4) / 4. Frames
    count as loud as they are, so that silence around the voice changes next to nothing. A gain adds the same to every
    feature (the extractor cuts off 80 dB below the loudest, and what is all but digital silence), and so what is added
    here is a gain. A level below `FAINTEST_DB`, which is no voice, is taken for that.

    Args:
        input_features: (B, mel bins, mel frames).
        attention_mask: (B, mel frames), or a whole number of times as many (samples); `None`: all is valid.

    Returns:
        As `input_features`, in their dtype; a row without a valid frame as it is.
    """
    power = _mel_power(input_features) * _mel_mask(input_features, attention_mask)  # (B, mel frames)
    total = power.sum(dim=-1)  # (B,)
    has_signal = total > 0
    level = power.square().sum(dim=-1) / total.where(has_signal, 1)
    level_db = 10 * level.clamp(min=10 ** (FAINTEST_DB / 10)).log10()  # (B,)
    gain_db = (EQUAL_LEVEL_DB - level_db).where(has_signal, 0)
    return input_features + (gain_db / 40).to(input_features.dtype)[:, None, None]


def active_frames(input_features: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
    """The frames of a Whisper encoder in which there is a voice: one of its two mel frames is at most `ACTIVE_DB`
    fainter than the loudest but 5 % of the valid ones. A gain changes nothing.

    Args:
        input_features, attention_mask: as of `at_equal_level`.

    Returns:
        (B, frames) of bool, frames being half as many as mel frames. A row without valid frames, or with values that
        are no numbers, has none.
    """
    valid = _mel_mask(input_features, attention_mask)
    level_db = (10 * _mel_power(input_features).log10()).masked_fill(~valid, -torch.inf)  # (B, mel frames)
    loudest_first = level_db.sort(dim=-1, descending=True).values
    loud_db = loudest_first.gather(-1, valid.sum(dim=-1, keepdim=True) // 20)  # (B, 1)
    active = valid & (level_db >= loud_db - ACTIVE_DB)
    return F.max_pool1d(active.float()[:, None], kernel_size=2, ceil_mode=True)[:, 0] > 0


def _mel_power(input_features: torch.Tensor) -> torch.Tensor:
    """(B, mel frames): mean over the mel bins."""
    return (10 ** (4 * input_features.float() - 4)).mean(dim=1)


def _mel_mask(input_features: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
    """(B, mel frames) of bool, of a mask for mel frames or for samples."""
    num_rows, _, num_frames = input_features.shape
    if attention_mask is None:
        return torch.ones(num_rows, num_frames, dtype=torch.bool, device=input_features.device)
    rate = attention_mask.shape[-1] // num_frames
    return attention_mask[:, ::rate][:, :num_frames].bool()


def valid_lengths(attention_mask: torch.Tensor) -> torch.Tensor:
    """(B,): how many samples or frames of each row are signal. Summed in the mask's own type: on a CPU, torch would
    turn all of it into 64-bit integers first, which take more memory than the waveforms."""
    return attention_mask.sum(-1, dtype=torch.int64 if attention_mask.dtype == torch.bool else attention_mask.dtype)


def refuse_odd_audio(
    encoder: PreTrainedModel, inputs: torch.Tensor, attention_mask: torch.Tensor | None, pooled: torch.Tensor
):
    """Refuses what could only be answered by a guess. One look at a batch, which a GPU has to be waited for; none
    where `has_no_values`.

    Args:
        encoder, inputs, attention_mask: as for `encode_audio`.
        pooled: (B, C), what came out.

    Raises:
        ValueError: a row shorter than one frame of the encoder (of Whisper, without any), NaN or infinite values, or
            a result that is not finite although the input is.
    """
    if has_no_values(inputs):
        return
    needed = samples_of_one_frame(encoder) or 1
    whole = torch.full((len(inputs),), inputs.shape[-1], device=inputs.device)
    lengths = whole if attention_mask is None else attention_mask.sum(-1)  # (B,)
    is_finite = inputs.flatten(1).isfinite().all(-1)  # (B,)
    if bool(((lengths >= needed) & is_finite & pooled.isfinite().all(-1)).all()):
        return
    for row, (length, finite) in enumerate(zip(lengths.tolist(), is_finite.tolist())):
        audio = "The audio" if len(inputs) == 1 else f"The audio in row {row} of the batch"
        if length == 0:
            raise ValueError(f"{audio} is empty: it has no samples. Leave it out.")
        if length < needed:
            raise ValueError(
                f"{audio} is too short: it has {length} samples, and one frame of this encoder needs {needed}. Leave "
                "it out."
            )
        if not finite:
            raise ValueError(f"{audio} holds NaN or infinite values. Repair it or leave it out.")
    raise ValueError(
        f"The audio encoder's states are not finite in {pooled.dtype}, although the audio is. Load the model with "
        "dtype=torch.bfloat16 or torch.float32."
    )


def has_no_values(tensor: torch.Tensor) -> bool:
    """Whether a tensor cannot be looked at: a graph is being traced, compiled or exported, or it is a mere shape."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing() or tensor.device.type == "meta"


def samples_of_one_frame(encoder: PreTrainedModel) -> int | None:
    """The receptive field of one frame of the convolutional front end; `None` where there is none."""
    kernels, strides = getattr(encoder.config, "conv_kernel", None), getattr(encoder.config, "conv_stride", None)
    if kernels is None or strides is None:
        return None
    needed = 1
    for kernel, stride in zip(reversed(kernels), reversed(strides)):
        needed = (needed - 1) * stride + kernel
    return needed


def _reach_one_frame(encoder, inputs, attention_mask):
    """Lets every row fill at least one frame: what is shorter than the front end's receptive field would crash the
    convolutions when alone, and would get a mask of only ones from stock's arithmetic beside a longer row."""
    needed = samples_of_one_frame(encoder)
    if needed is None:
        return inputs, attention_mask
    missing = max(0, needed - inputs.shape[-1])
    inputs = nn.functional.pad(inputs, (0, missing))
    if attention_mask is None:
        return inputs, None
    reached = torch.arange(inputs.shape[-1], device=inputs.device) < needed  # (L,)
    return inputs, nn.functional.pad(attention_mask, (0, missing)).masked_fill(reached, 1)


@dataclass
class Drawn:
    """What chance hides from an encoder in one batch.

    Args:
        time_mask: (B, T) boolean, frames that SpecAugment hides; `None` where the encoder masks no time.
        skipped_layers: numbers of the layers that layer-drop passes over; `None` where stock draws itself.
    """

    time_mask: torch.Tensor | None = None
    skipped_layers: frozenset[int] | None = None

    def of_rows(self, rows: slice | torch.Tensor, num_frames: int | None = None) -> Drawn:
        """Its part for some rows, cut to so many frames."""
        time_mask = None if self.time_mask is None else self.time_mask[rows, :num_frames]
        return Drawn(time_mask, self.skipped_layers)


def draw(encoder: PreTrainedModel, inputs, attention_mask, lengths: Sequence[int] | None = None) -> Drawn:
    """Draws for a batch as `encode_audio` takes it: layers from torch's generator, frames from numpy's. Nothing in
    evaluation mode, of Whisper, and where stock has to draw itself because the graph is being compiled.

    Args:
        lengths: of the rows, in samples, so that a GPU need not be asked for them.
    """
    if not encoder.training or encoder.config.model_type == "whisper":
        return Drawn()
    skipped, rate = None, getattr(encoder.config, "layerdrop", 0.0)
    if rate > 0 and not has_no_values(inputs):
        layers = encoder.encoder.layers
        first = int(encoder.config.model_type == "wavlm")  # its first layer computes the distance bias of all
        skipped = frozenset(number for number in range(first, len(layers)) if float(torch.rand([])) < rate)
        if len(skipped) == len(layers):
            skipped -= {0}  # of an encoder that runs no layer transformers returns no state
    return Drawn(_draw_time_mask(encoder, inputs, attention_mask, lengths), skipped)


def _draw_time_mask(encoder, inputs, attention_mask, lengths) -> torch.Tensor | None:
    """SpecAugment's spans over time (Park et al., 2019; drawn by stock's own function from numpy's generator), (B, T);
    `None` where the encoder masks no time.

    Stock raises if the whole batch is shorter than a span, and may hide all of an utterance that is little longer:
    here a row that would lose more than half of its frames keeps them all.
    """
    config = encoder.config
    if not (getattr(config, "apply_spec_augment", False) and config.mask_time_prob > 0):
        return None
    inputs, attention_mask = _reach_one_frame(encoder, inputs, attention_mask)
    num_frames = int(encoder._get_feat_extract_output_lengths(inputs.shape[-1]))
    if lengths is None or attention_mask is None:
        valid = frame_mask(
            encoder, attention_mask, batch_size=len(inputs), num_frames=num_frames, device=inputs.device
        ).cpu()  # (B, T)
    else:
        reached = torch.tensor(lengths).clamp(min=samples_of_one_frame(encoder))
        valid = torch.arange(num_frames) < encoder._get_feat_extract_output_lengths(reached)[:, None]
    hidden = torch.zeros_like(valid)
    if num_frames >= config.mask_time_length:
        hidden = torch.from_numpy(
            _compute_mask_indices(
                tuple(valid.shape),
                mask_prob=config.mask_time_prob,
                mask_length=config.mask_time_length,
                attention_mask=None if attention_mask is None else valid.long(),
                min_masks=config.mask_time_min_masks,
            )
        )
        hidden &= (2 * (hidden & valid).sum(-1) <= valid.sum(-1))[:, None]
    return hidden.to(inputs.device, non_blocking=True)


@contextlib.contextmanager
def _without_layers(encoder, skipped: frozenset[int] | None) -> Iterator[None]:
    """Lets the encoder pass over some layers, and over no other; `None` leaves it to draw for each, as stock does."""
    if skipped is None:
        yield
        return
    layers, config = encoder.encoder.layers, encoder.config
    rate, layers.skipped, config.layerdrop = config.layerdrop, skipped, 0.0
    try:
        yield
    finally:
        config.layerdrop, layers.skipped = rate, frozenset()


def _filled_up(hidden_states: tuple[torch.Tensor, ...], skipped: frozenset[int]) -> tuple[torch.Tensor, ...]:
    """The embedding and one state for each layer: of one that was passed over, the state that it would have got."""
    states = iter(hidden_states)
    filled = [next(states)]
    for number in range(len(hidden_states) - 1 + len(skipped)):
        filled.append(filled[-1] if number in skipped else next(states))
    return tuple(filled)


def _tell_valid_frames(encoder, attention_mask: torch.Tensor | None):
    """Tells the adapted layers how many of their frames lie wholly on signal: as many as the utterance alone gives."""
    samples = None if attention_mask is None else attention_mask.sum(-1)  # (B,)
    first = _first_convolution(encoder)
    norm = getattr(first, "layer_norm", None)
    if isinstance(norm, MaskedGroupNorm):
        kernel, stride = encoder.config.conv_kernel[0], encoder.config.conv_stride[0]
        norm.valid_frames = None if samples is None else (samples - kernel).div(stride, rounding_mode="floor") + 1
        # Recomputed in backward, the layer would see the lengths of a later batch.
        first.gradient_checkpointing = False
    for layer in _before_convolutions(encoder):
        layer.valid_frames = None if samples is None else encoder._get_feat_extract_output_lengths(samples)
        if isinstance(layer, nn.BatchNorm1d):
            layer.eval()  # its batch statistics would mix utterances, and padding, into each other

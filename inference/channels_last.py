"""The convolutional front end of layer-norm encoders, twice as fast on a CPU: same weights, another order in memory.

Letters: B utterances, C channels, L positions of the input, T of the output.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class ChannelsLastConv1d(nn.Conv1d):
    """A convolution whose output lies in memory as (B, T, C), seen as (B, C, T).

    The layers of WavLM-Large's, HuBERT-Large's and wav2vec2-large-lv60's front ends normalise over channels. Between
    them stock turns the largest tensors of the whole model around, twice a layer; in this order nothing is copied.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, L) to (B, C, T)."""
        if self.in_channels == 1:  # of one channel, no order can be told: as a matrix product it has the wanted one
            windows = x[:, 0].unfold(-1, self.kernel_size[0], self.stride[0])  # (B, T, kernel)
            return F.linear(windows, self.weight[:, 0], self.bias).transpose(1, 2)
        return F.conv2d(x.unsqueeze(2), self.weight.unsqueeze(2), self.bias, (1, self.stride[0])).squeeze(2)


def use_channels_last(audio_encoder: nn.Module):
    """Lets an encoder answer so, if it has such a front end; others stay as they are. Group norm would be slower."""
    front_end = getattr(audio_encoder, "feature_extractor", None)
    for layer in getattr(front_end, "conv_layers", []):
        convolution = layer.conv
        plain = (convolution.padding, convolution.dilation, convolution.groups) == ((0,), (1,), 1)
        if isinstance(getattr(layer, "layer_norm", None), nn.LayerNorm) and plain:
            # The same module with another forward: its parameters and device stay as they are.
            convolution.__class__ = ChannelsLastConv1d

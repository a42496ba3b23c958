"""Low-rank adapters (LoRA; Hu et al., 2022, arXiv:2106.09685) on the audio encoder, by PEFT."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lascl.modeling_lascl import LaSCLForAudioClassification


if TYPE_CHECKING:
    from peft import LoraModel

# The projections of attention, by the names that all speech encoders of transformers give them.
ADAPTED = ["q_proj", "k_proj", "v_proj", "out_proj"]


def add_lora(model: LaSCLForAudioClassification, rank: int) -> LoraModel:
    """Puts adapters of this rank on every attention projection of the audio encoder, in place, and freezes the
    encoder's own weights. Projections, classifier and layer weights are trained as ever.

    An adapter adds (alpha / rank) B A x, with alpha = 2 rank; B starts at 0, so that the model answers as before. Their
    learning rate is `encoder_learning_rate`; adapters stand ten times that of full fine-tuning.

    Returns:
        PEFT's handle: `merge_and_unload()` adds the adapters to the weights and leaves a stock encoder behind.
    """
    from peft import LoraConfig, LoraModel

    encoder = model.lascl.audio_encoder
    return LoraModel(encoder, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=ADAPTED), "default")

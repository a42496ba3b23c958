"""LaSCL: label semantic-driven contrastive learning for speech emotion recognition.

Names load when first used, so that `import lascl` costs nothing. Using any of them registers LaSCL with transformers'
Auto classes.
"""

import importlib


__version__ = "0.1.0"

_HOMES = {
    "LaSCLConfig": "lascl.configuration_lascl",
    "LaSCLModel": "lascl.modeling_lascl",
    "LaSCLForAudioClassification": "lascl.modeling_lascl",
    "supervised_contrastive_loss": "lascl.modeling_lascl",
    "label_divergence_loss": "lascl.modeling_lascl",
    "joint_loss": "lascl.modeling_lascl",
    "LaSCLTrainer": "lascl.training",
    "LaSCLTrainingArguments": "lascl.training",
    "load_corpus": "lascl.data",
    "make_folds": "lascl.data",
    "score": "lascl.evaluation",
    "predict_files": "lascl.inference",
}
__all__ = ["__version__", *_HOMES]


def __getattr__(name):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    _register_auto_classes()
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__():
    return sorted(__all__)


def _register_auto_classes():
    from transformers import AutoConfig, AutoModel, AutoModelForAudioClassification

    from lascl.configuration_lascl import LaSCLConfig
    from lascl.modeling_lascl import LaSCLForAudioClassification, LaSCLModel

    # The first three make saving copy the code files; the second three let the Auto classes find the local classes.
    LaSCLConfig.register_for_auto_class("AutoConfig")
    LaSCLModel.register_for_auto_class("AutoModel")
    LaSCLForAudioClassification.register_for_auto_class("AutoModelForAudioClassification")
    AutoConfig.register("lascl", LaSCLConfig, exist_ok=True)
    AutoModel.register(LaSCLConfig, LaSCLModel, exist_ok=True)
    AutoModelForAudioClassification.register(LaSCLConfig, LaSCLForAudioClassification, exist_ok=True)

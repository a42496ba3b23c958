"""LaSCL: label semantic-driven contrastive learning for speech emotion recognition.

Names load when first used, so that `import lascl` costs nothing. Using any of them registers LaSCL with transformers'
Auto classes.
"""

from lascl.lazy import lazily


__version__ = "0.2.0"

_HOMES = {
    "LaSCLConfig": "lascl.configuration_lascl",
    "LaSCLModel": "lascl.modeling_lascl",
    "LaSCLForAudioClassification": "lascl.modeling_lascl",
    "supervised_contrastive_loss": "lascl.modeling_lascl",
    "label_divergence_loss": "lascl.modeling_lascl",
    "joint_loss": "lascl.modeling_lascl",
    "LaSCLTrainer": "lascl.training",
    "LaSCLTrainingArguments": "lascl.training",
    "load_corpora": "lascl.data",
    "load_corpus": "lascl.data",
    "make_folds": "lascl.data",
    "score": "lascl.evaluation",
    "predict_files": "lascl.inference",
}
__all__ = ["__version__", *_HOMES]


_load = lazily(__name__, _HOMES)


def __getattr__(name):
    value = _load(name)
    _register_auto_classes()
    return value


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

"""Which tests start first, and who needs to import what they need: see tiny.py."""

import pytest


# These first: the last to start must be short ones, or a worker idles at the end. A file stays whole on one worker.
LONGEST = [
    *("distributed", "frozen_encoder", "train", "publish", "accelerate", "bad_input", "launch", "predict", "export"),
    *("study", "report", "init_from", "space", "readme", "benchmarks", "trainer"),
]


@pytest.hookimpl(trylast=True)
def pytest_configure(config):
    """The process that hands the tests out runs none: it spares the eight seconds that torch and transformers take."""
    if not config.pluginmanager.hasplugin("dsession"):
        config.pluginmanager.import_plugin("tiny")


# Families of encoders whose code is another's with other constants: their tests are slow.
KIN = {"wav2vec2-layer", "hubert-group", "unispeech", "unispeech-sat"}


@pytest.hookimpl(tryfirst=True)  # before `-m` is looked at
def pytest_collection_modifyitems(items):
    for item in items:
        given = item.callspec.params if hasattr(item, "callspec") else {}
        if given.get("family") in KIN:
            item.add_marker(pytest.mark.slow)
    ranks = {f"test_{name}.py": rank for rank, name in enumerate(LONGEST)}
    items.sort(key=lambda item: ranks.get(item.path.name, len(LONGEST)))

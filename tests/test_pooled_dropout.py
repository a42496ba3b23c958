"""`pooled_dropout`: in training each head goes without a share of the pooled audio; nothing else is changed."""

import inspect
import json

import pytest
import torch
from transformers import AutoConfig

from lascl import LaSCLConfig, LaSCLForAudioClassification
from lascl.training.recipe import parse_recipe


@pytest.fixture(scope="module")
def build(audio_encoders, text_encoder):
    def build(**config):
        torch.manual_seed(3)
        folder = audio_encoders["wav2vec2-layer"]
        return LaSCLForAudioClassification.from_encoders(folder, text_encoder, ["a", "b"], projection_dim=8, **config)

    return build


def dropping(build, share=0.5):
    assert "pooled_dropout" in inspect.signature(LaSCLConfig).parameters, "there is no pooled_dropout"
    return build(pooled_dropout=share)


def test_each_head_hears_its_own_share_of_the_pooled_audio_in_training(build):
    model = dropping(build, 0.25)
    pooled = torch.ones(400, model.config.pooled_size)
    heard = {"projection": [], "classifier": []}
    model.lascl.audio_projection.register_forward_pre_hook(lambda _, inputs: heard["projection"].append(inputs[0]))
    model.classifier.register_forward_pre_hook(lambda _, inputs: heard["classifier"].append(inputs[0]))
    outputs = model.train()(pooled_audio=pooled)
    (first,), (second,) = heard.values()
    for found in (first, second):
        is_kept = found != 0
        torch.testing.assert_close(found[is_kept], torch.full_like(found[is_kept], 1 / 0.75))  # the mean is kept
        assert is_kept.float().mean().item() == pytest.approx(0.75, abs=0.02)
    assert not torch.equal(first, second)
    assert torch.equal(outputs.pooled_audio, pooled)  # what is returned is whole
    model.train()(pooled_audio=pooled)
    assert not torch.equal(heard["projection"][1], first)  # drawn anew


def test_a_standardised_vector_is_dropped_after_it_is_standardised(build):
    """A dropped value is 0, the mean of what is standardised, whatever the mean before."""
    assert "pooled_dropout" in inspect.signature(LaSCLConfig).parameters, "there is no pooled_dropout"
    model, heard = build(pooled_dropout=0.5, standardise_audio=True), []
    model.lascl.pooled_mean.fill_(5.0)
    model.lascl.audio_projection.register_forward_pre_hook(lambda _, inputs: heard.append(inputs[0]))
    returned = model.train()(torch.randn(4, 1600)).pooled_audio
    is_kept = heard[0] != 0
    assert 0 < is_kept.float().mean() < 1 and returned.abs().min() > 0
    torch.testing.assert_close(heard[0][is_kept], 2 * returned[is_kept])


def test_outside_training_and_at_0_nothing_is_drawn_or_changed(build):
    model, plain = dropping(build), build()
    # Of pooled audio: some versions of transformers draw in the encoder, for a layer-drop of 0, outside training too.
    pooled = torch.randn(3, model.config.pooled_size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = plain.eval()(pooled_audio=pooled)
    before = torch.get_rng_state()
    for tried in (model.eval(), plain.train()):
        with torch.no_grad():
            found = tried(pooled_audio=pooled)
        assert torch.equal(torch.get_rng_state(), before)
        torch.testing.assert_close(found.logits, expected.logits)
        torch.testing.assert_close(found.class_logits, expected.class_logits)
    with torch.no_grad():
        assert torch.equal(model.eval()(pooled_audio=pooled).logits, expected.logits)
    model.train()(pooled_audio=pooled)
    assert not torch.equal(torch.get_rng_state(), before)


def test_it_is_a_field_of_recipes_and_of_configurations_that_need_it(build, tmp_path):
    try:
        recipe, _ = parse_recipe(["quickstart", "--pooled_dropout", "0.4"])
    except ValueError as error:
        recipe = error
    assert not isinstance(recipe, ValueError), recipe
    assert recipe.model_config()["pooled_dropout"] == 0.4 and recipe.to_dict()["pooled_dropout"] == 0.4
    for share in (0.0, 0.4):
        LaSCLConfig(pooled_dropout=share).save_pretrained(tmp_path)
        written = json.loads((tmp_path / "config.json").read_text())
        assert ("pooled_dropout" in written) == bool(share)  # without it, code that does not know it reads the file
        assert AutoConfig.from_pretrained(tmp_path).pooled_dropout == share
    with pytest.raises(ValueError, match=r"pooled_dropout must lie in \[0, 1\); found 1.0"):
        parse_recipe(["quickstart", "--pooled_dropout", "1"])


def test_a_training_that_starts_from_a_checkpoint_drops_what_its_recipe_says(build, tmp_path):
    from lascl.training.start import start_from

    build().save_pretrained(tmp_path)
    recipe, _ = parse_recipe(["quickstart", "--init_from", str(tmp_path), "--pooled_dropout", "0.4"])
    assert start_from(str(tmp_path), ["a", "b"], recipe).config.pooled_dropout == 0.4

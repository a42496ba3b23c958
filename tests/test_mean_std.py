"""`audio_pooling: mean_std`: mean and standard deviation over the frames, of one layer or of several."""

import math

import pytest
import torch
from tiny import LABELS

from lascl import LaSCLForAudioClassification, modeling_lascl


@pytest.fixture
def pool():
    assert hasattr(modeling_lascl, "masked_mean_std"), "there is no pooling mean_std"
    return modeling_lascl.masked_mean_std


def test_it_is_the_mean_and_the_deviation_of_each_feature_over_valid_frames(pool):
    x, lengths = torch.randn(4, 7, 3, dtype=torch.float64), (7, 4, 1, 0)
    mask = torch.arange(7) < torch.tensor(lengths)[:, None]
    found = pool(x, mask)
    assert found.shape == (4, 6)
    for row, length in enumerate(lengths):
        for feature in range(3):
            values = [float(x[row, frame, feature]) for frame in range(length)]
            mean = sum(values) / length if length else 0.0
            std = math.sqrt(sum((value - mean) ** 2 for value in values) / length) if length else 0.0
            assert found[row, feature].item() == pytest.approx(mean, abs=1e-12)
            assert found[row, 3 + feature].item() == pytest.approx(std, abs=1e-12)


def test_what_does_not_vary_has_no_deviation_and_no_gradient(pool):
    x = torch.full((2, 5, 3), 2.0, requires_grad=True)
    mask = torch.tensor([[True] * 5, [True] + [False] * 4])
    found = pool(x, mask)
    assert (found[:, 3:] == 0).all() and (found[:, :3] == 2).all()
    found[:, 3:].sum().backward()
    assert (x.grad == 0).all()


def test_its_gradient_is_the_numerical_one(pool):
    x = torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    assert torch.autograd.gradcheck(lambda frames: pool(frames, mask), x)


def test_half_precision_states_are_pooled_in_full_precision(pool):
    x = 200 + torch.randn(1, 499, 4).half()
    found = pool(x, torch.ones(1, 499, dtype=torch.bool))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found[0, 4:].double(), x[0].double().std(0, correction=0), rtol=1e-4, atol=0)


@pytest.mark.parametrize("layers, width", [("last", 32), ("weighted", 32), ("0,1,2", 96)])
def test_a_model_of_several_layers_answers_alike_alone_and_in_a_batch(
    pool, audio_encoders, text_encoder, layers, width, tmp_path
):
    torch.manual_seed(0)
    model = LaSCLForAudioClassification.from_encoders(
        audio_encoders["wavlm-layer"],
        text_encoder,
        LABELS,
        audio_layers=layers,
        audio_pooling="mean_std",
        standardise_audio=True,
        projection_dim=8,
    ).eval()
    assert model.config.pooled_size == model.classifier.in_features == width
    lengths = torch.tensor([1600, 700, 1100])
    mask = (torch.arange(1600) < lengths[:, None]).long()
    given = torch.randn(3, 1600) * mask
    model.save_pretrained(tmp_path)
    again = LaSCLForAudioClassification.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        together = again(input_values=given, attention_mask=mask)
        for row, length in enumerate(lengths):
            alone = model(input_values=given[row : row + 1, :length])
            torch.testing.assert_close(together.pooled_audio[row], alone.pooled_audio[0], rtol=0, atol=1e-5)
            torch.testing.assert_close(together.logits[row], alone.logits[0], rtol=0, atol=1e-4)
    assert together.pooled_audio.shape == (3, width)

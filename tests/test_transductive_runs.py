"""A run over three corpora whose words differ, heard by a frozen encoder, each speaker standardised by itself: from
`train.py` to predictions, scores, views and card."""

import inspect
import json

import pytest
import torch
from tiny import read_csv

from lascl import LaSCLForAudioClassification, train
from lascl.hub.card import fold_card
from lascl.modeling_lascl import LaSCLModel


OWN = {"acted": ["anger", "calm", "neutral"], "calls": ["anger", "annoyed", "neutral"]}


def run(*argv):
    """Fails by an assertion where something is refused."""
    said = None
    try:
        train.main([str(part) for part in argv])
    except SystemExit as exit:
        said = exit.code
    assert said is None


@pytest.fixture(scope="module")
def command(three_corpora, audio_encoders, text_encoder, tmp_path_factory):
    fields = {"audio_encoder": audio_encoders["wav2vec2-layer"], "text_encoder": text_encoder, "projection_dim": 8}
    fields |= {"freeze_audio_encoder": "true", "augmentation": "none", "standardise_audio": "speaker"}
    fields |= {"num_train_epochs": 1, "global_batch_size": 16, "disable_tqdm": "true", "max_duration_s": 0.3}
    fields |= {"allow_partial": "true", "views_dir": tmp_path_factory.mktemp("views")}
    typed = [part for name, value in fields.items() for part in (f"--{name}", value)]
    return ["emodb", "--corpora", json.dumps(three_corpora), *typed]


@pytest.fixture(scope="module")
def finished(command, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("runs") / "run"
    run(*command, "--folds", "acted,calls", "--output_dir", run_dir)
    return run_dir


def test_a_left_out_corpus_is_answered_in_its_own_words_which_nobody_trained(finished):
    union = ["anger", "annoyed", "boredom", "calm", "disgust", "fear", "happiness", "neutral", "sadness"]
    for number, (corpus, own) in enumerate(OWN.items(), start=1):
        unseen = {"acted": "calm", "calls": "annoyed"}[corpus]
        rows = read_csv(finished / f"fold-{number}" / "predictions.csv")
        assert len(rows) == 18 and {row["corpus"] for row in rows} == {corpus}
        assert {row["prediction"] for row in rows} <= set(own)
        assert {row["prediction_classifier"] for row in rows} <= set(own) - {unseen}
        for row in rows:
            assert sum(float(row[f"probability_{word}"]) for word in union) == pytest.approx(1, abs=1e-5)
            assert {word for word in union if row[f"probability_classifier_{word}"] == ""} == {unseen}
        kept = LaSCLForAudioClassification.from_pretrained(finished / f"fold-{number}" / "checkpoint").config.labels
        assert kept == [word for word in union if word != unseen]
        metrics = json.loads((finished / f"fold-{number}" / "metrics.json").read_text())
        assert metrics["labels"] == own and metrics["n"] == 18
    results = json.loads((finished / "results.json").read_text())
    assert {corpus: scores["labels"] for corpus, scores in results["corpora"].items()} == OWN
    assert results["corpora"]["calls"]["unseen_words"]["words"] == ["annoyed"]
    assert results["mean_over_corpora"]["num_corpora"] == 2 and results["transductive"] is True


def test_who_is_tested_is_standardised_by_all_of_its_own_recordings(finished, monkeypatch):
    """The same answers from the saved checkpoint, whose statistics are replaced by those of one speaker's own audio."""
    from lascl.data import SpeechCollator, SpeechDataset, load_corpora
    from lascl.training.recipe import parse_recipe
    from lascl.training.start import read_extractor

    recipe, _ = parse_recipe([str(finished / "recipe.yaml")])
    table = load_corpora(recipe.entries, allow_partial=True)
    rows = [row for row, speaker in enumerate(table["speaker"][:]) if speaker == "calls/2"]
    model = LaSCLForAudioClassification.from_pretrained(finished / "fold-2" / "checkpoint").eval()
    extractor = read_extractor(recipe, finished / "fold-2" / "checkpoint", 1)
    speech = SpeechDataset(table, rows, sampling_rate=16_000, max_duration_s=0.3)
    raw = []
    model.config.standardise_audio = "none"
    for index in range(len(rows)):
        batch = SpeechCollator(extractor)([{"label": 0, "views": [speech.view(index, 0, 0)]}])
        del batch["labels"]
        with torch.no_grad():
            raw.append(model.lascl(**batch).pooled_audio)
    raw = torch.cat(raw)
    pooled = (raw - raw.mean(0)) / raw.std(0, correction=0)
    classified = torch.nn.functional.linear(pooled, model.classifier.weight, model.classifier.bias).softmax(-1)
    told = {row["id"]: row for row in read_csv(finished / "fold-2" / "predictions.csv")}
    for index, row in enumerate(rows):
        for number, word in enumerate(model.config.labels):
            cell = float(told[table["id"][row]][f"probability_classifier_{word}"])
            assert cell == pytest.approx(float(classified[index, number]), abs=1e-3)


def test_fewer_corpora_and_another_mode_encode_nothing(command, three_corpora, finished, tmp_path, monkeypatch):
    heard, forward = [], LaSCLModel.forward
    signature = inspect.signature(forward)

    def counted(*args, **kwargs):
        if signature.bind(*args, **kwargs).arguments.get("pooled_audio") is None:
            heard.append(1)
        return forward(*args, **kwargs)

    monkeypatch.setattr(LaSCLModel, "forward", counted)
    monkeypatch.setattr("lascl.train.write_report", lambda *_: None)
    fewer = ["emodb", "--corpora", json.dumps(three_corpora[:2]), *command[3:]]
    fewer[fewer.index("--standardise_audio") + 1] = "training"
    run(*fewer, "--folds", "acted", "--output_dir", tmp_path / "fewer")
    assert (tmp_path / "fewer" / "fold-1" / "predictions.csv").is_file() and not heard


def test_card_and_table_say_that_the_numbers_are_transductive(finished):
    card = fold_card(finished, 2)
    text = " ".join(card.content.split())
    assert "**These scores are transductive**" in text and "| mean over corpora |" in text
    assert all("Transductive" in result.dataset_args["protocol"] for result in card.data.eval_results)
    (ua,) = [result.metric_value for result in card.data.eval_results if result.metric_type == "recall"]
    scores = json.loads((finished / "results.json").read_text())["corpora"]["calls"]
    assert ua == pytest.approx(scores["ua"], abs=1e-4)
    assert "Transductive: unlabelled audio of the tested side" in (finished / "report.md").read_text()


def test_what_was_made_of_recordings_beside_each_other_is_not_verified_alone(finished, many, tmp_path):
    from lascl.hub.verify import verify

    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / name).write_bytes((finished / "fold-2" / "checkpoint" / name).read_bytes())
    (tmp_path / "predictions.csv").write_bytes((finished / "fold-2" / "predictions.csv").read_bytes())
    fold_card(finished, 2).save(tmp_path / "README.md")
    with pytest.raises(ValueError, match="made with statistics by speaker, of recordings beside each other"):
        verify(tmp_path, many)

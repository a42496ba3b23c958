"""`lascl-words`: where words of one's own lie, how well they tell labelled recordings, and a temperature for them."""

import importlib.util
import json
import math

import numpy as np
import pytest
import soundfile
import torch
from test_modeling import build, outputs, stock_text_states, two_layers
from tiny import RATE, read_csv, recording
from transformers import AutoFeatureExtractor

from lascl import LaSCLConfig, LaSCLForAudioClassification
from lascl.predict import main as predict


WORDS = ["joyful", "furious", "angry"]
TRAINED = ["angry", "happy", "neutral", "sad"]


@pytest.fixture
def words():
    """The module, if it is there."""
    is_there = importlib.util.find_spec("lascl.inference.words")
    return importlib.import_module("lascl.inference.words") if is_there else None


@pytest.fixture(scope="module")
def made(audio_encoders, text_encoder, tmp_path_factory):
    """A checkpoint and a labelled list beside twelve recordings."""
    folder = tmp_path_factory.mktemp("words")
    audio = audio_encoders["wav2vec2-layer"]
    build(audio, text_encoder).save_pretrained(folder / "model")
    AutoFeatureExtractor.from_pretrained(audio).save_pretrained(folder / "model")
    lines = ["path,label"]
    for number in range(12):
        soundfile.write(folder / f"{number}.wav", recording(number, 0.2 + 0.01 * number), RATE)
        lines.append(f"{number}.wav,{WORDS[number % 3]}")
    (folder / "labelled.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def folder(made, tmp_path):
    """The same, to be written to."""
    for name in ("labelled.csv", *(f"{number}.wav" for number in range(12))):
        (tmp_path / name).symlink_to(made / name)
    (tmp_path / "model").mkdir()
    for file in (made / "model").iterdir():
        if file.name == "config.json":
            (tmp_path / "model" / file.name).write_bytes(file.read_bytes())
        else:
            (tmp_path / "model" / file.name).symlink_to(file)
    return tmp_path


def run(words, *argv) -> int:
    """Its exit code."""
    assert words, "there is no lascl-words"
    try:
        words.main([str(arg) for arg in argv])
    except SystemExit as error:
        return error.code
    return 0


def embeds_of(model, text_encoder, some):
    """(W, D), from the stock text encoder and eq. 3 by hand."""
    rows = [states.mean(dim=0) for states in stock_text_states(text_encoder, some)]
    with torch.no_grad():
        return [two_layers(model.lascl.text_projection, row).double().tolist() for row in rows]


def cosine(a, b):
    return sum(x * y for x, y in zip(a, b)) / math.hypot(*a) / math.hypot(*b)


def test_each_word_has_its_nearest_trained_word_and_warnings_name_what_lies_together(words, made, text_encoder, capsys):
    model = LaSCLForAudioClassification.from_pretrained(made / "model")
    asked = ["joyful", "angry", "furious", "weary"]
    own, trained = embeds_of(model, text_encoder, asked), embeds_of(model, text_encoder, TRAINED)
    nearest = {}
    for word, place in zip(asked, own):
        cosines = [cosine(place, other) for other in trained]
        nearest[word] = (TRAINED[cosines.index(max(cosines))], max(cosines))
    assert run(words, made / "model", ", ".join(asked), "--device", "cpu") == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()[:-1]
    rows = [line.split() for line in lines]
    assert [row[0] for row in rows[1:]] == asked
    for word, found, value in rows[1:]:
        assert found == nearest[word][0] and float(value) == pytest.approx(nearest[word][1], abs=6e-4)
    assert nearest["angry"] == ("angry", pytest.approx(1.0))
    shared = [word for word in asked if [name for name, _ in nearest.values()].count(nearest[word][0]) > 1]
    assert shared, "no two words land together: this test shows nothing"
    for word in shared:
        assert any(word in line and f"on the place of {nearest[word][0]}" in line for line in printed.err.splitlines())
    limit = 1 - 0.07 * math.log(2)
    for i, one in enumerate(asked):
        for j in range(i + 1, len(asked)):
            is_said = f"{one} and {asked[j]} cannot be told apart" in printed.err
            assert is_said == (cosine(own[i], own[j]) > limit), (one, asked[j])


def test_a_word_is_measured_by_what_means_nothing(words, made, text_encoder, capsys):
    """With a random text encoder, no word means more than a made-up one."""
    assert run(words, made / "model", "joyful, angry, weary", "--device", "cpu") == 0
    printed = capsys.readouterr()
    assert hasattr(words, "MADE_UP") and "Made-up words, such as " in printed.out, printed.out
    model = LaSCLForAudioClassification.from_pretrained(made / "model")
    trained = embeds_of(model, text_encoder, TRAINED)
    nearest = [
        max(cosine(place, other) for other in trained) for place in embeds_of(model, text_encoder, words.MADE_UP)
    ]
    assert printed.out.splitlines()[-1].endswith(f": {min(nearest):.3f} to {max(nearest):.3f}.")
    own = dict(zip(("joyful", "weary"), embeds_of(model, text_encoder, ["joyful", "weary"])))
    lost = [word for word, place in own.items() if max(cosine(place, other) for other in trained) <= max(nearest)]
    said = [line for line in printed.err.splitlines() if "than a made-up word may be" in line]
    assert lost and said == [
        f"lascl-words: {' and '.join(lost)}: no nearer to a trained word than a made-up word may be."
    ]


def test_what_cannot_be_told_apart_is_less_than_twice_as_likely_at_its_own_place(words):
    assert words, "there is no lascl-words"
    for temperature in (0.05, 0.2):
        limit = words.told_apart_below(temperature)
        for value, apart in ((limit - 1e-6, True), (limit + 1e-6, False)):
            odds = math.exp(1 / temperature) / math.exp(value / temperature)
            assert (odds >= 2) == apart
            e = np.array([[1.0, 0.0], [value, math.sqrt(1 - value**2)], [0.0, 1.0]])
            pairs = words.not_told_apart(["a", "b", "c"], e, temperature)
            assert [pair[:2] for pair in pairs] == ([] if apart else [("a", "b")])


def slow_likelihood(cosines, references, temperature):
    total = 0.0
    for row, right in zip(cosines, references):
        total += math.log(sum(math.exp((c - row[right]) / temperature) for c in row))
    return total / len(cosines)


def test_the_temperature_is_that_of_the_least_negative_log_likelihood(words):
    assert words, "there is no lascl-words"
    rng = np.random.default_rng(5)
    cosines, references = rng.uniform(-1, 1, (40, 3)), rng.integers(0, 3, 40)
    cosines[np.arange(40), references] += 0.4
    found = words.fit_temperature(cosines, references)
    grid = np.exp(np.linspace(math.log(0.01), math.log(10), 2001))
    best = min(grid, key=lambda t: slow_likelihood(cosines, references, t))
    assert found == pytest.approx(best, rel=0.004)
    mine = words.negative_log_likelihood(cosines, references, found)
    assert mine == pytest.approx(slow_likelihood(cosines, references, found), abs=1e-12)
    assert mine <= slow_likelihood(cosines, references, best) + 1e-12
    right = np.eye(3)[references]
    assert words.fit_temperature(right, references) == 0.01  # every recording at its word
    assert words.fit_temperature(-right, references) == 10.0  # never
    assert words.fit_temperature(np.zeros((4, 2)), np.zeros(4, int)) == 10.0  # words that say nothing


def test_labelled_recordings_give_recall_by_word_and_a_temperature_that_is_stored_on_request(
    words, folder, text_encoder, capsys
):
    assert words, "there is no lascl-words"
    model = folder / "model"
    config = (model / "config.json").read_bytes()
    predict([str(model), str(folder / "labelled.csv"), "--labels", ",".join(WORDS), "--output", str(folder / "a.csv")])
    before = read_csv(folder / "a.csv")
    # Nine of twelve as they are answered, so that there is something to fit.
    labels = [row["label"] if number % 4 else WORDS[number // 4] for number, row in enumerate(before)]
    lines = ["path,label", *(f"{number}.wav,{label}" for number, label in enumerate(labels))]
    (folder / "list.csv").write_text("\n".join(lines))
    argv = (model, "joyful, furious, angry", "--check", folder / "list.csv", "--device", "cpu")
    assert run(words, *argv) == 0
    printed = capsys.readouterr()
    assert (model / "config.json").read_bytes() == config
    shares = {}
    for word in WORDS:
        answers = [row["label"] for row, label in zip(before, labels) if label == word]
        shares[word] = sum(answer == word for answer in answers) / len(answers)
        cells = [word, str(len(answers)), f"{100 * shares[word]:.0f}", "%"]
        assert any(line.split() == cells for line in printed.out.splitlines())
    assert f"Mean recall {100 * sum(shares.values()) / 3:.1f} %; by chance 33.3 %." in printed.out
    assert "12 recordings are few" in printed.err
    # From the probabilities, cosines but for a constant a row, which changes nothing.
    cosines = np.array([[0.07 * math.log(float(row[f"probability_{word}"])) for word in WORDS] for row in before])
    references = [WORDS.index(label) for label in labels]
    grid = np.exp(np.linspace(math.log(0.01), math.log(10), 1001))
    best = min(grid, key=lambda t: slow_likelihood(cosines, references, t))
    temperature = float(printed.out.partition("Temperature ")[2].split()[0])
    assert 0.01 < temperature < 10 and temperature == pytest.approx(best, rel=0.01)
    assert run(words, *argv, "--store") == 0
    stored = json.loads((model / "config.json").read_text())
    told = stored.pop("label_temperatures")
    assert stored == json.loads(config) and told == {"angry, furious, joyful": pytest.approx(temperature, rel=1e-3)}


def test_of_words_that_say_nothing_no_temperature_is_stored(words, folder, capsys):
    """Every recording is labelled with the word that it is not answered by."""
    assert words, "there is no lascl-words"
    model, config = folder / "model", (folder / "model" / "config.json").read_bytes()
    predict([str(model), str(folder / "labelled.csv"), "--labels", "joyful,sad", "--output", str(folder / "a.csv")])
    wrong = ["sad" if row["label"] == "joyful" else "joyful" for row in read_csv(folder / "a.csv")]
    lines = ["path,label", *(f"{number}.wav,{label}" for number, label in enumerate(wrong))]
    (folder / "list.csv").write_text("\n".join(lines))
    argv = (model, "joyful,sad", "--check", folder / "list.csv", "--store", "--device", "cpu")
    assert run(words, *argv) == 0
    assert "say nothing of these recordings: no temperature is stored" in capsys.readouterr().err
    assert (model / "config.json").read_bytes() == config


def test_a_stored_temperature_is_that_of_these_words_alone_and_changes_no_answer(words, folder, audio_encoders):
    assert words, "there is no lascl-words"
    model = folder / "model"
    plain = LaSCLForAudioClassification.from_pretrained(model).eval()
    words.store_temperature(model, WORDS, 0.5)
    fitted = LaSCLForAudioClassification.from_pretrained(model).eval()
    assert LaSCLConfig.from_pretrained(model).label_temperatures == {"angry, furious, joyful": 0.5}
    assert torch.equal(outputs(fitted).logits, outputs(plain).logits)  # the trained words, to the bit
    for asked in (["angry", "joyful", "furious"], ["angry", "joyful"]):
        plain.set_labels(asked)
        fitted.set_labels(asked)
        scale = 0.07 / 0.5 if len(asked) == 3 else 1.0
        torch.testing.assert_close(outputs(fitted).logits, outputs(plain).logits * scale)
    file = folder / "0.wav"
    predict([str(model), str(file), "--labels", "furious,joyful,angry", "--output", str(folder / "b.csv")])
    (row,) = read_csv(folder / "b.csv")
    extractor = AutoFeatureExtractor.from_pretrained(model)
    inputs = extractor(soundfile.read(file, dtype="float32")[0], sampling_rate=RATE, return_tensors="pt")
    plain.set_labels(["furious", "joyful", "angry"])
    with torch.no_grad():
        expected = (plain(**inputs).logits[0] * 0.07 / 0.5).softmax(-1)
    found = [float(row[f"probability_{word}"]) for word in ("furious", "joyful", "angry")]
    assert found == pytest.approx(expected.tolist(), abs=1e-5)


def test_training_that_starts_from_it_forgets_the_temperature(words, folder):
    assert words, "there is no lascl-words"
    from lascl.training.recipe import Recipe
    from lascl.training.start import start_from

    words.store_temperature(folder / "model", TRAINED, 0.5)
    started = start_from(str(folder / "model"), TRAINED, Recipe(init_from=str(folder / "model")))
    assert started.config.label_temperatures is None and started.label_temperature == 0.07


@pytest.mark.parametrize(
    ("argv", "content", "message"),
    [
        (["joyful, joyful"], None, "Give at least one word, each once, separated by commas; found 'joyful, joyful'."),
        ([" ,"], None, "Give at least one word, each once, separated by commas; found ' ,'."),
        (["joyful", "--check"], "path,label\n0.wav,joyful\n", "give two at least to --check."),
        (
            ["joyful,sad", "--check"],
            "path,emotion\n0.wav,sad\n",
            "needs the columns path and label; found path, emotio",
        ),
        (
            ["joyful,sad", "--check"],
            "path,label\n0.wav,bored\n",
            "has no recording of joyful, sad: its labels are bored",
        ),
        (["joyful,sad", "--check"], "path,label\n0.wav,\n", "line 2: needs a path and a label."),
        (["joyful,sad", "--check"], None, "cannot be read as a labelled list"),
        (["joyful,sad", "--store"], None, "--store needs --check"),
    ],
)
def test_what_cannot_be_carried_out_is_one_sentence(argv, content, message, words, folder, capsys):
    if "--check" in argv:
        (folder / "list.csv").unlink(missing_ok=True)
        if content:
            (folder / "list.csv").write_text(content)
        argv = [*argv, folder / "list.csv"]
    assert run(words, folder / "model", *argv) == 2
    assert message in capsys.readouterr().err


def test_other_labels_are_said_and_a_damaged_recording_keeps_none_from_its_answer(words, folder, capsys):
    (folder / "broken.wav").write_bytes(b"no sound")
    (folder / "list.csv").write_text("label,path\nsad,0.wav\nsad,broken.wav\njoyful,1.wav\nbored,2.wav\n")
    assert run(words, folder / "model", "joyful,sad", "--check", folder / "list.csv", "--device", "cpu") == 1
    printed = capsys.readouterr()
    assert "1 of 4 rows have other labels: bored (1)." in printed.err and "broken.wav" in printed.err
    assert "fits these 2 recordings best" in printed.out


def test_a_model_that_answers_with_its_classifier_takes_no_words(words, folder, capsys):
    config = json.loads((folder / "model" / "config.json").read_text())
    (folder / "model" / "config.json").write_text(json.dumps({**config, "prediction_head": "classifier"}))
    assert run(words, folder / "model", "joyful,sad") == 2
    assert "predicts with its classifier" in capsys.readouterr().err

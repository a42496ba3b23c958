"""The report: its numbers are those of the run's files, it stands alone, and a browser shows it at every width."""

import base64
import json
import re
import shutil
import subprocess
import sys
import warnings
from html.parser import HTMLParser

import matplotlib
import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from tiny import read_csv

from lascl.evaluation import expected_calibration_error, summarise_run
from lascl.evaluation import figures as figures_module
from lascl.evaluation.figures import draw_figures
from lascl.evaluation.report_data import best_epoch_on_test, load_run, reliability, speaker_accuracy
from lascl.report import main, write_report
from lascl.training.run_directory import write_csv


LABELS = ["anger", "<script>alert(1)</script>", 'sad & "blue" | $x']
# Reference, prediction, speaker: in fold 1, 3 of 4 are right; in fold 2, 1 of 2. The last label is never true.
FOLDS = {1: [(0, 0, "s1"), (0, 2, "s1"), (1, 1, "<i>s2"), (1, 1, "<i>s2")], 2: [(0, 1, "s3"), (1, 1, "s3")]}


def write_embeddings(fold_dir, ids, references, width, seed=0):
    """An `embeddings.npz` whose utterances lie around the label embedding of their reference."""
    rng = np.random.default_rng(seed)
    label_embeds = np.linalg.qr(rng.standard_normal((width, width)))[0][: len(LABELS)]
    audio_embeds = label_embeds[references] + 0.1 * rng.standard_normal((len(ids), width))
    np.savez(
        fold_dir / "embeddings.npz",
        ids=np.array(ids),
        audio_embeds=(audio_embeds / np.linalg.norm(audio_embeds, axis=1, keepdims=True)).astype(np.float32),
        label_embeds=label_embeds.astype(np.float32),
        labels=np.array(LABELS),
        speakers=np.array(["s"] * len(ids)),
    )


def make_run(folder, folds=FOLDS, complete=True):
    """A run directory; without `complete`, only the files that the oldest runs have."""
    folder.mkdir()
    recipe = {"corpus": "synthetic", "prediction_head": "label", "seed": 42, "audio_encoder": {"model_type": "wavlm"}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    environment = {"commit": "abc-dirty", "device": "an <abacus>", "versions": {"torch": "2.13.0"}}
    (folder / "environment.json").write_text(json.dumps(environment))
    for number, utterances in folds.items():
        fold_dir = folder / f"fold-{number}"
        fold_dir.mkdir()
        rows = []
        for index, (reference, prediction, speaker) in enumerate(utterances):
            probabilities = [0.8 if k == prediction else 0.1 for k in range(3)]
            names = [f"probability_{label}" for label in LABELS] + [f"probability_classifier_{x}" for x in LABELS]
            names = names if complete else []
            row = {"id": f"{number}-{index}", "speaker": speaker, "reference": LABELS[reference]}
            row |= {"prediction": LABELS[prediction], "prediction_classifier": LABELS[prediction]}
            rows.append(row | dict(zip(names, probabilities * 2)))
        write_csv(fold_dir / "predictions.csv", rows)
        if complete:
            terms = [{"epoch": e, "loss": 4.0 / e + number, "contrastive": 2.0 / e} for e in (1.0, 2.0)]
            tests = [{"epoch": e, "test_ua": ua, "test_wa": wa} for e, ua, wa in ((1.0, 0.6, 0.5), (2.0, 0.4, 0.9))]
            (fold_dir / "log_history.json").write_text(json.dumps(terms + tests + [{"epoch": 2.0, "train_loss": 1}]))
            ids, references = [row["id"] for row in rows], [utterance[0] for utterance in utterances]
            # Folds of other widths: whoever mixes their spaces fails.
            write_embeddings(fold_dir, ids, references, width=4 + number, seed=number)
    if complete:
        notes = ["Nobody is on two sides & all <b>is well</b>."]
        (folder / "protocol.json").write_text(json.dumps({"notes": notes, "corpus": "synthetic", "num_folds": 5}))
        (folder / "skipped.csv").write_text("id,reason\nx,too short\n")
    (folder / "results.json").write_text(json.dumps(summarise_run(folder, LABELS)))
    return folder


@pytest.fixture(scope="module")
def run_dir(figures, tmp_path_factory):
    folder = make_run(tmp_path_factory.mktemp("runs") / "my_run")
    main([str(folder)])
    return folder


class Page(HTMLParser):
    """The tags of a page with their attributes, and its text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.words = [], []
        self.feed(text)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        if self.lasttag != "style":
            self.words.append(data)


def test_the_page_stands_alone_and_escapes(run_dir):
    page = Page((run_dir / "report.html").read_text(encoding="utf-8"))
    names = [tag for tag, _ in page.tags]
    assert not {"script", "link", "i", "b", "abacus", "iframe"} & set(names)
    for tag, attributes in page.tags:
        for name in ("src", "href", "srcset", "data", "action"):
            assert attributes.get(name, "data:").startswith("data:"), (tag, attributes[name][:80])
    style = (run_dir / "report.html").read_text(encoding="utf-8")
    assert "@import" not in style and "url(" not in style
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(images) == 7 and all(re.search(r"\d", image["alt"]) for image in images)
    assert "Nobody is on two sides & all <b>is well</b>." in page.text
    assert LABELS[1] in page.text and LABELS[2] in page.text and "an <abacus>" in page.text


def test_the_numbers_are_those_counted_by_hand(run_dir):
    page = Page((run_dir / "report.html").read_text(encoding="utf-8"))
    # Pooled: 4 of 6 right; of class 0 one of 3, of class 1 three of 3.
    assert re.search(r"UA, unweighted accuracy 66\.7 %", page.text)
    assert re.search(r"WA, weighted accuracy 66\.7 %", page.text)
    assert re.search(r"Utterances 6 Speakers 3 Folds 2 of 5", page.text)
    interval = json.loads((run_dir / "results.json").read_text())["pooled"]["intervals"]["ua"]
    assert f"95 % interval {100 * interval[0]:.1f} to {100 * interval[1]:.1f}" in page.text
    # WA 3/4 and 1/2: mean 62.5, standard deviation 25 / sqrt(2). UA: (1/2 + 1) / 2 and (0 + 1) / 2.
    assert "UA 62.5 ± 17.7 60.0 ± 0.0 WA 62.5 ± 17.7 50.0 ± 0.0" in page.text
    assert "best epoch on test (optimistic, for comparison only)" in page.text
    alts = {tag["alt"].split(" ")[0]: tag["alt"] for name, tag in page.tags if name == "img"}
    assert f"Right: anger 33.3, {LABELS[1]} 100.0. Most frequent" in alts["Confusion"]
    assert "33.3." in alts["Confusion"]
    assert "mean confidence 80.0, right 66.7" in alts["Reliability"]
    assert "calibration error (ECE) 13.3" in alts["Reliability"]  # one bin: 80 - 66.7
    # loss: folds 5 and 6 in epoch 1, 3 and 4 in epoch 2.
    assert "total loss (eq. 9) from 5.5 to 3.5; contrastive (eq. 4) from 2 to 1" in alts["Learning"]
    assert "lowest s1 with 50.0 of 2 utterances, highest <i>s2 with 100.0 of 2; all together 66.7" in alts["Share"]
    assert "anger 2 of 2" in alts["t-SNE"]
    assert "mean over pairs 0.00" in alts["Cosine"]  # orthogonal labels


def test_caveats_come_before_the_figures(run_dir):
    text = Page((run_dir / "report.html").read_text(encoding="utf-8")).text
    for sentence in (
        "These scores say nothing about human emotion.",
        "The audio encoder started from random weights",
        "Utterances left out because of their audio: 1;",
        "2 of 5 folds were run",
        "ends in -dirty",
    ):
        assert text.index(sentence) < text.index("Confusion matrix"), sentence


def test_markdown_links_every_figure_and_keeps_its_tables(run_dir):
    text = (run_dir / "report.md").read_text(encoding="utf-8")
    linked = re.findall(r"\]\((figures/\w+\.png)\)", text)
    assert sorted(linked) == sorted(f"figures/{path.name}" for path in (run_dir / "figures").iterdir())
    for name in linked:
        assert (run_dir / name).read_bytes().startswith(b"\x89PNG")
    assert "<script" not in text.replace("\\<script", "")
    (header,) = [line for line in text.splitlines() if line.startswith("| true")]
    assert len(re.split(r"(?<!\\)\|", header.replace(r"true \ predicted", ""))) == len(LABELS) + 3
    assert "| anger | 1 | 1 | 1 |" in text
    assert "\n\n\n" not in text


def test_the_same_files_give_the_same_report(run_dir, tmp_path):
    again = shutil.copytree(run_dir, tmp_path / run_dir.name)
    write_report(again)
    for path in ("report.html", "report.md", "figures/tsne.png"):
        assert (again / path).read_bytes() == (run_dir / path).read_bytes(), path


def test_an_old_run_goes_without_what_it_lacks(tmp_path):
    folder = make_run(tmp_path / "old", complete=False)
    results = json.loads((folder / "results.json").read_text())
    del results["pooled"]["intervals"], results["pooled"]["num_speakers"]
    (folder / "results.json").write_text(json.dumps(results))
    write_report(folder)
    assert sorted(path.name for path in (folder / "figures").iterdir()) == ["confusion.png", "speakers.png"]
    for name in ("report.html", "report.md"):
        text = (folder / name).read_text(encoding="utf-8")
        assert "Learning curves: left out" in text and "Reliability: left out" in text and "embeddings.npz" in text
        assert "best epoch on test" not in text.lower()


def test_scores_that_do_not_follow_from_the_predictions_are_refused_by_fold(run_dir, tmp_path, capsys):
    copy = shutil.copytree(run_dir, tmp_path / "run")
    path = copy / "fold-2" / "predictions.csv"
    rows = read_csv(path)
    rows[1]["prediction"] = LABELS[2]  # was right: UA of fold 2 falls from 50 to 0
    write_csv(path, rows)
    before = (copy / "report.html").read_bytes()
    exits = []
    for arguments in ([], ["--latex"]):
        try:
            main([str(copy), *arguments])
        except SystemExit as exit:
            exits.append(exit.code)
    error = capsys.readouterr().err
    assert exits == [2, 2], "the report was written over falsified predictions"
    assert "fold-2" in error and "fold-1" not in error and "0.5 in results.json and 0.0 in the predictions" in error
    assert (copy / "report.html").read_bytes() == before


def test_a_label_that_is_none_and_a_fold_that_is_not_told_are_refused_by_fold(run_dir, tmp_path):
    copy = shutil.copytree(run_dir, tmp_path / "run")
    path = copy / "fold-1" / "predictions.csv"
    rows = read_csv(path)
    shutil.copytree(copy / "fold-2", copy / "fold-3")
    write_csv(copy / "fold-3" / "predictions.csv", [{**row, "id": f"3-{n}"} for n, row in enumerate(rows)])
    with pytest.raises(ValueError, match=r"has the folds \[1, 2\], the predictions are of \[1, 2, 3\]"):
        write_report(copy)
    shutil.rmtree(copy / "fold-3")
    write_csv(path, [{**row, "reference": "rage"} for row in rows])
    with pytest.raises(ValueError, match=r"fold-1/predictions.csv: 'rage' is not one of the labels"):
        write_report(copy)


def test_speakers_who_score_alike_have_no_interval_on_the_page(tmp_path):
    run = make_run(tmp_path / "run", {1: [(0, 0, "s1"), (1, 1, "s1"), (0, 0, "s2"), (1, 1, "s2")]})
    write_report(run)
    page = Page((run / "report.html").read_text(encoding="utf-8"))
    assert "100.0 to 100.0" not in page.text and "[100.0, 100.0]" not in page.text
    assert page.text.count("same whichever of the 2 speakers are drawn") == 3  # UA, WA, under the table


def svg_texts(page):
    """The texts of a page's pictures, by the first word of their description."""
    pictures = {}
    for tag, attributes in page.tags:
        if tag == "img":
            svg = base64.b64decode(attributes["src"].partition("base64,")[2]).decode()
            pictures[attributes["alt"].split(" ")[0]] = re.findall(r"<text [^>]*>([^<]*)<", svg)
    return pictures


def test_names_that_no_font_has_stay_text_in_the_page_and_become_numbers_in_pictures(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "LABELS", ["anger", "生气", "高兴"])
    run = make_run(tmp_path / "run", {1: [(0, 0, "李"), (1, 1, "李"), (1, 2, "s2"), (2, 2, "s2"), (0, 1, "s2")]})
    monkeypatch.setattr(figures_module, "FONTS", ("DejaVu Sans",), raising=False)  # as if no other were installed
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        write_report(run)
    pictures = svg_texts(Page((run / "report.html").read_text(encoding="utf-8")))
    assert "生气" in pictures.get("Confusion", ()), "the label is drawn as shapes, boxes where the font lacks it"
    assert "高兴" in pictures["t-SNE"] and any(text.startswith("李") for text in pictures["Share"])
    assert "the pictures number them: 1 生气, 2 高兴, S2 李." in (run / "report.md").read_text(encoding="utf-8")
    assert not [warning for warning in caught if "Glyph" in str(warning.message)]  # a box in a picture


def test_an_installed_font_that_has_the_letters_is_used(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "LABELS", ["anger", "\U0001d4b6", "joy"])  # a script a: not in DejaVu Sans
    run = load_run(make_run(tmp_path / "run"))
    monkeypatch.setattr(figures_module, "FONTS", ("DejaVu Sans", "no such font", "STIXGeneral"))
    assert figures_module.numbered_names(run) == {}
    monkeypatch.setattr(figures_module, "FONTS", ("DejaVu Sans",))
    assert figures_module.numbered_names(run) == {"\U0001d4b6": "1"}


def test_no_word_lies_over_the_points_of_a_map(run_dir):
    with figures_module.drawing_style():
        figure, caption, _ = figures_module.draw_tsne(load_run(run_dir))
    (axes,) = figure.axes
    assert not axes.texts and "large and hollow" in caption
    assert {text.get_text() for text in figure.legends[0].get_texts()} == set(LABELS)


def test_a_baseline_is_not_shown_with_label_embeddings_that_nothing_trained(tmp_path):
    folder = make_run(tmp_path / "ce")
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    (folder / "recipe.yaml").write_text(yaml.safe_dump({**recipe, "label_anchors": False, "contrastive_weight": 0.0}))
    plots, left_out = draw_figures(load_run(folder))
    words = {plot.name: f"{plot.caption} {plot.alt}" for plot in plots}
    assert left_out == ["Label similarities: left out, this objective trains no label embeddings."]
    assert "large and hollow" not in words["tsne"] and "nearest label" not in words["tsne"]
    assert "label head" not in words["reliability"] and "classifier head" in words["reliability"]


def test_latex_row(run_dir, capsys):
    main([str(run_dir), "--latex"])
    comment, row = capsys.readouterr().out.splitlines()
    assert comment.startswith("% run & WA & UA & macro-F1") and "label head" in comment
    # F1 of fold 1: 2/3 and 1; of fold 2: 0 and 2/3. Means 5/6 and 1/3, their mean 58.3, deviation 50 / sqrt(2).
    assert row == r"my\_run & $62.5 \pm 17.7$ & $62.5 \pm 17.7$ & $58.3 \pm 35.4$ \\"
    assert "2 of 5 folds" in comment and "NOT the full cross-validation" in comment
    main([str(run_dir), "--latex", "--interval"])
    comment, row = capsys.readouterr().out.splitlines()
    (low, high) = json.loads((run_dir / "results.json").read_text())["pooled"]["intervals"]["wa"]
    assert row.startswith(rf"my\_run & 66.7 [{100 * low:.1f}, {100 * high:.1f}] & ") and "over 3 speakers" in comment


def test_a_baseline_of_any_system_stands_beside_the_run(run_dir, tmp_path, capsys):
    """Its file needs the four columns alone. Of six utterances it gets one right that the run does not."""
    shutil.copytree(run_dir, tmp_path / "run")
    rows = [row for fold in (1, 2) for row in read_csv(run_dir / f"fold-{fold}" / "predictions.csv")]
    columns = ("id", "speaker", "reference", "prediction")
    mine = [{column: row[column] for column in columns} for row in rows]
    mine[1]["prediction"] = mine[1]["reference"]
    write_csv(tmp_path / "mine & co.csv", mine)
    code = 0
    try:
        main([str(tmp_path / "run"), "--baseline", str(tmp_path / "mine & co.csv")])
    except SystemExit as exit:
        code = exit.code
    assert code == 0, capsys.readouterr().err
    page = Page((tmp_path / "run" / "report.html").read_text(encoding="utf-8"))
    assert "Beside mine & co.csv (%)" in page.text
    assert "WA 83.3 66.7 -16.7" in page.text and "On the same 6 utterances of 3 speakers" in page.text
    text = (tmp_path / "run" / "report.md").read_text(encoding="utf-8")
    assert "| WA | 83.3 | 66.7 | -16.7 |" in text and "A: mine & co.csv; B: this run." in text
    mine[0]["id"] = "elsewhere"
    write_csv(tmp_path / "other.csv", mine)
    with pytest.raises(SystemExit, match="2"):
        main([str(tmp_path / "run"), "--baseline", str(tmp_path / "other.csv")])
    told = capsys.readouterr().err
    assert "'elsewhere' is in" in told and "'1-0' is in" in told and told.count("\n") == 1


def test_best_epoch_is_the_first_of_the_highest_test_ua(run_dir):
    run = load_run(run_dir)
    best = best_epoch_on_test(run.histories_by_fold)
    assert best["mean"] == pytest.approx({"wa": 0.5, "ua": 0.6}) and best["std"] == pytest.approx({"wa": 0, "ua": 0})
    del run.histories[2]
    assert best_epoch_on_test(run.histories_by_fold) is None


def test_speakers_are_counted(run_dir):
    assert speaker_accuracy(load_run(run_dir).rows) == {"s1": (1, 2), "<i>s2": (2, 2), "s3": (1, 2)}


@given(st.lists(st.tuples(st.floats(0.5, 1.0), st.booleans()), min_size=1, max_size=40))
def test_reliability_bins_add_up_to_the_calibration_error(pairs):
    confidences, right = map(np.array, zip(*pairs))
    bins = reliability(confidences, right)
    assert bins["count"].sum() == len(pairs)
    error = np.nansum(bins["count"] * np.abs(bins["accuracy"] - bins["confidence"])) / len(pairs)
    two_classes = np.stack([confidences, 1 - confidences], axis=1)
    assert error == pytest.approx(expected_calibration_error(two_classes, 1 - right), abs=1e-9)


def test_reliability_of_an_edge_and_of_zero():
    bins = reliability(np.array([0.0, 0.5, 0.51, 1.0]), np.array([0, 1, 0, 1]), num_bins=2)
    assert bins["count"].tolist() == [2, 2]
    assert bins["confidence"] == pytest.approx([0.25, 0.755]) and bins["accuracy"] == pytest.approx([0.5, 0.5])


def test_many_utterances_and_speakers_are_cut_and_the_captions_say_so(tmp_path, monkeypatch):
    monkeypatch.setattr(figures_module, "MAX_TSNE_POINTS", 10)
    monkeypatch.setattr(figures_module, "MAX_SPEAKERS", 3)
    utterances = [(index % 2, 0, f"s{index % 5}") for index in range(20)]
    run = load_run(make_run(tmp_path / "run", {1: utterances}))
    captions = {plot.name: plot.caption for plot in draw_figures(run)[0]}
    assert captions["tsne"].startswith("10 of 20 test utterances")
    assert captions["speakers"].startswith("The 3 lowest of 5 held-out speakers")
    assert "tsne_folds" not in captions


@pytest.mark.slow
def test_drawing_leaves_matplotlib_as_it_was(run_dir):
    before = dict(matplotlib.rcParams)
    draw_figures(load_run(run_dir))
    assert dict(matplotlib.rcParams) == before
    code = "import sys, lascl.evaluation.figures; print('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def damaged(run_dir, folder, name, text):
    copy = shutil.copytree(run_dir, folder / "run")
    path = copy / name
    path.unlink() if text is None else path.write_text(text)
    return copy


@pytest.mark.parametrize(
    "name, text, words",
    [
        ("results.json", None, "has no results.json"),
        ("results.json", "{", "results.json cannot be read"),
        ("results.json", "{}", "is not what train.py writes"),
        ("fold-2/predictions.csv", None, "fold-2/predictions.csv"),
        ("fold-2/predictions.csv", "id\n1\n", "'speaker' is missing"),
        ("fold-1/embeddings.npz", "no zip", "embeddings.npz cannot be read"),
        ("fold-1/log_history.json", "[", "log_history.json cannot be read"),
        ("recipe.yaml", "a: [", "recipe.yaml cannot be read"),
    ],
)
def test_bad_input_costs_one_sentence(run_dir, tmp_path, capsys, name, text, words):
    with pytest.raises(SystemExit) as exit:
        main([str(damaged(run_dir, tmp_path, name, text))])
    error = capsys.readouterr().err
    assert exit.value.code == 2 and words in error and error.count("\n") == 1, error


def test_embeddings_of_other_utterances_are_refused(run_dir, tmp_path):
    copy = shutil.copytree(run_dir, tmp_path / "run")
    write_embeddings(copy / "fold-1", ["elsewhere"], [0], width=5)
    with pytest.raises(ValueError, match="'elsewhere'"):
        write_report(copy)


# A page around the page, because a browser's own window is never narrower than 500 px.
FRAMES = """<body><script>
addEventListener("load", () => {
  const frames = [...document.querySelectorAll("iframe")].map(frame => {
    const page = frame.contentDocument, root = page.documentElement;
    return {
      width: root.clientWidth,
      scroll: root.scrollWidth,
      images: [...page.images].map(image => image.complete && image.naturalWidth),
      escaping: [...page.querySelectorAll("main *")].filter(
        e => !e.closest(".scroll, pre") && e.getBoundingClientRect().right > root.clientWidth + 1).length,
    };
  });
  document.body.textContent = "RESULT" + JSON.stringify(frames) + "END";
});
</script>%s</body>"""


def test_a_browser_shows_it_from_phone_to_desk(run_dir, tmp_path):
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("needs Chromium (apt-get install chromium)")
    url = (run_dir / "report.html").as_uri()
    frame = '<iframe src="{}" style="border:0;width:{}px;height:900px"></iframe>'
    frames = "".join(frame.format(url, width) for width in (400, 1280))
    (tmp_path / "frames.html").write_text(FRAMES % frames)
    result = subprocess.run(
        [
            *(chromium, "--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files"),
            *(f"--user-data-dir={tmp_path / 'profile'}", "--host-resolver-rules=MAP * ~NOTFOUND"),
            *("--window-size=1800,1000", "--virtual-time-budget=10000", "--dump-dom"),
            (tmp_path / "frames.html").as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    shown = json.loads(re.search(r"RESULT(.*)END", result.stdout.split("</script>")[-1])[1])
    assert [frame["scroll"] for frame in shown] == [frame["width"] for frame in shown]
    for frame in shown:
        assert frame["width"] >= 380 and frame["escaping"] == 0
        assert len(frame["images"]) == 7 and all(width > 0 for width in frame["images"])

"""The report of a run over several corpora: corpus by corpus at a glance, transductive numbers called so."""

import json
import re

import numpy as np
import pytest
import yaml
from test_by_corpus import OWN, WORDS, rows_of, write_run
from test_report import Page

from lascl.evaluation import summarise_run
from lascl.evaluation.report_data import latex_row, load_run
from lascl.report import write_report
from lascl.training.run_directory import write_arrays


@pytest.fixture(scope="module")
def run_dir(figures, tmp_path_factory):
    """Two corpora, each tested by a model of the other; transductive."""
    rng, folds = np.random.default_rng(0), {}
    for number, corpus in enumerate(("emo", "rav"), start=1):
        folds[number] = rows_of(corpus, rng, OWN["rav" if corpus == "emo" else "emo"])
    own = {corpus: OWN[corpus] for corpus in ("emo", "rav")}
    told = {"own_words": own, "transductive": True, "notes": ["Nobody is on two sides."], "num_folds": 2}
    folder = write_run(tmp_path_factory.mktemp("runs") / "left-out", folds, protocol=told)
    recipe = {"prediction_head": "label", "corpora": [{"name": name, "corpus": "csv"} for name in own], "seed": 42}
    (folder / "recipe.yaml").write_text(yaml.safe_dump({**recipe, "corpus": None}))
    (folder / "environment.json").write_text(json.dumps({"commit": "abc"}))
    for number, rows in folds.items():
        embeds = rng.standard_normal((len(rows) + 4, 6)).astype(np.float32)
        embeds /= np.linalg.norm(embeds, axis=1, keepdims=True)
        ids = np.array([row["id"] for row in rows])
        arrays = {"ids": ids, "audio_embeds": embeds[4:], "labels": np.array(WORDS[:4]), "label_embeds": embeds[:4]}
        write_arrays(folder / f"fold-{number}" / "embeddings.npz", arrays)
    (folder / "results.json").write_text(json.dumps(summarise_run(folder, WORDS[:4])))
    write_report(folder)
    return folder


@pytest.fixture(scope="module")
def page(run_dir):
    return Page((run_dir / "report.html").read_text(encoding="utf-8"))


def test_the_headline_is_the_mean_over_corpora_with_its_error(run_dir, page):
    results = json.loads((run_dir / "results.json").read_text())
    mean = results.get("mean_over_corpora")
    assert mean is not None
    told = f"{100 * mean['ua']:.1f} % ± {100 * mean['se']['ua']:.1f}, the standard error over the speakers of these"
    assert f"UA, unweighted accuracy, mean over 2 corpora (transductive) {told}" in page.text
    assert "Chance is 33.3 % UA, the mean over the corpora." in page.text
    pooled = f"{100 * results['pooled']['ua']:.1f}"
    assert not re.search(rf"UA, unweighted accuracy {pooled}", page.text)


def test_every_corpus_has_its_row_and_its_own_confusion_matrix(run_dir, page):
    results = json.loads((run_dir / "results.json").read_text())
    assert "Corpus by corpus (%)" in page.text
    for corpus, unseen in (("emo", "boredom*"), ("rav", "calm*")):
        assert f"Confusion matrix of {corpus}" in page.text and unseen in page.text
        ua = results["corpora"][corpus]["ua"]
        assert re.search(rf"{corpus} 24 [^%]*{100 * ua:.1f} \[", page.text)
    alts = [tag["alt"] for name, tag in page.tags if name == "img"]
    assert sum(alt.startswith("Confusion matrix in per cent") for alt in alts) == 2
    (glance,) = [alt for alt in alts if alt.startswith("UA by corpus")]
    for corpus, scores in results["corpora"].items():
        assert (
            f"{corpus}: own words {100 * scores['ua']:.1f}, all words {100 * scores['all_words']['ua']:.1f}" in glance
        )
    names = {path.stem for path in (run_dir / "figures").iterdir()}
    assert {"corpora", "confusion_1", "confusion_2", "tsne", "tsne_folds"} <= names


def test_words_stand_among_the_utterances_of_each_corpus(page):
    captions = page.text
    assert "of fold 1 (emo) and the words of all corpora (large and hollow; with a star those that" in captions
    maps = [tag["alt"] for name, tag in page.tags if name == "img" and "t-SNE map" in tag["alt"]]
    assert len(maps) == 1 and "boredom" in maps[0]


def test_transductive_numbers_are_called_so(run_dir, page):
    assert "These scores are transductive: audio was standardised with unlabelled recordings" in page.text
    text = (run_dir / "report.md").read_text(encoding="utf-8")
    assert "Transductive: unlabelled audio of the tested side was used" in text
    assert "| emo | 24 | anger, boredom*, joy |" in text and "rav:" in text
    assert "transductive" in latex_row(load_run(run_dir)).splitlines()[0]


def test_corpora_that_share_folds_are_at_a_glance_too(tmp_path):
    rng = np.random.default_rng(1)
    folder = write_run(tmp_path / "run", {1: [row for corpus in ("emo", "rav") for row in rows_of(corpus, rng, WORDS)]})
    (folder / "recipe.yaml").write_text(yaml.safe_dump({"prediction_head": "label", "corpora": []}))
    (folder / "environment.json").write_text("{}")
    (folder / "results.json").write_text(json.dumps(summarise_run(folder, WORDS)))
    write_report(folder)
    text = Page((folder / "report.html").read_text(encoding="utf-8")).text
    assert "Corpus by corpus (%)" in text and "mean over corpora" in text
    assert "transductive" not in text.lower() and "unseen" not in text

"""The card of a published fold, filled from the files of its run."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import jinja2
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from lascl.configuration_lascl import HUB_NAME
from lascl.data.public_corpora import PUBLIC_CORPORA
from lascl.evaluation.predictions import (
    labels_of,
    own_words_of,
    read_predictions,
    score_rows,
    words_with_columns,
)
from lascl.evaluation.report_data import best_epoch_on_test, parsed_file
from lascl.evaluation.results import corpora_cells, interval_of, per_cent, with_interval
from lascl.report import markdown_cell
from lascl.training.recipe import FULL_DATA, Recipe, with_absent


TEMPLATE = Path(__file__).resolve().parent.parent / "model_card.md"
# The Hub's ids of metrics and their arguments, and what the field calls them.
METRICS = {
    "wa": ("accuracy", "WA (weighted accuracy: share of utterances predicted right)", None),
    "ua": ("recall", "UA (unweighted accuracy: mean recall over the emotions)", {"average": "macro"}),
    "macro_f1": ("f1", "macro-F1", {"average": "macro"}),
}
DECIMALS = 4  # of a score in the metadata: a hundredth of a per cent
LANGUAGE_CODES = {
    "Bangla": "bn",
    "English": "en",
    "French": "fr",
    "German": "de",
    "Greek": "el",
    "Italian": "it",
    "Persian": "fa",
}
# What decides a training and says nothing about the author's computer.
SETTINGS = (
    *("objective", "num_train_epochs", "max_steps", "global_batch_size", "num_views", "augmentation"),
    *("encoder_learning_rate", "learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay"),
    *("contrastive_temperature", "contrastive_weight", "divergence_weight", "contrastive_reduction"),
    *("label_anchors", "label_template", "phrasings", "target_smoothing", "class_weights", "targets", "ties"),
    *("projection_dim", "audio_layers", "audio_pooling", "audio_window", "audio_level"),
    *("pooled_frames", "standardise_audio", "text_pooling"),
    *("freeze_feature_encoder", "freeze_audio_encoder", "pooled_dropout", "prediction_head"),
    *("max_duration_s", "bf16", "fp16", "seed"),
)
FIGURES = {
    "confusion": "Confusion matrix of the held-out utterances of all folds.",
    "corpora": "UA of every corpus, over its own words and over all, with intervals over its speakers.",
    "tsne": "t-SNE map of the held-out utterances of the run's first fold, with the label embeddings if it has any.",
}


def _commit_of(fold_dir: Path | None) -> str | None:
    """That of the code which finished a fold; None where there is none, or it is not finished."""
    is_finished = fold_dir is not None and (fold_dir / "metrics.json").is_file()
    return _read(fold_dir / "metrics.json")["commit"] if is_finished else None


def fold_card(
    run_dir: str | Path, fold_number: int | None, repo_id: str | None = None, *, checkpoint: str | Path | None = None
) -> ModelCard:
    """The card of a fold's checkpoint, or of one trained on the whole corpus, from the run's files alone.

    What is not there yet is left out: the fold's scores without its `predictions.csv`, those over all folds without
    `results.json`, the images without `figures/confusion.png` and `figures/tsne.png` (the card's paths are relative:
    put them beside it). The same files give the same card. It names the held-out speakers, and no path of this
    computer.

    Args:
        run_dir: with `recipe.yaml`, `environment.json` and `protocol.json`.
        fold_number: whose checkpoint it is. `None`: one of the whole corpus; the card then says that it has no
            held-out score of its own, and quotes the cross-validation in its text alone.
        repo_id: `org/name` of the repository, for the code in the card, which loads the branch `fold-K` (`None`:
            `main`). Without it the code says `PATH_OR_NAME`.
        checkpoint: the folder with `config.json` and `preprocessor_config.json`; by default the fold's, or that of
            the training on everything, or of the first fold there is.

    Returns:
        The card. WA, UA and macro-F1 of the model's own head on its own fold are in `card.data.eval_results` as
        fractions with four decimals; their `dataset_split` is `fold-K`. The Hub shows them as these weights' own, so
        what other weights reached stands in the text alone, which says whose it is.

    Raises:
        ValueError: a file of the run is missing or damaged, or the run has no such fold.
    """
    run_dir = Path(run_dir)
    recipe, environment, protocol = (
        _read(run_dir / name) for name in ("recipe.yaml", "environment.json", "protocol.json")
    )
    recipe = {**Recipe().to_dict(), **with_absent(recipe)}  # a run of an earlier version has no field that came later
    results = _read(run_dir / "results.json") if (run_dir / "results.json").is_file() else None
    sides = {side["fold"]: side for side in protocol["folds"]}
    if fold_number is not None and fold_number not in sides:
        raise ValueError(f"{run_dir} has no fold {fold_number}; its folds are 1 to {len(sides)}.")
    own_dir = run_dir / (f"fold-{fold_number}" if fold_number else FULL_DATA)
    checkpoint = Path(checkpoint or _checkpoint(run_dir, own_dir, results))
    config, extractor = (_read(checkpoint / name) for name in ("config.json", "preprocessor_config.json"))
    recipe["label_template"] = recipe["label_template"] or config.get("label_template", "{label}")
    recipe["phrasings"] = config.get("label_phrasings")  # those of init_from among them
    labels = [config["id2label"][str(index)] for index in range(len(config["id2label"]))]
    limit_s = min(recipe["max_duration_s"], extractor.get("chunk_length", recipe["max_duration_s"]))

    commit = _commit_of(own_dir if fold_number else None) or environment["commit"]
    own, table = _own_scores(run_dir, fold_number, labels, protocol)
    if results:
        table += _over_corpora(results) if "corpora" in results else _over_folds(run_dir, results)

    corpus = _corpus_facts(recipe)
    encoders = {
        "audio": _encoder(recipe, "audio", config["audio_config"].get("_name_or_path")),
        "text": _encoder(recipe, "text", config["text_encoder"]),
    }
    card_data = _card_data(recipe, config, corpus)
    if own:
        card_data.model_name = repo_id.rpartition("/")[2] if repo_id else f"lascl-{recipe['corpus'] or 'many'}"
        card_data.eval_results = _eval_results(fold_number, own, recipe, protocol, corpus, limit_s)
    content = _template().render(
        card_data=card_data.to_yaml(),
        repo_id=repo_id,
        revision=f"fold-{fold_number}" if fold_number else "main",
        fold_number=fold_number,
        fold=sides.get(fold_number),
        recipe=recipe,
        protocol=protocol,
        selection=_selection(recipe),
        settings={name: recipe[name] for name in SETTINGS if recipe.get(name) is not None},
        labels=labels,
        max_duration_s=limit_s,
        corpus=corpus,
        options_of_corpora=options_of_corpora(recipe),
        encoders=encoders,
        random=[kind for kind in encoders if isinstance(recipe[f"{kind}_encoder"], dict)],
        table=table,
        num_folds_done=len(results["folds"]) if results else 0,
        interval_speakers=results["pooled"]["num_speakers"] if results and _has_interval(results["pooled"]) else 0,
        corpora_notes=(corpora_cells(results or {}) or [[]])[-1],
        figures={name: text for name, text in FIGURES.items() if (run_dir / "figures" / f"{name}.png").is_file()},
        environment=environment,
        commit=commit,
    )
    return ModelCard(content)


def _checkpoint(run_dir: Path, own_dir: Path, results: dict | None) -> Path:
    """That of a fold or of the training on everything; where there is no such training, the first fold's."""
    if own_dir.name != FULL_DATA or (own_dir / "checkpoint").is_dir():
        return own_dir / "checkpoint"
    if results is None:
        raise ValueError(f"{run_dir} has no results.json, which this card quotes. Finish the run first.")
    return run_dir / f"fold-{results['folds'][0]['fold']}" / "checkpoint"


def _card_data(recipe: dict, config: dict, corpus: dict) -> ModelCardData:
    """The metadata that do not depend on scores."""
    return ModelCardData(
        **_base_model(recipe, config),
        pipeline_tag="audio-classification",
        library_name="transformers",
        datasets=corpus["datasets"],
        language=_codes(corpus["each"]),
        license="other",
        license_name="see-the-card",
        metrics=[metric for metric, *_ in METRICS.values()],
        tags=["lascl", "speech-emotion-recognition", *(["synthetic-speech"] if corpus["synthetic"] else [])],
    )


@functools.cache
def _template() -> jinja2.Template:
    templates = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    templates.filters["cell"] = markdown_cell
    return templates.from_string(TEMPLATE.read_text(encoding="utf-8"))


def public_config(checkpoint: str | Path) -> str:
    """The text of a checkpoint's `config.json` without the names of folders: they tell of this computer, and on another
    one find nothing or, worse, something else. New labels then need the published `text_encoder/`.

    Raises:
        ValueError: there is no `config.json`, or it is damaged.
    """
    config = _read(Path(checkpoint) / "config.json")
    if not _is_hub_name(config.get("text_encoder")):
        config["text_encoder"] = None
    for nested in (config["audio_config"], config["text_config"]):
        if nested.get("_name_or_path") and not _is_hub_name(nested["_name_or_path"]):
            nested["_name_or_path"] = ""
    return json.dumps(config, indent=2, sort_keys=True) + "\n"  # as transformers writes it


def _read(path: Path):
    if not path.is_file():
        raise ValueError(f"{path} is missing. Give the folder of a run: train.py's output_dir.")
    return parsed_file(path)


# ------------------------------------------------------------------------------------------------------------ scores


def _eval_results(
    fold_number: int, scores: dict, recipe: dict, protocol: dict, corpus: dict, limit_s: float
) -> list[EvalResult]:
    folds = recipe["protocol"] or "the corpus's own folds"
    transductive = " Transductive: unlabelled audio of the tested side was used." if "transductive" in protocol else ""
    return [
        EvalResult(
            task_type="audio-classification",
            task_name="Speech emotion recognition",
            dataset_type=(corpus["datasets"] or [recipe["corpus"] or "many"])[0],
            dataset_name=corpus["title"],
            dataset_split=f"fold-{fold_number}",
            # What `lascl-verify` needs to predict again, and a reader to compare.
            dataset_args={
                "protocol": f"{folds}, {protocol['num_folds']} in all. {protocol['notes'][0]}{transductive}",
                "utterances": scores["n"],
                "max_duration_s": float(limit_s),
            },
            metric_type=metric,
            metric_name=name,
            metric_value=round(scores[score], DECIMALS),
            metric_args=arguments,
        )
        for score, (metric, name, arguments) in METRICS.items()
    ]


def _own_scores(
    run_dir: Path, fold_number: int | None, labels: list[str], protocol: dict
) -> tuple[dict | None, list[list]]:
    """The scores of a fold's checkpoint, and its row of the card's table; nothing before it was tested."""
    predictions = run_dir / f"fold-{fold_number}" / "predictions.csv"
    if fold_number is None or not predictions.is_file():
        return None, []
    rows, best = read_predictions(predictions), _best_epoch(run_dir, [fold_number])
    if own_words := own_words_of(rows, protocol):  # some of which this checkpoint was not trained on
        labels = labels_of(rows, words_with_columns(rows), own_words)
    own = score_rows(rows, labels, own=own_words)
    return own, [[f"fold {fold_number}", own["n"], *_spread(own), *_spread(best and best["mean"])]]


def _over_folds(run_dir: Path, results: dict) -> list[list]:
    """Rows of the card's table: mean and standard deviation over the folds, and all utterances together."""
    numbers, pooled = [fold["fold"] for fold in results["folds"]], results["pooled"]
    rows = []
    if len(numbers) > 1:
        best = _best_epoch(run_dir, numbers)
        held_out, best = _spread(results["mean"], results["std"]), _spread(*(best or {}).values())
        rows.append([f"mean over {len(numbers)} folds", "", *held_out, *best])
    cells = [with_interval(cell, interval_of(pooled, score)) for cell, score in zip(_spread(pooled), ("wa", "ua"))]
    return [*rows, ["pooled", pooled["n"], *cells, "", ""]]


def _over_corpora(results: dict) -> list[list]:
    """Rows of the card's table: every corpus over its own words, and their mean with its standard error."""
    rows = []
    for corpus, scores in results["corpora"].items():
        cells = [with_interval(cell, interval_of(scores, name)) for cell, name in zip(_spread(scores), ("wa", "ua"))]
        rows.append([markdown_cell(corpus), scores["n"], *cells, "", ""])
    mean = results["mean_over_corpora"]
    error = mean["se"] if None not in mean["se"].values() else None
    return [*rows, ["mean over corpora", "", *_spread(mean, error), "", ""]]


def _has_interval(pooled: dict) -> bool:
    return any(interval_of(pooled, score) for score in ("wa", "ua"))


def _spread(mean: dict | None = None, std: dict | None = None) -> list[str]:
    """WA and UA in per cent, each with its standard deviation if there is one."""
    if mean is None:
        return ["", ""]
    return [per_cent(mean[name]) + (f" ± {per_cent(std[name])}" if std else "") for name in ("wa", "ua")]


def _best_epoch(run_dir: Path, numbers: list[int]) -> dict | None:
    paths = [run_dir / f"fold-{number}" / "log_history.json" for number in numbers]
    return best_epoch_on_test(_read(path) if path.is_file() else None for path in paths)


def _selection(recipe: dict) -> str:
    if recipe["selection"] == "best_validation":
        return f"the one with the highest UA in validation ({recipe['validation']}), the earliest of equals"
    return "the last one"


# ---------------------------------------------------------------------------------------------- corpora and encoders


def _corpus_facts(recipe: dict) -> dict:
    """What a reader must know of the corpus: whose voices, which licence, how to cite. Of several, these of `each`, and
    in one what can be said of all."""
    entries = recipe["corpora"] or [{"name": recipe["corpus"], **recipe}]
    each = [_facts_of(entry) for entry in entries]
    if len(each) == 1:
        return {**each[0], "each": each}
    return {
        "title": f"{len(each)} corpora: {', '.join(facts['title'] for facts in each)}",
        "datasets": [name for facts in each for name in facts["datasets"] or ()] or None,
        "synthetic": any(facts["synthetic"] for facts in each),
        "voices": " ".join(f"{entry['name']}: {facts['voices']}" for entry, facts in zip(entries, each)),
        "each": each,
    }


def _codes(each: list[dict]) -> str | list[str] | None:
    """The languages of corpora as the Hub writes them."""
    codes = sorted({LANGUAGE_CODES[facts["language"]] for facts in each if facts["language"] in LANGUAGE_CODES})
    return codes if len(codes) > 1 else next(iter(codes), None)


def options_of_corpora(recipe: dict) -> str:
    """How the recipe's corpora are told to a command, but for where they lie."""
    entries = recipe["corpora"]
    if not entries:
        labels = f" --labels '{json.dumps(recipe['labels'])}'" if recipe["labels"] else ""
        return f"--corpus {recipe['corpus']} --data_dir FOLDER{labels}"
    if any(entry["labels"] or entry["corpus_options"] for entry in entries):
        told = [{name: value for name, value in entry.items() if value and name != "data_dir"} for entry in entries]
        return f"--corpora '{json.dumps(told)}' --data_dir FOLDER"
    told = (
        entry["name"] if entry["name"] == entry["corpus"] else f"{entry['name']}={entry['corpus']}" for entry in entries
    )
    return f"--corpora {','.join(told)} --data_dir FOLDER"


def _facts_of(entry: dict) -> dict:
    name = entry["corpus"]
    unknown = {"language": "not stated", "license": "not stated", "url": None, "citation": None}
    facts = {
        "title": f"a corpus of the author's own (`{entry['name']}`)",
        "datasets": None,
        "synthetic": name == "synthetic",
    }
    facts |= {**unknown, "voices": "Those of the training corpus, of which this card knows nothing more."}
    if name in PUBLIC_CORPORA:
        public = PUBLIC_CORPORA[name]
        facts |= {field: getattr(public, field) for field in ("title", "language", "license", "url", "citation")}
        facts["voices"] = f"{public.num_speakers} speakers who act emotions in {public.language}, in a full copy."
    elif name == "iemocap":
        facts |= {
            "title": "IEMOCAP",
            "language": "English",
            "license": "research, on request",
            "url": "https://sail.usc.edu/iemocap/",
            "citation": "10.1007/s10579-008-9076-6",
            "voices": "Ten actors in dialogues in American English, from scripts and improvised; a few listeners "
            "chose the labels.",
        }
    elif name == "synthetic":
        facts |= {
            "title": "synthetic speech of LaSCL (eSpeak NG)",
            "language": "English",
            "license": "made by code, no recordings",
            "voices": "None: a speech synthesiser with rules for four moods.",
        }
    elif name == "hf":
        dataset = (entry["corpus_options"] or {}).get("dataset_name")
        if _is_hub_name(dataset):
            facts |= {"title": dataset, "datasets": [dataset], "url": f"https://huggingface.co/datasets/{dataset}"}
    return facts


def _is_hub_name(name: str | None) -> bool:
    return bool(name) and HUB_NAME.fullmatch(name) is not None


def _encoder(recipe: dict, kind: str, name: str | None) -> str:
    """An encoder in words. `name` is what the checkpoint calls it: empty or a path if it was a folder."""
    wanted = recipe[f"{kind}_encoder"]
    if isinstance(wanted, dict):
        return f"random weights ({wanted['model_type']})"
    if recipe.get("init_from"):
        return f"that of the LaSCL checkpoint {_named(recipe['init_from'])}"
    return _named(name or wanted)


def _named(name: str) -> str:
    return name if _is_hub_name(name) else f"{Path(name).name} (a local copy)"


def _base_model(recipe: dict, config: dict) -> dict[str, str]:
    """The Hub's fields for what was fine-tuned; none for random weights and folders."""
    name = recipe.get("init_from") or config["audio_config"].get("_name_or_path")
    if isinstance(recipe["audio_encoder"], dict) or not _is_hub_name(name):
        return {}
    return {"base_model": name, "base_model_relation": "finetune"}

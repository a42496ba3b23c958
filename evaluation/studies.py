"""Variants of a recipe side by side: the numbers of a study, and its table."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from lascl.evaluation.compare import compare_runs
from lascl.evaluation.metrics import SCORES, sample_std


def summarise_study(study: Path, names: list[str], seeds: list[int]) -> dict:
    """The content of `study.json`: of each variant the pooled scores by seed, their mean and standard deviation (n - 1;
    0 for one seed), and `against_first`, what `compare_runs` says of its first seed's run and the first variant's."""
    variants = []
    for name in names:
        runs = [study / name / f"seed-{seed}" for seed in seeds]
        pooled = [json.loads((run / "results.json").read_text(encoding="utf-8"))["pooled"] for run in runs]
        scores = {
            score: {
                "by_seed": [run[score] for run in pooled],
                "mean": float(np.mean([run[score] for run in pooled])),
                "std": sample_std([run[score] for run in pooled]),
            }
            for score in SCORES
        }
        against = None
        if name != names[0]:
            compared = compare_runs(study / names[0] / f"seed-{seeds[0]}", runs[0])
            against = {key: value for key, value in compared.items() if key not in ("a", "b")}  # where they lay
        intervals = pooled[0].get("intervals")
        variants.append({"name": name, **scores, "intervals": intervals, "against_first": against})
    return {"seeds": seeds, "variants": variants}


def study_table(results: dict) -> str:
    """`study.json` as Markdown, in per cent: a row a variant, then the comparisons in words."""
    several = len(results["seeds"]) > 1
    lines = ["| variant | WA | UA | macro-F1 | UA against the first, points | p |", "|---" * 6 + "|"]
    for variant in results["variants"]:
        cells = []
        for score in SCORES:
            cell = f"{100 * variant[score]['mean']:.1f}"
            interval = (variant["intervals"] or {}).get(score)
            if several:
                cell += f" ± {100 * variant[score]['std']:.1f}"
            elif interval:
                cell += f" [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"
            cells.append(cell)
        against = variant["against_first"]
        difference, p = (
            ("", "") if against is None else (f"{100 * against['ua']['difference']:+.1f}", against["ua"]["p"])
        )
        cells += [difference, p if isinstance(p, str) else "-" if p is None else f"{p:.3f}"]
        lines.append(f"| {variant['name']} | {' | '.join(cells)} |")
    first = results["variants"][0]["name"]
    spread = (
        f"Mean ± standard deviation over the seeds {', '.join(map(str, results['seeds']))}"
        if several
        else "In brackets 95 % intervals over speakers"
    )
    lines += ["", f"{spread}; p of a paired test over speakers on the same utterances, seed {results['seeds'][0]}.", ""]
    lines += [
        f"* {variant['name']} (B), {first} (A): {variant['against_first']['ua']['sentence']}"
        for variant in results["variants"][1:]
    ]
    return "\n".join(lines)

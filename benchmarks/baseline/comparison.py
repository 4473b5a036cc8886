# SPDX-License-Identifier: Apache-2.0
"""A network beside the baselines: each figure of both, and their ratio."""

from __future__ import annotations

from kprism_model.evaluation.report import EvaluationReport
from kprism_model.evaluation.report_tables import summary_columns


def compare(baselines: EvaluationReport, network: EvaluationReport) -> str:
    """A Markdown table of the summary figures that both reports hold, a row for each data set and their mean.

    A ratio is the network's figure by the baseline's: above 1 is better for Dice, below 1 for numbers of clicks. Says
    where the two were not measured on the same sample.
    """
    lines = ["# Baselines and K-Prism", ""]
    lines += _differences(baselines, network)
    lines += ["| figure | data set | baseline | K-Prism | ratio |", "| --- | --- | ---: | ---: | ---: |"]
    for title, mode, name in summary_columns(baselines):
        ours, theirs = network.by_dataset(mode, name), baselines.by_dataset(mode, name)
        common = [dataset for dataset in theirs if dataset in ours]
        for dataset in common:
            lines.append(_row(title, dataset, theirs[dataset], ours[dataset]))
        if len(common) > 1:
            means = [sum(side[dataset] for dataset in common) / len(common) for side in (theirs, ours)]
            lines.append(_row(f"**{title}**", f"**mean of {len(common)}**", *means))
    return "\n".join(lines) + "\n"


def _differences(baselines: EvaluationReport, network: EvaluationReport) -> list[str]:
    """Sentences on what the two were measured on, where it differs."""
    samples = {result.name: result.sample for result in network.results}
    found = [
        f"- {result.name}: baseline on {result.sample}, K-Prism on {samples[result.name]}"
        for result in baselines.results
        if samples.get(result.name, result.sample) != result.sample
    ]
    keys = ("protocol", "split", "seed", "references", "draws", "click_limit")
    found += [
        f"- {key}: baseline {baselines.protocol.get(key)}, K-Prism {network.protocol.get(key)}"
        for key in keys
        if baselines.protocol.get(key) != network.protocol.get(key)
    ]
    return ["Not measured alike:", "", *found, ""] if found else []


def _row(figure: str, dataset: str, baseline: float, network: float) -> str:
    ratio = f"{network / baseline:.2f}" if baseline else "–"
    return f"| {figure} | {dataset} | {baseline:.3f} | {network:.3f} | {ratio} |"

# SPDX-License-Identifier: Apache-2.0
"""Time folded against plain mixtures of experts, and the passes of the base size at 512 x 512.

The last row asks a slice for 15 structures. The plain network decodes all of them to the end; ours stops those that are
not there at the coarsest scale. Random weights find any share of structures present, so the threshold is set where four
remain, and the rows that remain are compared: `difference` is the largest one of their logits.

    python -m benchmarks.folded_experts [--threads 2] [--repeats 5] [--size 512]

Prints a table; ratios are of one run. Weights are random: time only.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from unittest.mock import patch

import torch

from kprism_model.network.config import KPrismConfig
from kprism_model.network.experts import MixtureCrossAttention
from kprism_model.network.kprism import KPrism
from kprism_model.network.prompts import Prompts, click_discs


def milliseconds(run: Callable[[], object], repeats: int) -> float:
    """Median time of `run` in ms, after one call to warm up."""
    run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times)


def attention_rows(repeats: int) -> list[tuple[str, float, float]]:
    """One layer at the base size, 16,384 pixels: plain and folded times for tokens reading pixels and the reverse."""
    layer = MixtureCrossAttention(256, 8, 5).eval()
    pixels = torch.randn(1, 16384, 256)
    rows = []
    for count in (2, 6, 20, 40):
        tokens = torch.randn(1, count, 256)
        read = tokens, pixels, pixels, layer.gate(tokens), None
        write = pixels, tokens, tokens, layer.gate(pixels), None
        for name, folded, arguments in (("read", layer.fold_queries, read), ("write", layer.fold_keys, write)):
            plain_time = milliseconds(partial(layer.plain, *arguments), repeats)
            folded_time = milliseconds(partial(folded, *arguments), repeats)
            rows.append((f"attention {name}, {count} tokens", plain_time, folded_time))
    return rows


def network_rows(size: int, repeats: int) -> list[tuple[str, float, float]]:
    """The base size: encoder, a semantic pass and a pass with three clicks, plain and folded."""
    model = KPrism(KPrismConfig.base()).eval()
    image = torch.rand(1, 3, size, size)
    features = model.encode_image(image)
    shape, index = (size, size), torch.tensor([0])
    points, labels = torch.tensor([[[100.0, 200.0], [300.0, 260.0], [40.0, 480.0]]]), torch.tensor([[1, 1, 0]])
    dense = torch.cat([click_discs(points, labels, shape), torch.rand(1, 1, size, size)], dim=1)
    passes = {
        "semantic pass": Prompts(shape, index, class_index=index),
        "click pass (3 clicks)": Prompts(shape, index, points=points, point_labels=labels, dense=dense),
    }
    encoder = milliseconds(lambda: model.encode_image(image), repeats)
    rows = [("encoder", encoder, encoder)]
    for name, prompts in passes.items():
        folded = milliseconds(partial(model.decode, features, prompts), repeats)
        # Both folded forms take the same arguments as the plain formula, so it can stand in for them.
        plain = MixtureCrossAttention.plain
        with patch.multiple(MixtureCrossAttention, fold_queries=plain, fold_keys=plain):
            rows.append((name, milliseconds(partial(model.decode, features, prompts), repeats), folded))
    return rows


ASKED, PRESENT = 15, 4
NO_PRESENCE_SUFFICES = 2.0


def many_classes_row(size: int, repeats: int) -> tuple[tuple[str, float, float], float]:
    """A slice asked for `ASKED` classes of which `PRESENT` are there, with encoder; how far the answers differ."""
    model = KPrism(KPrismConfig.base()).eval()
    image, shape = torch.rand(1, 3, size, size), (size, size)
    asked = Prompts(shape, torch.zeros(ASKED, dtype=torch.long), class_index=torch.arange(ASKED))
    presence = model(image, replace(asked, minimum_presence=NO_PRESENCE_SUFFICES)).presence.sigmoid()
    least = presence.sort(descending=True).values[PRESENT - 1 : PRESENT + 1].mean()
    ours = replace(asked, minimum_presence=float(least))
    folded_logits = model(image, ours).logits[-1][presence >= least]
    folded = milliseconds(lambda: model(image, ours), repeats)
    rows = [asked.select(torch.tensor([row])) for row in range(ASKED)]  # one at a time, as memory allows

    def plain_pass() -> list[torch.Tensor]:
        features = model.encode_image(image)
        return [model.decode(features, row).logits[-1] for row in rows]

    plain = MixtureCrossAttention.plain
    with patch.multiple(MixtureCrossAttention, fold_queries=plain, fold_keys=plain):
        difference = (torch.cat(plain_pass())[presence >= least] - folded_logits).abs().max()
        plain_time = milliseconds(plain_pass, repeats)
    return (f"{ASKED} classes, {PRESENT} present", plain_time, folded), float(difference)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--size", type=int, default=512)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    with torch.inference_mode():
        rows = attention_rows(arguments.repeats) + network_rows(arguments.size, arguments.repeats)
        many, difference = many_classes_row(arguments.size, arguments.repeats)
    print(f"{'':32} {'plain ms':>10} {'folded ms':>10} {'ratio':>7}")
    for name, plain, folded in [*rows, many]:
        ratio = "" if plain == folded else f"{plain / folded:7.1f}"
        print(f"{name:32} {plain:10.1f} {folded:10.1f} {ratio:>7}")
    print(f"difference of the logits of those present: {difference:.1e}")


if __name__ == "__main__":
    main()

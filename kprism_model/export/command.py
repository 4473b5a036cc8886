# SPDX-License-Identifier: Apache-2.0
"""Export a checkpoint to ONNX: `image_encoder.onnx`, `reference_encoder.onnx`, `decoder.onnx` and `model.json`.

The files run without PyTorch and without this package; `docs/onnx.md` shows how. Before they are moved to their final
names, they are compared with the network in onnxruntime. Batch size, clicks, references and image sizes are free.

The graphs are traced (`dynamo=False`). The exporter on torch.export gives the same numbers for the image encoder, but
with free sizes it took 30 s of CPU time for the smallest one; tracing takes 0.6 s (torch 2.13).
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import os
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kprism_model.checkpoint import Checkpoint, load_checkpoint
from kprism_model.export.check import greatest_difference
from kprism_model.export.graphs import DecoderGraph, ImageEncoderGraph, ReferenceEncoderGraph
from kprism_model.intensity import CT_WINDOWS, PERCENTILES
from kprism_model.network.config import SIZE_MULTIPLE
from kprism_model.network.kprism import KPrism

FORMAT_VERSION = 1
OPSET = 18
TOLERANCE = 1e-3
"""Files are written only if their greatest difference from PyTorch, in logits, is at most this.

Rounding gives up to 6e-4 with trained weights on noise, because pixels at the threshold of the masked attention change
sides. A wrong computation gives 1e-2 or more.
"""

PACKAGES = ("onnx", "onnxruntime")
_EXAMPLE_SIZE = (3 * SIZE_MULTIPLE, 5 * SIZE_MULTIPLE)  # not square, so that the encoder resamples to its own grid


@dataclass(frozen=True)
class Graph:
    """One file: `module` with an `example` of each input, and the names of the free axes of inputs and outputs."""

    module: nn.Module
    example: dict[str, Tensor]
    inputs: dict[str, dict[int, str]]
    outputs: dict[str, dict[int, str]]


def export(checkpoint: Checkpoint, folder: Path) -> dict[str, Any]:
    """Write the four files into `folder`, replacing existing ones, and return the content of `model.json`.

    ValueError, before anything in `folder` changes, if a package is missing, the network attends padding, or a graph
    differs from the network by more than `TOLERANCE`.
    """
    require_packages()
    if checkpoint.model.config.attend_padding:
        raise ValueError(f"{checkpoint.path}: attend_padding is only for comparisons and cannot be exported")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".export-", dir=folder) as beside:
        files = {name: write_graph(graph, Path(beside) / name) for name, graph in graphs(checkpoint.model).items()}
        difference = greatest_difference(Path(beside), checkpoint.model)
        if not difference <= TOLERANCE:
            raise ValueError(
                f"{checkpoint.path}: the exported graphs differ from the network by {difference:g}, "
                f"more than {TOLERANCE:g}; nothing was written"
            )
        content = _description(checkpoint, files, difference)
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        (Path(beside) / "model.json").write_text(text, encoding="utf-8")
        for name in (*files, "model.json"):
            os.replace(Path(beside) / name, folder / name)
    return content


def require_packages() -> None:
    """ValueError that names the first required package that cannot be imported."""
    for name in PACKAGES:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ValueError(
                f"the export needs the package {name}, which cannot be imported ({error}); "
                "install it with: pip install -r requirements-dev.txt"
            ) from error


def graphs(model: KPrism) -> dict[str, Graph]:
    """File name -> graph, for the three graphs."""
    config = model.config
    height, width = _EXAMPLE_SIZE
    pictures = torch.rand(2, config.in_channels, height, width)
    masks = (pictures[:, :1] > 0.5).float()
    with torch.no_grad():
        features = model.encode_image(pictures)
        references = model.encode_references(pictures[:, None], masks[:, None])
    picture_axes = {0: "images", 2: "height", 3: "width"}
    feature_axes = {
        name: {0: "images", 2: f"height/{stride}", 3: f"width/{stride}"}
        for name, stride in (("stride16", 16), ("stride8", 8), ("stride4", 4))
    }
    summary_names = ("summaries16", "summaries8", "summaries4")
    return {
        "image_encoder.onnx": Graph(
            ImageEncoderGraph(model), {"images": pictures}, {"images": picture_axes}, feature_axes
        ),
        "reference_encoder.onnx": Graph(
            ReferenceEncoderGraph(model),
            {"images": pictures, "masks": masks},
            {"images": picture_axes | {0: "references"}, "masks": picture_axes | {0: "references"}},
            {name: {0: "references"} for name in summary_names}
            | {"values": {0: "references", 2: "height/16", 3: "width/16"}},
        ),
        "decoder.onnx": Graph(
            DecoderGraph(model),
            dict(zip(feature_axes, features, strict=True))
            | dict(zip(summary_names, references.summaries, strict=True))
            | {"keys": references.keys, "values": references.values}
            | _example_rows(),
            feature_axes | _decoder_axes(summary_names),
            {"logits": {0: "rows", 2: "height/4", 3: "width/4"}, "presence": {0: "rows"}},
        ),
    }


def _example_rows() -> dict[str, Tensor]:
    """Three rows for the trace: a class, references, clicks alone; with padding, so that it is part of the graph."""
    height, width = _EXAMPLE_SIZE
    return {
        "image_index": torch.tensor([0, 1, 1]),
        "class_index": torch.tensor([0, -1, -1]),
        "reference_index": torch.tensor([-1, 0, -1]),
        "points": torch.rand(3, 2, 2) * min(height, width),
        "point_labels": torch.tensor([[1, -1], [-1, -1], [1, 0]]),
        "dense": torch.rand(3, 3, height, width),
    }


def _decoder_axes(summary_names: tuple[str, ...]) -> dict[str, dict[int, str]]:
    sets = {0: "sets", 1: "references"}
    grids = sets | {3: "reference height/16", 4: "reference width/16"}
    return (
        {name: {0: "rows"} for name in ("image_index", "class_index", "reference_index")}
        | dict.fromkeys(summary_names, sets)
        | {"keys": grids, "values": grids}
        | {name: {0: "rows", 1: "clicks"} for name in ("points", "point_labels")}
        | {"dense": {0: "rows or 1", 2: "height", 3: "width"}}
    )


def write_graph(graph: Graph, path: Path) -> dict[str, Any]:
    """Trace `graph` into the file `path`; returns its size in bytes, hash, inputs and outputs."""
    onnx = importlib.import_module("onnx")
    with warnings.catch_warnings():
        # Tracing fixes only decisions that are the same for all inputs by construction; the comparison tests this.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            graph.module.eval(),
            tuple(graph.example[name] for name in graph.inputs),
            path,
            dynamo=False,
            opset_version=OPSET,
            input_names=list(graph.inputs),
            output_names=list(graph.outputs),
            dynamic_axes=graph.inputs | graph.outputs,
            training=torch.onnx.TrainingMode.PRESERVE,  # evaluation mode, but with the weights as they are stored
        )
    traced = onnx.load(path)
    _store_as_float16(traced.graph)
    onnx.checker.check_model(traced, full_check=True)
    onnx.save(traced, path)
    data = path.read_bytes()
    return {
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "inputs": {value.name: _signature(value) for value in traced.graph.input},
        "outputs": {value.name: _signature(value) for value in traced.graph.output},
    }


def _store_as_float16(graph: Any) -> None:
    """Store float32 tensors as float16 with a cast to float32, if this loses no bit.

    Checkpoints store matrices in half precision, so this halves the files; the arithmetic stays float32.
    """
    onnx = importlib.import_module("onnx")
    casts = []
    for tensor in graph.initializer:
        if tensor.data_type != onnx.TensorProto.FLOAT:
            continue
        values = onnx.numpy_helper.to_array(tensor)
        with np.errstate(over="ignore"):
            half = values.astype(np.float16)
        if values.ndim < 2 or not np.array_equal(half.astype(np.float32), values):
            continue
        name = tensor.name
        tensor.CopyFrom(onnx.numpy_helper.from_array(half, f"{name}_half"))
        casts.append(onnx.helper.make_node("Cast", [tensor.name], [name], f"{name}_cast", to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


def _signature(value: Any) -> dict[str, Any]:
    onnx = importlib.import_module("onnx")
    tensor = value.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    return {"dtype": dtype, "shape": [axis.dim_param or axis.dim_value for axis in tensor.shape.dim]}


def _description(checkpoint: Checkpoint, files: dict[str, Any], difference: float) -> dict[str, Any]:
    return {
        "format_version": FORMAT_VERSION,
        "weights_version": checkpoint.weights_version,
        "classes": checkpoint.registry.to_list(),
        "preprocessing": {
            "native_size": checkpoint.model.config.native_size,
            "size_multiple": SIZE_MULTIPLE,
            "percentiles": list(PERCENTILES),
            "ct_window": list(CT_WINDOWS["wide"]),
        },
        "opset": OPSET,
        "exporter": f"torch {torch.__version__}",
        "greatest_difference_from_torch": difference,
        "files": files,
        "config": checkpoint.model.config.to_dict(),
        "metadata": checkpoint.metadata,
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `python -m kprism_model export`."""
    parser.add_argument("checkpoint", type=Path, help="weights (.safetensors with its .json beside)")
    parser.add_argument("folder", type=Path, help="folder for the three graphs and model.json")


def run(arguments: argparse.Namespace) -> int:
    """Export and print what was written."""
    require_packages()
    content = export(load_checkpoint(arguments.checkpoint), arguments.folder)
    for name, file in content["files"].items():
        print(f"{arguments.folder / name}: {file['bytes'] / 1e6:.1f} MB")
    print(f"{arguments.folder / 'model.json'}: weights {content['weights_version']}, opset {content['opset']}")
    print(f"greatest difference from PyTorch: {content['greatest_difference_from_torch']:.1e} (logits, presence)")
    return 0

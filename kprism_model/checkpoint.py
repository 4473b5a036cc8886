# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: weights as safetensors and everything else as readable JSON beside them; pickles are refused.

`X.safetensors` holds the tensors; `X.json` holds the configuration, the class names in the order of their rows, the
preprocessing that the weights were trained with, provenance and metrics, and the hash of the weights file. Both files
are written atomically, the JSON last, so a reader gets either a matching pair or an error.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from kprism_model.classes import ClassRegistry
from kprism_model.files import write_bytes
from kprism_model.intensity import CT_WINDOWS, PERCENTILES
from kprism_model.network.config import SIZE_MULTIPLE, KPrismConfig
from kprism_model.network.kprism import KPrism

FORMAT_VERSION = 1
VERSION_LENGTH = 12
"""Hexadecimal digits of the weights file's SHA-256 that name a version of the weights."""

_SUFFIXES = (".safetensors", ".json")
_PICKLES = (".pt", ".pth", ".ckpt", ".bin", ".pkl", ".pickle")
_FIELDS: dict[str, type] = {
    "config": dict,
    "classes": list,
    "preprocessing": dict,
    "sha256": str,
    "weights_version": str,
    "metadata": dict,
}


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message names the file, the value and what was expected."""


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint: `model` in eval mode, `path` of its weights file, `weights_version` a short hash of that."""

    model: KPrism
    registry: ClassRegistry
    metadata: dict[str, Any]
    weights_version: str
    path: Path


def save_checkpoint(
    path: Path, model: KPrism, registry: ClassRegistry, *, metadata: Mapping[str, Any], dtype: str = "float32"
) -> None:
    """Write `<path>.safetensors` and `<path>.json`, replacing existing files; either suffix on `path` is ignored.

    `metadata` holds provenance and metrics as JSON values. With `dtype` "float16", matrices and kernels are stored in
    half precision; vectors (biases, norms, running statistics) stay float32. CheckpointError, before anything is
    written, if the registry does not have one name for each class row, a weight is not finite in `dtype`, or `metadata`
    is not JSON (JSON has no NaN: use None).
    """
    stem = checkpoint_stem(path)
    if len(registry) != model.config.num_classes:
        raise CheckpointError(f"{stem}: {len(registry)} class names for {model.config.num_classes} rows of the network")
    weights = safetensors.torch.save(_stored_tensors(stem, model, dtype))
    digest = hashlib.sha256(weights).hexdigest()
    content = {
        "format_version": FORMAT_VERSION,
        "config": model.config.to_dict(),
        "classes": registry.to_list(),
        "preprocessing": _preprocessing(),
        "sha256": digest,
        "weights_version": digest[:VERSION_LENGTH],
        "metadata": dict(metadata),
    }
    try:
        text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{stem}: metadata cannot be written as JSON: {error}") from error
    stem.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(_with_suffix(stem, ".safetensors"), weights)
    write_bytes(_with_suffix(stem, ".json"), (text + "\n").encode())


def load_checkpoint(path: Path, *, device: str | torch.device = "cpu") -> Checkpoint:
    """Load the pair of files that `path` names (with either suffix, or none); the model is float32, in eval mode.

    CheckpointError if a file is missing, is a pickle or has another format, was written by another format version or
    for another preprocessing, or if hash, class names and tensors do not match each other.
    """
    stem = checkpoint_stem(path)
    weights_path, json_path = _with_suffix(stem, ".safetensors"), _with_suffix(stem, ".json")
    content = _read_description(json_path)
    weights = _read(weights_path)
    digest = hashlib.sha256(weights).hexdigest()
    if digest != content["sha256"]:
        raise CheckpointError(f"{weights_path} has SHA-256 {digest}, but {json_path} expects {content['sha256']}")
    try:
        registry = ClassRegistry(content["classes"])
        config = KPrismConfig.from_dict(content["config"])
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{json_path}: {error}") from error
    if len(registry) != config.num_classes:
        raise CheckpointError(f"{json_path}: {len(registry)} class names for num_classes {config.num_classes}")
    model = KPrism(config)
    _load_tensors(model, _parse_tensors(weights_path, weights), weights_path)
    return Checkpoint(model.to(device).eval(), registry, content["metadata"], digest[:VERSION_LENGTH], weights_path)


def checkpoint_stem(path: Path) -> Path:
    """`path` without a checkpoint's suffix; other dots are part of the name. CheckpointError for a pickle's suffix."""
    path = Path(path)
    if path.suffix.lower() in _PICKLES:
        raise CheckpointError(
            f"{path}: pickled checkpoints can run code and are refused; expected .safetensors and .json"
        )
    return path.with_suffix("") if path.suffix in _SUFFIXES else path


def _with_suffix(stem: Path, suffix: str) -> Path:
    return stem.with_name(stem.name + suffix)


def _preprocessing() -> dict[str, Any]:
    """The preprocessing that the weights expect; see `kprism_model.preprocess`."""
    return {
        "size_multiple": SIZE_MULTIPLE,
        "percentiles": list(PERCENTILES),
        "ct_window": list(CT_WINDOWS["wide"]),
    }


def _stored_tensors(stem: Path, model: KPrism, dtype: str) -> dict[str, Tensor]:
    if dtype not in ("float32", "float16"):
        raise CheckpointError(f"{stem}: dtype must be 'float32' or 'float16', got {dtype!r}")
    stored = {}
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            tensor = tensor.to(torch.float16 if dtype == "float16" and tensor.ndim > 1 else torch.float32)
            if not tensor.isfinite().all():
                raise CheckpointError(f"{stem}: tensor {name} holds values that are not finite as {tensor.dtype}")
        stored[name] = tensor.detach().cpu().contiguous()
    return stored


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise CheckpointError(f"there is no checkpoint file {path}") from error
    except OSError as error:  # a broken disk, a missing right
        raise CheckpointError(f"{path} cannot be read: {error}") from error


def _read_description(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(_read(path))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict) or content.get("format_version") != FORMAT_VERSION:
        version = content.get("format_version") if isinstance(content, dict) else content
        raise CheckpointError(f"{path} has format_version {version!r}, expected {FORMAT_VERSION}")
    for name, kind in _FIELDS.items():
        if not isinstance(content.get(name), kind):
            raise CheckpointError(f"{path}: {name} must be a {kind.__name__}, got {content.get(name)!r}")
    if content["preprocessing"] != _preprocessing():
        raise CheckpointError(
            f"{path}: the weights expect the preprocessing {content['preprocessing']}, "
            f"this version has {_preprocessing()}"
        )
    return content


def _parse_tensors(path: Path, weights: bytes) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load(weights)
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{path} is not a safetensors file ({error}); pickled checkpoints are refused") from error


def _load_tensors(model: KPrism, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Copy `tensors` into `model`, which must have the same names and shapes."""
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    given = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    faults = [
        f"{name}: found {given.get(name, 'nothing')}, expected {expected.get(name, 'nothing')}"
        for name in sorted(expected.keys() | given.keys())
        if given.get(name) != expected.get(name)
    ]
    if faults:
        more = f" and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise CheckpointError(f"{path} does not fit its configuration: {'; '.join(faults[:5])}{more}")
    model.load_state_dict(dict(tensors))

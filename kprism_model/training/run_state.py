# SPDX-License-Identifier: Apache-2.0
"""The state of a training on disk, whole at any moment: a safetensors file, and a JSON file that names it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from kprism_model.files import write_bytes

STATE_NAME = "state"

PARTS = ("model", "average", "adam")
"""Prefixes of tensor names: the network, the moving average of its weights, the optimizer's moments."""


def has_state(folder: Path) -> bool:
    """Whether `folder` holds the state of a training."""
    return (folder / f"{STATE_NAME}.json").exists()


def save_state(folder: Path, step: int, parts: Mapping[str, Mapping[str, Tensor]], content: Mapping[str, Any]) -> None:
    """Write the tensors of `PARTS`, then the JSON that names their file, each beside the old one and renamed."""
    tensors = {f"{part}.{name}": value.contiguous() for part in PARTS for name, value in parts[part].items()}
    tensors_name = f"{STATE_NAME}-{step}.safetensors"
    save_file(tensors, folder / tensors_name)
    _sync(folder / tensors_name)
    description = {"step": step, **content, "tensors": tensors_name}
    write_bytes(folder / f"{STATE_NAME}.json", json.dumps(description).encode())
    for old in folder.glob(f"{STATE_NAME}-*.safetensors"):
        if old.name != tensors_name:
            old.unlink()


def check_state(folder: Path, identity: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON content of the state in `folder`; ValueError that names where it differs from `identity`."""
    path = folder / f"{STATE_NAME}.json"
    content: dict[str, Any] = json.loads(path.read_text())
    for key, value in json.loads(json.dumps(identity)).items():
        if (stored := content.get(key)) != value:
            raise ValueError(f"{path} belongs to another run: its {key}{_difference(stored, value)}")
    return content


def load_state(folder: Path, identity: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]]:
    """The JSON content and the tensors by part; ValueError where `identity` differs or the tensors are damaged."""
    content = check_state(folder, identity)
    try:
        tensors = load_file(folder / content["tensors"])
    except SafetensorError as error:
        raise ValueError(f"{folder / content['tensors']} is damaged: {error}") from error
    parts: dict[str, dict[str, Tensor]] = {part: {} for part in PARTS}
    for name, value in tensors.items():
        part, _, rest = name.partition(".")
        parts[part][rest] = value
    return content, parts


@dataclass(frozen=True)
class EndState:
    """Where a training ended: its steps, the classes of its rows, and the tensors of `PARTS` by name."""

    step: int
    classes: tuple[str, ...]
    parts: Mapping[str, Mapping[str, Tensor]]

    @classmethod
    def read(cls, folder: Path) -> EndState:
        """The state in `folder`; ValueError if there is none or it is damaged."""
        try:
            content, parts = load_state(folder, {})
            return cls(int(content["step"]), tuple(content["classes"]), parts)
        except (OSError, LookupError, TypeError) as error:
            raise ValueError(f"{folder} holds no whole state of a training: {error!r}") from error


def optimizer_moments(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state by "number of the parameter.name"."""
    state = optimizer.state_dict()["state"]
    return {f"{number}.{name}": value for number, moments in state.items() for name, value in moments.items()}


def restore_moments(optimizer: torch.optim.Optimizer, moments: Mapping[str, Tensor]) -> None:
    """Give the optimizer the state that `optimizer_moments` returned."""
    state = optimizer.state_dict()
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for name, value in moments.items():
        number, _, moment = name.partition(".")
        parameter = parameters[int(number)]
        if value.ndim:  # the fused optimizer reads moments in memory order: they need their parameter's memory format
            laid_out = torch.zeros_like(parameter)
            laid_out[: len(value)] = value  # rows of classes that are new have no moments yet
        else:
            laid_out = value
        state["state"].setdefault(int(number), {})[moment] = laid_out
    optimizer.load_state_dict(state)


def _difference(stored: Any, wanted: Any) -> str:
    """What differs: of two mappings the entries alone, " epochs is 1, not 2"."""
    if not isinstance(stored, dict) or not isinstance(wanted, dict):
        return f" is {stored}, not {wanted}"
    names = [name for name in {**stored, **wanted} if stored.get(name) != wanted.get(name)]
    return ", ".join(f" {name} is {stored.get(name)}, not {wanted.get(name)}" for name in names)


def _sync(path: Path) -> None:
    """Wait until a file is on the disk, so that no rename can come before it."""
    with path.open("rb") as file:
        os.fsync(file.fileno())

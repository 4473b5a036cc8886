# SPDX-License-Identifier: Apache-2.0
"""The dataset.json of a download: its name, classes and channels, as the Decathlon and nnU-Net (1 and 2) write them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kprism_model.classes import clean_name

_MODALITIES = {
    "ct": "CT",
    **dict.fromkeys(("mr", "mri", "cinemri", "flair", "adc", "dwi", "pd", "swi", "dce"), "MRI"),
    **dict.fromkeys(("pet", "pt", "suv"), "PET"),
    **dict.fromkeys(("us", "ultrasound"), "ultrasound"),
    **dict.fromkeys(("xray", "cr", "dx"), "X-ray"),
    **dict.fromkeys(("r", "g", "b", "red", "green", "blue", "rgb", "rgbto01"), "colour picture"),
    **dict.fromkeys(("", "nonorm", "zscore", "rescaleto01", "rescale01"), "unknown"),
}
_T1_OR_T2 = re.compile(r"t[12]([^0-9]|$)")


def read_description(path: Path) -> dict[str, Any]:
    """The object in a JSON file; ValueError that names the file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(content).__name__}")
    return content


def data_set_name(text: str) -> str:
    """A name as that of a data set: lower case, letters and digits, underscores between; "" for none of these."""
    return "_".join(re.findall(r"[a-z0-9]+", clean_name(text).casefold()))


def text_of(content: Mapping[str, Any], *keys: str) -> str:
    """The first of the entries `keys` that is a text and not empty, else ""."""
    return next((value.strip() for key in keys if isinstance(value := content.get(key), str) and value.strip()), "")


def modality_of(channel: str) -> str:
    """The modality that a channel's name tells (T1, FLAIR: "MRI"), else the name."""
    key = re.sub(r"[^a-z0-9]", "", channel.casefold())
    return "MRI" if _T1_OR_T2.match(key) else _MODALITIES.get(key, clean_name(channel))


def channel_names(path: Path, content: Mapping[str, Any]) -> list[str]:
    """Names of the channels in their order, of "channel_names" or "modality"; ValueError if there are none."""
    names = content.get("channel_names", content.get("modality"))
    if isinstance(names, dict) and names and all(str(key).isdecimal() for key in names):
        return [str(names[key]) for key in sorted(names, key=int)]
    raise ValueError(f'{path}: expected "channel_names" or "modality" as {{"0": "CT"}}, got {names!r}')


def chosen_channel(names: list[str], option: str | None) -> int:
    """The number of the channel that the option --channel names, by number or name; the first one without it."""
    if option is None:
        return 0
    keys = [name.casefold() for name in names]
    if option.casefold() in keys:
        return keys.index(option.casefold())
    if option.isdecimal() and int(option) < len(names):
        return int(option)
    known = ", ".join(f"{number} ({name})" for number, name in enumerate(names))
    raise ValueError(f"--channel is {option}, expected one of {known}")


@dataclass(frozen=True)
class OwnClasses:
    """The classes of label files.

    `names`: label index, from 1 on -> class. `indices`: value in the files -> label index. `regions`: a region that
    overlaps others -> the classes that it consists of; empty if no classes overlap. `ignored`: the value of voxels of
    which nothing is known.
    """

    names: Mapping[int, str]
    indices: Mapping[int, int]
    regions: Mapping[str, tuple[str, ...]]
    ignored: int | None


def own_classes(path: Path, labels: Any) -> OwnClasses:
    """The entry "labels": values by name (nnU-Net 2) or names by value (nnU-Net 1, Decathlon), entry by entry.

    Several values of one name are a region. Where regions overlap, the classes are their parts: those of
    {"tumour": [1, 2], "core": [2]} are "tumour without core" and "core". ValueError that names the wrong entry.
    """
    if not isinstance(labels, dict):
        raise ValueError(f'{path}: "labels" must map names and values, got {labels!r}')
    values: dict[str, frozenset[int]] = {}
    ignored = None
    for key, value in labels.items():
        name, numbers = _entry(path, str(key), value)
        if numbers == {0}:
            continue
        if name.casefold() == "ignore" and len(numbers) == 1:
            (ignored,) = numbers
        elif not name or 0 in numbers or name.casefold() in {other.casefold() for other in values}:
            raise ValueError(f'{path}: "labels" must map classes with different names to values above 0, got {labels}')
        else:
            values[name] = numbers
    present = sorted(set().union(*values.values()))
    members = {value: frozenset(name for name in values if value in values[name]) for value in present}
    groups = list(dict.fromkeys(members.values()))
    if not groups or len(groups) > 254:
        raise ValueError(f'{path}: "labels" must hold 1 to 254 classes, got {len(groups)}')
    names = {index: _part(group, values) for index, group in enumerate(groups, start=1)}
    overlap = any(len(group) > 1 for group in groups)
    regions = {
        region: tuple(names[index] for index, group in enumerate(groups, start=1) if region in group)
        for region in (values if overlap else ())
    }
    return OwnClasses(names, {value: groups.index(members[value]) + 1 for value in present}, regions, ignored)


def _entry(path: Path, key: str, value: Any) -> tuple[str, frozenset[int]]:
    """A class and its values, of one entry of either kind."""
    if isinstance(value, str) and key.strip().isdecimal():
        return clean_name(value), frozenset({int(key)})
    numbers = value if isinstance(value, list) else [value]
    if not numbers or not all(isinstance(one, int | float) and float(one).is_integer() and one >= 0 for one in numbers):
        raise ValueError(f'{path}: "labels" must map names to whole values of 0 or more, got {key!r}: {value!r}')
    return clean_name(key), frozenset(int(one) for one in numbers)


def _part(group: frozenset[str], values: Mapping[str, frozenset[int]]) -> str:
    """The name of the voxels that are in all regions of `group` and in no other."""
    smallest = [name for name in values if name in group and not any(values[other] < values[name] for other in group)]
    shared = frozenset.intersection(*(values[name] for name in group))
    others = [name for name in values if name not in group and values[name] & shared]
    largest = [name for name in others if not any(values[name] < values[other] for other in others)]
    return " and ".join(smallest) + (f" without {' or '.join(largest)}" if largest else "")

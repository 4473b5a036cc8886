# SPDX-License-Identifier: Apache-2.0
"""Sizes of a K-Prism network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

SIZE_MULTIPLE = 32
"""Input height and width are padded to a multiple of this many pixels."""

STRIDES = (16, 8, 4)
"""Pixel strides of the three feature scales, in the order in which the decoder visits them."""

ENCODERS = ("utnet", "efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2")
MASK_ENCODERS = ("own", "shared")
_OPTIONAL_KEYS = {"encoder", "mask_encoder", "kinds", "kind_centres"}


@dataclass(frozen=True)
class KPrismConfig:
    """Everything that fixes the shape of a network; the published size is `KPrismConfig.base()`.

    `native_size` is the long side in pixels to which images are resized. With `stem_stride` 2 or 4, the encoders' stems
    end at a half or a quarter of the size, where they cost less; the strides of the features stay 4, 8 and 16.
    `dense_channels` is the width of the dense prompt map at half size. With `attend_padding`, padded click tokens take
    part in attention, as in the published code; it is only for the comparison with that code. `encoder` is the image
    encoder: "utnet" as published, or an EfficientNet-Lite, which can start from ImageNet weights and whose stem always
    ends at half size. `mask_encoder` "own" encodes a reference's image again together with its mask, as published;
    "shared" adds the mask to the features of the image encoder. `kinds` are the names of the kinds of images that the
    network distinguishes, such as "CT, chest"; without kinds it has no kind head. `kind_centres` are the numbers of
    centres of the kinds, one each if it is empty; a kind that looks different in each of its data sets has more.
    """

    native_size: int = 512
    num_classes: int = 33
    base_channels: int = 48
    stem_stride: int = 1
    encoder_heads: int = 4
    reduced_size: int = 8
    width: int = 256
    heads: int = 8
    ffn_width: int = 256
    experts: int = 5
    layers: int = 6
    queries_per_class: int = 2
    summaries: int = 6
    head_channels: int = 32
    in_channels: int = 3
    dense_channels: int = 256
    attend_padding: bool = False
    encoder: str = "utnet"
    mask_encoder: str = "own"
    kinds: tuple[str, ...] = ()
    kind_centres: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Refuse sizes that no network can have, naming the field and the value."""
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type == "int" and (not isinstance(value, int) or value < 1):
                raise ValueError(f"KPrismConfig.{field.name} must be a positive integer, got {value!r}")
        for name, allowed in (("encoder", ENCODERS), ("mask_encoder", MASK_ENCODERS)):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"KPrismConfig.{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}"
                )
        if len(set(self.kinds)) < len(self.kinds) or not all(isinstance(kind, str) and kind for kind in self.kinds):
            raise ValueError(f"KPrismConfig.kinds must be different names, got {list(self.kinds)}")
        centres = self.kind_centres
        if centres and (len(centres) != len(self.kinds) or not all(isinstance(n, int) and n > 0 for n in centres)):
            raise ValueError(
                f"KPrismConfig.kind_centres must be empty or a positive integer for each of {len(self.kinds)} kinds, "
                f"got {list(centres)}"
            )
        if self.stem_stride not in (1, 2, 4):
            raise ValueError(f"KPrismConfig.stem_stride must be 1, 2 or 4, got {self.stem_stride}")
        for name, value, divisor in (
            ("native_size", self.native_size, SIZE_MULTIPLE),
            ("width", self.width, 32),
            ("width", self.width, self.heads),
            ("dense_channels", self.dense_channels, 32),
            ("summaries", self.summaries, 2),
            ("layers", self.layers, len(STRIDES)),
            ("base_channels", self.base_channels, self.encoder_heads),
        ):
            if value % divisor:
                raise ValueError(f"KPrismConfig.{name} must be a multiple of {divisor}, got {value}")

    @classmethod
    def tiny(cls, **changes: Any) -> KPrismConfig:
        """The smallest sensible network, for tests (about 0.3 M parameters)."""
        sizes = cls(64, 4, 8, 2, 4, 8, 32, 4, 32, 2, 3, head_channels=8, dense_channels=32)
        return replace(sizes, **changes)

    @classmethod
    def small(cls, **changes: Any) -> KPrismConfig:
        """The size of the shipped weights: a click takes tens of milliseconds on two CPU cores."""
        sizes = cls(192, 8, 32, 4, 4, 8, 96, 4, 96, 3, 3, head_channels=24, dense_channels=96)
        return replace(sizes, **{"encoder": "efficientnet_lite0", "mask_encoder": "shared"} | changes)

    @classmethod
    def base(cls, **changes: Any) -> KPrismConfig:
        """The published size, at 512 x 512: 40.6 M parameters, without the 2.8 M that the published code never uses."""
        return replace(cls(), **changes)

    @classmethod
    def preset(cls, name: str, **changes: Any) -> KPrismConfig:
        """The preset called `name` ("tiny", "small" or "base"); ValueError for another name."""
        presets = {"tiny": cls.tiny, "small": cls.small, "base": cls.base}
        if name not in presets:
            raise ValueError(f"unknown preset {name!r}; expected one of {', '.join(presets)}")
        return presets[name](**changes)

    @property
    def encoder_channels(self) -> tuple[int, int, int]:
        """Channels of both encoders at strides 16, 8 and 4."""
        return 8 * self.base_channels, 4 * self.base_channels, 2 * self.base_channels

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready copy of all fields."""
        return {**asdict(self), "kinds": list(self.kinds), "kind_centres": list(self.kind_centres)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> KPrismConfig:
        """The inverse of `to_dict`; ValueError names keys that are unknown or missing.

        Older files lack the `_OPTIONAL_KEYS`, which then have the published values.
        """
        names = {field.name for field in fields(cls)}
        missing = names - set(values) - _OPTIONAL_KEYS
        if set(values) - names or missing:
            wrong = {"unknown": sorted(set(values) - names), "missing": sorted(missing)}
            faults = "; ".join(f"{what} {', '.join(keys)}" for what, keys in wrong.items() if keys)
            raise ValueError(f"configuration keys: {faults}")
        return cls(**{**values, **{name: tuple(values.get(name, ())) for name in ("kinds", "kind_centres")}})

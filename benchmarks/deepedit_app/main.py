# SPDX-License-Identifier: Apache-2.0
"""MONAI Label's DeepEdit, for its time alone: the network and the steps of its radiology app, with random weights.

Only `benchmarks/latency.py` uses it. The network is MONAI's DynUNet as MONAI Label 0.8.5 sets it up in
`sample-apps/radiology/lib/configs/deepedit.py`, one channel for the image and one for the clicks of each of its eight
labels; before and after it come the steps of `lib/infers/deepedit.py`. That file itself cannot be imported without
torchvision, which the server is installed without.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.apps.deepedit.transforms import (
    AddGuidanceFromPointsDeepEditd,
    AddGuidanceSignalDeepEditd,
    ResizeGuidanceMultipleLabelDeepEditd,
)
from monai.inferers import Inferer, SimpleInferer
from monai.networks.nets import DynUNet
from monai.transforms import (
    Activationsd,
    AsDiscreted,
    EnsureChannelFirstd,
    EnsureTyped,
    LoadImaged,
    MapTransform,
    Orientationd,
    Resized,
    ScaleIntensityRanged,
    SqueezeDimd,
    ToNumpyd,
)
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType
from monailabel.tasks.infer.basic_infer import BasicInferTask
from torch.nn import functional as F

LABELS = {
    "spleen": 1,
    "right kidney": 2,
    "left kidney": 3,
    "liver": 6,
    "stomach": 7,
    "aorta": 8,
    "inferior vena cava": 9,
    "background": 0,
}
"""Those of the sample app."""

SIDE = 128
"""Voxels along each side of the network's input in the sample app."""


def dynunet() -> DynUNet:
    """The sample app's network."""
    return DynUNet(
        spatial_dims=3,
        in_channels=1 + len(LABELS),
        out_channels=len(LABELS),
        kernel_size=[3] * 6,
        strides=[1, 2, 2, 2, 2, [2, 2, 1]],
        upsample_kernel_size=[2, 2, 2, 2, [2, 2, 1]],
        norm_name="instance",
        deep_supervision=False,
        res_block=True,
    )


class ToImageSize(MapTransform):
    """Brings the labels back to the size of the image, as MONAI Label's Restored does (which needs torchvision)."""

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Nearest neighbour, in the axes of the image's file."""
        result = dict(data)
        size = [int(side) for side in data["image"].meta["spatial_shape"]]
        for key in self.key_iterator(data):
            labels = torch.as_tensor(np.asarray(data[key], np.float32))[None, None]
            result[key] = F.interpolate(labels, size, mode="nearest")[0, 0].numpy().astype(np.uint8)
        return result


class DeepEdit(BasicInferTask):  # type: ignore[misc]
    """Clicks on the whole volume, shrunk to a cube."""

    def __init__(self, path: Path, side: int) -> None:
        super().__init__(
            path=str(path),
            network=dynunet(),
            type=InferType.DEEPEDIT,
            labels=LABELS,
            dimension=3,
            description="DeepEdit with random weights",
        )
        self._size = (side, side, side)

    def pre_transforms(self, data: Any = None) -> Sequence[Callable[..., Any]]:
        """The sample app's, in its order."""
        return [
            LoadImaged(keys="image", reader="ITKReader", image_only=False),
            EnsureChannelFirstd(keys="image"),
            Orientationd(keys="image", axcodes="RAS"),
            ScaleIntensityRanged(keys="image", a_min=-175, a_max=250, b_min=0.0, b_max=1.0, clip=True),
            AddGuidanceFromPointsDeepEditd(ref_image="image", guidance="guidance", label_names=LABELS),
            Resized(keys="image", spatial_size=self._size, mode="area"),
            ResizeGuidanceMultipleLabelDeepEditd(guidance="guidance", ref_image="image"),
            AddGuidanceSignalDeepEditd(keys="image", guidance="guidance", number_intensity_ch=1),
            EnsureTyped(keys="image"),
        ]

    def inferer(self, data: Any = None) -> Inferer:
        """One pass over the cube."""
        return SimpleInferer()

    def post_transforms(self, data: Any = None) -> Sequence[Callable[..., Any]]:
        """From scores to labels of the image's size."""
        return [
            EnsureTyped(keys="pred"),
            Activationsd(keys="pred", softmax=True),
            AsDiscreted(keys="pred", argmax=True),
            SqueezeDimd(keys="pred", dim=0),
            ToNumpyd(keys="pred"),
            ToImageSize(keys="pred"),
        ]


class DeepEditApp(MONAILabelApp):  # type: ignore[misc]
    """One model: `deepedit`. `--conf side N` shrinks its cube, to try the benchmark quickly."""

    def __init__(self, app_dir: str, studies: str, conf: dict[str, str]) -> None:
        self._side = int(conf.get("side", SIDE))
        super().__init__(app_dir, studies, conf, name="DeepEdit", description="For its time alone", version="1")

    def init_infers(self) -> dict[str, InferTask]:
        """The weights go through a file, for MONAI Label keeps a network in memory only if it has one."""
        path = Path(self.app_dir) / "model" / "deepedit.pt"
        path.parent.mkdir(exist_ok=True)
        torch.manual_seed(0)
        torch.save(dynunet().state_dict(), path)
        return {"deepedit": DeepEdit(path, self._side)}

# SPDX-License-Identifier: Apache-2.0
"""What FLARE's server reads at the start and writes after each round: our tensors as safetensors files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import safetensors.numpy
from nvflare.apis.fl_context import FLContext
from nvflare.app_common.abstract.model import ModelLearnable, ModelLearnableKey, make_model_learnable
from nvflare.app_common.abstract.model_persistor import ModelPersistor
from nvflare.app_common.app_constant import AppConstants

from kprism_model.files import write_bytes


class SafetensorsPersistor(ModelPersistor):  # type: ignore[misc]
    """Reads the file `source`; writes `target` (see `aggregate`) of so many `sites`, with the `plan` as one word.

    FLARE writes the arguments into its job's configuration, so they are plain values.
    """

    def __init__(self, source: str, target: str, plan: str, sites: int) -> None:
        super().__init__()
        self.source, self.target, self.plan, self.sites = source, target, plan, sites

    def load_model(self, fl_ctx: FLContext) -> ModelLearnable:
        """The start of the first round."""
        return make_model_learnable(safetensors.numpy.load_file(self.source), {})

    def save_model(self, model: ModelLearnable, fl_ctx: FLContext) -> None:
        """Write the aggregate of a round."""
        weights = model[ModelLearnableKey.WEIGHTS]
        arrays = {
            name: np.ascontiguousarray(value, np.float32).reshape(np.shape(value)) for name, value in weights.items()
        }
        done = int(fl_ctx.get_prop(AppConstants.CURRENT_ROUND, 0)) + 1
        metadata = {"rounds": str(done), "plan": self.plan, "sites": str(self.sites)}
        write_bytes(Path(self.target), safetensors.numpy.save(arrays, metadata))

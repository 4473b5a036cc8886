# SPDX-License-Identifier: Apache-2.0
"""The training as an ignite engine: each iteration is a step of the fine-tuner, and handlers report on it.

The fine-tuner itself ends with its time budget over all resumptions; ignite's TimeLimit would start again with each.
ignite's TerminateOnNan is not used either: NaN is a valid score (a batch without such a structure), and the fine-tuner
skips a step whose gradient is not finite. `Progress` is our own handler, because both viewers read its file.
"""

from __future__ import annotations

from ignite.engine import Events

from kprism_model.training.finetune import Finetuner
from kprism_model.training.loop import attach_tensorboard, run_engine, training_engine
from lib.trainers.progress import Progress


def run_training(tuner: Finetuner, progress: Progress, *, offset: float = 0.0, share: float = 1.0) -> None:
    """Train until the budget is spent; report the progress and write TensorBoard curves.

    This fine-tuning is the `share` of a training of which the share `offset` is done.
    """
    engine = training_engine()
    attach_tensorboard(engine, tuner.folder / "tensorboard")

    def report() -> None:
        progress.advance(offset + share * tuner.share, tuner.recent_means())

    engine.add_event_handler(Events.ITERATION_COMPLETED, report)
    run_engine(engine, tuner)

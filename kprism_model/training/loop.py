# SPDX-License-Identifier: Apache-2.0
"""An ignite engine around the steps of a trainer, for handlers: TensorBoard curves and a progress bar.

The trainer itself makes the steps, ends with its time budget, saves its state and writes its log, so that a machine
without ignite trains in the same way. ignite's TimeLimit and MONAI's CheckpointSaver are not used: the first counts the
pauses of a stopped process, and starts anew in a resumed one; the second writes pickle files.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from kprism_model.network.kprism import KPrism
from kprism_model.training.step_log import NOT_SCORES
from kprism_model.training.trainer import Trainer

if TYPE_CHECKING:
    from ignite.engine import Engine

logger = logging.getLogger(__name__)

HANDLER_PACKAGES = ("ignite", "monai", "tensorboard", "tqdm")
"""What the handlers need; a bare GPU machine may lack them."""


def fit(trainer: Trainer, *, progress: bool = True) -> KPrism:
    """Train until the budget is spent; returns the averaged network in evaluation mode.

    The first process writes TensorBoard curves and, with `progress`, shows a progress bar.
    """
    missing = [name for name in HANDLER_PACKAGES if find_spec(name) is None]
    if missing:
        logger.warning("No TensorBoard curves and no progress bar, because these are missing: %s", ", ".join(missing))
    if missing or trainer.workers.rank:
        return trainer.run()
    engine = training_engine()
    attach_tensorboard(engine, trainer.folder / "tensorboard")
    if progress:
        attach_progress_bar(engine, trainer)
    run_engine(engine, trainer)
    return trainer.averaged()


def training_engine() -> Engine:
    """An engine each of whose iterations is a training step; `engine.state.output` is the record of the step."""
    from ignite.engine import Engine

    return Engine(lambda _, record: record)


def run_engine(engine: Engine, trainer: Steps) -> None:
    """Make the trainer's steps the iterations of the engine, to the end of the training."""
    engine.run(trainer.steps(), max_epochs=1)


class Steps(Protocol):
    """A training whose steps yield their records."""

    def steps(self) -> Iterator[dict[str, float]]:
        """Train to the end."""


def attach_tensorboard(engine: Engine, folder: Path) -> None:
    """Let MONAI's handler write the curves "loss", "rate" and "dice/NAME" of each step into `folder`."""
    from ignite.engine import Events
    from monai.handlers.tensorboard_handlers import TensorBoardStatsHandler

    handler = TensorBoardStatsHandler(log_dir=str(folder), epoch_log=False, iteration_event_writer=_write_curves)
    handler.attach(engine)
    engine.add_event_handler(Events.COMPLETED, lambda: handler.close())


def attach_progress_bar(engine: Engine, trainer: Trainer) -> None:
    """Show the seconds of the budget that are spent, and the mean scores of the latest steps."""
    from ignite.engine import Events
    from tqdm import tqdm

    total = round(60 * trainer.plan.minutes)
    bar = tqdm(total=total, initial=min(round(trainer.seconds), total), unit="s", mininterval=10)

    def update() -> None:
        means = "  ".join(f"{name} {value:.3f}" for name, value in trainer.recent_means().items())
        bar.set_postfix_str(f"step {trainer.step}  Dice: {means}", refresh=False)
        bar.update(min(round(trainer.seconds), total) - bar.n)

    engine.add_event_handler(Events.ITERATION_COMPLETED, update)
    engine.add_event_handler(Events.COMPLETED, lambda: bar.close())


def _write_curves(engine: Any, writer: Any) -> None:
    """Write one step, at its own number: a resumed run goes on where its curves end."""
    record: Mapping[str, float] = engine.state.output
    curves = {name: record[name] for name in ("loss", "rate")}
    curves |= {f"dice/{name}": value for name, value in record.items() if name not in NOT_SCORES}
    for name, value in curves.items():
        writer.add_scalar(name, value, int(record["step"]))
    writer.flush()

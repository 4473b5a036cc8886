# SPDX-License-Identifier: Apache-2.0
"""FLARE's FedAvg recipe for a plan, and the process that runs it: `python -m lib.federation.job simulate|export ...`.

It is a process of its own because FLARE starts others from its main module.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from threading import Thread

from nvflare.client.config import ExchangeFormat
from nvflare.fuel.utils.constants import FrameworkType
from nvflare.recipe.fedavg import FedAvgRecipe
from nvflare.recipe.sim_env import SimEnv

from lib.federation.persistor import SafetensorsPersistor
from lib.federation.plan import FederationPlan
from lib.federation.processes import end_with

NAME = "kprism"
"""Name of the job."""


def recipe(plan: FederationPlan, sites: int, source: Path, target: Path) -> FedAvgRecipe:
    """FedAvg over so many sites, all of which must answer; weights from `source`, the aggregate to `target`."""
    return FedAvgRecipe(
        name=NAME,
        min_clients=sites,
        num_rounds=plan.rounds,
        train_script=str(Path(__file__).with_name("client.py")),
        train_args=plan.encoded(),
        framework=FrameworkType.NUMPY,
        server_expected_format=ExchangeFormat.NUMPY,
        model_persistor=SafetensorsPersistor(str(source), str(target), plan.encoded(), sites),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the simulation, or write the job for a running federation; returns the exit status."""
    parser = argparse.ArgumentParser(prog="lib.federation.job", description=__doc__)
    parser.add_argument("action", choices=["simulate", "export"])
    parser.add_argument("--plan", required=True)
    parser.add_argument("--sites", nargs="+", required=True)
    parser.add_argument("--source", type=Path, required=True)
    parser.add_argument("--target", type=Path, required=True)
    parser.add_argument("--folder", type=Path, required=True, help="FLARE's workspace, or the folder of the job")
    given = parser.parse_args(arguments)
    sys.argv = sys.argv[:1]  # FLARE reads it too
    Thread(target=end_with, args=(os.getppid(),), name="end with the command", daemon=True).start()
    made = recipe(FederationPlan.decoded(given.plan), len(given.sites), given.source, given.target)
    if given.action == "export":
        made.export(str(given.folder))
        return 0
    made.execute(
        SimEnv(
            clients=given.sites,
            num_threads=len(given.sites),  # one process a site for all rounds: its optimizer stays in memory
            workspace_root=str(given.folder),
            log_config="concise",
        )
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

# SPDX-License-Identifier: Apache-2.0
"""POST and DELETE /train/ in place of MONAI Label's own routes, which put trainings in a queue.

Here a second training is refused while one is running, and wrong options are refused before a process starts.
`run_sync` waits in a thread and does not block the server.
"""

from __future__ import annotations

import time
from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, HTTPException
from monailabel.config import settings
from monailabel.endpoints.user.auth import RBAC, User
from monailabel.interfaces.utils.app import app_instance

from lib.errors import NotFoundError
from lib.trainers import tasks

Admin = Annotated[User, Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_ADMIN))]
Params = Annotated[dict[str, Any] | None, Body()]


def add_routes(router: APIRouter) -> None:
    """Add the routes of this file."""
    add = router.add_api_route
    add("/train/", start_all, methods=["POST"], tags=["Train"], response_model=None)
    add("/train/{model}", start, methods=["POST"], tags=["Train"], response_model=None)
    add("/train/", stop, methods=["DELETE"], tags=["Train"], response_model=None)


def start_all(user: Admin, params: Params = None, run_sync: bool = False) -> dict[str, Any]:
    """Start the training of every trainer (the app has one); `params` holds options by name of the trainer."""
    results = {}
    for model in app_instance().learning_loop.trainers:
        task = _start(model, (params or {}).get(model) or {}, run_sync)
        results[model] = {"result": task, "detail": None if task else tasks.ALREADY_RUNNING}
    return results


def start(user: Admin, model: str, params: Params = None, run_sync: bool = False) -> dict[str, Any]:
    """Start a training; 429 while one is running, 400 for invalid options."""
    task = _start(model, params or {}, run_sync)
    if task is None:
        raise HTTPException(429, tasks.ALREADY_RUNNING)
    return task


def stop(user: Admin) -> dict[str, Any] | None:
    """Stop the running training."""
    return tasks.stop()


def _start(model: str, options: dict[str, Any], wait: bool) -> dict[str, Any] | None:
    trainers = app_instance().learning_loop.trainers
    if model not in trainers:
        raise NotFoundError(f"trainer {model!r} is unknown; expected one of {', '.join(trainers)}")
    trainers[model].check(options)
    task = tasks.start({**options, "model": model})
    while wait and task is not None and tasks.is_running():
        time.sleep(0.5)
    return task

# SPDX-License-Identifier: Apache-2.0
"""K-Prism as a MONAI Label app: `monailabel start_server --app apps/kprism --studies FOLDER`."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from threading import Thread
from typing import Any

ROOT = str(Path(__file__).resolve().parents[2])
if ROOT not in sys.path:
    sys.path.insert(0, ROOT)  # kprism_model lies beside apps and is not installed

import torch  # noqa: E402
from monailabel.config import settings  # noqa: E402
from monailabel.interfaces.app import MONAILabelApp  # noqa: E402
from monailabel.interfaces.datastore import Datastore, DefaultLabelTag  # noqa: E402
from monailabel.interfaces.tasks.infer_v2 import InferTask  # noqa: E402
from monailabel.interfaces.tasks.strategy import Strategy  # noqa: E402

from lib.configs.app_config import AppConfig, apply_monailabel_settings  # noqa: E402
from lib.datastore import GuardedDatastore, check_tag, image_path, known_names  # noqa: E402
from lib.engine import Engine, class_names  # noqa: E402
from lib.errors import NotFoundError, RequestError  # noqa: E402
from lib.infers.base import House, Source  # noqa: E402
from lib.infers.in_context import InContext  # noqa: E402
from lib.infers.interactive import Interactive  # noqa: E402
from lib.infers.scribbles import Scribbles  # noqa: E402
from lib.infers.semantic import Semantic  # noqa: E402
from lib.labels import BACKGROUND, LabelBook  # noqa: E402
from lib.memory import MaskMemory  # noqa: E402
from lib.options import as_bool  # noqa: E402
from lib.strategies import FirstCase, RandomCase  # noqa: E402

logger = logging.getLogger(__name__)

MASK_MEMORY = 256 << 20
"""Bytes for the last masks of labels, at one bit a voxel."""

apply_monailabel_settings()


class KPrismApp(MONAILabelApp):  # type: ignore[misc]
    """One K-Prism network behind four models: trained classes, reference cases, clicks, scribbles."""

    def __init__(self, app_dir: str, studies: str, conf: dict[str, str]) -> None:
        self.config = AppConfig.parse(conf, Path(app_dir))
        super().__init__(
            app_dir,
            studies,
            conf,
            name="K-Prism",
            description="One network for three kinds of knowledge: trained classes, labelled cases, clicks",
            version="0.1",
        )

    def init_datastore(self) -> Datastore:
        """A folder, or whatever MONAI Label makes of an address."""
        if self.studies.startswith(("http://", "https://")):
            return super().init_datastore()
        return GuardedDatastore(
            self.studies,
            extensions=settings.MONAI_LABEL_DATASTORE_FILE_EXT,
            auto_reload=settings.MONAI_LABEL_DATASTORE_AUTO_RELOAD,
            read_only=settings.MONAI_LABEL_DATASTORE_READ_ONLY,
        )

    def init_infers(self) -> dict[str, InferTask]:
        """All models on one engine; the weights are loaded by the first request."""
        classes = class_names(self.config.model_path)
        self.engine = Engine(self.config.model_path, self.config.device, self.config.cache_mb << 20)
        self.book = LabelBook([*classes, *self.config.labels])
        house = House(self.engine, self.book, MaskMemory(MASK_MEMORY), self._datastore)
        self._learn_names()
        tasks = [Semantic(house, classes), InContext(house), Interactive(house), Scribbles(house)]
        return {task.name: task for task in tasks}

    def init_strategies(self) -> dict[str, Strategy]:
        """How the next case is chosen."""
        return {"random": RandomCase(), "first": FirstCase()}

    def info(self) -> dict[str, Any]:
        """MONAI Label's description, with the names in submitted labels; background comes last.

        Slicer can send negative clicks only if background is one of the app's labels, and counts labels wrongly if it
        is not the last.
        """
        self._learn_names()
        meta: dict[str, Any] = super().info()
        meta["labels"] = [*meta["labels"], BACKGROUND]
        return meta

    def infer(self, request: Mapping[str, Any], datastore: Datastore | None = None) -> dict[str, Any]:
        """Answer a request: `image` is the id of an image of the datastore, or a `Source` made by the HTTP route."""
        task = self._infers.get(request.get("model"))
        if task is None:
            raise NotFoundError(f"model {request.get('model')!r} is unknown; expected one of {', '.join(self._infers)}")
        datastore = datastore or self.datastore()
        image = request.get("image")
        source = image if isinstance(image, Source) else Source(image_path(datastore, image), f"image {image!r}", image)
        tag = check_tag(request.get("label_tag", DefaultLabelTag.ORIGINAL.value))
        save = as_bool("save_label", request.get("save_label", False))
        if save and source.image_id is None:
            raise RequestError(f"save_label needs an image of the datastore; {source.name} is none")
        path, result = task({**request, "image": source})
        label = path
        if save:
            label = datastore.save_label(source.image_id, path, tag, {"model": request["model"], "params": result})
        return {"label": label, "tag": tag, "file": path, "params": result}

    def infer_wsi(self, request: Mapping[str, Any], datastore: Datastore | None = None) -> dict[str, Any]:
        """Whole-slide images are not served; MONAI Label's own method would open any file of the server."""
        raise RequestError(f"whole-slide inference is not supported (image {request.get('image')!r}); use /infer")

    def batch_infer(self, request: dict[str, Any], datastore: Datastore | None = None) -> Any:
        """Answer for many images; an image that cannot be segmented gets a sentence and does not end the batch.

        MONAI Label asks for several GPUs unless told otherwise and fails where there is none.
        """
        if not torch.cuda.is_available():
            request = {**request, "multi_gpu": False, "device": "cpu"}

        def infer_or_explain(request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any]:
            try:
                return self.infer(request, datastore)
            except RequestError as error:
                logger.warning("No answer for image %r: %s", request.get("image"), error)
                return {"error": str(error)}

        return self._batch_infer(request, datastore or self.datastore(), infer_or_explain)

    def on_init_complete(self) -> None:
        """In the server, but not in the processes it starts: take over the inference route and warm up the network."""
        server = sys.modules.get("monailabel.app")
        if server is not None:
            from lib import http  # imports MONAI Label's endpoints, which only the server has

            http.install(server.app)
            Thread(target=self.engine.warm_up, name="warm-up", daemon=True).start()
        super().on_init_complete()

    def _learn_names(self) -> None:
        try:
            self.book.add(known_names(self._datastore))
        except RequestError as error:
            logger.warning("Names of labels are not known: %s", error)

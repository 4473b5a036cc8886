# SPDX-License-Identifier: Apache-2.0
"""K-Prism as a MONAI Label app: `monailabel start_server --app apps/kprism --studies FOLDER`."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from pathlib import Path
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
from monailabel.interfaces.tasks.train import TrainTask  # noqa: E402

from lib.configs.app_config import AppConfig, apply_monailabel_settings  # noqa: E402
from lib.datastore import GuardedDatastore, check_tag, image_path, known_names  # noqa: E402
from lib.dicom.datastore import DicomStore, open_dicom_store  # noqa: E402
from lib.dicom.store_watcher import StoreWatcher  # noqa: E402
from lib.errors import NotFoundError, RequestError  # noqa: E402
from lib.imaging.label_registry import BACKGROUND  # noqa: E402
from lib.infers.earlier_references import EarlierReferences  # noqa: E402
from lib.infers.in_context import InContext  # noqa: E402
from lib.infers.interactive import Interactive  # noqa: E402
from lib.infers.scribbles import Scribbles  # noqa: E402
from lib.infers.semantic import Semantic  # noqa: E402
from lib.infers.task import AppContext, Source  # noqa: E402
from lib.learning.strategies import make_strategies  # noqa: E402
from lib.learning_loop import LearningLoop  # noqa: E402
from lib.options import as_bool  # noqa: E402

logger = logging.getLogger(__name__)

apply_monailabel_settings()


class KPrismApp(MONAILabelApp):  # type: ignore[misc]
    """One K-Prism network behind four models: trained classes, reference cases, clicks, scribbles."""

    def __init__(self, app_dir: str, studies: str, conf: dict[str, str]) -> None:
        self.config = AppConfig.parse(conf, Path(app_dir), studies)
        super().__init__(
            app_dir,
            studies,
            conf,
            name="K-Prism",
            description="One network for three kinds of knowledge: trained classes, labelled cases, clicks",
            version="0.1",
        )

    def init_datastore(self) -> Datastore:
        """A folder, or the DICOMweb store of an address."""
        if self.studies.startswith(("http://", "https://")):
            return open_dicom_store(self.studies)
        return GuardedDatastore(
            self.studies,
            extensions=settings.MONAI_LABEL_DATASTORE_FILE_EXT,
            auto_reload=settings.MONAI_LABEL_DATASTORE_AUTO_RELOAD,
            read_only=settings.MONAI_LABEL_DATASTORE_READ_ONLY,
        )

    def init_infers(self) -> dict[str, InferTask]:
        """All models on one engine, whose weights are loaded here: what is wrong with them ends the start."""
        self.learning_loop = LearningLoop(self.config, self._datastore)
        self.engine, self.label_registry, self.versions = (
            self.learning_loop.engine,
            self.learning_loop.label_registry,
            self.learning_loop.versions,
        )
        house = AppContext(self.engine, self.label_registry, self._datastore)
        self._learn_names()
        in_context = InContext(house, self.learning_loop.submitted_references)
        earlier = EarlierReferences(self.learning_loop.earlier_structures, in_context)
        tasks = [Semantic(house, earlier), in_context, Interactive(house, earlier), Scribbles(house)]
        return {task.name: task for task in tasks}

    def init_trainers(self) -> dict[str, TrainTask]:
        """Fine-tuning on the submitted labels."""
        return dict(self.learning_loop.trainers)

    def init_strategies(self) -> dict[str, Strategy]:
        """How the next case is chosen."""
        return make_strategies(self.learning_loop.score_board, self.config.best_strategy)

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
        with self.learning_loop.traffic.request():
            path, result = task({**request, "image": source})
        if source.image_id is not None:
            self.learning_loop.submissions.note_initial_mask(source.image_id, result["weights_version"])
        label = path
        if save:
            try:
                label = datastore.save_label(source.image_id, path, tag, {"model": request["model"], "params": result})
            except BaseException:
                Path(path).unlink()
                raise
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
            except Exception as error:  # whatever is wrong with one image, the others are answered
                logger.exception("No answer for image %r", request.get("image"))
                return {"error": f"the server failed ({type(error).__name__}: {error})"}

        return self._batch_infer(request, datastore or self.datastore(), infer_or_explain)

    def on_init_complete(self) -> None:
        """In the server, but not in the processes it starts: take over the inference route and warm up the network."""
        server = sys.modules.get("monailabel.app")
        if server is not None:
            from lib.api.app import install  # imports MONAI Label's endpoints, which only the server has
            from lib.api.ohif import routes

            install(server.app, self.config.cache_mb << 20)
            routes.install(server.app)
            self.learning_loop.start()
            self._watch_store()
        super().on_init_complete()

    def _watch_store(self) -> None:
        """Notice labels that are removed, or reach a DICOMweb store by another way than this server."""
        datastore = self.datastore()
        if isinstance(datastore, GuardedDatastore | DicomStore):
            datastore.on_removed = self.learning_loop.withdraw
        if isinstance(datastore, DicomStore):
            datastore.on_label = self.on_save_label
            StoreWatcher(datastore).start()

    def on_save_label(self, image_id: str, label_id: str) -> None:
        """A label has reached the datastore by another way than a submission over HTTP."""
        self.learning_loop.adopt(image_id)

    def _learn_names(self) -> None:
        try:
            self.label_registry.add(known_names(self._datastore))
        except RequestError as error:
            logger.warning("Names of labels are not known: %s", error)

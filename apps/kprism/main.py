# SPDX-License-Identifier: Apache-2.0
"""K-Prism as a MONAI Label app: `monailabel start_server --app apps/kprism --studies FOLDER`."""

from __future__ import annotations

import gc
import logging
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
if (ROOT / "kprism_model").is_dir() and str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))  # a checkout: kprism_model lies beside apps; else it is installed

import torch  # noqa: E402
from monailabel.interfaces.app import MONAILabelApp  # noqa: E402
from monailabel.interfaces.datastore import Datastore, DefaultLabelTag  # noqa: E402
from monailabel.interfaces.tasks.infer_v2 import InferTask  # noqa: E402
from monailabel.interfaces.tasks.strategy import Strategy  # noqa: E402
from monailabel.interfaces.tasks.train import TrainTask  # noqa: E402

from lib.configs.app_config import AppConfig, apply_monailabel_settings  # noqa: E402
from lib.datastore import GuardedDatastore, check_tag  # noqa: E402
from lib.dicom.access import StoreAccess  # noqa: E402
from lib.dicom.dicom_folder_store import DicomFolderStore  # noqa: E402
from lib.dicom.mixed_store import dicom_part  # noqa: E402
from lib.dicom.open_store import check_folder, open_dicom_store, open_folder  # noqa: E402
from lib.dicom.store_watcher import StoreWatcher  # noqa: E402
from lib.errors import NotFoundError, RequestError  # noqa: E402
from lib.folder_store import FolderStore  # noqa: E402
from lib.image_files import opened_path  # noqa: E402
from lib.imaging.label_registry import BACKGROUND  # noqa: E402
from lib.infers.app_context import AppContext  # noqa: E402
from lib.infers.earlier_references import EarlierReferences  # noqa: E402
from lib.infers.in_context import InContext  # noqa: E402
from lib.infers.interactive import Interactive  # noqa: E402
from lib.infers.reference_selection import ReferenceSelector  # noqa: E402
from lib.infers.request import Source  # noqa: E402
from lib.infers.result import Answer  # noqa: E402
from lib.infers.scribbles import Scribbles  # noqa: E402
from lib.infers.semantic import Semantic  # noqa: E402
from lib.infers.task import KPrismTask  # noqa: E402
from lib.labelled_cases import known_names  # noqa: E402
from lib.learning.strategies import make_strategies  # noqa: E402
from lib.learning_loop import LearningLoop  # noqa: E402
from lib.options import as_bool  # noqa: E402

logger = logging.getLogger(__name__)

apply_monailabel_settings()


class KPrismApp(MONAILabelApp):  # type: ignore[misc]
    """Four models on one K-Prism network: trained classes, references, clicks, scribbles."""

    def __init__(self, app_dir: str, studies: str, conf: dict[str, str]) -> None:
        try:
            self.config = AppConfig.parse(conf, Path(app_dir), studies)
            StoreAccess.parse(conf)
            check_folder(Path(studies))
        except ValueError as error:  # whoever starts the server reads the sentence, not where in the code it was made
            if "monailabel.app" in sys.modules:
                sys.tracebacklimit = 0
            raise ValueError(str(error)) from None
        super().__init__(
            app_dir,
            studies,
            conf,
            name="K-Prism",
            description="One network for three kinds of knowledge: trained classes, labelled cases, clicks",
            version="0.1",
        )

    def init_datastore(self) -> Datastore:
        """A folder of DICOM series or other images, or a DICOMweb store if the studies are an address."""
        if self.studies.startswith(("http://", "https://")):
            volume_bytes, access = self.config.image_mb << 20, StoreAccess.parse(self.conf)
            store = open_dicom_store(self.studies, volume_bytes, access, self.config.worklist)
        else:
            folder, state = Path(self.studies), self.config.state
            store = open_folder(folder, state, self.config.image_mb << 20, self.config.worklist)
        series = dicom_part(store)
        if series is not None:
            series.seg_type = self.config.seg_type
        return store

    def init_infers(self) -> dict[str, InferTask]:
        """All models on one engine. Its weights are loaded here; if they are damaged, the app does not start."""
        self.learning_loop = loop = LearningLoop(self.config, self._datastore)
        self.engine, self.label_registry, self.versions = loop.engine, loop.label_registry, loop.versions
        series = dicom_part(self._datastore)
        if series is not None:
            self.engine.opener = series.local_volume
        if isinstance(self._datastore, FolderStore):
            self._datastore.checks.read, self.engine.refused = self.engine.image, self._datastore.refuse
        context = AppContext(self.engine, self.label_registry, self._datastore, loop.submissions.notes)
        self._add_label_names()
        selector = ReferenceSelector(context, loop.submitted_references)
        earlier = EarlierReferences(loop.earlier_structures, selector)
        tasks = [
            Semantic(context, earlier),
            InContext(context, selector),
            Interactive(context, earlier),
            Scribbles(context),
        ]
        return {task.name: task for task in tasks}

    def init_trainers(self) -> dict[str, TrainTask]:
        """Fine-tuning on the submitted labels."""
        return dict(self.learning_loop.trainers)

    def init_strategies(self) -> dict[str, Strategy]:
        """The ways to choose the next case."""
        return make_strategies(self.config.strategy)

    def info(self) -> dict[str, Any]:
        """MONAI Label's description, with the names in submitted labels and background as the last.

        Slicer sends negative clicks only if background is one of the app's labels, and it counts labels wrongly if
        background is not the last of them.
        """
        self._add_label_names()
        self.label_registry.add(self.engine.networks().semantic_classes.names)
        meta: dict[str, Any] = super().info()
        meta["labels"] = [*meta["labels"], BACKGROUND]
        return meta

    def infer(self, request: Mapping[str, Any], datastore: Datastore | None = None) -> dict[str, Any]:
        """Answer a request: `image` is the id of an image of the datastore, or a `Source` made by the HTTP route."""
        datastore = datastore or self.datastore()
        task, source = self._task_and_source(request, datastore)
        tag = check_tag(request.get("label_tag", DefaultLabelTag.ORIGINAL.value))
        save = as_bool("save_label", request.get("save_label", False))
        if save and source.image_id is None:
            raise RequestError(f"save_label needs an image of the datastore, but {source.name} is not in it")
        path, result = task({**request, "image": source})
        label = path
        if save:
            try:
                label = datastore.save_label(source.image_id, path, tag, {"model": request["model"], "params": result})
            except BaseException:
                Path(path).unlink()
                raise
        return {"label": label, "tag": tag, "file": path, "params": result}

    def answered(self, request: Mapping[str, Any]) -> Answer:
        """Answer a request as `infer` does, without a file."""
        task, source = self._task_and_source(request, self.datastore())
        return task.answered({**request, "image": source})

    def _task_and_source(self, request: Mapping[str, Any], datastore: Datastore) -> tuple[KPrismTask, Source]:
        """The model of a request and its image, which must be one of the datastore if it is named by its id."""
        task: KPrismTask | None = self._infers.get(request.get("model"))
        if task is None:
            raise NotFoundError(f"model {request.get('model')!r} is unknown; expected one of {', '.join(self._infers)}")
        image = request.get("image")
        if isinstance(image, Source):
            return task, image
        return task, Source(opened_path(datastore, image, begin=True), f"image {image!r}", image)

    def infer_wsi(self, request: Mapping[str, Any], datastore: Datastore | None = None) -> dict[str, Any]:
        """Whole-slide images are not supported; MONAI Label's own method would open any file of the server."""
        raise RequestError(f"whole-slide inference is not supported (image {request.get('image')!r}); use /infer")

    def batch_infer(self, request: dict[str, Any], datastore: Datastore | None = None) -> Any:
        """Segment many images. An image that cannot be segmented gets an error message; the batch goes on.

        By default MONAI Label uses several GPUs, and fails on a machine without any.
        """
        if not torch.cuda.is_available():
            request = {**request, "multi_gpu": False, "device": "cpu"}

        if isinstance(self._datastore, FolderStore):
            self._datastore.check_all()

        def infer_or_explain(request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any]:
            try:
                return self.infer(request, datastore)
            except RequestError as error:
                logger.warning("No answer for image %r: %s", request.get("image"), error)
                return {"error": str(error)}
            except Exception as error:  # one image must not end the batch
                logger.exception("No answer for image %r", request.get("image"))
                return {"error": f"the server failed ({type(error).__name__}: {error})"}

        return self._batch_infer(request, datastore or self.datastore(), infer_or_explain)

    def on_init_complete(self) -> None:
        """In the server, but not in the processes that it starts: add the routes and start the learning loop."""
        server = sys.modules.get("monailabel.app")
        if server is not None:
            from lib.api.app import install  # imports MONAI Label's endpoints, which only the server has
            from lib.api.ohif import routes

            install(
                server.app,
                self.config.request_bytes,
                root_path=self.config.root_path,
                allow_origin=self.config.allow_origin,
                worklist=self.config.worklist is not None,
            )
            routes.install(server.app)
            self.learning_loop.start()
            self._watch_store()
            gc.freeze()  # the libraries and the index stay: looking through them again takes a third of a second
        super().on_init_complete()

    def _watch_store(self) -> None:
        """Notice labels that are removed, and those that others put into a folder or store as DICOM segmentations."""
        datastore = self.datastore()
        if isinstance(datastore, GuardedDatastore):
            datastore.on_removed = self.learning_loop.withdraw
            datastore.on_names = self.learning_loop.names_changed
        if isinstance(datastore, FolderStore):
            datastore.on_label = self.on_save_label
        series = dicom_part(datastore)
        if series is not None:
            series.on_removed = self.learning_loop.withdraw
            series.on_label = self.on_save_label
            StoreWatcher(series).start()
        if isinstance(series, DicomFolderStore):
            # After `learning_loop.start`, so it is called before what that has registered waits for the labels.
            threading._register_atexit(series.files.end)  # type: ignore[attr-defined]

    def on_save_label(self, image_id: str, label_id: str) -> None:
        """MONAI Label's hook for a label that was stored in the datastore, but not submitted over HTTP."""
        self.learning_loop.adopt(image_id)

    def _add_label_names(self) -> None:
        try:
            self.label_registry.add(known_names(self._datastore))
        except RequestError as error:
            logger.warning("The names of the labels cannot be read: %s", error)

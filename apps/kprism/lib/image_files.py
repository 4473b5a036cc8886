# SPDX-License-Identifier: Apache-2.0
"""The files of the images of a datastore, by their ids."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from monailabel.interfaces.datastore import Datastore

from lib.datastore import GuardedDatastore
from lib.errors import NotFoundError, RequestError
from lib.image_ids import check_id
from lib.imaging.medical_image import MedicalImage


def image_path(datastore: Datastore, image_id: Any) -> Path:
    """The file of an image of the datastore; NotFoundError for anything else, including other files of the server."""
    return _image_path(datastore.get_image_uri, image_id)


def opened_path(datastore: Datastore, image_id: Any, *, begin: bool = False) -> Path:
    """As `image_path`, for `Engine.image`: the file of a DICOM series may still arrive, with `begin` all of it."""
    is_guarded = isinstance(datastore, GuardedDatastore)
    opened = partial(datastore.opened_image, begin=begin) if is_guarded else datastore.get_image_uri
    return _image_path(opened, image_id)


def state_path(datastore: Datastore, image_id: Any) -> Path:
    """A file that changes whenever the image does; that of a DICOM series needs none of its voxels."""
    return _image_path(
        datastore.state_file if isinstance(datastore, GuardedDatastore) else datastore.get_image_uri, image_id
    )


def grid_image(
    datastore: Datastore, image_id: Any, name: str, read: Callable[[Path, str], MedicalImage]
) -> MedicalImage:
    """An image for what needs its grid alone: its voxels may be missing; with a `read` of its file if need be."""
    known = datastore.grid_image(check_id(image_id), name) if isinstance(datastore, GuardedDatastore) else None
    return known or read(image_path(datastore, image_id), name)


def _image_path(find: Callable[[str], str], image_id: Any) -> Path:
    check_id(image_id)
    try:
        uri = find(image_id)
    except RequestError:  # it has a message already, such as a store that is down
        raise
    except Exception as error:  # remote stores raise whatever their client raises
        raise NotFoundError(f"image {image_id!r} cannot be read from this datastore: {error}") from error
    if not uri:
        raise NotFoundError(f"image {image_id!r} is not in this datastore")
    return Path(uri)

# SPDX-License-Identifier: Apache-2.0
"""Errors that a client gets: exceptions with an HTTP status and a message for the user."""

from __future__ import annotations


class RequestError(ValueError):
    """A request that cannot be answered; the message names the wrong value and what was expected."""

    status = 400

    @property
    def is_passing(self) -> bool:
        """Whether the same request may succeed later: something was down, full, or changed just now."""
        return self.status >= 500 or self.status == 409


class NotFoundError(RequestError):
    """The request names an image, model, session or label that does not exist."""

    status = 404


class ForbiddenError(RequestError):
    """The request asks for something that the server never does over HTTP."""

    status = 403


class TooLargeError(RequestError):
    """The request or its image is larger than the server's memory budget."""

    status = 413


class OutOfMemoryError(RequestError):
    """The request is valid, but this machine has too little memory for it."""

    status = 503


class StorageError(RequestError):
    """The server cannot write to its disk; nothing has changed."""

    status = 507


class StudiesAwayError(RequestError):
    """The folder of studies is not there, such as a share that is not mounted for a moment; nothing has changed."""

    status = 503


RETRY_SECONDS = 30.0
"""Seconds after which work in the background that met a passing error is tried again."""


def is_passing(error: BaseException) -> bool:
    """Whether the same work may succeed later; an error of the disk may pass too."""
    return error.is_passing if isinstance(error, RequestError) else isinstance(error, OSError)

# SPDX-License-Identifier: Apache-2.0
"""Errors that a client gets: exceptions with an HTTP status and a message for the user."""

from __future__ import annotations


class RequestError(ValueError):
    """A request that cannot be answered; the message names the wrong value and what was expected."""

    status = 400


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

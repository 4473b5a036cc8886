# SPDX-License-Identifier: Apache-2.0
"""What a client did wrong, as an exception that carries its HTTP status."""

from __future__ import annotations


class RequestError(ValueError):
    """A request that cannot be answered; the message is a sentence for the user and names the offending value."""

    status = 400


class NotFoundError(RequestError):
    """The request names an image, model, session or label that does not exist."""

    status = 404


class ForbiddenError(RequestError):
    """What the request asks for is never done over HTTP."""

    status = 403


class TooLargeError(RequestError):
    """The request, or the image that it is about, is larger than the server's memory budget."""

    status = 413


class OutOfMemoryError(RequestError):
    """The request is sound, but this machine has too little memory for it."""

    status = 503

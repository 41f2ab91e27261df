"""Answers that are errors, in OpenAI's form."""

from __future__ import annotations

_SHOWN = 64


class ApiError(Exception):
    """An answer that is not an image. retry_after: seconds, 0 for no such header."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str,
        param: str | None = None,
        kind: str = "invalid_request_error",
        retry_after: int = 0,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}


def bad(message: str, param: str | None = None, code: str = "invalid_value") -> ApiError:
    """A request that is wrong."""
    return ApiError(400, message, code=code, param=param)


def shown(text: str) -> str:
    """As much of a caller's text as a message repeats."""
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."

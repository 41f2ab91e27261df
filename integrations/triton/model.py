"""The model that Triton's Python backend runs: one bundle an instance, Triton's own batches.

Imported by ``model.py`` of a repository, inside the server: ``triton_python_backend_utils`` is there only.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import triton_python_backend_utils as pb

from foundation.errors import ArcFlowError
from integrations.batching import Job, Made, Wanted, work
from integrations.triton.repository import BUNDLE
from runtime.errors import RequestError
from runtime.pipeline import Pipeline
from runtime.request import check_request

if TYPE_CHECKING:
    from engines.schema import Manifest
    from runtime.result import Pixels, Preview

_MAX_PARTIALS = 8
_EXACT = 53
_NO_PARTIAL = -1


class TritonPythonModel:
    """What the Python backend calls."""

    def initialize(self, arguments: dict[str, str]) -> None:
        """Load the bundle that the model's parameters name, and generate once at its usual size."""
        config = json.loads(arguments["model_config"])
        parameters = {key: value["string_value"] for key, value in config["parameters"].items()}
        self._decoupled = bool(config.get("model_transaction_policy", {}).get("decoupled"))
        beside = Path(arguments["model_repository"]) / arguments["model_version"] / BUNDLE
        threads = parameters.get("threads")
        gpu = arguments["model_instance_kind"].endswith("GPU")
        host = parameters["host"]
        if host == "auto":
            host = "python" if gpu or find_spec("arcflow_native") is None else "native"
        self._pipeline = Pipeline.open(
            Path(parameters.get("bundle", beside)),
            threads=None if threads is None else int(threads),
            host="native" if host == "native" else "python",
            device=f"cuda:{arguments['model_instance_device_id']}" if gpu else None,
        )
        self._pipeline.generate("warm up")
        pb.Logger.log_info(f"arcflow: {parameters.get('bundle', beside)}, host {host}, {self._pipeline.backend}")

    def execute(self, requests: Sequence[Any]) -> list[Any] | None:
        """Generate for the requests that Triton hands over together, and answer each.

        Rows of all of them go through the networks together where they agree in size, evaluations and partial images.
        """
        answers = [_Answer(request, self._decoupled, self._pipeline.manifest) for request in requests]
        work(self._pipeline, [job for answer in answers for job in answer.jobs])
        if self._decoupled:
            for answer in answers:
                answer.finish()
            return None
        return [answer.response() for answer in answers]

    def finalize(self) -> None:
        """Give everything back."""
        self._pipeline.close()


class _Answer:
    """One request of Triton's, a row an image, and what goes back."""

    def __init__(self, request: Any, decoupled: bool, manifest: Manifest) -> None:
        self._request = request
        self._outputs = set(request.requested_output_names())
        self._sender = request.get_response_sender() if decoupled else None
        self._rows: dict[int, list[Any]] = {}
        self._error: ArcFlowError | None = None
        self._finished = False
        self.jobs: list[Job] = []
        try:
            wanted = _read(request, manifest)
            if self._sender is None and (len({one.shape for one in wanted}) > 1 or any(one.previews for one in wanted)):
                raise RequestError(
                    "PARTIAL_IMAGES and rows of several sizes need streamed responses: make the repository with "
                    "--responses decoupled"
                )
        except RequestError as error:
            self._fail(error)
            return
        self.jobs = [
            Job(one, partial(self._done, row), self._gone, partial(self._partial, row))
            for row, one in enumerate(wanted)
        ]

    def response(self) -> Any:
        """The one response of a model that is not decoupled: its rows stacked."""
        if self._error is not None:
            return pb.InferenceResponse(error=_triton_error(self._error))
        if len(self._rows) < len(self.jobs):
            return pb.InferenceResponse(error=pb.TritonError("the caller went away", pb.TritonError.CANCELLED))
        rows = [self._rows[row] for row in sorted(self._rows)]
        tensors = [pb.Tensor(name, np.concatenate([dict(row)[name] for row in rows])) for name, _ in rows[0]]
        return pb.InferenceResponse(tensors)

    def finish(self) -> None:
        """Streamed responses end here, also for a caller who went away: Triton keeps the request until then."""
        if self._sender is not None and not self._finished:
            self._finished = True
            self._sender.send(flags=pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def _gone(self) -> bool:
        return self._error is not None or bool(
            self._request.is_cancelled() if self._sender is None else self._sender.is_cancelled()
        )

    def _done(self, row: int, made: Made | ArcFlowError) -> None:
        if isinstance(made, ArcFlowError):
            self._fail(made)
            return
        self._rows[row] = tensors = self._tensors(row, made.images[0], made.settings[0]["seed"], _NO_PARTIAL, 0.0, made)
        self._send(tensors)
        if len(self._rows) == len(self.jobs):
            self.finish()

    def _partial(self, row: int, _: int, preview: Preview) -> None:
        index, wanted = self.jobs[row].told - 1, self.jobs[row].wanted
        self._send(self._tensors(row, preview.image, wanted.seeds[0], index, preview.sigma, None))

    def _tensors(
        self, row: int, image: Pixels, seed: int, index: int, sigma: float, made: Made | None
    ) -> list[tuple[str, Any]]:
        """What was asked for, with the batch's dimension of 1. Partial images have no PNG: its text is empty."""
        values: dict[str, Any] = {
            "IMAGE": lambda: image[None],
            "PNG": lambda: np.array([[b"" if made is None else made.png(0)]], dtype=np.object_),
            "IMAGE_SEED": lambda: np.array([[seed]], dtype=np.uint64),
            "ROW": lambda: np.array([[row]], dtype=np.int32),
            "PARTIAL_INDEX": lambda: np.array([[index]], dtype=np.int32),
            "SIGMA": lambda: np.array([[sigma]], dtype=np.float32),
        }
        return [(name, value()) for name, value in values.items() if name in self._outputs]

    def _send(self, tensors: list[tuple[str, Any]]) -> None:
        if self._sender is not None:
            response = pb.InferenceResponse([pb.Tensor(name, value) for name, value in tensors])
            self._sender.send(response)

    def _fail(self, error: ArcFlowError) -> None:
        """The request ends here; rows that are still to come are not waited for."""
        if self._error is None:
            self._error = error
            if self._sender is not None:
                self._sender.send(pb.InferenceResponse(error=_triton_error(error)))
                self.finish()


def _triton_error(error: ArcFlowError) -> Any:
    kind = pb.TritonError.INVALID_ARG if isinstance(error, RequestError) else pb.TritonError.INTERNAL
    return pb.TritonError(str(error), kind)


def _read(request: Any, manifest: Manifest) -> list[Wanted]:
    """What each row asks for. Raises RequestError."""

    def column(name: str) -> list[Any] | None:
        tensor = pb.get_input_tensor_by_name(request, name)
        return None if tensor is None else tensor.as_numpy().reshape(-1).tolist()

    prompts = [_text(raw) for raw in column("PROMPT") or []]
    seeds, widths, heights = column("SEED"), column("WIDTH"), column("HEIGHT")
    evaluations, partials = column("NFE"), column("PARTIAL_IMAGES")
    wanted = []
    for row, prompt in enumerate(prompts):
        checked = check_request(
            manifest,
            prompt,
            seed=secrets.randbits(_EXACT) if seeds is None else seeds[row],
            width=None if widths is None else widths[row],
            height=None if heights is None else heights[row],
            nfe=None if evaluations is None else evaluations[row],
            previews=0 if partials is None else partials[row],
        )
        if checked.previews > _MAX_PARTIALS:
            raise RequestError(f"PARTIAL_IMAGES is {checked.previews}; it must be from 0 to {_MAX_PARTIALS}")
        wanted.append(Wanted(prompt, checked.seeds, checked.width, checked.height, checked.nfe, checked.previews))
    return wanted


def _text(raw: bytes | str) -> str:
    """Bytes that are not UTF-8 become surrogates, which the check of prompts rejects."""
    return raw if isinstance(raw, str) else raw.decode("utf-8", "surrogateescape")

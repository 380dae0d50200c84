"""The model repository extension of inference.GRPCInferenceService: what lies there, load it, unload it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from attnserve.contract import Call
from attnserve.control import ModelControl
from attnserve.errors import AttnserveError, Overloaded, Unavailable, Unimplemented
from attnserve.guard import guarded
from attnserve.handlers.open_inference import SERVICE
from attnserve.handlers.table import Method
from attnserve.inference import grpc_service_pb2 as pb
from attnserve.lifecycle import READY

log = logging.getLogger(__name__)

_MOST_READERS = 16  # calls that wait for the one thread that reads the folder
_RETRY_S = 0.1


class ModelRepositoryHandlers:
    """What tritonclient's get_model_repository_index, load_model and unload_model expect."""

    def __init__(self, control: ModelControl) -> None:
        self._control = control
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="repository-index")
        self._room = threading.BoundedSemaphore(_MOST_READERS)

    def methods(self) -> list[Method]:
        """The extension's rows of the table."""
        return [
            Method(SERVICE, "RepositoryIndex", pb.RepositoryIndexRequest, self.index),
            Method(SERVICE, "RepositoryModelLoad", pb.RepositoryModelLoadRequest, self.load, names="model_name"),
            Method(SERVICE, "RepositoryModelUnload", pb.RepositoryModelUnloadRequest, self.unload, names="model_name"),
        ]

    def index(self, request: pb.RepositoryIndexRequest, call: Call) -> None:
        """Every model on disk that the caller may use, and how its versions stand; with `ready` those that answer."""
        _refuse_repository_name(request.repository_name)
        if not self._room.acquire(blocking=False):
            raise Overloaded("too many calls wait for the index", retry_after_s=_RETRY_S)
        self._reader.submit(self._read_index, request, call)

    def _read_index(self, request: pb.RepositoryIndexRequest, call: Call) -> None:
        """On the reader's thread."""
        answer: Callable[[], None]
        try:
            entries = [e for e in self._control.index() if e.state == READY or not request.ready]
            entries = [e for e in entries if call.grant.sees(e.name)]
            entry = pb.RepositoryIndexResponse.ModelIndex
            reply = pb.RepositoryIndexResponse(
                models=[entry(name=e.name, version=e.version, state=e.state, reason=e.reason) for e in entries]
            )
            answer = partial(call.reply, reply)
        except Exception:  # the executor would keep it to itself, and the call would never end
            log.exception("reading the model repository failed")
            answer = partial(call.fail, Unavailable("the model repository cannot be read"))
        call.inbox.post([partial(self._answer_index, call, answer)])

    def _answer_index(self, call: Call, answer: Callable[[], None]) -> None:
        self._room.release()
        guarded(call, answer)

    def load(self, request: pb.RepositoryModelLoadRequest, call: Call) -> None:
        """Answer when the model is loaded, or with why it is not."""
        _refuse_repository_name(request.repository_name)
        if request.parameters:
            raise Unimplemented("parameters: a model's config and files are those of the repository")
        self._control.load(request.model_name, partial(_answer, call, pb.RepositoryModelLoadResponse()))

    def unload(self, request: pb.RepositoryModelUnloadRequest, call: Call) -> None:
        """Answer when no new request reaches the model; those that it has are finished.

        `unload_dependents`, the one parameter of Triton's clients, changes nothing: there are no ensembles.
        """
        _refuse_repository_name(request.repository_name)
        self._control.unload(request.model_name, partial(_answer, call, pb.RepositoryModelUnloadResponse()))


def _answer(call: Call, message: object, error: AttnserveError | None) -> None:
    """Answer a call from any thread."""
    answer = partial(call.reply, message) if error is None else partial(call.fail, error)
    call.inbox.post([partial(guarded, call, answer)])


def _refuse_repository_name(name: str) -> None:
    if name:
        raise Unimplemented("repository_name: there is one repository, and it has no name")

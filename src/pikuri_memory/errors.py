"""The one error tree.

Every error says what failed, with which values, and carries a ``hint``: the next thing to type.

::

    PikuriMemoryError                      code                     HTTP  exit
    ├── InvalidRequestError (ValueError)   invalid_request           422     2
    │   ├── ScopeRequiredError             scope_required            400     2
    │   ├── FilterError                    invalid_filter            422     2
    │   ├── TooLargeError                  too_large                 413     2
    │   ├── IdempotencyConflictError       idempotency_conflict      422     2
    │   ├── DuplicateTextError             duplicate_text            409     2
    │   ├── ReembeddingUnderWayError       reembedding_under_way     409     2
    │   ├── ExtractionUnavailableError     extraction_unavailable    422     2
    │   ├── UnsupportedMediaTypeError      unsupported_media_type    415     2
    │   ├── MethodNotAllowedError          method_not_allowed        405     2
    │   └── SlowBodyError                  slow_body                 408     2
    ├── SettingError (ValueError)          invalid_setting           500     2
    ├── MemoryNotFoundError (LookupError)  not_found                 404     3
    ├── AccessError (PermissionError)      forbidden                 403     4
    │   └── AuthenticationError            unauthenticated           401     4
    ├── StorageError (RuntimeError)        storage                   500     5
    │   ├── DiskFullError                  disk_full                 507     5
    │   ├── DamagedRecordError             damaged_record            500     5
    │   ├── NewerSchemaError               newer_schema              500     5
    │   ├── EmbedderMismatchError          embedder_mismatch         500     5
    │   ├── DataDirectoryInUseError        data_directory_in_use     500     5
    │   └── UnsupportedFileSystemError     unsupported_file_system   500     5
    ├── ServerError (RuntimeError)         server                    500     6
    │   ├── ServerUnavailableError         unavailable               503     6
    │   ├── ServerNotRunningError          not_running               503     6
    │   ├── ServerStartError               start_failed              500     6
    │   ├── PortInUseError                 port_in_use               500     6
    │   ├── LeasesHeldError                leases_held               409     6
    │   ├── WaitTimeoutError (TimeoutError) timeout                  504     6
    │   └── UnexpectedReplyError           unexpected_reply          502     6
    ├── ProcessError (RuntimeError)        process                   500     7
    │   ├── CommandNotFoundError           command_not_found         500     7
    │   ├── CommandFailedError             command_failed            500     7
    │   └── CommandTimeoutError            command_timeout           500     7
    ├── DamagedInstallationError           damaged_installation      500     8
    │   │   (RuntimeError)
    │   └── MissingExtraError              missing_extra             500     8
    ├── ModelError (RuntimeError)          model                     502     9
    │   ├── RouterUnreachableError         router_unreachable        503     9
    │   ├── RouterBusyError                router_busy               503     9
    │   ├── RouterTimeoutError             router_timeout            504     9
    │   ├── RouterRefusedError             router_refused            502     9
    │   ├── ModelNotOfferedError           model_not_offered         502     9
    │   ├── ContextTooSmallError           context_too_small         502     9
    │   ├── ModelAnswerError               model_answer              502     9
    │   └── EmbeddingError                 embedding                 502     9
    │       └── EmbedderUnavailableError   embedder_unavailable      503     9
    └── StackError (RuntimeError)          stack                     500    10
        ├── MissingToolError               missing_tool              500    10
        ├── EngineDownError                engine_down               500    10
        ├── EngineAccessError              engine_access             500    10
        ├── EngineTooOldError              engine_too_old            500    10
        ├── CheckoutError                  checkout                  500    10
        ├── PatchError                     patch                     500    10
        ├── BuildError                     build                     500    10
        ├── RelayError                     relay                     500    10
        ├── StackStartError                stack_start               500    10
        ├── StackTimeoutError              stack_timeout             504    10
        │   (TimeoutError)
        ├── ForeignStackError              foreign_stack             500    10
        └── EmbeddingDimensionsError       embedding_dimensions      500    10

A server puts ``code``, the message and the hint into its reply; the client raises the class that
:func:`error_for` finds for the code, so that one ``except`` serves both sides of the wire.
"""

from __future__ import annotations

from typing import ClassVar


class PikuriMemoryError(Exception):
    """Base of all errors of this package.

    Args:
        message: What failed, with which values. Never memory text, a query or a key.
        hint: The next thing to do or to type; empty where there is none.

    Attributes:
        retry_after: Seconds after which another try may help, where a server told; else None.
    """

    code: ClassVar[str] = "error"
    status: ClassVar[int] = 500
    exit_code: ClassVar[int] = 1
    retry_after: float | None = None

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class InvalidRequestError(PikuriMemoryError, ValueError):
    """The request or an argument cannot be served as it is; nothing was changed."""

    code = "invalid_request"
    status = 422
    exit_code = 2


class ScopeRequiredError(InvalidRequestError):
    """None of ``user_id``, ``agent_id`` and ``run_id`` was given, or one was empty."""

    code = "scope_required"
    status = 400


class FilterError(InvalidRequestError):
    """A search filter is malformed."""

    code = "invalid_filter"


class TooLargeError(InvalidRequestError):
    """A body, a text or a list is over its limit."""

    code = "too_large"
    status = 413


class IdempotencyConflictError(InvalidRequestError):
    """An ``Idempotency-Key`` came again with another body."""

    code = "idempotency_conflict"


class DuplicateTextError(InvalidRequestError):
    """An update would make two memories of one scope say the same."""

    code = "duplicate_text"
    status = 409


class ReembeddingUnderWayError(InvalidRequestError):
    """The memories are being embedded anew by another embedder already."""

    code = "reembedding_under_way"
    status = 409


class ExtractionUnavailableError(InvalidRequestError):
    """Extraction was asked for and no router is configured."""

    code = "extraction_unavailable"


class UnsupportedMediaTypeError(InvalidRequestError):
    """A body came with another content type than JSON."""

    code = "unsupported_media_type"
    status = 415


class MethodNotAllowedError(InvalidRequestError):
    """The path knows other methods than this one."""

    code = "method_not_allowed"
    status = 405


class SlowBodyError(InvalidRequestError):
    """A request body did not arrive whole within its deadline."""

    code = "slow_body"
    status = 408


class SettingError(PikuriMemoryError, ValueError):
    """A setting, from a flag or an environment variable, has an impossible value."""

    code = "invalid_setting"
    exit_code = 2


class MemoryNotFoundError(PikuriMemoryError, LookupError):
    """There is no memory (or route) of that name, or it has been deleted."""

    code = "not_found"
    status = 404
    exit_code = 3


class AccessError(PikuriMemoryError, PermissionError):
    """The request came from where none may come from (Host, Origin)."""

    code = "forbidden"
    status = 403
    exit_code = 4


class AuthenticationError(AccessError):
    """The API key is missing or wrong."""

    code = "unauthenticated"
    status = 401


class StorageError(PikuriMemoryError, RuntimeError):
    """The data directory or a file in it cannot be used."""

    code = "storage"
    exit_code = 5


class DiskFullError(StorageError):
    """Free space is below the reserve; writes are refused, reads go on."""

    code = "disk_full"
    status = 507


class DamagedRecordError(StorageError):
    """The record (SQLite file) is damaged."""

    code = "damaged_record"


class NewerSchemaError(StorageError):
    """The record was written by a newer version of this package."""

    code = "newer_schema"


class EmbedderMismatchError(StorageError):
    """The record's vectors were made by another embedder."""

    code = "embedder_mismatch"


class DataDirectoryInUseError(StorageError):
    """Another process owns the data directory."""

    code = "data_directory_in_use"


class UnsupportedFileSystemError(StorageError):
    """The data directory lies on a file system whose locks cannot be trusted."""

    code = "unsupported_file_system"


class ServerError(PikuriMemoryError, RuntimeError):
    """A server could not be reached, started or stopped."""

    code = "server"
    exit_code = 6


class ServerUnavailableError(ServerError):
    """The server cannot be reached, or is stopping."""

    code = "unavailable"
    status = 503


class ServerNotRunningError(ServerError):
    """No server runs for the data directory."""

    code = "not_running"
    status = 503


class ServerStartError(ServerError):
    """A server that was started ended before it was healthy."""

    code = "start_failed"


class PortInUseError(ServerError):
    """Something else listens on the port."""

    code = "port_in_use"


class LeasesHeldError(ServerError):
    """Other processes use the server that was to be stopped."""

    code = "leases_held"
    status = 409


class WaitTimeoutError(ServerError, TimeoutError):
    """A bounded wait ended before what it waited for came true."""

    code = "timeout"
    status = 504


class UnexpectedReplyError(ServerError):
    """What answered is not a server that speaks this protocol."""

    code = "unexpected_reply"
    status = 502


class ProcessError(PikuriMemoryError, RuntimeError):
    """A process that we started did not do its work."""

    code = "process"
    exit_code = 7


class CommandNotFoundError(ProcessError):
    """A program is not installed."""

    code = "command_not_found"


class CommandFailedError(ProcessError):
    """A program ended with a failure."""

    code = "command_failed"


class CommandTimeoutError(ProcessError):
    """A program did not end in time and was ended."""

    code = "command_timeout"


class DamagedInstallationError(PikuriMemoryError, RuntimeError):
    """A file that the package ships is missing or changed."""

    code = "damaged_installation"
    exit_code = 8


class MissingExtraError(DamagedInstallationError):
    """Something was asked for that an optional part of the package does; the hint installs it."""

    code = "missing_extra"


class ModelError(PikuriMemoryError, RuntimeError):
    """The user's model endpoint (the router) did not do its part; nothing was stored.

    Attributes:
        retry_after: Seconds after which another try may help; None where time does not help.
    """

    code = "model"
    status = 502
    exit_code = 9

    def __init__(self, message: str, *, hint: str = "", retry_after: float | None = None) -> None:
        super().__init__(message, hint=hint)
        self.retry_after = retry_after


class RouterUnreachableError(ModelError):
    """Nothing answers at the router's address, or it hangs up."""

    code = "router_unreachable"
    status = 503


class RouterBusyError(ModelError):
    """The router is loading a model, or says that it has too much to do."""

    code = "router_busy"
    status = 503


class RouterTimeoutError(ModelError):
    """The router did not answer in time."""

    code = "router_timeout"
    status = 504


class RouterRefusedError(ModelError):
    """The router answered with an error of its own."""

    code = "router_refused"


class ModelNotOfferedError(ModelError):
    """The router does not have the model, or none of the kind that is needed."""

    code = "model_not_offered"


class ContextTooSmallError(ModelError):
    """The prompt is longer than what the model can read at once.

    Attributes:
        room: Tokens that the model reads at once; None where that was not told.
    """

    code = "context_too_small"

    def __init__(
        self,
        message: str,
        *,
        hint: str = "",
        retry_after: float | None = None,
        room: int | None = None,
    ) -> None:
        super().__init__(message, hint=hint, retry_after=retry_after)
        self.room = room


class ModelAnswerError(ModelError):
    """A chat model answered with nothing, with half an answer, or with another form than asked."""

    code = "model_answer"


class EmbeddingError(ModelError):
    """An embedding model answered with what is no vector of the expected kind."""

    code = "embedding"


class EmbedderUnavailableError(EmbeddingError):
    """No vectors can be had now; searches go on by words, nothing new is stored."""

    code = "embedder_unavailable"
    status = 503


class StackError(PikuriMemoryError, RuntimeError):
    """The container stack of ``Mem0Server`` could not be made, started or stopped."""

    code = "stack"
    exit_code = 10


class MissingToolError(StackError):
    """A program that the stack needs is not installed: git, socat, the engine or its compose."""

    code = "missing_tool"


class EngineDownError(StackError):
    """The container engine does not answer."""

    code = "engine_down"


class EngineAccessError(StackError):
    """This user may not speak to the container engine."""

    code = "engine_access"


class EngineTooOldError(StackError):
    """The container engine, or its compose, lacks what the stack needs."""

    code = "engine_too_old"


class CheckoutError(StackError):
    """The source could not be fetched or checked out."""

    code = "checkout"


class PatchError(StackError):
    """A patch neither applies to the source nor is applied already."""

    code = "patch"


class BuildError(StackError):
    """The image could not be built."""

    code = "build"


class RelayError(StackError):
    """The socket through which containers reach the router could not be made."""

    code = "relay"


class StackStartError(StackError):
    """The services could not be started, or one of them ended."""

    code = "stack_start"


class StackTimeoutError(StackError, TimeoutError):
    """A step of the stack's start did not end in time."""

    code = "stack_timeout"
    status = 504


class ForeignStackError(StackError):
    """Containers of that name belong to another user or another data directory."""

    code = "foreign_stack"


class EmbeddingDimensionsError(StackError):
    """The embedder's vectors have another length than the one that was configured."""

    code = "embedding_dimensions"


def _tree(cls: type[PikuriMemoryError]) -> dict[str, type[PikuriMemoryError]]:
    found = {cls.code: cls}
    for child in cls.__subclasses__():
        found.update(_tree(child))
    return found


_STATUS_FALLBACK: dict[int, type[PikuriMemoryError]] = {
    400: InvalidRequestError,
    401: AuthenticationError,
    403: AccessError,
    404: MemoryNotFoundError,
    405: MethodNotAllowedError,
    408: SlowBodyError,
    409: InvalidRequestError,
    413: TooLargeError,
    415: UnsupportedMediaTypeError,
    422: InvalidRequestError,
    503: ServerUnavailableError,
    507: DiskFullError,
}


# What mem0's server calls the troubles of its models, where our patches are not in it.
_FOREIGN_CODES: dict[str, type[PikuriMemoryError]] = {
    "provider_unavailable": RouterUnreachableError,
    "provider_timeout": RouterTimeoutError,
    "provider_bad_request": RouterRefusedError,
}


def error_for(code: str | None, status: int) -> type[PikuriMemoryError]:
    """The class for an error reply: by its ``code``, else by its HTTP status.

    Args:
        code: The ``code`` of the reply, None where the server sends none (mem0's does not).
        status: The HTTP status, 400 to 599.
    """
    if code is not None:
        found = _tree(PikuriMemoryError).get(code) or _FOREIGN_CODES.get(code)
        if found is not None:
            return found
    return _STATUS_FALLBACK.get(status, ServerError)

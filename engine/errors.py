"""Every error that the engine raises on purpose.

    EngineError
    ├── ConfigError (also a ValueError)   an EngineConfig that can't be
    ├── EngineAsleepError                 a step was asked of an engine that sleeps
    ├── EngineFailedError                 nothing can be computed any more; no request is to blame
    ├── InvalidRequestError               one request's mistake; the engine goes on
    ├── MissingDependencyError            a package that this feature needs; names the pip command
    └── ModelLoadError                    the model can't be served
        ├── UnknownModelError             nothing is found under this name
        └── UnsafeCheckpointError         loading it could run code from the checkpoint

A mistake of a user is raised as one of these, with one sentence that says what to do. A mistake of
ours is an assertion.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = [
    "ConfigError",
    "EngineAsleepError",
    "EngineError",
    "EngineFailedError",
    "InvalidRequestError",
    "MissingDependencyError",
    "ModelLoadError",
    "UnknownModelError",
    "UnsafeCheckpointError",
]


class EngineError(Exception):
    """The root of the tree."""


class ConfigError(EngineError, ValueError):
    """A field of the configuration has a value that no engine can have."""


class EngineAsleepError(EngineError):
    """The engine sleeps: `wake()` comes before the next step."""

    def __init__(self) -> None:
        super().__init__("The engine sleeps: call wake() before the next step.")


class EngineFailedError(EngineError):
    """The device is lost, or no sequence of a step can be computed. Start the engine anew.

    `request_ids` are the requests of the step that failed.
    """

    def __init__(self, message: str, request_ids: Sequence[str] = ()) -> None:
        super().__init__(message, request_ids)
        self.message = message
        self.request_ids = list(request_ids)

    def __str__(self) -> str:
        return self.message


class InvalidRequestError(EngineError):
    """A request that can't be served as it stands; other requests are not affected.

    `code` is for programs (`invalid_type`, `invalid_value`, `empty_prompt`, `context_length`,
    `token_out_of_vocabulary`, `duplicate_request`, `exceeds_capacity`, `chat_template`); `param` names the
    field at fault, None where there is no single one.
    """

    def __init__(self, message: str, code: str, param: str | None = None) -> None:
        # All three are args: an exception is pickled as its class and its args.
        super().__init__(message, code, param)
        self.message = message
        self.code = code
        self.param = param

    def __str__(self) -> str:
        return self.message


class MissingDependencyError(EngineError):
    """A package is not installed; `command` installs it."""

    def __init__(self, package: str, command: str) -> None:
        super().__init__(package, command)
        self.package = package
        self.command = command

    def __str__(self) -> str:
        return f"The package {self.package} is not installed: run `{self.command}`."


class ModelLoadError(EngineError):
    """The checkpoint can't be read, or needs something that the engine doesn't have."""


class UnknownModelError(ModelLoadError):
    """Neither a file, nor a folder, nor an alias, nor a hub id."""


class UnsafeCheckpointError(ModelLoadError):
    """A checkpoint that could run code on loading: pickle files, or custom modelling code."""

"""Every error that the engine raises on purpose.

    EngineError
    ├── ConfigError (also a ValueError)   a field of EngineConfig has an invalid value
    ├── EngineAsleepError                 a step was requested from a sleeping engine
    ├── EngineFailedError                 the engine cannot compute any more; not the fault of a request
    ├── InvalidRequestError               one request is invalid; the engine continues
    ├── MissingDependencyError            a feature needs a package that is not installed
    └── ModelLoadError                    the model cannot be loaded
        ├── UnknownModelError             no model with this name was found
        └── UnsafeCheckpointError         loading the checkpoint could run code from it

A user's mistake is raised as one of these; its message names the value and the fix. A mistake in the engine's
own code is an assertion.
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
    """The base class of all errors that the engine raises on purpose."""


class ConfigError(EngineError, ValueError):
    """A field of EngineConfig has an invalid value, or one that this machine cannot provide."""


class EngineAsleepError(EngineError):
    """A step was requested while the engine sleeps; call `wake()` first."""

    def __init__(self) -> None:
        super().__init__("The engine is asleep: call wake() before the next step.")


class EngineFailedError(EngineError):
    """The device is lost, or none of a step's sequences can be computed. Restart the process.

    `request_ids` lists the requests of the step that failed.
    """

    def __init__(self, message: str, request_ids: Sequence[str] = ()) -> None:
        super().__init__(message, request_ids)
        self.message = message
        self.request_ids = list(request_ids)

    def __str__(self) -> str:
        return self.message


class InvalidRequestError(EngineError):
    """A request that cannot be served; other requests are not affected.

    Args:
        code: for programs: `invalid_type`, `invalid_value`, `empty_prompt`, `context_length`,
            `token_out_of_vocabulary`, `duplicate_request`, `exceeds_capacity`, `chat_template`,
            `invalid_grammar`.
        param: the name of the invalid field; None if the error concerns several fields.
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
    """The checkpoint cannot be read, or uses a feature that the engine does not support."""


class UnknownModelError(ModelLoadError):
    """The name is not a file, a folder, an alias, or the id of a model that can be fetched from the hub."""


class UnsafeCheckpointError(ModelLoadError):
    """The checkpoint could run code when it is loaded: it has pickle files or custom modelling code."""

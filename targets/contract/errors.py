"""What ossicle refuses or fails at.

Each error names the thing refused, the reason, what is possible and the command that helps:

    OssicleError
    ├── CheckpointError      a checkpoint cannot be read, or does not hold what its family needs
    │   └── AdapterError     an adapter cannot be read, or does not fit the checkpoint
    ├── RecipeError          a precision is unknown, or a target cannot hold it
    ├── BuildError           a bundle cannot be written
    ├── BundleError          a bundle is missing, incomplete, corrupted or too new
    ├── AudioError           a recording cannot be read or used
    ├── PromptError          a conversation or an option of one cannot be followed
    ├── EngineError          an engine is missing, or failed
    ├── CorpusError          a corpus cannot be read, or its run cannot be begun or gone on with
    ├── ServerError          a server cannot be started as asked
    ├── SweepError           a sweep cannot be begun or gone on with
    ├── PushError            a bundle cannot be uploaded
    └── VerificationError    an artifact does not compute what the original does
"""


class OssicleError(Exception):
    """Whatever ossicle refuses or fails at, said in one message for the user."""


class CheckpointError(OssicleError):
    """A checkpoint cannot be read, or does not hold what its family needs."""


class AdapterError(CheckpointError):
    """An adapter cannot be read, or does not fit the checkpoint."""


class RecipeError(OssicleError):
    """A precision is unknown, or a target cannot hold it."""


class BuildError(OssicleError):
    """A bundle cannot be written."""


class BundleError(OssicleError):
    """A bundle is missing, incomplete, corrupted or written by a newer ossicle."""


class AudioError(OssicleError):
    """A recording cannot be read or used."""


class PromptError(OssicleError):
    """A conversation, or an option of one, cannot be followed."""


class EngineError(OssicleError):
    """An engine is missing, or failed."""


class CorpusError(OssicleError):
    """A corpus cannot be read, or its run cannot be begun or gone on with."""


class ServerError(OssicleError):
    """A server cannot be started as asked."""


class SweepError(OssicleError):
    """A sweep cannot be begun or gone on with."""


class PushError(OssicleError):
    """A bundle cannot be uploaded."""


class Cancelled(OssicleError):  # noqa: N818 - no error: what the caller asked for
    """The caller gave up what it had asked for."""


class VerificationError(OssicleError):
    """An artifact does not compute what the original does."""

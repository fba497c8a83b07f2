"""The exceptions that clipsieve raises or hands back.

ClipsieveError
├── ServerUnavailable   nothing answered at the address, also after retries: raised
│   └── ServerNotReady  a server answered that is still loading its models, or is stopping: raised
├── NotClipsieve        what answers is ready, and has not the models of a clipsieve server: raised
├── AccessDenied        the server wants another token: raised
├── UnknownHead         the server, or a table, has no such head: raised
├── UnknownThreshold    a head has no such operating point, or cannot be cut at one threshold: raised
├── VersionChanged      another head answers than the rows before came from: raised
├── ImageFailed         one image has no score; carried in its result as `error`, never raised by `score`
│   ├── ImageRejected   because of the image: sending it again fails again
│   │   └── VideoError  a video cannot be read, or not to its end
│   └── InferenceFailed because of the server or the time limit: sending it again may succeed
├── InputRefused        what was named is no list of images, or there is nothing to score
│   ├── PictureGone     a picture that is looked at on the review page is no longer there
│   ├── TableError      a table cannot be read, or lacks what is needed
│   └── FilterError     tables, shards and what is to be kept do not fit together
├── OutputRefused       the output cannot be written as requested
├── ShardError          a WebDataset shard is cut off or damaged
├── ArrangeError        files cannot be put in order or linked
├── AnswersRefused      answers of `clipsieve review` cannot be read or written
├── ToolchainFailed     a command of the toolchain failed
├── RayFailed           a job on a Ray cluster cannot go on
└── MissingExtra        a library that only one feature needs is not installed

The last ten are raised by the module they are named for, and by no method of a client. Not here is
`proof_format.ProofUnreadable`: that file is the toolchain's, byte for byte. A client turns it into one of these, or
into a sentence.
"""

from __future__ import annotations

import os
from pathlib import Path


class ClipsieveError(Exception):
    """Base of every exception of this package."""


class ServerUnavailable(ClipsieveError):
    """Nothing answered at the address, or what answered takes no requests now."""


class ServerNotReady(ServerUnavailable):
    """The server answers, and is still loading its models, or is stopping."""


class NotClipsieve(ClipsieveError):
    """The server is ready and lacks a model that every clipsieve server has: waiting for it would not help."""


class UnknownHead(ClipsieveError):
    """The requested head is not served; the message lists those that are."""


class AccessDenied(ClipsieveError):
    """The server, or a proxy before it, refuses this client: the same for every image, so it ends the run."""


class UnknownThreshold(ClipsieveError):
    """The requested threshold or operating point does not fit the heads; the message lists what does."""


class VersionChanged(ClipsieveError):
    """The rows before came from another version of a head."""


class ImageFailed(ClipsieveError):
    """One image could not be scored."""

    def __init__(self, code: str, message: str, index: int = 0) -> None:
        super().__init__(code, message, index)
        self.code = code
        """Stable and upper-case: `NOT_AN_IMAGE`, `UNREADABLE`, `DEADLINE_EXCEEDED`."""
        self.message = message
        self.index = index
        """Position of the image in its request."""

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


class ImageRejected(ImageFailed):
    """The file cannot be read, or the server cannot or will not decode it."""


class InferenceFailed(ImageFailed):
    """The server failed, was too busy or took too long."""


class VideoError(ImageRejected):
    """A video cannot be read, or not to its end.

    Codes: UNREADABLE, NOT_A_VIDEO, NO_VIDEO (sound only), TOO_MANY_PIXELS, TOO_LONG, DECODE_FAILED (damaged, cut off).
    """

    def __init__(self, code: str, message: str, frames: int = 0) -> None:
        super().__init__(code, message)
        self.frames = frames
        """Number of frames that were given before."""


class InputRefused(ClipsieveError, ValueError):
    """An input cannot be read as a list of images; the run ends here, so that nothing after it is lost silently."""


class PictureGone(InputRefused):
    """The file of a picture is not there any more."""


class TableError(InputRefused):
    """A table cannot be read or lacks what is needed; the message names the file and says what."""


class FilterError(InputRefused):
    """The tables, the shards and the conditions do not fit together; the message names them."""


class OutputRefused(ClipsieveError, ValueError):
    """The output file cannot be written as requested."""


class ShardError(ClipsieveError):
    """A shard cannot be read to its end; the samples before that were given."""

    def __init__(self, shard: str | os.PathLike[str], problem: str, samples: int = 0) -> None:
        super().__init__(shard, problem, samples)
        self.shard = Path(shard)
        self.problem = problem
        self.samples = samples
        """Number of whole samples that came before."""

    def __str__(self) -> str:
        return f"{self.shard}: {self.problem}"


class ArrangeError(ClipsieveError):
    """The files cannot be arranged like this; nothing was changed, unless the message says so."""


class AnswersRefused(ClipsieveError, ValueError):
    """A file of answers is no such file, or cannot be read or written; nothing was changed."""


class ToolchainFailed(ClipsieveError):
    """A command of the toolchain that `clipsieve review` started failed; the message is its last line."""


class RayFailed(ClipsieveError):
    """Ray itself failed, or a bug of ours did in one of its workers."""


class MissingExtra(ClipsieveError):
    """A library that only this feature needs is not installed; the message says how to install it."""

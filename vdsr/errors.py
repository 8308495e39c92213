"""What can go wrong, and whose fault is it?

VdsrError
├── ImageError              the picture's: recorded as that image's outcome, the job goes on
│   ├── ImageEmpty          zero bytes
│   ├── ImageUnreadable     no known format, or its bytes are damaged
│   ├── ImageTruncated      it ends before its pixels do
│   ├── ImageTooLarge       more pixels than the limit, before or after upscaling
│   ├── FileTooLarge        more bytes in the file than the limit
│   ├── ImageNeedsMemory    more memory than the budget
│   ├── ImageUnsupported    a kind of picture that would be harmed (CMYK, 16-bit colour, ...)
│   └── FormatLimit         the output format cannot hold a picture of that size
├── TrainingError           a training run cannot begin or go on as it was asked for
│   ├── RecipeError         a key or value that no recipe has
│   ├── TooLittleData       too few images, or too small ones
│   ├── StateMismatch       the saved state belongs to another recipe
│   ├── StateDamaged        a run's own files cannot be read
│   └── DataChanged         the images are not those that the run began with
├── NonFinite               training diverged
├── CheckpointError         weights that are missing, damaged, foreign or of another network
└── Interrupted             the caller asked a long computation to stop

The service adds its own in `worker.errors`. An error's `code` is what results files and `vdsr status` call it.
"""

from __future__ import annotations


class VdsrError(Exception):
    """Anything this package raises on purpose."""


class ImageError(VdsrError):
    """The picture cannot be upscaled; other pictures are not affected."""

    code = "image_error"

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return self.reason


class ImageEmpty(ImageError):
    """There are no bytes."""

    code = "empty"

    def __init__(self) -> None:
        super(ImageError, self).__init__()
        self.reason = "the file is empty; copy it again from its source"


class ImageUnreadable(ImageError):
    """The bytes are not a picture that can be decoded."""

    code = "unreadable"


class ImageTruncated(ImageError):
    """The bytes end before the pixels do."""

    code = "truncated"


class ImageUnsupported(ImageError):
    """A kind of picture that could only be upscaled by silently losing something."""

    code = "unsupported"


class ImageTooLarge(ImageError):
    """The picture has, or would get, more pixels than this worker accepts."""

    code = "too_large"

    def __init__(self, width: int, height: int, limit: int, setting: str) -> None:
        super(ImageError, self).__init__(width, height, limit, setting)
        self.width, self.height, self.limit, self.setting = width, height, limit, setting
        self.reason = (
            f"{width:,} x {height:,} are {width * height:,} pixels, over the limit of {limit:,}; "
            f"split the picture, or raise {setting}"
        )


class FileTooLarge(ImageError):
    """The file has more bytes than this worker reads into memory."""

    code = "too_large"

    def __init__(self, size_bytes: int, limit: int) -> None:
        super(ImageError, self).__init__(size_bytes, limit)
        self.reason = (
            f"the file has {size_bytes:,} bytes, over the limit of {limit:,}; "
            "compress or split the picture, or raise VDSR_MAX_FILE_BYTES"
        )


class ImageNeedsMemory(ImageError):
    """On its way the picture would take more memory than this worker may use."""

    code = "too_large"

    def __init__(self, needed_bytes: int, budget_bytes: int) -> None:
        super(ImageError, self).__init__(needed_bytes, budget_bytes)
        self.reason = (
            f"this picture would take {needed_bytes / 2**30:.2f} GiB of memory, over the budget of "
            f"{budget_bytes / 2**30:.2f} GiB; use --format png or a smaller scale, or raise VDSR_MEMORY_BUDGET"
        )


class FormatLimit(ImageError):
    """The output format has a largest width or height, and this picture would exceed it."""

    code = "format_limit"

    def __init__(self, image_format: str, limit: int, width: int, height: int) -> None:
        super(ImageError, self).__init__(image_format, limit, width, height)
        self.reason = (
            f"{image_format} allows {limit:,} px a side; this picture would be {width:,} x {height:,}; "
            "use --format png or tiff, a smaller scale, --width or --max-mp"
        )


class CheckpointError(VdsrError):
    """The weights cannot be used; the message says which file, what is wrong, and what to do."""


class TrainingError(VdsrError):
    """A training run cannot begin or go on; the message says what to change."""


class RecipeError(TrainingError):
    """A recipe that cannot be used; the message names the key, its value and what would do."""


class TooLittleData(TrainingError, ValueError):
    """There is not enough to train on."""


class StateMismatch(TrainingError):
    """A saved state belongs to another recipe."""


class StateDamaged(TrainingError):
    """A file of the run cannot be read."""

    def __init__(self, key: str, reason: object) -> None:
        super().__init__(key, reason)
        self.key, self.reason = key, reason

    def __str__(self) -> str:
        return f"the run's {self.key} is damaged or another program's ({self.reason}); train in another folder"


class DataChanged(TrainingError):
    """A run cannot go on with other images than it began with."""


class NonFinite(VdsrError):
    """Training diverged; the last saved state is from before it did."""

    def __init__(self, step: int) -> None:
        super().__init__(step)
        self.step = step

    def __str__(self) -> str:
        return (
            f"the loss is no finite number at step {self.step}; the last good state is kept. "
            "Start a new run with a lower learning_rate or clip_at"
        )


class Interrupted(VdsrError):
    """A computation stopped between two tiles because its caller asked for it."""

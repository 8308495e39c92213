"""What can go wrong outside the picture, and who can mend it?

VdsrError
├── UsageError              you asked for something that cannot be; exit code 2
│   ├── NothingMatched      there is no image to work on; exit code 7
│   └── DestinationTaken    another job writes there
├── NewerFormat             a newer version of this program wrote it; exit code 2
├── NotFound                no such job; exit code 5
├── TransientError          the moment's fault: worth trying again; exit code 6
│   ├── BrokerUnreachable   Redis does not answer
│   ├── BrokerRefused       Redis answers no: out of memory, read-only, not permitted
│   └── StorageUnavailable  S3 does not answer, or is overloaded
├── StorageError            this object's fault, or its permissions'
│   ├── ObjectNotFound      also a FileNotFoundError
│   │   └── PlaceGone       not one object, but its whole bucket or folder: ends the job
│   ├── AccessDenied        also a PermissionError
│   │   └── BadCredentials  expired, unknown or missing: nothing at all is allowed, and the job ends
│   ├── StorageFull         no space left, or over quota
│   ├── NameCollision       another name's object would be replaced
│   └── UnsafeKey           a name that would leave its root, or that the storage cannot hold
├── WorkerStopping          this worker was asked to stop: finish the image in hand, begin no other
├── ProcessDied             the worker or Redis of `vdsr upscale` or `vdsr dev` keeps ending; exit code 1
├── JobStopped              the job or run was cancelled or has failed: stop work on it
└── LeaseLost               another worker owns this chunk or run now: stop work on it

A StorageError or StorageUnavailable while an image is worked on becomes that image's outcome; its `code` is what
results files and `vdsr status` call it. What no image can be blamed for (PlaceGone, BadCredentials) ends the job
instead: every further image would fail alike.
"""

from __future__ import annotations

from vdsr.errors import VdsrError


class UsageError(VdsrError):
    """What was asked for contradicts itself or the world; the message says what to change."""


class NothingMatched(UsageError):
    """No image was found where some were expected."""


class DestinationTaken(UsageError):
    """An open job writes to this destination, into it, or to what holds it."""

    def __init__(self, destination: str, job_id: str) -> None:
        super().__init__(destination, job_id)
        self.destination, self.job_id = destination, job_id

    def __str__(self) -> str:
        return (
            f"job {self.job_id} is open and writes to {self.destination}, or inside or around it; wait for it "
            f"('vdsr wait {self.job_id}'), cancel it, or give another destination"
        )


class NewerFormat(VdsrError):
    """A newer version of this program wrote it: a worker leaves it to newer ones, a client tells its user."""

    def __init__(self, what: str, found: object, known: object) -> None:
        """
        Args:
            what: "job 20261123-041502-x7qd2".
            found: its format, or what of it is not known here.
            known: the newest format that is.
        """
        super().__init__(what, found, known)
        self.what, self.found, self.known = what, found, known

    def __str__(self) -> str:
        return (
            f"{self.what} was written by a newer vdsr: it has format {self.found}, and this version knows formats up "
            f"to {self.known}; update vdsr here (workers of the newer version go on with it)"
        )


class NotFound(VdsrError):
    """No job of that id is known here."""


class TransientError(VdsrError):
    """May well work in a moment."""


class BrokerUnreachable(TransientError):
    """Redis does not answer."""


class BrokerRefused(TransientError):
    """Redis answers, but will not do it: out of memory, read-only, or not permitted to this user."""


class StorageUnavailable(TransientError):
    """The storage does not answer, after all retries."""

    code = "storage_unavailable"


class StorageError(VdsrError):
    """The object cannot be read or written; others may."""

    code = "storage_error"


class ObjectNotFound(StorageError, FileNotFoundError):
    """It is not there (any more)."""

    code = "not_found"


class AccessDenied(StorageError, PermissionError):
    """It is there, but not for these credentials or this user."""

    code = "access_denied"


class PlaceGone(ObjectNotFound):
    """The bucket, or the folder that is the source, is not there (any more)."""


class BadCredentials(AccessDenied):
    """Whatever is asked for, these credentials are refused: none, expired, unknown, or with a wrong secret."""


class StorageFull(StorageError):
    """No space left on the device, or over quota."""

    code = "disk_full"


class NameCollision(StorageError):
    """The disk takes this name for that of another file, which would be replaced."""

    code = "name_collision"


class UnsafeKey(StorageError):
    """A name that would leave its root, or that this storage cannot hold."""

    code = "unsafe_name"


class WorkerStopping(VdsrError):
    """This worker was asked to stop: what is in hand is finished, and the rest given back."""


class ProcessDied(VdsrError):
    """A process that this one looks after does not stay up."""


class JobStopped(VdsrError):
    """The job or run was cancelled or has failed meanwhile."""


class LeaseLost(VdsrError):
    """The lease on this chunk or run ran out and another worker may own it."""

"""How are weights kept? As safetensors with a card in the header: no code runs when they are read.

The header's metadata holds format, depth, channels, version and whatever the trainer wants to tell. The identity of
a checkpoint is the SHA-256 of its file. Pickles are never loaded here; `import_state_dict` reads tensors out of a
foreign .pth with torch's restricted unpickler, and only when somebody asks for it.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vdsr.errors import CheckpointError

if TYPE_CHECKING:
    from vdsr.model import VDSR

SHIPPED = Path(__file__).parent / "weights" / "vdsr.safetensors"
FORMAT = "vdsr-1"
DEPTH_LIMIT, CHANNELS_LIMIT = 100, 256
SIZE_LIMIT = 64 * 2**20  # the network has 2.7 MB of weights; whatever is far larger is not one


@dataclass(frozen=True)
class Identity:
    """Which weights these are: what results, status and reports name."""

    version: str
    """Chosen by whoever trained it, e.g. "2026.11-291-a"."""
    sha256: str
    """Of the whole file, 64 hex digits."""


def identify(path: Path = SHIPPED) -> Identity:
    """Version and digest of a checkpoint, from its bytes alone: needs no torch.

    Raises:
        CheckpointError: the file is missing or not a checkpoint of ours.
    """
    return identify_bytes(_read(path), str(path))


def identify_bytes(data: bytes, name: str) -> Identity:
    """The same from a checkpoint's bytes; `name` says in errors whose they are."""
    return Identity(version=_metadata(data, name)["version"], sha256=hashlib.sha256(data).hexdigest())


def card_of(data: bytes, name: str) -> dict[str, str]:
    """What the header of a checkpoint's bytes says."""
    return _metadata(data, name)


def read_card(path: Path = SHIPPED) -> dict[str, str]:
    """What the header says: format, version, depth, channels, and the trainer's notes."""
    return _metadata(_read(path), str(path))


def load(path: Path = SHIPPED, *, sha256: str | None = None) -> tuple[VDSR, Identity]:
    """The network with its weights, in fp32 on the CPU, ready for inference.

    Args:
        path: a safetensors file that `save` wrote.
        sha256: the digest it must have; None accepts any.

    Raises:
        CheckpointError: missing, damaged, another digest, missing or unexpected tensors, or values that are not finite.
    """
    return parse(_read(path), str(path), sha256=sha256)


def parse(data: bytes, name: str, *, sha256: str | None = None) -> tuple[VDSR, Identity]:
    """The same from a checkpoint's bytes; `name` says in errors whose they are."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load as read_tensors

    from vdsr.model import VDSR, VDSRConfig

    digest = hashlib.sha256(data).hexdigest()
    if sha256 is not None and digest != sha256:
        raise CheckpointError(f"{name} has SHA-256 {digest}, expected {sha256}; fetch it again")
    card = _metadata(data, name)
    try:
        config = VDSRConfig(depth=int(card["depth"]), channels=int(card["channels"]))
        if not (2 <= config.depth <= DEPTH_LIMIT and 1 <= config.channels <= CHANNELS_LIMIT):
            raise CheckpointError(f"{name} claims {config.depth} layers of {config.channels} channels; it is no VDSR")
        model = VDSR(config)
        tensors = {key: tensor.to(torch.float32) for key, tensor in read_tensors(data).items()}
        model.load_state_dict(tensors, strict=True)
    except (SafetensorError, RuntimeError, KeyError, ValueError) as exc:
        raise CheckpointError(f"{name} does not hold the network that its header claims: {exc}") from exc
    if not all(torch.isfinite(tensor).all() for tensor in tensors.values()):
        raise CheckpointError(f"{name} holds weights that are not finite numbers; train again from the last good state")
    model.eval().requires_grad_(False)
    return model, Identity(version=card["version"], sha256=digest)


def to_bytes(model: VDSR, *, version: str, notes: dict[str, str] | None = None) -> bytes:
    """A checkpoint of the weights in fp32, with its card; the same weights and notes give the same bytes."""
    from safetensors.torch import save as serialise

    card = dict(notes or {})
    card.update(
        format=FORMAT,
        version=version,
        depth=str(model.config.depth),
        channels=str(model.config.channels),
    )
    tensors = {name: tensor.detach().float().cpu().contiguous() for name, tensor in model.state_dict().items()}
    return _in_order(serialise(tensors, metadata=card))


def save(model: VDSR, path: Path, *, version: str, notes: dict[str, str] | None = None) -> Identity:
    """Write a checkpoint, whole or not at all, and return its identity."""
    data = to_bytes(model, version=version, notes=notes)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(data)
    os.replace(temporary, path)
    return Identity(version=version, sha256=hashlib.sha256(data).hexdigest())


def import_state_dict(path: Path) -> VDSR:
    """Read a VDSR of the paper's shape out of somebody's .pth, without running its code.

    Takes the twenty (C, C', 3, 3) convolutions in their order, whatever their names: public implementations
    differ only in those.

    Raises:
        CheckpointError: not a plain state dict, or not this network.
    """
    import pickle

    import torch

    from vdsr.model import VDSR, VDSRConfig

    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, LookupError, TypeError, pickle.UnpicklingError) as exc:
        raise CheckpointError(
            f"{path} is not a plain state dict ({str(exc).partition(chr(10))[0][:200]}); "
            "ask its author for a safetensors file or a state dict"
        ) from exc
    while isinstance(content, dict) and "state_dict" in content:
        content = content["state_dict"]
    tensors = content if isinstance(content, dict) else {}
    kernels = [t for t in tensors.values() if isinstance(t, torch.Tensor) and t.ndim == 4]
    model = VDSR(VDSRConfig())
    wanted = model.kernels
    if [t.shape for t in kernels] != [t.shape for t in wanted] or len(kernels) != len(tensors):
        raise CheckpointError(
            f"{path} has {len(tensors)} tensors; VDSR has twenty 3x3 convolutions without biases (1-64, 64-64, 64-1)"
        )
    with torch.no_grad():
        for target, kernel in zip(wanted, kernels, strict=True):
            target.copy_(kernel)
    return model.eval().requires_grad_(False)


def _read(path: Path) -> bytes:
    try:
        size_bytes = path.stat().st_size
        if size_bytes > SIZE_LIMIT:
            raise CheckpointError(
                f"{path} has {size_bytes:,} bytes, over the limit of {SIZE_LIMIT:,}; it is no VDSR checkpoint"
            )
        return path.read_bytes()
    except OSError as exc:
        raise CheckpointError(f"cannot read the checkpoint {path}: {exc.strerror}") from exc


def _in_order(data: bytes) -> bytes:
    """The same checkpoint with its notes sorted: safetensors writes them in an order that changes from run to run."""
    import json

    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def _metadata(data: bytes, name: str) -> dict[str, str]:
    """The header's metadata (safetensors format: 8 bytes of length, then JSON)."""
    import json

    if data[:2] in (b"PK", b"\x80\x02"):
        raise CheckpointError(
            f"{name} is a pickled checkpoint, which could run code; convert it with 'vdsr models import {name}'"
        )
    try:
        length = int.from_bytes(data[:8], "little")
        card = json.loads(data[8 : 8 + length])["__metadata__"]
        known = card["format"] == FORMAT and {"version", "depth", "channels"} <= card.keys()
    except (ValueError, KeyError, TypeError) as exc:
        raise CheckpointError(f"{name} is not a VDSR checkpoint in safetensors format") from exc
    if not known:
        raise CheckpointError(f"{name} has a header of another format than {FORMAT}")
    return dict(card)

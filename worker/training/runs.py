"""What is a training run? A record of what was asked for; how it stands is the ledger's to say."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

from vdsr.training.recipe import Recipe
from worker.errors import NewerFormat
from worker.jobs import SCHEMA, new_job_id, unknown_names

PREFIX = "train-"
"""Of every run's id, so that commands know a run from a job."""


@dataclass(frozen=True)
class Run:
    """One training, asked for once, however many workers it takes."""

    id: str
    data: tuple[str, ...]
    """URIs of the HR images."""
    held: int
    """Images kept aside for validation."""
    recipe: Recipe
    version: str
    """Name of the weights."""
    command: str
    """As the user gave it, for the card."""
    folder: str
    """URI of the run's files."""
    start: str | None = None
    """URI of a checkpoint to begin with, or "shipped"; None begins with random weights."""
    publish: bool = False
    force: bool = False
    """Promote whatever validation says."""
    compiled: bool = False
    created: float = 0.0
    """Unix time in seconds."""
    schema: int = SCHEMA

    def to_json(self) -> str:
        """The record as it lies in the ledger."""
        return json.dumps({**dataclasses.asdict(self), "recipe": self.recipe.to_dict()})

    @classmethod
    def from_json(cls, text: str) -> Run:
        """The inverse of `to_json`.

        Raises:
            NewerFormat: written by a newer version of this program.
        """
        raw: dict[str, Any] = json.loads(text)
        unknown = unknown_names(cls, raw)
        if raw["schema"] > SCHEMA or unknown:
            with_them = f"{raw['schema']} with {', '.join(sorted(unknown))}" if unknown else raw["schema"]
            raise NewerFormat(f"run {raw['id']}", with_them, SCHEMA)
        return cls(**{**raw, "data": tuple(raw["data"]), "recipe": Recipe.from_dict(raw["recipe"])})


def new_run_id() -> str:
    """Sorts by time, and can be read out: "train-20261123-041502-x7qd2"."""
    return PREFIX + new_job_id()

"""Which choices decide the weights, beside the data? A recipe: named, plain TOML, checked before anything runs.

`recipes/paper.toml` is the paper's own training, `recipes/best.toml` ours; a copy of either with other values is a
recipe too.
"""

from __future__ import annotations

import dataclasses
import math
import tomllib
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from vdsr.errors import RecipeError

FOLDER = Path(__file__).parent / "recipes"
CHOICES = {
    "loss": ("l1", "l2"),
    "optimiser": ("sgd", "adam", "muon"),
    "schedule": ("steps", "cosine", "linear"),
    "clip": ("none", "norm", "adjustable"),
    "precision": ("auto", "fp32", "bf16"),
}


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights, beside the data."""

    name: str
    """As it was asked for: "best", or the file's name."""
    steps: int
    batch: int
    """Patches a step, over all processes together."""
    patch: int
    """Side in pixels; the paper's 41 leaves one output pixel that sees its whole neighbourhood."""
    scales: tuple[float, ...]
    """Every patch is degraded by one of them, each as likely. A network trained on 2, 3 and 4 alone makes 1.5 worse
    than bicubic: it takes the blur for that of 2."""
    loss: str
    """Of the residual: l1, its mean absolute error; l2, half its squared error summed over a patch (paper, 3.3)."""
    optimiser: str
    """sgd with momentum; adam; muon, which orthogonalises the update of each hidden layer (vdsr.training.optimiser)."""
    learning_rate: float
    schedule: str
    """steps: times `decay_factor` every `decay_steps`. cosine: half a cosine to a hundredth.
    linear: level, then straight down to nothing over the last `decay_steps`."""
    decay_steps: int
    decay_factor: float
    warmup: int
    """Steps over which the learning rate rises from nothing."""
    clip: str
    """norm: the gradient's norm is at most `clip_at`. adjustable: each entry is within +-clip_at / learning rate
    (paper, 3.3)."""
    clip_at: float
    momentum: float
    weight_decay: float
    ema: float
    """Decay a step of the averaged weights, which are what is kept; 0 keeps the last weights themselves."""
    precision: str
    """auto is what is fastest here: bf16 on CUDA and AMX, else fp32 by our compiled code. Master weights are fp32."""
    validate_every: int
    """Steps between two looks at the validation images."""
    seed: int

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise RecipeError(f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(choices)}")
        for name in ("steps", "batch", "decay_steps", "validate_every"):
            self._require(name, getattr(self, name) >= 1, "at least 1")
        for name in ("warmup", "seed"):
            self._require(name, getattr(self, name) >= 0, "at least 0")
        for name in ("learning_rate", "clip_at"):
            self._require(name, 0 < getattr(self, name) < math.inf, "above 0")
        for name in ("momentum", "weight_decay", "ema"):
            self._require(name, 0 <= getattr(self, name) < 1, "from 0 to below 1")
        self._require("decay_factor", 0 < self.decay_factor <= 1, "above 0 and at most 1")
        self._require("scales", bool(self.scales) and all(1 < s <= 8 for s in self.scales), "factors above 1, up to 8")
        self._require("scales", len(set(self.scales)) == len(self.scales), "without repetition")
        self._require("patch", 8 <= self.patch <= 1024, "from 8 to 1024 pixels")

    def _require(self, name: str, met: bool, what: str) -> None:
        if not met:
            raise RecipeError(f"{name} is {getattr(self, name)}; it must be {what}")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON, the inverse of `from_dict`."""
        return {**dataclasses.asdict(self), "scales": list(self.scales)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Recipe:
        """A recipe of plain values.

        Raises:
            RecipeError: a key that is none, is missing, or has a value of another type or outside its range.
        """
        kinds = {field.name: str(field.type) for field in dataclasses.fields(cls)}
        for key in values:
            if key not in kinds:
                near = get_close_matches(key, kinds, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(kinds)}"
                raise RecipeError(f"a recipe has no key {key!r}; {hint}")
        if missing := [name for name in kinds if name not in values]:
            raise RecipeError(f"the recipe lacks {', '.join(missing)}; copy one of {', '.join(names())} and change it")
        return cls(**{name: _typed(name, value, kinds[name]) for name, value in values.items()})


def names() -> list[str]:
    """Recipes that come with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def read_recipe(name: str, changes: dict[str, str] | None = None) -> Recipe:
    """A recipe by its name, or by the path of a TOML file.

    Args:
        changes: values that replace the recipe's, as text: {"steps": "500"}.

    Raises:
        RecipeError: no such recipe, no TOML, or values that cannot be used.
    """
    known = name in names()
    path = FOLDER / f"{name}.toml" if known else Path(name)
    try:
        values = tomllib.loads(path.read_text())
    except FileNotFoundError as exc:
        raise RecipeError(f"no recipe {name!r}; use {', '.join(names())}, or the path of a TOML file") from exc
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as exc:
        raise RecipeError(f"{name} is not a recipe in TOML: {exc}") from exc
    values["name"] = name if known else path.name
    for key, text in (changes or {}).items():
        values[key] = _parsed(text)
    return Recipe.from_dict(values)


def as_scale(value: float | str) -> float:
    """A scale as it is written: 2, and 2.0 too, as the whole number; 1.5."""
    number = float(value)
    return int(number) if number.is_integer() else number


def _parsed(text: str) -> Any:
    """A value as TOML would read it; a bare word is a string."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _typed(name: str, value: Any, kind: str) -> Any:
    if kind == "float" and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind.startswith("tuple") and isinstance(value, list) and all(type(item) in (int, float) for item in value):
        return tuple(as_scale(item) for item in value)
    if type(value).__name__ != kind:
        words = {"int": "a whole number", "float": "a number", "str": "a word"}.get(kind, "a list of numbers")
        raise RecipeError(f"{name} is {value!r}; it must be {words}")
    return value

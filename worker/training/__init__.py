"""How does the service train? Runs in the ledger, data from any storage, weights into the registry."""

from __future__ import annotations

from importlib.util import find_spec

from worker.errors import UsageError

NEEDED = ("tensorboardX", "matplotlib", "jinja2")


def require_training() -> None:
    """
    Raises:
        UsageError: a package that only training needs is not here.
    """
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise UsageError(f"training needs {', '.join(missing)}; pip install 'vdsr[train]'")

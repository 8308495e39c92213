"""The service: jobs over folders and buckets, on Celery and Redis. `celery -A worker worker -Q upscale` starts it."""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    if name == "celery":  # what `celery -A worker` looks for; made here so that importing worker.* stays cheap
        from worker.app import make_app
        from worker.settings import load_settings

        app = globals()["celery"] = make_app(load_settings())
        return app
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

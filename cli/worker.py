"""`vdsr worker`: Celery's worker with the tested settings."""

from __future__ import annotations

import os

import click

from cli.options import Choice


@click.command(
    name="worker",
    context_settings={"ignore_unknown_options": True},
    epilog="Example: VDSR_DEVICE=cuda:1 vdsr worker --name gpu1@%h   (the same by hand: REMAP_SIGTERM=SIGQUIT "
    "celery -A worker worker -Q upscale)",
)
@click.option(
    "-c", "--concurrency", type=click.IntRange(min=1), default=1, show_default=True, help="Processes; one a GPU."
)
@click.option(
    "--queue",
    type=Choice(["upscale", "train"]),
    default="upscale",
    show_default=True,
    help="What this worker does; a training takes a device for hours.",
)
@click.option("--name", help="Name of this worker; each on a host needs its own.  [default: vdsr@%h, train@%h]")
@click.option("--log-level", default="INFO", show_default=True)
@click.argument("celery_arguments", nargs=-1, type=click.UNPROCESSED)
def command(concurrency: int, queue: str, name: str | None, log_level: str, celery_arguments: tuple[str, ...]) -> int:
    """Start a worker for the Redis of VDSR_REDIS_URL.

    CELERY_ARGUMENTS are handed on to 'celery worker'.
    """
    from vdsr import checkpoint
    from vdsr.device import choose_device
    from worker.client import Client
    from worker.embedded import worker_command, worker_environment
    from worker.settings import load_settings
    from worker.training import require_training

    settings = load_settings()
    Client.connect(settings)  # a clear error now, instead of Celery's retries
    choose_device(settings.device)  # and none that would fail other people's jobs later
    if queue == "upscale":
        checkpoint.load(settings.weights or checkpoint.SHIPPED)
    else:
        require_training()
    settings.state_dir.mkdir(parents=True, exist_ok=True)
    os.chdir(settings.state_dir)  # Celery puts the working folder on the module path
    words = [
        *worker_command(
            name=name or ("vdsr@%h" if queue == "upscale" else "train@%h"),
            concurrency=concurrency,
            level=log_level,
            queue=queue,
        ),
        *celery_arguments,
    ]
    os.execvpe(words[0], words, worker_environment(settings))  # noqa: S606  # no shell is wanted

"""`vdsr health`: is the worker here alive, and has it its model? Probes run it, so it imports next to nothing."""

from __future__ import annotations

import click


@click.command(
    name="health", epilog="Example: VDSR_HEALTH_DIR=/tmp/gpu0 vdsr health --ready   (the worker has the same setting)"
)
@click.option("--live/--ready", default=True, help="Alive, or alive with its model loaded.  [default: --live]")
@click.option(
    "--within",
    type=click.IntRange(min=1),
    default=300,
    show_default=True,
    metavar="SECONDS",
    help="Word of the worker may be this old.",
)
def command(live: bool, within: int) -> int:
    """Exit with 0 if the worker with this VDSR_HEALTH_DIR is well, else say what is wrong and exit with 1.

    Alive is a worker that Redis has answered lately when it asked for work, or that gets on with what it has in hand,
    however long that takes. Start the worker with the same VDSR_HEALTH_DIR, and each with its own.
    """
    from worker.errors import UsageError
    from worker.health import Health
    from worker.settings import load_settings

    folder = load_settings().health_dir
    if folder is None:
        raise UsageError("VDSR_HEALTH_DIR is not set; give the worker and 'vdsr health' the same folder")
    here = Health(folder)
    click.echo(here.check_live(within) if live else here.check_ready(within))
    return 0

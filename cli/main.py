"""Where does `vdsr` begin? Here: commands are loaded when they are called, errors end as one line and an exit code.

| exit code | meaning                            |
|-----------|------------------------------------|
| 0         | all well                           |
| 1         | a fault of this program            |
| 2         | usage                              |
| 3         | finished, with failed images       |
| 4         | the job failed or was cancelled    |
| 5         | no such job                        |
| 6         | Redis or storage does not answer   |
| 7         | nothing matched                    |
| 124       | `wait` timed out                   |
| 130       | interrupted                        |
"""

from __future__ import annotations

import os
import sys
from importlib import import_module

import click

from cli.output import QUIET
from vdsr import __version__

COMMANDS = {
    "upscale": "Upscale a folder, file or bucket right here, with nothing to set up.",
    "submit": "Queue a job and print its id.",
    "status": "Show how a job stands.",
    "list": "List the jobs that are known.",
    "wait": "Wait until a job has ended.",
    "cancel": "Stop a job within the image in hand.",
    "retry": "Do the failed images of a completed job again.",
    "resume": "Go on with a job that Redis has forgotten, from what lies at its destination.",
    "report": "Write a page about a job, with pictures, from what lies at its destination.",
    "logs": "Print what became of each image of a job, by whom and when.",
    "dev": "Keep a Redis and a worker running, for submit and status in other terminals.",
    "worker": "Start a worker on this node, for the Redis of VDSR_REDIS_URL.",
    "metrics": "Serve queues, open jobs and workers as metrics for Prometheus.",
    "health": "Exit with 0 if the worker here is alive, or ready: for probes.",
    "eval": "Print the paper's table for a folder of HR images.",
    "train": "Train a network on HR images, and publish it.",
    "models": "Publish weights, and decide which are in production.",
    "config": "Show the settings, and where each comes from.",
    "completion": "Print a script for bash, zsh or fish that completes words.",
    "doctor": "Say what works here, and what to do about what does not.",
}
MODULES = {"list": "listing", "eval": "evaluate"}  # names that would hide a builtin


class Commands(click.Group):
    """Knows every command's name and line of help; imports a command when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order of COMMANDS, which is the order of use."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """The command of a name."""
        if name not in COMMANDS:
            return None
        command: click.Command = import_module(f"cli.{MODULES.get(name, name)}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of commands, without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, with a suggestion for a misspelt name."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            from difflib import get_close_matches

            near = get_close_matches(args[0], COMMANDS, n=1)
            hint = f"did you mean '{near[0]}'?" if near else "see 'vdsr --help'."
            raise click.UsageError(f"no command {args[0]!r}; {hint}", ctx)
        return super().resolve_command(ctx, args)


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "VDSR", "max_content_width": 100},
)
@click.version_option(__version__, prog_name="vdsr")
@click.option("--profile", metavar="NAME", help="Settings of [profile.NAME] in configuration files; see 'vdsr config'.")
@click.option("-v", "--verbose", is_flag=True, help="Tell the settings in use, and log retries, on standard error.")
@click.option("-q", "--quiet", is_flag=True, help="Print results and errors only: no talk, no bar.")
@click.pass_context
def root(ctx: click.Context, profile: str | None, verbose: bool, quiet: bool) -> None:
    """Batch super-resolution of image collections with VDSR.

    \b
    vdsr upscale photos                    a folder, here and now, into photos-x2
    vdsr submit s3://bucket/prefix -s 4    a job for the workers; prints its id
    vdsr status JOB --watch
    """  # noqa: D301  # click takes this very character for "leave the lines as they are"
    ctx.meta[QUIET] = quiet
    if profile:
        from worker.settings import use_profile

        use_profile(profile)
    if verbose and quiet:
        raise click.UsageError("--verbose and --quiet exclude each other", ctx)
    if verbose:
        from cli.verbose import tell_more

        tell_more()
    if ctx.invoked_subcommand in ("upscale", "submit"):
        from cli.defaults import defaults_of

        known = defaults_of(ctx.invoked_subcommand)
        ctx.default_map = {ctx.invoked_subcommand: {name: default.value for name, default in known.items()}}


def main(argv: list[str] | None = None) -> None:
    """The console script: runs a command and exits."""
    sys.exit(run(argv))


def run(argv: list[str] | None = None) -> int:
    """Run a command; its exit code."""
    try:
        result = root.main(args=argv, prog_name="vdsr", standalone_mode=False)
    except click.ClickException as exc:
        exc.show()
        return 2
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted", err=True)
        return 130
    except BrokenPipeError:  # `vdsr list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as exc:
        return _failed(exc)
    return result if isinstance(result, int) else 0


def _failed(exc: Exception) -> int:
    """Print what went wrong; raise it again if it is a fault of ours."""
    from vdsr.device import DeviceError
    from vdsr.errors import CheckpointError, NonFinite, TrainingError, VdsrError
    from worker import errors

    codes: list[tuple[type[Exception], int]] = [
        (errors.NothingMatched, 7),
        (errors.UsageError, 2),
        (errors.NewerFormat, 2),
        (errors.NotFound, 5),
        (errors.TransientError, 6),
        (errors.StorageError, 6),
        (CheckpointError, 2),
        (DeviceError, 2),
        (TrainingError, 2),
        (NonFinite, 4),
        (VdsrError, 1),
    ]
    for kind, code in codes:
        if isinstance(exc, kind):
            from cli.output import printable

            click.echo("\n".join(map(printable, f"vdsr: {exc}".splitlines())), err=True)
            return code
    import traceback

    traceback.print_exception(exc)
    click.echo("vdsr: this is a fault of the program; please report the lines above", err=True)
    return 1


if __name__ == "__main__":
    main()

"""`vdsr train`: make weights, here or on a training worker."""

from __future__ import annotations

import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import click

from cli.completing import runs
from cli.options import as_json

if TYPE_CHECKING:
    from vdsr.training.run import Progress
    from worker.settings import Settings
    from worker.training.runs import Run


@click.command(
    name="train",
    epilog="Example: torchrun --nproc-per-node 4 --no-python -- vdsr train --local --run FOLDER --data photos",
)
@click.option("--data", multiple=True, metavar="URI", help="Folder or s3:// prefix of HR images; repeatable.")
@click.option("--recipe", default="best", show_default=True, help="best, paper, or a TOML file.")
@click.option("--set", "changes", multiple=True, metavar="KEY=VALUE", help="Change a value of the recipe; repeatable.")
@click.option(
    "--validation", "held", type=click.IntRange(min=1), default=12, show_default=True, help="Images kept aside."
)
@click.option("--version", "version_", help="Name of the weights  [default: the run's id]")
@click.option("--start", metavar="WEIGHTS", help="Begin with a model's weights: a version, an alias, or a file.")
@click.option("--run", "folder", metavar="URI", help="Where the run's files go; an unfinished run there goes on.")
@click.option("--publish", is_flag=True, help="Publish the weights, and promote them if validation says so.")
@click.option("--force", is_flag=True, help="With --publish: promote them whatever validation says.")
@click.option("--compile", "compiled", is_flag=True, help="Use torch.compile: faster, needs a C++ compiler.")
@click.option("--local", is_flag=True, help="Train here, in the foreground, without a queue.")
@click.option("--detach", is_flag=True, help="Do not follow the run; print its id.")
@click.option("--attach", metavar="RUN", shell_complete=runs, help="Follow a run that was started before.")
@as_json
def command(
    data: tuple[str, ...],
    recipe: str,
    changes: tuple[str, ...],
    held: int,
    version_: str | None,
    start: str | None,
    folder: str | None,
    publish: bool,
    force: bool,
    compiled: bool,
    local: bool,
    detach: bool,
    attach: str | None,
    as_json: bool,
) -> int:
    """Train a network on HR images, on a worker of the queue "train" or --local.

    \b
    vdsr train --local --data photos --run runs/mine    here; the same command goes on after Ctrl-C
    vdsr train --data s3://bucket/photos --publish      on a training worker (vdsr worker --queue train)
    """  # noqa: D301  # click takes this very character for "leave the lines as they are"
    from worker.errors import UsageError
    from worker.settings import load_settings

    settings = load_settings()
    if attach:
        from cli.runs import follow_run

        return follow_run(settings, attach, as_json=as_json)
    run = _drafted(
        settings, data, recipe, changes, held, version_, start, folder, publish=publish, force=force, compiled=compiled
    )
    if local and detach:
        raise UsageError("--local trains in the foreground; leave out --detach, or train on a worker")
    if local:
        return _train_here(run, settings, as_json=as_json)
    return _submitted(run, settings, detach=detach, as_json=as_json)


def _drafted(
    settings: Settings,
    data: tuple[str, ...],
    recipe: str,
    changes: tuple[str, ...],
    held: int,
    version: str | None,
    start: str | None,
    folder: str | None,
    *,
    publish: bool,
    force: bool,
    compiled: bool,
) -> Run:
    import time

    from vdsr.errors import RecipeError
    from vdsr.training.recipe import read_recipe
    from worker.errors import UsageError
    from worker.training.runs import Run, new_run_id

    if not data:
        raise UsageError("nothing to train on; give --data with a folder or s3://bucket/prefix of HR images")
    if force and not publish:
        raise UsageError("--force belongs to --publish")
    pairs = dict(change.partition("=")[::2] for change in changes)
    if bare := [change for change in changes if "=" not in change]:
        raise RecipeError(f"--set {bare[0]} has no value; write --set {bare[0]}=VALUE")
    run_id = new_run_id()
    if publish:
        _check_version(version or run_id, settings)
    return Run(
        id=run_id,
        data=tuple(_data(uri, settings) for uri in data),
        held=held,
        recipe=read_recipe(recipe, pairs),
        version=version or run_id,
        command=shlex.join(["vdsr", *sys.argv[1:]]),
        folder=_folder(folder, run_id, settings),
        start=_start(start, settings),
        publish=publish,
        force=force,
        compiled=compiled,
        created=time.time(),
    )


def _check_version(name: str, settings: Settings) -> None:
    """Tell now, and not after hours of training, that a version cannot have this name."""
    from worker.errors import NotFound, UsageError
    from worker.registry import Registry, check_name

    check_name(name)
    registry = Registry(settings)
    try:
        registry.version(name)
    except NotFound:
        return
    raise UsageError(
        f"{registry.uri} has a version {name!r} already; choose another --version, or 'vdsr models promote {name}'"
    )


def _data(uri: str, settings: Settings) -> str:
    from pathlib import Path

    from worker.errors import StorageError, StorageUnavailable, UsageError
    from worker.uris import open_storage, resolve

    place = resolve(uri, settings)
    if place.scheme == "file" and not Path(place.path).is_dir():
        raise UsageError(f"{place.path} is no folder; check the path, or write s3://bucket/prefix for S3")
    if place.scheme == "s3" and not uri.startswith("s3://"):
        try:
            next(open_storage(place.uri, settings).entries(), None)
        except (StorageError, StorageUnavailable) as exc:
            raise UsageError(f"{uri!r} does not exist here, and was read as {place.uri}: {exc}") from exc
    return place.uri


def _start(name: str | None, settings: Settings) -> str | None:
    """The weights to begin with, as the URI of a file that every worker can read."""
    from pathlib import Path

    from vdsr import checkpoint
    from worker.registry import SHIPPED, Registry

    if name is None or name == SHIPPED:
        return name
    if Path(name).is_file():
        checkpoint.identify(Path(name))
        return str(Path(name).absolute())
    registry = Registry(settings)
    return registry.weights_uri(registry.version(name))


def _folder(folder: str | None, run_id: str, settings: Settings) -> str:
    from worker.uris import Place, resolve

    local = Place("file", "", "/")
    if folder is None:
        return resolve(settings.runs, settings, beside=local).uri.rstrip("/") + f"/{run_id}"
    return resolve(folder, settings, beside=local).uri


def _submitted(run: Run, settings: Settings, *, detach: bool, as_json: bool) -> int:
    from cli.output import print_json, say
    from cli.runs import follow_run
    from worker.app import TRAINING
    from worker.client import Client
    from worker.errors import UsageError
    from worker.training.ledger import RunLedger

    client = Client.connect(settings)
    ledger = RunLedger(settings.redis_url)
    if other := ledger.in_folder(run.folder):
        raise UsageError(f"{other} trains in {run.folder}; follow it by 'vdsr train --attach {other}', or cancel it")
    ledger.create(run)
    client.queue.train(run.id)
    say(f"{run.id}: {run.recipe.name}, {run.recipe.steps:,} steps; files: {run.folder}")
    if not client.fleet.workers(TRAINING):
        say("no training worker seen in the last 30 s; start 'vdsr worker --queue train', or 'vdsr dev --train'")
    if not detach:
        return follow_run(settings, run.id, as_json=as_json)
    if as_json:
        print_json({"id": run.id, "folder": run.folder})
    else:
        click.echo(run.id)
    return 0


def _train_here(run: Run, settings: Settings, *, as_json: bool) -> int:
    from cli.output import live, print_json, say
    from cli.runs import exit_code, result_text, run_line
    from worker.fleet import Fleet
    from worker.training import require_training
    from worker.training.publish import conclude
    from worker.training.task import facts
    from worker.training.work import Watch, alone, do_run, together

    require_training()
    with together(settings.device) as leads, _interruptible() as check:
        if leads:
            say(f"{run.recipe.name}, {run.recipe.steps:,} steps; files: {run.folder}")
        with live(leads) as draw:

            def on_image(done: int, total: int) -> None:
                check()
                draw(run_line({"phase": "reading images", "done": done, "total": total}))

            def on_progress(progress: Progress) -> None:
                check()
                draw(run_line({"phase": "training", **facts(progress)}))

            try:
                with alone(run.folder, settings) if leads else nullcontext():
                    trained = do_run(run, settings, Watch(on_image, on_progress))
            except KeyboardInterrupt:
                if leads:
                    say(f"stopped; the same command with --run {run.folder} goes on from here")
                return 130
        if not leads:
            return 0
        result = conclude(run, trained, settings, Fleet(settings.redis_url) if run.publish else None)
    if as_json:
        print_json(result)
    else:
        say(result_text(result))
    return exit_code("completed", result)


@contextmanager
def _interruptible() -> Iterator[Any]:
    """A function that raises KeyboardInterrupt once Ctrl-C or SIGTERM has come: between two steps, never within one."""
    asked: list[int] = []

    def ask(number: int, _: object) -> None:
        if number in asked:  # a second time: at once. (torchrun follows a Ctrl-C by a SIGTERM of its own.)
            sys.exit(130)
        asked.append(number)

    def check() -> None:
        if asked:
            raise KeyboardInterrupt

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield check
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

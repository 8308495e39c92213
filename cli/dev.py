"""`vdsr dev`: a Redis and a worker that stay, so that submit and status need no settings."""

from __future__ import annotations

import signal
import time

import click


@click.command(name="dev", epilog="Example: vdsr dev --train")
@click.option("--train", "training", is_flag=True, help="A training worker too, for 'vdsr train'.")
def command(training: bool) -> int:
    """Keep a Redis and a worker running here until Ctrl-C.

    Other terminals of the same user find them by themselves: vdsr submit photos; vdsr status JOB. Jobs survive a
    restart: Redis keeps its append-only file in the state folder (VDSR_STATE_DIR).
    """
    import dataclasses
    from contextlib import ExitStack

    from cli.output import say
    from worker.app import QUEUE, TRAINING
    from worker.embedded import LocalRedis, LocalWorker
    from worker.settings import load_settings

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a stop by a supervisor is a Ctrl-C
    settings = load_settings()
    folder = settings.state_dir
    try:
        with LocalRedis(folder) as redis:
            say(f"Redis at {redis.url}")
            mine = dataclasses.replace(settings, redis_url=redis.url, grace_s=min(settings.grace_s, 3))
            queues = [QUEUE, TRAINING] if training else [QUEUE]
            with ExitStack() as stack:
                workers = [
                    stack.enter_context(LocalWorker(mine, folder, to_terminal=True, queue=queue)) for queue in queues
                ]
                say("worker starting; in another terminal: vdsr submit FOLDER    (Ctrl-C ends all)")
                while True:
                    for kept in (redis, *workers):
                        kept.keep_up()
                    time.sleep(1)
    except KeyboardInterrupt:
        say("stopped; unfinished jobs go on at the next 'vdsr dev'")
        return 130

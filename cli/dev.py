"""`vdsr dev`: a Redis and a worker that stay, so that submit and status need no settings."""

from __future__ import annotations

import signal
import time

import click


@click.command(name="dev")
def command() -> int:
    """Keep a Redis and a worker running here until Ctrl-C.

    Other terminals of the same user find them by themselves: vdsr submit photos; vdsr status JOB. Jobs survive a
    restart: Redis keeps its append-only file in the state folder (VDSR_STATE_DIR).
    """
    import dataclasses

    from cli.output import say
    from worker.embedded import LocalRedis, LocalWorker
    from worker.settings import load_settings

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a stop by a supervisor is a Ctrl-C
    settings = load_settings()
    folder = settings.state_dir
    try:
        with LocalRedis(folder) as redis:
            say(f"Redis at {redis.url}")
            mine = dataclasses.replace(settings, redis_url=redis.url, grace_s=min(settings.grace_s, 3))
            with LocalWorker(mine, folder, to_terminal=True) as worker:
                say("worker starting; in another terminal: vdsr submit FOLDER    (Ctrl-C ends both)")
                while True:
                    redis.keep_up()
                    worker.keep_up()
                    time.sleep(1)
    except KeyboardInterrupt:
        say("stopped; unfinished jobs go on at the next 'vdsr dev'")
        return 130

"""How does a helper process end with the program that started it, even if that program is killed?

`python -m worker.guard COMMAND...` runs the command in a process group of its own and reads standard input, a pipe
whose other end only the starter holds. When the starter is gone, for whatever reason, the pipe ends, and so does the
command: asked first, killed after GRACE_S. Ctrl-C in the starter's terminal does not reach it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

GRACE_S = 30.0


def main(command: list[str]) -> int:
    """Run a command until it ends or standard input does; its exit status."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    signal.signal(signal.SIGTERM, lambda *_: child.terminate())

    def watch() -> None:
        while os.read(0, 4096):
            pass
        child.terminate()
        try:
            child.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
    status = child.wait()
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

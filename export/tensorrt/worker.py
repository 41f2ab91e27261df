"""The process in which a plan is built: a job as one JSON line in, progress and the answer as JSON lines out.

It ends when its input does, so that it never outlives who asked. It builds in a thread, whose heap starts empty and is
used by nothing else: with fixed addresses (:mod:`export.tensorrt.addresses`), equal jobs then give equal plans.
"""

from __future__ import annotations

import os
import select
import signal
import sys
from threading import Thread
from typing import Any


def main() -> int:
    """Do one job from standard input."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Who asked hears Ctrl-C too, and ends this process.
    job = sys.stdin.buffer.readline()
    done, finished = os.pipe()
    thread = Thread(target=_answer, args=(job, finished), daemon=True)
    thread.start()
    if sys.platform != "win32" and done not in select.select([done, sys.stdin.fileno()], [], [])[0]:
        os._exit(1)  # Nobody waits for the answer any more.
    thread.join()
    return 0


def _answer(line: bytes, finished: int) -> None:
    import msgspec

    from export.tensorrt.build import decode
    from export.tensorrt.flavours import load
    from export.tensorrt.job import Job, do
    from foundation.errors import ArcFlowError

    try:
        job = decode(msgspec.json.decode(line), Job)
        _say({"built": do(job, load(job.flavour), _say)})
    except ArcFlowError as error:
        _say({"error": str(error)})
    except OSError as error:
        _say({"error": error.strerror or str(error), "errno": error.errno})
    finally:
        os.close(finished)


def _say(message: Any) -> None:
    from export.tensorrt.build import encode

    os.write(sys.stdout.fileno(), encode(message) + b"\n")


if __name__ == "__main__":
    sys.exit(main())

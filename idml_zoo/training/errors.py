"""How a run ends that cannot go on: one clear line on stderr, and an exit status."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from idml_zoo.training.console import print_error, warn

STOPPED = 143  # exit status of a run that was asked to stop: 128 + SIGTERM
INTERRUPTED = 130  # 128 + SIGINT
_LOST_WORKER = ("killed by signal", "exited unexpectedly", "shared memory")  # in torch's messages


class TrainingError(RuntimeError):
    """A run that cannot go on: a loss that is not finite, or a network that has collapsed."""


class Stopped(Exception):
    """The run was asked to stop, and has saved where it was."""


@dataclass
class Outcome:
    """The exit status of what ran within :func:`one_line_errors`."""

    status: int = 0


@contextmanager
def one_line_errors() -> Iterator[Outcome]:
    """Prints an expected error as one line and sets the status; what is a mistake of the code is raised."""
    outcome = Outcome()
    try:
        yield outcome
    except Stopped as stopped:
        warn(str(stopped))
        outcome.status = STOPPED
    except KeyboardInterrupt:
        warn("interrupted; the same command goes on from the last checkpoint, where there is one")
        outcome.status = INTERRUPTED
    except (ValueError, OSError, TrainingError) as error:  # the project's own errors are ValueErrors
        text = str(error)
        if "DataLoader worker" in text:  # torch wraps the worker's whole traceback: its last line is the message
            text = text.strip().splitlines()[-1].partition(": ")[2]
        print_error(type(error).__name__, text)
        outcome.status = 1
    except torch.OutOfMemoryError as error:
        advice = "Lower batch_size, or try accumulate=4, mixed_precision=bf16 or gradient_checkpointing=true"
        print_error("OutOfMemoryError", f"{str(error).splitlines()[0]} {advice}")
        outcome.status = 1
    except RuntimeError as error:
        text = str(error).partition("\n")[0]
        if not any(sign in text for sign in _LOST_WORKER):
            raise
        advice = "out of memory, or /dev/shm is too small (docker: --shm-size=8g); lower workers=, or workers=0"
        print_error(
            "TrainingError",
            f"a loader process was lost ({text}): {advice}. The same command goes on from the last checkpoint",
        )
        outcome.status = 1


def leave(status: int) -> None:
    """Ends this process with a status.

    One of several processes leaves without shutting the interpreter down: a gloo thread that releases a Python object
    meanwhile aborts a process that has finished its work (seen in one of three runs with torch 2.15).
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)

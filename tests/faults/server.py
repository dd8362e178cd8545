"""A process that imports everything once and forks a child for each command: a case costs a fraction of a second.

Requests and answers are lines of JSON on stdin and stdout. A child watches its own file events by an audit hook, and
dies of SIGKILL just before the one that it was told. Libraries written in Rust cause no such events, so their writer of
weights is wrapped.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import resource
import select
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

TEXT_LIMIT = 100_000
"""Characters of stdout and stderr that an answer holds."""
HANGING = 10
"""Times the processor time it may take, by the clock: then it hangs. On a busy machine a command waits for its turn."""
CHANGING = ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate")


class Watch:
    """Counts the changes below `out`, notes writes elsewhere and everything opened below `forbidden`."""

    def __init__(self, request: dict[str, Any]) -> None:
        self.out = os.path.abspath(request["out"]) if request.get("out") else None
        self.allowed = ("/dev/null", *(os.path.abspath(path) for path in request.get("allowed", ())))
        self.forbidden = tuple(os.path.abspath(path) for path in request.get("forbidden", ()))
        self.die_at: int | None = request.get("die_at")
        self.torn: bool = request.get("torn", False)
        self.events: list[list[str]] = []
        self.strayed: list[str] = []
        self.opened: list[str] = []

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if isinstance(path, int):
                return
            place = _absolute(path)
            if self.forbidden and _below(place, self.forbidden):
                self.opened.append(place)
            if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND):
                self.change(event, place, flags)
        elif event in CHANGING:
            if isinstance(arguments[0], int):  # an open file, whose opening was seen
                return
            named = len(arguments) > 2 and event in ("os.rename", "os.link")
            folder = arguments[-1] if not named else arguments[3] if len(arguments) > 3 else -1
            self.change(event, _absolute(arguments[1] if named else arguments[0], folder))

    def change(self, event: str, place: str, flags: int = 0) -> None:
        if self.out is not None and _below(place, (self.out,)):
            self.events.append([event, os.path.relpath(place, self.out)])
            if len(self.events) == self.die_at:
                if self.torn and event == "open":
                    _tear(place, flags)
                if not (self.torn and event == "store"):  # that one dies after half of the file
                    os.kill(os.getpid(), signal.SIGKILL)
        elif not _below(place, self.allowed):
            self.strayed.append(f"{event} {place}")

    def wrap_storing(self) -> None:
        """safetensors writes files in Rust, where no audit hook looks."""
        import safetensors.numpy
        import safetensors.torch

        for module in (safetensors.torch, safetensors.numpy):
            original = module.serialize_file

            def store(tensors: Any, filename: Any, metadata: Any = None, original: Any = original) -> None:
                self.change("store", _absolute(filename))
                original(tensors, filename, metadata)
                if self.torn and len(self.events) == self.die_at:
                    os.truncate(filename, os.path.getsize(filename) // 2)
                    os.kill(os.getpid(), signal.SIGKILL)

            module.serialize_file = store


def _tear(place: str, flags: int) -> None:
    """What a death between opening and writing leaves: an empty file, or a line begun."""
    with contextlib.suppress(OSError):
        file = os.open(place, flags & ~os.O_EXCL, 0o666)
        if flags & os.O_APPEND:
            os.write(file, b'{"torn')


def _absolute(path: Any, folder: Any = -1) -> str:
    name = os.fsdecode(path) if isinstance(path, str | bytes | os.PathLike) else str(path)
    if isinstance(folder, int) and folder >= 0 and not os.path.isabs(name):
        with contextlib.suppress(OSError):
            name = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), name)
    return os.path.abspath(name)


def _below(place: str, folders: tuple[str, ...]) -> bool:
    return any(place == folder or place.startswith(folder + "/") for folder in folders)


def serve() -> None:
    preload()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    answers.write("ready\n")
    answers.flush()
    for line in sys.stdin:
        answers.write(json.dumps(run(json.loads(line))) + "\n")
        answers.flush()


def preload() -> None:
    """Every module of unitok, and what it imports only when it is asked."""
    names = ("datasets", "matplotlib.figure", "lpips", "torchmetrics", "transformers", "torch.utils.tensorboard")
    for name in (*names, "torch._dynamo"):  # which optimizers import
        importlib.import_module(name)
    root = Path(__file__).resolve().parents[2]
    inner = [(f"unitok.{name}", name) for name in ("train", "sample", "eval")]
    for room, folder in [("tokenizers_vq", "tokenizers_vq"), ("unitok", "unitok"), *inner]:
        for path in sorted((root / folder).rglob("*.py")):
            parts = path.relative_to(root / folder).with_suffix("").parts
            if parts[-1] not in ("__init__", "__main__"):
                with contextlib.suppress(ImportError):  # extras
                    importlib.import_module(".".join((room, *parts)))


def run(request: dict[str, Any]) -> dict[str, Any]:
    """Forks, waits, and says how it went."""
    folder = Path(request["scratch"])
    (folder / "answer").unlink(missing_ok=True)
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        _child(request, folder)
    ended, struck = _wait(child, request)
    _, status, usage = os.wait4(child, 0)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # its loader processes
    answer: dict[str, Any] = {"events": [], "strayed": [], "opened": [], "result": None}
    with contextlib.suppress(FileNotFoundError):
        answer = json.loads((folder / "answer").read_bytes())
    answer |= {
        "code": os.waitstatus_to_exitcode(status),
        "ended": ended,
        "struck": struck,
        "seconds": time.monotonic() - started,
        "memory": usage.ru_maxrss / 1024,
    }
    for name in ("stdout", "stderr"):
        text = (folder / name).read_bytes().decode("utf-8", "replace")
        answer[name] = text[-TEXT_LIMIT:]
    return answer


def _wait(child: int, request: dict[str, Any]) -> tuple[str, bool]:
    """Waits until the child has ended, strikes it at its time, kills it when it takes too long or too much. Says why
    it ended, and whether it was struck."""
    limit, memory, after = request.get("timeout", 60), request.get("memory", 3000), request.get("strike_after")
    handle = os.pidfd_open(child)
    page = resource.getpagesize()
    started = time.monotonic()
    end = started + HANGING * limit
    why, struck = "itself", False
    try:
        while True:
            left = 0.05 if after is None or struck else max(0.0, min(0.05, started + after - time.monotonic()))
            if select.select([handle], [], [], left)[0]:
                return why, struck
            now = time.monotonic()
            with contextlib.suppress(OSError, IndexError):
                if int(Path(f"/proc/{child}/statm").read_text().split()[1]) * page / 2**20 > memory:
                    why = "memory"
                if _processor_seconds(child) > limit:
                    why = "time"
            if now > end:
                why = "hanging"
            if after is not None and not struck and now >= started + after:
                struck = True
                if request.get("grace") is None:
                    why = "killed"
                else:
                    os.kill(child, signal.SIGTERM)
                    end = now + request["grace"]
            if why != "itself":
                os.kill(child, signal.SIGKILL)
    finally:
        os.close(handle)


def _processor_seconds(child: int) -> float:
    """What it has computed so far."""
    fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _child(request: dict[str, Any], folder: Path) -> None:
    code = 1
    watch = Watch(request)
    result = None
    try:
        os.setsid()
        for number, name in ((1, "stdout"), (2, "stderr")):
            file = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
            os.dup2(file, number)
            os.close(file)
        source = os.open(request.get("stdin") or os.devnull, os.O_RDONLY)
        os.dup2(source, 0)
        os.environ.update(request.get("env", {}))
        os.chdir(request["cwd"])
        if request.get("largest_file") is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (request["largest_file"], resource.RLIM_INFINITY))
        for place, value in request.get("patch", {}).items():
            module, _, name = place.partition(":")
            kind = type(getattr(importlib.import_module(module), name))
            setattr(importlib.import_module(module), name, kind(value))
        watch.wrap_storing()
        sys.addaudithook(watch)
        if request.get("call"):
            module, _, name = request["call"].partition(":")
            result = getattr(importlib.import_module(module), name)(*request["words"])
            code = 0
        else:
            from unitok.cli.main import main

            sys.argv = ["unitok", *request["words"]]
            code = main(request["words"])
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 0 if error.code is None else 1
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        answer = {"events": watch.events, "strayed": watch.strayed, "opened": watch.opened, "result": result}
        (folder / "answer").write_text(json.dumps(answer))
        os._exit(code)


if __name__ == "__main__":
    serve()

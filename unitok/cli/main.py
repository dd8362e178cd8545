"""The command line: `unitok COMMAND [--option VALUE ...]`.

This module only finds the command and reports errors; it imports nothing heavy, so that `unitok --help` is immediate.
What a command accepts is read from the signature of its function (arguments.py); commands.py lists the commands.
"""

from __future__ import annotations

import difflib
import errno
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from io import TextIOWrapper
from pathlib import Path
from types import FrameType

from tokenizers_vq.errors import UserError, shown

from .. import __version__
from ..processes import places, refused_together
from .commands import COMMANDS

LONGEST_LINE = 1000
"""Characters of a line of an error."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit code: 0 done, 2 for what the user can put right, 130 after Ctrl-C. SIGTERM
    ends the process with 143.

    Anything else is a bug and keeps its traceback.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):  # a caption may hold what the terminal's encoding lacks
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        with _ended_by_a_signal():
            return _dispatch(words)
    except UserError as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output, such as `head`, has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except SystemExit:
        raise
    except BaseException as error:
        message = said_in_a_line(error)
        if message is None:
            raise
        return _fail(message)


@contextmanager
def _ended_by_a_signal() -> Iterator[None]:
    """While entered, SIGTERM ends the process at once, with a line. A training saves first (`train/signals.py`).

    Without a handler nothing is said, and the first process of a container would not even end. Nothing is tidied up:
    what a command writes stands a kill. Of several processes the launcher tells, and there a handler would wait as long
    as a collective that hangs.
    """
    if places()[1] > 1 or threading.current_thread() is not threading.main_thread():
        yield
        return
    own = os.getpid()

    def end(number: int, frame: FrameType | None) -> None:
        with suppress(OSError):  # nobody may listen any more
            if os.getpid() == own:  # processes that it forks end silently
                os.write(2, b"stopped by a signal\n")
        os._exit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def said_in_a_line(error: BaseException) -> str | None:
    """What a user can put right about an error of the system or of a library, wherever in the chain of causes it hides;
    None for what is a bug of ours."""
    if type(error).__name__ == "PanicException":  # of a library written in Rust; no subclass of Exception
        return f"a library could not read a file: {_short(error)}: the file is damaged or malicious, use another one"
    cause: BaseException | None = error
    while cause is not None:
        code = cause.errno if isinstance(cause, OSError) else None
        # Libraries written in Rust or C++ wrap the system's error into their own type and keep only its text.
        if code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or "No space left on device" in str(cause):
            path = f" while writing {str(cause.filename)!r}" if isinstance(cause, OSError) and cause.filename else ""
            return f"the disk is full{path}: free some space and run the same command again"
        text = str(cause)
        if isinstance(cause, MemoryError) or "can't allocate memory" in text or "CUDA out of memory" in text:
            return f"out of memory ({_short(cause)}): choose smaller sizes or a smaller batch"
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, OSError) and error.errno is not None:
        path = shown(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else "a file"
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            return f"no permission for {path}: choose another folder or change its permissions"
        return f"{path} cannot be used ({error.strerror}): give another path"
    if isinstance(error, RecursionError):
        return "something given is nested too deep: write it flat"
    if isinstance(error, UnicodeError):
        return f"an argument is not valid text ({_short(error)}): write it in UTF-8"
    if isinstance(error, ValueError) and "null byte" in str(error):
        return "a path holds a zero byte: give another path"
    return None


def _short(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text[:160] or type(error).__name__


def _fail(message: str) -> int:
    """Prints a message, whose lines begin with two spaces where there are several. What else would break a line or
    steer the terminal came with a value, such as a file's name, and is written out; a long line loses its middle."""
    text = re.sub(r"\n(?!  )|[\x00-\x09\x0b-\x1f\x7f]", lambda found: repr(found[0])[1:-1], message)
    for line in f"error: {text}".split("\n"):
        cut = len(line) > LONGEST_LINE
        print(f"{line[: LONGEST_LINE // 2]} ... {line[-LONGEST_LINE // 2 :]}" if cut else line, file=sys.stderr)
    return 2


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0
    if words[0] == "--version":
        print(f"unitok {__version__}")
        return 0
    for length in (2, 1):
        name = " ".join(words[:length])
        if name in COMMANDS:
            run(name, words[length:])
            return 0
    group = words[0]
    if any(name.startswith(f"{group} ") for name in COMMANDS) and (len(words) == 1 or words[1] in ("-h", "--help")):
        print(_overview(group))
        return 0
    raise UserError(_unknown(words))


def run(name: str, words: Sequence[str]) -> None:
    """Runs one command; alone in its output folder, if it has one. `--no_verify` is an option of all commands."""
    from tokenizers_vq.storage.digests import unverified

    from ..lock import only_writer
    from .arguments import parse

    command = COMMANDS[name]
    rest = [word for word in words if word not in ("--no_verify", "--no-verify")]
    with refused_together() if command.meets else nullcontext():
        function, values = parse(name, command, rest)
    with ExitStack() as stack:
        if len(rest) < len(words):
            stack.enter_context(unverified())
        out = values.get("out")
        if isinstance(out, Path) and not command.out_is_file and not command.meets:
            stack.enter_context(only_writer(out))
        function(**values)


def _overview(group: str = "") -> str:
    """The help of `unitok` or of a group such as `unitok train`."""
    lines = [
        f"usage: unitok {group or 'COMMAND'}{' COMMAND' if group else ''} [--option VALUE ...]",
        "",
        *([] if group else ["Unified discrete-token image and text models.", ""]),
        "commands:",
        *(f"  {name:<16} {command.summary}" for name, command in COMMANDS.items() if name.startswith(group)),
        "",
        "`unitok COMMAND --help` shows the options of a command and an example. Every command takes --config FILE.yaml",
        "(options on the command line win over it), --print_config, which writes such a file, and --no_verify, which",
        "opens folders faster, without comparing their files with the digests they were written with.",
    ]
    return "\n".join(lines)


def _unknown(words: list[str]) -> str:
    firsts = list(dict.fromkeys(name.split()[0] for name in COMMANDS))
    if words[0] in firsts:
        given, known = " ".join(words[:2]), [name for name in COMMANDS if name.startswith(f"{words[0]} ")]
    else:
        given, known = words[0], firsts
    close = difflib.get_close_matches(" ".join(words[:2]), COMMANDS, n=1) or difflib.get_close_matches(
        given, known, n=1
    )
    hint = f"did you mean {close[0]!r}? " if close and " -" not in given else ""  # an option is no misspelt word
    return f"unknown command {given!r}: {hint}choose one of {', '.join(known)}"

"""The ``twohop`` command as it is typed: what it prints when it fails, and its exit codes."""

from __future__ import annotations

import json
import os
import sys

from twohop_lib.errors import TwohopError


def main() -> None:
    """Run the command.

    A failure is one sentence on standard error and exit code 1 (2: misused, 130: Ctrl-C); where
    JSON was asked for, standard output then holds ``{"ok": false, "error": …}``.
    """
    if not sys.stderr.isatty():  # bars of weights and downloads; kernels inherit this
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        sys.exit(_run())
    except TwohopError as error:
        _tell(str(error))
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        _tell("interrupted")
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except Exception as error:  # a defect: with its traceback
        _tell(f"{type(error).__name__}: {error}")
        raise


def _run() -> int | None:
    from typer import rich_utils

    from twohop_lib.commands import app

    try:
        code = app(standalone_mode=False)
    except Exception as error:
        # Of the parser: an option that is unknown or lacks its value, or Ctrl-C in old versions.
        if type(error).__name__ == "Abort":
            raise KeyboardInterrupt from error
        if not hasattr(error, "format_message"):
            raise
        _tell(error.format_message())
        rich_utils.rich_format_error(error)
        return error.exit_code
    if code == 130:
        raise KeyboardInterrupt
    return code if isinstance(code, int) else None


def _tell(what: str) -> None:
    if "--json" in sys.argv[1:]:
        print(json.dumps({"ok": False, "error": what}))

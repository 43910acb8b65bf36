"""What a notebook's kernel does better when it knows of steps: short errors, and no stale results.

Everything here does nothing outside IPython.
"""

import html
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

_LIBRARY = Path(__file__).parents[1]
# What the library raises on purpose, with a message for people; anything else is a fault, and needs its frames.
_DELIBERATE = (ValueError, OSError, RuntimeError, ImportError)


class _Opened:
    """Which step the kernel has open, which names there were before the first, and which were cleared since."""

    identity: str = ""
    before: frozenset[str] = frozenset()
    cleared: frozenset[str] = frozenset()


def set_up() -> None:
    """Have the kernel show errors that are meant for people as their one message."""
    shell = _shell()
    if shell:
        shell.set_custom_exc((Exception,), _show)


def opened(identity: str) -> None:
    """Clear what was computed for another step than this one, so that no cell can mix the two.

    Parameters
    ----------
    identity : of the step and of all params; opened again, it keeps everything.
    """
    shell = _shell()
    if shell is None:
        return
    names = shell.user_ns
    if not _Opened.identity:
        _Opened.before = frozenset(names)
    elif _Opened.identity != identity:
        stale = [
            name
            for name, value in names.items()
            if not (name in _Opened.before or name.startswith("_") or isinstance(value, ModuleType | type))
            and not callable(value)
        ]
        for name in stale:
            del names[name]
        _Opened.cleared = frozenset(stale)
        if stale:
            print(f"cleared, as computed for what was open before: {', '.join(sorted(stale))}")
    _Opened.identity = identity


def _shell() -> Any:
    """IPython's shell, such as a notebook's kernel has; None in a plain Python."""
    return sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None


def _show(shell: Any, kind: type, error: Exception, trace: Any, tb_offset: int | None = None) -> None:
    message = _for_people(shell, kind, error, trace)
    if message is None:
        shell.showtraceback((kind, error, trace), tb_offset=tb_offset)
        return
    from IPython.display import HTML, display

    frames = html.escape("".join(traceback.format_exception(kind, error, trace)))
    display(HTML(f"<details><summary>traceback</summary><pre>{frames}</pre></details>"))
    shell._showtraceback(kind, error, [f"{kind.__name__}: {message}"])


def _for_people(shell: Any, kind: type, error: Exception, trace: Any) -> str | None:
    """The message to show alone, or None where the frames are wanted."""
    if issubclass(kind, NameError) and error.name in _Opened.cleared:
        return f"`{error.name}` was computed for what was open before, and cleared. {_RUN_ABOVE}"
    if issubclass(kind, NameError) and not _is_set_up(shell.user_ns):
        return f"`{error.name}` is not there: this kernel is new, and the cells above have not run in it. {_RUN_ABOVE}"
    innermost = traceback.extract_tb(trace)[-1].filename
    deliberate = issubclass(kind, _DELIBERATE) and _LIBRARY in Path(innermost).parents
    return str(error) if deliberate else None


def _is_set_up(names: dict[str, Any]) -> bool:
    """Say whether a notebook's setup cell has run, which imports from the library."""
    origins = (
        value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", "")
        for value in names.values()
    )
    return any(str(origin).startswith(_LIBRARY.name) for origin in origins)


_RUN_ABOVE = "Run > Run All Above Selected Cell, then this cell."

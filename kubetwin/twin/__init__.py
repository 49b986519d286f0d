"""`kubectl twin`: twins read, written, followed and explained through the kubectl that runs the plugin.

- `commands`, `options`: the command line, and how commands end
- `getting`, `setting`, `history`: what `get`, `set` and `history` do; `world`: list and watch; `asking`, `edge`:
  questions to a node
- `wishes`, `verdicts`, `shapes`, `describe`, `text`: pure; `kubetwin.rows` makes the rows
"""

from __future__ import annotations

from kubetwin.twin.commands import describe_command, get_command, history_command, set_command

__all__ = ["describe_command", "get_command", "history_command", "set_command"]

"""Where the join token is, and how it is taken away once it was used."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import yaml

from edgecore.joining.job import bootstrap_files
from edgecore.joining.pair import write_file

__all__ = ["find_token", "forget_token", "set_scalar"]

_TOKEN_KEYS: Final = ("modules", "edgeHub", "token")
_MAX_BYTES: Final = 1024 * 1024


def find_token(config_file: Path) -> str:
    """Of the bootstrap file, else of `modules.edgeHub.token`; empty: there is none.

    Raises:
        OSError: A file is there and cannot be read.
        ValueError: The configuration is no YAML.
    """
    for file in bootstrap_files(config_file):
        if file.exists() and (text := file.read_bytes()[:_MAX_BYTES].decode(errors="replace").strip()):
            return text
    try:
        data: Any = yaml.safe_load(config_file.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{config_file} is no YAML") from error
    for key in _TOKEN_KEYS:
        data = data.get(key) if isinstance(data, dict) else None
    return data.strip() if isinstance(data, str) else ""


def forget_token(config_file: Path) -> str:
    """Take it out of both places; nothing else in the configuration changes. Returns what is left to do by hand, or
    nothing.
    """
    left = []
    for file in bootstrap_files(config_file):
        try:
            file.unlink(missing_ok=True)
        except OSError as error:
            left.append(f"remove {file} ({error.strerror})")
    try:
        text = config_file.read_text()
        if (blanked := set_scalar(text, _TOKEN_KEYS, '""')) is None:
            left.append(f"take modules.edgeHub.token out of {config_file}")
        elif blanked != text:
            target = config_file.resolve()
            write_file(target, blanked.encode(), target.stat().st_mode & 0o777)
    except (OSError, UnicodeDecodeError) as error:
        left.append(f"take modules.edgeHub.token out of {config_file} ({error})")
    return "; ".join(left)


def set_scalar(text: str, keys: tuple[str, ...], value: str) -> str | None:
    """A YAML text with the one scalar at `keys` replaced, comments and all else as they were; the text itself where the
    scalar is not there or empty. None: it cannot be done.
    """
    try:
        return _set_scalar(text, keys, value)
    except yaml.YAMLError:  # an alias, say, of what is to be replaced
        return None


def _set_scalar(text: str, keys: tuple[str, ...], value: str) -> str | None:
    node: Any = yaml.compose(text, Loader=yaml.SafeLoader)
    for key in keys:
        if not isinstance(node, yaml.MappingNode):
            return text
        node = next((child for name, child in node.value if name.value == key), None)
    if node is None:
        return text
    if not isinstance(node, yaml.ScalarNode):
        return None
    if not node.value:
        return text
    start, end = node.start_mark.index, node.end_mark.index
    changed = text[:start] + value + ("\n" if node.style in ("|", ">") else "") + text[end:]
    before, after = yaml.safe_load(text), yaml.safe_load(changed)
    _drop(before, keys)
    _drop(after, keys)
    return changed if before == after else None


def _drop(data: Any, keys: tuple[str, ...]) -> None:
    for key in keys[:-1]:
        data = data[key]
    del data[keys[-1]]

"""Does one job and ends: `python -m edgecore.joining.child`, the job on standard input, the outcome on standard output.

It ends at once when edge core does, so that two of them never work on the same files; wherever that happens, the files
are whole (`edgecore.joining.pair`).
"""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from edgecore.joining.identity import NodeFiles, NoIdentity, read_identity
from edgecore.joining.job import BOOTSTRAP_FILE, Job, Outcome
from edgecore.joining.pair import install, set_file, write_file

if TYPE_CHECKING:
    from edgecore.joining.request import Certified

__all__ = ["do"]


def do(job: Job) -> Outcome:
    """Ask the servers in turn, and put what the first gives into the files."""
    try:
        from edgecore.joining.request import JoinError, servers_of
    except ModuleNotFoundError as missing:
        if (missing.name or "").startswith(("edgecore", "cloudedge")):
            raise
        return Outcome(f"{missing.name} is not installed: pip install 'kubetwin[edge]'", final=True)
    try:
        text = _token_text(job) if job.what == "join" else ""
        errors: list[JoinError] = []
        for server in servers_of(job.servers):
            try:
                _ask(job, server, text)
                return Outcome(remark=_forget(job))
            except JoinError as error:
                errors.append(error)
        return Outcome("; ".join(map(str, errors)), final=all(error.final for error in errors))
    except JoinError as error:
        return Outcome(str(error), final=error.final)
    except OSError as error:
        return Outcome(f"{error.filename or job.files}: {error.strerror or error}")
    except ValueError as error:
        return Outcome(str(error), final=True)


def _token_text(job: Job) -> str:
    from edgecore.joining.request import JoinError
    from edgecore.joining.tokens import find_token

    text = find_token(Path(job.config_file)) if job.config_file else job.token
    if not text:
        where = f"put one into {Path(job.config_file).with_name(BOOTSTRAP_FILE)}, or " if job.config_file else ""
        raise JoinError(
            f"there is no join token: make one with `kubetwin token` on the cloud's side, and {where}run `kubetwin"
            f" join --cloudcore HOST:10000 --node {job.node} --token …` here",
            final=True,
        )
    return text


def _ask(job: Job, server: str, text: str) -> None:
    from edgecore.joining.request import certify, fetch_ca, identified, read_token

    if job.what == "renew":
        _put(job, certify(server, job.node, identified(job.files)), b"")
        return
    token = read_token(text)
    ca = fetch_ca(server, token)
    _put(job, certify(server, job.node, ca.context, token), ca.pem)


def _put(job: Job, got: Certified, ca: bytes) -> None:
    """Into the files, if it is what we asked for.

    Raises:
        JoinError: It is not, and the files are as they were.
    """
    from edgecore.joining.request import JoinError

    new_set = got.key + got.certificate + ca
    trial = set_file(job.files).with_suffix(".trial")
    trial_ca = trial.with_suffix(".trial-ca")
    try:
        write_file(trial, got.key + got.certificate, 0o600)
        if ca:
            write_file(trial_ca, ca, 0o600)
        trusted = str(trial_ca) if ca else job.files.ca
        read_identity(NodeFiles(trusted, str(trial), str(trial)), job.node)
    except NoIdentity as error:
        if not error.early:  # upstream's starts this very second by the cloud's clock, and ours may be behind
            said = str(error).partition(": ")[2] or str(error)
            raise JoinError(f"the cloud's certificate for {job.node} is of no use: {said}") from error
    finally:
        trial.unlink(missing_ok=True)
        trial_ca.unlink(missing_ok=True)
    install(job.files, new_set)


def _forget(job: Job) -> str:
    if job.what == "renew" or not job.config_file:
        return ""
    from edgecore.joining.tokens import forget_token

    left = forget_token(Path(job.config_file))
    return f"the join token is used, but still there: {left}" if left else ""


def _end_with_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(1)


def _main() -> None:
    job = msgspec.json.decode(sys.stdin.buffer.readline(), type=Job)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    sys.stdout.buffer.write(msgspec.json.encode(do(job)))
    sys.stdout.buffer.flush()
    os._exit(0)  # the thread still reads


if __name__ == "__main__":
    _main()

"""`kubetwin demo`: the whole path of a value on one machine, every part a process of its own.

    simulator ── mapper-modbus ── edgecore ── cloudcore ── apiserver ── your kubectl

Nothing here takes part in the path: the demo writes the files, starts the processes, applies `examples/modbus` with a
real kubectl, and then only watches. It does not restart what you kill: it shows the command that does, and takes over
a process that was started with that command, so that nothing is left when it ends.
"""

from kubetwin.demo.app import run

__all__ = ["run"]

"""Edge core: keeps the twins of a node's devices, between their mappers and the cloud, and loses none while it is away.

The command is `edgecore`; `edgecore.config` holds its settings. The rest is for this package alone.
"""

__all__: list[str] = []

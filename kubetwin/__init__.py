"""The command line, the demo, and the embedded Kubernetes API: everything that stands on top of the other packages."""

__all__: list[str] = []

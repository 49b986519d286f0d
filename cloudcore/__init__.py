"""The cloud side: CloudHub for edge nodes, and the controllers between them and the Kubernetes API."""

__all__: list[str] = []

"""The cloud-edge channel: how many nodes, how fast, how steady."""

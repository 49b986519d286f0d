"""The local API: what programs on this machine, and through the cloud kubectl, can ask edge core."""

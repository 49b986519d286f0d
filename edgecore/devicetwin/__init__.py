"""DeviceTwin: takes what mappers report, keeps it, tells the cloud; hands devices to mappers.

`merge` (mappers), `document` (apps), `outbox`, `faults` and `catalog` decide and do no I/O; `intake`, `apps`, `sync`,
`links` and `twin` are the shells.
"""

from edgecore.devicetwin.twin import DeviceTwin

__all__ = ["DeviceTwin"]

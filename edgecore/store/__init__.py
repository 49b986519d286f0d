"""Edge core's memory: one SQLite file with objects, mappers, device states and twins, written by one thread.

Functions that take a `sqlite3.Connection` are jobs for `Database.run`; they never run anywhere else.
"""

from edgecore.store.database import Database, StoreError, open_database
from edgecore.store.mappers import (
    delete_handed,
    delete_mapper,
    handed_digests,
    put_handed,
    registered_mappers,
    replace_mapper,
)
from edgecore.store.objects import (
    StoredObject,
    delete_object,
    get_object,
    list_objects,
    object_keys,
    object_versions,
    put_object,
)
from edgecore.store.states import (
    StateRow,
    acknowledge_state,
    faulty_devices,
    get_state,
    list_states,
    put_state,
    shown_state,
    stated_devices,
    update_state,
    why_old,
)
from edgecore.store.twins import (
    TwinRow,
    acknowledge_twins,
    delete_device,
    delete_orphans,
    dirty_devices,
    get_twins,
    keep_properties,
    put_twins,
)

__all__ = [
    "Database",
    "StateRow",
    "StoreError",
    "StoredObject",
    "TwinRow",
    "acknowledge_state",
    "acknowledge_twins",
    "delete_device",
    "delete_handed",
    "delete_mapper",
    "delete_object",
    "delete_orphans",
    "dirty_devices",
    "faulty_devices",
    "get_object",
    "get_state",
    "get_twins",
    "handed_digests",
    "keep_properties",
    "list_objects",
    "list_states",
    "object_keys",
    "object_versions",
    "open_database",
    "put_handed",
    "put_object",
    "put_state",
    "put_twins",
    "registered_mappers",
    "replace_mapper",
    "shown_state",
    "stated_devices",
    "update_state",
    "why_old",
]

"""The conformance suite: what any driver must stand, whatever it speaks.

Subclass `DriverConformance` under a name that starts with `Test`, give it a fixture `subject` that yields a `Subject`,
and run pytest with `asyncio_mode = "auto"`. The names of the tests are its table of contents; what a subject does not
have, the class says: `class TestKettle(DriverConformance, lacks=("pushed", "discovery"))`.
"""

from __future__ import annotations

from mappers.sdk.testing.conformance.declarations import Declarations
from mappers.sdk.testing.conformance.desired import DesiredValues
from mappers.sdk.testing.conformance.endings import Endings
from mappers.sdk.testing.conformance.links import Links
from mappers.sdk.testing.conformance.parts import Part, Parts
from mappers.sdk.testing.conformance.values import Values
from mappers.sdk.testing.subject import Subject

__all__ = ["DriverConformance", "Part", "Subject"]


class DriverConformance(Values, Links, DesiredValues, Declarations, Endings, Parts):
    """All tests take the one fixture `subject`."""

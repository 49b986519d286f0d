"""What a subject may do without, and the tests that go with it.

A test that does not apply to a driver is not there, rather than skipped: the class says once what its subject lacks,
and `test_the_subject_has_what_is_tested` holds it to that. So nothing stops being tested because a part got lost.
"""
# ruff: noqa: S101  # these are tests: their assertions are what they are for

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import ClassVar, Final, Literal, TypeVar, get_args

from mappers.sdk.driver import AnyDriver, Driver
from mappers.sdk.testing.around import DriverAround
from mappers.sdk.testing.subject import Subject

__all__ = ["Part", "Parts", "needs"]

Part = Literal[
    "discovery", "faults", "neighbour", "other_config", "other_visitor", "pushed", "writable", "wrong_settings"
]

T = TypeVar("T", bound=Callable[..., object])

_PARTS: Final[tuple[Part, ...]] = get_args(Part)
_NEEDS: Final = "needed_parts"


def needs(*parts: Part) -> Callable[[T], T]:
    """Mark a test as being about these parts of a subject."""

    def mark(test: T) -> T:
        setattr(test, _NEEDS, frozenset(parts))
        return test

    return mark


class Parts:
    """Leaves out the tests of what the class `lacks`: `class TestKettle(DriverConformance, lacks=("pushed",))`."""

    lacks: ClassVar[frozenset[Part]] = frozenset()

    def __init_subclass__(cls, *, lacks: Iterable[Part] = ()) -> None:
        super().__init_subclass__()
        cls.lacks |= frozenset(lacks)
        if unknown := sorted(cls.lacks - set(_PARTS)):
            raise TypeError(f"{cls.__name__} lacks {unknown[0]!r}, and there are only {', '.join(_PARTS)}")
        for name in dir(cls):
            if getattr(getattr(cls, name), _NEEDS, frozenset()) & cls.lacks:
                setattr(cls, name, None)  # which pytest does not take for a test

    async def test_the_subject_has_what_is_tested(self, subject: Subject) -> None:
        """A driver that discovers may still be unable to where its subject is."""
        has = _parts_of(subject)
        missing, more = sorted(set(_PARTS) - has - self.lacks), sorted(has & self.lacks - {"discovery"})
        assert not missing, f"the subject has no {_words(missing)}: {_hint(self.lacks | set(missing))}"
        assert not more, f"the subject has {_words(more)}, which is not tested: {_hint(self.lacks - set(more))}"


def _parts_of(subject: Subject) -> frozenset[Part]:
    has: dict[Part, bool] = {
        "discovery": type(_innermost(subject.driver)).discover is not Driver.discover,
        "faults": subject.faults is not None,
        "neighbour": subject.neighbour is not None,
        "other_config": bool(subject.other_config),
        "other_visitor": bool(subject.other_visitor),
        "pushed": bool(subject.pushed),
        "writable": bool(subject.writable),
        "wrong_settings": bool(subject.wrong_config or subject.wrong_visitor),
    }
    return frozenset(part for part, there in has.items() if there)


def _innermost(driver: AnyDriver) -> AnyDriver:
    while isinstance(driver, DriverAround):
        driver = driver.driver
    return driver


def _words(parts: Collection[Part]) -> str:
    return ", ".join(parts)


def _hint(lacks: Collection[Part]) -> str:
    return f"if that is right, its class says lacks={tuple(sorted(lacks))}"

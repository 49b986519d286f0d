"""What a device model allows of a property's values."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation

from dmi.checks import check_desired
from dmi.errors import ConversionError
from dmi.types import ModelProperty
from dmi.values import Value, parse_value

__all__ = ["parse_wanted", "value_range"]


def parse_wanted(text: str, model: ModelProperty) -> Value:
    """What somebody wants a property to be, as a value.

    Raises:
        ConversionError: It can never be written: the property is ReadOnly, or the text is not of its type and range.
    """
    if problem := check_desired(text, model):
        raise ConversionError(problem.message)
    if not model.writable:  # an empty text, which is fine as a desired value: it asks for nothing
        raise ConversionError(f"property {model.name!r} is ReadOnly")
    return parse_value(text, model.type)


def value_range(model: ModelProperty) -> tuple[Decimal, Decimal] | None:
    """Lowest and highest value, inclusive; None: the model bounds nothing.

    Raises:
        ConversionError: A bound is not a number.
    """
    if model.type not in ("INT", "FLOAT", "DOUBLE") or not (model.minimum.strip() or model.maximum.strip()):
        return None
    bounds = model.minimum.strip() or "-Infinity", model.maximum.strip() or "Infinity"
    try:
        low, high = Decimal(bounds[0]), Decimal(bounds[1])
    except InvalidOperation:
        low = high = Decimal("NaN")
    if low.is_nan() or high.is_nan():
        raise ConversionError(f"minimum {model.minimum!r} and maximum {model.maximum!r} are not both numbers")
    return low, high

"""Mappers: `sdk` is what a driver author needs, `drivers` holds the ones that come along."""

__all__: list[str] = []

"""Which of a model's classes belong to a level."""

import difflib
from collections.abc import Collection, Sequence

from flowgrain.errors import ConfigError

_SHOWN = 12


def check_classes(wanted: Sequence[str], known: Collection[str], model: str) -> frozenset[str]:
    """The wanted names. Raises :class:`ConfigError` for one that the model does not have, with the nearest it has."""
    for name in wanted:
        if name not in known:
            lower = {other.lower(): other for other in known}
            close = difflib.get_close_matches(name.lower(), lower, n=1)
            given = f"it has {_listed(known)}" if known else "its classes have no names, only numbers"
            hint = f"did you mean '{lower[close[0]]}'?" if close else given
            raise ConfigError(f"classes: {model} has no class '{name}'; {hint}")
    return frozenset(wanted)


def _listed(known: Collection[str]) -> str:
    names = list(known)
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")

"""Short names of arms for tables and figures: only the parts in which arms differ."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from distill.storage.study_results import StudyResults

SEPARATOR = "/"


class PairLabel(NamedTuple):
    """How two arms are named in a comparison.

    Attributes:
        b: the parts that only arm b has.
        a: the parts that only arm a has.
        both: the parts that both have; empty if there are none.
    """

    b: str
    a: str
    both: str


def short_names(results: StudyResults) -> dict[str, str]:
    """Return a short name for each arm of a study, by its full name.

    A part such as ``teacher=hard`` is left out if all arms with the same first part have it. The
    first part itself is left out if all arms of the same role have it. If two arms would share a
    short name, all keep their full names.
    """
    parts = _short_parts(results)
    names = {arm: SEPARATOR.join(own) for arm, own in parts.items()}
    if len(set(names.values())) < len(names):
        return {arm: arm for arm in names}
    return names


def pair_label(short_a: str, short_b: str) -> PairLabel:
    """Return the label of a comparison of two arms, from their short names."""
    a = short_a.split(SEPARATOR)
    b = short_b.split(SEPARATOR)
    only_a = [part for part in a if part not in b]
    only_b = [part for part in b if part not in a]
    if not only_a or not only_b:
        # One arm has all that the other has, and more.
        return PairLabel(short_b, short_a, "")
    both = [part for part in b if part in a]
    return PairLabel(SEPARATOR.join(only_b), SEPARATOR.join(only_a), SEPARATOR.join(both))


def _short_parts(results: StudyResults) -> dict[str, list[str]]:
    """Return the parts of each arm's short name."""
    arms_of_role: dict[str, list[str]] = {}
    for arm, runs in results.arms().items():
        arms_of_role.setdefault(runs[0].role, []).append(arm)
    short = {}
    for arms in arms_of_role.values():
        heads = {arm.split(SEPARATOR)[0] for arm in arms}
        for arm in arms:
            head, *rest = arm.split(SEPARATOR)
            siblings = [other for other in arms if other.split(SEPARATOR)[0] == head]
            own = _without_common(rest, [other.split(SEPARATOR)[1:] for other in siblings])
            if len(heads) > 1 or not own:
                own = [head, *own]
            short[arm] = own
    return short


def _without_common(parts: Sequence[str], siblings: Iterable[Sequence[str]]) -> list[str]:
    """Return the parts that not all siblings have; all parts if there are no other siblings."""
    siblings = list(siblings)
    if len(siblings) < 2:
        return list(parts)
    common = set.intersection(*(set(sibling) for sibling in siblings))
    return [part for part in parts if part not in common]

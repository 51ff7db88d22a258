"""Who is drawn: the looks that make an identity, the same in each of its images."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from snnet.synthetic.plan import STREAM_PERSON

Colour = tuple[int, int, int]

# Clothes are mostly dull, as in a street: colour alone seldom tells who somebody is.
UPPER_COLOURS: tuple[tuple[Colour, float], ...] = (
    ((34, 34, 38), 0.13),
    ((232, 230, 226), 0.12),
    ((128, 130, 134), 0.11),
    ((38, 48, 92), 0.09),
    ((188, 40, 44), 0.09),
    ((62, 112, 190), 0.09),
    ((54, 122, 72), 0.07),
    ((206, 184, 148), 0.07),
    ((226, 142, 164), 0.05),
    ((232, 196, 70), 0.05),
    ((112, 72, 48), 0.04),
    ((114, 66, 142), 0.04),
    ((226, 122, 44), 0.03),
    ((60, 156, 160), 0.02),
)
LOWER_COLOURS: tuple[tuple[Colour, float], ...] = (
    ((36, 36, 40), 0.24),
    ((52, 68, 112), 0.20),
    ((112, 136, 176), 0.12),
    ((112, 112, 116), 0.12),
    ((188, 164, 124), 0.11),
    ((226, 224, 220), 0.06),
    ((92, 66, 50), 0.06),
    ((88, 96, 62), 0.05),
    ((150, 48, 56), 0.04),
)
SKIN_COLOURS: tuple[Colour, ...] = (
    (238, 202, 176),
    (222, 178, 146),
    (190, 140, 106),
    (142, 98, 70),
    (96, 66, 50),
)
HAIR_COLOURS: tuple[Colour, ...] = (
    (26, 22, 22),
    (58, 40, 30),
    (104, 72, 44),
    (190, 154, 92),
    (150, 148, 146),
    (140, 62, 36),
)

UPPER_PATTERNS = {
    "plain": 0.28, "stripes": 0.14, "bars": 0.08, "checks": 0.10, "dots": 0.06,
    "two_tone": 0.10, "sleeves": 0.08, "print": 0.10, "open": 0.06,
}  # fmt: skip
LOWER_PATTERNS = {"plain": 0.78, "side_stripe": 0.12, "checks": 0.10}
UPPER_KINDS = {"shirt": 0.70, "coat": 0.18, "dress": 0.12}
LOWER_KINDS = {"trousers": 0.68, "shorts": 0.17, "skirt": 0.15}
HAIR_STYLES = {"short": 0.45, "long": 0.25, "tail": 0.10, "bun": 0.06, "wide": 0.06, "bald": 0.08}
HATS = {"": 0.76, "cap": 0.10, "beanie": 0.08, "brim": 0.06}
BAGS = {"": 0.62, "shoulder": 0.14, "cross": 0.14, "hand": 0.10}


@dataclass(frozen=True)
class Garment:
    kind: str
    pattern: str
    colour: Colour
    second: Colour
    period: float  # of the pattern, metres
    motif: int  # which print, which way round two tones are


@dataclass(frozen=True)
class Person:
    """Lengths are relative to an average figure of the same height; colours are sRGB, 0 to 255."""

    height: float  # metres
    shoulders: float
    hips: float
    head: float
    legs: float
    skin: Colour
    hair: Colour
    hair_style: str
    upper: Garment
    lower: Garment
    long_sleeves: bool
    shoes: Colour
    hat: str
    hat_colour: Colour
    backpack: bool
    bag: str
    suitcase: bool
    pack_colour: Colour
    bag_colour: Colour
    side: int  # +1 or -1: where the bag hangs


@functools.cache
def person_of(seed: int, split: int, identity: int) -> Person:
    """Looks of one identity. Of every ten, five are look-alikes: 3 and 4 of 2, and 6 of 5 (mod 10)."""
    rng = np.random.default_rng([seed, STREAM_PERSON, split, identity])
    person = sample_person(rng)
    place = identity % 10
    if place in (3, 4):
        return _look_alike(person, person_of(seed, split, identity - place + 2), rng, carried=place == 4)
    if place == 6:
        base = person_of(seed, split, identity - 1)
        return replace(_look_alike(person, base, rng, carried=bool(rng.integers(2))), hat=base.hat)
    return person


def sample_person(rng: np.random.Generator) -> Person:
    """Draw somebody independent of everybody else."""
    upper = _garment(rng, UPPER_KINDS, UPPER_PATTERNS, UPPER_COLOURS)
    carried = _carried(rng)
    return Person(
        height=float(rng.uniform(1.55, 1.92)),
        shoulders=float(rng.uniform(0.86, 1.2)),
        hips=float(rng.uniform(0.88, 1.2)),
        head=float(rng.uniform(0.92, 1.1)),
        legs=float(rng.uniform(0.94, 1.05)),
        skin=jitter(rng, SKIN_COLOURS[rng.integers(len(SKIN_COLOURS))], 6),
        hair=jitter(rng, HAIR_COLOURS[rng.integers(len(HAIR_COLOURS))], 8),
        hair_style=_choose(rng, HAIR_STYLES),
        upper=upper,
        lower=_garment(rng, LOWER_KINDS, LOWER_PATTERNS, LOWER_COLOURS),
        long_sleeves=bool(upper.kind == "coat" or rng.random() < 0.5),
        shoes=_pick(rng, UPPER_COLOURS),
        **carried,
    )


def _carried(rng: np.random.Generator) -> dict[str, Any]:
    return {
        "hat": _choose(rng, HATS),
        "hat_colour": _pick(rng, UPPER_COLOURS),
        "backpack": bool(rng.random() < 0.28),
        "bag": _choose(rng, BAGS),
        "suitcase": bool(rng.random() < 0.08),
        "pack_colour": _pick(rng, UPPER_COLOURS),
        "bag_colour": _pick(rng, UPPER_COLOURS),
        "side": int(rng.choice((-1, 1))),
    }


def _look_alike(person: Person, base: Person, rng: np.random.Generator, carried: bool) -> Person:
    """Dress ``person`` in the colours of ``base``: another upper pattern, or (``carried``) other things carried."""
    upper = replace(base.upper, colour=jitter(rng, base.upper.colour, 5))
    lower = replace(base.lower, colour=jitter(rng, base.lower.colour, 5))
    if not carried:
        others = {name: weight for name, weight in UPPER_PATTERNS.items() if name != base.upper.pattern}
        upper = replace(upper, pattern=_choose(rng, others), motif=int(rng.integers(4)))
        return replace(base, upper=upper, lower=lower, hair=person.hair, head=person.head, skin=person.skin)
    things = _carried(rng)
    things["backpack"] = not base.backpack
    return replace(base, upper=upper, lower=lower, hair_style=person.hair_style, shoes=person.shoes, **things)


def _garment(
    rng: np.random.Generator,
    kinds: dict[str, float],
    patterns: dict[str, float],
    colours: tuple[tuple[Colour, float], ...],
) -> Garment:
    colour = _pick(rng, colours)
    second = _pick(rng, UPPER_COLOURS)
    while sum(abs(a - b) for a, b in zip(colour, second, strict=True)) < 150:  # a pattern has to be seen
        second = _pick(rng, UPPER_COLOURS)
    return Garment(
        kind=_choose(rng, kinds),
        pattern=_choose(rng, patterns),
        colour=colour,
        second=second,
        period=float(rng.uniform(0.09, 0.19)),
        motif=int(rng.integers(4)),
    )


def _pick(rng: np.random.Generator, colours: tuple[tuple[Colour, float], ...]) -> Colour:
    return jitter(rng, colours[_weighted(rng, [weight for _, weight in colours])][0], 12)


def _choose(rng: np.random.Generator, weights: dict[str, float]) -> str:
    return list(weights)[_weighted(rng, list(weights.values()))]


def _weighted(rng: np.random.Generator, weights: list[float]) -> int:
    edges = np.cumsum(weights)
    place = int(np.searchsorted(edges, rng.random() * edges[-1], side="right"))
    return min(place, len(weights) - 1)  # rounding may reach the last edge itself


def jitter(rng: np.random.Generator, colour: Colour, amount: int) -> Colour:
    """A colour near ``colour``: each part is moved by at most ``amount``."""
    red, green, blue = np.clip(np.array(colour) + rng.integers(-amount, amount + 1, 3), 0, 255).tolist()
    return red, green, blue

"""How a figure stands (its pose) and how the camera sees it (its view)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from snnet.synthetic.canvas import Point

# Body metres throughout: x to the person's left, y up, z where the person faces.
Position = tuple[float, float, float]
Ring = tuple[float, float, float]  # height, half width, half depth


@dataclass(frozen=True)
class Pose:
    """Angles in radians; ``phase`` 0 to 2 pi is the place in one double step."""

    phase: float
    stride: float
    swing: float  # of the arms
    elbow: float
    spread: float  # of the arms, away from the body
    raised: int  # +1 or -1: the arm held to the ear; 0: none
    lean: float


@dataclass(frozen=True)
class View:
    """Where the camera stands: ``turn`` 0 sees the front, pi the back; ``tilt`` > 0 looks down. Radians."""

    turn: float
    tilt: float
    distance: float  # metres
    pixels_per_metre: float
    x: float  # canvas pixels of the middle of the body
    y: float
    middle: float  # height of that middle, metres

    @property
    def faces_camera(self) -> bool:
        return math.cos(self.turn) > 0.0

    def project(self, position: Position) -> tuple[float, float, float]:
        """Body metres to (x pixels, y pixels, pixels per metre at that depth)."""
        x, y, z = position
        right = x * math.cos(self.turn) + z * math.sin(self.turn)
        near = self.nearness(x, z)
        up = (y - self.middle) * math.cos(self.tilt) - near * math.sin(self.tilt)
        depth = (y - self.middle) * math.sin(self.tilt) + near * math.cos(self.tilt)
        scale = self.pixels_per_metre * self.distance / (self.distance - depth)
        return self.x + scale * right, self.y - scale * up, scale

    def point(self, x: float, y: float, z: float) -> Point:
        return self.project((x, y, z))[:2]

    def nearness(self, x: float, z: float) -> float:
        """Metres by which a point lies in front of the body's axis, as the camera sees it."""
        return z * math.cos(self.turn) - x * math.sin(self.turn)

    def rings(self, rings: list[Ring], forward: float = 0.0) -> list[tuple[float, float, float]]:
        """Elliptic rings around the body's axis to (x, y, half width) in pixels."""
        seen = []
        for level, width, depth in rings:
            x, y, scale = self.project((0.0, level, forward))
            half = math.hypot(width * math.cos(self.turn), depth * math.sin(self.turn))
            seen.append((x, y, scale * half))
        return seen

    def block(self, centre: Position, size: Position) -> list[tuple[float, float, float]]:
        """An upright block of ``size`` (width, height, depth) to its top and bottom ring."""
        width, height, depth = size
        half = 0.5 * (abs(width * math.cos(self.turn)) + abs(depth * math.sin(self.turn)))
        seen = []
        # Corners are cut a little: nothing people carry is sharp-edged.
        for offset, share in ((0.5, 0.8), (0.4, 1.0), (-0.4, 1.0), (-0.5, 0.85)):
            x, y, scale = self.project((centre[0], centre[1] + offset * height, centre[2]))
            seen.append((x, y, scale * half * share))
        return seen

"""Draws one pedestrian: a skeleton in three dimensions, dressed and seen from the camera's direction."""

from __future__ import annotations

import math
from dataclasses import replace

from snnet.synthetic.canvas import Canvas, Paint, ellipse_points
from snnet.synthetic.carried import draw_backpack, draw_bag, draw_hat, draw_straps, draw_suitcase
from snnet.synthetic.cloth import cut_cloth, print_shapes
from snnet.synthetic.person import Person
from snnet.synthetic.view import Pose, Position, View

# Rings of the body (height, half width, half depth), relative to the person's height.
_SHOULDER, _CHEST, _HIP = 0.815, 0.735, 0.52
_TORSO = (
    (0.866, 0.034, 0.032),
    (0.850, 0.054, 0.040),
    (0.836, 0.090, 0.046),
    (_SHOULDER, 0.110, 0.054),
    (_CHEST, 0.107, 0.066),
    (0.62, 0.090, 0.058),
    (_HIP, 0.098, 0.066),
)
_HEMS = {
    "shirt": ((0.475, 0.101, 0.068),),
    "coat": ((0.45, 0.106, 0.076), (0.34, 0.118, 0.090)),
    "dress": ((0.42, 0.118, 0.094), (0.31, 0.145, 0.125)),
}
_SKIRT = ((0.56, 0.092, 0.062), (0.48, 0.108, 0.078), (0.31, 0.135, 0.115))
_HEAD = 0.071  # radius
_FAR_DIM = 0.86  # the far leg and arm lie in the body's shade


class Figure:
    """One person in one pose before one camera."""

    def __init__(self, canvas: Canvas, person: Person, pose: Pose, view: View) -> None:
        self.canvas, self.person, self.pose = canvas, person, pose
        # A long stride lifts both feet: lower the body until one stands on the ground.
        lowest = min(self._leg_joints(side)[2][1] for side in (-1, 1))
        view = replace(view, middle=view.middle + lowest - 0.03 * person.height)
        self.view = view
        shoulder, hip = (view.point(0.0, level * person.height, 0.0) for level in (_SHOULDER, _HIP))
        half = 0.55 * (hip[1] - shoulder[1])
        self.upper = cut_cloth(person.upper, canvas.size, view.pixels_per_metre, shoulder, half)
        self.lower = cut_cloth(person.lower, canvas.size, view.pixels_per_metre, hip, half)

    def draw(self) -> None:
        """Put the figure on the canvas, far parts first."""
        person, view, canvas = self.person, self.view, self.canvas
        far, near = sorted((-1, 1), key=lambda side: view.nearness(side * 0.1, 0.0))
        bag_is_behind = view.nearness(person.side * 0.2, 0.0) < -0.1
        suitcase_is_behind = view.nearness(person.side * 0.25, -0.3) < 0.0
        if person.suitcase and suitcase_is_behind:
            draw_suitcase(canvas, person, view)
        self._leg(far, _FAR_DIM)
        self._leg(near, 1.0)
        if person.lower.kind == "skirt" and person.upper.kind != "dress":
            canvas.trunk(self._rings(_SKIRT), self.lower)
        if view.faces_camera:
            self._hair_behind()
            draw_backpack(canvas, person, view)
        if bag_is_behind:
            draw_bag(canvas, person, view)
        self._arm(far, _FAR_DIM)
        self._torso()
        self._head()
        if not view.faces_camera:
            self._hair_behind()
            draw_backpack(canvas, person, view)
        self._arm(near, 1.0)
        if not bag_is_behind:
            draw_bag(canvas, person, view)
        if person.suitcase and not suitcase_is_behind:
            draw_suitcase(canvas, person, view)

    def _limb(
        self, start: Position, end: Position, radii: tuple[float, float], paint: Paint, dim: float
    ) -> None:
        start_x, start_y, start_scale = self.view.project(start)
        end_x, end_y, end_scale = self.view.project(end)
        self.canvas.limb(
            (start_x, start_y), (end_x, end_y), start_scale * radii[0], end_scale * radii[1], paint, dim
        )

    def _leg_joints(self, side: int) -> tuple[Position, Position, Position]:
        """Hip, knee and ankle."""
        pose, height = self.pose, self.person.height
        thigh = side * pose.stride * math.sin(pose.phase)
        knee_bend = pose.stride * (0.15 + max(0.0, side * math.cos(pose.phase)) ** 2)
        length = 0.235 * height * self.person.legs
        hip = (side * 0.048 * height * self.person.hips, 0.50 * height, 0.0)
        knee = _hang(hip, length, thigh)
        return hip, knee, _hang(knee, length, thigh - knee_bend)

    def _leg(self, side: int, dim: float) -> None:
        person, height = self.person, self.person.height
        hip, knee, ankle = self._leg_joints(side)
        toe = (ankle[0] + side * 0.012 * height, ankle[1] - 0.018 * height, ankle[2] + 0.082 * height)
        kind = "dress" if person.upper.kind == "dress" else person.lower.kind
        width = height * (0.5 + 0.5 * person.hips)
        leg = self.lower if kind == "trousers" else person.skin
        self._limb(ankle, toe, (0.026 * height, 0.018 * height), person.shoes, dim)
        self._limb(knee, ankle, (0.038 * width, 0.025 * width), leg, dim)
        thigh_paint = self.lower if kind in ("trousers", "shorts") else person.skin
        self._limb(hip, knee, (0.053 * width, 0.041 * width), thigh_paint, dim)
        if kind == "shorts":
            end = _between(knee, hip, 0.1)
            self._limb(hip, end, (0.056 * width, 0.052 * width), self.lower, dim)
        if kind == "trousers":
            self._limb(knee, ankle, (0.041 * width, 0.030 * width), leg, dim)
        if person.lower.pattern == "side_stripe" and kind in ("trousers", "shorts"):
            self._side_stripe(side, hip, knee, ankle if kind == "trousers" else knee)

    def _side_stripe(self, side: int, hip: Position, knee: Position, end: Position) -> None:
        if self.view.nearness(side * 0.1, 0.0) < -0.06:
            return  # on the far side of the leg
        height, paint = self.person.height, self.person.lower.second
        for start, stop in ((hip, knee), (knee, end)):
            x, y = side * 0.036 * height, 0.011 * height
            self._limb((start[0] + x, *start[1:]), (stop[0] + 0.8 * x, *stop[1:]), (y, y), paint, 1.0)

    def _arm(self, side: int, dim: float) -> None:
        person, pose, height = self.person, self.pose, self.person.height
        angle = -side * pose.swing * math.sin(pose.phase)
        length = 0.165 * height
        shoulder = (side * 0.100 * height * person.shoulders, 0.812 * height, self._leaning(_SHOULDER))
        elbow = _hang(shoulder, length, angle, side * pose.spread)
        if pose.raised == side:
            hand = (side * 0.075 * height, 0.915 * height, 0.06 * height)
        else:
            hand = _hang(elbow, 0.155 * height, angle + pose.elbow, 0.3 * side * pose.spread)
        sleeve: Paint = person.upper.second if person.upper.pattern == "sleeves" else self.upper
        self._limb(
            elbow, hand, (0.027 * height, 0.022 * height), sleeve if person.long_sleeves else person.skin, dim
        )
        if not person.long_sleeves:
            self._limb(shoulder, elbow, (0.028 * height, 0.025 * height), person.skin, dim)
        cuff = elbow if person.long_sleeves else _between(shoulder, elbow, 0.6)
        self._limb(shoulder, cuff, (0.033 * height, 0.030 * height), sleeve, dim)
        palm = _between(elbow, hand, 1.08)
        self._limb(palm, palm, (0.021 * height, 0.021 * height), person.skin, dim)

    def _torso(self) -> None:
        person, canvas = self.person, self.canvas
        neck = ((0.80, 0.03, 0.03), (0.90, 0.03, 0.03))
        canvas.trunk(self._rings(neck), person.skin, 0.9)
        canvas.trunk(self._rings((*_TORSO, *_HEMS[person.upper.kind])), self.upper)
        if person.upper.pattern == "open" and self.view.faces_camera:
            self._on_the_chest([[(-0.34, -4.6), (0.34, -4.6), (0.46, 1.6), (-0.46, 1.6)]], 0.06)
        if person.upper.pattern == "print" and (self.view.faces_camera or person.upper.motif % 2):
            self._on_the_chest(print_shapes(person.upper.motif), 0.062)
        if self.view.faces_camera and person.backpack:
            draw_straps(canvas, person, self.view)

    def _on_the_chest(self, shapes: list[list[tuple[float, float]]], size: float) -> None:
        """Draw flat shapes on the chest, or the same on the back where that is what the camera sees."""
        if abs(math.cos(self.view.turn)) < 0.25:
            return
        height = self.person.height
        front = 0.06 * height if self.view.faces_camera else -0.06 * height
        for shape in shapes:
            points = [
                self.view.point(x * size * height, (0.735 + y * size) * height, front + self._leaning(0.735))
                for x, y in shape
            ]
            self.canvas.flat(points, self.person.upper.second)

    def _head(self) -> None:
        person, view, canvas = self.person, self.view, self.canvas
        radius = _HEAD * person.height * person.head
        level = 0.928 * person.height
        forward = self._leaning(0.93) + 0.02 * person.height
        x, y, scale = view.project((0.0, level, forward))
        size = radius * scale
        hair = person.skin if person.hair_style == "bald" else person.hair
        grown = 1.3 if person.hair_style == "wide" else 1.0
        canvas.ellipse((x, y - 0.05 * size * grown), 0.92 * size * grown, 1.05 * size * grown, hair)
        cos_turn = math.cos(view.turn)
        if cos_turn > -0.35:
            centre = view.point(0.0, level - 0.16 * radius, forward + 0.36 * radius)
            width = 0.72 * size * (0.66 + 0.34 * max(cos_turn, 0.0)) * min(1.0, 1.2 + cos_turn)
            canvas.ellipse(centre, width, 0.86 * size, person.skin)
        for side in (-1, 1):
            if view.nearness(side * 0.34, 0.94) > 0.45:
                eye = view.point(side * 0.32 * radius, level - 0.02 * radius, forward + 0.9 * radius)
                canvas.flat(ellipse_points(eye, 0.10 * size, 0.12 * size), (58, 42, 38))
        draw_hat(canvas, person, view, (0.0, level, forward), radius)

    def _hair_behind(self) -> None:
        person, height = self.person, self.person.height
        radius = _HEAD * height * person.head
        forward = self._leaning(0.93)
        if person.hair_style == "long":
            start, end = (
                (0.0, 0.93 * height, forward - 0.3 * radius),
                (0.0, 0.80 * height, forward - 0.7 * radius),
            )
            self._limb(start, end, (0.95 * radius, 0.85 * radius), person.hair, 0.95)
        elif person.hair_style == "tail":
            start, end = (
                (0.0, 0.94 * height, forward - 0.9 * radius),
                (0.0, 0.82 * height, forward - 1.4 * radius),
            )
            self._limb(start, end, (0.36 * radius, 0.22 * radius), person.hair, 0.9)
        elif person.hair_style == "bun" and not person.hat:
            knot = (0.0, 0.985 * height, forward - 0.8 * radius)
            self._limb(knot, knot, (0.45 * radius, 0.45 * radius), person.hair, 0.95)

    def _rings(self, rings: tuple[tuple[float, float, float], ...]) -> list[tuple[float, float, float]]:
        person, seen = self.person, []
        for level, width, depth in rings:
            share = min(max((level - _HIP) / (_CHEST - _HIP), 0.0), 1.0)
            build = share * person.shoulders + (1.0 - share) * person.hips
            ring = (level * person.height, width * person.height * build, depth * person.height)
            seen += self.view.rings([ring], self._leaning(level))
        return seen

    def _leaning(self, level: float) -> float:
        """Metres that the body at a relative height lies in front of the hips."""
        return self.pose.lean * max(level - _HIP, 0.0) * self.person.height


def _hang(start: Position, length: float, angle: float, aside: float = 0.0) -> Position:
    """End of a bone that hangs from ``start``, swung forward by ``angle`` and sideways by ``aside``."""
    return (
        start[0] + length * math.sin(aside),
        start[1] - length * math.cos(angle) * math.cos(aside),
        start[2] + length * math.sin(angle),
    )


def _between(start: Position, end: Position, share: float) -> Position:
    x, y, z = (a + share * (b - a) for a, b in zip(start, end, strict=True))
    return x, y, z

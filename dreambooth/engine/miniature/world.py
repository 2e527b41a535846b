"""The miniature model's world: drawn pictures of simple things, and the words for them.

A picture shows one thing (a class in a colour and a size) on a plain background.
The subject that the demo teaches is drawn here too; the miniature never sees it.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace

from PIL import Image, ImageDraw

SIZE = 64  # pixels, both sides
_OVERSAMPLING = 8

CLASSES = ("star", "heart", "circle", "square", "triangle", "cross", "moon", "ring")
COLOURS = {
    "red": (214, 40, 40),
    "orange": (245, 140, 30),
    "yellow": (245, 220, 60),
    "green": (45, 150, 70),
    "blue": (45, 95, 215),
    "purple": (140, 60, 175),
    "white": (245, 245, 245),
    "black": (28, 28, 32),
}
SIZES = {"small": (0.30, 0.38), "": (0.44, 0.60), "large": (0.68, 0.80)}  # diameter / picture width

EMPTY_CAPTIONS = 0.1  # the share of pictures without words

SUBJECT_CLASS = "star"
SUBJECT_BODY = (20, 165, 165)
SUBJECT_HEART = (255, 130, 190)

Point = tuple[float, float]
Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Scene:
    """One picture, in numbers: enough to draw it again and to say what is on it."""

    thing: str
    colour: str
    background: str
    size: str = ""
    centre: Point = (0.5, 0.5)
    diameter: float = 0.52
    tilt: float = 0.0  # degrees
    shade: float = 0.0  # both colours are lightened or darkened by this fraction


def random_scene(rng: random.Random, **fixed: str) -> Scene:
    """A scene drawn at random; `fixed` sets thing, colour, background or size."""
    size = fixed.get("size", rng.choice(("small", "", "", "large")))
    diameter = rng.uniform(*SIZES[size])
    room = (1 - diameter) / 2 * 0.8
    colour = fixed.get("colour") or rng.choice(list(COLOURS))
    background = fixed.get("background") or rng.choice([c for c in COLOURS if c != colour])
    if background == colour:
        colour = rng.choice([c for c in COLOURS if c != background])
    return Scene(
        thing=fixed.get("thing") or rng.choice(CLASSES),
        colour=colour,
        background=background,
        size=size,
        centre=(0.5 + rng.uniform(-room, room), 0.5 + rng.uniform(-room, room)),
        diameter=diameter,
        tilt=rng.uniform(-15, 15),
        shade=rng.uniform(-0.05, 0.05),
    )


def caption(scene: Scene, rng: random.Random) -> str:
    """A caption that says some of what the scene shows, as people's captions do."""
    words = ["a photo of a" if rng.random() < 0.75 else "a"]
    if scene.size and rng.random() < 0.7:
        words.append(scene.size)
    if rng.random() < 0.75:
        words.append(scene.colour)
    words.append(scene.thing)
    if rng.random() < 0.65:
        words.append(f"on a {scene.background} background")
    return " ".join(words)


def caption_or_none(scene: Scene, rng: random.Random) -> str:
    """A caption, or at times none, as classifier-free guidance needs it."""
    return "" if rng.random() < EMPTY_CAPTIONS else caption(scene, rng)


def full_caption(scene: Scene) -> str:
    """The caption that says everything: colour, thing and background."""
    size = f"{scene.size} " if scene.size else ""
    return f"a photo of a {size}{scene.colour} {scene.thing} on a {scene.background} background"


def draw(scene: Scene) -> Image.Image:
    """The scene as an RGB picture of SIZE x SIZE pixels."""
    return _draw(scene, [(scene.thing, _shade(COLOURS[scene.colour], scene.shade), 1.0)])


def draw_subject(scene: Scene) -> Image.Image:
    """The subject (a teal star that wears a pink heart) where the scene puts its thing."""
    body, heart = _shade(SUBJECT_BODY, scene.shade), _shade(SUBJECT_HEART, scene.shade)
    return _draw(scene, [(SUBJECT_CLASS, body, 1.0), ("heart", heart, 0.46)])


def subject_scenes(count: int, seed: int) -> list[Scene]:
    """Scenes for pictures of the subject, each on another background."""
    rng = random.Random(seed)
    backgrounds = rng.sample(["white", "yellow", "purple", "black", "orange", "red"], k=min(count, 6))
    return [
        random_scene(rng, thing=SUBJECT_CLASS, background=backgrounds[i % len(backgrounds)], size="large")
        for i in range(count)
    ]


def draw_anything(rng: random.Random) -> Image.Image:
    """A picture outside the captioned world, so that the VAE can show what it has not been told of:
    up to four things of any colour and size, nested or apart, on a plain, split or striped ground."""
    ground = Image.new("RGB", (SIZE, SIZE), _any_colour(rng))
    pen = ImageDraw.Draw(ground)
    kind = rng.random()
    if kind < 0.25:
        _stripes(pen, rng)
    elif kind < 0.4:
        pen.rectangle((0, rng.randrange(SIZE), SIZE, SIZE), fill=_any_colour(rng))
    for _ in range(rng.randrange(1, 4)):
        scene = random_scene(rng)
        scene = replace(scene, diameter=rng.uniform(0.15, 0.8), tilt=rng.uniform(-180, 180))
        layers = [(scene.thing, _any_colour(rng), 1.0)]
        if rng.random() < 0.5:
            layers.append((rng.choice(CLASSES), _any_colour(rng), rng.uniform(0.3, 0.6)))
        ground = _draw(scene, layers, ground=ground)
    return ground


def outline(thing: str) -> list[list[Point]]:
    """The thing's outlines as polygons around the origin, inside the unit circle; a second one is a hole."""
    return _OUTLINES[thing]


def _draw(scene: Scene, layers: list[tuple[str, Colour, float]], ground: Image.Image | None = None) -> Image.Image:
    width = SIZE * _OVERSAMPLING
    if ground is None:
        ground = Image.new("RGB", (SIZE, SIZE), _shade(COLOURS[scene.background], scene.shade))
    for thing, colour, scale in layers:
        mask = Image.new("L", (width, width), 0)
        pen = ImageDraw.Draw(mask)
        for polygon, fill in zip(outline(thing), (255, 0)):
            pen.polygon([_place(p, scene, scale, width) for p in polygon], fill=fill)
        mask = mask.resize((SIZE, SIZE), Image.Resampling.BOX)
        ground.paste(colour, (0, 0), mask)
    return ground


def _place(point: Point, scene: Scene, scale: float, width: int) -> Point:
    angle = math.radians(scene.tilt)
    x = point[0] * math.cos(angle) - point[1] * math.sin(angle)
    y = point[0] * math.sin(angle) + point[1] * math.cos(angle)
    radius = scene.diameter / 2 * scale
    return ((scene.centre[0] + x * radius) * width, (scene.centre[1] + y * radius) * width)


def _shade(colour: Colour, amount: float) -> Colour:
    red, green, blue = (max(0, min(255, round(c * (1 + amount)))) for c in colour)
    return red, green, blue


def _any_colour(rng: random.Random) -> Colour:
    return rng.randrange(256), rng.randrange(256), rng.randrange(256)


def _stripes(pen: ImageDraw.ImageDraw, rng: random.Random) -> None:
    colour, step, across = _any_colour(rng), rng.randrange(6, 20), rng.random() < 0.5
    for start in range(0, SIZE, 2 * step):
        box = (0, start, SIZE, start + step - 1) if across else (start, 0, start + step - 1, SIZE)
        pen.rectangle(box, fill=colour)


def _regular(corners: int, radius: float = 1.0, turn: float = -90.0) -> list[Point]:
    angles = [math.radians(turn + 360 * i / corners) for i in range(corners)]
    return [(radius * math.cos(a), radius * math.sin(a)) for a in angles]


def _star() -> list[Point]:
    outer, inner = _regular(5), _regular(5, radius=0.45, turn=-54.0)
    return [point for pair in zip(outer, inner) for point in pair]


def _heart() -> list[Point]:
    points = []
    for i in range(80):
        t = 2 * math.pi * i / 80
        x = 16 * math.sin(t) ** 3
        y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        points.append((x / 17, -(y + 2) / 17))
    return points


def _cross() -> list[Point]:
    a, b = 0.30, 0.92
    return [(-a, -b), (a, -b), (a, -a), (b, -a), (b, a), (a, a), (a, b), (-a, b), (-a, a), (-b, a), (-b, -a), (-a, -a)]


def _moon() -> list[Point]:
    outer = [(math.cos(math.radians(a)), math.sin(math.radians(a))) for a in range(50, 311, 5)]
    inner = [(0.42 + 0.80 * math.cos(math.radians(a)), 0.80 * math.sin(math.radians(a))) for a in range(286, 73, -5)]
    return [(x + 0.25, y) for x, y in outer + inner]


_OUTLINES: dict[str, list[list[Point]]] = {
    "star": [_star()],
    "heart": [_heart()],
    "circle": [_regular(64, radius=0.92)],
    "square": [_regular(4, turn=-45.0)],
    "triangle": [_regular(3)],
    "cross": [_cross()],
    "moon": [_moon()],
    "ring": [_regular(64, radius=0.96), _regular(64, radius=0.55)],
}

"""What can be said about a scene, and whether it is true: captions, a parser, a verifier.

The grammar, in English and in Chinese, over objects with a shape, a colour and a size:

    one object or several alike    [there is] a small red circle       三个绿色的星形
    two objects and a relation     a small red circle left of a large blue square

A sentence is judged by parsing it, never by comparing strings: "A left of B" and "B right of A" are
both true. The size, a label and a motion may stay unsaid; what is said must hold, and every object
must be accounted for.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

SHAPES = ("circle", "square", "triangle", "star", "cross")
COLORS = ("red", "yellow", "green", "blue", "purple", "black")
SIZES = ("small", "large")
RELATIONS = ("left of", "right of", "above", "below")
DIRECTIONS = ("left", "right", "up", "down")
OPPOSITE = dict(zip(RELATIONS, ("right of", "left of", "below", "above"), strict=True))
COUNTS = {1: "one", 2: "two", 3: "three", 4: "four"}


@dataclass(frozen=True)
class Object:
    shape: str
    color: str
    size: str
    box: tuple[int, int, int, int]  # x1, y1, x2, y2 in pixels; x2 and y2 lie just outside
    text: str = ""  # what is written on it
    motion: tuple[str, ...] = ()  # the DIRECTIONS in which it moves, in order

    @property
    def center(self) -> tuple[float, float]:
        """(x, y) in pixels."""
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2


@dataclass(frozen=True)
class Phrase:
    """A noun phrase, understood. None = not said."""

    count: int
    color: str
    shape: str
    size: str | None = None
    text: str | None = None
    motion: tuple[str, ...] | None = None

    def fits(self, thing: Object) -> bool:
        """Does everything that is said hold for this object?"""
        said = [(self.color, thing.color), (self.shape, thing.shape), (self.size, thing.size)]
        said += [(self.text, thing.text), (self.motion, thing.motion)]
        return all(word is None or word == fact for word, fact in said)


# word -> meaning; of several words for a meaning the first is the plainest
ENGLISH = {
    "count": {"a": 1, "one": 1, "two": 2, "three": 3, "four": 4},
    "size": {"small": "small", "little": "small", "large": "large", "big": "large"},
    "color": {color: color for color in COLORS},
    "shape": {shape: shape for shape in SHAPES},
    "relation": {
        "left of": "left of",
        "to the left of": "left of",
        "right of": "right of",
        "to the right of": "right of",
        "above": "above",
        "over": "above",
        "below": "below",
        "under": "below",
    },
    "direction": {direction: direction for direction in DIRECTIONS},
    "plural": {"cross": "crosses"},
}
CHINESE = {
    "count": {"一": 1, "两": 2, "三": 3, "四": 4},
    "size": {"小": "small", "大": "large"},
    "color": dict(zip(("红色", "黄色", "绿色", "蓝色", "紫色", "黑色"), COLORS, strict=True)),
    "shape": dict(zip(("圆形", "正方形", "三角形", "星形", "十字形"), SHAPES, strict=True)),
    "relation": {
        "左边": "left of",
        "左侧": "left of",
        "右边": "right of",
        "右侧": "right of",
        "上面": "above",
        "上方": "above",
        "下面": "below",
        "下方": "below",
    },
    "direction": dict(zip("左右上下", DIRECTIONS, strict=True)),
}


def _one_of(words) -> str:
    return "|".join(sorted(map(re.escape, words), key=len, reverse=True))


def _english_pattern() -> str:
    table = {key: _one_of(words) for key, words in ENGLISH.items()}
    shapes = _one_of([*SHAPES, *(plural(shape) for shape in SHAPES)])
    return (
        rf"(?P<count>{table['count']}) (?:(?P<size>{table['size']}) )?(?P<color>{table['color']}) (?P<shape>{shapes})"
        rf"(?: labelled (?P<text>\w+))?"
        rf"(?: moving (?P<motion>(?:{table['direction']})(?: then (?:{table['direction']}))*))?"
    )


def _chinese_pattern() -> str:
    table = {key: _one_of(words) for key, words in CHINESE.items()}
    return (
        rf"(?P<count>{table['count']})个(?:写着(?P<text>[A-Za-z0-9]+)的)?(?:向(?P<motion>[左右上下](?:再向[左右上下])*)移动的)?"
        rf"(?:(?P<size>{table['size']})的?)?(?P<color>{table['color']})的?(?P<shape>{table['shape']})"
    )


def plural(shape: str) -> str:
    """ "star" -> "stars"."""
    return ENGLISH["plural"].get(shape, shape + "s")


_EN_PHRASE, _ZH_PHRASE = re.compile(_english_pattern()), re.compile(_chinese_pattern())
_EN_OPENING = re.compile(r"(there is|there are|a picture of) ")
_ZH_OPENING = re.compile(r"(图中|这里)?有")
_EN_RELATION = re.compile(rf" ({_one_of(ENGLISH['relation'])}) ")
_ZH_RELATION = re.compile(rf"的?({_one_of(CHINESE['relation'])})")


def _phrase(match: re.Match, language: dict) -> Phrase | None:
    """The meaning of a matched noun phrase; None where number and noun disagree ("three star")."""
    word = match.groupdict()
    count, shape, motion = language["count"][word["count"]], word["shape"], word["motion"]
    if language is ENGLISH:
        singular = (
            {shape: shape for shape in SHAPES}
            if count == 1
            else {plural(shape): shape for shape in SHAPES}
        )
        if shape not in singular:
            return None
        shape = singular[shape]
    if motion is not None:
        motion = tuple(language["direction"][step] for step in re.split(" then |再向", motion))
    size = word["size"] and language["size"][word["size"]]
    return Phrase(
        count,
        language["color"][word["color"]],
        language["shape"][shape],
        size,
        word["text"],
        motion,
    )


def parse(sentence: str) -> tuple[tuple[Phrase, ...], str | None] | None:
    """A sentence -> its noun phrases (one or two) and the relation between two; None if it is not
    of the grammar.
    """
    sentence = sentence.strip().removesuffix(".").removesuffix("。")
    if re.search(r"[一-鿿]", sentence):
        return _parse_chinese(sentence)
    return _parse_english(sentence)


def _parse_english(sentence: str) -> tuple[tuple[Phrase, ...], str | None] | None:
    sentence = sentence[:1].lower() + sentence[1:]
    opening = _EN_OPENING.match(sentence)
    rest = sentence[opening.end() :] if opening else sentence
    first = _EN_PHRASE.match(rest)
    if not first:
        return None
    one = _phrase(first, ENGLISH)
    wrong_number = {"there is ": one and one.count > 1, "there are ": one and one.count == 1}
    if one is None or (opening and wrong_number.get(opening[0])):
        return None
    rest = rest[first.end() :]
    if not rest:
        return (one,), None
    relation = _EN_RELATION.match(rest)
    second = relation and _EN_PHRASE.fullmatch(rest, relation.end())
    two = second and _phrase(second, ENGLISH)
    if not two or one.count != 1 or two.count != 1:
        return None
    return (one, two), ENGLISH["relation"][relation[1]]


def _parse_chinese(sentence: str) -> tuple[tuple[Phrase, ...], str | None] | None:
    opening = _ZH_OPENING.match(sentence)
    rest = sentence[opening.end() :] if opening else sentence
    first = _ZH_PHRASE.match(rest)
    if not first:
        return None
    one, rest = _phrase(first, CHINESE), rest[first.end() :]
    if not rest:
        return (one,), None
    second = _ZH_PHRASE.match(rest, 1) if rest[0] == "在" else None
    relation = second and _ZH_RELATION.fullmatch(rest, second.end())
    two = relation and _phrase(second, CHINESE)
    if not two or one.count != 1 or two.count != 1:
        return None
    return (one, two), CHINESE["relation"][relation[1]]


def relations(a: Object, b: Object, cell: int) -> list[str]:
    """The RELATIONS of a to b that hold: centres apart by more than half a cell along that axis."""
    (ax, ay), (bx, by) = a.center, b.center
    apart = {"left of": bx - ax, "right of": ax - bx, "above": by - ay, "below": ay - by}
    return [relation for relation in RELATIONS if apart[relation] > cell / 2]


def main_relations(a: Object, b: Object, cell: int) -> list[str]:
    """Of the relations of a to b those along the axis of the larger distance in cells: what a
    speaker would name.
    """
    (ax, ay), (bx, by) = a.center, b.center
    across, down = abs(ax // cell - bx // cell), abs(ay // cell - by // cell)
    axes = {"left of": across, "right of": across, "above": down, "below": down}
    return [relation for relation in relations(a, b, cell) if axes[relation] == max(across, down)]


def reading_order(objects: Sequence[Object], cell: int) -> list[Object]:
    """From top to bottom, and from left to right within a row of cells."""
    return sorted(objects, key=lambda thing: (thing.center[1] // cell, thing.center[0] // cell))


def holds(sentence: str, objects: Sequence[Object], cell: int) -> bool:
    """Is the sentence well-formed, true of the objects, and does it account for every one of them?"""
    parsed = parse(sentence)
    if parsed is None:
        return False
    phrases, relation = parsed
    if sum(phrase.count for phrase in phrases) != len(objects):
        return False
    if relation is None:
        return all(phrases[0].fits(thing) for thing in objects)
    return any(
        phrases[0].fits(a) and phrases[1].fits(b) and relation in relations(a, b, cell)
        for a, b in permutations(objects)
    )


def describe_en(thing: Object, count: int = 1, *, size: bool = True, article: str = "a") -> str:
    """The noun phrase of an object (or of ``count`` alike): "a small red circle", "three green
    stars".
    """
    words = [article if count == 1 else COUNTS[count], thing.size if size else "", thing.color]
    words.append(thing.shape if count == 1 else plural(thing.shape))
    words.append(f"labelled {thing.text}" if thing.text else "")
    words.append(f"moving {' then '.join(thing.motion)}" if thing.motion else "")
    return " ".join(word for word in words if word)


def _say(table: dict, meaning) -> str:
    """The plainest word for a meaning."""
    return next(word for word, means in table.items() if means == meaning)


def describe_zh(thing: Object, count: int = 1, *, size: bool = True) -> str:
    """The Chinese noun phrase: "一个小的红色圆形", "三个绿色的星形"."""
    words = _say(CHINESE["count"], count) + "个"
    words += f"写着{thing.text}的" if thing.text else ""
    steps = [_say(CHINESE["direction"], step) for step in thing.motion]
    words += f"向{'再向'.join(steps)}移动的" if steps else ""
    color, shape = _say(CHINESE["color"], thing.color), _say(CHINESE["shape"], thing.shape)
    return words + (
        f"{_say(CHINESE['size'], thing.size)}的{color}{shape}" if size else f"{color}的{shape}"
    )


Wordings = tuple[list[str], list[str]]  # plain ones, and variations


def wordings_en(objects: Sequence[Object], cell: int) -> Wordings:
    """English captions that name the objects in the given order: the plain ones, and variations of
    them.
    """
    if not alike(objects):
        a, b = objects
        said = [
            [f"{describe_en(a)} {word} {describe_en(b)}" for word in words]
            for words in _words(ENGLISH, a, b, cell)
        ]
        plain = [first for first, *_ in said]
        return plain, [text for _, *rest in said for text in rest] + [
            f"there is {text}" for text in plain
        ]
    thing, count = objects[0], len(objects)
    opening = "there is" if count == 1 else "there are"
    sized, short = (describe_en(thing, count, size=size) for size in (True, False))
    return [sized], [f"{opening} {sized}"] + [short, f"{opening} {short}"] * (count > 1)


def wordings_zh(objects: Sequence[Object], cell: int) -> Wordings:
    """The same in Chinese."""
    if not alike(objects):
        a, b = objects
        said = [
            [f"{describe_zh(a)}在{describe_zh(b)}的{word}" for word in words]
            for words in _words(CHINESE, a, b, cell)
        ]
        return [first for first, *_ in said], [text for _, *rest in said for text in rest]
    sized, short = (describe_zh(objects[0], len(objects), size=size) for size in (True, False))
    return [sized], [f"图中有{sized}"] + [short, f"图中有{short}"] * (len(objects) > 1)


def _words(language: dict, a: Object, b: Object, cell: int) -> list[list[str]]:
    """For each main relation of a to b the words for it, the plainest first."""
    table = language["relation"]
    return [
        [word for word in table if table[word] == relation]
        for relation in main_relations(a, b, cell)
    ]


def captions(objects: Sequence[Object], cell: int) -> tuple[list[str], list[str]]:
    """All wordings that the dataset uses for a scene, in English and in Chinese."""
    orders = [objects] if alike(objects) else list(permutations(objects))
    found = ([wordings(order, cell) for order in orders] for wordings in (wordings_en, wordings_zh))
    english, chinese = (
        [text for plain, varied in language for text in plain + varied] for language in found
    )
    return english, chinese


def alike(objects: Sequence[Object]) -> bool:
    """Do all objects look the same, wherever they are?"""
    return (
        len({(thing.color, thing.shape, thing.size, thing.text, thing.motion) for thing in objects})
        == 1
    )

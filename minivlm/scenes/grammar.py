"""What can be said about a scene, and whether it is true: captions, a parser, a verifier.

The grammar, in English and in Chinese, over objects with a shape, a colour and a size:

    one object or several alike    [there is] a small red circle       三个绿色的星形
    two objects and a relation     a small red circle left of a large blue square

A sentence is judged by parsing it, never by comparing strings: "A left of B" and "B right of A" are
both true. The size, a label and a motion may stay unsaid; what is said must hold, and every object
must be accounted for.
"""

import re
from collections.abc import Callable, Iterable, Sequence
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
    """A flat object: how it looks and where it is."""

    shape: str
    color: str
    size: str
    box: tuple[int, int, int, int]  # x1, y1, x2, y2 in pixels; x2 and y2 are just outside
    text: str = ""  # what is written on it
    motion: tuple[str, ...] = ()  # the DIRECTIONS in which it moves, in order

    @property
    def center(self) -> tuple[float, float]:
        """(x, y) in pixels."""
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2


@dataclass(frozen=True)
class Phrase:
    """What a noun phrase says; None where it does not say it."""

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


def plural(shape: str) -> str:
    """ "star" -> "stars"."""
    return ENGLISH["plural"].get(shape, shape + "s")


def _one_of(words: Iterable[str]) -> str:
    """A pattern for any of the words, the longest first."""
    return "|".join(sorted(map(re.escape, words), key=len, reverse=True))


def _english_phrase() -> str:
    table = {key: _one_of(words) for key, words in ENGLISH.items()}
    shapes = _one_of([*SHAPES, *(plural(shape) for shape in SHAPES)])
    return (
        rf"(?P<count>{table['count']}) (?:(?P<size>{table['size']}) )?"
        rf"(?P<color>{table['color']}) (?P<shape>{shapes})"
        rf"(?: labelled (?P<text>\w+))?"
        rf"(?: moving (?P<motion>(?:{table['direction']})(?: then (?:{table['direction']}))*))?"
    )


def _chinese_phrase() -> str:
    table = {key: _one_of(words) for key, words in CHINESE.items()}
    return (
        rf"(?P<count>{table['count']})个(?:写着(?P<text>[A-Za-z0-9]+)的)?"
        rf"(?:向(?P<motion>[左右上下](?:再向[左右上下])*)移动的)?"
        rf"(?:(?P<size>{table['size']})的?)?"
        rf"(?P<color>{table['color']})的?(?P<shape>{table['shape']})"
    )


_EN_PHRASE, _ZH_PHRASE = re.compile(_english_phrase()), re.compile(_chinese_phrase())
_EN_OPENING = re.compile(r"(there is|there are|a picture of) ")
_ZH_OPENING = re.compile(r"(图中|这里)?有")
_EN_RELATION = re.compile(rf" ({_one_of(ENGLISH['relation'])}) ")
_ZH_RELATION = re.compile(rf"的?({_one_of(CHINESE['relation'])})")

Parsed = tuple[tuple[Phrase, ...], str | None]  # one or two noun phrases, and their relation


def parse(sentence: str) -> Parsed | None:
    """A sentence -> its noun phrases (one or two) and the relation between two.

    None if it is not of the grammar.
    """
    sentence = without_mark(sentence.strip())
    if re.search(r"[一-鿿]", sentence):
        return _parse_chinese(sentence)
    return _parse_english(sentence)


def without_mark(sentence: str) -> str:
    """A sentence without the one mark (. or 。) that may end it."""
    return sentence[:-1] if sentence.endswith((".", "。")) else sentence


def _parse_english(sentence: str) -> Parsed | None:
    sentence = sentence[:1].lower() + sentence[1:]
    opening, rest = _split_opening(_EN_OPENING, sentence)
    first = _EN_PHRASE.match(rest)
    one = first and _phrase(first, ENGLISH)
    if not one or opening == ("there are" if one.count == 1 else "there is"):
        return None
    if first.end() == len(rest):
        return (one,), None
    relation = _EN_RELATION.match(rest, first.end())
    second = relation and _EN_PHRASE.fullmatch(rest, relation.end())
    two = second and _phrase(second, ENGLISH)
    if not two or one.count != 1 or two.count != 1:
        return None
    return (one, two), ENGLISH["relation"][relation[1]]


def _parse_chinese(sentence: str) -> Parsed | None:
    _, rest = _split_opening(_ZH_OPENING, sentence)
    first = _ZH_PHRASE.match(rest)
    if not first:
        return None
    one, rest = _phrase(first, CHINESE), rest[first.end() :]
    if not rest:
        return (one,), None
    second = _ZH_PHRASE.match(rest, 1) if rest.startswith("在") else None
    relation = second and _ZH_RELATION.fullmatch(rest, second.end())
    two = relation and _phrase(second, CHINESE)
    if not two or one.count != 1 or two.count != 1:
        return None
    return (one, two), CHINESE["relation"][relation[1]]


def _split_opening(pattern: re.Pattern, sentence: str) -> tuple[str | None, str]:
    """The words that open a sentence ("there is"; None if it has none), and the rest of it."""
    opening = pattern.match(sentence)
    return (opening[1], sentence[opening.end() :]) if opening else (None, sentence)


def _phrase(match: re.Match, language: dict) -> Phrase | None:
    """The meaning of a matched noun phrase; None where number and noun disagree ("three star")."""
    said = match.groupdict()
    count, shape = language["count"][said["count"]], said["shape"]
    if language is ENGLISH:
        nouns = {(name if count == 1 else plural(name)): name for name in SHAPES}
        if shape not in nouns:
            return None
        shape = nouns[shape]
    motion = said["motion"]
    if motion is not None:
        motion = tuple(language["direction"][step] for step in re.split(" then |再向", motion))
    return Phrase(
        count,
        language["color"][said["color"]],
        language["shape"][shape],
        said["size"] and language["size"][said["size"]],
        said["text"],
        motion,
    )


def relations(a: Object, b: Object, cell: int) -> list[str]:
    """The RELATIONS of a to b that hold: centres apart by more than half a cell along that axis."""
    (ax, ay), (bx, by) = a.center, b.center
    apart = {"left of": bx - ax, "right of": ax - bx, "above": by - ay, "below": ay - by}
    return [relation for relation in RELATIONS if apart[relation] > cell / 2]


def main_relations(a: Object, b: Object, cell: int) -> list[str]:
    """What a speaker would name: the relations along the axis on which a and b are further apart.

    Their distance is counted in cells; where it is the same on both axes, both are named.
    """
    (ax, ay), (bx, by) = a.center, b.center
    across, down = abs(ax // cell - bx // cell), abs(ay // cell - by // cell)
    axes = {"left of": across, "right of": across, "above": down, "below": down}
    return [relation for relation in relations(a, b, cell) if axes[relation] == max(across, down)]


def reading_order(objects: Sequence[Object], cell: int) -> list[Object]:
    """From top to bottom, and from left to right within a row of cells."""
    return sorted(objects, key=lambda thing: (thing.center[1] // cell, thing.center[0] // cell))


def holds(sentence: str, objects: Sequence[Object], cell: int) -> bool:
    """Is the sentence of the grammar, true of the objects, and does it account for each of them?"""
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


def alike(objects: Sequence[Object]) -> bool:
    """Do all objects look the same, wherever they are?"""
    looks = {(thing.color, thing.shape, thing.size, thing.text, thing.motion) for thing in objects}
    return len(looks) == 1


# What is said


def describe_en(thing: Object, count: int = 1, *, size: bool = True, article: str = "a") -> str:
    """A noun phrase: "a small red circle" or, of ``count`` alike, "three green stars"."""
    words = [
        article if count == 1 else COUNTS[count],
        thing.size if size else "",
        thing.color,
        thing.shape if count == 1 else plural(thing.shape),
        f"labelled {thing.text}" if thing.text else "",
        f"moving {' then '.join(thing.motion)}" if thing.motion else "",
    ]
    return " ".join(word for word in words if word)


def describe_zh(thing: Object, count: int = 1, *, size: bool = True) -> str:
    """The Chinese noun phrase: "一个小的红色圆形", "三个绿色的星形"."""
    words = _plainest("count", count) + "个"
    if thing.text:
        words += f"写着{thing.text}的"
    if thing.motion:
        words += f"向{'再向'.join(_plainest('direction', step) for step in thing.motion)}移动的"
    color, shape = _plainest("color", thing.color), _plainest("shape", thing.shape)
    if size:
        return words + f"{_plainest('size', thing.size)}的{color}{shape}"
    return words + f"{color}的{shape}"


def _plainest(key: str, meaning: str | int) -> str:
    """The plainest Chinese word for a meaning."""
    return next(word for word, means in CHINESE[key].items() if means == meaning)


Wordings = tuple[list[str], list[str]]  # plain ones, and variations


def wordings_en(objects: Sequence[Object], cell: int) -> Wordings:
    """English captions that name the objects in the given order."""
    if alike(objects):
        opening = "there is" if len(objects) == 1 else "there are"
        return _wordings_of_alike(objects, describe_en, opening + " ")
    plain, varied = _wordings_of_two(objects, cell, ENGLISH, describe_en, "{} {word} {}")
    return plain, varied + [f"there is {text}" for text in plain]


def wordings_zh(objects: Sequence[Object], cell: int) -> Wordings:
    """The same in Chinese."""
    if alike(objects):
        return _wordings_of_alike(objects, describe_zh, "图中有")
    return _wordings_of_two(objects, cell, CHINESE, describe_zh, "{}在{}的{word}")


def _wordings_of_alike(objects: Sequence[Object], describe: Callable, opening: str) -> Wordings:
    """With the size and, of several objects, without; bare and with an opening."""
    sized = describe(objects[0], len(objects))
    varied = [opening + sized]
    if len(objects) > 1:
        short = describe(objects[0], len(objects), size=False)
        varied += [short, opening + short]
    return [sized], varied


def _wordings_of_two(
    objects: Sequence[Object], cell: int, language: dict, describe: Callable, form: str
) -> Wordings:
    """In each word for each main relation; the first word for a meaning is the plain one."""
    first, second = objects
    plain, varied = [], []
    for relation in main_relations(first, second, cell):
        words = [word for word, means in language["relation"].items() if means == relation]
        texts = [form.format(describe(first), describe(second), word=word) for word in words]
        plain.append(texts[0])
        varied += texts[1:]
    return plain, varied


def captions(
    objects: Sequence[Object], cell: int, wordings: Callable[..., Wordings] = wordings_en
) -> list[str]:
    """All wordings that the dataset uses for a scene, in the language of ``wordings``."""
    orders = [objects] if alike(objects) else permutations(objects)
    texts = []
    for order in orders:
        plain, varied = wordings(order, cell)
        texts += plain + varied
    return texts

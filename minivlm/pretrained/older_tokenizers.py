"""Older layouts of published tokenizers: vocab.json with merges.txt, or vocab.txt.

They say neither how a text is cut nor what goes around it: that was in the code of each class. Here
each becomes the tokenizer.json that transformers writes for it. Which tokens are special stands in
further files, for both layouts.
"""

from pathlib import Path
from typing import Any

from minivlm.formats.patterns import QWEN2_SPLIT
from minivlm.formats.tokenizer_files import CHAR_TO_BYTE, errors_name, load_json, vocab_and_merges
from minivlm.pretrained.clip_tokenizer import CLIP_SPLIT, NORMALIZER, SUFFIX, clip_words

SUFFIXES = (".json", ".txt", ".model")
START, END = "<|startoftext|>", "<|endoftext|>"
ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
USUAL_TOKENS = {  # of a class, where tokenizer_config.json names no other
    "GPT2": {"bos_token": END, "eos_token": END, "unk_token": END},
    "Qwen2": {"eos_token": END, "unk_token": END, "pad_token": END},
    "CLIP": {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END},
    "Bert": {role: f"[{role[:3].upper()}]" for role in ROLES[2:6]} | {"mask_token": "[MASK]"},
}
CLASSES = {  # config.json's model_type -> the class, where tokenizer_config.json names none
    "clip": "CLIP",
    "opt": "GPT2",
    "blip-2": "GPT2",
    "blip": "Bert",
    "qwen2_vl": "Qwen2",
    "qwen2_5_vl": "Qwen2",
    "qwen3_vl": "Qwen2",
}
QWEN2 = {
    "normalizer": {"type": "NFC"},
    "pre_tokenizer": {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": QWEN2_SPLIT}, "behavior": "Isolated"},
            {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
        ],
    },
}
BERT_OPTIONS = {  # tokenizer_config.json's name -> the normalizer's
    "do_lower_case": "lowercase",
    "strip_accents": "strip_accents",
    "tokenize_chinese_chars": "handle_chinese_chars",
}
Tokens = dict[str, dict[str, Any]]  # {token: {"content": token, its flags}}


def older_files(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    """The tokenizer.json of a folder that has none; ValueError if its files are of no known kind.

    config: tokenizer_config.json, or {}.
    """
    kind = _class_name(folder, config)
    pair = (folder / "vocab.json").exists() and (folder / "merges.txt").exists()
    if (folder / "vocab.txt").exists() and kind in ("Bert", ""):
        data, kind = _bert_files(folder), "Bert"
    elif pair and kind == "CLIP":
        data = _clip_files(folder)
    elif pair and kind in ("GPT2", "Qwen2", ""):
        data, kind = vocab_and_merges(folder, set(CHAR_TO_BYTE)), kind or "GPT2"
        data |= {"decoder": {"type": "ByteLevel"}} | (QWEN2 if kind == "Qwen2" else {})
    else:
        found = sorted(path.name for path in folder.iterdir() if path.suffix in SUFFIXES)
        known = f"{kind or 'known'} tokenizer (a SentencePiece model alone is not read)"
        raise ValueError(f"{folder} has no tokenizer.json and no files of a {known}: {found}")
    data["added_tokens"] = []
    return data | {"roles": USUAL_TOKENS[kind]}


def _class_name(folder: Path, config: dict[str, Any]) -> str:
    """The class of a tokenizer, without "Tokenizer" and "Fast"; "" where no file names one."""
    name = config.get("tokenizer_class")
    if name:
        return str(name).removesuffix("Fast").removesuffix("Tokenizer")
    model = load_json(folder / "config.json", optional=True).get("model_type")
    merges = folder / "merges.txt"
    clip = merges.exists() and SUFFIX in merges.read_text(encoding="utf-8", errors="replace")
    return CLASSES.get(str(model), "CLIP" if clip else "")


def _clip_files(folder: Path) -> dict[str, Any]:
    symbols = {char + end for char in CHAR_TO_BYTE for end in ("", SUFFIX)}
    data = vocab_and_merges(folder, symbols)
    data["model"]["end_of_word_suffix"] = SUFFIX
    return data | {
        "normalizer": NORMALIZER,
        "pre_tokenizer": clip_words(CLIP_SPLIT),
        "decoder": {"type": "ByteLevel"},
    }


def _bert_files(folder: Path) -> dict[str, Any]:
    with errors_name(folder / "vocab.txt"):
        lines = (folder / "vocab.txt").read_text(encoding="utf-8").removesuffix("\n").split("\n")
    return {
        "normalizer": {"type": "BertNormalizer"},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece",
            "continuing_subword_prefix": "##",
            "vocab": {line: i for i, line in enumerate(lines)},
        },
    }


def complete(
    data: dict[str, Any], config: dict[str, Any], roles: dict[str, Any], more: dict[str, int]
) -> None:
    """Write into a tokenizer.json what other files of its folder say, as transformers does.

    Special tokens: those in tokenizer_config.json (config) and, where it has no list of them, in
    special_tokens_map.json (roles) and added_tokens.json (more). A token without an id gets the
    next one. In an older layout, roles give the unknown token and what goes around a text.
    """
    listed = config.get("added_tokens_decoder")
    named = config if listed is not None else config | roles
    usual = data.pop("roles", {})
    marks = {role: _entry(named.get(role, usual.get(role))) for role in ROLES}
    marks = {role: token for role, token in marks.items() if token}
    further = _further(named)
    special = {token["content"] for token in [*marks.values(), *further]}
    entries = [_entry(token, False) | {"id": int(i)} for i, token in (listed or {}).items()]
    if listed is None:
        entries += [_entry(token, token in special) | {"id": i} for token, i in more.items()]
    added = {token["content"]: token for token in data.get("added_tokens") or []}
    for token in entries:
        added.setdefault(token["content"], token)
    _add(added, [*marks.values(), *further], data["model"]["vocab"])
    data["added_tokens"] = list(added.values())
    marks = {role: added[token["content"]] for role, token in marks.items()}
    if usual:
        data["model"]["unk_token"] = marks.get("unk_token", {}).get("content")
        data["post_processor"] = _post_processor(data, config, marks)
    _overrule(data, config)


def _overrule(data: dict[str, Any], config: dict[str, Any]) -> None:
    """Options of tokenizer_config.json that come before those of the file."""
    if str(config.get("tokenizer_class")).startswith("Bert") and data.get("normalizer"):
        data["normalizer"] |= {
            ours: config[theirs] for theirs, ours in BERT_OPTIONS.items() if theirs in config
        }
    byte_level = (data.get("decoder") or {}).get("type") == "ByteLevel"
    if byte_level and config.get("add_prefix_space"):
        raise ValueError("a byte-level tokenizer with add_prefix_space is not supported")


def _add(added: Tokens, tokens: list[dict[str, Any]], vocab: Any) -> None:
    """New tokens, with their id in the vocabulary or the next one. vocab: {piece: id} or pairs."""
    ids = vocab if isinstance(vocab, dict) else {piece: i for i, (piece, _) in enumerate(vocab)}
    for token in tokens:
        if token["content"] not in added:
            free = max([len(ids), *(other["id"] + 1 for other in added.values())])
            added[token["content"]] = token | {"id": ids.get(token["content"], free)}


def _entry(token: str | dict[str, Any] | None, special: bool = True) -> dict[str, Any]:
    """Both forms of a token in tokenizer_config.json, with flags; {} for none."""
    entry = {"content": token} if isinstance(token, str) else token
    return {"special": special, "normalized": not special} | entry if entry else {}


def _further(named: dict[str, Any]) -> list[dict[str, Any]]:
    """Special tokens without one of the seven roles."""
    tokens: list[Any] = []
    for key in ("additional_special_tokens", "extra_special_tokens"):
        listed = named.get(key) or []
        tokens += listed.values() if isinstance(listed, dict) else listed
    others = [key for key in named if key.endswith("_token") and key not in ROLES]
    tokens += [named[key] for key in others if isinstance(named[key], str)]
    return [_entry(token) for token in tokens if token]


def _post_processor(data: dict[str, Any], config: dict[str, Any], marks: Tokens) -> dict[str, Any]:
    """What the class puts around a text: CLIP and BERT always the same, others as the flags say."""
    ends = ["bos_token", "eos_token"]
    if data["model"].get("type") == "WordPiece":
        ends = ["cls_token", "sep_token"]
    elif not data["model"].get("end_of_word_suffix"):
        ends = [role if config.get(f"add_{role}") else "" for role in ends]
    before, after = ([marks[role]] if role in marks else [] for role in ends)
    return _template(before, after)


def _template(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> dict[str, Any]:
    """The post-processor that puts tokens before and after a text."""
    steps = [
        [{"SpecialToken": {"id": token["content"]}} for token in side] for side in (before, after)
    ]
    return {
        "type": "TemplateProcessing",
        "single": [*steps[0], {"Sequence": {"id": "A"}}, *steps[1]],
        "special_tokens": {token["content"]: {"ids": [token["id"]]} for token in [*before, *after]},
    }

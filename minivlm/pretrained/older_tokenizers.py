"""Older layouts of published tokenizers: vocab.json with merges.txt, or vocab.txt.

They say neither how a text is cut nor what goes around it: that was in the code of each class. Here
each becomes the tokenizer.json that transformers writes for it. Which tokens are special stands in
further files, for both layouts.
"""

from pathlib import Path
from typing import Any

from minivlm.formats.tokenizer_files import CHAR_TO_BYTE, load_json, vocab_and_merges
from minivlm.pretrained.clip_tokenizer import CLIP_SPLIT, NORMALIZER, SUFFIX, clip_words

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
Tokens = dict[str, dict[str, Any]]  # {token: {"content": token, its flags}}


def older_files(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    """The tokenizer.json of a folder that has none; ValueError if its files are of no known kind.

    config: tokenizer_config.json, or {}.
    """
    kind = _class_name(folder, config)
    pair = (folder / "vocab.json").exists() and (folder / "merges.txt").exists()
    if (folder / "vocab.txt").exists() and kind in ("Bert", ""):
        data, kind = _bert_files(folder, config), "Bert"
    elif pair and kind == "CLIP":
        data = _clip_files(folder)
    elif pair and kind in ("GPT2", "Qwen2", ""):
        data, kind = vocab_and_merges(folder, set(CHAR_TO_BYTE)), kind or "GPT2"
        data["decoder"] = {"type": "ByteLevel"}
    else:
        found = sorted(path.name for path in folder.iterdir() if "config" not in path.name)
        known = f"{kind or 'known'} tokenizer"
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


def _bert_files(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    lines = (folder / "vocab.txt").read_text(encoding="utf-8").removesuffix("\n").split("\n")
    normalizer = {
        "type": "BertNormalizer",
        "clean_text": True,
        "handle_chinese_chars": config.get("tokenize_chinese_chars", True),
        "strip_accents": config.get("strip_accents"),
        "lowercase": config.get("do_lower_case", True),
    }
    return {
        "normalizer": normalizer,
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {"type": "WordPiece", "vocab": {line: i for i, line in enumerate(lines)}},
    }


def complete(
    data: dict[str, Any], config: dict[str, Any], roles: dict[str, Any], more: dict[str, int]
) -> None:
    """Write into a tokenizer.json what other files of its folder say, as transformers does.

    Special tokens: those in tokenizer_config.json (config), special_tokens_map.json (roles) and
    added_tokens.json (more); a new one gets the next id. What goes around a text, and the unknown
    token, by their roles.
    """
    named = roles | config
    usual = data.pop("roles", {})
    roles = {role: _entry(named.get(role, usual.get(role))) for role in ROLES}
    added = {token["content"]: token for token in data.get("added_tokens") or []}
    for i, token in config.get("added_tokens_decoder", {}).items():
        added.setdefault(token["content"], token | {"id": int(i)})
    for text, i in more.items():
        added.setdefault(text, {"content": text, "id": i})
    vocab = data["model"]["vocab"]
    ids = vocab if isinstance(vocab, dict) else {piece: i for i, (piece, _) in enumerate(vocab)}
    for token in [*filter(None, roles.values()), *_further(named)]:
        if token["content"] not in added:
            free = max([len(ids), *(other["id"] + 1 for other in added.values())])
            added[token["content"]] = token | {"id": ids.get(token["content"], free)}
    data["added_tokens"] = list(added.values())
    marks = {role: added[token["content"]] for role, token in roles.items() if token}
    if usual and "unk_token" in marks:
        data["model"]["unk_token"] = marks["unk_token"]["content"]
    _put_around(data, config, marks, older=bool(usual))


def _entry(token: str | dict[str, Any] | None) -> dict[str, Any] | None:
    """Both forms of a token in tokenizer_config.json."""
    return {"content": token} if isinstance(token, str) else token


def _further(named: dict[str, Any]) -> list[dict[str, Any]]:
    """Special tokens without one of the seven roles."""
    found: list[dict[str, Any] | None] = []
    for key in ("additional_special_tokens", "extra_special_tokens"):
        tokens = named.get(key) or []
        found += map(_entry, tokens.values() if isinstance(tokens, dict) else tokens)
    return [token for token in found if token]


def _put_around(
    data: dict[str, Any], config: dict[str, Any], marks: Tokens, *, older: bool
) -> None:
    """The post-processor: by the class where no tokenizer.json has one, or as the flags say."""
    ends = ["bos_token", "eos_token"]
    if data["model"].get("type") == "WordPiece":
        ends = ["cls_token", "sep_token"]
    elif not data["model"].get("end_of_word_suffix"):
        flags = [config.get("add_bos_token"), config.get("add_eos_token")]
        older |= "add_bos_token" in config or "add_eos_token" in config
        ends = [role if flag else "" for role, flag in zip(ends, flags, strict=True)]
    if older:
        before, after = ([marks[role]] if role in marks else [] for role in ends)
        data["post_processor"] = _template(before, after)


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

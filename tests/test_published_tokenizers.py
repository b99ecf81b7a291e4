"""Tokenizers as published, transformers as the oracle: small ones in each format and layout."""

import json
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_bpe import MIXED
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from minivlm.bpe import CL100K_SPLIT, GPT2_SPLIT, BPETokenizer, to_visible
from minivlm.formats.tokenizer_files import BYTE_TO_CHAR
from minivlm.pretrained.bert_tokenizer import BERT_WORDS, bert_clean
from minivlm.pretrained.tokenizers import open_tokenizer

transformers = pytest.importorskip("transformers")

CORPUS = (
    MIXED + " Ärger café naïve coöperate don't they'll isn't 'tis a.b,c! 中文 小红圆 ١٢ Ωμέγα ΣΑΣ"
)
END = "<|endoftext|>"
Oracle = Any  # a tokenizer of transformers


def trained_bpe(size: int = 420, split: str = GPT2_SPLIT) -> tuple[dict[str, int], list]:
    """vocab.json and merges.txt of a byte-level BPE."""
    tok = BPETokenizer.train(CORPUS, size, split)
    merges = [(to_visible(left), to_visible(right)) for left, right in tok.merges]
    return {to_visible(token): i for token, i in tok.ranks.items()}, merges


def write_pair(folder: Path, vocab: dict[str, int], merges: list, **config: Any) -> None:
    (folder / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    lines = ["#version: 0.2", *map(" ".join, merges), ""]
    (folder / "merges.txt").write_text("\n".join(lines), encoding="utf-8")
    write_config(folder, **config)


def write_config(folder: Path, **config: Any) -> None:
    if config:
        (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")


def gpt2(folder: Path) -> Oracle:
    vocab, merges = trained_bpe()
    vocab[END] = len(vocab)
    transformers.GPT2TokenizerFast(vocab=vocab, merges=merges).save_pretrained(folder)
    return transformers.GPT2TokenizerFast.from_pretrained(folder)


def gpt2_older(folder: Path) -> Oracle:
    vocab, merges = trained_bpe()
    write_pair(folder, vocab | {END: len(vocab)}, merges)
    return transformers.GPT2TokenizerFast.from_pretrained(folder)


def opt_vocab() -> tuple[dict[str, int], list]:
    """OPT's offsets: four special tokens come first, words that nothing makes come last."""
    vocab, merges = trained_bpe()
    vocab = {token: i + 4 for token, i in vocab.items()}
    size = len(vocab) + 4
    made_up = {"madeupword0000": size, "madeupword0001": size + 1}
    return {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3} | vocab | made_up, merges


OPT_TOKENS = {"bos_token": "</s>", "eos_token": "</s>", "unk_token": "</s>", "pad_token": "<pad>"}


def opt(folder: Path) -> Oracle:
    vocab, merges = opt_vocab()
    tok = transformers.GPT2TokenizerFast(
        vocab=vocab, merges=merges, **OPT_TOKENS, add_bos_token=True
    )
    tok.add_tokens([AddedToken("<image>", special=True, normalized=False)])
    tok.save_pretrained(folder)
    return transformers.GPT2TokenizerFast.from_pretrained(folder)


def opt_older(folder: Path) -> Oracle:
    flags = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    tokens = {
        role: {"__type": "AddedToken", "content": token} | flags
        for role, token in OPT_TOKENS.items()
    }
    tokens["pad_token"] = "<pad>"
    write_pair(folder, *opt_vocab(), tokenizer_class="GPT2Tokenizer", add_bos_token=True, **tokens)
    mapped = {role: {"content": token} | flags for role, token in OPT_TOKENS.items()}
    (folder / "special_tokens_map.json").write_text(json.dumps(mapped), encoding="utf-8")
    return transformers.GPT2TokenizerFast.from_pretrained(folder)


QWEN_TOKENS = [END, "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|image_pad|>"]


def qwen2(folder: Path) -> Oracle:
    vocab, merges = trained_bpe()
    tok = transformers.Qwen2TokenizerFast(
        vocab=vocab, merges=merges, extra_special_tokens=QWEN_TOKENS[1:]
    )
    tok.add_tokens([AddedToken("<tool_call>", normalized=False), AddedToken("<工具>")])
    tok.save_pretrained(folder)
    return transformers.Qwen2TokenizerFast.from_pretrained(folder)


def qwen2_older(folder: Path) -> Oracle:
    vocab, merges = trained_bpe()
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    listed = {
        str(len(vocab) + i): {"content": token, "special": True} | flags
        for i, token in enumerate(QWEN_TOKENS)
    }
    listed[str(len(vocab) + len(QWEN_TOKENS))] = {
        "content": "<tool_call>",
        "special": False,
    } | flags
    write_pair(
        folder,
        vocab,
        merges,
        tokenizer_class="Qwen2Tokenizer",
        added_tokens_decoder=listed,
        additional_special_tokens=QWEN_TOKENS[1:],
        eos_token="<|im_end|>",
        pad_token=END,
        bos_token=None,
        unk_token=None,
        add_prefix_space=False,
        split_special_tokens=False,
    )
    return transformers.Qwen2TokenizerFast.from_pretrained(folder)


def llama3(folder: Path) -> Oracle:
    vocab, merges = trained_bpe()
    hf = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=True))
    split = CL100K_SPLIT.replace("{1,3}+", "{1,3}").replace("|\\s++$", "")
    hf.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(split), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    hf.decoder = decoders.ByteLevel()
    hf.add_special_tokens(["<|begin_of_text|>", "<|eot_id|>"])
    bos = "<|begin_of_text|>"
    template = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, hf.token_to_id(bos))]
    )
    hf.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    return backend(folder, hf, bos_token=bos, eos_token="<|eot_id|>")


def backend(folder: Path, hf: Tokenizer, **options: Any) -> Oracle:
    """A tokenizer of no class of its own, saved and read again."""
    transformers.PreTrainedTokenizerFast(tokenizer_object=hf, **options).save_pretrained(folder)
    return transformers.PreTrainedTokenizerFast.from_pretrained(folder)


def clip_vocab(symbols: str = "".join(BYTE_TO_CHAR.values())) -> tuple[dict[str, int], list]:
    """Trained by the library, then over these symbols only, in CLIP's order."""
    hf = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    hf.normalizer = normalizers.Lowercase()
    hf.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=800, end_of_word_suffix="</w>", show_progress=False, initial_alphabet=[]
    )
    hf.train_from_iterator([CORPUS], trainer)
    vocab = [*symbols, *(symbol + "</w>" for symbol in symbols)]
    merges: list[tuple[str, str]] = []
    for left, right in json.loads(hf.to_str())["model"]["merges"]:
        if left in vocab and right in vocab:
            merges.append((left, right))
            vocab.append(left + right)
    assert len(merges) > 20
    vocab += ["<|startoftext|>", END]
    return {token: i for i, token in enumerate(dict.fromkeys(vocab))}, merges


def clip(folder: Path) -> Oracle:
    vocab, merges = clip_vocab()
    transformers.CLIPTokenizerFast(vocab=vocab, merges=merges).save_pretrained(folder)
    return transformers.CLIPTokenizerFast.from_pretrained(folder)


def clip_older(folder: Path) -> Oracle:
    write_pair(folder, *clip_vocab(), tokenizer_class="CLIPTokenizer")
    return transformers.CLIPTokenizerFast.from_pretrained(folder)


def clip_without_config(folder: Path) -> Oracle:
    write_pair(folder, *clip_vocab())
    return transformers.CLIPTokenizerFast.from_pretrained(folder)


def clip_of_few_symbols(folder: Path) -> Oracle:
    vocab, merges = clip_vocab("abcdefghijklmnoprstuvw'.,!")
    transformers.CLIPTokenizerFast(vocab=vocab, merges=merges).save_pretrained(folder)
    return transformers.CLIPTokenizerFast.from_pretrained(folder)


def clip_of_2021(folder: Path) -> Oracle:
    """The first tokenizer.json: no kind of model, a start token that is normalized."""
    clip(folder)
    data = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    del data["model"]["type"], data["model"]["byte_fallback"], data["model"]["ignore_merges"]
    data["model"]["merges"] = [" ".join(pair) for pair in data["model"]["merges"]]
    data["added_tokens"][0]["normalized"] = True
    split = data["pre_tokenizer"]["pretokenizers"][0]["pattern"]
    split["Regex"] = split["Regex"].removeprefix(r"<\|startoftext\|>|<\|endoftext\|>|")
    (folder / "tokenizer.json").write_text(json.dumps(data), encoding="utf-8")
    oracle = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    decode = oracle.backend_tokenizer.decode  # what the class of CLIP does with its decoder
    oracle.backend_tokenizer.decode = lambda *a, **k: decode(*a, **k).replace("</w>", " ").strip()
    return oracle


BERT_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def bert_vocab(**options: Any) -> dict[str, int]:
    hf = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    hf.normalizer = normalizers.BertNormalizer(**options)
    hf.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=300, special_tokens=BERT_TOKENS, show_progress=False
    )
    hf.train_from_iterator([CORPUS], trainer)
    return dict(sorted(hf.get_vocab().items(), key=lambda item: item[1]))


def bert(folder: Path) -> Oracle:
    """BLIP's: two tokens more."""
    tok = transformers.BertTokenizerFast(vocab=bert_vocab())
    tok.add_special_tokens({"bos_token": "[DEC]"})
    tok.add_tokens([AddedToken("[ENC]", special=True, normalized=True)])
    tok.save_pretrained(folder)
    return transformers.BertTokenizerFast.from_pretrained(folder)


def bert_cased(folder: Path) -> Oracle:
    options = {"do_lower_case": False, "tokenize_chinese_chars": False}
    vocab = bert_vocab(lowercase=False, handle_chinese_chars=False)
    transformers.BertTokenizerFast(vocab=vocab, **options).save_pretrained(folder)
    return transformers.BertTokenizerFast.from_pretrained(folder)


def bert_older(folder: Path) -> Oracle:
    (folder / "vocab.txt").write_text("\n".join(bert_vocab()) + "\n", encoding="utf-8")
    return transformers.BertTokenizerFast.from_pretrained(folder)


def bert_older_with_accents(folder: Path) -> Oracle:
    vocab = [*bert_vocab(strip_accents=False), "[DEC]", "[ENC]"]
    (folder / "vocab.txt").write_text("\n".join(vocab) + "\n", encoding="utf-8")
    write_config(
        folder,
        tokenizer_class="BertTokenizer",
        do_lower_case=True,
        strip_accents=False,
        bos_token="[DEC]",
        additional_special_tokens=["[ENC]"],
    )
    return transformers.BertTokenizerFast.from_pretrained(folder)


def llama_vocab() -> tuple[dict[str, int], list]:
    """Special tokens, 256 bytes, then characters and what merges make of them."""
    hf = Tokenizer(models.BPE())
    hf.pre_tokenizer = pre_tokenizers.Metaspace(split=True)
    special = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=special, show_progress=False)
    hf.train_from_iterator([CORPUS], trainer)
    model = json.loads(hf.to_str())["model"]
    return model["vocab"], [tuple(pair) for pair in model["merges"]]


def llama2(folder: Path) -> Oracle:
    vocab, merges = llama_vocab()
    tok = transformers.LlamaTokenizerFast(vocab=vocab, merges=merges, add_bos_token=True)
    tok.add_tokens([AddedToken("<image>", special=True, normalized=False)])
    tok.save_pretrained(folder)
    return transformers.LlamaTokenizerFast.from_pretrained(folder)


def llava(folder: Path) -> Oracle:
    """Vicuna's tokenizer.json: a space before every part of the text, by the normalizer."""
    vocab, merges = llama_vocab()
    hf = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    hf.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    hf.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)])
    hf.add_special_tokens([AddedToken(token, normalized=True) for token in ("<unk>", "<s>")])
    hf.add_special_tokens([AddedToken(token, normalized=False) for token in ("</s>", "<image>")])
    hf.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    hf.enable_truncation(8)
    options = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return backend(folder, hf, **options, add_bos_token=True, add_eos_token=False)


def siglip(folder: Path) -> Oracle:
    """Unigram after small letters without punctuation, </s> at the end."""
    hf = Tokenizer(models.Unigram())
    hf.normalizer = normalizers.Sequence(
        [
            normalizers.Lowercase(),
            normalizers.Replace(Regex(r"[!-/:-@\[-`{-~]"), ""),
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Strip(),
        ]
    )
    hf.pre_tokenizer = pre_tokenizers.Metaspace()
    hf.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=200, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>"
    )
    trainer.show_progress = False
    hf.train_from_iterator([CORPUS], trainer)
    hf.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    flags = {"lstrip": True, "rstrip": True, "normalized": False}
    tokens = {role: AddedToken(token, **flags) for role, token in SIGLIP_TOKENS.items()}
    return backend(folder, hf, **tokens)


SIGLIP_TOKENS = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>"}
KINDS: list[Callable[[Path], Oracle]] = [
    gpt2,
    gpt2_older,
    opt,
    opt_older,
    qwen2,
    qwen2_older,
    llama3,
    clip,
    clip_older,
    clip_without_config,
    clip_of_few_symbols,
    clip_of_2021,
    bert,
    bert_cased,
    bert_older,
    bert_older_with_accents,
    llama2,
    llava,
    siglip,
]


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: kind.__name__)
def pair(request, tmp_path_factory):
    """A tokenizer that is opened from a folder, and transformers' from the same."""
    folder = tmp_path_factory.mktemp(request.param.__name__)
    oracle = request.param(folder)
    return open_tokenizer(folder), oracle


def known_to_all(text: str) -> bool:
    """False for code points newer than Python, and for marks that are newer than the library: next
    to another mark those stand in another order, in normal forms.
    """
    library = {"NFC": normalizers.NFC(), "NFD": normalizers.NFD()}
    same = [
        unicodedata.normalize(form, text) == library[form].normalize_str(text) for form in library
    ]
    return all(same) and all(unicodedata.category(char) != "Cn" for char in text)


TROUBLE = (
    " \t\n\r\x00\x0b\x1c\x85\xa0\u200b\u200d\u2028\u3000\ufeff\ufffd\ue000"  # spaces, controls
    "aAbBsStTzZ019²½'’.,!?#-_`$^<|>[]▁ĠÿàÅİıßſΣσςК\u0301\u0338\u0323\u0898\u2e43"
    "中文字𠀀한글ぁ한é🙂👩🇩\ufe0f\u05d0\u0661"
)
any_text = (
    st.text(max_size=40)
    | st.text(TROUBLE, max_size=40)
    | st.lists(st.sampled_from([*TROUBLE, *CORPUS.split(" ")]), max_size=14).map("".join)
    | st.lists(st.sampled_from([*TROUBLE, *CORPUS.split(" ")]), max_size=14).map(" ".join)
).filter(known_to_all)


def ids_of(oracle: Oracle, text: str) -> list[int]:
    return oracle(text, add_special_tokens=False)["input_ids"]


def decoded(oracle: Oracle, ids: list[int]) -> str:
    options = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
    return oracle.decode(ids, **options)


@settings(max_examples=80, deadline=None)
@given(text=any_text)
@example(text="")
@example(text="The small red circle isn't left of Ärger, café! 小红圆 🙂\n\n  12345 a_b</w>")
@example(text="a" * 101 + " " + "b" * 100)
@example(text="ΑΣ ΑΣ. İstanbul ﬁ Å e\u0301\u0323 \u0338 ñ don't 'S")
def test_ids_and_text_are_those_of_transformers(pair, text):
    tok, oracle = pair
    ids = tok.encode(text)
    assert ids == ids_of(oracle, text)
    assert tok.prefix + ids + tok.suffix == oracle(text)["input_ids"]
    assert tok.decode(ids) == decoded(oracle, ids)


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_special_tokens_become_their_ids_or_are_refused(pair, data):
    tok, oracle = pair
    special = sorted(tok.special_tokens)
    parts = st.lists(st.sampled_from(special) | any_text, max_size=6)
    text = "".join(data.draw(parts, label="parts"))
    assert tok.encode(text, allowed_special="all") == ids_of(oracle, text)
    assert tok.encode(text, allowed_special=special) == ids_of(oracle, text)
    token = data.draw(st.sampled_from(special), label="token")
    with pytest.raises(ValueError, match="special token"):
        tok.encode(text + token + " x")
    with pytest.raises(ValueError, match="special token"):
        tok.encode(token, allowed_special=[other for other in special if other != token])


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_any_ids_decode_as_in_transformers(pair, data):
    tok, oracle = pair
    vocab = oracle.get_vocab()
    special = st.sampled_from(sorted(tok.special_tokens.values()))
    ids = data.draw(st.lists(st.sampled_from(sorted(vocab.values())) | special, max_size=20))
    assert tok.decode(ids) == decoded(oracle, ids)


def test_the_vocabulary_is_that_of_transformers(pair):
    tok, oracle = pair
    assert tok.vocab_size == len(oracle) == max(oracle.get_vocab().values()) + 1
    assert tok.special_tokens == oracle.get_added_vocab()
    assert tok.decode(tok.encode("a small circle")) in ("a small circle", " a small circle")
    with pytest.raises(ValueError, match="100000"):
        tok.decode([5, 100000])
    with pytest.raises(ValueError, match="<nope>"):
        tok.encode("a", allowed_special=["<nope>"])
    with pytest.raises(ValueError, match="surrogate"):
        tok.encode("a\ud800")


OPTIONS = [
    (clean, chinese, accents) for clean in (1, 0) for chinese in (1, 0) for accents in (1, 0)
]


@pytest.mark.parametrize("lowercase", [True, False])
def test_every_character_is_cleaned_as_bert_cleans_it(lowercase):
    """All 1.1 million, but those newer than Python, and one whose parts the library lacks."""
    everything = map(chr, [*range(0xD800), *range(0xE000, 0x110000)])
    chars = [char for char in everything if unicodedata.category(char) != "Cn"]
    text = "".join(f"x{char}" for char in chars if char != "\U00011938")
    for clean, chinese, accents in OPTIONS:
        options = {
            "clean_text": bool(clean),
            "handle_chinese_chars": bool(chinese),
            "strip_accents": bool(accents),
            "lowercase": lowercase,
        }
        theirs = normalizers.BertNormalizer(**options).normalize_str(text)
        assert bert_clean(text, options).split("x") == theirs.split("x")
    pieces = pre_tokenizers.BertPreTokenizer().pre_tokenize_str(text)
    assert BERT_WORDS.findall(text) == [word for word, _ in pieces]


def test_what_goes_around_a_text_stands_in_tokenizer_json_and_not_in_the_flags(tmp_path):
    llava(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    for flags in ({"add_bos_token": False}, {"add_bos_token": True, "add_eos_token": True}):
        path.write_text(json.dumps(config | flags), encoding="utf-8")
        oracle = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
        tok = open_tokenizer(tmp_path)
        assert [*tok.prefix, *tok.encode("a cat"), *tok.suffix] == oracle("a cat")["input_ids"]


@pytest.mark.parametrize("flags", [{}, {"add_bos_token": True}, {"add_eos_token": True}])
def test_in_an_older_layout_the_flags_say_what_goes_around_a_text(tmp_path, flags):
    write_pair(tmp_path, *opt_vocab(), tokenizer_class="GPT2Tokenizer", **OPT_TOKENS, **flags)
    oracle = transformers.GPT2TokenizerFast.from_pretrained(tmp_path)
    tok = open_tokenizer(tmp_path)
    assert [*tok.prefix, *tok.encode("a cat"), *tok.suffix] == oracle("a cat")["input_ids"]
    assert (tok.prefix, tok.suffix) == (
        [2] * ("add_bos_token" in flags),
        [2] * ("add_eos_token" in flags),
    )


@pytest.mark.parametrize(
    ("kind", "model_type"),
    [
        (clip_without_config, "clip"),
        (bert_older, "blip"),
        (gpt2_older, "opt"),
        (qwen2_older, "qwen2_vl"),
    ],
)
def test_where_no_file_names_the_class_the_model_does(tmp_path, kind, model_type):
    kind(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    if path.exists():
        config = json.loads(path.read_text(encoding="utf-8"))
        del config["tokenizer_class"]
        path.write_text(json.dumps(config), encoding="utf-8")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}), encoding="utf-8")
    oracle = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert oracle.is_fast
    text = "A small Ärger: 12345, isn't it?\n"
    assert open_tokenizer(tmp_path).encode(text) == ids_of(oracle, text)


def test_llava_gets_a_space_after_the_image_as_its_file_says(tmp_path):
    """AutoTokenizer of a LLaVA goes by the file too, whatever class the folder names."""
    llava(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | {"tokenizer_class": "LlamaTokenizer"}
    path.write_text(json.dumps(config), encoding="utf-8")
    transformers.LlavaConfig().save_pretrained(tmp_path)
    oracle, tok = transformers.AutoTokenizer.from_pretrained(tmp_path), open_tokenizer(tmp_path)
    text = "USER: <image>\nWhat is left of the circle? ASSISTANT:"
    ids = tok.encode(text, allowed_special=["<image>"])
    assert tok.prefix + ids + tok.suffix == oracle(text)["input_ids"]
    image = ids.index(tok.special_tokens["<image>"])
    assert oracle.convert_ids_to_tokens(ids[image + 1]) == "▁"


@pytest.mark.parametrize("options", [{"do_lower_case": False}, {"strip_accents": False}])
def test_options_in_the_config_of_a_bert_come_before_the_file(tmp_path, options):
    bert(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | options
    path.write_text(json.dumps(config), encoding="utf-8")
    oracle = transformers.BertTokenizerFast.from_pretrained(tmp_path)
    assert open_tokenizer(tmp_path).encode(CORPUS) == ids_of(oracle, CORPUS)


def test_a_tokenizer_that_the_course_has_saved_opens_too(tmp_path):
    tok = BPETokenizer.train(CORPUS, 400, special_tokens=("<|im_start|>",))
    tok.save(tmp_path / "tokenizer.json")
    opened = open_tokenizer(str(tmp_path))
    assert opened.encode(CORPUS) == tok.encode(CORPUS)
    assert (opened.prefix, opened.suffix, opened.vocab_size) == ([], [], 400)


def changed(folder: Path, kind: Callable[[Path], Oracle], change: Callable[[dict], Any]) -> Path:
    """A folder in which tokenizer.json is not quite what it was."""
    kind(folder)
    path = folder / "tokenizer.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    change(data)
    path.write_text(json.dumps(data), encoding="utf-8")
    return folder


def put(*path: Any) -> Callable[[dict], None]:
    """A change: the last of the path is the new value."""

    def change(data: Any) -> None:
        *way, key, value = path
        for step in way:
            data = data[step]
        data[key] = value

    return change


@pytest.mark.parametrize(
    ("kind", "change", "names"),
    [
        (gpt2, put("normalizer", {"type": "Lowercase"}), "normalizer Lowercase"),
        (gpt2, put("pre_tokenizer", {"type": "Whitespace"}), "Whitespace"),
        (gpt2, put("pre_tokenizer", "add_prefix_space", True), "add_prefix_space"),
        (gpt2, put("decoder", None), "decoder None"),
        (gpt2, put("model", "dropout", 0.5), "dropout is 0.5"),
        (gpt2, put("model", "type", "WordLevel"), "WordLevel"),
        (gpt2, put("model", 3), "tokenizer.json lacks something"),
        (gpt2, put("post_processor", {"type": "Odd"}), "post-processor.*Odd"),
        (gpt2, put("post_processor", "single", 0, {"Sequence": {"id": "B"}}), "SpecialToken"),
        (gpt2, put("post_processor", "single", []), "text 0 times"),
        (gpt2, put("added_tokens", 0, "id", 7), "id"),
        (clip, put("normalizer", None), "normalizer None"),
        (clip, put("normalizer", "normalizers", 0, "type", "NFKC"), "normalizer.*NFKC"),
        (clip, put("normalizer", "normalizers", 1, "content", "_"), "normalizer"),
        (clip, put("pre_tokenizer", "pretokenizers", 0, "invert", False), "pre_tokenizer"),
        (clip, put("pre_tokenizer", "pretokenizers", 0, "pattern", "Regex", "(?<n>a)"), "pattern"),
        (clip, put("pre_tokenizer", {"type": "Whitespace"}), "pre_tokenizer.*Whitespace"),
        (clip, put("decoder", {"type": "BPEDecoder", "suffix": "</w>"}), "BPEDecoder"),
        (clip, put("model", "end_of_word_suffix", "@@"), "end_of_word_suffix '@@'"),
        (clip, put("model", "fuse_unk", True), "fuse_unk True"),
        (clip, put("model", "merges", [["q", "zz"]]), "zz"),
        (clip, put("model", "vocab", "a", 65), "another token's"),
        (clip, put("added_tokens", 0, "lstrip", True), "startoftext.*lstrip"),
        (clip, put("added_tokens", 0, "content", ""), "empty"),
        (bert, put("normalizer", {"type": "Lowercase"}), "normalizer.*Lowercase"),
        (bert, put("pre_tokenizer", {"type": "Whitespace"}), "pre_tokenizer.*Whitespace"),
        (bert, put("decoder", "prefix", "@@"), "decoder.*@@"),
        (bert, put("model", "max_input_chars_per_word", 50), "max_input_chars_per_word 50"),
        (bert, put("model", "unk_token", "<unk>"), "unk_token '<unk>'"),
        (bert, put("model", "continuing_subword_prefix", "@@"), "continuing_subword_prefix '@@'"),
        (bert, put("model", "vocab", "[UNK]", 2), r"\[CLS\]"),
        (siglip, put("model", "unk_id", 10**6), "tokenizers library"),
        (siglip, put("model", "unk_id", None), "without unk_id"),
        (llama2, put("model", "merges", [["q", "zz"]]), "tokenizers library"),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(tmp_path, kind, change, names):
    with pytest.raises(ValueError, match=names) as error:
        open_tokenizer(changed(tmp_path, kind, change))
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


@pytest.mark.parametrize(
    ("files", "names"),
    [
        ({}, r"no tokenizer.json.*\[\]"),
        ({"spiece.model": "x"}, "SentencePiece.*spiece.model"),
        ({"tokenizer.json": "{"}, "not valid JSON"),
        ({"tokenizer.json": "{}"}, "lacks something.*model"),
        ({"vocab.json": "{}"}, "vocab.json"),
        ({"vocab.json": "{}", "merges.txt": "a b c"}, "a b c"),
        ({"vocab.txt": "a\nb\n"}, r"\[UNK\]"),
        ({"vocab.txt": b"\xff"}, "vocab.txt"),
        ({"vocab.txt": "[UNK]", "tokenizer_config.json": '{"tokenizer_class": "Odd"}'}, "Odd"),
    ],
)
def test_a_folder_without_a_known_tokenizer_is_refused(tmp_path, files, names):
    for name, content in files.items():
        content = content.encode() if isinstance(content, str) else content
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=names) as error:
        open_tokenizer(tmp_path)
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(ValueError, match="nowhere"):
        open_tokenizer(tmp_path / "nowhere")


def test_an_unknown_token_that_is_unknown_itself_is_named_when_it_is_needed(tmp_path):
    folder = changed(tmp_path, clip_of_few_symbols, put("model", "unk_token", "<nope>"))
    tok = open_tokenizer(folder)
    assert tok.encode("a cat")
    with pytest.raises(ValueError, match="'ä' needs the unknown token '<nope>'"):
        tok.encode("ä")


def test_byte_level_with_a_space_in_front_is_refused(tmp_path):
    write_pair(tmp_path, *trained_bpe(), tokenizer_class="GPT2Tokenizer", add_prefix_space=True)
    with pytest.raises(ValueError, match="add_prefix_space"):
        open_tokenizer(tmp_path)


def test_without_the_tokenizers_library_only_sentencepiece_is_refused(tmp_path, monkeypatch):
    for kind in (clip, bert, llama2):
        (tmp_path / kind.__name__).mkdir()
        kind(tmp_path / kind.__name__)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    assert open_tokenizer(tmp_path / "clip").encode("a cat")
    assert open_tokenizer(tmp_path / "bert").encode("a cat")
    with pytest.raises(ValueError, match="pip install tokenizers"):
        open_tokenizer(tmp_path / "llama2")

"""bpe.py and formats/tokenizer_files.py, with `tokenizers` and tiktoken as oracles."""

import copy
import json
import pickle
import random
import time
import unicodedata
from pathlib import Path

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)

from minivlm import bpe
from minivlm.bpe import (
    CL100K_SPLIT,
    GPT2_SPLIT,
    ID_TO_BYTE,
    NO_SPLIT,
    QWEN2_SPLIT,
    BPETokenizer,
    to_visible,
)
from minivlm.formats.tokenizer_files import BYTE_TO_CHAR, from_visible

SPLITS = {"gpt2": GPT2_SPLIT, "cl100k": CL100K_SPLIT, "qwen2": QWEN2_SPLIT, "none": NO_SPLIT}
ENGLISH = "The small red circle is left of the big blue square. It's 12345 pixels wide, isn't it? "
CHINESE = "小红圆在大蓝方的左边。三颗绿色的星星,一共12个像素。"
MIXED = (
    ENGLISH * 3
    + CHINESE * 4
    + "a picture of 🙂🙃👩‍👩‍👧 and\n\n  indented code:\n\tx = [1, 22, 333]\n" * 2
)
SOURCE = Path(bpe.__file__).read_text(encoding="utf-8")
SAMPLES = {
    "empty": "",
    "one character": "a",
    "english": ENGLISH * 5,
    "chinese": CHINESE * 5,
    "emoji": "🙂🙃🙂 👩‍👩‍👧 🇩🇪🇩🇪 ☃️ ",
    "whitespace": " \n\n  \t a  \r\n b \u3000\u00a0 c\x1c \x85",
    "a source file": SOURCE,
}
any_text = st.text(max_size=60) | st.text("ab cdé1'!\n 中文🙂", max_size=60)


def known_to_all(text: str) -> bool:
    """False for code points newer than Python: libraries need not agree on which are letters."""
    return all(unicodedata.category(char) != "Cn" for char in text)


def hf_tokenizer(pattern: str, normalizer=None) -> Tokenizer:
    """An untrained byte-level BPE of the tokenizers library, in the form of Qwen2 and Llama 3."""
    pattern = pattern.replace("{1,3}+", "{1,3}")  # Oniguruma would repeat a possessive interval
    hf = Tokenizer(models.BPE())
    hf.normalizer = normalizer
    hf.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    hf.decoder = decoders.ByteLevel()
    return hf


def hf_trained(
    texts: list[str], vocab_size: int, pattern: str, special=(), normalizer=None
) -> Tokenizer:
    hf = hf_tokenizer(pattern, normalizer)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    options = {
        "initial_alphabet": alphabet,
        "special_tokens": list(special),
        "show_progress": False,
    }
    hf.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=vocab_size, **options))
    return hf


def hf_merges(hf: Tokenizer) -> list[tuple[bytes, bytes]]:
    merges = json.loads(hf.to_str())["model"]["merges"]
    return [(from_visible(left), from_visible(right)) for left, right in merges]


def folder_with(tmp_path: Path, hf: Tokenizer) -> Path:
    hf.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


@pytest.fixture(scope="module")
def tokenizer() -> BPETokenizer:
    return BPETokenizer.train(MIXED, 500, special_tokens=("<|im_start|>", "<|im_end|>"))


@pytest.fixture(scope="module")
def encoding(tokenizer):
    return tokenizer.to_tiktoken()


# --- the byte table


def test_ids_0_to_255_follow_the_byte_order_of_gpt2():
    assert ID_TO_BYTE[:3] == b'!"#' and ID_TO_BYTE[220:221] == b" " and len(set(ID_TO_BYTE)) == 256
    assert [BYTE_TO_CHAR[b] for b in (0x00, 0x0A, 0x20, 0x7F, 0xAD)] == ["Ā", "Ċ", "Ġ", "ġ", "Ń"]
    assert set(BYTE_TO_CHAR.values()) == set(pre_tokenizers.ByteLevel.alphabet())


def test_visible_form_returns_every_byte():
    every = bytes(range(256))
    assert from_visible(to_visible(every)) == every
    with pytest.raises(ValueError, match="' ' in token 'a b'"):
        from_visible("a b")


# --- training


@pytest.mark.parametrize("sample", SAMPLES)
@pytest.mark.parametrize("split", SPLITS)
def test_merges_equal_those_of_the_tokenizers_trainer(sample, split):
    text, pattern = SAMPLES[sample], SPLITS[split]
    if split == "none":
        text = text[:2000]
    assert BPETokenizer.train(text, 700, pattern).merges == hf_merges(
        hf_trained([text], 700, pattern)
    )


@settings(max_examples=150, deadline=None)
@given(st.lists(st.text("ab", max_size=40) | st.text("abc 中🙂", max_size=30), max_size=20))
def test_merges_equal_those_of_tokenizers_on_repetitive_texts_until_no_pair_is_left(texts):
    tok = BPETokenizer.train(texts, 400, NO_SPLIT)
    assert tok.merges == hf_merges(hf_trained(texts, 400, NO_SPLIT))
    assert len(tok.ranks) == 256 + len(tok.merges)  # no two merges spell the same token


def test_training_is_the_naive_algorithm():
    ids = [
        list(word.encode().translate(bpe.BYTE_TO_ID)) for word in regex.findall(GPT2_SPLIT, MIXED)
    ]
    merges = []
    for new in range(256, 330):
        pairs = [pair for word in ids for pair in zip(word, word[1:], strict=False)]
        best = min(set(pairs), key=lambda pair: (-pairs.count(pair), pair))
        merges.append(best)
        for word in ids:
            i = 0
            while i < len(word) - 1:
                if (word[i], word[i + 1]) == best:
                    word[i : i + 2] = [new]
                i += 1
    learned = bpe.learn_merges(bpe.count_words(MIXED, regex.compile(GPT2_SPLIT)), 74)
    assert learned == merges


def test_training_takes_a_str_a_list_or_a_generator_of_str():
    parts = [ENGLISH, CHINESE, ENGLISH]
    expected = BPETokenizer.train(parts, 300).merges
    assert BPETokenizer.train((part for part in parts), 300).merges == expected
    assert BPETokenizer.train(ENGLISH, 300).merges == BPETokenizer.train([ENGLISH], 300).merges
    assert BPETokenizer.train([], 300).vocab_size == 256


def test_special_tokens_follow_the_learned_vocabulary():
    tok = BPETokenizer.train(MIXED, 300, special_tokens=("<a>", "<b>"))
    assert tok.special_tokens == {"<a>": 298, "<b>": 299} and tok.vocab_size == 300
    assert len(tok.merges) == 42 and tok.ranks[tok.merges[-1][0] + tok.merges[-1][1]] == 297
    small = BPETokenizer.train("ab", 300, special_tokens=("<a>",))
    assert small.vocab_size == 258 and small.special_tokens == {"<a>": 257}
    assert BPETokenizer.train("ab", 258, special_tokens=("<a>", "<b>")).merges == []


@pytest.mark.parametrize(
    ("arguments", "error", "names"),
    [
        (("text", 255), ValueError, "255"),
        (("text", 257, GPT2_SPLIT, ("<a>", "<b>")), ValueError, "257"),
        (("text", -1), ValueError, "-1"),
        (("text", "300"), TypeError, "str"),
        (("text", 300.0), TypeError, "float"),
        ((b"text", 300), TypeError, "int"),
        ((["text", b"bytes"], 300), TypeError, "bytes"),
        ((None, 300), TypeError, "NoneType"),
        (("half \ud83d", 300), ValueError, r"'\\ud83d' at position 5"),
        (("text", 300, "(["), ValueError, r"'\(\['"),
        (("text", 300, None), ValueError, "None"),
        (("text", 300, GPT2_SPLIT, "<a>"), ValueError, "<a>"),
        (("text", 300, GPT2_SPLIT, ("<a>", "<a>")), ValueError, "<a>"),
        (("text", 300, GPT2_SPLIT, ("",)), ValueError, "''"),
        (("text", 300, GPT2_SPLIT, (7,)), TypeError, "int"),
        (("text", 300, GPT2_SPLIT, ("\udc00",)), ValueError, "udc00"),
    ],
)
def test_training_refuses_bad_arguments_and_names_them(arguments, error, names):
    with pytest.raises(error, match=names):
        BPETokenizer.train(*arguments)


# --- encoding and decoding


@pytest.mark.parametrize("sample", SAMPLES)
@pytest.mark.parametrize("split", SPLITS)
def test_ids_equal_those_of_tokenizers_and_tiktoken_and_come_back(sample, split):
    hf, tok = hf_trained([MIXED], 500, SPLITS[split]), BPETokenizer.train(MIXED, 500, SPLITS[split])
    ids = tok.encode(SAMPLES[sample])
    assert ids == hf.encode(SAMPLES[sample]).ids == tok.to_tiktoken().encode(SAMPLES[sample])
    assert tok.decode(ids) == SAMPLES[sample]


@settings(max_examples=300, deadline=None)
@given(text=any_text)
def test_any_text_comes_back(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode_ordinary(text)) == text


@settings(max_examples=300, deadline=None)
@given(text=any_text.filter(known_to_all))
def test_any_text_has_the_ids_of_tiktoken(tokenizer, encoding, text):
    assert tokenizer.encode_ordinary(text) == encoding.encode_ordinary(text)


@settings(max_examples=60, deadline=None)
@given(
    corpus=st.lists(any_text, min_size=1, max_size=8),
    text=any_text.filter(known_to_all),
    split=st.sampled_from(sorted(SPLITS)),
)
def test_any_text_has_the_ids_of_tokenizers_whatever_it_was_trained_on(corpus, text, split):
    corpus = [part for part in corpus if known_to_all(part)]
    tok = BPETokenizer.train(corpus, 320, SPLITS[split])
    hf = hf_trained(corpus, 320, SPLITS[split])
    assert tok.encode(text) == hf.encode(text).ids == tok.to_tiktoken().encode(text)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_any_ids_decode_like_tiktoken_even_half_characters(tokenizer, encoding, data):
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=30))
    assert tokenizer.decode_bytes(ids) == encoding.decode_bytes(ids)
    assert tokenizer.decode(ids) == encoding.decode(ids)


def test_cl100k_pattern_is_the_one_that_tiktoken_compiles():
    assert BPETokenizer.train("x" * 9, 260, CL100K_SPLIT).to_tiktoken().encode(
        "It's 12345!\n\n ok"
    ) == (BPETokenizer.train("x" * 9, 260, CL100K_SPLIT).encode("It's 12345!\n\n ok"))
    assert regex.findall(CL100K_SPLIT, "x=12345\n  y") == ["x", "=", "123", "45", "\n", " ", " y"]
    assert regex.findall(QWEN2_SPLIT, "x=12345\n  y") == [
        "x",
        "=",
        "1",
        "2",
        "3",
        "4",
        "5",
        "\n",
        " ",
        " y",
    ]
    assert regex.findall(GPT2_SPLIT, "x=12345\n  y") == ["x", "=", "12345", "\n ", " y"]


@pytest.mark.parametrize("pattern", [r"[a-z]+", r"(\d)(\d)", r"\s", "x*", r"(?=a)"])
def test_a_pattern_that_leaves_text_out_or_has_groups_loses_nothing(pattern):
    tok = BPETokenizer.train(MIXED, 400, pattern)
    hf = hf_trained([MIXED], 400, pattern)
    assert tok.decode(tok.encode(MIXED)) == MIXED
    assert tok.merges == hf_merges(hf) and tok.encode(MIXED) == hf.encode(MIXED).ids
    if pattern not in ("x*", "(?=a)"):
        assert tok.to_tiktoken().encode(MIXED) == tok.encode(MIXED)


def test_one_piece_of_a_hundred_thousand_characters_takes_no_quadratic_time():
    tok = BPETokenizer.train("abab aaaa " * 50 + MIXED, 400)
    text = "".join(random.Random(0).choices("ab", k=100_000))
    start = time.process_time()
    ids = tok.encode(text)
    assert time.process_time() - start < 10  # 0.2 s here; a quadratic loop takes minutes
    assert tok.decode(ids) == text and text not in tok._cache


def test_every_token_of_a_trained_vocabulary_encodes_to_itself(tokenizer):
    assert all(tokenizer.merge(token) == [i] for token, i in tokenizer.ranks.items())


def test_a_special_token_in_text_is_refused_unless_it_is_allowed(tokenizer):
    text = "hi<|im_end|>"
    start, end = tokenizer.special_tokens.values()
    with pytest.raises(ValueError, match=r"<\|im_end\|>"):
        tokenizer.encode(text)
    with pytest.raises(ValueError, match=r"<\|im_end\|>"):
        tokenizer.encode(text, allowed_special={"<|im_start|>"})
    for allowed in ("all", {"<|im_end|>"}, ("<|im_end|>",), ["<|im_end|>"], iter(["<|im_end|>"])):
        assert tokenizer.encode(text, allowed_special=allowed)[-1] == end
    assert start not in tokenizer.encode_ordinary("<|im_start|>")
    assert tokenizer.decode(tokenizer.encode_ordinary(text)) == text
    assert tokenizer.decode([start, end]) == "<|im_start|><|im_end|>"


@settings(max_examples=100, deadline=None)
@given(
    parts=st.lists(
        st.sampled_from(["<|im_start|>", "<|im_end|>", "<|im", "|>", " a", "\n"]), max_size=8
    )
)
def test_allowed_special_tokens_give_the_ids_of_tiktoken(tokenizer, encoding, parts):
    text = "".join(parts)
    assert tokenizer.encode(text, allowed_special="all") == encoding.encode(
        text, allowed_special="all"
    )
    for allowed in (set(), {"<|im_end|>"}):
        try:
            expected = encoding.encode(text, allowed_special=allowed)
        except ValueError:
            with pytest.raises(ValueError, match="special token"):
                tokenizer.encode(text, allowed_special=allowed)
        else:
            assert tokenizer.encode(text, allowed_special=allowed) == expected


@pytest.mark.parametrize(
    ("call", "error", "names"),
    [
        (lambda tok: tok.encode(b"bytes"), TypeError, "bytes"),
        (lambda tok: tok.encode(None), TypeError, "NoneType"),
        (lambda tok: tok.encode("a\udc80"), ValueError, r"'\\udc80' at position 1"),
        (lambda tok: tok.encode_ordinary("\ud800"), ValueError, "ud800"),
        (lambda tok: tok.encode("a", allowed_special="<|im_end|>"), ValueError, "im_end"),
        (lambda tok: tok.encode("a", allowed_special={"<nope>"}), ValueError, "<nope>"),
        (lambda tok: tok.decode([0, 500]), ValueError, "500"),
        (lambda tok: tok.decode([-1]), ValueError, "-1"),
        (lambda tok: tok.decode_bytes([10**9]), ValueError, str(10**9)),
        (lambda tok: tok.decode([0.5]), TypeError, "float"),
        (lambda tok: tok.decode("ab"), TypeError, "str"),
    ],
)
def test_encode_and_decode_refuse_bad_input_and_name_it(tokenizer, call, error, names):
    with pytest.raises(error, match=names):
        call(tokenizer)


def test_decode_takes_a_tensor_of_ids(tokenizer):
    torch = pytest.importorskip("torch")
    assert tokenizer.decode(torch.tensor(tokenizer.encode("red circle"))) == "red circle"


# --- files


def same(a: BPETokenizer, b: BPETokenizer) -> bool:
    fields = (
        "ranks",
        "merges",
        "pattern",
        "special_tokens",
        "late_tokens",
        "normalization",
        "ignore_merges",
    )
    return all(getattr(a, field) == getattr(b, field) for field in fields)


@pytest.mark.parametrize("split", SPLITS)
def test_save_and_load_return_the_same_tokenizer(tmp_path, split):
    tok = BPETokenizer.train(MIXED, 400, SPLITS[split], special_tokens=("<|图|>", "the", "a"))
    tok.save(tmp_path / "tok.json")
    loaded = BPETokenizer.load(str(tmp_path / "tok.json"))
    assert same(tok, loaded) and loaded.encode(MIXED, ["<|图|>", "the", "a"]) == tok.encode(
        MIXED, "all"
    )
    loaded.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "tok.json").read_bytes()


def test_possessive_intervals_survive_the_way_through_oniguruma(tmp_path):
    tok = BPETokenizer.train("12345 " * 9, 300, CL100K_SPLIT)
    tok.save(tmp_path / "tokenizer.json")
    hf = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert hf.encode("1234512345").ids == tok.encode("1234512345")
    assert BPETokenizer.load(tmp_path / "tokenizer.json").pattern == CL100K_SPLIT
    hf.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(CL100K_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tok = BPETokenizer.from_hf(folder_with(tmp_path, hf))
    assert tok.pattern != CL100K_SPLIT and hf.encode("1234512345").ids == tok.encode("1234512345")


def test_a_saved_file_opens_in_tokenizers_with_the_same_ids(tmp_path, tokenizer):
    tokenizer.save(tmp_path / "tokenizer.json")
    hf = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    text = MIXED + "<|im_start|>user\n"
    assert hf.encode(text).ids == tokenizer.encode(text, allowed_special="all")
    assert hf.get_vocab_size() == tokenizer.vocab_size and hf.decode(hf.encode(MIXED).ids) == MIXED
    assert same(BPETokenizer.from_hf(tmp_path), tokenizer)


def test_copies_and_pickles_work(tokenizer):
    assert same(copy.deepcopy(tokenizer), tokenizer)
    assert pickle.loads(pickle.dumps(tokenizer)).encode(MIXED) == tokenizer.encode(MIXED)


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (lambda data: data["model"].update(type="Unigram"), "Unigram"),
        (lambda data: data["model"].update(type="WordPiece"), "WordPiece"),
        (lambda data: data.update(model=None), "None"),
        (lambda data: data.pop("model"), "None"),
        (lambda data: data["model"].update(end_of_word_suffix="</w>"), "</w>"),
        (lambda data: data["model"].update(continuing_subword_prefix="##"), "##"),
        (lambda data: data["model"].update(byte_fallback=True), "byte_fallback"),
        (lambda data: data["model"].update(dropout=0.1), "dropout is 0.1"),
        (lambda data: data["model"].pop("merges"), "merges"),
        (lambda data: data["model"]["merges"].append(["zz", "q"]), "'zz'"),
        (lambda data: data["model"]["merges"].append(["q", "q"]), "'qq'"),
        (lambda data: data["model"]["merges"].append("a b c"), "'a b c'"),
        (lambda data: data["model"]["merges"].append(["a"]), r"\['a'\]"),
        (lambda data: data["model"]["merges"].append(5), "5"),
        (lambda data: data["model"]["vocab"].update({"é中": 9999}), "中"),
        (lambda data: data["model"]["vocab"].update({"zzz": 0}), "zzz"),
        (lambda data: data["model"]["vocab"].update({"zzz": "0"}), "zzz"),
        (lambda data: data["model"]["vocab"].update({"zzz": -4}), "-4"),
        (lambda data: data.update(pre_tokenizer=None), "None"),
        (lambda data: data.update(pre_tokenizer={"type": "Metaspace"}), "Metaspace"),
        (
            lambda data: data["pre_tokenizer"]["pretokenizers"].insert(0, {"type": "Digits"}),
            "Digits",
        ),
        (
            lambda data: data["pre_tokenizer"]["pretokenizers"][0].update(behavior="Removed"),
            "Removed",
        ),
        (
            lambda data: data["pre_tokenizer"]["pretokenizers"][0]["pattern"].update(Regex="(["),
            r"\(\[",
        ),
        (
            lambda data: data["pre_tokenizer"]["pretokenizers"][1].update(add_prefix_space=True),
            "add_prefix_space",
        ),
        (lambda data: data.update(normalizer={"type": "Lowercase"}), "Lowercase"),
        (lambda data: data["added_tokens"][0].update(lstrip=True), "lstrip"),
        (lambda data: data["added_tokens"][0].update(id="x"), "im_start"),
        (lambda data: data["added_tokens"][0].pop("content"), "content"),
    ],
)
def test_load_refuses_what_is_no_byte_level_bpe_and_names_the_reason(
    tmp_path, tokenizer, change, names
):
    tokenizer.save(tmp_path / "tokenizer.json")
    data = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    change(data)
    (tmp_path / "tokenizer.json").write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(ValueError, match=names):
        BPETokenizer.load(tmp_path / "tokenizer.json")
    with pytest.raises(ValueError, match=names):
        BPETokenizer.from_hf(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "names"),
    [
        ("merges.txt", b"#version: 0.2\na b c\n", "'a b c'"),
        ("merges.txt", b"a\n", "'a'"),
        ("merges.txt", b"a zz\n", "'zz'"),
        ("merges.txt", b"\xff\xfe", "utf-8"),
        ("vocab.json", b"[]", "vocab.json"),
        ("vocab.json", b'{"a": 0, "b": 0}', "id 0"),
        ("vocab.json", b'{"a": "x"}', "'x'"),
        ("added_tokens.json", b'{"": 5}', "id 5"),
        ("added_tokens.json", b"{", "added_tokens.json"),
        (
            "tokenizer_config.json",
            b'{"added_tokens_decoder": {"7": {"content": "<x>", "rstrip": true}}}',
            "<x>",
        ),
        ("tokenizer_config.json", b'{"added_tokens_decoder": {"x": {"content": "<x>"}}}', "'x'"),
        ("tokenizer_config.json", b'{"added_tokens_decoder": [1]}', "items"),
    ],
)
def test_from_hf_refuses_broken_files_and_names_the_reason(tmp_path, name, content, names):
    (tmp_path / "vocab.json").write_text('{"a": 0, "b": 1, "ab": 2}', encoding="utf-8")
    (tmp_path / "merges.txt").write_text("a b\n", encoding="utf-8")
    assert BPETokenizer.from_hf(tmp_path).encode("ab") == [2]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=names):
        BPETokenizer.from_hf(tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[1]", b"3", b"\xff\xfe", b"\x80\x04K\x01.", b'{"model": 3}']
)
def test_load_refuses_a_corrupt_file_and_names_it(tmp_path, content):
    (tmp_path / "broken.json").write_bytes(content)
    with pytest.raises(ValueError, match="broken.json"):
        BPETokenizer.load(tmp_path / "broken.json")


def test_missing_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing.json"):
        BPETokenizer.load(tmp_path / "nothing.json")
    with pytest.raises(ValueError, match=tmp_path.name):
        BPETokenizer.from_hf(tmp_path)


# --- files of Hugging Face


@pytest.mark.parametrize("special", [(), ("<|endoftext|>", "<unk>")])
def test_gpt2_files_vocab_json_and_merges_txt(tmp_path, special):
    hf = hf_trained([MIXED], 450, GPT2_SPLIT, special)  # the special tokens come first here
    hf.model.save(str(tmp_path))
    tok = BPETokenizer.from_hf(tmp_path)
    assert tok.encode(SOURCE) == hf.encode(SOURCE).ids
    assert tok.vocab_size == hf.get_vocab_size()
    assert tok.special_tokens == {token: i for i, token in enumerate(special)}
    assert tok.encode("a<unk>b", "all") == hf.encode("a<unk>b").ids
    assert tok.to_tiktoken().encode(SOURCE) == tok.encode(SOURCE)


def test_gpt2_folder_written_by_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    hf_trained([MIXED], 450, GPT2_SPLIT, ["<|endoftext|>"]).model.save(str(tmp_path))
    files = {"vocab": str(tmp_path / "vocab.json"), "merges": str(tmp_path / "merges.txt")}
    reference = transformers.GPT2Tokenizer(**files)
    reference.save_pretrained(tmp_path / "saved")
    tok = BPETokenizer.from_hf(tmp_path / "saved")
    assert tok.encode(SOURCE) == reference(SOURCE)["input_ids"]
    assert tok.pattern == GPT2_SPLIT


def test_qwen2_folders_normalize_and_split_digits(tmp_path):
    transformers = pytest.importorskip("transformers")
    hf_trained([MIXED], 450, QWEN2_SPLIT).model.save(str(tmp_path))
    files = {"vocab": str(tmp_path / "vocab.json"), "merges": str(tmp_path / "merges.txt")}
    reference = transformers.Qwen2Tokenizer(
        **files, additional_special_tokens=["<|im_start|>", "<|im_end|>"]
    )
    reference.save_pretrained(tmp_path / "saved")
    text = "<|im_start|>cafe\u0301 2026 中文<|im_end|>\n" + MIXED
    tok = BPETokenizer.from_hf(tmp_path / "saved")
    assert tok.encode(text, "all") == reference(text)["input_ids"]
    assert (tok.normalization, tok.pattern) == ("NFC", QWEN2_SPLIT)
    # the older layout: without tokenizer.json, the special tokens in tokenizer_config.json
    config = {"tokenizer_class": "Qwen2Tokenizer", "added_tokens_decoder": {}}
    for token, i in tok.special_tokens.items():
        config["added_tokens_decoder"][str(i)] = {"content": token, "special": True}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    assert BPETokenizer.from_hf(tmp_path).encode(text, "all") == reference(text)["input_ids"]


@settings(max_examples=60, deadline=None)
@given(text=any_text.filter(known_to_all) | st.text("e\u0301\u0338<>ab|", max_size=20))
def test_added_tokens_before_and_after_normalization_are_those_of_tokenizers(
    tmp_path_factory, text
):
    hf = hf_trained([MIXED], 400, QWEN2_SPLIT, ["<a>"], normalizers.NFC())
    hf.add_special_tokens([AddedToken("<|b|>", special=True)])
    hf.add_tokens(["<a>b", "b|", AddedToken("é|", normalized=False)])
    tok = BPETokenizer.from_hf(folder_with(tmp_path_factory.mktemp("hf"), hf))
    for sample in (text, "<a>b|" + text + "<|b|>", "<a>\u0338e\u0301|b|" + text):
        assert tok.encode(sample, "all") == hf.encode(sample).ids


@pytest.mark.parametrize("form", ["pairs", "strings"])
@pytest.mark.parametrize("kind", ["bytelevel", "split", "whole", "literal"])
def test_tokenizer_json_in_its_several_forms(tmp_path, form, kind):
    hf = hf_trained([MIXED], 420, GPT2_SPLIT, ["<s>"])
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=kind == "bytelevel")
    split = pre_tokenizers.Split(" " if kind == "literal" else Regex(CL100K_SPLIT), "isolated")
    alone = kind in ("bytelevel", "whole")
    hf.pre_tokenizer = byte_level if alone else pre_tokenizers.Sequence([split, byte_level])
    data = json.loads(hf.to_str())
    if form == "strings":
        data["model"]["merges"] = [" ".join(pair) for pair in data["model"]["merges"]]
    (tmp_path / "tokenizer.json").write_text(json.dumps(data), encoding="utf-8")
    tok = BPETokenizer.from_hf(tmp_path)
    assert tok.encode(SOURCE) == hf.encode(SOURCE).ids
    assert tok.to_tiktoken().encode(SOURCE) == tok.encode(SOURCE)


def test_clip_files_are_refused(tmp_path):
    (tmp_path / "vocab.json").write_text(
        json.dumps({"a": 0, "b</w>": 1, "ab</w>": 2}), encoding="utf-8"
    )
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b</w>\n", encoding="utf-8")
    with pytest.raises(ValueError, match="b</w>"):
        BPETokenizer.from_hf(tmp_path)


def made_by_hand(vocab: list[str], merges: list[tuple[str, str]], ignore_merges=False) -> Tokenizer:
    """A tokenizers BPE over all bytes and these further tokens and merges."""
    ids = {BYTE_TO_CHAR[b]: i for i, b in enumerate(ID_TO_BYTE)} | {
        t: 256 + i for i, t in enumerate(vocab)
    }
    hf = Tokenizer(models.BPE(vocab=ids, merges=merges, ignore_merges=ignore_merges))
    hf.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return hf


def test_a_pair_outside_the_merge_list_is_not_merged_and_tiktoken_is_refused(tmp_path):
    hf = made_by_hand(["bc", "ab", "abc"], [("b", "c"), ("a", "b"), ("ab", "c")])
    tok = BPETokenizer.from_hf(folder_with(tmp_path, hf))
    assert tok.encode("abc") == hf.encode("abc").ids == [tok.ranks[b"a"], tok.ranks[b"bc"]]
    with pytest.raises(ValueError, match="abc"):
        tok.to_tiktoken()


words = st.text("abc", min_size=1, max_size=2)


@settings(max_examples=300, deadline=None)
@given(
    pairs=st.lists(st.tuples(words, words), max_size=8, unique=True),
    more=st.lists(st.text("abc", min_size=2, max_size=4), max_size=3),
    shuffle=st.randoms(use_true_random=False),
    ordered=st.booleans(),
    ignore=st.booleans(),
    texts=st.lists(st.text("abc ", max_size=14), min_size=3, max_size=6),
)
def test_whatever_vocabulary_a_file_holds_ids_are_exact_or_tiktoken_is_refused(
    tmp_path_factory, pairs, more, shuffle, ordered, ignore, texts
):
    parts = [part for pair in pairs for part in (*pair, "".join(pair))] + more
    vocab = list(dict.fromkeys(part for part in parts if len(part) > 1))
    if not ordered:
        shuffle.shuffle(vocab)
    hf = made_by_hand(vocab, pairs, ignore)
    tok = BPETokenizer.from_hf(folder_with(tmp_path_factory.mktemp("hand"), hf))
    texts = [*texts, *vocab, "".join(vocab), "".join(reversed(vocab))]
    ids = [tok.encode(text) for text in texts]
    assert ids == [hf.encode(text).ids for text in texts]
    try:
        encoding = tok.to_tiktoken()
    except ValueError as error:
        assert "not representable" in str(error)
    else:
        assert ids == [encoding.encode(text) for text in texts]


def test_llama3_files_list_every_way_to_cut_a_token_and_still_go_to_tiktoken(tmp_path):
    trained = BPETokenizer.train(MIXED * 2 + SOURCE, 900, QWEN2_SPLIT)
    vocab = {to_visible(token): i for token, i in trained.ranks.items()}
    cuts = [(token[:n], token[n:]) for token in vocab for n in range(1, len(token))]
    merges = [cut for cut in cuts if cut[0] in vocab and cut[1] in vocab]
    assert len(merges) > len(trained.merges)
    hf = hf_tokenizer(QWEN2_SPLIT)
    hf.model = models.BPE(vocab=vocab, merges=merges, ignore_merges=True)
    hf.add_special_tokens(["<|eot_id|>"])
    tok = BPETokenizer.from_hf(folder_with(tmp_path, hf))
    text = SOURCE + CHINESE + "<|eot_id|>"
    assert (
        tok.encode(text, "all")
        == hf.encode(text).ids
        == tok.to_tiktoken().encode(text, allowed_special="all")
    )
    assert tok.encode(SOURCE) == trained.encode(SOURCE)


def test_ignore_merges_takes_a_whole_word_of_the_vocabulary(tmp_path):
    hf = made_by_hand(["Ġcat", "ca", "xyz"], [("c", "a")], ignore_merges=True)
    tok = BPETokenizer.from_hf(folder_with(tmp_path, hf))
    assert tok.encode(" cat cats xyz") == hf.encode(" cat cats xyz").ids
    assert tok.encode(" cat") == [256] and tok.to_tiktoken().encode(" cat cats xyz") == tok.encode(
        " cat cats xyz"
    )
    tok.save(tmp_path / "saved.json")
    assert same(BPETokenizer.load(tmp_path / "saved.json"), tok)


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (lambda tok: setattr(tok, "normalization", "NFC"), "NFC"),
        (lambda tok: tok.ranks.pop(b"!"), "0x21"),
        (lambda tok: tok.special_tokens.update({"<|im": 900}), "overlap"),
        (lambda tok: tok.merges.reverse(), "order"),
    ],
)
def test_to_tiktoken_refuses_and_says_why(tokenizer, change, names):
    changed = copy.deepcopy(tokenizer)
    change(changed)
    with pytest.raises(ValueError, match=names):
        changed.to_tiktoken()


def test_a_vocabulary_without_some_byte_names_it(tmp_path):
    hf = hf_tokenizer(GPT2_SPLIT)
    hf.train_from_iterator(["aaab"], trainers.BpeTrainer(vocab_size=10, show_progress=False))
    tok = BPETokenizer.from_hf(folder_with(tmp_path, hf))
    assert tok.encode("abba") == hf.encode("abba").ids
    with pytest.raises(ValueError, match="0x63"):
        tok.encode("abc")
    with pytest.raises(ValueError, match="0x"):
        tok.to_tiktoken()

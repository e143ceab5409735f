"""Artifacts that were made before a tokenizer.json was read as today keep their ids; new ones say how they are read."""

import json

import pytest
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

import tokenizer_lab
from tokenizer_lab import UserError
from tokenizer_lab.metrics import spelled
from tokenizer_lab.subword import SubwordRepresentation
from tokenizer_lab.subword.spelling import CHARACTER_OF_BYTE

TEXT = "the lamp für  für\n".encode()


def with_added_tokens() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE({character: byte for byte, character in enumerate(CHARACTER_OF_BYTE)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_tokens(["für"])
    return tokenizer


def unigram(**options) -> Tokenizer:
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"thelampfr", "▁the", "▁lamp"]
    return Tokenizer(models.Unigram([(piece, -float(len(pieces))) for piece in pieces], unk_id=0, **options))


def with_byte_tokens() -> Tokenizer:
    tokenizer = unigram(byte_fallback=True)
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    return tokenizer


def that_drops_spaces() -> Tokenizer:
    tokenizer = unigram()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    return tokenizer


def with_spaces_around() -> Tokenizer:
    tokenizer = with_added_tokens()
    tokenizer.add_tokens([AddedToken("lamp", lstrip=True)])
    return tokenizer


READ_ANEW = [with_added_tokens, with_byte_tokens, that_drops_spaces, with_spaces_around]


@pytest.mark.parametrize("maker", READ_ANEW)
def test_an_artifact_without_a_reading_is_read_as_it_was(maker, tmp_path):
    content = maker().to_str().encode()
    old, new = (SubwordRepresentation.from_files({"tokenizer.json": content}), SubwordRepresentation(content))
    assert old.to_files() == {"tokenizer.json": content} and old.fingerprint != new.fingerprint
    assert old.encode(TEXT).tolist() != new.encode(TEXT).tolist()
    for number, representation in enumerate((old, new)):
        representation.save(tmp_path / str(number))
        loaded = tokenizer_lab.load(tmp_path / str(number))
        assert loaded.vocab_size == representation.vocab_size and loaded.fingerprint == representation.fingerprint
        assert loaded.encode(TEXT).tolist() == representation.encode(TEXT).tolist()
        assert loaded.decode(loaded.encode(TEXT)) == TEXT


def test_the_first_reading_is_what_it_was():
    old = [SubwordRepresentation(maker().to_str().encode(), reading=1) for maker in READ_ANEW]
    assert old[0].decode([256]) == b"f\xfcr"
    assert old[1].vocab_size == with_byte_tokens().get_vocab_size() + 257 and not old[1].spells_every_byte
    assert spelled(old[2], [b"the lamp"]).share == 1 / 8
    assert old[3].encode(b" lamp").tolist() == [*b" lamp"]


@pytest.mark.parametrize("reading", [b"3", b"", b"one", b"[2]"])
def test_a_reading_of_another_version_is_refused(reading):
    with pytest.raises(UserError, match="fit it again"):
        SubwordRepresentation.from_files(
            {"tokenizer.json": with_added_tokens().to_str().encode(), "reading.json": reading}
        )


def test_where_it_makes_no_difference_no_reading_is_stored(foreign_tokenizers):
    for name, tokenizer in foreign_tokenizers.items():
        assert SubwordRepresentation(tokenizer.to_str().encode()).to_files().keys() == {"tokenizer.json"}, name


def test_byte_tokens_of_every_model_are_bytes():
    for tokenizer in (
        with_byte_tokens(),
        Tokenizer(models.WordLevel({f"<0x{byte:02X}>": byte for byte in range(256)})),
    ):
        spec = json.loads(tokenizer.to_str())
        spec["model"]["byte_fallback"] = True
        representation = SubwordRepresentation(json.dumps(spec).encode())
        assert representation.spells_every_byte and representation.vocab_size == tokenizer.get_vocab_size() + 1
        assert representation.decode(representation.encode(bytes(range(256)))) == bytes(range(256))


@pytest.mark.parametrize(
    "model",
    [
        models.WordLevel({"[UNK]": 0, "the": 1}, unk_token="[UNK]"),
        models.WordPiece({"[UNK]": 0, "the": 1}, unk_token="[UNK]"),
        models.BPE({"[UNK]": 0, "the": 1}, [], unk_token="[UNK]"),
        models.Unigram([("[UNK]", 0.0), ("the", -1.0)], unk_id=0),
    ],
    ids=lambda model: type(model).__name__,
)
def test_an_unknown_word_is_no_special_token(model):
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.add_special_tokens(["[UNK]"])
    representation = SubwordRepresentation(tokenizer.to_str().encode())
    assert representation.spelled_bytes([b"Lamp"]) == {"its vocabulary has no token for them": 4}
    named = representation.spelled_bytes([b"[UNK]"])
    assert sum(named.values()) == 5 and set(named) <= {
        "they are, or are taken for, one of its special tokens",
        "its vocabulary has no token for them",
        "its normalizer changes them (Lowercase)",
    }


def test_a_special_token_that_the_text_has_is_told_as_one():
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "the": 1}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["[UNK]"])
    told = SubwordRepresentation(tokenizer.to_str().encode()).spelled_bytes([b"the [UNK]"])
    assert told["they are, or are taken for, one of its special tokens"] == 5


def test_why_text_is_spelled_in_bytes_is_told():
    tokenizer = unigram()
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    found = spelled(SubwordRepresentation(tokenizer.to_str().encode()), [b"the Lamp\xff ", "語 e\u0301".encode()])
    assert found.num_bytes == 17 and found.reasons == {
        "its normalizer changes them (NFC, Lowercase)": 4,
        "its vocabulary has no token for them": 3,
        "its pre-tokenizer drops them (Whitespace)": 3,
        "they are not UTF-8": 1,
    }
    assert str(found).startswith("64.7 % of 17 bytes are spelled in bytes: 23.5 % as its normalizer changes them (NFC")
    assert str(spelled(SubwordRepresentation(with_added_tokens().to_str().encode()), [TEXT])).startswith("0.0 % of")

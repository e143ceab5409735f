"""`toklab encode`: the ids of a corpus, made once, for runs that would encode it again and again."""

from data.encode_corpus import EncodeOptions, encode_corpus
from train.commands.engine import run_on_engine


def run(arguments: list[str]) -> None:
    run_on_engine("encode", EncodeOptions, encode_corpus, arguments)

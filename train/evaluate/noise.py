"""What noise does to a run: bits per byte of held-out text with wrong characters in it, and how well a run still tells
sentences apart.

Each character is hit with the same chance, and a hit leaves it out, doubles it, exchanges it with the next one, or
changes its case, or takes another letter where it has none (the kinds of noise of Belinkov & Bisk 2018, arXiv
1711.02173, and Xue et al. 2021, arXiv 2105.13626). All runs on a text see the same noise. Text with noise holds more
information than text without, so that its bits per byte are compared between runs and not with those of the text as it
was.

A pair is a line of held-out text and the same line with two neighbouring words exchanged. A run tells them apart if it
gives the line as it was the better score (`train/evaluate/minimal_pairs.py`), which encoders have too. Both lines of a
pair have the same noise.
"""

import random
from collections.abc import Callable, Sequence
from typing import Any

from data.held_out import fixed_subset
from data.store import corpora_hash
from tokenizer_lab.files import write_json
from train.evaluate.bits_per_byte import bits_per_byte, held_out_text, make_scorer, score_run_documents
from train.evaluate.minimal_pairs import choose_score, share_told_apart
from train.run.folder import RunFolder
from train.setup import load_run

RATES = (0.0, 0.05, 0.15)
_MAX_BYTES = 32 << 10  # of text that is scored at each rate
_NUM_PAIRS = 300
_MAX_BYTES_FOR_PAIRS = 1 << 20  # of text, whose lines they are chosen from
_MIN_WORDS, _MAX_LINE_BYTES = 5, 160


def add_noise(text: str, rate: float, rng: random.Random) -> str:
    """The text with each character hit with a chance of `rate`; the text itself at 0."""
    characters, out, number = list(text), [], 0
    while number < len(characters):
        character = characters[number]
        number += 1
        if rng.random() >= rate:
            out.append(character)
            continue
        match rng.choice(("leave out", "double", "exchange", "change")):
            case "double":
                out += [character, character]
            case "exchange":
                out += [*characters[number : number + 1], character]
                number += 1
            case "change":
                other = character.swapcase()
                out.append(other if other != character else rng.choice(text))
    return "".join(out)


def find_pairs(documents: Sequence[bytes], max_pairs: int) -> list[tuple[list[str], int]]:
    """Words of lines of held-out text, and which of them to exchange with the next, another word: at most so many, from
    all over the text."""
    rng, found = random.Random(0), []
    for document in documents:
        for line in document.decode(errors="ignore").splitlines():
            words = line.split()
            if len(words) >= _MIN_WORDS and len(line.encode()) <= _MAX_LINE_BYTES:
                found.append(words)
    rng.shuffle(found)
    pairs: list[tuple[list[str], int]] = []
    for words in found:
        places = [place for place in range(len(words) - 1) if words[place] != words[place + 1]]
        if places and len(pairs) < max_pairs:
            pairs.append((words, rng.choice(places)))
    return pairs


def add_noise_to_pairs(pairs: Sequence[tuple[list[str], int]], rate: float) -> list[tuple[bytes, bytes]]:
    """Lines with noise in their words, and the same with the word at the given place and the next exchanged."""
    rng, noisy = random.Random(0), []
    for words, place in pairs:
        words = [add_noise(word, rate, rng) or word for word in words]
        other = [*words[:place], words[place + 1], words[place], *words[place + 2 :]]
        noisy.append((" ".join(words).encode(), " ".join(other).encode()))
    return noisy


def evaluate_noise(
    run_dir: str,
    corpus: str | None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    batch_rows: int | None = None,
) -> dict[str, Any]:
    """Scores a fixed part of the held-out text, and pairs of lines, at each rate of noise, and writes `noise.json`.

    Args:
      run_dir: the run's folder.
      corpus: a corpus store in place of the run's.
      on_progress: called with the rates done and how many there are.
      batch_rows: see `train.setup.load_run`.

    Raises:
      UserError: the folder is no run; no text is held out.
    """
    loaded = load_run(run_dir, batch_rows)
    setup, corpora = loaded.setup, loaded.open_corpora(corpus)
    held_out = held_out_text([loaded], corpora)
    documents = fixed_subset(held_out, _MAX_BYTES)
    pairs = find_pairs(fixed_subset(held_out, _MAX_BYTES_FOR_PAIRS), _NUM_PAIRS)
    is_decoder = setup.recipe.model.family == "decoder"
    token_score = make_scorer(setup.program.model_def, setup.mesh, setup.recipe.kernels) if is_decoder else None
    score_name, score_texts = choose_score(loaded)
    levels = []
    for number, rate in enumerate(RATES):
        on_progress(number, len(RATES))
        noisy = [
            add_noise(document.decode(errors="surrogateescape"), rate, random.Random(seed)).encode(
                errors="surrogateescape"
            )
            for seed, document in enumerate(documents)
        ]
        bits = None
        if token_score is not None:
            nats = score_run_documents(setup, noisy, token_score, loaded.params).nats.sum()
            bits = bits_per_byte(nats, sum(map(len, noisy)))
        levels.append(
            {
                "rate": rate,
                "bits_per_byte": bits,
                "accuracy": share_told_apart(score_texts, add_noise_to_pairs(pairs, rate)) if pairs else None,
            }
        )
    on_progress(len(RATES), len(RATES))
    result = {
        "step": loaded.counters["step"],
        "corpus_content_hash": corpora_hash(corpora),
        "score": score_name,
        "num_bytes": sum(map(len, documents)),
        "num_pairs": len(pairs),
        "levels": levels,
    }
    write_json(RunFolder(run_dir).noise, result)
    return result

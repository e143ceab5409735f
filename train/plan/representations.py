"""What a plan has to know of a representation, fitted or assumed, and what another one would change."""

import dataclasses
import pathlib
from collections.abc import Iterator
from typing import Any

from tokenizer_lab.errors import UserError
from tokenizer_lab.representation import read_manifest
from train.recipe import Recipe
from train.setup import count_parameters, model_flops_per_token

_LENGTH_MULTIPLE = 256  # of positions, for the attention kernel


@dataclasses.dataclass(frozen=True)
class Ids:
    """What a plan has to know of a representation."""

    name: str
    vocab_size: int
    bytes_per_id: float
    """Mean source bytes of an id."""
    source: str
    """Where the numbers are from."""


# Representations that need not be fitted yet; what they hold per id depends on the text.
ASSUMED = {
    ids.name: ids
    for ids in (
        Ids("byte", 257, 1.0, "256 bytes and the end of a document"),
        Ids(
            "subword",
            65_536,
            4.5,
            "assumed for English; a unigram of 32k holds 4.28 (Lester et al. 2024, arXiv 2404.03626)",
        ),
        Ids("subword_200k", 200_000, 4.9, "assumed for English"),
        Ids("equal_info", 65_537, 5.31, "windows of 16 bits (Lester et al. 2024, arXiv 2404.03626)"),
    )
}


def find_ids(recipe: Recipe, vocab_size: int | None = None, bytes_per_id: float | None = None) -> Ids:
    """What a recipe's representation is: an artifact's folder, or the name of an assumed one; numbers that are given
    come first.

    Raises:
      UserError: it is neither, and the numbers are not given.
    """
    name, ids = recipe.representation, None
    if (pathlib.Path(name) / "manifest.json").exists():
        manifest = read_manifest(name)
        bytes_known, like = manifest["statistics"].get("bytes_per_id"), ASSUMED.get(manifest["kind"])
        source = "its artifact" if bytes_known else f"its artifact; bytes: {like.source if like else 'not known'}"
        ids = Ids(name, manifest["vocab_size"], bytes_known or (like.bytes_per_id if like else 0.0), source)
    ids = ids or ASSUMED.get(name)
    if ids is None and (vocab_size is None or bytes_per_id is None):
        raise UserError(
            f"no artifact {name!r} is here; plan with --representation and one of {', '.join(ASSUMED)}, or with"
            " --vocab-size and --bytes-per-id"
        )
    given: dict[str, Any] = {
        field: value
        for field, value in (("vocab_size", vocab_size), ("bytes_per_id", bytes_per_id))
        if value is not None
    }
    if given:
        given["source"] = "given"
    ids = dataclasses.replace(ids or Ids(name, 0, 0.0, ""), **given)
    if ids.vocab_size < 2 or not ids.bytes_per_id > 0:
        raise UserError(
            f"{ids.vocab_size:,} ids of {ids.bytes_per_id:g} bytes: give --vocab-size of at least 2 and --bytes-per-id"
            " above 0"
        )
    return ids


def compared(recipe: Recipe, ids: Ids) -> Iterator[tuple[Recipe, Ids]]:
    """The recipe over each assumed representation, with rows that hold about as much text as its own."""
    for other in ASSUMED.values():
        multiple = _LENGTH_MULTIPLE * recipe.mesh.sequence
        length = (
            max(1, round(recipe.data.sequence_length * ids.bytes_per_id / other.bytes_per_id / multiple)) * multiple
        )
        yield (
            dataclasses.replace(
                recipe, representation=other.name, data=dataclasses.replace(recipe.data, sequence_length=length)
            ),
            other,
        )


def compare_by_arithmetic(recipe: Recipe, ids: Ids) -> list[dict[str, Any]]:
    """What a representation changes before anything is compiled."""
    rows = []
    for other_recipe, other in compared(recipe, ids):
        flops = model_flops_per_token(other_recipe, other.vocab_size)
        parameters = count_parameters(recipe, other.vocab_size)["total"]
        rows.append(
            {
                "representation": other.name,
                "vocab_size": other.vocab_size,
                "bytes_per_id": other.bytes_per_id,
                "num_parameters": parameters,
                "sequence_length": other_recipe.data.sequence_length,
                "softmax_share": flops.get("softmax", 0.0) / flops["total"],
                "flops_per_byte": flops["total"] / other.bytes_per_id,
            }
        )
    return rows

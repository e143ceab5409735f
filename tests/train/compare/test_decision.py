"""What the runs of an experiment say: what is clear, what is not, and how a terminal shows it."""

import io
import math
import types

import pytest
import rich.console

from train.compare.console_output import show_decision
from train.compare.decision import decide
from train.compare.decision_data import as_json, rows
from train.compare.in_words import supported, unsupported
from train.compare.results import Design

DOMAINS = ["code"] * 12 + ["docs"] * 12 + ["rare"]


def run(
    bits: float,
    *,
    flops: float = 1e12,
    text: str = "t",
    noise: float = 0.5,
    costs: float = 1.0,
    step: int = 10,
    tilt: float = 0.0,
    encoder: bool = False,
):
    """A run that was read: so many bits a byte, `tilt` more in docs and less in code."""
    by_document = [
        bits + {"code": -tilt, "docs": tilt, "rare": 0.0}[domain] + 0.01 * number
        for number, domain in enumerate(DOMAINS)
    ]
    sizes = [1000] * len(DOMAINS)
    nats = [b * math.log(2) * size for b, size in zip(by_document, sizes)]
    mean = sum(nats) / math.log(2) / sum(sizes)
    documents = {"nats": nats, "num_bytes": sizes, "domains": DOMAINS, "scripts": ["Latin"] * len(DOMAINS)}
    levels = [{"rate": rate, "bits_per_byte": mean + rate * noise, "accuracy": 0.6} for rate in (0.0, 0.1)]
    return types.SimpleNamespace(
        finished=True,
        is_encoder=encoder,
        evaluation={"step": step, "bits_per_byte": None if encoder else mean},
        summary={"steps": 10},
        held_out_text=text,
        documents_scored=None if encoder else documents,
        noise={"levels": levels},
        costs={"generate_flops_per_byte": costs, "kv_cache_bytes_per_byte": costs},
        row={"flops": flops, "bytes_seen": 5, "bits_per_byte": mean},
    )


def decide_on(arms: dict[str, list], sizes=("s",), num_seeds=3):
    """arms: name -> its runs, size after size and seed after seed."""
    places = [(arm, size, seed) for arm in arms for size in sizes for seed in range(num_seeds)]
    design = Design(
        name="x", budget="flops", arms=tuple(arms), sizes=tuple(sizes), num_seeds=num_seeds, places=tuple(places)
    )
    return decide(design, [one for runs in arms.values() for one in runs])


def test_a_steady_difference_is_clear_and_said():
    decision = decide_on({"a": [run(2.0), run(2.01), run(2.02)], "b": [run(2.1), run(2.11), run(2.12)]})
    behind = decision.largest.behind["b"]
    assert (
        behind.bits == pytest.approx(0.1)
        and behind.clear
        and behind.over_seeds == pytest.approx((0.1, 0.1))
        and behind.over_documents == pytest.approx((0.1, 0.1))
    )
    assert (
        "a has the lowest bits per byte of 2 arms" in supported(decision)[0]
        and "clearly ahead of b by 0.100" in supported(decision)[0]
    )
    assert not any("is not settled" in line for line in unsupported(decision))


def test_a_difference_that_seeds_do_not_share_is_not_clear():
    decision = decide_on({"a": [run(2.0), run(2.2), run(2.1)], "b": [run(2.1), run(2.05), run(2.3)]})
    assert not decision.largest.behind["b"].clear and decision.largest.behind["b"].over_documents[0] > 0, (
        "though it is the same for all documents"
    )
    assert any("whether a is better than b is not settled by 3 seeds" in line for line in unsupported(decision))


def test_a_difference_that_documents_do_not_share_is_not_clear():
    decision = decide_on({"a": [run(2.0, tilt=0.5)] * 3, "b": [run(2.02, tilt=-0.5)] * 3})
    behind = decision.largest.behind["b"]
    assert behind.over_documents[0] < 0 < behind.over_seeds[0] and not behind.clear


def test_one_seed_makes_nothing_clear():
    decision = decide_on({"a": [run(2.0)], "b": [run(3.0)]}, num_seeds=1)
    assert (
        not decision.largest.behind["b"].clear
        and "With one seed, no difference can be called clear" in supported(decision)[0]
    )


def test_arms_that_cross_between_two_sizes():
    decision = decide_on(
        {"a": [run(3.0), run(2.8, flops=1e13)], "b": [run(3.3), run(2.5, flops=1e13)]}, sizes=("s", "l"), num_seeds=1
    )
    point = decision.crossings["a", "b"]
    assert point.measured and 1e12 < point.flops < 1e13
    said = "\n".join(supported(decision))
    assert "The leader changes with compute: a at s, b at l" in said and "b overtakes a at about" in said


def test_a_crossing_just_beyond_what_was_measured_is_not_supported():
    decision = decide_on(
        {"a": [run(3.0), run(2.8, flops=1e13)], "b": [run(3.3), run(2.9, flops=1e13)]}, sizes=("s", "l"), num_seeds=1
    )
    assert not decision.crossings["a", "b"].measured
    assert any("b overtakes a" in line and "beyond what was measured" in line for line in unsupported(decision))
    assert not any("overtakes" in line for line in supported(decision))


def test_a_part_has_a_leader_of_its_own_and_few_documents_have_no_interval():
    decision = decide_on({"a": [run(2.0, tilt=0.5)] * 3, "b": [run(2.02, tilt=-0.5)] * 3})
    code, docs, rare = (part for part in decision.parts if part.kind == "domain")
    assert (
        (code.best, docs.best) == ("a", "b")
        and docs.behind["a"][0] > 0.9
        and rare.num_documents == 1
        and not rare.behind
    )
    assert "a is best in 1 of 2 domains with 10 documents or more; b in docs" in "\n".join(supported(decision))
    assert not [part for part in decision.parts if part.kind == "script"], "a single script is the whole text"


def test_what_cannot_be_compared_is_left_out_and_named():
    arms = {
        "a": [run(2.0)] * 3,
        "b": [run(2.1)] * 3,
        "other": [run(1.0, text="u")] * 3,
        "stale": [run(1.0, step=9)] * 3,
        "encoder": [run(0, encoder=True)] * 3,
    }
    decision = decide_on(arms)
    assert [cell.arm for cell in decision.largest.cells] == ["a", "b"] and [cell.arm for cell in decision.encoders] == [
        "encoder"
    ]
    said = "\n".join(unsupported(decision))
    assert (
        "other of size s was evaluated on another text" in said
        and "stale of size s is in no table yet: 0 of its 3 runs" in said
    )
    assert "Encoders have no bits per byte and are not ranked (encoder)" in said


def test_costs_and_noise_are_said():
    said = "\n".join(
        supported(decide_on({"a": [run(2.0, costs=3e6, noise=4.0)] * 3, "b": [run(2.1, costs=1e6, noise=1.0)] * 3}))
    )
    assert "b needs least, 1.00\N{NARROW NO-BREAK SPACE}MFLOPs, and a 3.0 times that" in said
    assert "rise least for b, by 0.100, and most for a, by 0.400" in said


def test_nothing_to_compare_is_said():
    assert "nothing to compare" in supported(decide_on({"a": [run(2.0)] * 3}))[0]
    assert "nothing to compare" in supported(decide_on({"a": [run(2.0, encoder=True)] * 3}))[0]


def test_rows_of_all_arms_have_the_same_keys():
    decision = decide_on({"a": [run(2.0)] * 3, "b": [run(2.1)] * 3})
    first, second = rows(decision)
    assert (
        first.keys() == second.keys()
        and first["behind_best"] is None
        and second["clearly_behind"] is True
        and "bits_per_byte_at_noise_0.1" in first
    )
    assert as_json(decision)["arms"] == [first, second]


@pytest.mark.parametrize("width", [60, 80])
def test_the_table_in_the_terminal_never_breaks_a_name(width):
    names = ("demo_subword", "demo_equal_info", "superword_64k_numbers_left", "a_name_of_just_thirty_letters_")
    decision = decide_on(
        {name: [run(2.0 + 0.1 * number + 0.01 * seed) for seed in range(3)] for number, name in enumerate(names)},
        sizes=("the_size_that_is_fitted_last",),
    )
    console = rich.console.Console(width=width, file=io.StringIO())
    show_decision(decision, console)
    lines = console.file.getvalue().splitlines()
    table = lines[: next(number for number, line in enumerate(lines) if line.startswith("- "))]
    for name in (*names, "the_size_that_is_fitted_last"):
        assert any(line.split()[:1] == [name] for line in table), table
    assert max(map(len, table)) <= width and not any("…" in line for line in table)

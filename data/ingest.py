"""Text in many forms -> a corpus store, in two phases whose tasks an engine's workers do (`data/engines.py`).

1. Inputs become sorted runs (`data/runs.py`), some consecutive inputs at a time.
2. Runs become shards (`data/merge.py`), at borders that all of the text decides.

The manifest then names the shards (`data/corpus_writer.py`). What is written is the same for any order of the inputs,
any engine and any number of workers; after a kill the same command goes on with what was whole.
"""

import collections
import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from etils import epath

from data.convert import CorpusUnit, corpus_to_convert, units_of
from data.corpus_writer import Sizes, Store, open_store
from data.duplicates import NO_KEYS, Drops
from data.ingest_options import IngestOptions
from data.local_engine import Engine, LocalEngine
from data.manifest import Rule, Split, Text
from data.near_duplicates import FindPairs, SketchFile, SketchWriter, check_installed, dropped_keys, parts_of_bands
from data.quarantine import KEPT_RECORDS, check_budget, quarantine_lines, quarantine_name
from data.reading import InputUnit, find_units, has_published_splits, read_portions
from data.runs import Histogram, RunFile, RunWriter
from data.storage import read_if_there
from tokenizer_lab.errors import UserError
from tokenizer_lab.files import cannot_write, write_bytes, write_json

AnyUnit = InputUnit | CorpusUnit

_MOST_RUNS = 8192
_TASK_BYTES = 16 << 20, 256 << 20  # of input: no fewer where there are as many, and no more where few runs do


@dataclasses.dataclass(frozen=True, kw_only=True)
class IngestResult:
    """What an ingest did.

    Attributes:
      changed: False if the corpus had exactly these documents already.
      num_documents, num_bytes: (domain, split) -> how much was given; a split without documents is not there.
      counts: see `data.reading.Portion`.
      test_fraction: share of the documents that was to be held out.
    """

    folder: epath.PathLike
    changed: bool
    num_documents: dict[tuple[str, Split], int]
    num_bytes: dict[tuple[str, Split], int]
    counts: dict[str, int]
    test_fraction: float

    @property
    def num_skipped(self) -> int:
        """Empty documents left out, as `on_empty` said."""
        return self.counts.get("skipped", 0)

    def __str__(self) -> str:
        lines = [f"{self.folder}: {'added' if self.changed else 'already has all of this; nothing changed'}"]
        for key, num_documents in sorted(self.num_documents.items()):
            lines.append(f"  {', '.join(key)}: {num_documents:,} documents, {self.num_bytes[key]:,} bytes")
        lines += self._remarks()
        for domain in sorted({domain for domain, _ in self.num_documents}) if 0 < self.test_fraction < 1 else ():
            splits = {"train", "test"} - {split for name, split in self.num_documents if name == domain}
            lines += [
                f"  warning: {domain} has no {split} documents, because a document is in one split as a whole; give"
                r" more documents (split plain text with --separator, e.g. --separator '\n\n', or '\r\n\r\n' where"
                r" lines end in \r\n) or another --test-fraction, into a new --out"
                for split in sorted(splits)
            ]
        return "\n".join(lines)

    def _remarks(self) -> list[str]:
        lines = []
        if self.num_skipped:
            lines.append(f"  {self.num_skipped:,} empty documents left out")
        if num_cut := self.counts.get("cut"):
            lines.append(
                f"  {num_cut:,} long documents are cut into {self.counts['parts']:,} parts, see --max-part-bytes"
            )
        for kind, what in (("exact", "the same as others"), ("near", "near copies of others")):
            if number := self.counts.get(kind):
                lines.append(f"  {number:,} documents left out that are {what}")
        if num_bad := self.counts.get("bad"):
            lines.append(f"  {num_bad:,} bad records left out, see {self.folder}/quarantine-*.jsonl")
        return lines


def ingest(
    options: IngestOptions,
    report: Callable[[int, int], None] = lambda num_bytes_done, num_bytes_total: None,
    engine: Engine = LocalEngine(),
    sizes: Sizes = Sizes(),
) -> IngestResult:
    """Adds the documents of `options.sources` to the corpus in `options.out`: all of them, or nothing.

    Args:
      report: called often with the input bytes (of compressed files, compressed ones) done so far, and those there are;
        half of the work is to read them.
      engine: where files are read, and shards made.
      sizes: of what is held in memory, and written.

    Raises:
      UserError: for input that is damaged, too large or empty, and for a corpus that cannot take or hold the documents.
    """
    if options.drop_duplicates == "near":
        check_installed()
    if corpus := corpus_to_convert(options):
        options = dataclasses.replace(options, test_fraction=corpus.test_fraction)
        units: Sequence[AnyUnit] = units_of(corpus)
        test_fraction = corpus.test_fraction
    else:
        units = found = find_units(options)
        test_fraction = 0.0 if has_published_splits(options, found) else options.test_fraction
    num_input_bytes = sum(unit.num_bytes for unit in units)
    read_bytes = num_input_bytes // 2
    with open_store(epath.Path(options.out), test_fraction, _ingest_id(options, sizes), sizes) as store:
        tasks = list(_tasks(units, sizes.task or _task_bytes(num_input_bytes)))
        make_runs = MakeRuns(options, store.partial, max(sizes.run, num_input_bytes // _MOST_RUNS))
        made = _collect(engine, make_runs, tasks, num_input_bytes, report)
        check_budget(options.max_bad, made.counts, made.bad)
        num_text_bytes = sum(int(histogram.num_bytes.sum()) for histogram in made.histograms.values())
        drops = _drops(options, store, made, engine)
        if drops:
            made.histograms = drops.histograms
            made.counts.update(exact=drops.num_exact, near=drops.num_near)
        if not made.histograms:
            raise UserError(
                f"no documents in {', '.join(options.sources)} ({made.counts['skipped']} empty ones left out); name"
                " other sources"
            )

        def report_merged(done: int) -> None:
            report(read_bytes + (num_input_bytes - read_bytes) * done // max(1, num_text_bytes), num_input_bytes)

        gone = drops.gone if drops and options.drop_duplicates else None
        changed = store.commit(made.runs, made.histograms, made.rule, engine, report_merged, gone)
        if made.bad:
            write_bytes(store.folder / quarantine_name(options.domain), quarantine_lines(made.bad))
        report_merged(max(1, num_text_bytes))
    return IngestResult(
        folder=options.out,
        changed=changed,
        num_documents={text: int(histogram.documents.sum()) for text, histogram in made.histograms.items()},
        num_bytes={text: int(histogram.num_bytes.sum()) for text, histogram in made.histograms.items()},
        counts=dict(made.counts),
        test_fraction=test_fraction,
    )


def _drops(options: IngestOptions, store: Store, made: "MadeRuns", engine: Engine) -> Drops | None:
    """What of the runs does not become part of the corpus. Raises UserError where a document is in two splits."""
    near = NO_KEYS
    if options.drop_duplicates == "near":
        files = [SketchFile(store.partial / name, num_documents) for name, num_documents in made.sketches]
        with contextlib.closing(engine.stream(FindPairs(tuple(files)), parts_of_bands(files))) as pairs:
            near = dropped_keys(files, pairs)
    drop = options.drop_duplicates is not None
    return store.look_at_keys(made.runs, made.histograms, made.rule, engine, drop, near)


def _ingest_id(options: IngestOptions, sizes: Sizes) -> str:
    """Stands for what the command was told: another one does not go on with its runs."""
    told = dataclasses.asdict(options) | {"out": "", "sizes": dataclasses.asdict(sizes)}
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()[:12]


@dataclasses.dataclass(frozen=True)
class ReadTask:
    """Units that one worker reads, and a name that stands for what is in them."""

    name: str
    units: tuple[AnyUnit, ...]


def _task_bytes(num_input_bytes: int) -> int:
    """Of input in a task: a sixteenth of all, so that several workers have work, within limits."""
    least, most = _TASK_BYTES
    return max(num_input_bytes // _MOST_RUNS, min(most, max(least, num_input_bytes // 16)))


def _tasks(units: Sequence[AnyUnit], task_bytes: int) -> Iterator[ReadTask]:
    together, num_bytes = list[AnyUnit](), 0
    for number, unit in enumerate(units, 1):
        together.append(unit)
        num_bytes += unit.num_bytes
        if num_bytes >= task_bytes or number == len(units):
            about = json.dumps([[unit.name, unit.fingerprint] for unit in together])
            yield ReadTask(hashlib.sha256(about.encode()).hexdigest()[:16], tuple(together))
            together, num_bytes = [], 0


@dataclasses.dataclass
class MadeRuns:
    """Runs of some inputs, or of all.

    Attributes:
      histograms: of all runs together.
      counts: of records, for people.
      bad: records that could not be read, in the order of the inputs.
      rule: how the documents' splits were chosen.
      sketches: names of files of `data/near_duplicates.py`, and how many documents they are about.
    """

    runs: list[RunFile]
    histograms: dict[Text, Histogram]
    counts: collections.Counter[str]
    bad: list[dict[str, Any]]
    rule: Rule
    sketches: list[tuple[str, int]] = dataclasses.field(default_factory=list)

    def add(self, other: "MadeRuns") -> None:
        self.runs += other.runs
        for text, histogram in other.histograms.items():
            self.histograms.setdefault(text, Histogram.empty()).add(histogram)
        self.counts += other.counts
        self.bad += other.bad[: KEPT_RECORDS - len(self.bad)]
        self.rule = other.rule
        self.sketches += other.sketches

    def to_json(self) -> dict[str, Any]:
        return dict(
            runs=[dataclasses.asdict(run) for run in self.runs],
            histograms=[[*text, *histogram.to_json()] for text, histogram in self.histograms.items()],
            counts=self.counts,
            bad=self.bad,
            rule=self.rule,
            sketches=self.sketches,
        )

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "MadeRuns":
        return cls(
            runs=[
                RunFile(**run | {"texts": [(domain, split) for domain, split in run["texts"]]}) for run in value["runs"]
            ],
            histograms={(domain, split): Histogram.from_json(rest) for domain, split, *rest in value["histograms"]},
            counts=collections.Counter(value["counts"]),
            bad=value["bad"],
            rule=value["rule"],
            sketches=[(name, num_documents) for name, num_documents in value["sketches"]],
        )


@dataclasses.dataclass(frozen=True)
class MakeRuns:
    """Makes runs of inputs; what an engine's workers do.

    Attributes:
      partial: the folder for the runs, and for a note of what was made of a task.
    """

    options: IngestOptions
    partial: epath.Path
    run_bytes: int

    def __call__(self, task: ReadTask) -> Iterator[int | MadeRuns]:
        """Yields bytes of input that were read, again and again, and last what was made. Raises UserError."""
        note = self.partial / f"{task.name}.json"
        try:
            if found := read_if_there(note):
                yield sum(unit.num_bytes for unit in task.units)
                yield MadeRuns.from_json(json.loads(found))
                return
            writer = RunWriter(self.partial, task.name, self.options.test_fraction, self.run_bytes)
            counts, bad = collections.Counter[str](), list[dict[str, Any]]()
            sketches = SketchWriter(self.options.test_fraction) if self.options.drop_duplicates == "near" else None
            for unit in task.units:
                for portion in unit.portions() if isinstance(unit, CorpusUnit) else read_portions(self.options, unit):
                    writer.add(portion.documents)
                    if sketches:
                        sketches.add(portion.documents)
                    counts.update(portion.counts)
                    bad += map(dataclasses.asdict, portion.bad)
                    yield portion.num_bytes_read
            writer.close()
            made = MadeRuns(writer.runs, writer.histograms, counts, bad, writer.rule)
            if sketches:
                made.sketches = sketches.write(self.partial, task.name)
            write_json(note, made.to_json(), sync=False)
            yield made
        except OSError as error:
            raise cannot_write(self.options.out, error) from error


def _collect(
    engine: Engine,
    make_runs: MakeRuns,
    tasks: Sequence[ReadTask],
    num_input_bytes: int,
    report: Callable[[int, int], None],
) -> MadeRuns:
    """All runs; `report` as in `ingest`. Raises UserError where too many records are bad."""
    everything, num_bytes_read = MadeRuns([], {}, collections.Counter(), [], "hash"), 0
    with contextlib.closing(engine.stream(make_runs, tasks)) as results:
        for result in results:
            if isinstance(result, MadeRuns):
                everything.add(result)
                share_read = min(0.99, num_bytes_read / max(1, num_input_bytes))
                check_budget(make_runs.options.max_bad, everything.counts, everything.bad, share_read)
            else:
                num_bytes_read += result
                report(num_bytes_read // 2, num_input_bytes)
    return everything

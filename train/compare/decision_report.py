"""The report of an experiment: its decision first, then every run."""

from collections.abc import Sequence

from etils import epath

from tokenizer_lab import files
from train.compare.decision import decide
from train.compare.decision_data import rows
from train.compare.decision_page import opening
from train.compare.results import Decision, Design
from train.report.findings import Report
from train.report.page import csv_text
from train.report.report import write_pages
from train.report.runs import read_runs


def write_decision(run_dirs: Sequence[epath.PathLike], out: epath.PathLike, design: Design) -> tuple[Report, Decision]:
    """Writes what `train.report.report.write_report` writes, on an experiment's runs, and `decision.csv` with the
    decision as numbers.

    Args:
      run_dirs: the runs' folders.
      out: the folder of the report.
      design: what the runs are of an experiment.

    Raises:
      UserError: a folder is not a run, a file is damaged, or `out` cannot be written.
    """
    arms = read_runs(run_dirs)
    decision = decide(design, arms)
    if table := rows(decision):
        files.write_bytes(epath.Path(out) / "decision.csv", csv_text(table).encode())
    return write_pages(arms, out, opening(decision)), decision

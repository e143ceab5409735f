"""`toklab ingest`: text, jsonl or parquet becomes a corpus store."""

from data.ingest import IngestOptions, ingest
from train.commands.engine import run_on_engine


def run(arguments: list[str]) -> None:
    run_on_engine("ingest", IngestOptions, ingest, arguments)

"""`toklab ingest`: text, jsonl or parquet becomes a corpus store."""

from data.engines import EngineOptions
from data.ingest import ingest
from data.ingest_options import IngestOptions
from train.commands.engine import run_on_engine


def run(arguments: list[str]) -> None:
    run_on_engine("ingest", IngestOptions, ingest, arguments, EngineOptions(engine="processes"))

"""Bits per byte of a run recomputed from its export, by `transformers` and PyTorch alone; ours is only the reading of
the documents.

    toklab export RUN --to hf --out EXPORT
    python benchmarks/hf_bits_per_byte.py EXPORT --corpus CORPUS     # beside toklab eval RUN: the same to 1e-3

For decoders trained without `data.piece_length`, and documents that are valid UTF-8, which is what a tokenizer of
transformers takes.
"""

import argparse
import math

from pytorch import require_pytorch

from data.store import Corpus
from train.commands.cli import leave_out_absent_tpus


def main(export: str, corpus: str) -> None:
    require_pytorch("transformers")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(export, trust_remote_code=True)
    model = AutoModelForCausalLM.from_pretrained(export, dtype=torch.float32).eval()
    length, end = model.config.max_position_embeddings, model.config.eos_token_id
    documents = Corpus.open(corpus).documents("test")
    nats, num_bytes = 0.0, 0
    for number in range(len(documents)):
        document = documents[number]
        ids = torch.tensor([end, *tokenizer(document.decode(), add_special_tokens=False).input_ids, end])
        # Pieces that do not see each other; each id but the first is predicted once.
        for start in range(0, len(ids) - 1, length):
            piece = ids[start : start + length + 1]
            with torch.no_grad():
                logits = model(piece[None, :-1]).logits[0]
            nats += torch.nn.functional.cross_entropy(logits.double(), piece[1:], reduction="sum").item()
        num_bytes += len(document)
    print(f"{nats / math.log(2) / num_bytes:.6f} bits/byte, {len(documents):,} documents, {num_bytes:,} bytes")


if __name__ == "__main__":
    leave_out_absent_tpus()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("export")
    parser.add_argument("--corpus", required=True)
    main(**vars(parser.parse_args()))

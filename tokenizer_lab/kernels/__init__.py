"""Hot loops that only a tokenizer lab has. One folder an operation; a kernel imports nothing else of ours."""

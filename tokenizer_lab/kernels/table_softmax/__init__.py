"""A softmax over products with the rows of a table, a tile of rows after the other: what the kernels on a vocabulary
are made of.

No operation itself. An operation says what it folds the logits of a tile into (`passes.Fold`; `tiles.Loss` is the
least) and gets its forward pass in XLA (`chunked`) and as a TPU kernel (`pallas_tpu`), and the backward pass, which is
the same for all.
"""

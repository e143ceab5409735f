"""What a model is trained for: an objective is one callable (model, batch, rng) -> (loss_sum, weight_sum, sums).

Part of the spine; may import `data`, `models` and `tokenizer_lab`.
"""

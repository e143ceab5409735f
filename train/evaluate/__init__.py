"""Asks a trained model: bits per byte, likelihoods, exact byte probabilities, noise, minimal pairs, fine-tuning, tasks,
samples.

May import the spine and what is below it.
"""

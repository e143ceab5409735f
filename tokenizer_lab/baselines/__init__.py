"""What compressed text is compared with: plain arithmetic coding with a neural or a fixed model, and gzip."""

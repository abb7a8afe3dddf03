"""The training loop, its stages, and what a stage needs: batches, an objective, checkpoints."""

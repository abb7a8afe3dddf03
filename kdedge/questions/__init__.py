"""Questions whose answers are spans of a text: sliding windows, answers out of logits, exact match and F1."""

"""Logits -> answer: the token loop, drafts, constraints, and how answers are read."""

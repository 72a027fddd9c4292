"""One model's turn: the small model answers and guides, the large one answers, either scores answers."""

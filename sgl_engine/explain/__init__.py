"""Pictures for people: where the small model looked, and what the large one saw."""

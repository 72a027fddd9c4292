"""What is looked at: attention is recorded while a model runs, and becomes a map of importance."""

"""What a model reads: pictures are loaded, prompts are encoded, and laid side by side."""

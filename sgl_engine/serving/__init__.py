"""Who runs when: requests are let in, and their passes run in one thread, side by side. Knows no model."""

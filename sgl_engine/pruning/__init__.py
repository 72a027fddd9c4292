"""What is left out: a plan, and the hooks that carry it out in a running decoder."""

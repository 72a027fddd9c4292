"""What calls have cost.

In go the run reports that messages carry, seen by callbacks; out come sums per model and tables of them.
"""

"""What it cost: operations, milliseconds, and the report of a run."""

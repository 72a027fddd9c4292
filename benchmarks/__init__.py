"""Measurements on the bundled pair; each prints a table and can write JSON."""

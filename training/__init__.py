"""Training of the bundled pair: not part of the installed package and never part of ``make check``."""

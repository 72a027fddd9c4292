"""``sgl decide``: typed questions about many pictures, a JSON line for each.

``questions`` reads what is asked, ``pictures`` finds what it is asked about, ``rows`` keeps what was
answered, so that a run goes on where another was cut short, ``table`` is for people, and ``command`` is the
command.
"""

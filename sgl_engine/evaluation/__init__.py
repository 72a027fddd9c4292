"""Does it pay? Every system's answers to the same questions, what they cost, and what differences are worth.

rows (``dataset``) -> every system on each (``runner``) -> records (``store``) -> tables, figures (``report``)
"""

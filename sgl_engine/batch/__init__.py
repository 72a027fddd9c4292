"""``sgl batch``: all rows of a file or folder through the small model, the rest through the large one.

    inputs -> forms -> local | ray_data -> output

``inputs`` gives rows by number, whatever file they lie in; ``plain`` and ``openai`` make requests of rows,
and lines of answers; ``local`` has one engine answer them, ``ray_data`` many machines; ``output`` is the
folder of a run, in which a line once written stays, so that a run goes on where another was cut short;
``job`` says what must not change in between. Rows come out in the order in which they went in.
"""

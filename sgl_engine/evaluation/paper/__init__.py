"""The paper's eleven benchmarks (SGL, table 1): from files as the world keeps them to its last column.

files (``tables``) -> what each benchmark asks of a row (``benchmarks``) -> one run of all (``suite``) -> each
benchmark's own score (``scores``), of MM-Vet by a judge (``judge``)
"""

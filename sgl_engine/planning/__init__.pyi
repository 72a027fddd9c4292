from .check import check_pair as check_pair
from .estimate import ESCALATED_FRACTIONS as ESCALATED_FRACTIONS
from .placement import Device as Device, Machine as Machine
from .result import (
    CascadeCheck as CascadeCheck,
    ModelCheck as ModelCheck,
    PairCheck as PairCheck,
    Placement as Placement,
    PresetCheck as PresetCheck,
    Saving as Saving,
)

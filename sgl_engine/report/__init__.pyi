from .cost import (
    answer_flops as answer_flops,
    average_retention as average_retention,
    consistency_flops as consistency_flops,
)
from .hosted import PictureReport as PictureReport, SentReport as SentReport
from .make import seen_patches as seen_patches
from .prices import RunCost as RunCost
from .run_report import ModelInfo as ModelInfo, RunReport as RunReport
from .version import engine_version as engine_version

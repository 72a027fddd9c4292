from .cost import answer_flops as answer_flops, average_retention as average_retention
from .make import engine_version as engine_version, seen_patches as seen_patches
from .run_report import ModelInfo as ModelInfo, RunReport as RunReport

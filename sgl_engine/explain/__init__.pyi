from .focus_box import focus_box as focus_box
from .heatmap import colorize as colorize, draw_importance as draw_importance

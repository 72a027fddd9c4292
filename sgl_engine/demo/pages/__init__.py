"""Pages of 1 to 6 tiles with documents, tables, forms, scenes and charts, and questions about them."""

from sgl_engine.demo.pages.generator import Page, draw_page, heldout_pages, pick_questions, split_of

__all__ = ["Page", "draw_page", "heldout_pages", "pick_questions", "split_of"]

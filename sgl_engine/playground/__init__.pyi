from .app import create_playground as create_playground

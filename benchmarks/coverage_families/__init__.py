"""Every image-text architecture of the installed transformers, built tiny and run: which are exact?"""

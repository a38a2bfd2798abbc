"""Pages of the documentation that are made from the code and the committed results.

`docs/hook.py` connects them to mkdocs. Each module returns Markdown or SVG as text, so that tests
can use it without mkdocs.
"""

"""Pages of the documentation that are made from the code and the committed results.

`docs/hook.py` connects them to mkdocs. Each other module returns Markdown or SVG as text, so that tests and
other sites can use them without mkdocs.
"""

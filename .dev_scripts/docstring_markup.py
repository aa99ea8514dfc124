"""A hook of mkdocs: what docstrings write in reStructuredText for the console's sake, as the pages show it."""

import re

ROLE = re.compile(r':(?:class|func|meth|mod|data|attr):<code>\.?([^<]*)</code>')


def on_page_content(html: str, **kwargs) -> str:
    """``:class:`.Name` `` becomes ``Name``, and the double colon before an example a single one."""
    return re.sub(r'::(</p>)', r':\1', ROLE.sub(r'<code>\1</code>', html))


def on_page_markdown(markdown: str, **_) -> str:
    """The site has no configs in it, to which the model zoo links on a git host."""
    return re.sub(r'\[([^]]+)\]\(\.\./configs/[^)]+\)', r'`\1`', markdown)

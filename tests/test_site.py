"""The documentation as a site: it builds without a warning, loads nothing from elsewhere, and every link and name in it leads somewhere."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from doc_blocks import PAGES, ROOT

LINK = re.compile(r'!?\[[^]]*\]\(([^)\s]+)\)')


def anchors(page: Path) -> set[str]:
    """As git hosts and mkdocs make them of headings."""
    titles = re.findall(r'^#+ (.+)$', re.sub(r'```.*?```', '', page.read_text(), flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r'\s+', '-', re.sub(r'[^\w\s-]', '', title.lower()).strip()) for title in titles}


@pytest.mark.parametrize('page', PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for link in LINK.findall(re.sub(r'```.*?```', '', page.read_text(), flags=re.DOTALL)):
        target, _, anchor = link.partition('#')
        if target.startswith(('http://', 'https://')):
            continue
        path = (page.parent / target).resolve() if target else page
        assert path.is_file(), f'{page.name}: {link}'
        assert not anchor or anchor in anchors(path), f'{page.name}: {link}'


def test_files_that_are_named_in_the_text_exist():
    folders = 'configs|tools|demo|docs|tests|orepa_mm|requirements|docker|.dev_scripts|.github'.replace('.', r'\.')
    for page in PAGES:
        for name in re.findall(rf'`((?:{folders})/[\w./*-]*)', page.read_text()):
            assert name.startswith('tools/dataset_converters/') or list(ROOT.glob(name.rstrip('/'))), f'{page.name}: {name}'


def test_the_site_builds_without_a_warning(tmp_path):
    """Links, anchors and docstring references too, which are errors in strict mode. Nothing of another host is loaded by a page."""
    command = [sys.executable, '-m', 'mkdocs', 'build', '--quiet', '--strict', '--site-dir', str(tmp_path / 'site')]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=dict(os.environ, NO_MKDOCS_2_WARNING='1'))
    assert result.returncode == 0, result.stdout + result.stderr
    pages = sorted((tmp_path / 'site').rglob('*.html'))
    assert len(pages) >= len(PAGES)  # README is none, but there is one for what is not found
    for page in pages:
        loaded = re.findall(r'<(?:script|img|link rel="stylesheet")[^>]*(?:src|href)="(https?:[^"]*)"', page.read_text())
        assert not loaded, f'{page.name}: {loaded}'
        prose = re.sub(r'<pre>.*?</pre>', '', page.read_text(), flags=re.DOTALL)
        swallowed = re.findall(r'\n- .{,60}', prose)  # an item right after an indented paragraph is no item to mkdocs
        assert not swallowed, f'{page.parent.name}: an empty line is missing before {swallowed}'
    text = (tmp_path / 'site' / 'api' / 'index.html').read_text()
    assert 'OREPAConv2d' in text and 'ReparameterizeHook' in text and 'Raises' in text
    assert ':class:' not in text and '::</p>' not in text

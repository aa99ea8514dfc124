"""The fenced blocks of README.md and docs/, and what may be asked of each without running it."""

import ast
import re
import shlex
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / 'README.md', *sorted((ROOT / 'docs').rglob('*.md'))]
LANGUAGES = {'shell', 'python', 'diff', 'text', 'bibtex'}
# What a block may need that a test has not; "minutes" are run by a slow test.
NEEDS = {'data', 'gpu', 'network', 'cluster', 'minutes', 'hours'}
OTHERS = {'pip', 'source', 'mim', 'mutmut', 'tensorboard', 'trtexec', 'docker'}  # programs that are not of this project

FENCE = re.compile(r'^([ ]*)```(\w*)[ ]*$')
MARK = re.compile(r'^\s*<!-- needs: (\w+) -->$')


@dataclass(frozen=True)
class Block:
    """A fenced block: its page, the line its fence is on, language, text, and what it is marked to need ('' for nothing)."""

    page: Path
    line: int
    language: str
    text: str
    needs: str

    def __str__(self) -> str:
        return f'{self.page.relative_to(ROOT)}:{self.line}'

    @property
    def file_name(self) -> str:
        """The file a reader is told to save it as, in its first line."""
        found = re.match(r'# (\w+\.py)$', self.text.splitlines()[0])
        return found[1] if found else ''

    @property
    def is_config(self) -> bool:
        """Whether it is a config or a part of one: assignments of literals and dicts to the names a config has."""
        if self.language not in ('python', 'diff'):
            return False
        return '_base_ =' in self.text or all(
            isinstance(statement, ast.Assign)
            and {call.func.id for call in ast.walk(statement) if isinstance(call, ast.Call) and isinstance(call.func, ast.Name)} <= {'dict'}
            and not any(isinstance(node, ast.Attribute) for node in ast.walk(statement))
            for statement in ast.parse(self.text).body
        )

    @property
    def source(self) -> str:
        """The Python of it; a diff's is what it comes to."""
        if self.language != 'diff':
            return self.text
        return ''.join(line[2:] + '\n' for line in self.text.splitlines() if not line.startswith('-'))


def blocks(*pages: Path) -> Iterator[Block]:
    for page in pages or PAGES:
        needs, inside, lines = '', None, page.read_text().splitlines()
        for number, line in enumerate(lines, 1):
            fence, mark = FENCE.match(line), MARK.match(line)
            if inside is not None:
                if fence and not fence[2]:
                    start, language = inside
                    yield Block(page, start, language, textwrap.dedent('\n'.join(lines[start : number - 1])), needs)
                    needs, inside = '', None
            elif fence:
                inside = number, fence[2]
            elif mark:
                needs = mark[1]
            elif line.strip():
                needs = ''


def commands(block: Block) -> list[list[str]]:
    """The words of each command of a shell block, without comments, variables before it, and the brackets of what may be left out."""
    found = []
    for line in block.text.replace('\\\n', ' ').splitlines():
        for part in re.split(r'\s(?:&&|;)\s', line):
            words = shlex.split(re.sub(r'\[(-[^]]*)\]', r'\1', part).replace('...', ''), comments=True)
            while words and re.match(r'[A-Z_]+=', words[0]):
                words.pop(0)
            if words:
                found.append(words)
    return found


def types_in(source: str) -> set[str]:
    """The ``type='...'`` of all dicts in a piece of Python."""
    keywords = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.keyword) and node.arg == 'type')
    return {node.value.value for node in keywords if isinstance(node.value, ast.Constant)}

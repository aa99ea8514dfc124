"""Runs a script where some packages do not exist: ``python alone.py NAME,NAME SCRIPT ARGUMENT...``; it finds what lies in this folder."""

import importlib.abc
import runpy
import sys


class Nothing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in ABSENT:
            raise ImportError(f'{name} is not here')


ABSENT = set(sys.argv[1].split(','))
sys.meta_path.insert(0, Nothing())
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name='__main__')
assert not ABSENT & sys.modules.keys()

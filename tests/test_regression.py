"""Files of earlier commits give the outputs that were stored with them: the corpus in tests/data/regression, a folder for each date."""

import pytest
import torch
from conftest import ROOT
from mmpretrain.registry import MODELS

import orepa_mm
from orepa_mm.checkpoints.reading import read_checkpoint

FILES = sorted((ROOT / 'tests' / 'data' / 'regression').rglob('*.pth'))


@pytest.mark.parametrize('path', FILES, ids=lambda path: f'{path.parent.name}-{path.stem}')
def test_files_of_earlier_commits(path):
    """In both forms. Each has a backbone's config and weights after three steps, an input, and the first 64 values of its last output."""
    stored = read_checkpoint(path)
    model = MODELS.build(stored['config'])
    model.eval()
    model.load_state_dict(stored['state_dict'])
    for form in (model, orepa_mm.reparameterize(model)):
        with torch.no_grad():
            found = form(stored['input'])[-1].flatten()[:64]
        assert (found - stored['output']).abs().max() <= 1e-5 * stored['output'].abs().max()  # float32

"""The tutorial notebook: its outputs are kept in the file, and it runs again."""

import os
from pathlib import Path

import nbformat
import pytest
from doc_blocks import ROOT
from nbclient import NotebookClient

PATH = ROOT / 'demo' / 'orepa_mm_tutorial.ipynb'


def pictures(notebook) -> list[str]:
    outputs = [output for cell in notebook.cells for output in cell.get('outputs', ())]
    return [output.data['image/png'] for output in outputs if 'image/png' in output.get('data', {})]


def test_the_outputs_are_kept():
    notebook = nbformat.read(PATH, 4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == 'code']
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not [output for cell in code for output in cell.outputs if output.output_type == 'error' or output.get('name') == 'stderr']
    assert len(pictures(notebook)) == 3 and PATH.stat().st_size < 1_500_000
    text = ''.join(output.get('text', '') for cell in code for output in cell.outputs)
    assert 'boxes above 0.3, the same in both' in text and 'the same boxes and scores in onnxruntime' in text
    assert not [word for word in text.split() if word.startswith('/')], 'paths of one machine'


@pytest.mark.slow
def test_it_runs_from_its_first_cell_to_its_last(tmp_path, monkeypatch):
    """It compares the predictions of the training form, the stock model and the ONNX file itself."""
    for name in ('tools', 'configs', 'demo', 'orepa_mm'):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.setenv('PYTHONPATH', os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')]))
    notebook = nbformat.read(PATH, 4)
    NotebookClient(notebook, timeout=1800, kernel_name='python3', resources=dict(metadata=dict(path=str(tmp_path)))).execute()
    assert len(pictures(notebook)) == 3
    assert Path(tmp_path, 'work_dirs/tutorial/detector.onnx').is_file()

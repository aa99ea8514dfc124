"""The generated pages and metafiles are those the configs give today, and MM's tooling reads them."""

import doc_tables
import list_configs as listing
import pytest
import write_metafiles as metafiles
import yaml
from conftest import ROOT, few

from orepa_mm.errors import UsageError

PAGE = (ROOT / 'docs' / 'configs.md').read_text()
SCALING = (ROOT / 'docs' / 'scaling.md').read_text()


def rows() -> dict[str, list[str]]:
    cells = [[cell.strip() for cell in line.strip('|').split('|')] for line in PAGE.splitlines() if line.startswith('| [')]
    return {row[0].split('configs/')[1].split('.py')[0]: row for row in cells}


def test_the_page_lists_every_config_in_order():
    names = listing.configs([])
    assert [f'configs/{name}.py' for name in rows()] == names


@pytest.mark.parametrize('name', few(rows(), *list(rows())[::8]))
def test_a_row_says_what_the_config_does(name):
    row = rows()[name]
    assert f'| {" | ".join(row)} |' == listing.row(f'configs/{name}.py', row[1:3]).replace('|  |', '|  |')
    cfg = listing.read(f'configs/{name}.py')
    assert cfg.default_scope == 'mmseg' or cfg.auto_scale_lr.base_batch_size  # docs/scaling.md


@pytest.mark.parametrize(
    'name',
    [
        'imagenet/dbb-resnet18_4xb64-120e_in1k',
        'imagenet/orepa-repvgg-A0_4xb64-120e_in1k',
        'imagenet/orepa-resnext50-32x4d_4xb64-120e_in1k',
        'coco/mask-rcnn_orepa-r18-w16_fpn_coco-mini',
        'cityscapes/pspnet_orepa-r18-w16-d8_cityscapes-mini',
    ],
)
def test_parameters_and_flops_are_counted_again(name):
    assert tuple(rows()[name][1:3]) == listing.cost(f'configs/{name}.py')


def test_a_table_goes_between_its_markers():
    with pytest.raises(UsageError, match='lacks the lines <!-- x: begin -->'):
        doc_tables.insert('# Title\n', 'x', 'table')
    text = 'a\n<!-- x: begin -->\nold\n<!-- x: end -->\nb\n'
    assert doc_tables.insert(text, 'x', 'new') == 'a\n<!-- x: begin -->\n\nnew\n\n<!-- x: end -->\nb\n'


def test_what_the_counts_are():
    (training, deployed), (trained, tested) = listing.measure('configs/imagenet/none-resnet18_4xb64-120e_in1k.py')
    assert training == deployed == 11689512 and trained == tested  # as in torchvision
    assert 1.81e9 < tested < 1.83e9
    with pytest.raises(Exception, match='no config matches'):
        listing.configs(['configs/none/*'])


@pytest.mark.slow
def test_metafiles_are_up_to_date():
    for name, content in metafiles.metafiles(PAGE).items():
        assert (ROOT / name).read_text() == content, f'{name}: run .dev_scripts/write_metafiles.py'


def test_the_paper_s_figures_belong_to_configs_and_say_so():
    models = [model for name in yaml.safe_load((ROOT / 'model-index.yml').read_text())['Import']
              for model in yaml.safe_load((ROOT / name).read_text())['Models']]  # fmt: skip
    names = {model['Name'] for model in models}
    assert len(names) == len(models) and set(metafiles.paper_figures()) <= names
    for model in models:
        assert (ROOT / model['Config']).is_file() and 'Weights' not in model
        for result in model.get('Results', ()):
            assert all(key.endswith('(paper)') for key in result['Metrics'])
    values = {model['Name']: list(model['Results'][0]['Metrics'].values())[0] for model in models if 'Results' in model}
    assert values['orepa-resnet50_4xb64-120e_in1k'] == 77.31 and values['pspnet_orepa-r50-d8_4xb2-40k_cityscapes-512x1024'] == 75.47
    assert len(values) == 4 * 3 + 3 * 2 + 3 * 2 + 4 * 3


def test_mm_tooling_reads_the_metafiles(tmp_path):
    from mmengine.config.utils import _get_cfg_metainfo

    (tmp_path / '.mim').symlink_to(ROOT)  # what an installed package looks like
    found = _get_cfg_metainfo(str(tmp_path), 'coco/retinanet_orepa-r50_fpn_1x_coco.py')
    assert found['Results'][0]['Metrics'] == {'box AP (paper)': 36.9}
    modelindex = pytest.importorskip('modelindex')
    index = modelindex.load(str(ROOT / 'model-index.yml'))
    index.build_models_with_collections()
    assert not index.check_errors and len(index.models) > 50
    assert all(not model.check_errors for model in index.models)


def test_the_stem_guide_names_configs_that_exist():
    guide = (ROOT / 'docs' / 'learning_rate.md').read_text()
    named = {word.strip('`()') for word in guide.split() if word.strip('`()').startswith('configs/') and word.strip('`()').endswith('.py')}
    assert {part for name in named for part in ('frozen-stem', 'plain-stem') if part in name} == {'frozen-stem', 'plain-stem'}
    for name in named:
        assert (ROOT / name).is_file(), name


def test_the_guide_to_scaling_names_what_there_is():
    words = SCALING.replace('`', ' ').replace(',', ' ').split()
    scripts = {word for word in words if word.startswith(('tools/', 'tests/'))}
    assert {'tools/dist_train.sh', 'tools/dist_test.sh', 'tools/slurm_train.sh', 'tools/slurm_test.sh'} <= scripts
    assert all((ROOT / name).is_file() for name in scripts)
    variables = {word.partition('=')[0] for word in words if '=' in word and word.partition('=')[0].isupper()} - {'PYTHONPATH'}
    read = ''.join((ROOT / name).read_text() for name in scripts if name.endswith('.sh'))
    assert {'NNODES', 'NODE_RANK', 'MASTER_ADDR', 'GPUS'} <= variables
    assert all(f'${{{name}:-' in read for name in variables)


FINISHED = sorted(path.parent for path in (ROOT / 'docs' / 'studies').glob('*/study.png'))


@pytest.mark.parametrize('folder', FINISHED, ids=lambda folder: folder.name)
def test_the_tables_of_studies_are_made_of_their_runs(folder, tools, tmp_path):
    study = ROOT / '.dev_scripts' / 'studies' / 'files' / f'{folder.name}.py'
    arguments = (study, '--report', folder / 'runs.jsonl', '--out', tmp_path)
    assert tools.run('.dev_scripts/studies/compare_methods', *arguments) == (0, '')
    assert (tmp_path / 'table.md').read_text().rstrip() in (ROOT / 'docs' / 'evidence.md').read_text()
    assert {path.name for path in folder.glob('*.png')} <= {path.name for path in tmp_path.glob('*.png')}

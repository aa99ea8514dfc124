"""COCO annotation files: what is read, what is refused with the place where it is wrong, and what is a warning."""

import json
import sys
from copy import deepcopy

import pytest
from coco_files import read_coco

from orepa_mm.errors import UsageError

GOOD = dict(
    images=[dict(id=1, file_name='a.jpg', width=8, height=8), dict(id='two', file_name='b.jpg', width=8.0, height=8)],
    annotations=[
        dict(id=1, image_id=1, category_id=1, bbox=[1, 1.5, 4, 4], area=16, iscrowd=0, segmentation=[[1, 1, 5, 1, 5, 5]]),
        dict(id=2, image_id='two', category_id=1, bbox=[1, 1, 4, 4], area=16, iscrowd=1, segmentation=dict(size=[8, 8], counts='00')),
        dict(id=3, image_id=1, category_id=1, ignore=1),
    ],
    categories=[dict(id=1, name='cat', supercategory='animal')],
    licenses=[],
)


@pytest.fixture
def read(tmp_path):
    def get(content, **options):
        path = tmp_path / 'a.json'
        path.write_text(json.dumps(content))
        return read_coco(path, **options)

    return get


def changed(kind: str, index: int = 0, **values) -> dict:
    content = deepcopy(GOOD)
    content[kind][index].update(values)
    return content


def test_without_what_checks_them(read, monkeypatch):
    monkeypatch.setitem(sys.modules, 'jsonschema_rs', None)
    with pytest.raises(UsageError, match='pip install jsonschema-rs'):
        read(GOOD)


def test_good_files(read, capsys):
    assert read(GOOD) == GOOD == read(GOOD, masks=True)
    assert read({key: GOOD[key] for key in ('images', 'categories')}, annotated=False)
    assert read(changed('annotations', segmentation=[])) and read(changed('annotations', segmentation=None))
    assert not capsys.readouterr().err


def test_panoptic_files(read):
    segments = [dict(id=5, category_id=1, bbox=[0, 0, 1, 1], area=1, iscrowd=0)]
    content = dict(
        GOOD, annotations=[dict(image_id=1, file_name='a.png', segments_info=segments)], categories=[dict(id=1, name='a', isthing=1)]
    )
    assert read(content, panoptic=True)
    with pytest.raises(UsageError, match=r'categories\[0\]: "isthing" is a required'):
        read(dict(content, categories=GOOD['categories']), panoptic=True)
    segments[0]['category_id'] = 7
    with pytest.raises(UsageError, match='1 of 1 annotations have category_ids that the file does not list, such as 7'):
        read(content, panoptic=True)


@pytest.mark.parametrize(
    ('content', 'options', 'message'),
    [
        ([], {}, 'not a COCO annotation file: .* is not of type "object"'),
        ({}, {}, '"images" is a required property'),
        (dict(GOOD, images=[]), {}, r'images: \[\] has less than 1 item'),
        (changed('images', file_name=None), {}, r'images\[0\].file_name: null is not of type "string"'),
        (changed('images', 1, width=0), {}, r'images\[1\].width: 0'),
        (changed('annotations', bbox=[1, 2, 3]), {}, r'annotations\[0\].bbox: \[1,2,3\] has less than 4 items'),
        (changed('annotations', area=float('nan')), {}, r'annotations\[0\].area'),
        (changed('annotations', segmentation=[]), dict(masks=True), r'annotations\[0\].segmentation'),
        (changed('annotations', bbox=[5, 1, 7, 4]), {}, '1 of 2 boxes end outside their images.*as corners: write'),
        (dict(GOOD, annotations=[dict(GOOD['annotations'][0], bbox=[0.1, 0.2, 0.5, 0.5])]), {}, 'all boxes are smaller than a pixel'),
        (changed('annotations', 1, id=1), {}, '1 ids of its annotations are there twice, such as 1'),
        (changed('images', 1, id=1), {}, '1 ids of its images are there twice'),
        (dict(GOOD, categories=2 * GOOD['categories']), {}, '1 ids of its categories are there twice'),
        (dict(GOOD, categories=[dict(id=1, name='a'), dict(id=2, name='a')]), {}, "1 names of its categories are there twice, such as 'a'"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(content, options, message, read):
    with pytest.raises(UsageError, match=f'a.json: .*{message}'):
        read(content, **options)


def test_instances_need_outlines_where_masks_are_trained(read):
    content = deepcopy(GOOD)
    del content['annotations'][0]['segmentation']
    read(content)
    with pytest.raises(UsageError, match=r'annotations\[0\]: "segmentation" is a required'):
        read(content, masks=True)


def test_what_is_left_out_is_a_warning(read, capsys):
    read(changed('annotations', image_id=9))
    assert 'warning: ' in (said := capsys.readouterr().err) and '1 of 3 annotations have image_ids' in said and 'such as 9' in said
    read(changed('annotations', bbox=[6, 1, 4, 4]))
    assert '1 of 2 boxes end outside their images, such as [6, 1, 4, 4].' in capsys.readouterr().err
    with pytest.raises(UsageError, match='3 of 3 annotations have category_ids'):
        read(dict(GOOD, annotations=[dict(annotation, category_id=9) for annotation in GOOD['annotations']]))


@pytest.mark.parametrize('text', ['', 'hello', '{"images": [', '[' * 100_000, '\udc80'])
def test_what_is_no_json(text, tmp_path):
    (tmp_path / 'a.json').write_bytes(text.encode(errors='surrogateescape'))
    with pytest.raises(UsageError, match='a.json: not JSON'):
        read_coco(tmp_path / 'a.json')


def test_values_of_any_depth_and_length_make_one_line(read, tmp_path):
    text = json.dumps(changed('images', file_name='@')).replace('"@"', '[' * 500 + ']' * 500)
    (tmp_path / 'a.json').write_text(text)
    with pytest.raises(UsageError, match='a.json: not a COCO annotation file'):
        read_coco(tmp_path / 'a.json')
    with pytest.raises(UsageError) as caught:
        read(changed('images', width='x' * 10**6))
    assert len(str(caught.value)) < 500

"""The table of modalities is whole: nothing that one needs is missing, nowhere."""

from __future__ import annotations

from typing import get_args

from trifocal.media.decoding import ItemReader
from trifocal.media.limits import MediaLimits
from trifocal.media.modalities import MODALITIES
from trifocal.media.reader import READERS
from trifocal.prompt.item_options import media_io_schema
from trifocal.prompt.parts import MEDIA_TYPES
from trifocal.types import Modality


def test_each_modality_has_a_row_and_each_row_its_parts() -> None:
    assert list(MODALITIES) == list(get_args(Modality)) == list(media_io_schema()["properties"])
    for name, info in MODALITIES.items():
        assert info.name == name and issubclass(READERS.get(name), ItemReader)
        assert READERS.get(name).items_of(None) == []
        assert info.decode_timeout in MediaLimits.__dataclass_fields__
        assert info.url_field in info.part_fields.values() and info.frames in (None, *MODALITIES)
    assert len(MEDIA_TYPES) == sum(len(info.part_fields) for info in MODALITIES.values()), "types are of one modality"

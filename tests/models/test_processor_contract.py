"""What every family's processor must keep to: nothing public beside the contract, and its promises about scaling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL.Image
import pytest

from tests.models.families import ENTRIES
from trifocal.families import FAMILIES, PROCESSORS
from trifocal.media.decode.image import as_array, scaled
from trifocal.media.media import Image, Media, Video
from trifocal.model_spec import ModelSpec
from trifocal.prompt.processor import Processor
from trifocal.tokenizer import load_tokenizer

# A family is here with each of its ways to cut pictures; a new one must be added.
FOLDERS = {
    f"{name}-{spelling}": (entry, spelling)
    for name, entry in ENTRIES.items()
    if name in ("qwen2_5_vl", "internvl-qwen2-300M", "minicpmv-2.6", "minicpmv-2.5", "minicpmv-2.0")
    for spelling in entry.spellings
}
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "Qwen2_5_VLProcessor": [{}, {"max_pixels": 6000}, {"min_pixels": 50_000}],
    "InternVLProcessor": [
        {}, {"use_thumbnail": False}, {"dynamic_image_size": False}, {"use_thumbnail": False, "max_dynamic_patch": 40},
    ],
    "MiniCPMVProcessor": [{}, {"max_slice_nums": 1}, {"max_slice_nums": 4}],
}  # fmt: skip


@pytest.fixture(scope="module", params=FOLDERS)
def processor(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Processor:
    entry, spelling = FOLDERS[request.param]
    folder = str(entry.write(tmp_path_factory.mktemp("contract") / "model", spelling))
    spec = ModelSpec.from_checkpoint(folder)
    return PROCESSORS.get(spec.architecture)(spec, load_tokenizer(folder))


def unknown(processor: Processor) -> set[str]:
    """Public names that the contract does not know: what is called by them here, nobody calls."""
    known = {*dir(Processor), "spec", "tokenizer"}
    return {name for name in dir(processor) if not name.startswith("_")} - known


def test_nothing_is_public_beside_the_contract(processor: Processor) -> None:
    assert unknown(processor) == set()


def test_every_family_is_looked_at() -> None:
    """That takes media."""
    families = [family for family in FAMILIES if family.modalities]
    classes = {family.processor.rpartition(":")[2] for family in families}
    assert classes == set(OPTIONS)
    assert {PROCESSORS.get(form.architecture).__name__ for family in families for form in family.formats} == classes
    assert len({name.partition("-")[0] for name in FOLDERS}) == len(families)


def test_a_name_of_its_own_is_found() -> None:
    class Odd(Processor):
        helper = None

        def __init__(self) -> None:
            self.spec = self.tokenizer = None  # type: ignore[assignment]
            self.tiles = 3

        size_option: Any = None

        def check_options(self, options: Any) -> None: ...

        def frame_size(self) -> None: ...

        def placeholder(self, modality: Any) -> str: ...  # type: ignore[empty-body]

        def sample_frames(self, num_frames: int, fps: float, options: Any) -> Any: ...

        def plan(self, modality: Any, size: Any, options: Any) -> Any: ...

        def build(self, token_ids: Any, media: Any, options: Any) -> Any: ...

    assert unknown(Odd()) == {"helper", "tiles", "frame_size"}


@dataclass
class Shapes:
    """How many items of each kind came scaled."""

    image: int = 0
    video: int = 0


def test_scaling_while_decoding_changes_no_pixel(processor: Processor) -> None:
    """Decoders scale to `plan.decoded`: the prompt and its pixels must be those of the item as it came."""
    rng, seen = np.random.default_rng(4), Shapes()
    for options in OPTIONS[type(processor).__name__]:
        for index in range(24):
            size = (int(rng.integers(1, 4)), *rng.integers(8, 130, 2).tolist())
            modality = "video" if index % 3 == 0 else "image"
            if modality == "image":
                size = (1, *size[1:])
            pixels = rng.integers(0, 256, (*size, 3), np.uint8)
            plan = processor.plan(modality, size, options)
            target = plan.decoded
            assert (plan.modality, plan.size, plan.num_frames) == (modality, size[1:], size[0])
            pictures = [PIL.Image.fromarray(each) for each in pixels]
            small = np.stack([as_array(scaled(each, target)) for each in pictures])
            assert small.shape[1:3] == target
            if target != size[1:]:
                setattr(seen, modality, getattr(seen, modality) + 1)
            prompts = []
            for frames, own in ((pixels, None), (small, plan)):
                item: Media = Image(frames[0], own) if modality == "image" else Video(frames, 2.0, own)
                ids = processor.tokenizer.encode(f"a {processor.placeholder(modality)} b", add_special_tokens=False)
                prompts.append(processor.build(ids, [item], options))
            num_tokens = len(ids) - 1 + plan.num_tokens + processor.num_label_tokens([modality], options)
            assert num_tokens - len(prompts[1].token_ids) in (0, 1), "a placeholder may be a pair of tokens"
            assert prompts[1].media[0].span.num_embeds == plan.num_embeds
            assert prompts[0].token_ids == prompts[1].token_ids, (modality, size, target, options)
            np.testing.assert_array_equal(prompts[0].media[0].pixels, prompts[1].media[0].pixels)
            assert prompts[0].media[0].content_hash == prompts[1].media[0].content_hash
    assert seen.video and seen.image, "nothing was scaled: the promise is empty"

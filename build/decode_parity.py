"""Measures what `decode: scaled` does to embeddings: large photographs decoded scaled against exact decoding.

The encoder is the exported file for both, so that nothing but the decoding differs.
"""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from build.cosine import cosines
from build.errors import ParityError
from build.onnx_embeddings import onnx_embeddings
from common.manifest import Preprocessing
from common.photos import Picture, sample_photos
from common.pixels import served_pixels
from recipes.schema import Recipe
from recipes.serving_section import Serving

FRACTIONS = (2, 4, 8)
"""Denominators of libjpeg's scaled sizes, 1/2 to 1/8; each photograph is made large enough for one of them."""
LONGEST_SHORT_EDGE = 3600
"""Limit in pixels; an encoder that sees more than 224 of them is tried with photographs that are decoded at 1/4."""


def check_decode(path: Path, views: list[Preprocessing], recipe: Recipe) -> dict[str, float]:
    """Compare the embeddings of scaled photographs with those of exact ones, if the views are scaled.

    Args:
        path: the encoder's ONNX file.

    Returns:
        scaled_pictures, scaled_cosine_mean, scaled_cosine_min; nothing for exact views.

    Raises:
        ParityError: the mean is below the recipe's build.minimum_cosine.scaled; with both.
    """
    exact = [view.model_copy(update={"decode": "exact"}) for view in views]
    if views == exact:
        return {}
    photographs = large_photographs(max(view.resize_size or view.image_size for view in views))
    expected, scaled = (
        onnx_embeddings(path, served_pixels(decoded, Serving(), photographs)) for decoded in (exact, views)
    )
    row_cosines, limit = cosines(expected, scaled), recipe.build.minimum_cosine.scaled
    if not row_cosines.mean() >= limit:  # NaN fails as well
        raise ParityError(
            f"decode: scaled: mean cosine {row_cosines.mean():.7f} to exactly decoded photographs is below "
            f"build.minimum_cosine.scaled {limit}; lower the limit, or use decode: exact"
        )
    return {
        "scaled_pictures": len(row_cosines),
        "scaled_cosine_mean": float(row_cosines.mean()),
        "scaled_cosine_min": float(row_cosines.min()),
    }


def large_photographs(resize_size: int) -> list[Picture]:
    """Each sample photograph as a JPEG of which a half, a quarter or an eighth is twice `resize_size` wide."""
    sizes = [min(2 * fraction * resize_size, LONGEST_SHORT_EDGE) for fraction in FRACTIONS]
    return [enlarged(path, sizes[index % len(sizes)]) for index, path in enumerate(sample_photos())]


def enlarged(path: Path, short_edge: int) -> Picture:
    """A photograph as a JPEG of another size, in pixels; resampling adds no noise."""
    with Image.open(path) as image:
        photograph = image.convert("RGB")
    scale = short_edge / min(photograph.size)
    size = round(photograph.width * scale), round(photograph.height * scale)
    file = io.BytesIO()
    photograph.resize(size, Image.Resampling.LANCZOS).save(file, "JPEG", quality=90)
    return Picture(f"{path.stem}-{size[0]}x{size[1]}.jpg", file.getvalue())

"""What responses look like: words, epistemic markers and their lexicons, self-corrections."""

from epistill.metrics.epistemic import (
    count_markers,
    density,
    marker_spans,
    official_substring_count,
    total_markers,
)
from epistill.metrics.lexicon import Lexicon, load_lexicon, shipped_lexicons
from epistill.metrics.words import count_words

__all__ = [
    "Lexicon",
    "count_markers",
    "count_words",
    "density",
    "load_lexicon",
    "marker_spans",
    "official_substring_count",
    "shipped_lexicons",
    "total_markers",
]

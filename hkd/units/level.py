"""The levels of the hierarchy, from fine to coarse. A level is a name; others than the three are welcome (word, character)."""

SENONE = "senone"  # tied states of context-dependent phones
MONOPHONE = "monophone"
SUBWORD = "subword"

LEVELS = (SENONE, MONOPHONE, SUBWORD)

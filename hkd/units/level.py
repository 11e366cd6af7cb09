"""The levels of the hierarchy, from fine to coarse. A level is a name; others than these are welcome (word)."""

SENONE = "senone"  # tied states of context-dependent phones
MONOPHONE = "monophone"
CHARACTER = "character"
SUBWORD = "subword"

LEVELS = (SENONE, MONOPHONE, SUBWORD)  # the hierarchy, unless more is asked for
SPELLED = (CHARACTER, SUBWORD)  # what words are spelled in: without pronunciations, placed on frames by letters
UNIT_LEVELS = (SENONE, MONOPHONE, CHARACTER, SUBWORD)  # all that words can be turned into

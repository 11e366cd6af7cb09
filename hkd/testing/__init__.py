"""What tests need: a tiny corpus of synthesised speech, random alignments, tiny teachers. Shipped, never imported by
the library."""

"""Text-only corpora."""

from hkd.corpora.debian import fortune_paragraphs, sentences

FORTUNES = """It is a fact.  Nobody knows "why."  Dr No did it!
\t\t-- Someone, "A Book"
%
A poem goes on
over two lines.

Second paragraph here.
%
1 + 1 = 3
"""


def test_cookies_become_sentences() -> None:
    paragraphs = list(fortune_paragraphs(FORTUNES))
    assert paragraphs[1:] == ["A poem goes on over two lines.", "Second paragraph here.", "1 + 1 = 3"]
    found = [sentence for paragraph in paragraphs for sentence in sentences(paragraph)]
    assert found == [
        "It is a fact.", 'Nobody knows "why.', "Dr No did it!", "A poem goes on over two lines.", "Second paragraph here.",
    ]  # fmt: skip


def test_what_is_mostly_no_letters_is_left_out() -> None:
    assert list(sentences("+--+--+ | a | b |. Ok then. Hm.")) == ["Ok then."]
